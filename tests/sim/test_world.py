"""The simulator itself: what it lets through, what it notices, and that it repeats itself."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import pytest

from policy.model import Encapsulation
from policy.path import Path
from tests.support.sim.manual import ManualControl
from tests.support.sim.net import Faults, Kind, Packet
from tests.support.sim.packets import (
    MARKER,
    find_markers,
    marker,
    parse,
    probe_packet,
    segments,
    traffic,
    tso_frame,
)
from tests.support.sim.policies import BLOCK, action, filter_of, policy, rule
from tests.support.sim.scenes import A_TO_B, B_TO_A, GATEWAY_A, GATEWAY_B, Sites
from tests.support.sim.world import Violation, World, endpoint

OUTSIDE = traffic("10.1.0.5", "10.3.0.9")


def manual(seed: int = 1, encapsulation: Encapsulation = Encapsulation.UDP, **faults: object) -> Sites:
    """Return two sites with manual keys and a third one that no policy mentions."""
    world = World(seed, keep_packets=True)
    a = world.host("a", GATEWAY_A, networks=("10.1.0.0/24",), faults=Faults(**faults))  # type: ignore[arg-type]
    b = world.host("b", GATEWAY_B, networks=("10.2.0.0/24",))
    c = world.host("c", "192.0.2.3", networks=("10.3.0.0/24",))
    then = action(encapsulation=encapsulation)
    for host, peer in ((a, GATEWAY_B), (b, GATEWAY_A)):
        host.control = ManualControl
        host.assign(policy(rule("LAN", filter_of("10.1.0.0/24", "10.2.0.0/24"), endpoint=peer, then=then)))
        host.boot()
    c.control = ManualControl
    c.boot()
    return Sites(world, a, b)


@pytest.mark.parametrize("encapsulation", [Encapsulation.UDP, Encapsulation.NONE])
def test_protected_packets_cross_as_esp_and_others_in_clear(encapsulation: Encapsulation) -> None:
    scene = manual(encapsulation=encapsulation)
    numbers = [scene.world.probe(flow) for flow in (A_TO_B, B_TO_A, OUTSIDE)]
    scene.world.run(1)
    assert scene.world.missing(numbers) == []
    kinds = {packet.kind for _, link, packet in scene.world.recording if link in {"a", "b"}}
    assert kinds == {Kind.CLEAR, Kind.UDP if encapsulation is Encapsulation.UDP else Kind.ESP}
    assert [d.tunnelled for d in scene.world.hosts["c"].deliveries] == [False]


@pytest.mark.parametrize("protocol", [1, 6, 17, 47])
def test_every_protocol_arrives_whole(protocol: int) -> None:
    scene = manual()
    number = scene.world.probe(traffic("10.1.0.5", "10.2.0.9", protocol), size=1000)
    scene.world.run(1)
    assert scene.world.missing([number]) == []


def test_superpackets_arrive_as_their_segments() -> None:
    scene = manual()
    numbers = scene.world.superpacket(traffic("10.1.0.5", "10.2.0.9", 6), 20, 1200)
    scene.world.run(1)
    assert scene.world.missing(numbers) == []


def test_a_dead_daemon_lets_nothing_out() -> None:
    scene = manual()
    scene.a.crash()
    numbers = [scene.world.probe(A_TO_B), scene.world.probe(B_TO_A)]
    scene.world.run(1)
    assert scene.world.missing(numbers) == numbers
    assert scene.a.guard_drops == {"no daemon": 2}


def test_clear_packets_of_a_protected_flow_are_not_let_in() -> None:
    scene = manual()
    # b, without a policy, answers in clear.
    scene.b.assign(None)
    number = scene.world.probe(B_TO_A)
    scene.world.run(1)
    assert not scene.world.arrived(number)
    assert scene.a.guard_drops == {"clear in": 1}


def test_blocked_packets_go_nowhere() -> None:
    scene = manual()
    scene.a.assign(policy(rule("No", filter_of("10.1.0.0/24", "any"), then=BLOCK)))
    number = scene.world.probe(OUTSIDE)
    scene.world.run(1)
    assert not scene.world.arrived(number)


def test_loss_duplication_and_reordering_happen() -> None:
    scene = manual(7, loss=0.2, duplicate=0.2, reorder=0.2)
    numbers = [scene.world.probe(A_TO_B) for _ in range(200)]
    scene.world.run(5)
    lost = len(scene.world.missing(numbers))
    assert 10 < lost < 90
    assert scene.b.gateway is not None
    dropped = {reason.value for reason, n in scene.b.gateway.dataplane.drops().items() if n}
    assert dropped == {"replayed"}
    arrived = [delivery.number for delivery in scene.b.deliveries]
    assert arrived != sorted(arrived)


def test_a_narrow_link_tells_the_mtu() -> None:
    scene = manual(mtu=1300)
    before = scene.a.tun_mtu
    assert scene.a.gateway is not None
    too_long = Packet(Kind.UDP, endpoint(GATEWAY_A, 4500), endpoint(GATEWAY_B, 4500), bytes(1400), df=True)
    scene.a.link.send(too_long, scene.a)
    scene.world.run(1)
    assert scene.a.tun_mtu < before


def test_the_harness_notices_plaintext() -> None:
    scene = manual()
    number = scene.world.probe(A_TO_B)
    leak = Packet(Kind.UDP, endpoint(GATEWAY_A, 4500), endpoint(GATEWAY_B, 4500), b"xx" + marker(number))
    with pytest.raises(Violation, match="can be read"):
        scene.a.link.send(leak, scene.a)


def test_the_harness_notices_a_sequence_number_that_does_not_rise() -> None:
    scene = manual()
    scene.world.probe(A_TO_B)
    (sent,) = [packet for _, link, packet in scene.world.recording if link == "a"]
    assert struct.unpack_from("!I", sent.payload, 4)[0] == 1
    with pytest.raises(Violation, match="sequence number 1 after 1"):
        scene.world.sealed(scene.a, sent)


def test_the_harness_notices_a_second_delivery_and_a_wrong_place() -> None:
    scene = manual()
    number = scene.world.probe(A_TO_B)
    scene.world.run(1)
    packet = probe_packet(A_TO_B, number)
    with pytest.raises(Violation, match="delivered twice"):
        scene.b._deliver(packet, tunnelled=True)
    with pytest.raises(Violation, match="came out at a"):
        scene.a._deliver(packet, tunnelled=True)


def test_the_harness_notices_lost_packets() -> None:
    scene = manual()
    scene.a.ledger.into_tun += 1
    with pytest.raises(Violation, match="counted other packets than came"):
        scene.world.probe(A_TO_B)


def test_replayed_datagrams_are_not_delivered_twice() -> None:
    scene = manual()
    scene.world.probe(A_TO_B)
    scene.world.run(1)
    (sent,) = [packet for _, link, packet in scene.world.recording if link == "b"]
    scene.b.inject(Path(sent.destination, sent.source), sent.payload)
    assert len(scene.b.deliveries) == 1


def test_one_seed_gives_one_trace() -> None:
    def trace(seed: int) -> list[str]:
        scene = manual(seed, loss=0.1, jitter=3_000_000, reorder=0.1)
        scene.world.stream(A_TO_B, every_s=0.01, duration_s=1)
        scene.world.run(2)
        return scene.world.trace

    assert trace(5) == trace(5)
    assert trace(5) != trace(6)


def test_packets_read_back() -> None:
    for flow in (traffic("10.1.0.5", "10.2.0.9", 6), traffic("2001:db8::1", "2001:db8::2", 58)):
        parsed = parse(probe_packet(flow, 9, 100))
        assert parsed.checksums_fit
        assert parsed.payload == marker(9).ljust(100, b".")
    flow = traffic("2001:db8::1", "2001:db8::2", 6)
    pieces = segments(tso_frame(flow, [1, 2, 3], MARKER + 3))
    assert [find_markers(piece) for piece in pieces] == [[1], [2], [3]]
    assert all(parse(piece).checksums_fit for piece in pieces)
    with pytest.raises(ValueError, match="not a plain IP packet"):
        parse(bytes(50))


def test_a_pcap_can_be_written() -> None:
    scene = manual()
    scene.world.probe(A_TO_B)
    scene.world.run(1)
    pcap = scene.world.pcap()
    assert pcap[:4] == struct.pack("<I", 0xA1B2C3D4)
    assert ip_address(GATEWAY_A).packed + ip_address(GATEWAY_B).packed in pcap
