"""Floods, junk and replays from the network: nothing grows without bound, and the tunnel lives on."""

from __future__ import annotations

from itertools import product
from random import Random

import pytest

from ike.events import Level
from policy.path import Endpoint, Path
from tests.support.sim.net import Packet
from tests.support.sim.packets import NO_OFFLOAD, probe_packet, traffic
from tests.support.sim.scenes import A_TO_B, B_TO_A, Sites, sites
from tests.support.sim.world import endpoint
from tunnel.dataplane import esp
from tunnel.dataplane.contract import DropReason
from tunnel.dataplane.reference import ReferenceDataPlane


def alive(scene: Sites) -> None:
    """The tunnel that was there is there, and carries packets both ways."""
    before = scene.children(scene.b)
    numbers = [scene.world.probe(A_TO_B), scene.world.probe(B_TO_A)]
    scene.world.run(1)
    assert scene.world.missing(numbers) == []
    assert scene.children(scene.b) == before
    assert all(event.level < Level.ERROR for host in (scene.a, scene.b) for event in host.events)


def heard(scene: Sites) -> list[Packet]:
    """Return what was recorded on B's link toward B, in order."""
    own = scene.b.addresses[0]
    return [p for _, link, p in scene.world.recording if link == "b" and p.destination.address == own]


def recorded(seed: int = 1, **options: object) -> Sites:
    """Return an established tunnel with a recording of how it came up."""
    scene = sites(seed, keep_packets=True, **options)  # type: ignore[arg-type]
    scene.establish()
    scene.world.probe(A_TO_B)
    scene.world.probe(B_TO_A)
    scene.world.run(1)
    return scene


@pytest.mark.parametrize("port", [500, 4500, 0])
def test_random_octets(port: int) -> None:
    scene = recorded()
    random = Random(port)
    for number in range(400):
        path = Path(endpoint("198.51.100.1", port), endpoint(f"203.0.113.{number % 250 + 1}", port))
        scene.b.inject(path, random.randbytes(random.choice([0, 1, 3, 4, 5, 8, 27, 28, 29, 40, 100, 1400])))
    alive(scene)


def test_every_prefix_of_every_datagram() -> None:
    scene = recorded()
    for packet in heard(scene):
        path = Path(packet.destination, packet.source)
        for length in range(0, len(packet.payload), 1 if len(packet.payload) < 120 else 7):
            scene.b.inject(path, packet.payload[:length])
    alive(scene)


def test_flipped_octets_in_every_datagram() -> None:
    scene = recorded()
    random = Random(5)
    for packet in heard(scene):
        path = Path(packet.destination, packet.source)
        for _ in range(60):
            octets = bytearray(packet.payload)
            octets[random.randrange(len(octets))] ^= 1 << random.randrange(8)
            scene.b.inject(path, bytes(octets))
            scene.world.run(0.001)
    scene.world.run(2)
    alive(scene)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_replays_of_everything_ever_heard(elsewhere: bool) -> None:
    # Also from another address: neither the IKE SA nor the path of the Child SA follows a replay.
    scene = recorded()
    for _ in range(3):
        for packet in heard(scene):
            source = endpoint("203.0.113.9", packet.source.port) if elsewhere else packet.source
            scene.b.inject(Path(packet.destination, source), packet.payload)
        scene.world.run(3)
    alive(scene)
    assert scene.b.gateway is not None
    assert scene.b.gateway.dataplane.drops()[DropReason.REPLAYED] > 0


def test_a_recording_of_yesterday_against_a_rebooted_gateway() -> None:
    scene = recorded()
    old = heard(scene)
    scene.b.reboot()
    for packet in old:
        scene.b.inject(Path(packet.destination, packet.source), packet.payload)
    scene.world.run(1)
    number = scene.world.probe(B_TO_A)
    scene.world.run(10)
    assert scene.world.arrived(number)
    scene.settle()


@pytest.mark.parametrize("spoofed", [True, False])
def test_a_flood_of_ike_sa_init(spoofed: bool) -> None:
    scene = recorded()
    init = next(p for p in heard(scene) if p.destination.port == 500)
    random = Random(7)
    assert scene.b.gateway is not None
    for number in range(3000):
        address = f"203.{number % 200}.{number // 200}.9" if spoofed else "203.0.113.9"
        payload = random.randbytes(8) + init.payload[8:]
        scene.b.inject(Path(init.destination, endpoint(address, 500)), payload)
    # RFC 7296 section 2.6: from some number of half-open IKE SAs on, a cookie is asked for and nothing is kept.
    half_open = [sa for sa in scene.b.gateway.ike.status(scene.world.now) if sa.state == "half open"]
    assert len(half_open) < 100
    alive(scene)
    scene.world.run(60)
    assert len(scene.b.gateway.ike.status(scene.world.now)) == 1


