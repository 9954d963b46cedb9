"""The TUN device: what is probed, what is refused, and what happens when it goes away."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import Any

import pytest

from tests.support.packets import packet_of, tcp4, tun, udp4
from tunnel.dataplane.contract import TunFrame, TunOffload
from tunnel.host import tun as host_tun
from tunnel.host.system import HostError
from tunnel.host.tun import OFFLOAD_NONE, Tun, TunGone

_TUNSETOFFLOAD = 0x400454D0


class Device:
    """A pipe that behaves as much like a TUN as is needed."""

    def __init__(self) -> None:
        self.far, self.near = os.pipe()

    def fileno(self) -> int:
        return self.near

    def close(self) -> None:
        os.close(self.near)


class Kernel:
    """Takes ioctls and writes; refuses what it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *refused_offloads: int) -> None:
        self.device = Device()
        self.ioctls: list[tuple[int, int]] = []
        self.written: list[bytes] = []
        self.refuse: list[int] = []
        self.refused_offloads = refused_offloads
        self.reads: list[bytes | int] = []
        monkeypatch.setattr(host_tun, "_open", lambda name: self.device)
        monkeypatch.setattr(fcntl, "ioctl", self.ioctl)
        monkeypatch.setattr(os, "writev", self.writev)
        monkeypatch.setattr(os, "readv", self.readv)

    def ioctl(self, fd: int, number: int, value: int) -> int:
        if number == _TUNSETOFFLOAD and value in self.refused_offloads:
            raise OSError(errno.EINVAL, "no")
        self.ioctls.append((number, value))
        return 0

    def writev(self, fd: int, parts: Any) -> int:
        octets = b"".join(bytes(part) for part in parts)
        if self.refuse and (error := self.refuse.pop(0)):
            raise OSError(error, os.strerror(error))
        self.written.append(octets)
        return len(octets)

    def readv(self, fd: int, buffers: Any) -> int:
        if not self.reads:
            raise BlockingIOError
        found = self.reads.pop(0)
        if isinstance(found, int):
            raise OSError(found, os.strerror(found))
        buffers[0][: len(found)] = found
        return len(found)


def opened(refused: list[TunOffload] | None = None, **options: str) -> Tun:
    return Tun("mg0", refused=(refused if refused is not None else []).append, **options)


@pytest.mark.parametrize(
    ("refused", "tso", "uso"), [((), True, True), ((0x67,), True, False), ((0x67, 0x07), False, False)]
)
def test_offloads_are_probed_from_the_best_down(
    monkeypatch: pytest.MonkeyPatch, refused: tuple[int, ...], tso: bool, uso: bool
) -> None:
    Kernel(monkeypatch, *refused)
    assert opened().offload == TunOffload(tso4=tso, tso6=tso, uso4=uso, uso6=uso)


def test_offload_off_asks_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch)
    assert opened(offload="off").offload == OFFLOAD_NONE
    assert [value for number, value in kernel.ioctls if number == _TUNSETOFFLOAD] == [0]


def test_read_stops_at_the_limit_and_when_there_is_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch)
    device = opened()
    kernel.reads = [b"one", b"five", b"three"]
    assert [frame.data for frame in device.read(2)] == [b"one", b"five"]
    assert [frame.data for frame in device.read(2)] == [b"three"]


def test_small_reads_of_one_size_are_one_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch)
    device = opened()
    large = [bytes([number]) * 30_000 for number in range(3)]
    kernel.reads = [
        b"one",
        b"two",
        b"six",
        b"four",
        large[0],
        large[1],
        b"nine",
        b"five",
        large[2],
        b"ten",
        b"two",
    ]
    wanted = [
        TunFrame(b"onetwosix", 3), TunFrame(b"four"), TunFrame(large[0]), TunFrame(large[1]),
        TunFrame(b"ninefive", 4), TunFrame(large[2]), TunFrame(b"tentwo", 3),
    ]  # fmt: skip
    assert device.read(64) == wanted
    assert wanted[0].reads() == [b"one", b"two", b"six"]
    assert wanted[1].reads() == [b"four"]


def test_a_read_is_bounded_in_number_and_octets(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch)
    device = opened()
    kernel.reads = [bytes(2048)] * 1000
    assert sum(len(frame.reads()) for frame in device.read(10_000)) == 256
    kernel.reads = [bytes(65_000)] * 100
    assert len(device.read(64)) == 17


def test_read_and_write_tell_that_the_device_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch)
    device = opened()
    kernel.reads = [errno.EBADFD]
    with pytest.raises(TunGone):
        device.read(4)
    kernel.refuse = [errno.EBADFD]
    with pytest.raises(TunGone):
        device.write([(tun(udp4(b"x")),)])


def superpacket() -> bytes:
    """Three TCP segments in one read, as the kernel gives them with TSO."""
    return tun(
        tcp4(b"a" * 1000 + b"b" * 1000 + b"c" * 10), gso_type=1, gso_size=1000, flags=1, start=20, offset=16
    )


def test_a_refused_superpacket_is_written_in_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch)
    refused: list[TunOffload] = []
    device = opened(refused)
    kernel.refuse = [errno.EINVAL]
    frame = superpacket()
    device.write([(frame[:10], frame[10:])])
    assert refused == [OFFLOAD_NONE]
    assert device.offload == OFFLOAD_NONE
    packets = [packet_of((octets[:10], octets[10:])) for octets in kernel.written]
    assert [packet[40:] for packet in packets] == [b"a" * 1000, b"b" * 1000, b"c" * 10]
    assert device.write_errors == 0
    kernel.written.clear()
    kernel.refuse = [errno.EINVAL]
    device.write([(frame[:10], frame[10:])])
    assert refused == [OFFLOAD_NONE]  # said once
    assert len(kernel.written) == 3


def test_a_packet_that_the_kernel_refuses_costs_itself_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch)
    device = opened()
    kernel.refuse = [errno.EINVAL, errno.ENOBUFS]
    device.write([(tun(udp4(b"one")),), (tun(udp4(b"two")),), (tun(udp4(b"three")),)])
    assert device.write_errors == 2
    assert len(kernel.written) == 1


def test_close_and_destroy_may_be_called_again(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch)
    device = opened()
    device.destroy()
    device.destroy()
    device.close()
    assert kernel.ioctls.count((0x400454CB, 0)) == 1


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EPERM, "needs root"),
        (errno.EBUSY, "in use: is another agent running"),
        (errno.EINVAL, "choose another name for agent.tun"),
        (errno.ENOMEM, "cannot be opened"),
    ],
)
def test_why_it_cannot_be_opened(monkeypatch: pytest.MonkeyPatch, number: int, words: str) -> None:
    def fails(**_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("pytun.TunTapDevice", fails)
    monkeypatch.setattr(Path, "exists", lambda self: True)
    with pytest.raises(HostError, match=words):
        opened()
    monkeypatch.setattr(Path, "exists", lambda self: False)
    with pytest.raises(HostError, match="/dev/net/tun is missing"):
        opened()


def test_an_mtu_that_the_kernel_refuses_is_a_sentence() -> None:
    device = object.__new__(Tun)
    device.name = "no-such-tun"
    with pytest.raises(HostError, match="the MTU of no-such-tun cannot be set to 1400: "):
        device.set_mtu(1400)
