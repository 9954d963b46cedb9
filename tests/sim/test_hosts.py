"""Hosts that secure each other one by one: transport mode, soft SAs and the default response rule under faults."""

from __future__ import annotations

from dataclasses import replace

import pytest

from policy.model import Encapsulation, FilterAction, Policy
from tests.sim.test_combinations import built_in, pair, talk
from tests.support.combinations import CLEAR, NOTHING, PROTECTED, REQUEST, REQUIRE, RESPOND
from tests.support.sim.host import Host
from tests.support.sim.net import Faults, Kind
from tests.support.sim.packets import traffic
from tests.support.sim.policies import action, filter_of, policy, rule
from tests.support.sim.world import World
from tunnel.outputs import Initiate
from tunnel.soft import SOFT_LIFETIME

A, B, C = "192.0.2.1", "198.51.100.1", "203.0.113.1"
TO_B = traffic(A, B, 6, 40000, 8000)
SOFT_S = SOFT_LIFETIME / 1e9


def flags(*methods: str, fallback: bool = False, inbound: bool = False, **more: object) -> FilterAction:
    made = action(*methods, **more)  # type: ignore[arg-type]
    return replace(made, fallback_clear=fallback, inbound_clear=inbound)


def everybody(
    then: FilterAction, protocol: int = 0, port: int | None = None, secret: str = "known to all"
) -> Policy:
    """Return the policy of a host that secures what it says to anybody, and what anybody says to it."""
    return policy(rule("All", filter_of("me", "any", protocol, port), then=then, secret=secret))


def world_of(*addresses: str, faults: Faults | None = None, seed: int = 1) -> tuple[World, list[Host]]:
    world = World(seed, keep_packets=True)
    hosts = [world.host(name, address, faults=faults) for name, address in zip("abc", addresses, strict=False)]
    return world, hosts


BUNDLE = "ah:sha256+esp:aes256-sha256"
METHODS = ["esp:aes128gcm16", "esp:aes128-sha256", "ah:sha256", BUNDLE]


@pytest.mark.parametrize("encapsulation", list(Encapsulation))
@pytest.mark.parametrize("method", METHODS)
def test_each_host_has_an_sa_of_its_own(method: str, encapsulation: Encapsulation) -> None:
    if method.startswith("ah:") and encapsulation is Encapsulation.UDP:
        return
    world, hosts = world_of(A, B, C)
    for host in hosts:
        host.assign(everybody(flags(method, encapsulation=encapsulation)))
        host.boot()
    flows = [traffic(one, other, 17) for one in (A, B, C) for other in (A, B, C) if one != other]
    first = [world.probe(flow) for flow in flows]
    world.run(5)
    again = [world.probe(flow) for flow in flows]
    world.run(1)
    assert world.missing([*first, *again]) == []
    for host in hosts:
        assert host.gateway is not None
        assert len({installed.sa.peer for installed in host.gateway.children}) == 2
        assert {installed.sa.mode.value for installed in host.gateway.children} == {"transport"}
    kinds = {packet.kind for _, _, packet in world.recording if packet.destination.port not in (500,)}
    assert Kind.CLEAR not in kinds
    assert (Kind.AH in kinds) == method.startswith("ah:")
    assert method != BUNDLE or Kind.ESP not in kinds
    world.run(30)
    world.check_quiet()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("method", METHODS)
def test_loss_reordering_and_duplication(method: str, seed: int) -> None:
    faults = Faults(loss=0.3, reorder=0.2, duplicate=0.2)
    world, (a, b) = world_of(A, B, faults=faults, seed=seed)
    for host in (a, b):
        host.assign(everybody(flags(method), 6, 8000) if host is a else everybody_answers(flags(method)))
        host.boot()
    world.stream(TO_B, every_s=0.2, duration_s=30)
    assert world.run_until(lambda: b.gateway is not None and len(b.gateway.children) > 0, 15)
    world.run(40)


def everybody_answers(then: FilterAction) -> Policy:
    return policy(rule("All", filter_of("any", "me", 6, 8000), then=then, secret="known to all"))


