"""Many datagrams in one system call: sendmmsg(2) and recvmmsg(2), which Python does not have.

Raw sockets need it: the kernel neither cuts nor merges what goes through them. Structures are laid out in the
machine's own way by ``struct``; the C library is called by ctypes. Not for several threads at once.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import TypeAlias

from policy.path import IpAddress
from tunnel.dataplane.contract import Buffer
from tunnel.host.cmsg import Ancillary

#: struct msghdr (name and its length, iovec and their number, control messages and their octets, flags), and the
#: octets of the message behind it.
_MMSGHDR = struct.Struct("@PIPNPNi0PI0P")
_IOVEC = struct.Struct("@PN")
_CMSGHDR = struct.Struct("@Nii")
_ALIGN = struct.calcsize("@N")
_SOCKADDR = {4: struct.Struct("=H2s4s8x"), 6: struct.Struct("=H2s4x16s4x")}
_NAME = 28
_SLOT = 65536
#: Datagrams a call.
MOST = 64

_libc = ctypes.CDLL(None, use_errno=True)
_sendmmsg = _libc.sendmmsg
_sendmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int)
_recvmmsg = _libc.recvmmsg
_recvmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p)


#: One datagram: its octets, where it came from, control messages and flags as recvmsg(2) gives them. The octets
#: are valid until the next call.
Arrival: TypeAlias = tuple[memoryview, bytes, bytes, int]


class Outbox:
    """Sends datagrams with one target and the same control messages."""

    __slots__ = ("_control", "_headers", "_headers_at", "_iovecs", "_iovecs_at", "_name", "_said")

    def __init__(self) -> None:
        self._name, self._control = ctypes.create_string_buffer(_NAME), ctypes.create_string_buffer(256)
        self._iovecs = bytearray(_IOVEC.size * MOST)
        self._headers = bytearray(_MMSGHDR.size * MOST)
        self._iovecs_at, self._headers_at = _address(self._iovecs), _address(self._headers)
        self._said: tuple[bytes, bytes] | None = None

    def send(self, fd: int, buffers: Sequence[Buffer], name: bytes, control: bytes) -> int:
        """Send to *name* what the kernel takes of *buffers*, ``MOST`` at the most; return how many it took.

        Less than all says that the next one failed: sent by itself it tells why.
        """
        if (name, control) != self._said:
            self._address(name, control)
        buffers = buffers[:MOST]
        data = b"".join(buffers)
        at = ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value or 0
        words: list[int] = []
        for buffer in buffers:
            size = len(buffer)
            words += (at, size)
            at += size
        struct.pack_into("@" + "PN" * len(buffers), self._iovecs, 0, *words)
        return max(0, int(_sendmmsg(fd, self._headers_at, len(buffers), 0)))

    def _address(self, name: bytes, control: bytes) -> None:
        self._name.raw, self._control.raw = name.ljust(_NAME, b"\0"), control.ljust(256, b"\0")
        control_at = ctypes.addressof(self._control) if control else 0
        for index in range(MOST):
            _MMSGHDR.pack_into(
                self._headers, index * _MMSGHDR.size, ctypes.addressof(self._name), len(name),
                self._iovecs_at + index * _IOVEC.size, 1, control_at, len(control), 0, 0,
            )  # fmt: skip
        self._said = name, control


class Inbox:
    """Receives datagrams with up to *space* octets of control messages each."""

    __slots__ = ("_blank", "_controls", "_headers", "_headers_at", "_iovecs", "_names", "_slots", "_space")

    def __init__(self, space: int) -> None:
        self._space = space
        slots = bytearray(_SLOT * MOST)
        controls, names = bytearray(space * MOST), bytearray(_NAME * MOST)
        self._slots, self._controls, self._names = memoryview(slots), memoryview(controls), memoryview(names)
        self._iovecs = bytearray(_IOVEC.size * MOST)
        self._headers = bytearray(_MMSGHDR.size * MOST)
        self._headers_at = _address(self._headers)
        slots_at, iovecs_at = _address(slots), _address(self._iovecs)
        controls_at, names_at = _address(controls), _address(names)
        for index in range(MOST):
            _IOVEC.pack_into(self._iovecs, index * _IOVEC.size, slots_at + index * _SLOT, _SLOT)
            _MMSGHDR.pack_into(
                self._headers, index * _MMSGHDR.size, names_at + index * _NAME, _NAME,
                iovecs_at + index * _IOVEC.size, 1, controls_at + index * space, space, 0, 0,
            )  # fmt: skip
        self._blank = bytes(self._headers)

    def receive(self, fd: int, limit: int) -> list[Arrival]:
        """Return what waits at a non-blocking socket, *limit* or ``MOST`` datagrams at the most. OSError."""
        self._headers[:] = self._blank  # the kernel writes lengths and flags into it
        count = _recvmmsg(fd, self._headers_at, min(limit, MOST), 0, None)
        if count < 0:
            code = ctypes.get_errno()
            if code in (errno.EAGAIN, errno.EINTR):
                return []
            raise OSError(code, os.strerror(code))
        slots, controls, names, space = self._slots, self._controls, self._names, self._space
        headers = _MMSGHDR.iter_unpack(memoryview(self._headers)[: count * _MMSGHDR.size])
        return [
            (
                slots[index * _SLOT : index * _SLOT + size],
                bytes(names[index * _NAME : index * _NAME + name]),
                bytes(controls[index * space : index * space + control]),
                flags,
            )
            for index, (_, name, _, _, _, control, flags, size) in enumerate(headers)
        ]


def sockaddr(address: IpAddress, port: int) -> bytes:
    """Return a struct sockaddr_in or sockaddr_in6."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    return _SOCKADDR[address.version].pack(family, port.to_bytes(2, "big"), address.packed)


def endpoint(name: bytes) -> tuple[IpAddress, int] | None:
    """Return address and port of a struct sockaddr_in or sockaddr_in6; None if it is neither."""
    family = struct.unpack_from("=H", name)[0] if len(name) >= 2 else None
    if family == socket.AF_INET and len(name) >= _SOCKADDR[4].size:
        _, port, packed = _SOCKADDR[4].unpack_from(name)
        return IPv4Address(packed), int.from_bytes(port, "big")
    if family == socket.AF_INET6 and len(name) >= _SOCKADDR[6].size:
        _, port, packed = _SOCKADDR[6].unpack_from(name)
        return IPv6Address(packed), int.from_bytes(port, "big")
    return None


def packed(ancillary: Ancillary) -> bytes:
    """Return control messages as sendmsg(2) takes them."""
    parts: list[bytes] = []
    for level, kind, data in ancillary:
        size = _CMSGHDR.size + len(data)
        parts += (_CMSGHDR.pack(size, level, kind), data, bytes(-size % _ALIGN))
    return b"".join(parts)


def unpacked(control: bytes) -> Ancillary:
    """Return control messages from what recvmsg(2) gave; one that is cut off, and what follows it, is left out."""
    found: Ancillary = []
    at = 0
    while at + _CMSGHDR.size <= len(control):
        size, level, kind = _CMSGHDR.unpack_from(control, at)
        if size < _CMSGHDR.size or at + size > len(control):
            break
        found.append((level, kind, control[at + _CMSGHDR.size : at + size]))
        at += size + -size % _ALIGN
    return found


def _address(buffer: bytearray) -> int:
    """Return where *buffer* lies; it must not be resized afterwards."""
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))
