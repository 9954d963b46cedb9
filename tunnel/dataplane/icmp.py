"""The two answers to a packet too big for the tunnel: an ICMP error to its source, or IPv4 fragments.

RFC 4301 section 8.2.1, RFC 1191 section 4, RFC 4443 section 3.2.
"""

from __future__ import annotations

import struct

from policy.selectors import ICMP, ICMPV6
from tunnel.dataplane.checksum import checksum, pseudo_header
from tunnel.dataplane.contract import Buffer
from tunnel.dataplane.esp import Segment
from tunnel.dataplane.flow import Parsed

#: No IPv6 link is smaller (RFC 8200 section 5).
MIN_IPV6_MTU = 1280
_HOP_LIMIT = 64
#: How much of the packet an error quotes: the whole error stays within 576 (RFC 1812 section 4.3.2.3) or 1280.
_QUOTE_V4, _QUOTE_V6 = 548, MIN_IPV6_MTU - 48


def packet_too_big(packet: Buffer, parsed: Parsed, mtu: int) -> bytes | None:
    """Return the ICMP error that tells the source of *packet* to send no more than *mtu* octets.

    The error comes from the packet's destination: an address of this host would be a martian on the TUN. None
    where no error may be sent (RFC 1122 section 3.2.2, RFC 4443 section 2.4 e).
    """
    flow = parsed.flow
    if parsed.later_fragment or parsed.icmp_error or flow.source == 0:
        return None
    if flow.version == 4:
        if flow.source >> 28 >= 14 or flow.destination >> 28 >= 14:
            return None
        return _too_big_v4(bytes(packet[: min(parsed.length, _QUOTE_V4)]), mtu)
    if flow.source >> 120 == 0xFF:
        return None
    return _too_big_v6(bytes(packet[: min(parsed.length, _QUOTE_V6)]), mtu)


def _too_big_v4(quote: bytes, mtu: int) -> bytes:
    """Destination unreachable, fragmentation needed and DF set."""
    body = struct.pack("!BBHHH", 3, 4, 0, 0, mtu) + quote
    body = body[:2] + checksum(body).to_bytes(2, "big") + body[4:]
    front = struct.pack("!BBHHHBBH", 0x45, 0xC0, 20 + len(body), 0, 0x4000, _HOP_LIMIT, ICMP, 0)
    header = front + quote[16:20] + quote[12:16]
    return header[:10] + checksum(header).to_bytes(2, "big") + header[12:] + body


def _too_big_v6(quote: bytes, mtu: int) -> bytes:
    """Packet too big."""
    body = struct.pack("!BBHI", 2, 0, 0, mtu) + quote
    addresses = quote[24:40] + quote[8:24]
    value = checksum(body, pseudo_header(addresses, ICMPV6, len(body)))
    body = body[:2] + value.to_bytes(2, "big") + body[4:]
    return struct.pack("!IHBB", 6 << 28, len(body), ICMPV6, _HOP_LIMIT) + addresses + body


def fragments(packet: Buffer, mtu: int) -> list[Segment]:
    """Return *packet*, complete and IPv4 without DF, as fragments of at most *mtu* octets (RFC 791 section 3.2).

    A fragment may be cut again. *mtu* leaves room for a header and eight octets.
    """
    first_header = bytes(packet[: (packet[0] & 15) * 4])
    later_header = first_header[:20] + _copied_options(first_header[20:])
    field = int.from_bytes(first_header[6:8], "big")
    more, position = field & 0x2000, (field & 0x1FFF) * 8
    offset, end, header = len(first_header), len(packet), first_header
    result: list[Segment] = []
    while offset < end:
        room = (mtu - len(header)) // 8 * 8
        size = end - offset if len(header) + end - offset <= mtu else room
        flags = 0x2000 if offset + size < end else more
        front = bytearray(header)
        front[0] = 0x40 | len(header) // 4
        struct.pack_into("!H", front, 2, len(header) + size)
        struct.pack_into("!HHH", front, 6, flags | position // 8, front[8] << 8 | front[9], 0)
        struct.pack_into("!H", front, 10, checksum(front))
        result.append((bytes(front), packet[offset : offset + size]))
        offset, position, header = offset + size, position + size, later_header
    return result


def _copied_options(options: bytes) -> bytes:
    """Return the options that every fragment carries (copied flag, RFC 791 section 3.1), padded."""
    copied, index = b"", 0
    while index < len(options) and options[index] != 0:
        if options[index] == 1:
            index += 1
            continue
        size = options[index + 1] if index + 1 < len(options) else 0
        if size < 2 or index + size > len(options):
            break
        if options[index] & 0x80:
            copied += options[index : index + size]
        index += size
    return copied + bytes(-len(copied) % 4)
