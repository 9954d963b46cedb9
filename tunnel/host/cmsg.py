"""Control messages of UDP and raw sockets: local address, DSCP and ECN, segment sizes, IPv6 extension headers."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import TypeAlias

from policy.path import IpAddress

Ancillary: TypeAlias = list[tuple[int, int, bytes]]

SOL_UDP = 17
UDP_SEGMENT, UDP_GRO = 103, 104
IP_TOS, IP_PKTINFO, IP_MTU_DISCOVER, IP_RECVTOS, IP_MTU = 1, 8, 10, 13, 14
IPV6_MTU_DISCOVER, IPV6_MTU, IPV6_V6ONLY = 23, 24, 26
IPV6_RECVPKTINFO, IPV6_PKTINFO, IPV6_RECVTCLASS, IPV6_TCLASS = 49, 50, 66, 67
IPV6_RECVHOPLIMIT, IPV6_HOPLIMIT, IPV6_RECVHOPOPTS, IPV6_HOPOPTS = 51, 52, 53, 54
IPV6_RECVRTHDR, IPV6_RTHDR, IPV6_RECVDSTOPTS, IPV6_DSTOPTS = 56, 57, 58, 59
IPV6_DONTFRAG = 62
PMTUDISC_DONT, PMTUDISC_DO = 0, 2
#: Level and option that tell the path MTU of a connected socket, by IP version.
PATH_MTU = {4: (socket.IPPROTO_IP, IP_MTU), 6: (socket.IPPROTO_IPV6, IPV6_MTU)}

#: Next-header numbers (RFC 8200 section 4) of the extension headers that control messages carry.
_EXTENSIONS = {IPV6_HOPOPTS: 0, IPV6_RTHDR: 43, IPV6_DSTOPTS: 60}

_PKTINFO4 = struct.Struct("=I4s4s")
_PKTINFO6 = struct.Struct("=16sI")
_INT = struct.Struct("=i")
_U16 = struct.Struct("=H")


@dataclass(frozen=True, slots=True)
class Received:
    """What the control messages of one received datagram say. *local* is the packed destination address.

    *extensions* are the IPv6 extension headers in the packet's order, each with its next-header number.
    """

    local: bytes
    tos: int
    segment_size: int
    hop_limit: int = 0
    extensions: tuple[tuple[int, bytes], ...] = ()


def parse(ancillary: Ancillary) -> Received:
    """Return the meaning of the control messages of one recvmsg."""
    local, tos, segment, hops = b"", 0, 0, 0
    extensions: tuple[tuple[int, bytes], ...] = ()
    for level, kind, data in ancillary:
        if level == SOL_UDP and kind == UDP_GRO:
            segment = _INT.unpack_from(data)[0]
        elif level == socket.IPPROTO_IP and kind == IP_PKTINFO:
            local = data[8:12]
        elif level == socket.IPPROTO_IPV6 and kind == IPV6_PKTINFO:
            local = data[:16]
        elif level == socket.IPPROTO_IP and kind == IP_TOS:
            tos = data[0]
        elif level == socket.IPPROTO_IPV6 and kind == IPV6_TCLASS:
            tos = _INT.unpack_from(data)[0] & 0xFF
        elif level == socket.IPPROTO_IPV6 and kind == IPV6_HOPLIMIT:
            hops = _INT.unpack_from(data)[0] & 0xFF
        elif level == socket.IPPROTO_IPV6 and kind in _EXTENSIONS:
            extensions += ((_EXTENSIONS[kind], data),)
    return Received(local, tos, segment, hops, extensions)


def header6(said: Received, peer: bytes, protocol: int, size: int) -> bytes:
    """Return the IPv6 header of a packet with extension headers, these with it; empty if it has none.

    *protocol* and *size* are those of the payload. The flow label, which the kernel does not tell, is 0: it is
    mutable to AH (RFC 4302 section 3.3.3.1.2).
    """
    if not said.extensions:
        return b""
    chain = b"".join(data for _, data in said.extensions)
    first = (6 << 28) | (said.tos << 20)
    start = struct.pack("!IHBB", first, (len(chain) + size) & 0xFFFF, said.extensions[0][0], said.hop_limit)
    return start + peer + said.local + chain


def source(local: IpAddress) -> Ancillary:
    """Return the control message that sends from *local*."""
    if local.version == 4:
        return [(socket.IPPROTO_IP, IP_PKTINFO, _PKTINFO4.pack(0, local.packed, bytes(4)))]
    return [(socket.IPPROTO_IPV6, IPV6_PKTINFO, _PKTINFO6.pack(local.packed, 0))]


def traffic_class(version: int, tos: int) -> tuple[int, int, bytes]:
    """Return the control message that sets the DSCP and ECN octet."""
    if version == 4:
        return (socket.IPPROTO_IP, IP_TOS, _INT.pack(tos))
    return (socket.IPPROTO_IPV6, IPV6_TCLASS, _INT.pack(tos))


def segmentation(size: int) -> tuple[int, int, bytes]:
    """Return the control message that has the kernel cut the payload into segments of *size*."""
    return (SOL_UDP, UDP_SEGMENT, _U16.pack(size))


def address(packed: bytes) -> IpAddress:
    """Return the address of 4 or 16 octets."""
    return IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed)
