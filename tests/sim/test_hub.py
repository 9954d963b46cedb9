"""One gateway with many peers: what happens to one of them is no concern of the others."""

from __future__ import annotations

import pytest

from policy.clock import SECOND
from tests.support.sim.host import Host
from tests.support.sim.packets import Traffic, traffic
from tests.support.sim.policies import action, filter_of, policy, rule
from tests.support.sim.world import World
from tunnel.outputs import Rekey, Shutdown, Terminate

SPOKES = 12
HUB = "198.51.100.1"


class Star:
    """A hub with 10.99.0.0/24 behind it, and spokes with 10.N.0.0/24."""

    def __init__(self, seed: int = 1, lifetime_s: float = 3600) -> None:
        self.world = World(seed)
        self.hub = self.world.host("hub", HUB, networks=("10.99.0.0/24",))
        then = action(lifetime_s=lifetime_s)
        rules = []
        self.spokes: list[Host] = []
        for number in range(1, SPOKES + 1):
            own, pair = f"203.0.113.{number}", filter_of(f"10.{number}.0.0/24", "10.99.0.0/24")
            spoke = self.world.host(f"s{number}", own, networks=(f"10.{number}.0.0/24",))
            spoke.assign(policy(rule("To the hub", pair, endpoint=HUB, then=then)))
            rules.append(rule(f"Spoke {number}", pair, endpoint=own, then=then))
            self.spokes.append(spoke)
        self.hub.assign(policy(*rules))
        for host in (self.hub, *self.spokes):
            host.boot()
        self.flows: list[Traffic] = [traffic(f"10.{n}.0.5", "10.99.0.9") for n in range(1, SPOKES + 1)]

    def talk(self, flows: list[Traffic], seconds: float = 2) -> list[int]:
        """Send a packet each way of *flows*; return those that did not arrive."""
        numbers = [self.world.probe(flow) for flow in flows]
        self.world.run(seconds)
        numbers += [self.world.probe(flow.reply()) for flow in flows]
        self.world.run(seconds)
        return self.world.missing(numbers)


def test_all_come_up_at_once() -> None:
    star = Star()
    assert star.talk(star.flows) == []
    assert star.hub.gateway is not None
    assert len(star.hub.gateway.children) == SPOKES
    star.world.check_quiet()


def test_the_hub_reboots_under_traffic() -> None:
    star = Star(2)
    assert star.talk(star.flows) == []
    streams = [star.world.stream(flow, every_s=0.2, duration_s=12) for flow in star.flows]
    star.world.run(1)
    star.hub.reboot()
    moment = star.world.now
    star.world.run(12)
    for numbers in streams:
        arrived = [star.world.probes[n].time for n in numbers if star.world.arrived(n)]
        assert min(time for time in arrived if time > moment) - moment < 5 * SECOND


def test_one_spoke_dies_and_the_others_do_not_notice() -> None:
    star = Star(3)
    assert star.talk(star.flows) == []
    streams = [star.world.stream(flow, every_s=0.5, duration_s=100) for flow in star.flows[1:]]
    star.spokes[0].crash()
    star.world.run(105)
    assert [star.world.missing(numbers) for numbers in streams] == [[]] * (SPOKES - 1)


def test_all_rekey_at_once() -> None:
    star = Star(4)
    assert star.talk(star.flows) == []
    streams = [star.world.stream(flow, every_s=0.02, duration_s=2) for flow in star.flows]
    star.world.run(0.5)
    star.hub.command(Rekey())
    star.hub.command(Rekey(ike=True))
    for spoke in star.spokes:
        spoke.command(Rekey())
    star.world.run(10)
    assert [star.world.missing(numbers) for numbers in streams] == [[]] * SPOKES
    star.world.run(60)
    star.world.check_quiet()


@pytest.mark.parametrize("seed", [5, 6])
def test_one_rule_is_terminated_alone(seed: int) -> None:
    star = Star(seed)
    assert star.talk(star.flows) == []
    before = {installed.sa.child for installed in star.hub.gateway.children} if star.hub.gateway else set()
    answer = star.hub.command(Terminate("Spoke 3"))
    star.world.run(2)
    assert star.hub.gateway is not None
    after = {installed.sa.child for installed in star.hub.gateway.children}
    assert before - after == set(answer["terminated"])  # type: ignore[call-overload]
    assert len(after) == SPOKES - 1


def test_an_orderly_stop_of_the_hub() -> None:
    star = Star(7)
    assert star.talk(star.flows) == []
    answer = star.hub.command(Shutdown())
    assert len(answer["closing"]) == SPOKES  # type: ignore[arg-type]
    star.world.run(1)
    assert all(spoke.gateway is not None and len(spoke.gateway.children) == 0 for spoke in star.spokes)


def test_spokes_cannot_reach_each_other_through_a_policy_that_does_not_say_so() -> None:
    star = Star(8)
    assert star.talk(star.flows) == []
    # 10.1.0.5 -> 10.2.0.5 is in no filter: it is none of IPsec's business, and enters no SA.
    number = star.world.probe(traffic("10.1.0.5", "10.2.0.5"))
    star.world.run(1)
    tunnelled = [delivery for delivery in star.world.probes[number].deliveries if delivery.tunnelled]
    assert tunnelled == []
