"""What an ICMPv6 Packet Too Big says, and what is none of ours."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6
from scapy.layers.ipsec import ESP

from policy.path import Endpoint
from tunnel.host.toobig import parse

QUOTE = IPv6(src="fd00::1", dst="fd00::2") / ESP(spi=0x1000, seq=1, data=bytes(40))


def error(mtu: int = 1300, quote: bytes = bytes(QUOTE)) -> bytes:
    return bytes(IPv6(src="fd00::fe", dst="fd00::1") / ICMPv6PacketTooBig(mtu=mtu) / quote)[40:]


def test_a_packet_of_ours_was_too_big() -> None:
    assert parse(error()) == (Endpoint(ip_address("fd00::2"), 0), 1300)
    ah = bytearray(bytes(QUOTE))
    ah[6] = 51
    assert parse(error(quote=bytes(ah))) == (Endpoint(ip_address("fd00::2"), 0), 1300)


@pytest.mark.parametrize("cut", range(48))
def test_too_short_for_what_it_quotes(cut: int) -> None:
    assert parse(error()[:cut]) is None


def test_not_about_us() -> None:
    udp = bytearray(bytes(QUOTE))
    udp[6] = 17
    assert parse(error(quote=bytes(udp))) is None
    assert parse(b"\x01" + error()[1:]) is None
    assert parse(error(mtu=2**31)) is None
    v4 = bytes([0x45]) + bytes(QUOTE)[1:]
    assert parse(error(quote=v4)) is None
