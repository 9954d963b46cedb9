"""The TCP MSS option lowered to what a tunnel carries (RFC 9293 section 3.7.1).

A sender that is told early never sends what would not fit: the path MTU discovery of many networks does not work.
"""

from __future__ import annotations

import struct

_SYN = 0x02
_END, _NOTHING, _MSS = 0, 1, 2
#: No segment is made smaller than this: 536 is what every host takes (RFC 9293).
_FLOOR = 536
_U16 = struct.Struct("!H")


def clamped(packet: bytes, transport: int, largest: int) -> bytes | None:
    """Return the TCP SYN *packet* with its MSS lowered so that segments fit in *largest* octets.

    *transport* is where the TCP header is. None where nothing is to be lowered; an MSS is never raised. The option
    counts without IP options and extension headers, so they are taken off here.
    """
    if transport + 20 > len(packet) or not packet[transport + 13] & _SYN:
        return None
    at = _option(packet, transport)
    if at is None:
        return None
    before = _U16.unpack_from(packet, at + 2)[0]
    after = max(_FLOOR, largest - transport - 20)
    if after >= before:
        return None
    changed = bytearray(packet)
    _U16.pack_into(changed, at + 2, after)
    where = transport + 16
    total = ~_U16.unpack_from(packet, where)[0] & 0xFFFF
    if (at - transport) % 2:  # the option straddles the words of the checksum (RFC 1624)
        before, after = (value >> 8 | (value & 0xFF) << 8 for value in (before, after))
    total += (~before & 0xFFFF) + after
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    _U16.pack_into(changed, where, ~total & 0xFFFF)
    return bytes(changed)


def _option(packet: bytes, transport: int) -> int | None:
    """Return where the MSS option is."""
    at, end = transport + 20, transport + (packet[transport + 12] >> 4) * 4
    end = min(end, len(packet))
    while at < end and packet[at] != _END:
        if packet[at] == _NOTHING:
            at += 1
            continue
        size = packet[at + 1] if at + 1 < end else 0
        if size < 2 or at + size > end:
            return None
        if packet[at] == _MSS:
            return at if size == 4 else None
        at += size
    return None
