"""Segmentation of superpackets, finished checksums, against packets that scapy and RFC 1071's loop build."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6

from tests.support.packets import A4, B4, ip4, ip6, tcp4, tcp6, tun, udp4, udp6
from tunnel.dataplane.checksum import checksum, folds, ones_sum, pseudo_header, transport_valid
from tunnel.dataplane.contract import DropReason
from tunnel.dataplane.flow import FlowError
from tunnel.dataplane.offload import Frame, segments

GSO_TCPV4, GSO_UFO, GSO_TCPV6, GSO_UDP_L4, ECN = 1, 3, 4, 5, 0x80
FIN, SYN, PSH, ACK, CWR = 0x01, 0x02, 0x08, 0x10, 0x80
OPTIONS = b"\x01\x01\x08\x0a\x00\x00\x00\x01\x00\x00\x00\x02"
DATA = bytes(range(256)) * 20


def cut(frame: bytes) -> list[bytes]:
    """Return the packets that a frame from the TUN stands for."""
    return [bytes(header) + bytes(payload) for header, payload in segments(Frame(frame))]


@pytest.mark.parametrize("options", [b"", OPTIONS])
@pytest.mark.parametrize("mss", [1, 7, 536, 1399, 1400])
@pytest.mark.parametrize("family", [4, 6])
def test_tcp_segments(family: int, mss: int, options: bytes) -> None:
    data = DATA[: mss * 3 + mss // 2 + 1]
    start = 0xFFFF_FFFF - mss  # the sequence number wraps on the way
    fields = {"seq": start, "options": options, "flags": FIN | PSH | ACK | CWR, "window": 777}
    if family == 4:
        ip = {"identification": 0xFFFE, "tos": 0x2A, "ttl": 63}
        frame = tun(tcp4(data, ip=ip, **fields), GSO_TCPV4 | ECN, mss, 1, 20, 16)
    else:
        frame = tun(tcp6(data, ip={"flow_label": 0x12345}, **fields), GSO_TCPV6, mss, 1, 40, 16)
    pieces = [data[i : i + mss] for i in range(0, len(data), mss)]
    expected = []
    for index, piece in enumerate(pieces):
        flags = ACK
        if index == 0:
            flags |= CWR
        if index == len(pieces) - 1:
            flags |= FIN | PSH
        values = {**fields, "seq": start + index * mss, "flags": flags}
        if family == 4:
            ip = {"identification": (0xFFFE + index) & 0xFFFF, "tos": 0x2A, "ttl": 63}
            expected.append(tcp4(piece, ip=ip, **values))
        else:
            expected.append(tcp6(piece, ip={"flow_label": 0x12345}, **values))
    assert cut(frame) == expected


def test_scapy_finds_nothing_to_correct() -> None:
    layered = IP(src=A4, dst=B4, id=9, flags="DF") / TCP(sport=1, dport=2, seq=5, ack=6, flags="PA") / DATA[:4000]
    for packet in cut(tun(bytes(layered), GSO_TCPV4, 1000, 1, 20, 16)):
        rebuilt = IP(packet)
        del rebuilt.chksum, rebuilt.len, rebuilt[TCP].chksum
        assert bytes(rebuilt) == packet
    layered6 = IPv6(src="2001:db8::1", dst="2001:db8::2") / TCP(sport=1, dport=2, flags="A") / DATA[:4000]
    for packet in cut(tun(bytes(layered6), GSO_TCPV6, 999, 1, 40, 16)):
        again = IPv6(packet)
        del again.plen, again[TCP].chksum
        assert bytes(again) == packet


@pytest.mark.parametrize("size", [1, 100, 1401])
@pytest.mark.parametrize("family", [4, 6])
def test_udp_segments(family: int, size: int) -> None:
    data = DATA[: size * 3 + 1]
    pieces = [data[i : i + size] for i in range(0, len(data), size)]
    if family == 4:
        frame = tun(udp4(data, identification=5), GSO_UDP_L4, size, 1, 20, 6)
        expected = [udp4(piece, identification=5 + index) for index, piece in enumerate(pieces)]
    else:
        frame = tun(udp6(data), GSO_UDP_L4, size, 1, 40, 6)
        expected = [udp6(piece) for piece in pieces]
    assert cut(frame) == expected


def test_ip_options_and_extension_headers_stay_in_every_segment() -> None:
    options = b"\x94\x04\x00\x00"  # router alert
    addresses = ip4(6, b"")[12:20]
    from tests.support.packets import tcp_segment

    packet = ip4(6, tcp_segment(DATA[:300], addresses, seq=1), options=options)
    assert cut(tun(packet, GSO_TCPV4, 200, 1, 24, 16)) == [
        ip4(6, tcp_segment(DATA[:200], addresses, seq=1), options=options),
        ip4(6, tcp_segment(DATA[200:300], addresses, seq=201), options=options, identification=8),
    ]
    hop_by_hop = b"\x06\x00\x01\x04\x00\x00\x00\x00"
    addresses = ip6(6, b"")[8:40]
    packet = ip6(0, hop_by_hop + tcp_segment(DATA[:300], addresses, seq=1))
    assert cut(tun(packet, GSO_TCPV6, 200, 1, 48, 16)) == [
        ip6(0, hop_by_hop + tcp_segment(DATA[:200], addresses, seq=1)),
        ip6(0, hop_by_hop + tcp_segment(DATA[200:300], addresses, seq=201)),
    ]


@pytest.mark.parametrize(
    ("whole", "start", "offset"), [(udp4(b"abc"), 20, 6), (tcp4(b"abc"), 20, 16), (udp6(b"a"), 40, 6)]
)
def test_an_unfinished_checksum_is_finished(whole: bytes, start: int, offset: int) -> None:
    # The kernel leaves the pseudo-header's sum in the field, and what it left elsewhere is not ours to change.
    addresses = whole[12:20] if start == 20 else whole[8:40]
    partial = pseudo_header(addresses, 17 if offset == 6 else 6, len(whole) - start) % 65535
    at = start + offset
    unfinished = whole[:at] + partial.to_bytes(2, "big") + whole[at + 2 :]
    assert cut(tun(unfinished, flags=1, start=start, offset=offset)) == [whole]
    assert cut(tun(unfinished)) == [unfinished]


def test_a_udp_checksum_that_comes_out_as_zero_is_sent_as_ones() -> None:
    for value in range(65536):
        whole = udp4(value.to_bytes(2, "big"))
        if whole[26:28] == b"\xff\xff":
            break
    else:
        pytest.fail("no such datagram")
    partial = pseudo_header(whole[12:20], 17, len(whole) - 20) % 65535
    unfinished = whole[:26] + partial.to_bytes(2, "big") + whole[28:]
    assert cut(tun(unfinished, flags=1, start=20, offset=6)) == [whole]


def test_a_superpacket_of_one_segment_is_that_packet() -> None:
    whole = tcp4(b"abc", flags=PSH | ACK)
    frame = Frame(tun(whole, GSO_TCPV4, 1400, 0, 20, 16))
    assert (frame.count, frame.largest) == (1, len(whole))
    assert cut(tun(whole, GSO_TCPV4, 1400, 0, 20, 16)) == [whole]


def test_the_size_of_a_superpacket_is_that_of_its_segments() -> None:
    frame = Frame(tun(tcp4(DATA[:3001]), GSO_TCPV4, 1000, 1, 20, 16))
    assert (frame.count, frame.largest, frame.length) == (4, 1040, 3041)


def test_what_lies_behind_the_packet_is_not_sent() -> None:
    whole = udp4(b"abc")
    assert cut(tun(whole + b"behind")) == [whole]
    assert cut(tun(tcp4(DATA[:500]) + b"behind", GSO_TCPV4, 300, 1, 20, 16))[-1].endswith(DATA[300:500])


MALFORMED = {
    "empty": b"",
    "header only": tun(b""),
    "nineteen octets": tun(udp4(b"")[:19]),
    "version 5": tun(b"\x55" + udp4(b"")[1:]),
    "version 0": tun(bytes(40)),
    "header length 4": tun(b"\x44" + udp4(b"")[1:]),
    "longer than it is": tun(udp4(b"abcdef")[:-1]),
    "options beyond the end": tun(b"\x4f" + udp4(b"")[1:]),
    "IPv6 cut": tun(udp6(b"")[:39]),
    "IPv6 longer than it is": tun(udp6(b"abc")[:-1]),
    "UDP without ports": tun(ip4(17, b"abc")),
    "checksum outside": tun(udp4(b"abc"), flags=1, start=60, offset=6),
    "checksum astride the end": tun(udp4(b""), flags=1, start=21, offset=6),
    "checksum inside the IP header": tun(udp4(b"abc"), flags=1, start=0, offset=6),
    "fragment that ends beyond 65535": tun(ip4(99, bytes(64), flags=0x1FFF)),
    "IPv6 fragment that ends beyond 65535": tun(ip6(44, b"\x63\0\xff\xf8\0\0\0\1" + bytes(64))),
    "TSO of UDP": tun(udp4(DATA[:500]), GSO_TCPV4, 100, 1, 20, 16),
    "TSO4 of IPv6": tun(tcp6(DATA[:500]), GSO_TCPV4, 100, 1, 40, 16),
    "TSO6 of IPv4": tun(tcp4(DATA[:500]), GSO_TCPV6, 100, 1, 20, 16),
    "USO of TCP": tun(tcp4(DATA[:500]), GSO_UDP_L4, 100, 1, 20, 6),
    "no segment size": tun(tcp4(DATA[:500]), GSO_TCPV4, 0, 1, 20, 16),
    "TCP header beyond the end": tun(ip4(6, b"\0" * 12 + b"\xf0" + b"\0" * 12), GSO_TCPV4, 4, 1, 20, 16),
    "TCP header too small": tun(ip4(6, b"\0" * 12 + b"\x40" + b"\0" * 12), GSO_TCPV4, 4, 1, 20, 16),
    "TCP cut": tun(ip4(6, b"\0" * 10), GSO_TCPV4, 4, 1, 20, 16),
    "TSO of a fragment": tun(tcp4(DATA[:500], ip={"flags": 0x2000}), GSO_TCPV4, 100, 1, 20, 16),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed(name: str) -> None:
    with pytest.raises(FlowError) as caught:
        cut(MALFORMED[name])
    assert caught.value.reason is DropReason.MALFORMED


@pytest.mark.parametrize("gso_type", [2, GSO_UFO, 6, 7, 0x7F])
def test_unknown_offloads_are_named(gso_type: int) -> None:
    with pytest.raises(FlowError) as caught:
        cut(tun(udp4(DATA[:500]), gso_type, 100, 1, 20, 6))
    assert caught.value.reason is DropReason.UNSUPPORTED


def _slow(data: bytes) -> int:
    """RFC 1071 section 4.1."""
    total = 0
    for index in range(0, len(data), 2):
        total += (data[index] << 8) + (data[index + 1] if index + 1 < len(data) else 0)
    return total % 65535


@given(st.one_of(st.binary(max_size=300), st.integers(0, 70000).map(lambda n: b"\xff" * n)))
def test_sums(data: bytes) -> None:
    assert ones_sum(data) == _slow(data)
    assert (ones_sum(data) + checksum(data)) % 65535 == 0
    assert ones_sum(memoryview(data)) == ones_sum(bytearray(data))


@given(st.integers(0, 70000))
def test_folds_end(size: int) -> None:
    value = (1 << size * 8) - 1
    for bits, mask in folds(size):
        value = (value >> bits) + (value & mask)
    assert value.bit_length() <= 130 * 8


def test_transport_valid() -> None:
    packet = tcp4(b"abc")
    assert transport_valid(packet[12:20], 6, (packet[20:40], packet[40:]))
    assert not transport_valid(packet[12:20], 6, (packet[20:40], b"abd"))
