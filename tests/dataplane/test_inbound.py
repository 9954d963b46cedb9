"""From the wire: what is dropped and why, what is punted; only counters move before authentication."""

from __future__ import annotations

from dataclasses import replace

import pytest

from policy.clock import SECOND
from policy.proposals import Integ, ProtocolId, Suite
from policy.selectors import PortRange, SelectorPair
from policy.spd import Disposition
from tests.support.packets import (
    AHS,
    ANY4,
    ANY6,
    CBC_SHA256,
    GCM,
    NULL_SHA256,
    SUITES,
    Pair,
    arrival,
    datagrams,
    drain,
    entry,
    ip4,
    ip6,
    mirrored,
    packet_of,
    path,
    sa_params,
    selector_pair,
    snapshot,
    tcp4,
    tun,
    udp4,
    udp6,
    written,
)
from tunnel.dataplane.contract import (
    Activated,
    DropReason,
    Expire,
    IkeDatagram,
    InternalError,
    Mapping,
    SaParams,
    Transmit,
    TunFrame,
    UnknownSpi,
    WireDatagrams,
)
from tunnel.dataplane.reference import ReferenceDataPlane
from tunnel.dataplane.transforms import Aead

HERE = mirrored(path())


def drops(plane: ReferenceDataPlane) -> dict[DropReason, int]:
    """Return the counters that are not zero, having checked that nothing is lost."""
    counters = plane.counters()
    assert counters.inbound_in == counters.inbound_out + counters.inbound_drops + counters.control_in
    assert sum(plane.drops().values()) == counters.inbound_drops + counters.outbound_drops
    return {reason: count for reason, count in plane.drops().items() if count}


def receiver(
    suite: Suite = GCM, selectors: tuple[SelectorPair, ...] = (ANY4, ANY6), **sa: object
) -> ReferenceDataPlane:
    """Return a data plane with one inbound SA."""
    plane = ReferenceDataPlane()
    plane.load(snapshot(), 0)
    plane.add_sa(sa_params(suite, inbound=True, along=HERE, selectors=selectors, **sa), 0)  # type: ignore[arg-type]
    return plane


def sealed(
    *payloads: bytes, suite: Suite = GCM, first: int = 1, next_header: int = 4, pad: bytes | None = None
) -> list[bytes]:
    """Return ESP packets as a peer might make them, with any payload, padding and next header."""
    sender = ReferenceDataPlane()
    sender.add_sa(sa_params(suite, inbound=False), 0)
    transform = sender._sad.outbound[0x1001][0].transform
    packets = []
    for number, payload in enumerate(payloads, start=first):
        if pad is None:
            size = -(len(payload) + 2) % transform.block
            trailer = bytes(range(1, size + 1)) + bytes((size, next_header))
        else:
            trailer = pad + bytes((next_header,))
        header = (0x1001).to_bytes(4, "big") + (number & 0xFFFF_FFFF).to_bytes(4, "big")
        if isinstance(transform, Aead):
            iv = number.to_bytes(8, "big")
            packets.append(header + iv + transform.cipher.encrypt(transform.salt + iv, payload + trailer, header))
        else:
            packets.append(transform.seal(header, number, payload + trailer, b""))
    return packets


def receive(plane: ReferenceDataPlane, *packets: bytes, now: int = 1, tos: int = 0) -> list[bytes]:
    """Return the packets written to the TUN, one datagram a read; other outputs are discarded."""
    plane.inbound([WireDatagrams(HERE, packet, 0, tos) for packet in packets], now)
    return [packet_of(frame) for frame in written(drain(plane))]


# Demultiplexing


def test_port_4500_carries_three_kinds() -> None:
    plane = receiver()
    (esp,) = sealed(udp4(b"x"))
    plane.inbound(
        [
            WireDatagrams(HERE, data)
            for data in (b"\0\0\0\0IKE message", b"\xff", esp, b"\0\0\0\0", b"", b"\xfe", b"\xff\xff")
        ],
        1,
    )
    outputs = drain(plane)
    assert [o.data for o in outputs if isinstance(o, IkeDatagram)] == [b"IKE message", b""]
    assert len(written(outputs)) == 1
    assert drops(plane) == {DropReason.SHORT_PACKET: 3}
    assert plane.counters().control_in == 3


