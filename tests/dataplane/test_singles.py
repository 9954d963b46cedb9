"""The quick way of single packets is the ordinary way, quicker: same octets, same counters, same limits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import groupby
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6
from scapy.layers.ipsec import ESP

from policy.path import Path
from policy.proposals import Suite
from policy.spd import Mode
from tests.support.packets import (
    CBC_SHA256,
    CHACHA,
    GCM,
    Pair,
    drain,
    ip4,
    packet_of,
    path,
    tcp4,
    tcp6,
    tun,
    udp4,
    udp6,
)
from tunnel.dataplane.contract import DataPlaneOutput, InternalError, Transmit, TunFrame
from tunnel.dataplane.offload import NEEDS_CSUM
from tunnel.dataplane.runs import Runs
from tunnel.dataplane.singles import Singles

SUITES = [GCM, CHACHA, replace(GCM, esn=True), CBC_SHA256]


def in_runs(frames: list[bytes]) -> list[TunFrame]:
    """Return frames as the TUN gives them: those of one size that follow each other are one."""
    found: list[TunFrame] = []
    for size, group in groupby(frames, len):
        run = list(group)
        found += [TunFrame(b"".join(run), size)] if size and len(run) > 1 else map(TunFrame, run)
    return found


def both_ways(
    suite: Suite, bursts: list[list[bytes]], along: Path | None = None, **sa: Any
) -> tuple[list[DataPlaneOutput], list[DataPlaneOutput]]:
    """Return what is put out for *bursts* by the quick ways, and for the same in a type that they leave alone."""
    ways: tuple[Callable[[list[bytes]], list[TunFrame]], ...] = (
        lambda burst: [TunFrame(bytearray(frame)) for frame in burst],
        lambda burst: [TunFrame(frame) for frame in burst],
        in_runs,
    )
    results = []
    planes = []
    for way in ways:
        pair = Pair(suite, along, **sa)
        outputs: list[DataPlaneOutput] = []
        for number, burst in enumerate(bursts):
            pair.left.outbound(way(burst), number)
            outputs += drain(pair.left)
        planes.append(pair.left)
        results.append(outputs)
    ordinary, *quick = planes
    for plane in quick:
        assert plane.counters() == ordinary.counters()
        assert plane.drops() == ordinary.drops()
        for spi in (0x1004, 0x1006):
            assert plane.query_sa(spi, inbound=False) == ordinary.query_sa(spi, inbound=False)
    assert results[1] == results[2]
    return results[2], results[0]


@pytest.mark.parametrize("suite", SUITES)
def test_the_same_octets(suite: Suite) -> None:
    frames = [
        *(tun(udp4(bytes(size))) for size in (0, 1, 2, 3, 4, 36, 36, 36, 1300)),
        tun(udp6(b"x" * 40)), tun(udp6(b"y" * 40)), tun(tcp4(b"", flags=0x10)), tun(tcp4(b"data")),
        tun(tcp4(b"", flags=2)), tun(tcp6(b"ack")), tun(ip4(1, b"\x08\0\0\0\0\0\0\0")),
    ]  # fmt: skip
    quick, ordinary = both_ways(suite, [frames, frames, frames[::-1]])
    assert quick == ordinary


def _checksum_left(packet: bytes, start: int, offset: int, change: int = 0) -> bytes:
    return tun(packet, flags=NEEDS_CSUM, start=start + change, offset=offset)


FRAMES = st.one_of(
    st.builds(lambda data, tos: tun(udp4(data, tos=tos)), st.binary(max_size=200), st.sampled_from([0, 0, 8, 1])),
    st.builds(lambda data: tun(udp6(data)), st.binary(max_size=200)),
    st.builds(
        lambda data, flags: tun(tcp4(data, flags=flags)),
        st.binary(max_size=90), st.sampled_from([0x10, 2, 1, 0x18, 4, 0x12]),
    ),
    st.builds(
        lambda data, change, odd: _checksum_left(udp4(data), 20, 6 + odd, change),
        st.binary(max_size=90), st.sampled_from([0, 0, 0, 1]), st.sampled_from([0, 0, 0, 2]),
    ),
    st.builds(lambda data: _checksum_left(tcp6(data), 40, 16), st.binary(max_size=90)),
    st.builds(lambda data, cut: tun(udp4(data))[:-cut], st.binary(max_size=50), st.integers(1, 60)),
    st.builds(lambda data, more: tun(udp4(data)) + more, st.binary(max_size=50), st.binary(max_size=9)),
    st.builds(lambda data, ttl: tun(udp4(data, ttl=ttl)), st.binary(max_size=50), st.integers(0, 1)),
    st.builds(lambda data: tun(udp4(data, flags=1)), st.binary(min_size=8, max_size=48)),
    st.builds(lambda at, bit: _flipped(tun(udp4(b"flip me")), at, bit), st.integers(0, 44), st.integers(0, 7)),
    st.binary(max_size=80),
)  # fmt: skip


def _flipped(frame: bytes, at: int, bit: int) -> bytes:
    changed = bytearray(frame)
    changed[at] ^= 1 << bit
    return bytes(changed)


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from(SUITES), st.lists(st.lists(FRAMES, max_size=12), min_size=1, max_size=3),
    st.integers(100, 3000), st.booleans(),
)  # fmt: skip
def test_whatever_comes(suite: Suite, bursts: list[list[bytes]], octets: int, limited: bool) -> None:
    limits: dict[str, Any] = {"soft_bytes": octets, "hard_bytes": octets * 2} if limited else {}
    quick, ordinary = both_ways(suite, bursts, **limits)
    assert quick == ordinary


@settings(deadline=None, max_examples=200)
@given(
    st.sampled_from(SUITES),
    st.lists(st.tuples(FRAMES, st.integers(1, 40)), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(0, 99), st.integers(0, 60), st.integers(0, 7)), max_size=3),
    st.integers(100, 9000), st.booleans(),
)  # fmt: skip
def test_whatever_comes_in_runs(
    suite: Suite, kinds: list[tuple[bytes, int]], flips: list[tuple[int, int, int]], octets: int, limited: bool
) -> None:
    """Runs of equal packets, a few of which differ in one bit: a TOS, a port, a flag, a hop limit."""
    limits: dict[str, Any] = {"soft_bytes": octets, "hard_bytes": octets * 2} if limited else {}
    frames = [frame for frame, count in kinds for _ in range(count)]
    for number, at, bit in flips:
        chosen = number % len(frames)
        if at < len(frames[chosen]):
            frames[chosen] = _flipped(frames[chosen], at, bit)
    quick, ordinary = both_ways(suite, [frames[:1], frames, frames], **limits)
    assert quick == ordinary


@pytest.mark.parametrize("version", [4, 6])
def test_a_run_of_several_flows_is_sealed_together(version: int) -> None:
    make = udp4 if version == 4 else udp6
    frames = [tun(make(bytes([number]) * 20, sport=4000 + number % 3)) for number in range(30)]
    quick, ordinary = both_ways(GCM, [frames[:3], frames])
    assert quick == ordinary
    assert [len(output.buffers) for output in quick if isinstance(output, Transmit)] == [3, 30]


@settings(deadline=None, max_examples=200)
@given(
    st.sampled_from(SUITES),
    st.lists(st.tuples(FRAMES, st.integers(1, 40)), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(0, 99), st.integers(0, 60), st.integers(0, 7)), max_size=3),
    st.sampled_from([0, 4500]),
)  # fmt: skip
def test_runs_in_transport_mode(
    suite: Suite, kinds: list[tuple[bytes, int]], flips: list[tuple[int, int, int]], port: int
) -> None:
    frames = [frame for frame, count in kinds for _ in range(count)]
    for number, at, bit in flips:
        chosen = number % len(frames)
        if at < len(frames[chosen]):
            frames[chosen] = _flipped(frames[chosen], at, bit)
    along = path(port=port)
    quick, ordinary = both_ways(suite, [frames[:1], frames, frames], along, mode=Mode.TRANSPORT)
    assert quick == ordinary


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("port", [0, 4500])
def test_a_run_in_transport_mode_arrives(version: int, port: int) -> None:
    make = udp4 if version == 4 else udp6
    ends = ("192.0.2.1", "192.0.2.2") if version == 4 else ("2001:db8::1", "2001:db8::2")
    pair = Pair(GCM, path(*ends, port), mode=Mode.TRANSPORT)
    packets = [make(bytes([number]) * 20, sport=4000 + number % 3) for number in range(30)]
    pair.left.outbound(in_runs([tun(packet) for packet in packets[:3]]), 0)
    drain(pair.left)
    pair.left.outbound(in_runs([tun(packet) for packet in packets]), 0)
    sent = [output for output in drain(pair.left) if isinstance(output, Transmit)]
    assert [len(output.buffers) for output in sent] == [30]
    if port == 0:
        scapy = IP if version == 4 else IPv6
        for buffer in sent[0].buffers:
            outer = scapy(bytes(buffer))
            assert outer.haslayer(ESP)
            rebuilt = outer.copy()
            if version == 4:
                assert outer.id
                del rebuilt.chksum, rebuilt.len
            else:
                del rebuilt.plen
            assert bytes(rebuilt) == bytes(buffer)
    frames = pair.receive(sent)
    front = 20 if version == 4 else 40  # in UDP the IP header is another one
    assert [packet_of(frame)[front:] for frame in frames] == [packet[front:] for packet in packets]


def test_a_run_is_sealed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the tests above would compare the ordinary way with itself."""
    pair = Pair(GCM)
    frames = [tun(udp4(bytes(20))) for _ in range(30)]
    pair.left.outbound(in_runs(frames[:1]), 0)
    monkeypatch.setattr(Singles, "seal", None)
    pair.left.outbound(in_runs(frames), 0)
    assert pair.left.counters().outbound_out == 31


def test_a_bug_in_the_quick_way_of_runs_costs_nothing_but_time(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair(GCM)
    frames = [tun(udp4(bytes(20))) for _ in range(30)]
    pair.left.outbound(in_runs(frames[:1]), 0)
    drain(pair.left)
    monkeypatch.setattr(Runs, "seal", None)
    pair.left.outbound(in_runs(frames), 0)
    outputs = drain(pair.left)
    assert sum(isinstance(output, InternalError) for output in outputs) == 1
    assert pair.left.counters().outbound_out == 31


def test_sequence_numbers_end_where_they_end() -> None:
    for left in (0, 1, 2, 5, 19, 20, 21):
        outputs = []
        for kind in (bytes, bytearray, None):
            pair = Pair(GCM)
            sa = pair.left._sad.outbound[0x1004][0]
            pair.send(tun(udp4(b"first")))
            sa.sequence = sa.sequence_limit - left
            packets = [tun(udp4(b"x")) for _ in range(20)]
            pair.left.outbound(in_runs(packets) if kind is None else [TunFrame(kind(one)) for one in packets], 1)
            outputs.append((drain(pair.left), pair.left.drops()))
        assert outputs[0] == outputs[1] == outputs[2]
