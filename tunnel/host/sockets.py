"""The wire side: UDP 500 and 4500, raw ESP and AH, IPv4 and IPv6, with the offloads that the kernel has.

Sockets are bound to the wildcard: the address a datagram came to is learned from the kernel, and the one it leaves
from is said with each message, so that addresses may come and go. They carry the agent's mark, which steering and
guard let pass. UDP_ENCAP is never set: it would hand ESP to the kernel's own IPsec.

While a raw socket is open the kernel answers no packet of its protocol with an ICMP error. Packets that come
whole, header and all, leave by a raw socket of their own (IP_HDRINCL): the kernel fills in an IPv4 identification
of 0 and the header's checksum, and changes nothing else.

IP_RECVERR is never set: an ICMP error, which anybody can forge, would raise EPOLLERR, and libuv stops watching a
descriptor that shows it. What ICMP says of the path MTU is in the kernel's routes: they are asked when the kernel
refuses a datagram as too long.
"""

from __future__ import annotations

import errno
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Container, Sequence
from dataclasses import replace

from policy.path import IKE_PORT, NATT_PORT, RAW_PORT, Endpoint, IpAddress, Path
from tunnel.dataplane.contract import Buffer, Transmit, WireDatagrams
from tunnel.host import cmsg, sockfilter
from tunnel.host.addresses import route_to
from tunnel.host.marks import OWN_MARK
from tunnel.host.system import HostError

_SO_MARK, _SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 36, 32, 33
#: Large enough for the burst of a superpacket or two per millisecond; larger hides loss as latency.
_SOCKET_BUFFER = 4 << 20
_SLOT = 65536
_CONTROL_SPACE = 256
#: Extension headers come as control messages: three of 2 KiB are more than any honest packet has.
_CONTROL_SPACE_RAW6 = 6400
#: IP protocols of the sockets that are not UDP; whole packets go out by the last.
UDP, ESP, AH, WHOLE = 17, 50, 51, 255
#: Stands for the protocol of the second socket of port 4500, which IKE comes to.
APART = 254
#: Reads a turn of the loop: what may be handshakes gets half a millisecond of it, what may be data a few
#: milliseconds, which is sixteen superpackets.
_HANDSHAKE_READS, _DATA_READS, _DATA_OCTETS = 8, 64, 16 << 16
RAW = {
    ESP: "raw ESP (IP protocol 50)",
    AH: "raw AH (IP protocol 51)",
    WHOLE: "whole IP packets (IP_HDRINCL)",
}
#: The path MTU toward one address is looked up once in this many seconds.
_MTU_EVERY = 0.05
_SPI = struct.Struct("!I")
#: A run of merged datagrams has so many control messages: addresses, traffic class, and the size of its segments.
_MERGED = 3
CUT_OFF = int(socket.MSG_TRUNC | socket.MSG_CTRUNC)
#: Paths remembered, so that the core compares them by identity; forged sources must not grow it without bound.
MAX_PATHS = 4096
#: Transmits that wait for a full socket; the TUN is not read meanwhile.
_MAX_WAITING = 256
#: The device cannot segment; or this datagram cannot be segmented, by its size or because the kernel is too old.
_GSO_IMPOSSIBLE = (errno.EIO, errno.EOPNOTSUPP)
_GSO_REFUSED = (*_GSO_IMPOSSIBLE, errno.EINVAL, errno.EMSGSIZE)

_EXTENSION_FLAGS = (
    cmsg.IPV6_RECVHOPLIMIT, cmsg.IPV6_RECVHOPOPTS, cmsg.IPV6_RECVRTHDR, cmsg.IPV6_RECVDSTOPTS,
)  # fmt: skip

PathMtuReport = Callable[[Endpoint, int], None]


