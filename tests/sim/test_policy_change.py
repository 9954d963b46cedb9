"""The policy changes while packets flow: the new one holds at once, and at no moment is anything in clear."""

from __future__ import annotations

from policy.model import FilterAction, Policy
from tests.support.sim.packets import Traffic, flow_of, traffic
from tests.support.sim.policies import BLOCK, PERMIT, action, filter_of, policy, rule, with_rules
from tests.support.sim.scenes import A_TO_B, B_TO_A, GATEWAY_A, GATEWAY_B, Sites, policies, sites
from tunnel.dataplane.contract import DropReason
from tunnel.outputs import Explain


def busy(scene: Sites, duration_s: float, *flows: Traffic) -> list[list[int]]:
    """Let packets flow both ways."""
    return [scene.world.stream(flow, every_s=0.02, duration_s=duration_s) for flow in flows or (A_TO_B, B_TO_A)]


def change_both(scene: Sites, then: FilterAction | None, *filters: tuple[str, str]) -> None:
    """Assign a changed policy at both ends."""
    a, b = policies(then, filters=filters or (("10.1.0.0/24", "10.2.0.0/24"),))
    scene.a.assign(a)
    scene.b.assign(b)


def test_a_reload_of_the_same_policy_changes_nothing() -> None:
    scene = sites()
    scene.establish()
    streams = busy(scene, 3)
    before = scene.children(scene.a)
    for _ in range(5):
        scene.world.run(0.5)
        change_both(scene, None)
    scene.world.run(3)
    assert [scene.world.missing(numbers) for numbers in streams] == [[], []]
    assert scene.children(scene.a) == before
    scene.settle()


def test_a_rule_that_goes_takes_its_sas_along() -> None:
    scene = sites()
    scene.establish()
    busy(scene, 3)
    scene.world.run(1)
    scene.a.assign(with_rules(policies()[0]))
    assert scene.children(scene.a) == []
    scene.world.run(1)
    assert scene.children(scene.b) == []  # A said Delete
    # A has no policy for it now and sends in clear; B's guard lets nothing of it in.
    number = scene.world.probe(A_TO_B)
    scene.world.run(1)
    assert not scene.world.arrived(number)
    scene.world.run(30)


def test_no_policy_at_all_is_a_policy_too() -> None:
    scene = sites()
    scene.establish()
    busy(scene, 2)
    scene.world.run(1)
    scene.a.assign(None)
    scene.b.assign(None)
    scene.world.run(3)
    number = scene.world.probe(A_TO_B)
    scene.world.run(1)
    assert scene.world.arrived(number)
    assert not scene.world.probes[number].deliveries[0].tunnelled
    scene.settle()
    assert scene.children(scene.a) == scene.children(scene.b) == []


def test_a_block_takes_effect_at_once() -> None:
    scene = sites()
    scene.establish()
    busy(scene, 2)
    scene.world.run(1)
    blocked = policy(
        *policies()[0].rules, rule("Stop", filter_of("10.1.0.5", "10.2.0.0/24"), then=BLOCK), name="Site A"
    )
    scene.a.assign(blocked)
    inside = [scene.world.probe(A_TO_B)]
    elsewhere = scene.world.probe(traffic("10.1.0.6", "10.2.0.9"))
    scene.world.run(3)
    assert scene.world.missing(inside) == inside
    assert scene.world.arrived(elsewhere)
    # The SA's selectors still cover 10.1.0.5, and B still sends to it: nothing of that is let in.
    assert scene.a.gateway is not None
    assert scene.a.gateway.dataplane.drops()[DropReason.DISCARD_POLICY] > 0
    scene.settle()


def test_a_permit_inside_a_protected_net() -> None:
    scene = sites()
    scene.establish()
    for host, own in ((scene.a, policies()[0]), (scene.b, policies()[1])):
        permit = rule("Plain", filter_of("10.1.0.0/24", "10.2.0.0/24", 6, 80), then=PERMIT)
        host.assign(with_rules(own, *own.rules, permit))
    web = scene.world.probe(traffic("10.1.0.5", "10.2.0.80", 6, 40000, 80))
    other = scene.world.probe(traffic("10.1.0.5", "10.2.0.80", 6, 40000, 443))
    scene.world.run(2)
    assert scene.world.missing([web, other]) == []
    assert not scene.world.probes[web].deliveries[0].tunnelled
    assert scene.world.probes[other].deliveries[0].tunnelled


