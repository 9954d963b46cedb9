"""The quick way of single packets is the ordinary way, quicker: same octets, same counters, same limits."""

from __future__ import annotations

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
    drain,
    ip4,
    tcp4,
    tcp6,
    tun,
    udp4,
    udp6,
)
from tunnel.dataplane.contract import DataPlaneOutput, TunFrame
from tunnel.dataplane.offload import NEEDS_CSUM

SUITES = [GCM, CHACHA, replace(GCM, esn=True), CBC_SHA256]


def both_ways(
    suite: Suite, bursts: list[list[bytes]], **sa: object
) -> tuple[list[DataPlaneOutput], list[DataPlaneOutput]]:
    """Return what is put out for *bursts* by the quick way, and for the same in a type that it leaves alone."""
    results = []
    planes = []
    for kind in (bytes, bytearray):
        pair = Pair(suite, None, **sa)
        outputs: list[DataPlaneOutput] = []
        for number, burst in enumerate(bursts):
            pair.left.outbound([TunFrame(kind(frame)) for frame in burst], number)
            outputs += drain(pair.left)
        planes.append(pair.left)
        results.append(outputs)
    quick, ordinary = planes
    assert quick.counters() == ordinary.counters()
    assert quick.drops() == ordinary.drops()
    for spi in (0x1004, 0x1006):
        assert quick.query_sa(spi, inbound=False) == ordinary.query_sa(spi, inbound=False)
    return results[0], results[1]


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
    limits = {"soft_bytes": octets, "hard_bytes": octets * 2} if limited else {}
    quick, ordinary = both_ways(suite, bursts, **limits)
    assert quick == ordinary


def test_sequence_numbers_end_where_they_end() -> None:
    for left in (0, 1, 2, 5):
        outputs = []
        for kind in (bytes, bytearray):
            pair = Pair(GCM)
            sa = pair.left._sad.outbound[0x1004][0]
            pair.send(tun(udp4(b"first")))
            sa.sequence = sa.sequence_limit - left
            pair.left.outbound([TunFrame(kind(tun(udp4(b"x")))) for _ in range(4)], 1)
            outputs.append((drain(pair.left), pair.left.drops()))
        assert outputs[0] == outputs[1]
