"""Everything that may happen to two sites, as actions; and a seeded random walk over them.

The state machine test chooses the actions with Hypothesis, the soak and ``scripts/sim_replay.py`` by seed.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from policy.clock import MILLISECOND
from policy.path import Path
from tests.support.sim.net import Faults
from tests.support.sim.packets import Traffic, traffic
from tests.support.sim.policies import BLOCK, PERMIT, action, filter_of, rule, with_rules
from tests.support.sim.scenes import A_TO_B, B_TO_A, Sites, policies, sites
from tests.support.sim.world import World, endpoint
from tunnel.outputs import Initiate, Rekey, Terminate

FLOWS = (
    A_TO_B,
    B_TO_A,
    traffic("10.1.0.5", "10.2.0.9", 6),
    traffic("10.2.0.200", "10.1.0.3", 1),
    traffic("10.1.0.200", "10.2.0.200"),
    traffic("10.1.0.5", "10.7.0.1"),
)
#: Length of a walk.
STEPS = 60
#: Names of the policies that a site may have; "base" is the one that works.
VARIANTS = ("base", "short lives", "other suite", "narrow", "two filters", "block inside", "no rule", "none")


class Walk:
    """Two sites, and what may happen to them."""

    def __init__(self, seed: int, *, nat: bool = False, keep_packets: bool = False) -> None:
        self.nat = nat
        faults = Faults(latency=5 * MILLISECOND, jitter=MILLISECOND)
        self.scene: Sites = sites(seed, nat=nat, faults=faults, keep_packets=keep_packets)
        self.world: World = self.scene.world
        self.random = Random(f"walk/{seed}")

    @classmethod
    def of_seed(cls, seed: int, *, keep_packets: bool = False) -> Walk:
        """Return the walk that *seed* means: every third has a NAT before site A."""
        return cls(seed, nat=seed % 3 == 0, keep_packets=keep_packets)

    def run(self, steps: int) -> None:
        """Walk *steps* random steps, then let everything be well."""
        for _ in range(steps):
            choices = self.actions()
            self.random.choices([act for _, act in choices], [weight for weight, _ in choices])[0]()
        self.finish()

    def probe(self, flow: Traffic) -> None:
        """Send a packet."""
        self.world.probe(flow)

    def burst(self, flow: Traffic, count: int) -> None:
        """Send a stream, one packet every 10 ms."""
        self.world.stream(flow, every_s=0.01, duration_s=count / 100)

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.world.run(seconds)

    def rekey(self, name: str, *, ike: bool) -> None:
        """Rekey Child SAs or IKE SAs of one site."""
        if self.world.hosts[name].gateway is not None:
            self.world.hosts[name].command(Rekey(ike=ike))

    def terminate(self, name: str) -> None:
        """Delete everything of one site."""
        if self.world.hosts[name].gateway is not None:
            self.world.hosts[name].command(Terminate())

    def initiate(self, name: str) -> None:
        """Let the operator of one site dial."""
        if self.world.hosts[name].gateway is not None:
            self.world.hosts[name].command(Initiate("LAN to LAN"))

    def reboot(self, name: str) -> None:
        """Start one site's daemon anew, or start it at all."""
        self.world.hosts[name].reboot()

    def crash(self, name: str) -> None:
        """End one site's daemon."""
        self.world.hosts[name].crash()

    def partition(self, name: str, *, down: bool) -> None:
        """Cut one site off, or connect it again."""
        self.world.partition(name, down=down)

    def drop_next(self, name: str, count: int) -> None:
        """Lose the next packets of one site."""
        self.world.links[name].faults.drop_next = count

    def duplicate_next(self, name: str, count: int) -> None:
        """Double the next packets of one site."""
        self.world.links[name].faults.duplicate_next = count

    def weather(self, loss: float, reorder: float) -> None:
        """Make both links lossy."""
        for name in ("a", "b"):
            faults = self.world.links[name].faults
            faults.loss, faults.reorder = loss, reorder

    def rebind(self) -> None:
        """Let the NAT forget its bindings."""
        if self.nat:
            self.world.nats["a"].rebind()

    def edit(self, name: str, variant: str) -> None:
        """Assign another policy at one site."""
        host = self.world.hosts[name]
        filters: tuple[tuple[str, str], ...] = (("10.1.0.0/24", "10.2.0.0/24"),)
        then = None
        match variant:
            case "short lives":
                then = action(lifetime_s=15, lifetime_bytes=50_000)
            case "other suite":
                then = action("esp:aes256-sha256", "esp:aes128gcm16")
            case "narrow":
                filters = (("10.1.0.0/28", "10.2.0.0/24"),)
            case "two filters":
                filters = (("10.1.0.0/25", "10.2.0.0/24"), ("10.1.0.128/25", "10.2.0.0/24"))
        a, b = policies(then, filters=filters, any_peer=self.nat)
        chosen = a if name == "a" else b
        if variant == "block inside":
            chosen = with_rules(
                chosen, *chosen.rules, rule("Stop", filter_of("10.1.0.0/24", "10.2.0.0/24", 6), then=BLOCK)
            )
        elif variant == "no rule":
            chosen = with_rules(chosen, rule("Plain", filter_of("10.9.0.0/24", "10.8.0.0/24"), then=PERMIT))
        host.assign(None if variant == "none" else chosen)

    def junk(self, name: str, length: int, port: int) -> None:
        """Let random octets, or a part of what was heard before, arrive at one site from the other's address."""
        host, other = self.world.hosts[name], self.world.hosts["b" if name == "a" else "a"]
        own, remote = endpoint(str(host.addresses[0]), port), endpoint(str(other.addresses[0]), port)
        host.inject(Path(own, remote), self.random.randbytes(length))

    def finish(self) -> None:
        """Let everything be well again; then both sites talk, agree, and have nothing left under way."""
        self.world.note("walk", "everything is well again")
        for name in ("a", "b"):
            faults = self.world.links[name].faults
            faults.loss = faults.reorder = 0.0
            faults.drop_next = faults.duplicate_next = 0
            self.partition(name, down=False)
            self.edit(name, "base")
            if self.world.hosts[name].gateway is None:
                self.world.hosts[name].boot()
        for flow in (A_TO_B, B_TO_A):
            self.world.stream(flow, every_s=1, duration_s=150)
        self.world.run(160)
        numbers = [self.world.probe(flow) for flow in (A_TO_B, B_TO_A)]
        self.world.run(5)
        if missing := self.world.missing(numbers):
            self.world.violate(f"after everything was well for 160 seconds, probes {missing} did not arrive")
        self.scene.settle(90)

    def actions(self) -> list[tuple[int, Callable[[], None]]]:
        """Return what may happen next, with weights."""
        random = self.random
        site = random.choice(("a", "b"))
        return [
            (8, lambda: self.probe(random.choice(FLOWS))),
            (8, lambda: self.burst(random.choice(FLOWS), random.randint(1, 40))),
            (12, lambda: self.advance(random.choice((0.001, 0.004, 0.011, 0.05, 0.3, 1, 5)))),
            (2, lambda: self.advance(random.choice((20, 60, 200)))),
            (5, lambda: self.rekey(site, ike=False)),
            (4, lambda: self.rekey(site, ike=True)),
            (1, lambda: self.terminate(site)),
            (1, lambda: self.initiate(site)),
            (1, lambda: self.reboot(site)),
            (1, lambda: self.crash(site)),
            (1, lambda: self.partition(site, down=True)),
            (3, lambda: self.partition(site, down=False)),
            (3, lambda: self.drop_next(site, random.randint(1, 5))),
            (3, lambda: self.duplicate_next(site, random.randint(1, 5))),
            (1, lambda: self.weather(random.choice((0.1, 0.3)), random.choice((0.0, 0.2)))),
            (2, lambda: self.weather(0.0, 0.0)),
            (2, self.rebind),
            (2, lambda: self.edit(site, random.choice(VARIANTS))),
            (2, lambda: self.junk(site, random.choice((1, 7, 28, 60, 300)), random.choice((500, 4500, 0)))),
        ]


def soak(seed: int, steps: int = STEPS) -> World:
    """Walk *steps* random steps from *seed*, then let everything be well; return the world with its trace."""
    walk = Walk.of_seed(seed)
    walk.run(steps)
    return walk.world
