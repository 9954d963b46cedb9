"""Invariant: whatever octets come from TUN or wire, the data plane raises nothing and finds no bug of its own.

It accounts for every packet exactly once: sent, held, delivered, control, or dropped under one name.
"""

from __future__ import annotations

from functools import lru_cache

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from policy.path import Path
from policy.proposals import Suite
from policy.selectors import PortRange
from policy.spd import Disposition
from tests.support.packets import (
    ANY4,
    ANY6,
    CBC_SHA256,
    CHACHA,
    GCM,
    NULL_SHA256,
    datagrams,
    drain,
    entry,
    ip4,
    ip6,
    mirrored,
    path,
    sa_params,
    selector_pair,
    snapshot,
    tcp4,
    tcp6,
    tun,
    udp4,
    udp6,
)
from tunnel.dataplane.contract import InternalError, Transmit, TunFrame, TunOffload, WireDatagrams
from tunnel.dataplane.esp import trailers_of
from tunnel.dataplane.fragments import LIFETIME
from tunnel.dataplane.hold import HoldLimits
from tunnel.dataplane.reference import ReferenceDataPlane
from tunnel.dataplane.transforms import Aead

_SUITES = (GCM, CHACHA, CBC_SHA256, NULL_SHA256)
_STAMP = b"\x01\x01\x08\x0a\x00\x00\x00\x01\x00\x00\x00\x02"
_HERE = mirrored(path())
_RAW = mirrored(path(port=0))

SEEDS = [
    tun(udp4(b"data")),
    tun(udp6(b"data"), flags=1, start=40, offset=6),
    tun(tcp4(bytes(5000), options=_STAMP), 1, 1300, 1, 20, 16),
    tun(tcp6(bytes(5000), options=_STAMP), 4, 1300, 1, 40, 16),
    tun(udp4(bytes(5000)), 5, 1000, 1, 20, 6),
    tun(udp6(bytes(5000)), 5, 1000, 1, 40, 6),
    tun(ip4(1, b"\x08\0" + bytes(30))),
    tun(ip4(6, bytes(40), options=b"\x94\x04\0\0", flags=0)),
    tun(ip4(99, bytes(3000), flags=0, options=b"\x83\x07\x04\0\0\0\0\0")),
    tun(ip4(17, bytes(64), flags=0x2001)),
    tun(ip6(0, b"\x2c\0\1\4\0\0\0\0" + b"\x11\0\0\x01\0\0\0\1" + bytes(40))),
    tun(ip6(43, b"\x3c\2" + bytes(22) + b"\x06\0\1\4\0\0\0\0" + bytes(40))),
    tun(ip6(58, b"\x80\0" + bytes(30))),
]


def _sender(suite: Suite, installed: bool) -> ReferenceDataPlane:
    plane = ReferenceDataPlane(hold=HoldLimits(entry_packets=50, entry_octets=100_000, total_octets=120_000))
    web = selector_pair("10.0.0.0/8", "10.2.0.0/24", 17, remote_ports=PortRange(1, 1999))
    plane.load(snapshot(entry("web", web, Disposition.DISCARD), entry("v4", ANY4), entry("v6", ANY6)), 0)
    for number, name in enumerate(("v4", "v6") if installed else ()):
        spi = 0x1001 + number
        plane.add_sa(sa_params(suite, inbound=False, spi=spi, name=name, child=spi, hard_bytes=200_000), 0)
    return plane


def _receiver(suite: Suite, window: int = 64) -> ReferenceDataPlane:
    plane = ReferenceDataPlane(tun_features=TunOffload(uso4=True, uso6=True))
    plane.load(snapshot(), 0)
    params = sa_params(suite, inbound=True, along=_HERE, window=window, follow_nat=True, hard_bytes=500_000)
    plane.add_sa(params, 0)
    return plane


def _account(plane: ReferenceDataPlane) -> list[object]:
    """Return the outputs, having checked the books."""
    outputs: list[object] = list(drain(plane))
    assert [output for output in outputs if isinstance(output, InternalError)] == []
    counters = plane.counters()
    assert counters.outbound_in == counters.outbound_out + counters.outbound_drops + counters.held
    assert counters.inbound_in == counters.inbound_out + counters.inbound_drops + counters.control_in
    assert sum(plane.drops().values()) == counters.outbound_drops + counters.inbound_drops
    for output in outputs:
        if isinstance(output, Transmit):
            sizes = [len(buffer) for buffer in output.buffers]
            assert sum(sizes) <= 65507
            assert set(sizes[:-1]) <= {sizes[0]}
            assert sizes[-1] <= sizes[0]
    return outputs