class WireSocket:
    """One socket: UDP on *port*, or for port 0 a raw one of *protocol*; 255 is for whole packets out.

    IKE on port 4500 has a socket, and so a queue, of its own (*protocol* 254), which joins the first of that port:
    a flood of handshakes fills another queue than data does.
    """

    def __init__(
        self, version: int, port: int, protocol: int = UDP, *, offload: bool, path_mtu: PathMtuReport
    ) -> None:
        self.version, self.port, self.protocol = version, port, protocol
        self._path_mtu = path_mtu
        #: How many reads ``receive`` should be asked for in one turn of the loop.
        self.reads = _HANDSHAKE_READS if port == IKE_PORT or protocol == APART else _DATA_READS
        #: When the path MTU toward an address was told last.
        self._told: dict[IpAddress, float] = {}
        self._control_space = _CONTROL_SPACE_RAW6 if version == 6 and port == RAW_PORT else _CONTROL_SPACE
        self._slot = bytearray(_SLOT)
        self._view = memoryview(self._slot)
        self._paths: dict[tuple[object, bytes], Path] = {}
        #: How to send along a path: control messages and target.
        self._ways: dict[Path, tuple[cmsg.Ancillary, tuple[str, int]]] = {}
        self._waiting: deque[Transmit] = deque()
        self._gso = offload and port != RAW_PORT
        self._df: bool | None = None
        #: SPIs of the inbound SAs, and how many packets of other SPIs were dropped because of them.
        self.known: Container[int] | None = None
        self.unseen = 0
        #: The socket that IKE of this port comes to, if it has one of its own. A few of its messages go to the
        #: core before this one is read: an IKE message may bring the SA of the next packet.
        self.apart: WireSocket | None = None
        #: Datagrams that could not be sent, and received ones that were cut off or had no address.
        self.send_errors = 0
        self.receive_errors = 0
        self._socket = _open(version, port, protocol)
        try:
            self._configure(offload)
        except BaseException:
            self._socket.close()
            raise
        self.fd = self._socket.fileno()

    @property
    def blocked(self) -> bool:
        """Whether transmits wait for the socket to become writable."""
        return bool(self._waiting)

    @property
    def kernel_drops(self) -> int:
        """What the kernel dropped at this socket: impossible datagrams, and those that its full queue lost."""
        return sockfilter.dropped(self._socket)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def part(self, apart: WireSocket) -> bool:
        """Leave IKE to *apart*, which was bound to the same port after this one; False if the kernel cannot."""
        try:
            sockfilter.share(self._socket, sockfilter.WHICH)
        except OSError:  # before 4.5
            return False
        self.apart = apart
        return True

    def receive(self, limit: int, *, unseen: bool = True) -> list[WireDatagrams]:
        """Return what is ready, *limit* reads or a megabyte at the most.

        Of several packets for SPIs that are not ``known`` the first is returned, for the core to wonder about. The
        others are counted in ``unseen``, before anything is made of them, unless *unseen* is False.
        """
        datagrams: list[WireDatagrams] = []
        receive, view, space = self._socket.recvmsg_into, self._view, self._control_space
        known, told = self.known if unseen else None, False
        left = _DATA_OCTETS
        for _ in range(limit):
            try:
                size, ancillary, flags, peer = receive([view], space)
            except BlockingIOError:
                break
            except OSError:
                self.receive_errors += 1
                continue
            if flags & CUT_OFF:
                self.receive_errors += 1
                continue
            if known is not None and size >= 8 and len(ancillary) < _MERGED:
                spi = _SPI.unpack_from(view)[0]
                if spi and spi not in known:
                    if told:
                        self.unseen += 1
                        continue
                    told = True
            said = cmsg.parse(ancillary)
            item = self._datagram(size, said, peer)
            if item is None:
                self.receive_errors += 1
            else:
                datagrams.append(item)
            left -= size
            if left <= 0:
                break
        return datagrams

    def send(self, transmit: Transmit) -> None:
        """Send, or let it wait while the socket is full; then ``blocked`` says so."""
        rest = transmit if self._waiting else self._try(transmit)
        if rest is None:
            return
        if len(self._waiting) >= _MAX_WAITING:
            self.send_errors += len(rest.buffers)
        else:
            self._waiting.append(rest)

    def flush(self) -> None:
        """Send what waits, as far as the socket takes it."""
        waiting = self._waiting
        while waiting:
            rest = self._try(waiting[0])
            if rest is not None:
                waiting[0] = rest
                return
            waiting.popleft()

    def _try(self, transmit: Transmit) -> Transmit | None:
        """Send all datagrams of *transmit*; return those that the full socket did not take, or None."""
        ancillary, target = self._way(transmit.path)
        if transmit.whole:
            return self._singly(transmit, ancillary, target, None)
        self._dont_fragment(transmit.df)
        if transmit.tos:
            ancillary = [*ancillary, cmsg.traffic_class(self.version, transmit.tos)]
        refused = None
        if len(transmit.buffers) > 1 and transmit.segment_size and self._gso:
            segmented = [*ancillary, cmsg.segmentation(transmit.segment_size)]
            refused = self._sendmsg(transmit.buffers, segmented, target)
            if refused is None:
                return None
            if refused == errno.EAGAIN:
                return transmit
            if refused not in _GSO_REFUSED:
                self.send_errors += len(transmit.buffers)
                return None
            if refused in _GSO_IMPOSSIBLE:
                self._gso = False
        return self._singly(transmit, ancillary, target, refused)

    def _singly(
        self, transmit: Transmit, ancillary: cmsg.Ancillary, target: tuple[str, int], refused: int | None
    ) -> Transmit | None:
        """Send one datagram a call; *refused* is why the kernel would not segment them."""
        failed = too_big = 0
        for number, buffer in enumerate(transmit.buffers):
            outcome = self._sendmsg((buffer,), ancillary, target)
            if outcome == errno.EAGAIN:
                self.send_errors += failed
                return replace(transmit, buffers=transmit.buffers[number:])
            failed += outcome is not None
            too_big += outcome == errno.EMSGSIZE
        self.send_errors += failed
        if too_big:
            self._report_mtu(transmit.path.remote)
        elif refused == errno.EINVAL and not failed:
            self._gso = False  # not the path's fault: the kernel is too old
        return None

    def _report_mtu(self, remote: Endpoint) -> None:
        """A datagram exceeds the path MTU that the kernel has learned: say which that is."""
        now = time.monotonic()
        if now - self._told.get(remote.address, -1.0) < _MTU_EVERY:
            return
        if len(self._told) >= MAX_PATHS:
            self._told.clear()
        self._told[remote.address] = now
        route = route_to(remote.address)
        if route is not None:
            self._path_mtu(Endpoint(remote.address, self.port), route.mtu)

    def _way(self, path: Path) -> tuple[cmsg.Ancillary, tuple[str, int]]:
        way = self._ways.get(path)
        if way is None:
            if len(self._ways) >= MAX_PATHS:
                self._ways.clear()
            way = cmsg.source(path.local.address), (_text(path.remote.address), path.remote.port)
            self._ways[path] = way
        return way

    def _sendmsg(
        self, buffers: Sequence[Buffer], ancillary: cmsg.Ancillary, target: tuple[str, int]
    ) -> int | None:
        """Return None when sent, else the errno; EAGAIN when the socket or the device's queue is full."""
        try:
            self._socket.sendmsg(buffers, ancillary, 0, target)
        except OSError as error:
            return errno.EAGAIN if error.errno == errno.ENOBUFS else error.errno
        return None

    def _dont_fragment(self, df: bool) -> None:
        if df is self._df:
            return
        self._df = df
        # Without DF the kernel fragments; with it, it refuses what exceeds the path MTU that it knows.
        mode = cmsg.PMTUDISC_DO if df else cmsg.PMTUDISC_DONT
        if self.version == 4:
            self._socket.setsockopt(socket.IPPROTO_IP, cmsg.IP_MTU_DISCOVER, mode)
        else:
            self._socket.setsockopt(socket.IPPROTO_IPV6, cmsg.IPV6_MTU_DISCOVER, mode)
            self._socket.setsockopt(socket.IPPROTO_IPV6, cmsg.IPV6_DONTFRAG, int(df))

    def _datagram(self, size: int, said: cmsg.Received, peer: object) -> WireDatagrams | None:
        view, tos, local = self._view, said.tos, said.local
        start = 0
        if self.port == RAW_PORT and self.version == 4:  # a raw IPv4 socket reads the IP header too
            start = (view[0] & 15) * 4
            if size < start or start < 20:
                return None
            tos, local = view[1], bytes(view[16:20])
        path = self._paths.get((peer, local))
        if path is None:
            if not local or not isinstance(peer, tuple):
                return None
            remote = cmsg.address(socket.inet_pton(self._socket.family, peer[0].partition("%")[0]))
            port = RAW_PORT if self.port == RAW_PORT else peer[1]
            path = Path(Endpoint(cmsg.address(local), self.port), Endpoint(remote, port))
            if len(self._paths) >= MAX_PATHS:
                self._paths.clear()
            self._paths[peer, local] = path
        data = bytes(view[start:size])
        if self.port != RAW_PORT:
            return WireDatagrams(path, data, said.segment_size, tos)
        if self.version == 4:
            return WireDatagrams(path, data, 0, tos, self.protocol, bytes(view[:start]))
        header = cmsg.header6(said, path.remote.address.packed, self.protocol, size)
        return WireDatagrams(path, data, 0, tos, self.protocol, header)

    def _configure(self, offload: bool) -> None:
        sock = self._socket
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, _SO_MARK, OWN_MARK)
        for option in (_SO_RCVBUFFORCE, _SO_SNDBUFFORCE):
            sock.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BUFFER)
        if self.version == 4:
            level = socket.IPPROTO_IP
            flags: tuple[int, ...] = (cmsg.IP_PKTINFO, cmsg.IP_RECVTOS)
        else:
            level = socket.IPPROTO_IPV6
            flags = (cmsg.IPV6_RECVPKTINFO, cmsg.IPV6_RECVTCLASS)
            if self.port == RAW_PORT:
                flags += _EXTENSION_FLAGS
        for flag in flags:
            sock.setsockopt(level, flag, 1)
        if self.port in sockfilter.PROGRAMS:
            sockfilter.attach(sock, sockfilter.PROGRAMS[self.port])
        if offload and self.port == NATT_PORT:
            try:
                sock.setsockopt(cmsg.SOL_UDP, cmsg.UDP_GRO, 1)
            except OSError:
                self._gso = False  # a kernel before 5.0 has neither


def _text(address: IpAddress) -> str:
    """Return *address* as text, as ``str`` does at a fifth of its price: strangers have many addresses."""
    return socket.inet_ntop(socket.AF_INET if address.version == 4 else socket.AF_INET6, address.packed)


def _open(version: int, port: int, protocol: int) -> socket.socket:
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    what = RAW[protocol] if port == RAW_PORT else f"UDP port {port}"
    try:
        if port == RAW_PORT:
            return socket.socket(family, socket.SOCK_RAW, protocol)
        sock = socket.socket(family, socket.SOCK_DGRAM)
    except PermissionError as error:
        raise HostError(f"opening a socket for {what} needs root (or CAP_NET_RAW and CAP_NET_ADMIN)") from error
    try:
        if version == 6:
            sock.setsockopt(socket.IPPROTO_IPV6, cmsg.IPV6_V6ONLY, 1)
        if port == NATT_PORT:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(("", port))
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise HostError(
                f"{what} (IPv{version}) is in use: another IKE daemon runs here (strongSwan, Libreswan, a second "
                "agent); stop it first"
            ) from error
        raise HostError(f"{what} (IPv{version}) cannot be bound: {error.strerror}") from error
    return sock
