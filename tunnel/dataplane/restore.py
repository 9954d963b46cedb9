"""The IP packet that transport mode and AH carried, put together again (RFC 4303 section 3.1.1)."""

from __future__ import annotations

import struct

from policy.selectors import ICMPV6, UDP
from tunnel.dataplane.checksum import checksum, pseudo_header
from tunnel.dataplane.contract import Buffer, WireDatagrams
from tunnel.dataplane.flow import Parsed
from tunnel.dataplane.offload import CHECKSUM_OFFSET
from tunnel.dataplane.outer import PROTOCOL_AT, carry, header

_U16 = struct.Struct("!H")
#: Where the checksums that cover the addresses are.
_CHECKSUMS = {**CHECKSUM_OFFSET, ICMPV6: 2}


def received(item: WireDatagrams, protocol: int, payload: int) -> bytes:
    """Return the outer header that *payload* octets of *protocol* came behind, made anew where it is not known."""
    if item.header:
        return bytes(item.header)
    remote, local = item.path.remote.address.packed, item.path.local.address.packed
    return header(remote, local, protocol, payload, tos=item.tos)


def is_fragment(header: Buffer) -> bool:
    """Whether an IPv4 header, if it is there, says that a fragment follows."""
    return len(header) >= 20 and header[0] >> 4 == 4 and bool(header[6] & 0x3F or header[7])


def front_of(item: WireDatagrams, protocol: int, payload: int) -> bytes:
    """Return the IP header that stood before *payload* octets of *protocol* until they were protected."""
    front = received(item, protocol, payload)
    return carry(front, _says_what_follows(front), protocol, payload)


def with_checksum(packet: bytes, parsed: Parsed) -> bytes:
    """Return *packet* with the checksum above IP made anew: a NAT changed the addresses that it covers.

    RFC 3948 section 3.1.2. That it arrived as it was sent, ESP has proved. A UDP checksum of zero stays.
    """
    protocol, start = parsed.flow.protocol, parsed.transport
    if protocol not in _CHECKSUMS or parsed.fragment:
        return packet
    at = start + _CHECKSUMS[protocol]
    if at + 2 > len(packet) or (protocol == UDP and packet[at : at + 2] == b"\0\0"):
        return packet
    addresses = packet[12:20] if parsed.flow.version == 4 else packet[8:40]
    body = packet[start:at] + b"\0\0" + packet[at + 2 :]
    value = checksum(body, pseudo_header(addresses, protocol, len(body)))
    if value == 0 and protocol == UDP:
        value = 0xFFFF
    return packet[:at] + _U16.pack(value) + packet[at + 2 :]


def _says_what_follows(front: bytes) -> int:
    """Return the offset of the field that says what follows the last header of *front*."""
    if front[0] >> 4 == 4:
        return PROTOCOL_AT[4]
    at, end = PROTOCOL_AT[6], 40
    while end + 1 < len(front):
        at, end = end, end + 8 + front[end + 1] * 8
    return at
