"""Transport mode in bulk: what comes in merged is what comes in one by one, and every odd packet has its name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, fragment
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment

from policy.proposals import Suite
from policy.spd import Mode
from tests.support.packets import (
    A4,
    A6,
    AHS,
    B4,
    B6,
    CBC_SHA256,
    GCM,
    SUITES,
    Pair,
    arrival,
    arrivals,
    drain,
    ip4,
    ip6,
    join,
    mirrored,
    packet_of,
    path,
    tcp4,
    tcp6,
    tun,
    udp4,
    udp6,
    written,
)
from tunnel.dataplane.contract import DropReason, TunFrame, WireDatagrams
from tunnel.dataplane.esp import trailers_of
from tunnel.dataplane.offload import GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM
from tunnel.dataplane.reference import ReferenceDataPlane
from tunnel.dataplane.transforms import Aead


def pair_of(suite: Suite = GCM, version: int = 4, port: int = 4500, **sa: Any) -> Pair:
    return Pair(suite, path(*((A4, B4) if version == 4 else (A6, B6)), port), mode=Mode.TRANSPORT, **sa)


def drops(plane: ReferenceDataPlane) -> dict[DropReason, int]:
    counters = plane.counters()
    assert counters.inbound_in == counters.inbound_out + counters.inbound_drops + counters.control_in
    assert counters.outbound_in == counters.outbound_out + counters.outbound_drops + counters.held
    assert sum(plane.drops().values()) == counters.inbound_drops + counters.outbound_drops
    return {reason: count for reason, count in plane.drops().items() if count}


def superpacket(data: bytes, version: int, size: int, seq: int = 1) -> bytes:
    packet = tcp4(data, seq=seq) if version == 4 else tcp6(data, seq=seq)
    start, gso = (20, GSO_TCPV4) if version == 4 else (40, GSO_TCPV6)
    return tun(packet, gso, size, NEEDS_CSUM, start, 16) if len(data) > size else tun(packet)


def streams(frames: list[Any], version: int) -> bytes:
    """Return the TCP payloads of written frames in order."""
    return b"".join(join(frame)[1][40 if version == 4 else 60 :] for frame in frames)


@settings(deadline=None, max_examples=80)
@given(
    st.sampled_from([*SUITES, *AHS]), st.sampled_from([4, 6]), st.sampled_from([0, 4500]), st.booleans(),
    st.integers(1, 12000), st.integers(300, 1300), st.integers(0, 3),
)  # fmt: skip
def test_superpackets_of_all_algorithms(
    suite: Suite, version: int, port: int, esn: bool, octets: int, size: int, tos: int
) -> None:
    if suite in AHS:
        port = 0
    data = bytes(index * 7 & 0xFF for index in range(octets))
    pair = pair_of(replace(suite, esn=esn), version, port)
    sent = pair.send(superpacket(data, version, size))
    sent = [replace(transmit, tos=tos) for transmit in sent]
    merged = pair.receive(sent)
    assert streams(merged, version) == data
    assert len(merged) <= -(-octets // size)
    again = pair_of(replace(suite, esn=esn), version, port)
    single: list[Any] = []
    for transmit in sent:
        for buffer in transmit.buffers:
            single += again.receive([replace(transmit, buffers=(buffer,), segment_size=0)])
    assert streams(single, version) == data
    assert pair.right.query_sa(0x1000 + version, inbound=True) == again.right.query_sa(
        0x1000 + version, inbound=True
    )
    assert drops(pair.right) == {}
    # Both ends count the same.
    there = pair.left.query_sa(0x1000 + version, inbound=False)
    here = pair.right.query_sa(0x1000 + version, inbound=True)
    assert there is not None
    assert here is not None
    assert there.packets == here.packets
    assert there.octets == here.octets


def test_a_run_ends_where_the_outer_tos_changes() -> None:
    pair = pair_of()
    items: list[WireDatagrams] = []
    for index, tos in enumerate((0, 0, 3, 3, 0)):
        (transmit,) = pair.send(superpacket(bytes(4000), 4, 1000, 1 + 4000 * index))
        items.append(arrival(transmit, tos))
    pair.right.inbound(items, 1)
    frames = written(drain(pair.right))
    assert [join(frame)[1][1] for frame in frames] == [0, 3, 0]
    assert streams(frames, 4) == bytes(20000)
    assert all(IP(packet_of(frame)).chksum == IP(bytes(_fresh(packet_of(frame)))).chksum for frame in frames)


def _fresh(packet: bytes) -> IP:
    again = IP(packet[:20])
    del again.chksum
    return again


@pytest.mark.parametrize("at", [8, 20, 700, 1039, 1040])
def test_a_forged_segment_within_a_run(at: int) -> None:
    pair = pair_of()
    (transmit,) = pair.send(superpacket(bytes(8000), 4, 1000))
    item = arrival(transmit)
    data = bytearray(item.data)
    data[3 * item.segment_size + at] ^= 1
    pair.right.inbound([replace(item, data=bytes(data))], 1)
    assert streams(written(drain(pair.right)), 4) == bytes(7000)
    assert drops(pair.right) == {DropReason.INTEGRITY: 1}


def test_udp_superpackets() -> None:
    for version, port in ((4, 4500), (6, 4500), (4, 0), (6, 0)):
        pair = pair_of(version=version, port=port)
        packet = udp4(bytes(5000)) if version == 4 else udp6(bytes(5000))
        frame = tun(packet, GSO_UDP_L4, 1000, NEEDS_CSUM, 20 if version == 4 else 40, 6)
        frames = pair.receive(pair.send(frame))
        assert [packet_of(one)[-1000:] for one in frames] == [bytes(1000)] * 5
        assert drops(pair.right) == {}


def _sealed(pair: Pair, payload: bytes, next_header: int, pad: bytes | None = None) -> WireDatagrams:
    """Return what a peer with the keys might send."""
    sa = pair.left._sad.outbound[0x1004][0]
    sa.sequence += 1
    if pad is None:
        trailer = trailers_of(next_header)[-(len(payload) + 2) % 4]
    else:
        trailer = pad + bytes((len(pad), next_header))
    assert isinstance(sa.transform, Aead)
    header, iv = (0x1004).to_bytes(4, "big") + sa.sequence.to_bytes(4, "big"), sa.sequence.to_bytes(8, "big")
    data = header + iv + sa.transform.cipher.encrypt(sa.transform.salt + iv, payload + trailer, header)
    return WireDatagrams(mirrored(pair.path), data)


UDP_HEADER = udp4(b"payload")[20:]


@pytest.mark.parametrize(
    ("payload", "next_header", "pad", "reason"),
    [
        (UDP_HEADER, 17, b"\1\3\2", DropReason.BAD_PADDING),
        (b"", 17, None, DropReason.INNER_MALFORMED),
        (UDP_HEADER[:3], 17, None, DropReason.INNER_MALFORMED),
        (bytes(30), 59, None, DropReason.DUMMY),
    ],
)
def test_odd_payloads(payload: bytes, next_header: int, pad: bytes | None, reason: DropReason) -> None:
    pair = pair_of()
    pair.right.inbound([_sealed(pair, payload, next_header, pad)], 1)
    assert written(drain(pair.right)) == []
    assert drops(pair.right) == {reason: 1}


@pytest.mark.parametrize("octets", [b"", b"\x07", b"\xff\x11"])
def test_plaintexts_too_short_for_their_trailer(octets: bytes) -> None:
    pair = pair_of(window=64)
    sa = pair.left._sad.outbound[0x1004][0]
    assert isinstance(sa.transform, Aead)
    header, iv = bytes.fromhex("0000100400000001"), bytes(7) + b"\1"
    data = header + iv + sa.transform.cipher.encrypt(sa.transform.salt + iv, octets, header)
    pair.right.inbound([replace(_sealed(pair, b"", 17), data=data)], 1)
    assert drops(pair.right).keys() <= {DropReason.BAD_PADDING, DropReason.SHORT_PACKET}
    assert sum(drops(pair.right).values()) == 1


def test_any_other_protocol_goes_through() -> None:
    for protocol in (1, 4, 41, 47, 50, 51, 89, 132, 253):
        pair = pair_of(port=0)
        packet = ip4(protocol, bytes(40))
        assert [packet_of(frame) for frame in pair.receive(pair.send(tun(packet)))] == [packet]


@pytest.mark.parametrize("suite", [GCM, AHS[0]])
def test_transport_mode_is_never_applied_to_a_fragment(suite: Suite) -> None:
    pair = pair_of(suite, port=0)
    assert pair.send(tun(ip4(17, bytes(40), flags=0x2000))) == []
    assert pair.send(tun(ip4(17, bytes(40), flags=5))) == []
    assert drops(pair.left) == {DropReason.FRAGMENT_PORTS: 2}
    pair = pair_of(suite, 6, 0)
    assert pair.send(tun(ip6(44, b"\x11\0\0\1\0\0\0\7" + bytes(40)))) == []
    assert drops(pair.left) == {DropReason.FRAGMENT_PORTS: 1}


def test_a_fragment_that_a_peer_protected_is_refused() -> None:
    pair = pair_of(port=0, version=6)
    (transmit,) = pair.send(tun(ip6(253, b"\x11\0\0\1\0\0\0\7" + bytes(40))))
    (item,) = arrivals(transmit)
    sa = pair.left._sad.outbound[0x1006][0]
    assert isinstance(sa.transform, Aead)
    data = bytes(item.data)
    payload = b"\x11\0\0\1\0\0\0\7" + bytes(40)
    plain = payload + b"\1\2\2\x2c"
    data = data[:16] + sa.transform.cipher.encrypt(sa.transform.salt + data[8:16], plain, data[:8])
    pair.right.inbound([replace(item, data=data)], 1)
    assert drops(pair.right) == {DropReason.INNER_MALFORMED: 1}


def test_an_outer_fragment_is_refused() -> None:
    pair = pair_of(port=0)
    (transmit,) = pair.send(tun(udp4(b"x")))
    (item,) = arrivals(transmit)
    header = bytearray(item.header)
    header[6] |= 0x20
    pair.right.inbound([replace(item, header=bytes(header))], 1)
    assert drops(pair.right) == {DropReason.OUTER_FRAGMENT: 1}


def test_in_udp_a_packet_does_not_lose_its_options_or_its_route() -> None:
    pair = pair_of()
    assert pair.send(tun(udp4(b"x", options=b"\x94\x04\0\0"))) == []
    assert drops(pair.left) == {DropReason.UNSUPPORTED: 1}
    pair = pair_of(version=6)
    assert pair.send(tun(ip6(0, b"\x11\0\1\4\0\0\0\0" + udp6(b"x")[40:]))) == []
    assert drops(pair.left) == {DropReason.UNSUPPORTED: 1}
    # Destination options go inside.
    packet = ip6(60, b"\x11\0\1\4\0\0\0\0" + udp6(b"x")[40:])
    assert [packet_of(frame) for frame in pair.receive(pair.send(tun(packet)))] == [packet]


@pytest.mark.parametrize("extra", range(0, 44, 4))
@pytest.mark.parametrize("suite", [GCM, CBC_SHA256, AHS[0]])
def test_capacities_are_exact_with_options(suite: Suite, extra: int) -> None:
    mtu = 1400
    options = b"\1" * extra
    sizes = {}
    for size in range(1320, 1400):
        pair = pair_of(suite, port=0)
        pair.left.set_path_mtu(pair.path.remote, mtu, 0)
        (transmit,) = pair.send(tun(udp4(bytes(size - 28 - extra), options=options)))
        assert all(len(buffer) <= mtu for buffer in transmit.buffers)
        sizes[size] = len(transmit.buffers)
    largest = max(size for size, count in sizes.items() if count == 1)
    assert all(count == (1 if size <= largest else 2) for size, count in sizes.items())
    pair = pair_of(suite, port=0)
    (transmit,) = pair.send(tun(udp4(bytes(largest - 28 - extra), options=options)))
    block = 16 if suite is CBC_SHA256 else 4 if suite is GCM else 1
    assert mtu - block < len(transmit.buffers[0]) <= mtu


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from([GCM, CBC_SHA256, AHS[0]]),
    st.integers(1, 20000),
    st.integers(576, 1500),
    st.integers(0, 65535),
)
def test_what_is_cut_after_protection_is_whole_again(suite: Suite, octets: int, mtu: int, identity: int) -> None:
    pair = pair_of(suite, port=0)
    pair.left.set_path_mtu(pair.path.remote, mtu, 0)
    packet = udp4(bytes(octets), flags=0, identification=identity)
    (transmit,) = pair.send(tun(packet))
    pieces = [IP(bytes(buffer)) for buffer in transmit.buffers]
    assert all(len(bytes(piece)) <= mtu for piece in pieces)
    if len(pieces) > 1:
        assert len({piece.id for piece in pieces}) == 1
        assert pieces[0].id != 0
    if suite is not AHS[0]:
        assert not any(piece.flags.DF for piece in pieces)
    joined = b"".join(bytes(piece)[20:] for piece in pieces)
    assert [piece.frag * 8 for piece in pieces] == [
        sum(len(bytes(one)) - 20 for one in pieces[:index]) for index in range(len(pieces))
    ]
    assert [bool(piece.flags.MF) for piece in pieces] == [True] * (len(pieces) - 1) + [False]
    front = pieces[0].copy()
    front.remove_payload()
    front.flags, front.frag, front.len, front.chksum = 0, 0, 20 + len(joined), None
    item = replace(arrivals(transmit)[0], data=joined, header=bytes(front)[:20])
    pair.right.inbound([item], 1)
    (frame,) = written(drain(pair.right))
    assert packet_of(frame)[20:] == packet[20:]


@pytest.mark.parametrize("suite", [GCM, AHS[0]])
def test_ipv6_is_cut_by_a_fragment_header(suite: Suite) -> None:
    pair = pair_of(suite, 6, 0)
    pair.left.set_path_mtu(pair.path.remote, 1280, 0)
    hop_by_hop = b"\x11\0\x1e\4abcd"
    packet = ip6(0, hop_by_hop + udp6(bytes(1200))[40:])
    (transmit,) = pair.send(tun(packet))
    pieces = [IPv6(bytes(buffer)) for buffer in transmit.buffers]
    assert len(pieces) == 2
    assert all(len(bytes(piece)) <= 1280 and bytes(piece)[40] == 44 for piece in pieces)
    assert len({piece[IPv6ExtHdrFragment].id for piece in pieces}) == 1
    joined = b"".join(bytes(piece)[56:] for piece in pieces)
    assert [piece[IPv6ExtHdrFragment].offset * 8 for piece in pieces] == [0, len(bytes(pieces[0])) - 56]
    assert [piece[IPv6ExtHdrFragment].m for piece in pieces] == [1, 0]
    header = bytearray(bytes(pieces[0])[:48])
    header[40] = pieces[0][IPv6ExtHdrFragment].nh
    header[4:6] = (8 + len(joined)).to_bytes(2, "big")
    protocol = 51 if suite in AHS else 50
    item = WireDatagrams(mirrored(pair.path), joined, 0, 0, protocol, bytes(header))
    pair.right.inbound([item], 1)
    assert [packet_of(frame) for frame in written(drain(pair.right))] == [packet]


@pytest.mark.parametrize("suite", [GCM, AHS[0]])
def test_a_datagram_that_no_ip_packet_can_carry_protected(suite: Suite) -> None:
    pair = pair_of(suite, port=0)
    pair.left.outbound([TunFrame(tun(udp4(bytes(65507), flags=0)))], 1)
    drain(pair.left)
    assert drops(pair.left) == {DropReason.TOO_BIG: 1}


def test_pieces_are_those_that_scapy_makes() -> None:
    pair = pair_of(AHS[0], port=0)
    (whole,) = pair_of(AHS[0], port=0).send(tun(udp4(bytes(1300), flags=0)))
    pair.left.set_path_mtu(pair.path.remote, 700, 0)
    (transmit,) = pair.send(tun(udp4(bytes(1300), flags=0)))
    expected = [bytes(piece) for piece in fragment(IP(bytes(whole.buffers[0])), fragsize=680)]
    assert [bytes(buffer) for buffer in transmit.buffers] == expected