def test_a_narrowed_rule_gets_a_narrow_sa() -> None:
    scene = sites()
    scene.establish()
    busy(scene, 4)
    scene.world.run(1)
    change_both(scene, None, ("10.1.0.0/28", "10.2.0.0/24"))
    scene.world.run(4)
    number = scene.world.probe(A_TO_B)
    scene.world.run(2)
    assert scene.world.arrived(number)
    scene.settle()
    assert scene.a.gateway is not None
    # Both ends had packets, so both may have asked for it.
    selectors = [str(pair.local) for installed in scene.a.gateway.children for pair in installed.sa.selectors]
    assert selectors in (["10.1.0.0/28"], ["10.1.0.0/28"] * 2)


def test_only_one_end_narrows() -> None:
    scene = sites()
    scene.establish()
    busy(scene, 4)
    scene.world.run(1)
    scene.b.assign(policies(filters=(("10.1.0.0/28", "10.2.0.0/24"),))[1])
    scene.world.run(5)
    numbers = [scene.world.probe(A_TO_B), scene.world.probe(B_TO_A)]
    scene.world.run(3)
    assert scene.world.missing(numbers) == []
    outside = scene.world.probe(traffic("10.1.0.200", "10.2.0.9"))
    scene.world.run(3)
    assert not scene.world.arrived(outside)


def test_other_suites_for_the_next_sa() -> None:
    scene = sites()
    scene.establish()
    streams = busy(scene, 4)
    scene.world.run(1)
    change_both(scene, action("esp:aes256gcm16"))
    scene.world.run(5)
    numbers = [scene.world.probe(A_TO_B), scene.world.probe(B_TO_A)]
    scene.world.run(5)
    assert scene.world.missing(numbers) == []
    # Packets in flight when the SAs were replaced may be lost; the stream goes on.
    assert all(len(scene.world.missing(stream)) < 25 for stream in streams)
    scene.settle()


def test_another_key_only_matters_for_the_next_ike_sa() -> None:
    scene = sites()
    scene.establish()
    first, _ = policies()
    second = policies(secret_b="a new secret")[1]
    changed = with_rules(
        first,
        *(rule("LAN to LAN", filter_of("10.1.0.0/24", "10.2.0.0/24"), endpoint=GATEWAY_B, secret="a new secret"),),
    )
    scene.a.assign(changed)
    scene.b.assign(second)
    numbers = scene.world.stream(A_TO_B, every_s=0.1, duration_s=30)
    scene.world.run(31)
    assert scene.world.missing(numbers[-50:]) == []
    scene.settle()


def test_a_policy_that_comes_while_negotiating() -> None:
    scene = sites()
    for _ in range(10):
        scene.world.probe(A_TO_B)
        scene.world.run(0.012)
        change_both(scene, None)
    change_both(scene, action("esp:aes256gcm16"))
    scene.world.run(5)
    number = scene.world.probe(A_TO_B)
    scene.world.run(3)
    assert scene.world.arrived(number)
    scene.settle()


def test_explain_follows_the_policy() -> None:
    scene = sites()
    before = scene.a.command(Explain(flow_of(A_TO_B)))
    scene.a.assign(policy(rule("No", filter_of("10.1.0.0/24", "any"), then=BLOCK)))
    after = scene.a.command(Explain(flow_of(A_TO_B)))
    assert (before["verdict"], after["verdict"]) == ("protect", "discard")


def test_a_moved_peer_is_found_at_its_new_address() -> None:
    scene = sites()
    scene.establish()
    moved: Policy = policies()[1]
    c = scene.world.host("c", "198.51.100.99", networks=("10.2.0.8/30",))
    c.assign(moved)
    c.boot()
    scene.a.assign(
        policy(
            rule("LAN to LAN", filter_of("10.1.0.0/24", "10.2.0.0/24"), endpoint="198.51.100.99"), name="Site A"
        )
    )
    number = scene.world.probe(A_TO_B)
    scene.world.run(3)
    assert [delivery.host for delivery in scene.world.probes[number].deliveries] == ["c"]
    assert GATEWAY_A in {str(address) for address in scene.a.addresses}