def test_who_does_not_answer_is_talked_to_in_clear_after_three_seconds() -> None:
    world, a, b = pair(REQUEST, RESPOND)
    b.crash()
    b.assign(None)
    first = world.probe(TO_B)
    world.run(2.9)
    assert not world.arrived(first)
    world.run(0.5)
    assert world.arrived(first), "the first packet waited, and was not lost"
    assert a.soft
    second = world.probe(TO_B)
    world.run(0.1)
    assert world.arrived(second), "and now nothing waits"


def test_a_soft_sa_ends_and_the_peer_is_asked_again() -> None:
    world, a, b = pair(REQUEST, RESPOND)
    b.crash()
    assert talk(world, TO_B) == CLEAR
    b.boot()  # it speaks IPsec from now on; nobody asks it yet
    assert talk(world, TO_B) == CLEAR
    world.run(SOFT_S)
    assert talk(world, TO_B) == PROTECTED
    assert a.gateway is not None
    assert len(a.gateway.soft) == 0


def test_an_operator_may_ask_sooner() -> None:
    world, a, b = pair(REQUEST, RESPOND)
    b.crash()
    assert talk(world, TO_B) == CLEAR
    b.boot()
    a.command(Initiate("All IP Traffic", TO_B.destination))
    world.run(2)
    assert talk(world, TO_B) == PROTECTED


def test_who_answers_and_fails_is_never_talked_to_in_clear() -> None:
    # The security-critical distinction: only silence leads to clear, never a failed negotiation.
    world, (a, b) = world_of(A, B)
    a.assign(everybody(flags(fallback=True, inbound=True), secret="one secret"))
    b.assign(everybody(flags(), secret="another"))
    a.boot()
    b.boot()
    numbers = world.stream(TO_B, every_s=1, duration_s=400)
    world.run(410)
    assert not any(world.arrived(number) for number in numbers)
    assert not any(packet.kind is Kind.CLEAR for _, _, packet in world.recording)


def test_a_peer_that_refuses_the_proposals_is_never_talked_to_in_clear() -> None:
    world, (a, b) = world_of(A, B)
    a.assign(everybody(flags("esp:aes128gcm16", fallback=True, inbound=True)))
    b.assign(everybody(flags("esp:chacha20poly1305")))
    a.boot()
    b.boot()
    world.stream(TO_B, every_s=1, duration_s=60)
    world.run(70)
    assert not any(packet.kind is Kind.CLEAR for _, _, packet in world.recording)


def test_require_never_sends_in_clear_to_who_is_silent() -> None:
    world, _, b = pair(REQUIRE, RESPOND)
    b.crash()
    assert talk(world, TO_B, rounds=10) == NOTHING
    assert not any(
        packet.kind is Kind.CLEAR and packet.source.address == TO_B.source for _, _, packet in world.recording
    )


def test_what_the_default_response_rule_granted_goes_with_its_sas() -> None:
    world, a, _b = pair(RESPOND, REQUEST)
    assert talk(world, TO_B) == PROTECTED
    (dynamic,) = a.steered.spd.entries
    assert dynamic.rule == "<Dynamic>"
    # Nobody talks: the SA is idle for five minutes, and the client falls back to clear, which begins it anew.
    world.run(400)
    assert a.steered.spd.entries == ()
    assert talk(world, TO_B) == PROTECTED


@pytest.mark.parametrize("server", [REQUEST, REQUIRE])
def test_reboots_of_either_end(server: str) -> None:
    world, a, b = pair(RESPOND, server)
    assert talk(world, TO_B) == PROTECTED
    b.reboot()
    world.run(60)
    assert talk(world, TO_B) == PROTECTED
    a.reboot()
    world.run(60)
    assert talk(world, TO_B) == PROTECTED


def test_a_policy_without_the_rule_ends_what_it_granted() -> None:
    world, a, _b = pair(RESPOND, REQUEST)
    assert talk(world, TO_B) == PROTECTED
    a.assign(None)
    world.run(1)
    assert a.gateway is not None
    assert len(a.gateway.children) == 0
    assert a.steered.spd.entries == ()
    a.assign(built_in(RESPOND))
    world.run(1)
    assert talk(world, TO_B, rounds=12) == PROTECTED


