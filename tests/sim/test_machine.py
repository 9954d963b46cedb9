"""Hypothesis chooses what happens to two sites; when an invariant breaks it finds the shortest way there.

MIRRORGATE_SIM_DEEP=1 looks at many more and longer runs.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from tests.support.sim.packets import Traffic
from tests.support.sim.walk import FLOWS, VARIANTS, Walk

DEEP = bool(os.environ.get("MIRRORGATE_SIM_DEEP"))
SITES = st.sampled_from(["a", "b"])
#: Shorter than, about, and longer than: a one-way delay, an exchange, a retransmission, liveness, a lifetime.
SPANS = st.sampled_from([0.001, 0.004, 0.011, 0.05, 0.6, 3, 20, 70])


class TwoSites(RuleBasedStateMachine):
    """Each rule is one thing that may happen; the world checks its invariants after every packet and timer."""

    walk: Walk

    @initialize(seed=st.integers(0, 1000), nat=st.booleans())
    def begin(self, seed: int, nat: bool) -> None:
        self.walk = Walk(seed, nat=nat)

    @rule(flow=st.sampled_from(FLOWS), count=st.integers(1, 30))
    def send_probes(self, flow: Traffic, count: int) -> None:
        self.walk.burst(flow, count)

    @rule(span=SPANS)
    def advance(self, span: float) -> None:
        self.walk.advance(span)

    @rule(site=SITES, ike=st.booleans(), span=st.sampled_from([0, 0.002, 0.007, 0.013]))
    def force_rekey(self, site: str, ike: bool, span: float) -> None:
        self.walk.rekey(site, ike=ike)
        self.walk.advance(span)

    @rule(ours=st.booleans(), theirs=st.booleans(), span=st.sampled_from([0, 0.003, 0.006, 0.011]))
    def rekeys_collide(self, ours: bool, theirs: bool, span: float) -> None:
        self.walk.rekey("a", ike=ours)
        self.walk.advance(span)
        self.walk.rekey("b", ike=theirs)

    @rule(site=SITES)
    def reboot(self, site: str) -> None:
        self.walk.reboot(site)

    @rule(site=SITES)
    def crash(self, site: str) -> None:
        self.walk.crash(site)

    @rule(site=SITES)
    def terminate(self, site: str) -> None:
        self.walk.terminate(site)

    @rule(site=SITES)
    def initiate(self, site: str) -> None:
        self.walk.initiate(site)

    @rule(site=SITES)
    def partition(self, site: str) -> None:
        self.walk.partition(site, down=True)

    @rule(site=SITES)
    def heal(self, site: str) -> None:
        self.walk.partition(site, down=False)

    @rule(site=SITES, count=st.integers(1, 5))
    def drop_next(self, site: str, count: int) -> None:
        self.walk.drop_next(site, count)

    @rule(site=SITES, count=st.integers(1, 5))
    def duplicate(self, site: str, count: int) -> None:
        self.walk.duplicate_next(site, count)

    @rule()
    def nat_rebind(self) -> None:
        self.walk.rebind()

    @rule(site=SITES, variant=st.sampled_from(VARIANTS))
    def edit_policy(self, site: str, variant: str) -> None:
        self.walk.edit(site, variant)

    @rule(site=SITES, length=st.integers(0, 100), port=st.sampled_from([0, 500, 4500]))
    def junk(self, site: str, length: int, port: int) -> None:
        self.walk.junk(site, length, port)

    def teardown(self) -> None:
        if hasattr(self, "walk"):
            self.walk.finish()


TwoSites.TestCase.settings = settings(
    max_examples=1000 if DEEP else 50,
    stateful_step_count=60 if DEEP else 30,
    deadline=None,
    derandomize=not DEEP,
    suppress_health_check=list(HealthCheck),
)
TestTwoSites = TwoSites.TestCase
