"""The TUN device: python-pytun creates it, then only its descriptor is used.

Opened with a virtio header from the first packet on, so that one read brings a superpacket and one write takes
one. Which superpackets the kernel accepts is probed; what it refuses at run time is switched off (some kernels
advertise what they cannot do).
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path as FilePath

import pytun

from tunnel.dataplane.contract import Buffer, TunFrame, TunOffload
from tunnel.dataplane.offload import PLAIN_VNET, Frame, segments
from tunnel.host.system import HostError, run

_TUNSETPERSIST = 0x400454CB
_TUNSETOFFLOAD = 0x400454D0
_SIOCSIFMTU = 0x8922
#: TUN_F_CSUM | TSO4 | TSO6 | USO4 | USO6 since Linux 6.2, without USO before; USO4 and USO6 only go together.
_LADDER = (
    (0x67, TunOffload(tso4=True, tso6=True, uso4=True, uso6=True)),
    (0x07, TunOffload(tso4=True, tso6=True, uso4=False, uso6=False)),
    (0x00, TunOffload(tso4=False, tso6=False, uso4=False, uso6=False)),
)
OFFLOAD_NONE = _LADDER[-1][1]
#: virtio header and the largest IP packet.
_SLOT = 10 + 65536
#: Reads of no more octets than this are collected before they are copied out, at most so many at a time.
_SMALL = 2048
_MAX_READS = 256
#: Octets of one read: a few milliseconds of work.
_READ_OCTETS = 1 << 20
_QUEUE = 1000


class TunGone(Exception):
    """The device was deleted under us."""


class Tun:
    """An open TUN device with a virtio header, non-blocking and persistent.

    *refused* is called once with the offloads left when the kernel refuses a superpacket at run time.
    """

    def __init__(self, name: str, *, offload: str = "auto", refused: Callable[[TunOffload], None]) -> None:
        self.name = name
        self._refused = refused
        self._view = memoryview(bytearray(_MAX_READS * _SMALL + _SLOT))
        self._device = _open(name)
        self._closed = False
        self.fd = self._device.fileno()
        os.set_blocking(self.fd, False)
        os.set_inheritable(self.fd, False)
        fcntl.ioctl(self.fd, _TUNSETPERSIST, 1)
        self.offload = self._probe(offload)
        #: Packets that the kernel would not take.
        self.write_errors = 0

    def up(self, mtu: int) -> None:
        """Set MTU and queue length and bring the device up."""
        # No link-local address: the kernel would send neighbour discovery of its own into the TUN.
        run(["ip", "link", "set", "dev", self.name, "addrgenmode", "none"])
        run(["ip", "link", "set", "dev", self.name, "mtu", str(mtu), "txqueuelen", str(_QUEUE), "up"])

    def set_mtu(self, mtu: int) -> None:
        """Change the MTU, at once: the event loop calls this. HostError when the kernel refuses."""
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                fcntl.ioctl(sock.fileno(), _SIOCSIFMTU, struct.pack("16si12x", self.name.encode(), mtu))
        except OSError as error:
            raise HostError(f"the MTU of {self.name} cannot be set to {mtu}: {error.strerror}") from error

    def read(self, limit: int) -> list[TunFrame]:
        """Return what is ready, *limit* reads or a mebibyte at the most. TunGone when the device was deleted.

        Small reads of one size that follow each other become one frame.
        """
        frames: list[TunFrame] = []
        view, fd, readv = self._view, self.fd, os.readv
        start = end = run = octets = 0  # the reads from start to end are of *run* octets each
        for _ in range(min(limit, _MAX_READS)):
            try:
                size = readv(fd, (view[end:],))
            except BlockingIOError:
                break
            except OSError as error:
                raise TunGone(error.strerror) from error
            if size == 0:
                break
            if size != run:
                if end > start:
                    frames.append(_frame(view[start:end], run))
                start, run = end, size
            if size > _SMALL:
                frames.append(TunFrame(bytes(view[end : end + size])))
                run = 0
                octets += size
                if octets >= _READ_OCTETS:
                    break
            else:
                end += size
        if end > start:
            frames.append(_frame(view[start:end], run))
        return frames

    def write(self, frames: Sequence[tuple[Buffer, ...]]) -> None:
        """Write packets; a superpacket that the kernel refuses is written segment by segment from then on."""
        for frame in frames:
            try:
                os.writev(self.fd, frame)
            except OSError as error:
                if error.errno == errno.EINVAL and self._is_super(frame):
                    self._write_singly(frame)
                elif error.errno in (errno.EBADFD, errno.ENODEV):
                    raise TunGone(error.strerror) from error
                else:
                    self.write_errors += 1

    def close(self) -> None:
        """Close the descriptor; the persistent device stays. May be called again."""
        if not self._closed:
            self._closed = True
            self._device.close()

    def destroy(self) -> None:
        """Remove the device, if nobody else has."""
        if not self._closed:
            with suppress(OSError):
                fcntl.ioctl(self.fd, _TUNSETPERSIST, 0)
        self.close()

    def _probe(self, offload: str) -> TunOffload:
        for bits, meaning in _LADDER if offload != "off" else _LADDER[-1:]:
            try:
                fcntl.ioctl(self.fd, _TUNSETOFFLOAD, bits)
            except OSError:
                continue
            return meaning
        return OFFLOAD_NONE

    def _is_super(self, frame: tuple[Buffer, ...]) -> bool:
        return bytes(frame[0][:10]) != PLAIN_VNET

    def _write_singly(self, frame: tuple[Buffer, ...]) -> None:
        if self.offload != OFFLOAD_NONE:
            self.offload = OFFLOAD_NONE
            self._refused(OFFLOAD_NONE)
        for parts in segments(Frame(b"".join(bytes(part) for part in frame))):
            try:
                os.writev(self.fd, (PLAIN_VNET, *parts))
            except OSError:
                self.write_errors += 1


def _frame(reads: memoryview, size: int) -> TunFrame:
    """Return one or several reads of *size* octets each."""
    return TunFrame(bytes(reads), size if len(reads) > size else 0)


def _open(name: str) -> pytun.TunTapDevice:
    try:
        return pytun.TunTapDevice(name=name, flags=pytun.IFF_TUN | pytun.IFF_NO_PI | pytun.IFF_VNET_HDR)
    except (OSError, pytun.Error) as error:
        code = error.args[0] if error.args and isinstance(error.args[0], int) else None
        if not FilePath("/dev/net/tun").exists():
            raise HostError(
                "/dev/net/tun is missing: load the module (modprobe tun), or give the container the device"
            ) from error
        if code == errno.EPERM:
            raise HostError("opening the TUN device needs root (or CAP_NET_ADMIN)") from error
        if code == errno.EBUSY:
            raise HostError(
                f"the TUN device {name!r} is in use: is another agent running on this host?"
            ) from error
        if code == errno.EINVAL:
            raise HostError(
                f"{name!r} exists and is no TUN device of ours: choose another name for agent.tun"
            ) from error
        raise HostError(f"the TUN device {name!r} cannot be opened: {error}") from error
