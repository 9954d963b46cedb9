"""AH octet by octet: what routers may change and what they may not (RFC 4302 section 3.3.3, appendix A)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6
from scapy.layers.ipsec import AH, zero_mutable_fields

from policy.proposals import Integ, ProtocolId, Suite
from policy.secret import Secret
from policy.spd import Mode
from tests.support.packets import (
    A4,
    A6,
    AHS,
    B4,
    B6,
    Pair,
    arrivals,
    drain,
    ip4,
    ip6,
    keys,
    packet_of,
    path,
    tun,
    udp4,
    udp6,
    written,
)
from tunnel.dataplane.ah import canonical
from tunnel.dataplane.contract import DropReason, WireDatagrams
from tunnel.dataplane.flow import FlowError
from tunnel.dataplane.macs import mac_of
from tunnel.dataplane.reference import ReferenceDataPlane

SHA256 = AHS[0]
XCBC = Suite(ProtocolId.AH, integ=Integ.AES_XCBC_96)
HEADER_SIZES = {12: (24, 24), 16: (28, 32), 24: (36, 40), 32: (44, 48)}


def pair_of(suite: Suite = SHA256, version: int = 4, mode: Mode = Mode.TRANSPORT) -> Pair:
    return Pair(suite, path(*((A4, B4) if version == 4 else (A6, B6)), 0), mode=mode)


def sent(pair: Pair, packet: bytes) -> WireDatagrams:
    """Return what arrives at the other end."""
    (transmit,) = pair.send(tun(packet))
    (item,) = arrivals(transmit)
    return item


def received(plane: ReferenceDataPlane, item: WireDatagrams) -> list[bytes]:
    """Return what comes out of the TUN."""
    plane.inbound([item], 1)
    counters = plane.counters()
    assert counters.inbound_in == counters.inbound_out + counters.inbound_drops
    return [packet_of(frame) for frame in written(drain(plane))]


def accepted(packet: bytes, at: int, bit: int, version: int = 4, suite: Suite = SHA256) -> DropReason | None:
    """Return why *packet* was dropped after one bit of the header before AH changed on the way, None if not."""
    pair = pair_of(suite, version)
    item = sent(pair, packet)
    header = bytearray(item.header)
    header[at] ^= bit
    if received(pair.right, replace(item, header=bytes(header))):
        return None
    (reason,) = (reason for reason, count in pair.right.drops().items() if count)
    return reason


MUTABLE_V4 = {1, 8, 10, 11}


@pytest.mark.parametrize("at", range(1, 20))
def test_each_octet_of_the_ipv4_header(at: int) -> None:
    reasons = [accepted(udp4(b"x"), at, 1 << bit) for bit in range(8)]
    if at == 6:  # DF and the reserved bit may change; a fragment has no place here
        assert reasons == [DropReason.OUTER_FRAGMENT] * 6 + [None, None]
    elif at == 7:
        assert reasons == [DropReason.OUTER_FRAGMENT] * 8
    else:
        assert reasons == [None if at in MUTABLE_V4 else DropReason.INTEGRITY] * 8


@pytest.mark.parametrize("at", range(1, 40))
def test_each_octet_of_the_ipv6_header(at: int) -> None:
    reasons = [accepted(udp6(b"x"), at, 1 << bit, 6) for bit in range(0, 8, 3)]
    if at == 6:  # what follows is said to be something else
        assert None not in reasons
    else:
        assert reasons == [None if at in {1, 2, 3, 7} else DropReason.INTEGRITY] * 3


OPTIONS = {
    "security": (b"\x82\x0b" + bytes(9) + b"\0", False),
    "extended security": (b"\x85\x04\1\2", False),
    "commercial security": (b"\x86\x08" + bytes(6), False),
    "router alert": (b"\x94\x04\0\0", False),
    "sender directed": (b"\x95\x08\x0a\2\0\7\0\0", False),
    "record route": (b"\x07\x07\x04\0\0\0\0\0", True),
    "timestamp": (b"\x44\x0c\x05\0" + bytes(8), True),
    "traceroute": (b"\x52\x0c" + bytes(10), True),
    "unknown": (b"\x5e\x04\1\2", True),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_ipv4_options_are_whole_units(name: str) -> None:
    options, mutable = OPTIONS[name]
    packet = udp4(b"x", options=options)
    # The data changes; type and length would make another option of it.
    reasons = {accepted(packet, at, 1) for at in range(22, 20 + options[1])}
    assert reasons == {None if mutable else DropReason.INTEGRITY}
    assert received(*_both(packet)) == [packet]


def _both(packet: bytes, version: int = 4) -> tuple[ReferenceDataPlane, WireDatagrams]:
    pair = pair_of(SHA256, version)
    return pair.right, sent(pair, packet)


@pytest.mark.parametrize("kind", [131, 137])
def test_a_source_route_ends_where_the_sender_said(kind: int) -> None:
    hops = [bytes((10, 2, 0, number)) for number in (1, 2, 7)]
    option = bytes((kind, 11, 4)) + hops[1] + hops[2] + b"\0"
    pair = pair_of()
    item = sent(pair, udp4(b"routed", destination="10.2.0.1", options=option))
    header = bytearray(item.header)
    # Each router put its own address in, moved the pointer and sent it on to the next.
    header[16:20] = hops[2]
    header[22] = 12
    header[23:31] = hops[0] + hops[1]
    assert len(received(pair.right, replace(item, header=bytes(header)))) == 1
    header[16:20] = hops[1]
    assert received(pair.right, replace(item, header=bytes(header))) == []


def _v6_options(kind: int, *options: bytes) -> bytes:
    """Return an extension header with options; *kind* follows it."""
    body = b"".join(options)
    body += b"" if len(body) % 8 == 6 else b"\x01" + bytes(((4 - len(body)) % 8,)) + bytes((4 - len(body)) % 8)
    return bytes((kind, (len(body) + 2) // 8 - 1)) + body


@pytest.mark.parametrize(("option", "mutable"), [(0x1E, False), (0x3E, True), (0xFE, True), (0xDE, False)])
def test_ipv6_options_that_may_change(option: int, mutable: bool) -> None:
    extension = _v6_options(17, bytes((option, 6)) + bytes(6))
    packet = ip6(0, extension + udp6(b"x")[40:])
    for at in range(44, 50):
        assert accepted(packet, at, 1, 6) is (None if mutable else DropReason.INTEGRITY)
    assert accepted(packet, 42, 4, 6) is DropReason.INTEGRITY  # the type itself is kept
    assert received(*_both(packet, 6)) == [packet]


def test_an_ipv6_route_ends_where_the_sender_said() -> None:
    hops = [bytes.fromhex(f"20010db80002000000000000000000{number:02x}") for number in (1, 2, 7)]
    before = _v6_options(43, b"\x1e\x04abcd")
    route = bytes((17, 4, 0, 2)) + bytes(4) + hops[1] + hops[2]
    packet = ip6(60, before + route + udp6(b"routed")[40:], destination="2001:db8:2::1")
    pair = pair_of(SHA256, 6)
    item = sent(pair, packet)
    assert len(item.header) == 40 + 8 + 40
    header = bytearray(item.header)
    for left, hop in ((1, 1), (0, 2)):
        at = 48 + 8 + 16 * (hop - 1)
        header[24:40], header[at : at + 16] = header[at : at + 16], header[24:40]
        header[48 + 3] = left
    assert bytes(header[24:40]) == hops[2]
    (opened,) = received(pair.right, replace(item, header=bytes(header)))
    assert opened.endswith(b"routed")
    header[39] ^= 1
    assert received(pair.right, replace(item, header=bytes(header))) == []


@pytest.mark.parametrize(
    "header",
    [
        ip4(51, b"", options=b"\x07\0\0\0"),
        ip4(51, b"", options=b"\x07\x05\0\0"),
        ip4(51, b"", options=b"\1\1\1\x07"),
        ip6(0, b"\x33\x01" + bytes(6)),
        ip6(0, b"\x33\0\x05\x09" + bytes(4)),
        ip6(43, b"\x33\0\x04\x01" + bytes(4)),
        ip6(43, b"\x33\x02\0\x02" + bytes(20)),
        ip6(0, b"\x33"),
    ],
    ids=range(8),
)
def test_headers_that_do_not_hold_together(header: bytes) -> None:
    with pytest.raises(FlowError):
        canonical(header)
    pair = pair_of(SHA256, header[0] >> 4)
    item = sent(pair, udp4(b"x") if header[0] >> 4 == 4 else udp6(b"x"))
    assert received(pair.right, replace(item, header=header)) == []
    assert pair.right.drops()[DropReason.MALFORMED] == 1


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("suite", AHS, ids=str)
def test_layout(suite: Suite, version: int) -> None:
    pair = pair_of(suite, version)
    packet = udp4(b"laid out", identification=0) if version == 4 else udp6(b"laid out")
    item = sent(pair, packet)
    data, header = bytes(item.data), bytes(item.header)
    icv_size = mac_of(suite, Secret(keys(suite)[2]), Secret(keys(suite)[1])).size
    size = HEADER_SIZES[icv_size][version == 6]
    assert size == 12 + icv_size + -(12 + icv_size) % (4 if version == 4 else 8)
    assert (data[0], data[1], data[2:4]) == (17, size // 4 - 2, b"\0\0")
    assert data[4:12] == bytes((0, 0, 0x10, version)) + bytes((0, 0, 0, 1))
    assert data[size:] == packet[20 if version == 4 else 40 :]
    assert data[12 + icv_size : size] == bytes(size - 12 - icv_size)
    if version == 4:
        assert header[9] == 51
        assert header[4:6] != b"\0\0"
        assert int.from_bytes(header[2:4], "big") == 20 + len(data)
        assert IP(header).chksum == IP(bytes(IP(src=A4, dst=B4, proto=51, len=20 + len(data), id=IP(header).id,
                                                flags="DF"))).chksum  # fmt: skip
    else:
        assert header[6] == 51
        assert int.from_bytes(header[4:6], "big") == len(data)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("suite", AHS, ids=str)
def test_the_icv_covers_what_scapy_says(suite: Suite, version: int) -> None:
    pair = pair_of(suite, version)
    item = sent(pair, udp4(b"x", tos=3, options=b"\x94\x04\0\0") if version == 4 else udp6(b"x", flow_label=5))
    whole = (IP if version == 4 else IPv6)(bytes(item.header) + bytes(item.data))
    size = mac_of(suite, Secret(keys(suite)[2]), Secret(keys(suite)[1])).size
    icv = bytes(item.data)[12 : 12 + size]
    whole[AH].icv, whole[AH].padding = bytes(whole[AH].icv), bytes(whole[AH].padding)
    covered = bytes(zero_mutable_fields(whole)) + (bytes(4) if suite.esn else b"")
    start = len(item.header) + 12
    covered = covered[:start] + bytes(size) + covered[start + size :]
    assert mac_of(suite, Secret(keys(suite)[2]), Secret(keys(suite)[1])).verify(covered, icv)


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("esn", [False, True])
def test_extended_sequence_numbers(esn: bool, mode: Mode) -> None:
    suite = replace(XCBC, esn=esn)
    pair = pair_of(suite, mode=mode)
    outbound = pair.left._sad.outbound[0x1004][0]
    outbound.sequence = pair.right._sad.inbound[0x1004].window.top = 2**32 - 3
    arrived = [received(pair.right, arrivals(t)[0]) for _ in range(4) for t in pair.send(tun(udp4(b"x")))]
    assert [len(packets) for packets in arrived] == ([1, 1, 1, 1] if esn else [1, 1])
    drops = pair.left.drops()
    assert drops[DropReason.SEQUENCE_OVERFLOW] == (0 if esn else 2)


@pytest.mark.parametrize("version", [4, 6])
def test_tunnel_mode_covers_the_outer_header(version: int) -> None:
    pair = Pair(SHA256, path(*(("192.0.2.1", "192.0.2.2") if version == 4 else ("2001:db8::1", "2001:db8::2")), 0))
    for packet in (udp4(b"in", tos=0x2A, ttl=3), udp6(b"in", traffic_class=0x2A)):
        item = sent(pair, packet)
        header = bytes(item.header)
        assert (header[1] if version == 4 else (header[0] << 4 | header[1] >> 4) & 0xFF) == 0x2A
        changed = bytearray(header)
        changed[12 if version == 4 else 8] ^= 1
        assert received(pair.right, replace(item, header=bytes(changed))) == []
        # Congestion met outside is told inside (RFC 6040).
        (opened,) = received(pair.right, replace(item, tos=0x2B))
        assert (opened[1] & 3 if opened[0] >> 4 == 4 else opened[1] >> 4 & 3) == 3
    item = sent(pair, udp4(b"not capable"))
    assert received(pair.right, replace(item, tos=3)) == []
    assert pair.right.drops()[DropReason.ECN_CE_NOT_ECT] == 1


@pytest.mark.parametrize("next_header", [0, 17, 41, 59])
def test_tunnel_mode_carries_the_packets_it_names(next_header: int) -> None:
    pair = pair_of(mode=Mode.TUNNEL)
    sa = pair.left._sad.outbound[0x1004][0]
    assert sa.mac is not None
    item = sent(pair, udp4(b"x"))
    data = bytearray(item.data)
    data[0], data[12:28] = next_header, bytes(16)
    data[12:28] = sa.mac.compute(canonical(bytes(item.header)) + bytes(data), 1)
    assert received(pair.right, replace(item, data=bytes(data))) == []
    assert pair.right.drops()[DropReason.INNER_MALFORMED] == 1


@pytest.mark.parametrize("version", [4, 6])
def test_a_header_that_the_host_cannot_tell_is_made_anew(version: int) -> None:
    pair = pair_of(SHA256, version)
    item = sent(pair, udp4(b"x", identification=0, ttl=64) if version == 4 else udp6(b"x"))
    opened = received(pair.right, replace(item, header=b""))
    # Of IPv4 the identification is covered, and known from the header alone.
    assert len(opened) == (0 if version == 4 else 1)


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=80), st.sampled_from([4, 6]), st.binary(min_size=0, max_size=60))
def test_whatever_header_and_octets_come(data: bytes, version: int, tail: bytes) -> None:
    pair = pair_of(SHA256, version)
    header = (udp4(b"") if version == 4 else udp6(b""))[: 20 if version == 4 else 40] + tail[: len(tail) // 8 * 8]
    if version == 4:
        header = bytes((0x45 + min(len(tail) // 8 * 2, 10),)) + header[1 : 20 + min(len(tail) // 8 * 8, 40)]
    front = bytes((17, 5 if version == 4 else 6, 0, 0, 0, 0, 0x10, version, 0, 0, 0, 1))
    item = WireDatagrams(pair.path, front + data, 0, 0, 51, header)
    assert received(pair.right, item) == []
    assert not pair.right.drops()[DropReason.INTERNAL]


def test_esp_for_the_spi_of_an_ah_sa() -> None:
    pair = pair_of()
    for size in (8, 40):
        data = bytes.fromhex("0000100400000001") + bytes(size - 8)
        assert received(pair.right, WireDatagrams(pair.path, data, 0, 0, 50)) == []
    assert pair.right.drops()[DropReason.WRONG_PROTOCOL] == 2
    stats = pair.right.query_sa(0x1004, inbound=True)
    assert stats is not None
    assert stats.drops == {DropReason.WRONG_PROTOCOL: 2}


def test_ah_is_never_carried_in_udp() -> None:
    with pytest.raises(ValueError, match="AH cannot be carried in UDP"):
        Pair(SHA256, path(A4, B4), mode=Mode.TRANSPORT)