def test_ike_messages_merged_by_gro_are_told_apart() -> None:
    plane = receiver()
    plane.inbound([WireDatagrams(HERE, bytearray(b"\0\0\0\0one!\0\0\0\0two!\0\0\0\0end"), 8)], 1)
    assert [o.data for o in drain(plane) if isinstance(o, IkeDatagram)] == [b"one!", b"two!", b"end"]


def test_raw_esp_has_no_marker() -> None:
    plane = receiver()
    raw = mirrored(path(port=0))
    plane.inbound([WireDatagrams(raw, b"\0\0\0\0IKE message"), WireDatagrams(raw, b"\xff")], 1)
    assert drops(plane) == {DropReason.UNKNOWN_SPI: 1, DropReason.SHORT_PACKET: 1}


@pytest.mark.parametrize("installed", [0, 4500])
@pytest.mark.parametrize("arrives", [0, 4500])
def test_both_encapsulations_are_accepted_at_any_time(installed: int, arrives: int) -> None:
    # RFC 7296 section 2.23.
    plane = ReferenceDataPlane()
    plane.load(snapshot(), 0)
    plane.add_sa(sa_params(inbound=True, along=mirrored(path(port=installed)), follow_nat=True), 0)
    plane.inbound([WireDatagrams(mirrored(path(port=arrives)), sealed(udp4(b"x"))[0])], 1)
    outputs = drain(plane)
    assert [packet_of(frame) for frame in written(outputs)] == [udp4(b"x")]
    assert not any(isinstance(o, Mapping) for o in outputs)


