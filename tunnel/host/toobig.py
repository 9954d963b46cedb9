"""ICMPv6 Packet Too Big about our raw ESP and AH packets.

For UDP sockets and for all of IPv4 the kernel keeps the path MTU and refuses what exceeds it. For raw IPv6 it
does neither, unless errors are asked for by IPV6_RECVERR, which ``sockets`` must not set: so they are read here.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from ipaddress import IPv6Address

from policy.path import RAW_PORT, Endpoint
from tunnel.dataplane.contract import Transmit, WireDatagrams
from tunnel.host.marks import OWN_MARK

_SO_MARK = 36
_ICMP6_FILTER = 1
_PACKET_TOO_BIG = 2
_SLOT = 2048
#: ICMPv6 header with the MTU, and the IPv6 header that it quotes (RFC 4443 section 3.2).
_FRONT = struct.Struct("!BBHI")
_QUOTED = _FRONT.size + 40
_PROTOCOLS = (50, 51)


class TooBigSocket:
    """Listens for Packet Too Big alone. It sends nothing, and what it reads are no datagrams for the core."""

    blocked = False
    send_errors = 0
    unseen = 0
    reads = 16
    apart = None

    def __init__(self, path_mtu: Callable[[Endpoint, int], None]) -> None:
        self._path_mtu = path_mtu
        self.receive_errors = 0
        self._socket = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_MARK, OWN_MARK)
        passes = bytearray(b"\xff" * 32)  # a bit that is set blocks the type (RFC 3542 section 3.2)
        struct.pack_into("=I", passes, 0, 0xFFFF_FFFF & ~(1 << _PACKET_TOO_BIG))
        self._socket.setsockopt(socket.IPPROTO_ICMPV6, _ICMP6_FILTER, bytes(passes))
        self.fd = self._socket.fileno()

    def receive(self, limit: int, *, unseen: bool = True) -> list[WireDatagrams]:
        """Report the path MTUs that came; there are never datagrams."""
        for _ in range(limit):
            try:
                data = self._socket.recv(_SLOT)
            except BlockingIOError:
                break
            except OSError:
                self.receive_errors += 1
                continue
            found = parse(data)
            if found is not None:
                self._path_mtu(*found)
        return []

    def send(self, transmit: Transmit) -> None:
        """Nothing is sent here."""

    def flush(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def parse(data: bytes) -> tuple[Endpoint, int] | None:
    """Return where a packet of ours was too big, and the MTU there; None for an error about anything else.

    Nobody authenticated it: the core believes no MTU below IPv6's least, and none for longer than ten minutes.
    """
    if len(data) < _QUOTED:
        return None
    kind, _, _, mtu = _FRONT.unpack_from(data)
    quoted = data[_FRONT.size :]
    if kind != _PACKET_TOO_BIG or quoted[0] >> 4 != 6 or quoted[6] not in _PROTOCOLS or mtu > 65535:
        return None
    return Endpoint(IPv6Address(quoted[24:40]), RAW_PORT), mtu