def test_a_respond_only_host_begins_nothing() -> None:
    world, _a, _b = pair(RESPOND, RESPOND)
    assert talk(world, TO_B) == CLEAR
    assert not any(
        packet.kind is Kind.UDP and packet.source.port in (500, 4500) for _, _, packet in world.recording
    )


@pytest.mark.parametrize("seed", range(2))
def test_clients_behind_nats_and_behind_one_nat(seed: int) -> None:
    # RFC 7296 section 2.23.1: each end sees other addresses, and each packet's checksum is made anew.
    world = World(seed)
    client = world.host("client", "192.168.7.2", nat="203.0.113.7")
    server = world.host("server", B)
    client.assign(
        policy(
            rule("Out", filter_of("me", B, 6, 8000), then=flags(), secret="known to all"),
            local_id="client.example",
        )
    )
    server.assign(
        policy(
            rule(
                "In",
                filter_of("any", "me", 6, 8000),
                then=flags(),
                secret="known to all",
                remote_id="client.example",
            )
        )
    )
    client.boot()
    server.boot()
    out = traffic("192.168.7.2", B, 6, 40000, 8000)
    asked = world.probe(out)
    world.run(3)
    assert server.gateway is not None
    (installed,) = server.gateway.children
    assert installed.sa.nat
    assert str(installed.sa.selectors[0].remote.addresses) == "203.0.113.7"
    # The server got it from the NAT's address, as its host would see it, with a checksum that fits.
    (got,) = server.deliveries
    assert (got.number, str(got.flow.source_address)) == (asked, "203.0.113.7")
    back = world.probe(traffic(B, "203.0.113.7", 6, 8000, 40000))
    world.run(1)
    assert [delivery.number for delivery in client.deliveries] == [back]
    assert client.deliveries[0].flow.destination_address == out.source


def test_ah_says_why_it_cannot_cross_a_nat() -> None:
    world = World(1)
    client = world.host("client", "192.168.7.2", nat="203.0.113.7")
    server = world.host("server", B)
    then = flags("ah:sha256")
    client.assign(
        policy(
            rule("Out", filter_of("me", B, 6, 8000), then=then, secret="known to all"), local_id="client.example"
        )
    )
    server.assign(
        policy(
            rule(
                "In", filter_of("any", "me", 6, 8000), then=then, secret="known to all", remote_id="client.example"
            )
        )
    )
    client.boot()
    server.boot()
    world.probe(traffic("192.168.7.2", B, 6, 40000, 8000))
    world.run(10)
    assert any("AH cannot cross the NAT" in event.message for event in client.events)
    assert client.gateway is not None
    assert len(client.gateway.children) == 0


def test_a_sweep_over_hosts_dials_few_at_once() -> None:
    # Who forges source addresses makes a host answer, and with it ask, whom they please.
    world, (a, b) = world_of(A, B)
    for host in (a, b):
        host.assign(everybody(flags(inbound=True)))
        host.boot()
    for number in range(600):
        world.probe(traffic(A, f"100.64.{number // 256}.{number % 256}", 17))
    world.run(1)
    assert a.gateway is not None
    assert 200 < len(a.gateway.ike.status(world.now)) <= 256
    world.run(40)
    assert len(a.gateway.ike.status(world.now)) == 0
    assert talk(world, TO_B) == PROTECTED


def test_who_restarts_asks_the_host_that_still_sends() -> None:
    world, (a, b) = world_of(A, B)
    for host in (a, b):
        host.assign(everybody(flags()))
        host.boot()
    assert talk(world, TO_B) == PROTECTED
    b.crash()
    b.boot()
    lost = world.probe(TO_B)  # b knows nothing of the SA that it comes on
    world.run(2)
    assert not world.arrived(lost)
    assert talk(world, TO_B) == PROTECTED
    assert b.gateway is not None
    assert len(b.gateway.children) > 0
