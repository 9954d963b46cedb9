"""What is merged on the way in, in which order it leaves, and that cutting it again gives the same packets."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.packets import (
    Pair,
    ip4,
    join,
    packet_of,
    sa_params,
    stands_for,
    tcp4,
    tcp6,
    tcp_segment,
    tun,
    udp4,
    udp6,
)
from tunnel.dataplane.coalesce import Coalescer
from tunnel.dataplane.contract import TunOffload
from tunnel.dataplane.offload import Frame, segments
from tunnel.dataplane.sad import InboundSa

FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = (1 << bit for bit in (0, 1, 2, 3, 4, 5, 6, 7))
STAMP = b"\x01\x01\x08\x0a\x00\x00\x00\x01\x00\x00\x00\x02"
OTHER_STAMP = STAMP[:-1] + b"\x03"
ALL = TunOffload(uso4=True, uso6=True)


def merge(*packets: bytes, offload: TunOffload = ALL) -> list[list[bytes]]:
    """Return, for each frame written, the packets that the kernel will cut it into."""
    coalescer = Coalescer(offload)
    for packet in packets:
        coalescer.add(packet)
    return [recut(b"".join(bytes(part) for part in frame)) for frame in coalescer.finish()]


def recut(frame: bytes) -> list[bytes]:
    """Segment a frame as the kernel would."""
    return [bytes(header) + bytes(payload) for header, payload in segments(Frame(frame))]


def segment(index: int, size: int = 100, **fields: object) -> bytes:
    """Return the TCP segment number *index* of a stream of 100-octet segments."""
    fields.setdefault("seq", 1000 + index * 100)
    ip = {"identification": 7 + index, **fields.pop("ip", {})}  # type: ignore[dict-item]
    return tcp4(bytes((index + k) & 0xFF for k in range(size)), ip=ip, **fields)


def owner(spi: int) -> InboundSa:
    """Return an SA that packets may come over."""
    return InboundSa(sa_params(inbound=True, spi=spi))


def shape(frames: list[list[bytes]]) -> list[int]:
    """Return how many packets each frame holds."""
    return [len(frame) for frame in frames]


def test_consecutive_segments_are_one_write() -> None:
    packets = [segment(i) for i in range(5)]
    assert merge(*packets) == [packets]


def test_the_virtio_header() -> None:
    coalescer = Coalescer(ALL)
    for i in range(3):
        coalescer.add(segment(i, options=STAMP))
    (frame,) = coalescer.finish()
    assert stands_for(frame) == 3
    vnet, packet = join(frame)
    assert vnet == (1, 1, 52, 100, 20, 16)
    assert int.from_bytes(packet[2:4], "big") == len(packet) == 52 + 300


def test_the_last_may_be_shorter_and_ends_the_run() -> None:
    packets = [segment(0), segment(1, size=60), segment(2, seq=1160)]
    assert merge(*packets) == [packets[:2], packets[2:]]


def test_a_longer_one_starts_anew() -> None:
    packets = [segment(0), segment(1, size=101)]
    assert shape(merge(*packets)) == [1, 1]


def test_push_ends_the_run_and_is_kept() -> None:
    packets = [segment(0), segment(1, flags=ACK | PSH), segment(2)]
    assert merge(*packets) == [packets[:2], packets[2:]]
    assert merge(segment(0, flags=ACK | PSH), segment(1)) == [[segment(0, flags=ACK | PSH)], [segment(1)]]


DIFFERENT: dict[str, Callable[[], bytes]] = {
    "gap": lambda: segment(1, seq=1101),
    "overlap": lambda: segment(1, seq=1099),
    "acknowledgment": lambda: segment(1, ack=10),
    "window": lambda: segment(1, window=501),
    "urgent pointer": lambda: segment(1, urgent=1),
    "options": lambda: segment(1, options=STAMP),
    "source port": lambda: segment(1, sport=1),
    "destination port": lambda: segment(1, dport=1),
    "source": lambda: segment(1, ip={"source": "10.1.0.6"}),
    "destination": lambda: segment(1, ip={"destination": "10.2.0.8"}),
    "TTL": lambda: segment(1, ip={"ttl": 63}),
    "DSCP": lambda: segment(1, ip={"tos": 0x10}),
    "ECN": lambda: segment(1, ip={"tos": 3}),
    "no DF": lambda: segment(1, ip={"flags": 0}),
    "fragment": lambda: segment(1, ip={"flags": 0x2000}),
    "later fragment": lambda: segment(1, ip={"flags": 1}),
    "IP options": lambda: ip4(6, segment(1)[20:], options=b"\x94\x04\x00\x00"),
    "no ACK": lambda: segment(1, flags=0),
    "FIN": lambda: segment(1, flags=ACK | FIN),
    "SYN": lambda: segment(1, flags=ACK | SYN),
    "RST": lambda: segment(1, flags=ACK | RST),
    "URG": lambda: segment(1, flags=ACK | URG),
    "ECE": lambda: segment(1, flags=ACK | ECE),
    "CWR": lambda: segment(1, flags=ACK | CWR),
    "no data": lambda: segment(1, size=0),
    "bad TCP checksum": lambda: segment(1)[:-1] + b"\xaa",
    "bad IP checksum": lambda: segment(1)[:10] + b"\x12\x34" + segment(1)[12:],
    "UDP": lambda: udp4(b"x" * 100),
    "short TCP header": lambda: ip4(6, b"\0" * 10),
    "impossible data offset": lambda: segment(1)[:32] + b"\x40" + segment(1)[33:],
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_differs_is_not_merged(name: str) -> None:
    packets = [segment(0), DIFFERENT[name]()]
    assert [packet for frame in merge(*packets) for packet in frame] == packets
    assert shape(merge(*packets)) == [1, 1]


def test_a_bad_first_checksum_is_not_laundered() -> None:
    bad = segment(0)[:-1] + b"\xaa"
    assert merge(bad, segment(1), segment(2)) == [[bad], [segment(1), segment(2)]]


def test_two_errors_that_cancel_in_the_sum_are_not_laundered() -> None:
    one, two = bytearray(segment(0)), bytearray(segment(1))
    one[-1] += 1
    two[-1] -= 1
    assert merge(bytes(one), bytes(two)) == [[bytes(one)], [bytes(two)]]


def test_options_that_agree_are_merged() -> None:
    packets = [segment(i, options=STAMP) for i in range(3)]
    assert merge(*packets) == [packets]
    assert shape(merge(segment(0, options=STAMP), segment(1, options=OTHER_STAMP))) == [1, 1]


def test_without_df_the_identification_must_step() -> None:
    packets = [segment(i, ip={"flags": 0}) for i in range(3)]
    assert merge(*packets) == [packets]
    stuck = [segment(i, ip={"flags": 0, "identification": 7}) for i in range(2)]
    assert merge(*stuck) == [[stuck[0]], [stuck[1]]]


def test_with_df_the_identification_is_of_no_consequence() -> None:
    assert shape(merge(*(segment(i, ip={"identification": 0}) for i in range(3)))) == [3]


def test_order_within_a_flow_is_kept_around_what_cannot_be_merged() -> None:
    pure_ack = segment(2, size=0)
    packets = [segment(0), segment(1), pure_ack, segment(2), segment(3)]
    assert merge(*packets) == [packets[:2], [pure_ack], packets[3:]]
    options = ip4(6, segment(2)[20:], options=b"\x94\x04\x00\x00")
    packets = [segment(0), segment(1), options, segment(3, seq=1200)]
    assert shape(merge(*packets)) == [2, 1, 1]


def test_interleaved_flows_are_merged_each() -> None:
    left = [segment(i) for i in range(4)]
    right = [segment(i, sport=5) for i in range(4)]
    mixed = [packet for pair in zip(left, right, strict=True) for packet in pair]
    assert merge(*mixed) == [left, right]


def test_at_most_64_segments_and_65535_octets() -> None:
    assert shape(merge(*(segment(i) for i in range(130)))) == [64, 64, 2]
    big = [tcp4(bytes(1400), seq=1 + i * 1400) for i in range(60)]
    assert shape(merge(*big)) == [46, 14]


def test_the_sequence_number_wraps() -> None:
    packets = [segment(i, seq=(2**32 - 150 + i * 100) % 2**32) for i in range(4)]
    assert merge(*packets) == [packets]


def test_ipv6() -> None:
    packets = [tcp6(bytes(99), seq=1 + i * 99, ip={"flow_label": 5}) for i in range(4)]
    assert merge(*packets) == [packets]
    assert shape(merge(packets[0], tcp6(bytes(99), seq=100, ip={"flow_label": 6}))) == [1, 1]
    assert shape(merge(packets[0], tcp6(bytes(99), seq=100, ip={"flow_label": 5, "hop_limit": 3}))) == [1, 1]
    assert shape(merge(packets[0], tcp6(bytes(99), seq=100, ip={"flow_label": 5, "traffic_class": 1}))) == [1, 1]


def test_udp() -> None:
    packets = [udp4(bytes((i,)) * 100, identification=7 + i) for i in range(4)] + [udp4(b"end", identification=11)]
    assert merge(*packets, udp4(b"new", identification=12)) == [packets, [udp4(b"new", identification=12)]]
    packets = [udp6(bytes((i,)) * 100) for i in range(4)]
    assert merge(*packets) == [packets]
    assert shape(merge(*packets, offload=TunOffload())) == [1, 1, 1, 1]


def test_udp_that_cannot_be_merged() -> None:
    good = udp4(b"x" * 100)
    no_checksum = good[:26] + b"\0\0" + good[28:]
    assert merge(no_checksum, no_checksum) == [[no_checksum], [no_checksum]]
    bad = good[:-1] + b"y"
    assert merge(good, bad) == [[good], [bad]]
    padded = ip4(17, good[20:] + b"behind")
    assert merge(padded, padded) == [[padded], [padded]]
    assert merge(udp4(b""), udp4(b"")) == [[udp4(b"")], [udp4(b"")]]


@pytest.mark.parametrize(
    ("offload", "packets"),
    [
        (TunOffload(tso4=False), [segment(0), segment(1)]),
        (TunOffload(tso6=False), [tcp6(b"a", seq=1), tcp6(b"b", seq=2)]),
        (TunOffload(uso4=False, uso6=True), [udp4(b"a"), udp4(b"b")]),
        (TunOffload(uso4=True, uso6=False), [udp6(b"a"), udp6(b"b")]),
    ],
)
def test_each_offload_can_be_switched_off(offload: TunOffload, packets: list[bytes]) -> None:
    assert shape(merge(*packets, offload=offload)) == [1, 1]


@pytest.mark.parametrize("family", [4, 6])
def test_a_superpacket_crosses_the_tunnel_as_one(family: int) -> None:
    data = bytes(range(256)) * 200
    if family == 4:
        frame = tun(tcp4(data, seq=9, options=STAMP, flags=ACK | PSH), 1, 1386, 1, 20, 16)
    else:
        frame = tun(tcp6(data, seq=9, options=STAMP, flags=ACK | PSH), 4, 1366, 1, 40, 16)
    pair = Pair()
    transmits = pair.send(frame)
    assert [len(transmit.buffers) for transmit in transmits] == [37 if family == 4 else 38]
    (written,) = pair.receive(transmits)
    assert recut(b"".join(bytes(part) for part in written)) == recut(frame)
    assert packet_of(written)[-len(data) :] == data


def test_a_run_spans_the_datagrams_of_one_call() -> None:
    pair = Pair()
    packets = [segment(i) for i in range(6)]
    transmits = [transmit for packet in packets for transmit in pair.send(tun(packet))]
    assert len(transmits) == 6
    (frame,) = pair.receive(transmits)
    assert recut(b"".join(bytes(part) for part in frame)) == packets


def test_segments_of_two_sas_do_not_share_the_short_cut() -> None:
    # What was checked for one SA says nothing about another: each flow is compared with its own SA's selectors.
    coalescer = Coalescer(ALL)
    packet, following = segment(0), segment(1)
    first, second = owner(0x1001), owner(0x1002)
    coalescer.add(packet, first, len(packet) + 2, b"\x00\x04")
    assert not coalescer.extend(second, following + b"\x00\x04")
    assert not coalescer.extend(first, following + b"\x00\x29")
    assert not coalescer.extend(first, following + b"\x01\x00\x04")
    assert coalescer.extend(first, following + b"\x00\x04")
    assert not coalescer.extend(first, segment(2, flags=ACK | PSH) + b"\x00\x04")
    assert not coalescer.extend(first, segment(3) + b"\x00\x04")


@st.composite
def _streams(draw: st.DrawFn) -> list[bytes]:
    """Segments of two flows with all kinds of neighbours."""
    position = {1: 1, 2: 1}
    packets: list[bytes] = []
    addresses = ip4(6, b"")[12:20]
    for number in range(draw(st.integers(1, 25))):
        port = draw(st.sampled_from([1, 1, 1, 2]))
        size = draw(st.sampled_from([100, 100, 100, 100, 60, 0, 101]))
        flags = draw(st.sampled_from([ACK] * 6 + [ACK | PSH, ACK | FIN]))
        body = bytes((number,)) * size
        options = draw(st.sampled_from([b""] * 5 + [STAMP]))
        whole = tcp_segment(body, addresses, sport=port, seq=position[port], flags=flags, options=options)
        if draw(st.integers(0, 9)) == 0:
            whole = whole[:-1] + bytes(((whole[-1] + 1) & 0xFF,))
        position[port] += size + draw(st.sampled_from([0] * 9 + [1]))
        packets.append(ip4(6, whole, identification=number))
    return packets


@settings(max_examples=200)
@given(_streams(), st.booleans())
def test_cutting_again_gives_every_flow_its_packets_in_order(packets: list[bytes], short_cut: bool) -> None:
    coalescer = Coalescer(ALL)
    sa = owner(0x1001)
    for packet in packets:
        if not short_cut:
            coalescer.add(packet)
        elif not coalescer.extend(sa, packet + b"\x00\x04"):
            coalescer.add(packet, sa, len(packet) + 2, b"\x00\x04")
    out = [packet for frame in coalescer.finish() for packet in recut(b"".join(bytes(part) for part in frame))]

    def of(port: int, stream: list[bytes]) -> list[bytes]:
        # Identification steps from the first where DF is set, so that it alone may differ.
        return [p[:4] + p[6:10] + p[12:] for p in stream if p[20:22] == port.to_bytes(2, "big")]

    assert of(1, out) == of(1, packets)
    assert of(2, out) == of(2, packets)