@st.composite
def _mutated(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """A valid input with some octets changed, cut or inserted."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, 6))):
        if not data:
            break
        at = draw(st.integers(0, min(len(data) - 1, 90)))
        match draw(st.integers(0, 4)):
            case 0:
                data[at] = draw(st.integers(0, 255))
            case 1:
                data[at] ^= 1 << draw(st.integers(0, 7))
            case 2:
                del data[at:]
            case 3:
                data[at:at] = draw(st.binary(max_size=8))
            case _:
                data[at] = draw(st.sampled_from([0, 1, 0x0F, 0x44, 0x45, 0x4F, 0x60, 0x7F, 0x80, 0xFF]))
    return bytes(data)


_FRAMES = st.lists(st.one_of(_mutated(SEEDS), st.binary(max_size=120)), max_size=6)


@settings(max_examples=300, deadline=None)
@given(frames=_FRAMES, suite=st.sampled_from(_SUITES), installed=st.booleans())
@example(frames=[tun(tcp4(bytes(60000)), 1, 1, 1, 20, 16)], suite=GCM, installed=True)
@example(frames=[tun(ip4(99, bytes(3000), flags=0), flags=1)], suite=GCM, installed=True)  # checksum at offset 0
@example(frames=[tun(ip4(99, bytes(3000), flags=0x1FFF))], suite=GCM, installed=True)
def test_outbound(frames: list[bytes], suite: Suite, installed: bool) -> None:
    plane = _sender(suite, installed)
    for now, frame in enumerate(frames):
        before = plane.counters().outbound_in
        plane.outbound([TunFrame(memoryview(bytearray(frame)))], now)
        assert plane.counters().outbound_in > before
        _account(plane)
    if not installed:
        for number, name in enumerate(("v4", "v6")):
            plane.add_sa(sa_params(suite, inbound=False, spi=0x2000 + 256 + number, name=name, child=number), 0)
            plane.release(name, 100)
            _account(plane)
        plane.handle_timeout(100 + LIFETIME)  # fragments whose rest never came
        _account(plane)
        assert plane.counters().held == 0


@lru_cache
def _valid(suite: Suite) -> list[bytes]:
    """ESP packets that a receiver delivers."""
    plane = ReferenceDataPlane()
    plane.load(snapshot(entry("v4", ANY4)), 0)
    plane.add_sa(sa_params(suite, inbound=False), 0)
    plane.outbound([TunFrame(tun(udp4(b"data"))), TunFrame(SEEDS[2]), TunFrame(tun(udp4(b"more")))], 0)
    return datagrams(output for output in drain(plane) if isinstance(output, Transmit))


def _encrypted(suite: Suite, plain: bytes, number: int) -> bytes:
    """Return an authentic ESP packet around any octets: what a hostile peer with an SA can send."""
    plane = ReferenceDataPlane()
    plane.add_sa(sa_params(suite, inbound=False), 0)
    transform = plane._sad.outbound[0x1001][0].transform
    header = (0x1001).to_bytes(4, "big") + number.to_bytes(4, "big")
    if isinstance(transform, Aead):
        iv = number.to_bytes(8, "big")
        return header + iv + transform.cipher.encrypt(transform.salt + iv, plain, header)
    plain = plain[: len(plain) // transform.block * transform.block] or bytes(transform.block)
    return transform.seal(header, number, plain, b"")


@settings(max_examples=300, deadline=None)
@given(data=st.data(), suite=st.sampled_from(_SUITES), along=st.sampled_from([_HERE, _RAW]))
def test_inbound_octets(data: st.DataObject, suite: Suite, along: Path) -> None:
    plane = _receiver(suite)
    for _ in range(data.draw(st.integers(1, 4))):
        octets = data.draw(
            st.one_of(_mutated(_valid(suite)), st.binary(max_size=80), st.just(b"".join(_valid(suite))))
        )
        size = data.draw(st.one_of(st.integers(-2, 100), st.sampled_from([len(_valid(suite)[1]), 65535, 2**31])))
        tos = data.draw(st.integers(0, 255))
        before = plane.counters().inbound_in
        plane.inbound([WireDatagrams(along, memoryview(bytearray(octets)), size, tos)], 1)
        expected = 1 if size <= 0 or not octets else -(-len(octets) // size)
        assert plane.counters().inbound_in == before + expected
        _account(plane)


_PACKETS = [seed[10:] for seed in SEEDS]


@settings(max_examples=300, deadline=None)
@given(
    inner=st.lists(st.one_of(_mutated(_PACKETS), st.binary(max_size=80)), min_size=1, max_size=8),
    next_header=st.sampled_from([4, 4, 41, 41, 59, 0, 6]),
    pad=st.integers(0, 255),
    suite=st.sampled_from(_SUITES),
    tos=st.integers(0, 3),
)
def test_inbound_from_an_authenticated_peer(
    inner: list[bytes], next_header: int, pad: int, suite: Suite, tos: int
) -> None:
    plane = _receiver(suite)
    trailer = trailers_of(next_header)[pad]
    packets = [_encrypted(suite, packet + trailer, number) for number, packet in enumerate(inner, start=1)]
    plane.inbound([WireDatagrams(_HERE, packet, 0, tos) for packet in packets], 1)
    _account(plane)
    assert plane.counters().inbound_in == len(inner)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("send"), _mutated(SEEDS)),
            st.tuples(st.just("add"), st.integers(0, 3)),
            st.tuples(st.just("delete"), st.integers(0, 3)),
            st.tuples(st.just("release"), st.sampled_from(["v4", "v6", "none"])),
            st.tuples(st.just("refuse"), st.sampled_from(["v4", "v6", "none"])),
            st.tuples(st.just("load"), st.integers(0, 2)),
            st.tuples(st.just("activate"), st.integers(0, 3)),
            st.tuples(st.just("mtu"), st.integers(0, 70000)),
            st.tuples(st.just("time"), st.integers(0, 20)),
        ),
        max_size=25,
    )
)
def test_any_order_of_calls(steps: list[tuple[str, object]]) -> None:
    plane = _sender(GCM, installed=False)
    now, installed = 0, set()
    policies = [snapshot(), snapshot(entry("v4", ANY4)), snapshot(entry("v6", ANY6, Disposition.DISCARD))]
    for kind, value in steps:
        now += 10**8
        match kind, value:
            case "send", bytes(frame):
                plane.outbound([TunFrame(frame)], now)
            case "add", int(child) if child not in installed:
                installed.add(child)
                name = "v4" if child % 2 else "v6"
                params = sa_params(inbound=False, spi=0x1000 + child, name=name, child=child, dormant=child > 1)
                plane.add_sa(params, now)
            case "delete", int(child):
                installed.discard(child)
                plane.delete_sa(0x1000 + child, inbound=False)
            case "release", str(name):
                plane.release(name, now)
            case "refuse", str(name):
                plane.refuse(name, now, 10**9)
            case "load", int(index):
                plane.load(policies[index], now)
            case "activate", int(child):
                plane.activate(child)
            case "mtu", int(mtu):
                plane.set_path_mtu(path().remote, mtu, now)
            case "time", int(seconds):
                now += seconds * 10**9
                plane.handle_timeout(now)
                due = plane.deadline()
                assert due is None or due > now
        _account(plane)
        assert 1280 <= plane.tun_mtu() <= 65535


_SIZES = [
    *range(0, 130),
    *range(1350, 1500),
    *range(4090, 4100),
    16384,
    32767,
    32768,
    65506,
    65507,
    65508,
    65534,
    65535,
]


@pytest.mark.parametrize("suite", _SUITES, ids=str)
def test_sizes_from_the_tun(suite: Suite) -> None:
    plane = _sender(suite, installed=True)
    for size in _SIZES:
        body = bytes(size)
        for frame in (body, tun(body), tun(b"\x45" + body), tun(b"\x60" + body), tun(udp4(b"")[:20] + body)):
            plane.outbound([TunFrame(frame)], 1)
            _account(plane)
        for flags in (0, 0x4000):
            if size <= 65515:
                plane.outbound([TunFrame(tun(ip4(99, body, flags=flags)))], 1)
            plane.outbound([TunFrame(tun(ip6(99, body)))], 1)
            _account(plane)
    assert plane.counters().outbound_in == len(_SIZES) * 7 + sum(size <= 65515 for size in _SIZES) * 2


@pytest.mark.parametrize("suite", _SUITES, ids=str)
def test_sizes_from_the_wire(suite: Suite) -> None:
    plane = _receiver(suite)
    front = (0x1001).to_bytes(4, "big") + b"\0\0\0\1"
    for size in _SIZES:
        plane.inbound([WireDatagrams(_HERE, bytes(size)), WireDatagrams(_HERE, (front + bytes(size))[:65535])], 1)
        _account(plane)
    assert plane.counters().inbound_out == 0


def test_every_segment_size_of_the_control_message() -> None:
    whole = b"".join(_valid(GCM))
    plane = _receiver(GCM, window=8192)
    for size in [*range(-1, 1600), 32767, 65535, 65536, 2**31 - 1, 2**31, 2**32]:
        plane.inbound([WireDatagrams(_HERE, whole, size)], 1)
        _account(plane)


def test_oversized_datagrams() -> None:
    plane = _receiver(GCM)
    for size in (65535, 65536, 100_000, 1_000_000):
        plane.inbound([WireDatagrams(_HERE, b"\0\0\x10\1" + bytes(size))], 1)
        _account(plane)
    sender = _sender(GCM, installed=True)
    for size in (65536, 100_000, 1_000_000):
        for frame in (tun(udp4(b"x") + bytes(size)), tun(tcp4(bytes(100)) + bytes(size), 1, 50, 1, 20, 16)):
            sender.outbound([TunFrame(frame)], 1)
            _account(sender)
    assert sender.counters().outbound_out == 3 * 3
