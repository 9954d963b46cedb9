"""The MSS of a SYN, lowered to what the SA carries, with scapy as the judge."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, PadN

from policy.spd import Mode
from tests.support.packets import A4, A6, B4, B6, GCM, Pair, packet_of, path, tcp4, tun
from tunnel.dataplane.mss import clamped


def syn(version: int, mss: int, *before: tuple[str, object], flags: str = "S", extended: bool = False) -> bytes:
    front = IP(src=A4, dst=B4) if version == 4 else IPv6(src=A6, dst=B6)
    if extended:
        front = front / IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(4))])
    return bytes(front / TCP(sport=1, dport=80, flags=flags, options=[*before, ("MSS", mss), ("WScale", 7)]))


def layer(packet: bytes) -> TCP:
    return (IP if packet[0] >> 4 == 4 else IPv6)(packet)[TCP]


@given(
    st.sampled_from([4, 6]),
    st.integers(600, 9000),
    st.integers(700, 9000),
    st.integers(0, 3),
    st.sampled_from(["S", "SA"]),
)
def test_it_is_lowered_and_the_checksum_fits(version: int, mss: int, largest: int, pads: int, flags: str) -> None:
    packet = syn(version, mss, *[("NOP", None)] * pads, flags=flags)
    base = 20 if version == 4 else 40
    found = clamped(packet, base, largest)
    wanted = max(536, largest - base - 20)
    if wanted >= mss:
        assert found is None
        return
    assert found is not None
    assert dict(layer(found).options)["MSS"] == wanted
    checked = (IP if version == 4 else IPv6)(found)
    said = checked[TCP].chksum
    del checked[TCP].chksum
    assert layer(bytes(checked)).chksum == said
    assert len(found) == len(packet)


def test_extension_headers_count() -> None:
    packet = syn(6, 1440, extended=True)
    found = clamped(packet, 48, 1400)
    assert found is not None
    assert dict(layer(found).options)["MSS"] == 1400 - 48 - 20


def test_what_is_left_alone() -> None:
    assert clamped(syn(4, 1460, flags="A"), 20, 1000) is None
    assert clamped(tcp4(b"", flags=2), 20, 1000) is None  # no option
    assert clamped(tcp4(b"", flags=2, options=b"\x02\x03\0\0"), 20, 1000) is None  # a wrong length
    assert clamped(tcp4(b"", flags=2, options=b"\x08\xff\0\0"), 20, 1000) is None  # beyond the header
    assert clamped(syn(4, 1460)[:39], 20, 1000) is None
    assert clamped(syn(4, 1460), 20, 100) is not None  # never below what every host takes


@pytest.mark.parametrize("mode", Mode)
def test_both_ends_of_a_connection_fit(mode: Mode) -> None:
    pair = Pair(GCM, path(A4, B4), mode=mode)
    pair.left.set_path_mtu(pair.path.remote, 1300, 0)
    (frame,) = pair.receive(pair.send(tun(syn(4, 1460))))
    mss = dict(layer(packet_of(frame)).options)["MSS"]
    assert mss == pair.left.tun_mtu() - 40 or mss < 1300 - 40
