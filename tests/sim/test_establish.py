"""Tunnels come up: the first packet is kept, whatever the network does to it, and whoever starts."""

from __future__ import annotations

import pytest

from policy.clock import MILLISECOND, SECOND
from policy.model import Encapsulation
from tests.support.sim.net import Faults, Kind
from tests.support.sim.packets import flow_of, traffic
from tests.support.sim.policies import action, filter_of, policy, rule
from tests.support.sim.scenes import A_TO_B, B_TO_A, GATEWAY_A, GATEWAY_B, policies, sites
from tests.support.sim.world import World
from tunnel.outputs import Explain, Initiate


def test_the_first_packet_is_not_lost() -> None:
    # A: packet for B -> held;  A --> IKE_SA_INIT --> B;  A <-- IKE_SA_INIT <-- B
    # A --> IKE_AUTH --> B (SAs installed);  A <-- IKE_AUTH <-- B (SAs installed, packet released)
    scene = sites()
    first = scene.world.probe(A_TO_B)
    scene.world.run(0.2)
    assert scene.world.arrived(first)
    back = scene.world.probe(B_TO_A)
    scene.world.run(0.2)
    assert scene.world.arrived(back)
    scene.settle()
    assert len(scene.children(scene.a)) == len(scene.children(scene.b)) == 1


@pytest.mark.parametrize("coalesce", [False, True])
def test_superpackets_through_a_tunnel(coalesce: bool) -> None:
    scene = sites(coalesce=coalesce)
    flow = traffic("10.1.0.5", "10.2.0.9", 6)
    numbers = scene.world.superpacket(flow, 40, 1300)
    scene.world.run(1)
    numbers += scene.world.superpacket(flow, 40, 1300)
    scene.world.run(1)
    assert scene.world.missing(numbers) == []


@pytest.mark.parametrize(
    ("encapsulation", "kind"),
    [(Encapsulation.UDP, Kind.UDP), (Encapsulation.NONE, Kind.ESP), (Encapsulation.AUTO, Kind.UDP)],
)
def test_raw_and_encapsulated_esp(encapsulation: Encapsulation, kind: Kind) -> None:
    scene = sites(both=policies(action(encapsulation=encapsulation)), keep_packets=True)
    scene.establish()
    before = len(scene.world.recording)
    numbers = [scene.world.probe(A_TO_B), scene.world.probe(B_TO_A)]
    scene.world.run(1)
    assert scene.world.missing(numbers) == []
    assert {packet.kind for _, _, packet in scene.world.recording[before:]} == {kind}


@pytest.mark.parametrize(
    ("outer", "inner"),
    [(4, 4), (4, 6), (6, 4), (6, 6)],
)
def test_any_family_in_any_other(outer: int, inner: int) -> None:
    gateways = (GATEWAY_A, GATEWAY_B) if outer == 4 else ("2001:db8::a", "2001:db8::b")
    nets = ("10.1.0.0/24", "10.2.0.0/24") if inner == 4 else ("fd00:1::/64", "fd00:2::/64")
    hosts = ("10.1.0.5", "10.2.0.9") if inner == 4 else ("fd00:1::5", "fd00:2::9")
    world = World(1)
    for name, own, peer, net in (("a", 0, 1, nets[0]), ("b", 1, 0, nets[1])):
        host = world.host(name, gateways[own], networks=(net,))
        host.assign(policy(rule("LAN", filter_of(*nets), endpoint=gateways[peer])))
        host.boot()
    numbers = [world.probe(traffic(*hosts, protocol)) for protocol in (6, 17, 1 if inner == 4 else 58)]
    world.run(2)
    numbers.append(world.probe(traffic(*hosts).reply(), size=1300))
    world.run(2)
    assert world.missing(numbers) == []
    world.check_quiet()


def test_many_suites() -> None:
    for method in ("esp:aes256gcm16", "esp:aes128-sha256", "esp:aes256-sha512", "esp:chacha20poly1305"):
        scene = sites(both=policies(action(method)))
        scene.establish()
        numbers = [scene.world.probe(flow, size=size) for flow in (A_TO_B, B_TO_A) for size in (17, 500, 1300)]
        scene.world.run(1)
        assert scene.world.missing(numbers) == []


def test_both_ends_start_at_once() -> None:
    # A --> IKE_SA_INIT -->  <-- IKE_SA_INIT <-- B: both IKE SAs come up, one of them goes again.
    for seed in range(1, 9):
        scene = sites(seed, faults=Faults(jitter=seed * MILLISECOND))
        numbers = [scene.world.probe(A_TO_B), scene.world.probe(B_TO_A)]
        numbers += scene.world.stream(A_TO_B, every_s=0.05, duration_s=10)
        numbers += scene.world.stream(B_TO_A, every_s=0.05, duration_s=10)
        scene.world.run(11)
        assert scene.world.missing(numbers) == []
        scene.settle()
        assert len(scene.children(scene.a)) == 1


