"""Invariant: transport mode, AH and bundles raise nothing on any octets, and account for every packet once."""

from __future__ import annotations

from functools import lru_cache

from hypothesis import example, given, settings
from hypothesis import strategies as st

from policy.path import Path
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
    GMAC,
    drain,
    ip4,
    ip6,
    mirrored,
    path,
    sa_params,
    snapshot,
    tcp4,
    tcp6,
    tun,
    udp4,
    udp6,
)
from tunnel.dataplane import ah
from tunnel.dataplane.contract import InternalError, Transmit, TunFrame, WireDatagrams
from tunnel.dataplane.esp import trailers_of
from tunnel.dataplane.flow import FlowError
from tunnel.dataplane.reference import ReferenceDataPlane
from tunnel.dataplane.transforms import Aead

_HOP = b"\x3c\0\x1e\4abcd"
_DESTINATION = b"\x2b\0\x3e\4abcd"
_ROUTE = b"\x11\4\0\2" + bytes(4) + bytes(range(32))
SEEDS = [
    tun(udp4(b"data")),
    tun(udp4(b"data", options=b"\x94\4\0\0\x83\7\4\x0a\2\0\7\0")),
    tun(tcp4(bytes(5000)), 1, 1300, 1, 20, 16),
    tun(tcp6(bytes(5000)), 4, 1300, 1, 40, 16),
    tun(udp4(bytes(5000)), 5, 1000, 1, 20, 6),
    tun(ip6(0, _HOP + _DESTINATION + _ROUTE + udp6(b"data")[40:])),
    tun(ip6(60, b"\x11" + _DESTINATION[1:] + udp6(b"data")[40:])),
    tun(ip6(44, b"\x11\0\0\1\0\0\0\7" + bytes(24))),
    tun(ip4(6, bytes(24), flags=0x2003)),
    tun(udp4(bytes(3000), flags=0)),
]
KINDS = ("esp", "esp in udp", "ah", "ah tunnel", "bundle", "bundle tunnel", "gmac")


def _along(version: int, port: int) -> Path:
    return path(*((A4, B4) if version == 4 else (A6, B6)), port)


def _plane(kind: str, inbound: bool) -> ReferenceDataPlane:
    plane = ReferenceDataPlane()
    plane.load(snapshot(), 0)
    mode = Mode.TUNNEL if "tunnel" in kind else Mode.TRANSPORT
    for version in (4, 6):
        along = _along(version, 4500 if "udp" in kind else 0)
        alone: dict[str, list[tuple[Suite, Mode, int | None]]] = {
            "esp": [(GCM, mode, None)],
            "esp in udp": [(CBC_SHA256, mode, None)],
            "gmac": [(GMAC, mode, None)],
            "ah": [(AHS[0], mode, None)],
            "ah tunnel": [(AHS[1], mode, None)],
        }
        suites = alone.get(kind) or [(GCM, mode, version + 10), (AHS[2], Mode.TRANSPORT, version)]
        for suite, each, bundle in suites:
            child = version + 10 if suite is AHS[2] else version
            plane.add_sa(
                sa_params(
                    suite, inbound=inbound, spi=0x1000 + child, child=child, bundle=bundle, mode=each,
                    along=mirrored(along) if inbound else along, name=f"v{version}", nat="udp" in kind,
                ),
                0,
            )  # fmt: skip
    return plane


@lru_cache(maxsize=16)
def _sender(kind: str) -> ReferenceDataPlane:
    return _plane(kind, inbound=False)


@lru_cache(maxsize=16)
def _receiver(kind: str) -> ReferenceDataPlane:
    return _plane(kind, inbound=True)


def _account(plane: ReferenceDataPlane) -> list[Transmit]:
    outputs = drain(plane)
    assert not [output for output in outputs if isinstance(output, InternalError)]
    counters = plane.counters()
    assert counters.outbound_in == counters.outbound_out + counters.outbound_drops + counters.held
    assert counters.inbound_in == counters.inbound_out + counters.inbound_drops + counters.control_in
    assert sum(plane.drops().values()) == counters.inbound_drops + counters.outbound_drops
    return [output for output in outputs if isinstance(output, Transmit)]


@st.composite
def _mangled(draw: st.DrawFn) -> bytes:
    octets = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(0, 6))):
        octets[draw(st.integers(0, min(len(octets), 130) - 1))] = draw(st.integers(0, 255))
    return bytes(octets[: draw(st.integers(0, len(octets)))]) if draw(st.booleans()) else bytes(octets)


