"""Sealing for SAs that are not ESP in tunnel mode by itself: transport mode, AH, and AH around ESP.

What leaves is whole IP packets with headers of ours, but for transport-mode ESP in UDP: its header the host makes.
"""

from __future__ import annotations

from policy.spd import Mode
from tunnel.dataplane import ah, esp, outer
from tunnel.dataplane.contract import DropReason
from tunnel.dataplane.esp import NEXT_HEADER, Segment
from tunnel.dataplane.flow import FlowError
from tunnel.dataplane.icmp import fragments
from tunnel.dataplane.outer import AH, BASE, ESP, Front
from tunnel.dataplane.sad import OutboundSa

_U16 = 0xFFFF


def seal(sa: OutboundSa, inner: OutboundSa | None, parts: list[Segment], version: int, tos: int) -> list[bytes]:
    """Return what leaves for packets of one superpacket: payloads for UDP, or whole IP packets.

    *inner* is the ESP half of the bundle whose AH half is *sa*. Takes one sequence number a packet.
    """
    if sa.mac is None:
        return _esp(sa, parts, version, tos)
    if inner is not None:
        return [_around(sa, packet) for packet in _esp(inner, parts, version, tos)]
    if sa.params.mode is Mode.TRANSPORT:
        return [_around(sa, b"".join(part)) for part in parts]
    return [_tunnel(sa, b"".join(part), version, tos) for part in parts]


def capacity(sa: OutboundSa, inner: OutboundSa | None, mtu: int, version: int | None = None) -> int:
    """Return the largest packet from the TUN that leaves in no more than *mtu* octets.

    In transport mode its own headers are those outside: without options or extension headers, as most are.
    """
    transport = sa.params.mode is Mode.TRANSPORT if inner is None else inner.params.mode is Mode.TRANSPORT
    family = sa.path.version
    if sa.mac is not None:
        mtu -= ah.length(sa.mac, family)
        if inner is None:
            return mtu if transport else mtu - BASE[family]
        sa = inner
    if not transport:
        return esp.capacity(sa.transform, sa.path, mtu)
    return esp.capacity(sa.transform, sa.path, mtu) + BASE[version or family]


def outgrown(sa: OutboundSa, inner: OutboundSa | None, packet: memoryview, size: int) -> int:
    """Return the octets by which headers beyond the plain one diminish the capacity for *packet*."""
    bundled = sa if inner is None else inner
    if bundled.params.mode is not Mode.TRANSPORT or bundled.mac is not None:
        return 0
    front = Front(packet)
    block = bundled.transform.block
    extra = front.length - BASE[packet[0] >> 4]
    return 0 if not extra else -(-extra // block) * block - extra + block


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
            outer.fresh(sa.path, ESP, len(packet), tos=tos, identification=_identification(number + index))
            + packet
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
    return [
        outer.carry((header or payload)[:length], at, ESP, len(packet)) + packet
        for (header, payload), packet in zip(parts, sealed, strict=True)
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
    header = bytearray(packet[: front.length])
    if header[0] >> 4 == 4 and header[4:6] == b"\0\0":
        # The host fills in an identification of zero, and it is covered.
        header[4:6] = _identification(number).to_bytes(2, "big")
    made = outer.carry(header, front.at, AH, size + len(payload))
    return made + ah.seal(sa.mac, params.spi, number, params.suite.esn, made, next_header, payload)


def _tunnel(sa: OutboundSa, packet: bytes, version: int, tos: int) -> bytes:
    """AH in tunnel mode (RFC 4302 section 3.1.2)."""
    if sa.mac is None:
        raise FlowError(DropReason.UNSUPPORTED)
    sa.sequence += 1
    number, params = sa.sequence, sa.params
    size = ah.length(sa.mac, sa.path.version)
    made = outer.fresh(sa.path, AH, size + len(packet), tos=tos, identification=_identification(number))
    return made + ah.seal(sa.mac, params.spi, number, params.suite.esn, made, NEXT_HEADER[version], packet)


def _identification(number: int) -> int:
    """Return an IPv4 identification that is not zero: it steps with the sequence number."""
    return number % _U16 + 1