def test_unknown_spis_are_told_ten_times_a_second() -> None:
    plane = receiver()
    (packet,) = sealed(udp4(b""))
    strange = b"\0\0\x20\x01" + packet[4:]
    for now, told in ((0, 10), (SECOND // 2, 0), (SECOND, 10)):
        plane.inbound([WireDatagrams(HERE, strange)] * 15, now)
        outputs = drain(plane)
        assert outputs == [UnknownSpi(HERE, 0x2001)] * told
    assert drops(plane) == {DropReason.UNKNOWN_SPI: 45}


# Authentication


@pytest.mark.parametrize("suite", SUITES, ids=str)
def test_every_altered_octet_is_noticed_and_changes_nothing(suite: Suite) -> None:
    plane = receiver(suite)
    (packet,) = sealed(udp4(b"abc"), suite=suite)
    for index in range(4, len(packet)):
        altered = bytearray(packet)
        altered[index] ^= 1
        assert receive(plane, bytes(altered)) == []
    stats = plane.query_sa(0x1001, inbound=True)
    assert stats is not None
    assert (stats.packets, stats.octets, stats.sequence, stats.last_used) == (0, 0, 0, 0)
    # Octet 7 made 1 into 0, a number that is never sent.
    assert drops(plane) == {DropReason.INTEGRITY: len(packet) - 5, DropReason.OUTSIDE_WINDOW: 1}
    assert receive(plane, packet) == [udp4(b"abc")]


@pytest.mark.parametrize("suite", SUITES, ids=str)
def test_every_truncation_is_dropped(suite: Suite) -> None:
    plane = receiver(suite)
    (packet,) = sealed(udp4(b"abc"), suite=suite)
    for size in range(len(packet)):
        assert receive(plane, packet[:size]) == []
    assert drops(plane).keys() <= {DropReason.SHORT_PACKET, DropReason.INTEGRITY}
    assert sum(drops(plane).values()) == len(packet)
    assert receive(plane, packet) == [udp4(b"abc")]


def test_replays() -> None:
    plane = receiver(window=64)
    packets = sealed(*(udp4(bytes((i,))) for i in range(100)))
    assert len(receive(plane, *packets[:1], *packets[:1])) == 1
    assert len(receive(plane, *packets[90:], *packets[:30], *packets[26:40], packets[99])) == 10 + 4
    assert drops(plane) == {DropReason.REPLAYED: 1 + 1, DropReason.OUTSIDE_WINDOW: 30 + 10}


def test_a_forged_number_does_not_move_the_window() -> None:
    plane = receiver()
    first, second = sealed(udp4(b"1"), udp4(b"2"))
    forged = second[:4] + b"\xff\xff\xff\xff" + second[8:]
    assert receive(plane, first, forged, second) == [udp4(b"1"), udp4(b"2")]
    assert drops(plane) == {DropReason.INTEGRITY: 1}


def test_without_esn_the_last_number_is_the_end() -> None:
    plane = receiver()
    assert len(receive(plane, *sealed(udp4(b"a"), first=2**32 - 1))) == 1
    assert receive(plane, *sealed(udp4(b"b"), first=2**32)) == []
    assert drops(plane) == {DropReason.OUTSIDE_WINDOW: 1}


# After decryption


@pytest.mark.parametrize("suite", [GCM, NULL_SHA256])
@pytest.mark.parametrize("pad", [b"\x01\x02\x02", b"\x00", bytes(range(1, 256)) + b"\xff"])
def test_any_pad_length_is_accepted(suite: Suite, pad: bytes) -> None:
    assert receive(receiver(suite), *sealed(udp4(b"abc"), suite=suite, pad=pad)) == [udp4(b"abc")]


def test_traffic_flow_padding_is_cut_off() -> None:
    plane = receiver()
    packets = sealed(udp4(b"abc") + bytes(500)) + sealed(udp6(b"abc") + bytes(500), first=2, next_header=41)
    assert receive(plane, *packets) == [udp4(b"abc"), udp6(b"abc")]


def test_dummy_packets_are_counted_and_no_more() -> None:
    plane = receiver()
    assert receive(plane, *sealed(b"anything", b"", next_header=59)) == []
    assert drops(plane) == {DropReason.DUMMY: 2}
    stats = plane.query_sa(0x1001, inbound=True)
    assert stats is not None
    assert stats.packets == 2


BAD_PADDING = {
    "wrong order": (udp4(b"abc"), 4, b"\x02\x01\x02"),
    "longer than the packet": (b"E\0", 4, b"\xff"),
    "zeros": (udp4(b"abc"), 4, b"\x00\x00\x02"),
    "next header TCP": (udp4(b"abc"), 6, b"\x00"),
    "next header 0": (udp4(b"abc"), 0, b"\x00"),
    "next header ESP": (udp4(b"abc"), 50, b"\x00"),
}


@pytest.mark.parametrize("name", BAD_PADDING)
def test_bad_padding(name: str) -> None:
    payload, next_header, pad = BAD_PADDING[name]
    plane = receiver()
    assert receive(plane, *sealed(payload, next_header=next_header, pad=pad)) == []
    assert drops(plane) == {DropReason.BAD_PADDING: 1}


def test_ciphertext_of_no_whole_blocks_is_bad_padding() -> None:
    import hmac

    from tests.support.packets import keys

    plane = receiver(CBC_SHA256)
    body = (0x1001).to_bytes(4, "big") + b"\0\0\0\1" + bytes(16 + 24)
    icv = hmac.digest(keys(CBC_SHA256)[2], body, "sha256")[:16]
    assert receive(plane, body + icv) == []
    assert drops(plane) == {DropReason.BAD_PADDING: 1}


INNER_MALFORMED = {
    "empty": (b"", 4),
    "cut": (udp4(b"")[:19], 4),
    "IPv6 in 4": (udp6(b""), 4),
    "IPv4 in 41": (udp4(b"") + bytes(20), 41),
    "longer than it is": (udp4(b"abc")[:-1], 4),
    "length below the header": (udp4(b"")[:2] + b"\0\x10" + udp4(b"")[4:], 4),
    "header length 4": (b"\x44" + udp4(b"")[1:], 4),
    "IPv6 cut": (udp6(b"")[:39], 41),
    "UDP without ports": (ip4(17, b"abc"), 4),
    "extension header beyond the end": (ip6(0, b"\x11\xff" + bytes(6)), 41),
    "endless extension headers": (ip6(60, b"\x3c\0" + bytes(6) + (b"\x3c\0" + bytes(6)) * 20), 41),
}


@pytest.mark.parametrize("name", INNER_MALFORMED)
def test_malformed_inner_packets(name: str) -> None:
    payload, next_header = INNER_MALFORMED[name]
    plane = receiver()
    assert receive(plane, *sealed(payload, next_header=next_header)) == []
    assert drops(plane) == {DropReason.INNER_MALFORMED: 1}


# RFC 4301 section 5.2: the inner packet is compared with the selectors of its SA.

_ONE = selector_pair("10.1.0.0/24", "10.2.0.0/24", 17, PortRange(1000, 1001), PortRange(2000, 2000))
_SIX = selector_pair("2001:db8:1::/64", "2001:db8:2::/64", 17)


def _toward(
    source: str = "10.2.0.7", destination: str = "10.1.0.5", sport: int = 2000, dport: int = 1000
) -> bytes:
    return udp4(b"x", source=source, destination=destination, sport=sport, dport=dport)


INSIDE = {
    "exact": _toward(),
    "other port of the range": _toward(dport=1001),
    "IPv6": udp6(b"x", source="2001:db8:2::9", destination="2001:db8:1::9"),
    "IPv6 with an extension header": ip6(
        60, b"\x11\0\1\4\0\0\0\0" + udp6(b"x")[40:], source="2001:db8:2::9", destination="2001:db8:1::9"
    ),
}
OUTSIDE = {
    "source": _toward(source="10.3.0.7"),
    "destination": _toward(destination="10.3.0.5"),
    "reversed": _toward(source="10.1.0.5", destination="10.2.0.7", sport=1000, dport=2000),
    "source port": _toward(sport=2001),
    "destination port": _toward(dport=1002),
    "protocol": tcp4(b"x", ip={"source": "10.2.0.7", "destination": "10.1.0.5"}, sport=2000, dport=1000),
    "ICMP": ip4(1, bytes(8), source="10.2.0.7", destination="10.1.0.5"),
    "no ports to be seen": ip4(17, bytes(24), source="10.2.0.7", destination="10.1.0.5", flags=3),
    "IPv6 of another net": udp6(b"x", source="2001:db8:3::9", destination="2001:db8:1::9"),
    "IPv6 other protocol": ip6(6, bytes(20), source="2001:db8:2::9", destination="2001:db8:1::9"),
}


@pytest.mark.parametrize("name", INSIDE)
def test_inside_the_selectors(name: str) -> None:
    packet = INSIDE[name]
    plane = receiver(selectors=(_ONE, _SIX))
    packets = sealed(packet, packet, next_header=4 if packet[0] >> 4 == 4 else 41)
    assert receive(plane, *packets) == [packet, packet]


@pytest.mark.parametrize("name", OUTSIDE)
def test_outside_the_selectors(name: str) -> None:
    packet = OUTSIDE[name]
    plane = receiver(selectors=(_ONE, _SIX))
    next_header = 4 if packet[0] >> 4 == 4 else 41
    good = INSIDE["exact"] if next_header == 4 else INSIDE["IPv6"]
    packets = sealed(good, packet, packet, good, next_header=next_header)
    assert receive(plane, *packets) == [good, good]
    reason = DropReason.FRAGMENT_PORTS if name == "no ports to be seen" else DropReason.SELECTOR_MISMATCH
    assert drops(plane) == {reason: 2}


def test_a_flow_allowed_on_one_sa_is_not_on_another() -> None:
    # The subnet of one peer must not be accepted from another.
    plane = receiver(selectors=(selector_pair("10.1.0.0/16", "10.2.0.0/16"),))
    other = sa_params(
        inbound=True, spi=0x1002, along=HERE, child=2, selectors=(selector_pair("10.1.0.0/16", "10.3.0.0/16"),)
    )
    plane.add_sa(other, 0)
    packet = tcp4(bytes(100), ip={"source": "10.2.0.7", "destination": "10.1.0.5"}, seq=1)
    following = tcp4(bytes(100), ip={"source": "10.2.0.7", "destination": "10.1.0.5"}, seq=101)
    (first,) = sealed(packet)
    sender = ReferenceDataPlane()
    sender.load(snapshot(), 0)
    sender.add_sa(sa_params(inbound=False, spi=0x1002), 0)
    sender.outbound([TunFrame(tun(following))], 1)
    (second,) = datagrams(o for o in drain(sender) if isinstance(o, Transmit))
    assert receive(plane, first, second) == [packet]
    assert drops(plane) == {DropReason.SELECTOR_MISMATCH: 1}


def test_the_cache_of_allowed_flows_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunnel.dataplane.admission.MAX_ALLOWED_FLOWS", 8)
    plane = receiver()
    packets = [udp4(b"", dport=port) for port in range(20)] + [ip4(p, bytes(8)) for p in range(100, 120)]
    assert receive(plane, *sealed(*packets)) == packets
    assert len(plane._sad.inbound[0x1001].allowed) == 8


@pytest.mark.parametrize("gone", [True, False])
def test_an_sa_whose_entry_is_gone_delivers_nothing(gone: bool) -> None:
    plane = receiver()
    first, second = sealed(udp4(b"1"), udp4(b"2"))
    assert receive(plane, first) == [udp4(b"1")]
    plane.load(snapshot(entry("other" if gone else "v4", ANY4, Disposition.PROTECT), generation=2), 1)
    assert receive(plane, second) == ([] if gone else [udp4(b"2")])
    if gone:
        assert drops(plane) == {DropReason.SELECTOR_MISMATCH: 1}


def test_an_earlier_entry_blocks_inside_the_selectors() -> None:
    # RFC 4301 section 4.4.1: what an earlier entry claims is no part of this SA's, whatever was negotiated.
    plane = receiver()
    dns, web = udp4(b"1", dport=53), udp4(b"2", dport=80)
    packets = sealed(dns, web, dns, web)
    assert receive(plane, *packets[:2]) == [dns, web]
    narrow = selector_pair("0.0.0.0/0", "0.0.0.0/0", protocol=17, local_ports=PortRange(53, 53))
    block = entry("block", narrow, Disposition.DISCARD)
    plane.load(snapshot(block, entry("v4", ANY4), generation=2), 1)
    assert receive(plane, *packets[2:]) == [web]
    assert drops(plane) == {DropReason.DISCARD_POLICY: 1}


@pytest.mark.parametrize("same", [True, False])
def test_what_another_entry_protects_is_accepted_from_its_peer_only(same: bool) -> None:
    plane = receiver()
    narrow = selector_pair("0.0.0.0/0", "0.0.0.0/0", protocol=17, local_ports=PortRange(53, 53))
    other = entry("dns", narrow)
    assert other.protection is not None
    other = replace(other, protection=replace(other.protection, peer="peer" if same else "another"))
    plane.load(snapshot(other, entry("v4", ANY4), generation=2), 1)
    dns = udp4(b"1", dport=53)
    assert receive(plane, *sealed(dns)) == ([dns] if same else [])
    assert drops(plane) == ({} if same else {DropReason.SELECTOR_MISMATCH: 1})


@pytest.mark.parametrize("local_port", [53, 80])
def test_a_fragment_without_ports_does_not_slip_past_an_entry_that_wants_ports(local_port: int) -> None:
    plane = receiver()
    narrow = selector_pair("0.0.0.0/0", "0.0.0.0/0", 17, PortRange(53, 53))
    plane.load(snapshot(entry("block", narrow, Disposition.DISCARD), entry("v4", ANY4), generation=2), 1)
    first = ip4(17, udp4(bytes(24), dport=local_port)[20:], flags=0x2000)
    later, other = ip4(17, bytes(24), flags=4), ip4(6, bytes(24), flags=4)
    packets = sealed(first, later, other)
    # RFC 4301 section 7.3: the later fragment goes the way of its first.
    assert receive(plane, *packets) == ([other] if local_port == 53 else [first, later, other])
    assert drops(plane).get(DropReason.FRAGMENT_PORTS, 0) == (local_port == 53)


def test_overlapping_inner_fragments_are_passed_on_as_they_are() -> None:
    """Class of CVE-2022-34718 and CVE-2022-27666."""
    # A tunnel does not reassemble; whoever does, sees what was sent.
    fragments = [ip4(99, bytes(24), flags=0x2000), ip4(99, bytes(24), flags=0x2001), ip4(99, bytes(16), flags=2)]
    plane = receiver()
    assert receive(plane, *sealed(*fragments)) == fragments


# Punts


def test_a_mapping_is_told_once_for_each_new_path() -> None:
    plane = receiver(follow_nat=True, child=9)
    packets = sealed(*(udp4(bytes((i,))) for i in range(8)))
    moved, again = mirrored(path(remote="192.0.2.77")), mirrored(path(remote="192.0.2.78"))

    def told(data: bytes, along: object) -> list[object]:
        plane.inbound([WireDatagrams(along, data)], 1)  # type: ignore[arg-type]
        return [o for o in drain(plane) if isinstance(o, Mapping)]

    assert told(packets[0], HERE) == []
    assert told(packets[1], moved) == [Mapping(9, 0x1001, moved)]
    assert told(packets[2], mirrored(path(remote="192.0.2.77"))) == []
    assert told(packets[4], again) == [Mapping(9, 0x1001, again)]
    assert told(packets[3], moved) == []  # late: older than what came over the newer path
    plane.update_path(9, again)
    assert told(packets[5], again) == []
    assert told(packets[6], HERE) == [Mapping(9, 0x1001, HERE)]


def test_a_forged_or_replayed_packet_moves_no_path() -> None:
    plane = receiver(follow_nat=True)
    (packet,) = sealed(udp4(b""))
    moved = mirrored(path(remote="192.0.2.77"))
    plane.inbound([WireDatagrams(HERE, packet)], 1)
    drain(plane)
    plane.inbound([WireDatagrams(moved, packet), WireDatagrams(moved, packet[:7] + b"\2" + packet[8:])], 1)
    assert drain(plane) == []


def test_without_nat_no_path_moves() -> None:
    plane = receiver(follow_nat=False)
    plane.inbound([WireDatagrams(mirrored(path(remote="192.0.2.77")), sealed(udp4(b""))[0])], 1)
    assert not any(isinstance(o, Mapping) for o in drain(plane))


@pytest.mark.parametrize("inbound_first", [True, False])
def test_the_first_packet_activates_the_dormant_twin(inbound_first: bool) -> None:
    plane = ReferenceDataPlane()
    plane.load(snapshot(), 0)
    plane.add_sa(sa_params(inbound=False, spi=0x3001, child=1), 0)
    twins = [
        sa_params(inbound=True, along=HERE, child=2),
        sa_params(inbound=False, spi=0x3002, child=2, dormant=True),
    ]
    for params in twins if inbound_first else reversed(twins):
        plane.add_sa(params, 0)

    def spi() -> int:
        plane.outbound([TunFrame(tun(udp4(b"")))], 1)
        (packet,) = datagrams(o for o in drain(plane) if isinstance(o, Transmit))
        return int.from_bytes(packet[:4], "big")

    first, second = sealed(udp4(b"1"), udp4(b"2"))
    assert spi() == 0x3001
    plane.inbound([WireDatagrams(HERE, first[:-1] + b"\0")], 1)
    drain(plane)
    assert spi() == 0x3001
    plane.inbound([WireDatagrams(HERE, first), WireDatagrams(HERE, second)], 1)
    assert [o for o in drain(plane) if isinstance(o, Activated)] == [Activated(2)]
    assert spi() == 0x3002


def test_activation_lets_go_what_waits() -> None:
    plane = ReferenceDataPlane()
    plane.load(snapshot(), 0)
    plane.add_sa(sa_params(inbound=False, spi=0x3002, child=2, dormant=True), 0)
    plane.add_sa(sa_params(inbound=True, along=HERE, child=2), 0)
    plane.outbound([TunFrame(tun(udp4(b"")))], 1)
    assert plane.counters().held == 1
    plane.inbound([WireDatagrams(HERE, sealed(udp4(b"1"))[0])], 1)
    assert len(datagrams(o for o in drain(plane) if isinstance(o, Transmit))) == 1
    assert plane.counters().held == 0


def test_octet_limits() -> None:
    plane = receiver(soft_bytes=100, hard_bytes=200, child=5)
    packets = sealed(*(udp4(bytes((i,)) * 14) for i in range(10)))  # 44 octets each with the trailer
    plane.inbound([WireDatagrams(HERE, packet) for packet in packets], 1)
    outputs = drain(plane)
    assert [o for o in outputs if isinstance(o, Expire)] == [
        Expire(5, 0x1001, True, False, "bytes"),
        Expire(5, 0x1001, True, True, "bytes"),
    ]
    assert len(written(outputs)) == 5
    assert drops(plane) == {DropReason.SA_EXPIRED: 5}


def test_statistics() -> None:
    plane = receiver()
    receive(plane, *sealed(udp4(b"12"), udp4(b"12")), now=77)
    receive(plane, *sealed(udp4(b"12")), now=99)
    stats = plane.query_sa(0x1001, inbound=True)
    assert stats is not None
    assert (stats.packets, stats.sequence, stats.last_used) == (2, 2, 77)
    assert stats.drops == {DropReason.REPLAYED: 1}
    assert plane.delete_sa(0x1001, inbound=True) == stats
    assert plane.query_sa(0x1001, inbound=True) is None
    assert plane.delete_sa(0x1001, inbound=True) is None


def test_a_bug_of_ours_costs_one_packet(monkeypatch: pytest.MonkeyPatch) -> None:
    plane = receiver()
    packets = sealed(*(udp4(bytes((i,))) for i in range(3)))
    sa = plane._sad.inbound[0x1001]
    real = sa.decrypt
    assert real is not None

    def decrypt(nonce: bytes, data: bytes, aad: bytes) -> bytes:
        if nonce[-1] == 2:
            raise KeyError("secret octets")
        return real(nonce, data, aad)

    sa.decrypt = decrypt  # type: ignore[assignment]
    plane.inbound([WireDatagrams(HERE, b"".join(packets), len(packets[0]))], 1)
    outputs = drain(plane)
    (error,) = [o for o in outputs if isinstance(o, InternalError)]
    assert "KeyError" in error.trace
    assert "secret" not in error.trace
    assert len(written(outputs)) == 2
    assert drops(plane) == {DropReason.INTERNAL: 1}


# Installing


def _with(**changes: object) -> SaParams:
    from dataclasses import replace

    return replace(sa_params(inbound=True), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (_with(spi=0), "SPI"),
        (_with(spi=255), "SPI"),
        (_with(spi=2**32), "SPI"),
        (_with(replay_window=16), "replay window"),
        (_with(replay_window=10_000), "replay window"),
        (_with(suite=Suite(ProtocolId.ESP, None)), "cipher"),
        (_with(suite=Suite(ProtocolId.ESP, GCM.encr, 128)), "key"),
        (_with(suite=Suite(ProtocolId.ESP, GCM.encr, 256, Integ.HMAC_SHA2_256_128)), "integrity"),
        (_with(suite=Suite(ProtocolId.ESP, CBC_SHA256.encr, 256)), "integrity"),
        (_with(suite=Suite(ProtocolId.ESP, CBC_SHA256.encr, 256, Integ.HMAC_SHA2_256_128)), "key"),
        (_with(salt=sa_params(CBC_SHA256, inbound=True).salt), "salt"),
    ],
)
def test_what_cannot_be_done_is_refused(params: SaParams, message: str) -> None:
    plane = ReferenceDataPlane()
    with pytest.raises(ValueError, match=message):
        plane.add_sa(params, 0)
    assert plane.query_sa(params.spi, inbound=True) is None


def test_encryption_without_integrity_and_null_with_null_are_refused() -> None:
    for suite in (CBC_SHA256, NULL_SHA256):
        bare = Suite(suite.protocol, suite.encr, suite.key_bits)
        with pytest.raises(ValueError, match="integrity"):
            ReferenceDataPlane().add_sa(sa_params(bare, inbound=False), 0)


def test_an_inbound_spi_is_used_once() -> None:
    plane = receiver()
    with pytest.raises(ValueError, match="in use"):
        plane.add_sa(sa_params(inbound=True, child=2), 0)


def test_a_refusal_shows_no_key() -> None:
    with pytest.raises(ValueError, match="key of 32 octets") as caught:
        ReferenceDataPlane().add_sa(_with(suite=Suite(ProtocolId.ESP, GCM.encr, 128)), 0)
    assert "01020304" not in repr(caught.value).lower()


def test_ah_is_not_carried_in_udp() -> None:
    with pytest.raises(ValueError, match="AH cannot be carried in UDP"):
        ReferenceDataPlane().add_sa(sa_params(AHS[0], inbound=True), 0)


def test_gro_delivers_a_shorter_last_segment() -> None:
    pair = Pair()
    transmits = pair.send(tun(udp4(bytes(100))), tun(udp4(bytes(99), identification=8)), tun(udp4(bytes(3))))
    assert [len(frame) for frame in pair.receive(transmits)] == [2, 2, 2]
    assert arrival(transmits[0]).segment_size > 0


def test_packets_dropped_unseen_are_in_the_books() -> None:
    plane = ReferenceDataPlane()
    plane.load(snapshot(), 0)
    view = plane.known_spis()
    assert 0x1001 not in view
    plane.add_sa(sa_params(GCM, inbound=True, spi=0x1001), 0)
    assert 0x1001 in view
    plane.drop_unknown(5)
    assert plane.drops()[DropReason.UNKNOWN_SPI] == 5
    counters = plane.counters()
    assert (counters.inbound_in, counters.inbound_drops) == (5, 5)
    plane.delete_sa(0x1001, inbound=True)
    assert 0x1001 not in view
