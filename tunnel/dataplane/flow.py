"""What the selectors and the size checks need of one IP packet (RFC 4301 section 4.4.1.1)."""

from __future__ import annotations

from dataclasses import dataclass

from policy.selectors import ICMP, ICMPV6, PORT_PROTOCOLS, Flow
from tunnel.dataplane.contract import Buffer, DropReason

FRAGMENT = 44
#: IPv6 extension headers that are walked to find the next-layer protocol: hop-by-hop, routing, destination.
_SKIPPED = frozenset({0, 43, 60})
#: More extension headers than any real packet carries; a longer chain cannot be classified.
_MAX_EXTENSIONS = 8
#: A fragment that ends beyond this reassembles to no packet: the "ping of death".
_LARGEST = 65535
#: ICMP and ICMPv6 types that are error messages (RFC 792, RFC 4443): no error answers an error.
_ICMP_ERRORS = frozenset({3, 4, 5, 11, 12})


class FlowError(Exception):
    """An IP packet that cannot be classified; *reason* says under which name it is dropped."""

    def __init__(self, reason: DropReason) -> None:
        super().__init__(reason.value)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Parsed:
    """An IP packet's outline. Offsets are from the start of the IP header."""

    flow: Flow
    #: Octets of the whole packet as the IP header says.
    length: int
    #: Where the next-layer header starts.
    transport: int
    tos: int
    hop_limit: int
    #: Whether it is a fragment, and whether one other than the first.
    fragment: bool
    later_fragment: bool
    #: Whether routers must not fragment it: DF, or IPv6.
    dont_fragment: bool

    @property
    def icmp_error(self) -> bool:
        """Whether it is an ICMP error message."""
        port = self.flow.source_port
        match self.flow.protocol:
            case 1:
                return port is not None and port >> 8 in _ICMP_ERRORS
            case 58:
                return port is not None and port >> 8 < 128
            case _:
                return False


def parse(packet: Buffer) -> Parsed:
    """Return the outline of *packet*. FlowError if the headers do not hold together."""
    if len(packet) < 20:
        raise FlowError(DropReason.MALFORMED)
    match packet[0] >> 4:
        case 4:
            return _parse_v4(packet)
        case 6:
            return _parse_v6(packet)
        case _:
            raise FlowError(DropReason.MALFORMED)


def _parse_v4(packet: Buffer) -> Parsed:
    """RFC 791 section 3.1."""
    transport = (packet[0] & 15) * 4
    length = packet[2] << 8 | packet[3]
    if transport < 20 or not transport <= length <= len(packet):
        raise FlowError(DropReason.MALFORMED)
    flags = packet[6] << 8 | packet[7]
    later = bool(flags & 0x1FFF)
    if (flags & 0x1FFF) * 8 + length - transport > _LARGEST:
        raise FlowError(DropReason.MALFORMED)
    protocol = packet[9]
    source_port, destination_port = _ports(
        packet, protocol, transport, length, first=not later, whole=not flags & 0x3FFF
    )
    return Parsed(
        flow=Flow(
            4,
            protocol,
            int.from_bytes(packet[12:16], "big"),
            int.from_bytes(packet[16:20], "big"),
            source_port,
            destination_port,
        ),
        length=length,
        transport=transport,
        tos=packet[1],
        hop_limit=packet[8],
        fragment=bool(flags & 0x3FFF),
        later_fragment=later,
        dont_fragment=bool(flags & 0x4000),
    )


def _parse_v6(packet: Buffer) -> Parsed:
    """RFC 8200 sections 3 and 4."""
    if len(packet) < 40:
        raise FlowError(DropReason.MALFORMED)
    length = 40 + (packet[4] << 8 | packet[5])
    if length > len(packet):
        raise FlowError(DropReason.MALFORMED)
    protocol, transport, offset_field = _skip_extensions(packet, packet[6], length)
    later = bool(offset_field & 0xFFF8)
    if (offset_field & 0xFFF8) + length - transport > _LARGEST:
        raise FlowError(DropReason.MALFORMED)
    fragment = bool(offset_field & 0xFFF9)
    source_port, destination_port = _ports(
        packet, protocol, transport, length, first=not later, whole=not fragment
    )
    return Parsed(
        flow=Flow(
            6,
            protocol,
            int.from_bytes(packet[8:24], "big"),
            int.from_bytes(packet[24:40], "big"),
            source_port,
            destination_port,
        ),
        length=length,
        transport=transport,
        tos=(packet[0] << 4 | packet[1] >> 4) & 0xFF,
        hop_limit=packet[7],
        fragment=fragment,
        later_fragment=later,
        dont_fragment=True,
    )


def _skip_extensions(packet: Buffer, protocol: int, length: int) -> tuple[int, int, int]:
    """Return next-layer protocol, its offset, and the fragment header's offset field (0 if there is none)."""
    offset, offset_field = 40, 0
    for _ in range(_MAX_EXTENSIONS):
        if protocol == FRAGMENT:
            if offset + 8 > length:
                raise FlowError(DropReason.MALFORMED)
            offset_field = packet[offset + 2] << 8 | packet[offset + 3]
            protocol, offset = packet[offset], offset + 8
            if offset_field & 0xFFF8:
                break  # what follows is the middle of something
        elif protocol in _SKIPPED:
            if offset + 8 > length:
                raise FlowError(DropReason.MALFORMED)
            protocol, offset = packet[offset], offset + 8 + packet[offset + 1] * 8
            if offset > length:
                raise FlowError(DropReason.MALFORMED)
        else:
            break
    else:
        raise FlowError(DropReason.UNSUPPORTED)
    return protocol, offset, offset_field


def _ports(
    packet: Buffer, protocol: int, offset: int, length: int, *, first: bool, whole: bool
) -> tuple[int | None, int | None]:
    """Return the port selectors of both sides; None where the packet shows none.

    A whole packet too short for its ports is malformed; a first fragment may be that short.
    """
    if not first:
        return None, None
    size = 4 if protocol in PORT_PROTOCOLS else 2 if protocol in (ICMP, ICMPV6) else 0
    if size == 0:
        return None, None
    if offset + size > length:
        if whole:
            raise FlowError(DropReason.MALFORMED)
        return None, None
    front = packet[offset] << 8 | packet[offset + 1]
    return (front, packet[offset + 2] << 8 | packet[offset + 3]) if size == 4 else (front, front)