@pytest.mark.parametrize("loss", [0.1, 0.3])
def test_a_tunnel_comes_up_in_spite_of_loss(loss: float) -> None:
    times = []
    for seed in range(1, 31):
        scene = sites(seed, faults=Faults(latency=20 * MILLISECOND, loss=loss))
        start = scene.world.now
        scene.world.stream(A_TO_B, every_s=0.2, duration_s=15)
        assert scene.world.run_until(scene.up, 15), f"seed {seed}"
        times.append((scene.world.now - start) / SECOND)
        scene.world.run(5)
        assert scene.b.deliveries, f"seed {seed}"
    assert max(times) <= (15 if loss > 0.1 else 5)


def test_reordering_and_duplication_harm_nothing() -> None:
    for seed in range(1, 11):
        scene = sites(seed, faults=Faults(jitter=30 * MILLISECOND, reorder=0.3, duplicate=0.3))
        numbers = [scene.world.probe(A_TO_B)]
        scene.world.run(2)
        for _ in range(100):
            numbers += [scene.world.probe(A_TO_B), scene.world.probe(B_TO_A)]
            scene.world.run(0.01)
        scene.world.run(2)
        assert scene.world.missing(numbers) == []
        scene.settle()


def test_several_filters_make_several_children() -> None:
    filters = (("10.1.0.0/25", "10.2.0.0/24"), ("10.1.0.128/25", "10.2.0.0/24"))
    scene = sites(both=policies(filters=filters))
    numbers = [scene.world.probe(traffic(source, "10.2.0.9")) for source in ("10.1.0.5", "10.1.0.200")]
    scene.world.run(2)
    assert scene.world.missing(numbers) == []
    assert len(scene.children(scene.a)) == len(scene.children(scene.b)) == 2
    assert scene.a.gateway is not None
    assert len(scene.a.gateway.ike.status(scene.world.now)) == 1
    scene.settle()


def test_an_operator_initiates() -> None:
    scene = sites()
    answer = scene.a.command(Initiate("LAN to LAN"))
    assert (answer["failed"], answer["up"]) == ([], [])
    assert scene.world.run_until(scene.up, 2)
    explained = scene.a.command(Explain(flow_of(A_TO_B)))
    assert str(explained["state"]).startswith("up: Child SA 1 carries it")
    status = scene.a.status()
    assert status["policy"] == "Site A"
    assert len(status["children"]) == 1  # type: ignore[arg-type]


def test_a_wrong_preshared_key_gives_no_sa_and_a_reason() -> None:
    scene = sites(both=policies(secret_b="another secret"))
    number = scene.world.probe(A_TO_B)
    scene.world.run(20)
    assert not scene.world.arrived(number)
    assert not scene.children(scene.a)
    assert not scene.children(scene.b)
    messages = [event.message for event in scene.b.events if event.name == "negotiation_failed"]
    assert any("preshared key" in message for message in messages), messages
    state = scene.a.command(Explain(flow_of(A_TO_B)))["state"]
    assert str(state).startswith("failed: ")


def test_policies_that_do_not_agree_give_no_sa_and_a_reason() -> None:
    a, _ = policies(action("esp:aes256gcm16"))
    _, b = policies(action("esp:aes128gcm16"))
    scene = sites(both=(a, b))
    number = scene.world.probe(A_TO_B)
    scene.world.run(5)
    assert not scene.world.arrived(number)
    assert not scene.children(scene.a)
    state = scene.a.command(Explain(flow_of(A_TO_B)))["state"]
    assert "proposal" in str(state).lower()


def test_a_peer_that_does_not_answer_is_a_reason_too() -> None:
    scene = sites()
    scene.world.partition("b")
    number = scene.world.probe(A_TO_B)
    scene.world.run(40)
    assert not scene.world.arrived(number)
    state = str(scene.a.command(Explain(flow_of(A_TO_B)))["state"])
    assert state.startswith("failed: ")
    # ... and when it is back, the next packets bring the tunnel up.
    scene.world.partition("b", down=False)
    numbers = scene.world.stream(A_TO_B, every_s=0.5, duration_s=60)
    scene.world.run(70)
    assert scene.world.arrived(numbers[-1])


def test_a_narrow_path_makes_packets_smaller() -> None:
    scene = sites(faults=Faults(mtu=1400))
    scene.establish()
    before = scene.a.tun_mtu
    scene.world.probe(A_TO_B, size=1380, dont_fragment=True)
    scene.world.run(1)
    assert scene.a.tun_mtu == before - 100
    fitting = scene.world.probe(A_TO_B, size=scene.a.tun_mtu - 28, dont_fragment=True)
    scene.world.run(1)
    assert scene.world.arrived(fitting)