def test_a_new_peer_gets_through_a_flood() -> None:
    """Class of CVE-2020-3230: half-open exhaustion."""
    scene = sites(keep_packets=True)
    random = Random(8)
    scene.establish()
    init = next(p for p in heard(scene) if p.destination.port == 500)
    scene.a.reboot()
    number = None
    for step in range(600):
        for burst in range(3):
            address = f"203.{step % 200}.{burst}.9"
            scene.b.inject(Path(init.destination, endpoint(address, 500)), random.randbytes(8) + init.payload[8:])
        if step == 300:
            number = scene.world.probe(A_TO_B)
        scene.world.run(0.005)
    scene.world.run(2)
    assert number is not None
    assert scene.world.arrived(number)


def test_unauthenticated_notifies_and_deletes_change_nothing() -> None:
    # A header of the right SPIs, then payloads without integrity: CVE-2019-10155's class.
    scene = recorded()
    protected = [p for p in heard(scene) if p.destination.port == 4500 and p.payload[:4] == bytes(4)]
    spis = protected[0].payload[4:20]
    path = Path(protected[0].destination, protected[0].source)
    delete = (42, b"\x00\x00\x00\x08\x01\x00\x00\x00")
    initial_contact = (41, b"\x00\x00\x00\x08\x00\x00\x40\x00")
    for exchange, flags, (first, body), message_id in product(
        (34, 35, 36, 37, 43, 255), (0x00, 0x08, 0x20, 0x28), (delete, initial_contact), range(4)
    ):
        head = spis + bytes([first, 0x20, exchange, flags]) + message_id.to_bytes(4, "big")
        scene.b.inject(path, bytes(4) + head + (28 + len(body)).to_bytes(4, "big") + body)
    scene.world.run(5)
    alive(scene)


def test_esp_from_strangers_for_unknown_spis_makes_no_storm() -> None:
    scene = recorded()
    sent = len(scene.world.recording)
    for number in range(2000):
        path = Path(endpoint("198.51.100.1", 4500), endpoint(f"203.0.113.{number % 250 + 1}", 4500))
        scene.b.inject(path, (0x1000 + number).to_bytes(4, "big") + bytes(60))
    scene.world.run(5)
    # ... not a single answer to strangers, and at most a probe toward the peer.
    answers = [p for _, _, p in scene.world.recording[sent:] if p.source.address == scene.b.addresses[0]]
    assert len(answers) < 10
    alive(scene)


def test_a_flood_of_held_packets_is_bounded() -> None:
    scene = sites()
    scene.world.partition("b")
    for number in range(6000):
        scene.world.probe(traffic("10.1.0.5", "10.2.0.9", 17, 1024 + number), size=100)
    assert scene.a.gateway is not None
    counters = scene.a.gateway.dataplane.counters()
    assert counters.held <= 256
    assert scene.a.gateway.dataplane.drops()[DropReason.HOLD_FULL] >= 5700
    scene.world.partition("b", down=False)
    scene.world.run(5)
    assert len(scene.b.deliveries) > 0


def test_a_protected_host_behind_cannot_be_spoofed_from_outside() -> None:
    # A clear packet that claims to come from site A: the guard of B lets nothing in that must be protected.
    scene = recorded()
    spoof = traffic("10.1.0.77", "10.2.0.9")
    mallory = scene.world.host("m", "203.0.113.66", networks=("10.1.0.76/30",))
    mallory.assign(None)
    number = len(scene.world.probes) + 1
    mallory.send(spoof, NO_OFFLOAD + probe_packet(spoof, number), [number])
    scene.world.run(1)
    assert not scene.world.arrived(number)
    assert scene.b.guard_drops == {"clear in": 1}


def test_an_insider_cannot_use_the_tunnel_for_other_addresses() -> None:
    # A holds the keys and seals a packet that its SA does not cover (CVE class: selectors not checked inbound).
    scene = recorded()
    assert scene.a.gateway is not None
    plane = scene.a.gateway.dataplane
    assert isinstance(plane, ReferenceDataPlane)
    (installed,) = scene.a.gateway.children
    sa = plane._sad.find_outbound(installed.sa.spi_out, installed.sa.child)
    assert sa is not None
    forged = probe_packet(traffic("10.66.0.1", "10.2.0.9"), 0)
    (sealed,) = esp.seal(sa, [(forged, b"")], 4)
    here, there = (Endpoint(host.addresses[0], 4500) for host in (scene.b, scene.a))
    scene.b.inject(Path(here, there), sealed)
    assert scene.b.gateway is not None
    assert scene.b.gateway.dataplane.drops()[DropReason.SELECTOR_MISMATCH] == 1
    assert not any(delivery.number == 0 for delivery in scene.b.deliveries)
