"""Sealing for SAs that are not ESP in tunnel mode by itself: transport mode, AH, and AH around ESP.

What leaves is whole IP packets with headers of ours, but for transport-mode ESP in UDP: its header the host makes.
"""

from __future__ import annotations

from policy.spd import Mode
from tunnel.dataplane import ah, esp, outer
from tunnel.dataplane.contract import Buffer, DropReason
from tunnel.dataplane.esp import NEXT_HEADER, Segment
from tunnel.dataplane.flow import FlowError
from tunnel.dataplane.icmp import fragments
from tunnel.dataplane.outer import AH, BASE, ESP, Front
from tunnel.dataplane.sad import OutboundSa

_U16 = 0xFFFF
_EXTENSIONS = frozenset({0, 43, 44, 60})


def seal(sa: OutboundSa, parts: list[Segment], version: int, tos: int) -> list[bytes]:
    """Return what leaves for packets of one superpacket: payloads for UDP, or whole IP packets.

    Takes one sequence number a packet, of a bundle one of each half.
    """
    if sa.mac is None:
        return _esp(sa, parts, version, tos)
    if sa.inner is not None:
        return [_around(sa, packet) for packet in _esp(sa.inner, parts, version, tos)]
    if sa.params.mode is Mode.TRANSPORT:
        return [_around(sa, b"".join(part)) for part in parts]
    return [_tunnel(sa, b"".join(part), version, tos) for part in parts]


def capacity(sa: OutboundSa, mtu: int, front: int) -> int:
    """Return the largest packet from the TUN that leaves in no more than *mtu* octets.

    In transport mode *front* octets of its own headers stand outside.
    """
    family, bundled = sa.path.version, sa
    if sa.mac is not None:
        mtu -= ah.length(sa.mac, family)
        if sa.inner is None:
            return mtu if sa.params.mode is Mode.TRANSPORT else mtu - BASE[family]
        bundled = sa.inner
    if bundled.params.mode is not Mode.TRANSPORT:
        return esp.capacity(bundled.transform, sa.path, mtu)
    # In UDP the header outside is the host's, which is a plain one.
    return esp.capacity(bundled.transform, sa.path, mtu - (front - BASE[family])) + front


def capacity_for(sa: OutboundSa, packet: memoryview) -> int:
    """Return the capacity for a packet like this one. FlowError for headers that cannot be where they belong."""
    bundled = sa if sa.inner is None else sa.inner
    if packet[0] == 0x45 or (packet[0] >> 4 == 6 and packet[6] not in _EXTENSIONS):
        return sa.capacity
    if bundled.params.mode is not Mode.TRANSPORT:
        return sa.capacity
    front = Front(packet).length
    if sa.path.encapsulated and front != BASE[packet[0] >> 4]:
        # The host makes the header before UDP: a packet must not lose its options or route on the way.
        raise FlowError(DropReason.UNSUPPORTED)
    return capacity(sa, sa.mtu, front)


def largest(sa: OutboundSa, packet: memoryview) -> int:
    """Return the octets of the largest packet like this one that any IP packet can carry, protected."""
    front = Front(packet).length
    return capacity(sa, 65535 if packet[0] >> 4 == 4 else 65535 + BASE[6], front)


def cut(packet: bytes, mtu: int, identification: int) -> list[bytes]:
    """Return *packet* whole, or as fragments where it exceeds *mtu* (RFC 4301 section 7: after IPsec)."""
    if len(packet) <= mtu:
        return [packet]
    if packet[0] >> 4 == 6:
        return outer.fragments_v6(packet, mtu, identification)
    return [b"".join(part) for part in fragments(packet, mtu)]


def _esp(sa: OutboundSa, parts: list[Segment], version: int, tos: int) -> list[bytes]:
    """RFC 4303 section 3.1."""
    if sa.params.mode is Mode.TUNNEL:
        sealed = esp.seal(sa, parts, NEXT_HEADER[version])
        number = sa.sequence - len(sealed)
        return [
            outer.fresh(sa.path, ESP, len(packet), tos=tos, identification=identification(number + index)) + packet
            for index, packet in enumerate(sealed, 1)
        ]
    first = parts[0][0] or parts[0][1]
    front = Front(first)
    length, at = front.length, front.at
    # The segments of a superpacket have equal headers but for lengths, identification and checksums.
    bodies: list[Segment] = [
        (header[length:], payload) if header else (b"", payload[length:]) for header, payload in parts
    ]
    sealed = esp.seal(sa, bodies, first[at])
    if sa.path.encapsulated:
        return sealed
    number = sa.sequence - len(sealed)
    return [
        outer.carry(_identified((header or payload)[:length], number + index), at, ESP, len(packet)) + packet
        for index, ((header, payload), packet) in enumerate(zip(parts, sealed, strict=True), 1)
    ]


def _around(sa: OutboundSa, packet: bytes) -> bytes:
    """AH in transport mode (RFC 4302 section 3.1.1)."""
    if sa.mac is None:
        raise FlowError(DropReason.UNSUPPORTED)
    sa.sequence += 1
    number, params = sa.sequence, sa.params
    front = Front(packet)
    next_header, payload = packet[front.at], packet[front.length :]
    size = ah.length(sa.mac, packet[0] >> 4)
    header = _identified(packet[: front.length], number)
    made = outer.carry(header, front.at, AH, size + len(payload))
    return made + ah.seal(sa.mac, params.spi, number, params.suite.esn, made, next_header, payload)


def _tunnel(sa: OutboundSa, packet: bytes, version: int, tos: int) -> bytes:
    """AH in tunnel mode (RFC 4302 section 3.1.2)."""
    if sa.mac is None:
        raise FlowError(DropReason.UNSUPPORTED)
    sa.sequence += 1
    number, params = sa.sequence, sa.params
    size = ah.length(sa.mac, sa.path.version)
    made = outer.fresh(sa.path, AH, size + len(packet), tos=tos, identification=identification(number))
    return made + ah.seal(sa.mac, params.spi, number, params.suite.esn, made, NEXT_HEADER[version], packet)


def _identified(header: Buffer, number: int) -> Buffer:
    """Return *header* with an identification: the host would fill in one of zero, for each fragment."""
    if header[0] >> 4 == 6 or header[4] or header[5]:
        return header
    return bytes(header[:4]) + identification(number).to_bytes(2, "big") + bytes(header[6:])


def identification(number: int) -> int:
    """Return an IPv4 identification that is not zero: it steps with the sequence number."""
    return number % _U16 + 1