@settings(deadline=None, max_examples=300)
@given(st.lists(_mangled(), min_size=1, max_size=4), st.sampled_from(KINDS), st.integers(500, 2000))
@example(SEEDS, "ah", 1280)
@example(SEEDS, "bundle", 1280)
@example(SEEDS, "esp", 1280)
def test_outbound(frames: list[bytes], kind: str, mtu: int) -> None:
    plane = _sender(kind)
    for version in (4, 6):
        plane.set_path_mtu(_along(version, 0).remote, mtu, 0)
    plane.outbound([TunFrame(frame) for frame in frames], 1)
    for transmit in _account(plane):
        if transmit.whole:
            floor = 576 if transmit.path.version == 4 else 1280
            assert all(len(buffer) <= max(mtu, floor) for buffer in transmit.buffers)


_PROTOCOLS = st.one_of(st.sampled_from([4, 41, 6, 17, 44, 59, 60]), st.integers(0, 255))
_CHILDREN = st.sampled_from([4, 6, 14, 16, 9])
_HEADERS = st.one_of(
    st.just(b""),
    st.just(udp4(b"")[:20]),
    st.just(udp6(b"")[:40]),
    st.binary(max_size=40).map(lambda tail: b"\x4f" + udp4(b"")[1:20] + tail.ljust(40, b"\1")),
    st.tuples(st.sampled_from([0, 43, 60, 44, 7]), st.binary(max_size=64)).map(
        lambda chain: udp6(b"")[:6] + bytes((chain[0],)) + udp6(b"")[7:40] + chain[1]
    ),
)


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from(KINDS), st.sampled_from([50, 51]), _CHILDREN, st.binary(max_size=90), _HEADERS,
    st.integers(0, 255),
)  # fmt: skip
def test_inbound_from_anybody(kind: str, protocol: int, child: int, tail: bytes, header: bytes, tos: int) -> None:
    plane = _receiver(kind)
    before = plane.counters().inbound_out
    spi = (0x1000 + child).to_bytes(4, "big")
    data = spi + tail if protocol == 50 else tail[:1] + bytes((5,)) + b"\0\0" + spi + b"\0\0\0\1" + tail
    version = 6 if header and header[0] >> 4 == 6 else 4
    plane.inbound([WireDatagrams(mirrored(_along(version, 0)), data, 0, tos, protocol, header)], 1)
    _account(plane)
    assert plane.counters().inbound_out == before


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from(["esp", "esp in udp", "ah", "ah tunnel"]), st.sampled_from([4, 6]), _PROTOCOLS,
    st.one_of(st.binary(max_size=80), _mangled().map(lambda frame: frame[10:]),
              _mangled().map(lambda frame: frame[30:])),
    _HEADERS, st.integers(0, 255), st.integers(0, 255),
)  # fmt: skip
def test_inbound_from_an_authenticated_peer(
    kind: str, version: int, next_header: int, payload: bytes, header: bytes, tos: int, pad: int
) -> None:
    plane = _receiver(kind)
    sa = plane._sad.inbound[0x1000 + version]
    number = sa.window.top + 1
    if sa.mac is not None:
        header = header or (udp4(b"")[:20] if version == 4 else udp6(b"")[:40])
        try:
            data = ah.seal(sa.mac, sa.params.spi, number, sa.esn, header, next_header, payload)
        except FlowError:
            data = bytes(60)
        protocol = 51
    else:
        trailer = trailers_of(next_header)[pad // 4 * 4 + -(len(payload) + 2) % 4 if pad < 252 else 0]
        front = sa.params.spi.to_bytes(4, "big") + number.to_bytes(4, "big")
        if isinstance(sa.transform, Aead):
            iv = number.to_bytes(8, "big")
            data = front + iv + sa.transform.cipher.encrypt(sa.transform.salt + iv, payload + trailer, front)
        else:
            plain = payload + trailers_of(next_header)[-(len(payload) + 2) % 16]
            data = sa.transform.seal(front, number, plain, b"")
        protocol = 50
    along = mirrored(_along(version, 4500 if "udp" in kind else 0))
    plane.inbound([WireDatagrams(along, data, 0, tos, protocol, b"" if "udp" in kind else header)], 1)
    _account(plane)
