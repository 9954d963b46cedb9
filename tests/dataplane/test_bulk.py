"""The short way through a run of segments does what the ordinary way does, packet by packet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.proposals import Suite
from tests.support.packets import (
    CBC_SHA256,
    CHACHA,
    GCM,
    Pair,
    datagrams,
    drain,
    mirrored,
    path,
    sa_params,
    snapshot,
    stands_for,
    tcp4,
    tcp6,
    tun,
    udp4,
)
from tunnel.dataplane.coalesce import Coalescer
from tunnel.dataplane.contract import DropReason, Expire, SaStats, TunOffload, WireDatagrams, WriteTun
from tunnel.dataplane.offload import Frame, segments
from tunnel.dataplane.reference import ReferenceDataPlane
from tunnel.dataplane.sad import InboundSa
from tunnel.dataplane.transforms import Aead

_HERE = mirrored(path())
_NO_MERGING = TunOffload(tso4=False, tso6=False)
_STAMP = b"\x01\x01\x08\x0a\x00\x00\x00\x01\x00\x00\x00\x02"


def _esn(suite: Suite) -> Suite:
    return replace(suite, esn=True)


def _outcome(
    suite: Suite, bursts: list[WireDatagrams], top: int, limits: tuple[int | None, int | None], offload: TunOffload
) -> tuple[list[bytes], dict[DropReason, int], list[Expire], SaStats | None]:
    """Return packets (cut again), drops, Expire punts and statistics of a receiver."""
    plane = ReferenceDataPlane(tun_features=offload)
    plane.load(snapshot(), 0)
    soft, hard = limits
    plane.add_sa(
        sa_params(suite, inbound=True, spi=0x1004, along=_HERE, soft_bytes=soft, hard_bytes=hard, window=64), 0
    )
    if top:
        plane._sad.inbound[0x1004].window.commit(top)
    packets: list[bytes] = []
    expires: list[Expire] = []
    plane.inbound(bursts, 5)
    for output in drain(plane):
        if isinstance(output, WriteTun):
            for frame in output.frames:
                whole = b"".join(bytes(part) for part in frame)
                packets += [bytes(head) + bytes(body) for head, body in segments(Frame(whole))]
        elif isinstance(output, Expire):
            expires.append(output)
    counters = plane.counters()
    assert counters.inbound_in == counters.inbound_out + counters.inbound_drops + counters.control_in
    drops = {reason: count for reason, count in plane.drops().items() if count}
    return packets, drops, expires, plane.query_sa(0x1004, inbound=True)


def _sealed(suite: Suite, top: int, frames: list[bytes]) -> list[bytes]:
    pair = Pair(suite)
    pair.left._sad.outbound[0x1004][0].sequence = top
    return datagrams(pair.send(*frames))


_EVENTS = st.lists(
    st.tuples(st.integers(0, 29), st.sampled_from(["drop", "twice", "swap", "alter", "keepalive"])), max_size=4
)


@settings(max_examples=80, deadline=None)
@given(
    suite=st.sampled_from([GCM, _esn(GCM), CHACHA, CBC_SHA256]),
    size=st.sampled_from([100, 101]),
    events=_EVENTS,
    tos=st.integers(0, 3),
    limits=st.sampled_from([(None, None), (1500, 3000), (None, 2500)]),
    ecn=st.sampled_from([0, 1, 2]),
    near_wrap=st.booleans(),
)
def test_merged_or_not_it_is_the_same(
    suite: Suite,
    size: int,
    events: list[tuple[int, str]],
    tos: int,
    limits: tuple[int | None, int | None],
    ecn: int,
    near_wrap: bool,
) -> None:
    top = 2**32 - 20 if near_wrap else 0
    ip = {"tos": ecn}
    frames = [
        tun(tcp4(bytes(range(256)) * 5, ip=ip, seq=1), 1, size, 1, 20, 16),
        tun(udp4(b"between")),
        tun(tcp4(bytes(range(256)) * 5, ip=ip, seq=1281), 1, size, 1, 20, 16),
    ]
    packets = _sealed(suite, top, frames)
    for at, event in events:
        index = at % len(packets)
        match event:
            case "drop":
                del packets[index]
            case "twice":
                packets.insert(index, packets[index])
            case "swap":
                packets.insert(0, packets.pop(index))
            case "alter":
                packets[index] = packets[index][:-1] + bytes((packets[index][-1] ^ 1,))
            case _:
                packets.insert(index, b"\xff")
    singly = [WireDatagrams(_HERE, packet, 0, tos) for packet in packets]
    merged: list[WireDatagrams] = []
    group: list[bytes] = []
    for packet in [*packets, b""]:
        if group and (not packet or len(packet) > len(group[0]) or len(group[-1]) < len(group[0])):
            merged.append(WireDatagrams(_HERE, b"".join(group), len(group[0]), tos))
            group = []
        group.append(packet)
    expected = _outcome(suite, singly, top, limits, _NO_MERGING)
    found = _outcome(suite, merged, top, limits, TunOffload())

    # With DF the identification may come out stepped from the first; all else is the same, flow by flow.
    def flows(packets: list[bytes]) -> tuple[list[bytes], list[bytes]]:
        stripped = [packet[:4] + packet[6:10] + packet[12:] for packet in packets]
        return [p for p in stripped if p[7] == 6], [p for p in stripped if p[7] != 6]

    assert flows(found[0]) == flows(expected[0])
    assert found[1:] == expected[1:]


@pytest.mark.parametrize("position", [1, 5, 8])
@pytest.mark.parametrize("field", [4, 10, 36, 60])
@pytest.mark.parametrize("family", [4, 6])
def test_a_bad_checksum_within_a_run_is_written_as_it_came(family: int, field: int, position: int) -> None:
    # Identification or flow label, IP checksum or address, TCP checksum, data.
    build = tcp4 if family == 4 else tcp6
    at = field if family == 4 else {4: 3, 10: 23, 36: 56, 60: 80}[field]
    packets = [bytearray(build(bytes((i,)) * 100, seq=1 + i * 100, options=_STAMP)) for i in range(10)]
    packets[position][at] ^= 0x55
    pair = Pair()
    pair.left.outbound([], 0)
    transmits = pair.send(*(tun(bytes(packet)) for packet in packets))
    frames = pair.receive(transmits)
    shape = [stands_for(frame) for frame in frames]
    assert shape == [n for n in (position, 1, 9 - position) if n]
    bad = b"".join(bytes(part) for part in frames[1])[10:]
    assert bad == bytes(packets[position])


def test_a_run_of_the_longest_kind_is_cut_at_64() -> None:
    pair = Pair()
    transmits = pair.send(tun(tcp4(bytes(12800)), 1, 100, 1, 20, 16), tun(tcp4(bytes(100), seq=12801)))
    frames = pair.receive(transmits)
    assert [stands_for(frame) for frame in frames] == [64, 64, 1]


@pytest.mark.parametrize("size", [100, 101])
@pytest.mark.parametrize("build", [tcp4, tcp6])
def test_the_short_way_is_taken(build: Callable[..., bytes], size: int) -> None:
    sa = InboundSa(sa_params(inbound=True))
    packets = [build(bytes((i,)) * size, seq=1 + i * size, options=_STAMP) for i in range(64)]
    trailer = b"\x01\x01\x04"
    coalescer = Coalescer(TunOffload())
    coalescer.add(packets[0], sa, len(packets[0]) + 3, trailer)
    assert coalescer.owner is sa
    assert all(coalescer.extend(sa, packet + trailer) for packet in packets[1:])
    assert not coalescer.extend(sa, build(bytes(size), seq=1 + 64 * size, options=_STAMP) + trailer)  # full
    (frame,) = coalescer.finish()
    whole = b"".join(bytes(part) for part in frame)
    cut = [bytes(head) + bytes(body) for head, body in segments(Frame(whole))]
    assert [packet[12:] for packet in cut] == [packet[12:] for packet in packets]


@pytest.mark.parametrize("bad", [{0}, {1}, {3}, {0, 1}, {0, 1, 2, 3}, {1, 2}, {0, 3}])
def test_every_segment_whose_checksum_does_not_hold_is_written_as_it_came(bad: set[int]) -> None:
    sa = InboundSa(sa_params(inbound=True))
    packets = [tcp4(bytes((i,)) * 100, seq=1 + i * 100) for i in range(4)]
    for index in bad:
        packets[index] = packets[index][:-1] + bytes((packets[index][-1] ^ 1,))
    coalescer = Coalescer(TunOffload())
    coalescer.add(packets[0], sa, len(packets[0]) + 2, b"\x00\x04")
    assert all(coalescer.extend(sa, packet + b"\x00\x04") for packet in packets[1:])
    out: list[bytes] = []
    for frame in coalescer.finish():
        whole = b"".join(bytes(part) for part in frame)
        if stands_for(frame) == 1:
            assert whole[:10] == bytes(10)
            out.append(whole[10:])
        else:
            out += [bytes(head) + bytes(body) for head, body in segments(Frame(whole))]
    # With DF the identification and so the IP checksum may come out stepped from the first.
    assert [packet[12:] for packet in out] == [packet[12:] for packet in packets]
    assert all(packet in out for index, packet in enumerate(packets) if index in bad)


def test_errors_in_both_headers_that_cancel_are_not_laundered() -> None:
    packets = [bytearray(tcp4(bytes((i,)) * 100, seq=1 + i * 100)) for i in range(4)]
    for at, step in ((10, 1), (36, -1)):
        value = int.from_bytes(packets[2][at : at + 2], "big") + step
        packets[2][at : at + 2] = value.to_bytes(2, "big")
    pair = Pair()
    frames = pair.receive(pair.send(*(tun(bytes(packet)) for packet in packets)))
    assert [stands_for(frame) for frame in frames] == [2, 1, 1]


def test_without_esn_a_run_ends_with_the_last_number() -> None:
    plane = ReferenceDataPlane()
    plane.load(snapshot(), 0)
    plane.add_sa(sa_params(inbound=True, spi=0x1004, along=_HERE), 0)
    sa = plane._sad.inbound[0x1004]
    sa.window.commit(2**32 - 4)
    assert isinstance(sa.transform, Aead)
    packets = []
    for index in range(6):  # a peer that lets its counter wrap
        number = 2**32 - 3 + index
        header = (0x1004).to_bytes(4, "big") + (number & 0xFFFF_FFFF).to_bytes(4, "big")
        iv = number.to_bytes(8, "big")
        plain = tcp4(bytes((index,)) * 100, seq=1 + index * 100) + b"\x01\x02\x02\x04"
        packets.append(header + iv + sa.transform.cipher.encrypt(sa.salt + iv, plain, header))
    plane.inbound([WireDatagrams(_HERE, b"".join(packets), len(packets[0]))], 1)
    stats = plane.query_sa(0x1004, inbound=True)
    assert stats is not None
    assert (stats.packets, stats.sequence) == (3, 2**32 - 1)
    assert plane.drops()[DropReason.OUTSIDE_WINDOW] == 3
