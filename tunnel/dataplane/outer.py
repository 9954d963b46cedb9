"""The IP header around ESP and AH, where we make it ourselves: transport mode, and AH in both modes.

RFC 4303 section 3.1 and RFC 4302 section 3.1 say where the IPsec header goes; RFC 4301 section 5.1.2 what the
outer header of a tunnel says.
"""

from __future__ import annotations

import struct

from policy.path import Path
from tunnel.dataplane.checksum import checksum
from tunnel.dataplane.contract import Buffer, DropReason
from tunnel.dataplane.flow import FRAGMENT, FlowError

ESP, AH = 50, 51
_HOP_BY_HOP, _ROUTING, _DESTINATION = 0, 43, 60
#: Offset of the protocol field, and the octets of a header without options, by IP version.
PROTOCOL_AT = {4: 9, 6: 6}
BASE = {4: 20, 6: 40}
_HOP_LIMIT = 64
_DF = 0x4000
_U16 = struct.Struct("!H")


class Front:
    """What of a packet stays before the IPsec header in transport mode.

    *length* octets: the IPv4 header with its options; of IPv6 the header with hop-by-hop and routing headers, and
    destination options that stand before a routing header. *at* is where it says what follows.
    """

    __slots__ = ("at", "length")

    def __init__(self, packet: Buffer) -> None:
        """FlowError for a chain of headers that does not hold together, or a fragment."""
        if packet[0] >> 4 == 4:
            self.at, self.length = 9, (packet[0] & 15) * 4
            return
        self.at, self.length = 6, 40
        at, end, kind = 6, 40, packet[6]
        while kind in (_HOP_BY_HOP, _ROUTING, _DESTINATION):
            if end + 8 > len(packet):
                raise FlowError(DropReason.MALFORMED)
            at, kind, end, was = end, packet[end], end + 8 + packet[end + 1] * 8, kind
            if end > len(packet):
                raise FlowError(DropReason.MALFORMED)
            if was != _DESTINATION:  # what precedes a routing header, destination options too, stays before
                self.at, self.length = at, end
        if kind == FRAGMENT:
            raise FlowError(DropReason.FRAGMENT_PORTS)


def carry(front: Buffer, at: int, protocol: int, payload: int) -> bytes:
    """Return the headers *front* saying, at offset *at*, that *payload* octets of *protocol* follow."""
    if front[0] >> 4 == 4:
        made = b"".join(
            (front[:2], _U16.pack(len(front) + payload), front[4:9], bytes((protocol, 0, 0)), front[12:])
        )
        return made[:10] + _U16.pack(-int.from_bytes(made, "big") % 65535) + made[12:]
    header = bytearray(front)
    header[at] = protocol
    _U16.pack_into(header, 4, len(header) - 40 + payload)
    return bytes(header)


def fresh(path: Path, protocol: int, payload: int, *, tos: int, identification: int = 0, df: bool = True) -> bytes:
    """Return a new outer header from our end of *path* to the other."""
    source, destination = path.local.address.packed, path.remote.address.packed
    return header(source, destination, protocol, payload, tos=tos, identification=identification, df=df)


def header(
    source: bytes,
    destination: bytes,
    protocol: int,
    payload: int,
    *,
    tos: int,
    identification: int = 0,
    df: bool = True,
) -> bytes:
    """Return an IP header between two addresses as octets."""
    if len(source) == 16:
        return struct.pack("!IHBB", 6 << 28 | tos << 20, payload, protocol, _HOP_LIMIT) + source + destination
    front = struct.pack(
        "!BBHHHBBH", 0x45, tos, 20 + payload, identification, _DF if df else 0, _HOP_LIMIT, protocol, 0
    )
    made = front + source + destination
    return made[:10] + checksum(made).to_bytes(2, "big") + made[12:]


def fragments_v6(packet: bytes, mtu: int, identification: int) -> list[bytes]:
    """Return *packet*, IPv6 and ours, as fragments of at most *mtu* octets (RFC 8200 section 4.5)."""
    front = Front(packet)
    kind, rest = packet[front.at], packet[front.length :]
    room = (mtu - front.length - 8) // 8 * 8
    made: list[bytes] = []
    for offset in range(0, len(rest), room):
        piece = rest[offset : offset + room]
        more = offset + room < len(rest)
        extension = struct.pack("!BBHI", kind, 0, offset | more, identification)
        outside = carry(packet[: front.length], front.at, FRAGMENT, 8 + len(piece))
        made.append(outside + extension + piece)
    return made
