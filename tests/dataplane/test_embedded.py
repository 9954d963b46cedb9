"""ICMP errors over an SA: only about packets that went out over it (RFC 4301 section 6.2)."""

from __future__ import annotations

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6PacketTooBig, IPv6, IPv6ExtHdrFragment

from policy.selectors import Flow, PortRange, SelectorPair
from tests.support.packets import A4, A6, B4, B6, GCM, Pair, packet_of, selector_pair, tun
from tunnel.dataplane.contract import DropReason
from tunnel.dataplane.embedded import quoted_flow
from tunnel.dataplane.flow import parse

PORT_80 = PortRange(80, 80)


def error4(quote: bytes, source: str = "10.1.0.254", destination: str = B4) -> bytes:
    return bytes(IP(src=source, dst=destination) / ICMP(type=3, code=1) / quote)


def error6(quote: bytes, source: str = "2001:db8:1::fe", destination: str = B6) -> bytes:
    return bytes(IPv6(src=source, dst=destination) / ICMPv6DestUnreach(code=3) / quote)


QUOTE4 = bytes(IP(src=B4, dst=A4) / TCP(sport=4000, dport=80))
QUOTE6 = bytes(IPv6(src=B6, dst=A6) / UDP(sport=4000, dport=80))


def flow_in(packet: bytes) -> Flow | None:
    return quoted_flow(packet, parse(packet))


@pytest.mark.parametrize("size", [28, 24, 60])
def test_what_a_v4_error_is_about(size: int) -> None:
    found = flow_in(error4(QUOTE4[:size]))
    assert found is not None
    assert (str(found.source_address), str(found.destination_address), found.protocol) == (B4, A4, 6)
    assert (found.source_port, found.destination_port) == (4000, 80)


def test_quotes_cut_short() -> None:
    found = flow_in(error4(QUOTE4[:22]))
    assert found is not None
    assert found.source_port is None
    assert flow_in(error4(QUOTE4[:19])) is None
    assert flow_in(error4(b"")) is None
    assert flow_in(error6(QUOTE6[:39])) is None
    assert flow_in(error4(QUOTE6)) is None
    assert flow_in(bytes(IP(src=A4, dst=B4) / ICMP(type=3) / (b"\x4f" + QUOTE4[1:]))) is not None


def test_v6_errors_and_fragments() -> None:
    found = flow_in(error6(QUOTE6))
    assert found is not None
    assert (str(found.source_address), found.protocol, found.destination_port) == (B6, 17, 80)
    later = bytes(IPv6(src=B6, dst=A6) / IPv6ExtHdrFragment(offset=100, nh=17, id=1) / bytes(20))
    found = flow_in(error6(later))
    assert found is not None
    assert (found.protocol, found.source_port) == (17, None)
    too_big = bytes(IPv6(src=A6, dst=B6) / ICMPv6PacketTooBig(mtu=1300) / QUOTE6)
    assert flow_in(too_big) == flow_in(error6(QUOTE6))


def deliver(packet: bytes, selectors: SelectorPair | None = None) -> tuple[list[bytes], dict[DropReason, int]]:
    """Return what comes out of an SA that carries an ICMP error, and the drops."""
    pair = Pair(GCM)
    if selectors is not None:
        pair.right = Pair(GCM, selectors=(selectors,)).right
    frames = pair.receive(pair.send(tun(packet)))
    return [packet_of(frame) for frame in frames], {r: c for r, c in pair.right.drops().items() if c}


# The receiver is the host B; it sent the packet that the error is about.
WEB = selector_pair(f"{B4}/32", f"{A4}/32", 6, remote_ports=PORT_80)


def test_about_a_packet_of_the_sa() -> None:
    packet = error4(QUOTE4)
    assert deliver(packet) == ([packet], {})
    # The SA is for TCP to port 80; the error comes from a router, and is ICMP: it is welcome all the same.
    assert deliver(packet, WEB) == ([packet], {})
    assert deliver(error6(QUOTE6)) == ([error6(QUOTE6)], {})


@pytest.mark.parametrize(
    "packet",
    [
        error4(bytes(IP(src=B4, dst=A4) / TCP(sport=4000, dport=81))),  # another port
        error4(bytes(IP(src=B4, dst="192.0.2.7") / TCP(sport=4000, dport=80))),  # another host
        error4(QUOTE4, destination="10.2.0.99"),  # it goes to somebody who did not send it
        error4(QUOTE4[:20]),  # it does not say enough
    ],
)
def test_about_anything_else(packet: bytes) -> None:
    assert deliver(packet, WEB) == ([], {DropReason.ICMP_MISMATCH: 1})


def test_echo_is_no_error() -> None:
    echo = bytes(IP(src=A4, dst=B4) / ICMP(type=8) / b"data")
    assert deliver(echo) == ([echo], {})
    assert deliver(echo, WEB) == ([], {DropReason.SELECTOR_MISMATCH: 1})
