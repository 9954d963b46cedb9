"""The inner packet against its SA: a full cross product, each size of a datagram, each cut of a packet."""

from __future__ import annotations

from itertools import product

import pytest

from policy.selectors import PortRange
from tests.dataplane.test_inbound import drops, receive, receiver, sealed
from tests.support.packets import (
    CBC_SHA256,
    GCM,
    ip4,
    ip6,
    selector_pair,
    tcp4,
    tcp6,
    udp4,
    udp6,
)
from tunnel.dataplane.contract import DropReason

#: What the SA is for; from where we are, the packet's source is the remote side.
SA4 = selector_pair("10.1.0.0/24", "10.2.0.0/24", 17, PortRange(1000, 1001), PortRange(2000, 2000))
SA6 = selector_pair("2001:db8:1::/64", "2001:db8:2::/64", 17, PortRange(1000, 1001), PortRange(2000, 2000))

SOURCES = {
    4: {"10.2.0.0": True, "10.2.0.255": True, "10.1.255.255": False, "10.2.1.0": False, "10.1.0.5": False},
    6: {
        "2001:db8:2::": True, "2001:db8:2::ffff:ffff:ffff:ffff": True, "2001:db8:2:1::": False,
        "2001:db8:1:ffff:ffff:ffff:ffff:ffff": False, "2001:db8:1::5": False,
    },
}  # fmt: skip
DESTINATIONS = {
    4: {"10.1.0.0": True, "10.1.0.255": True, "10.0.255.255": False, "10.1.1.0": False, "10.2.0.7": False},
    6: {
        "2001:db8:1::": True, "2001:db8:1::ffff:ffff:ffff:ffff": True, "2001:db8:1:1::": False,
        "2001:db8::5": False, "2001:db8:2::7": False,
    },
}  # fmt: skip
SOURCE_PORTS = {1999: False, 2000: True, 2001: False, 0: False, 65535: False}
DESTINATION_PORTS = {999: False, 1000: True, 1001: True, 1002: False}


def packets(version: int) -> list[tuple[bytes, bool]]:
    """Return each packet of the cross product, and whether the SA is for it."""
    made = []
    for (source, from_there), (destination, to_here), (sport, right), (dport, there) in product(
        SOURCES[version].items(), DESTINATIONS[version].items(), SOURCE_PORTS.items(), DESTINATION_PORTS.items()
    ):
        addresses = {"source": source, "destination": destination}
        udp, tcp = (udp4, tcp4) if version == 4 else (udp6, tcp6)
        fits = from_there and to_here and right and there
        made.append((udp(b"data", sport=sport, dport=dport, **addresses), fits))
        made.append((tcp(b"data", ip=addresses, sport=sport, dport=dport), False))
    for source, destination in product(SOURCES[version], DESTINATIONS[version]):
        for protocol in (1, 50, 58, 99, 132):
            build = ip4 if version == 4 else ip6
            made.append((build(protocol, bytes(24), source=source, destination=destination), False))
    return made


@pytest.mark.parametrize("suite", [GCM, CBC_SHA256])
@pytest.mark.parametrize("version", [4, 6])
def test_only_what_the_sa_is_for_comes_in(version: int, suite: object) -> None:
    """GotaTun 2026 (another peer's subnet) and isakmpd's class: one wrong field is enough, wherever it stands.

    Each stands behind a packet that is right, so that no short way for the packets of one flow lets it pass.
    """
    good = next(packet for packet, fits in packets(version) if fits)
    plane = receiver(suite, selectors=(SA4, SA6))  # type: ignore[arg-type]
    sent, expected = [], []
    for packet, fits in packets(version):
        sent += [good, packet]
        expected += [good, packet] if fits else [good]
    octets = sealed(*sent, suite=suite, next_header=4 if version == 4 else 41)  # type: ignore[arg-type]
    assert len(sent) > 1500
    got = [packet for data in octets for packet in receive(plane, data)]
    assert got == expected
    counted = drops(plane)
    assert set(counted) == {DropReason.SELECTOR_MISMATCH, DropReason.ICMP_MISMATCH}
    assert sum(counted.values()) == len(sent) - len(expected)
    # And all in one burst, where segments are merged.
    plane = receiver(suite, selectors=(SA4, SA6))  # type: ignore[arg-type]
    receive(plane, *octets)
    assert drops(plane) == counted


@pytest.mark.parametrize(("said", "version"), [(41, 4), (4, 6)])
def test_the_next_header_is_that_of_the_packet(said: int, version: int) -> None:
    plane = receiver(selectors=(SA4, SA6))
    good = next(packet for packet, fits in packets(version) if fits)
    assert receive(plane, *sealed(good, next_header=said)) == []
    assert sum(drops(plane).values()) == 1


def test_each_size_that_a_datagram_can_have() -> None:
    """Class of CVE-2022-34718, and of daemons that a datagram of another size than theirs stopped."""
    plane = receiver()
    junk = (0x1001).to_bytes(4, "big") + (7).to_bytes(4, "big") + bytes(range(256)) * 256
    sizes = [*range(2100), *range(2100, 65536, 97), *range(65500, 65536)]
    assert receive(plane, *(junk[:size] for size in sizes)) == []
    counted = drops(plane)
    assert set(counted) == {DropReason.SHORT_PACKET, DropReason.INTEGRITY}
    assert sum(counted.values()) == len(sizes)


INNER = {
    "UDP": udp4(bytes(20), options=b"\x94\x04\0\0"),
    "TCP": tcp4(bytes(20), options=b"\x01\x01\x08\x0a" + bytes(8)),
    "IPv6": ip6(0, b"\x2c\0\1\4\0\0\0\0" + b"\x11\0\0\x01\0\0\0\1" + bytes(20)),
    "IPv6 routed": ip6(43, b"\x3c\2" + bytes(22) + b"\x06\0\1\4\0\0\0\0" + bytes(40)),
    "IPv6 TCP": tcp6(bytes(20)),
}


@pytest.mark.parametrize("name", INNER)
def test_each_cut_of_an_inner_packet(name: str) -> None:
    """Class of CVE-2022-34718 and CVE-2022-27666: an authentic packet's header says more than there is."""
    whole = INNER[name]
    plane = receiver()
    next_header = 4 if whole[0] >> 4 == 4 else 41
    cuts = [whole[:length] for length in range(len(whole))]
    assert receive(plane, *sealed(*cuts, whole, next_header=next_header)) == [whole]
    assert sum(drops(plane).values()) == len(cuts)
    assert DropReason.INTERNAL not in drops(plane)
