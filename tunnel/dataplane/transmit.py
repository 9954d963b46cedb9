"""Grouping of sealed packets into ``Transmit``: few system calls a burst, order kept within an SA."""

from __future__ import annotations

from collections import deque

from policy.path import Path
from tunnel.dataplane.contract import Buffer, DataPlaneOutput, Transmit

#: One sendmsg with UDP_SEGMENT takes 64 segments on every kernel that has it, and a UDP payload's octets.
MAX_SEGMENTS = 64
MAX_OCTETS = 65507


class _Group:
    __slots__ = ("buffers", "df", "limit", "path", "size", "tos", "whole")

    def __init__(self, path: Path, tos: int, df: bool, size: int, *, whole: bool = False) -> None:
        self.path, self.tos, self.df, self.size, self.whole = path, tos, df, size, whole
        self.limit = max(1, min(MAX_SEGMENTS, MAX_OCTETS // size))
        self.buffers: list[Buffer] = []


class Transmissions:
    """The open group of each SA, during one burst."""

    __slots__ = ("_groups", "_outputs")

    def __init__(self, outputs: deque[DataPlaneOutput]) -> None:
        self._outputs = outputs
        self._groups: dict[int, _Group] = {}

    def add(self, key: int, path: Path, tos: int, df: bool, packets: list[bytes]) -> None:
        """Append the packets of one SA (*key*); a group closes when anything but a shorter last would join it."""
        group = self._groups.get(key)
        if group is not None and (group.tos != tos or group.df != df or group.path is not path):
            self._close(key)
            group = None
        sizes = list(map(len, packets))
        index, total = 0, len(packets)
        while index < total:
            size = sizes[index]
            if group is not None and (size > group.size or len(group.buffers) >= group.limit):
                self._close(key)
                group = None
            if group is None:
                group = self._groups[key] = _Group(path, tos, df, size)
            end = min(total, index + group.limit - len(group.buffers))
            if sizes.count(group.size) < total:
                end = _run_end(sizes, index, end, group.size)
            group.buffers += packets[index:end]
            index = end
            if sizes[end - 1] < group.size:
                self._close(key)
                group = None

    def add_whole(self, key: int, path: Path, packets: list[bytes]) -> None:
        """Append IP packets of one SA (*key*), header and all, of any sizes."""
        while packets:
            group = self._groups.get(key)
            if group is not None and (group.path is not path or len(group.buffers) >= MAX_SEGMENTS):
                self._close(key)
                group = None
            if group is None:
                group = self._groups[key] = _Group(path, 0, False, 1, whole=True)
            room = MAX_SEGMENTS - len(group.buffers)
            group.buffers += packets[:room]
            packets = packets[room:]

    def flush(self) -> None:
        """Put out every group that is still open."""
        for key in list(self._groups):
            self._close(key)

    def _close(self, key: int) -> None:
        group = self._groups.pop(key)
        buffers = tuple(group.buffers)
        if group.whole:
            self._outputs.append(Transmit(group.path, buffers, whole=True))
            return
        size = group.size if len(buffers) > 1 and group.path.encapsulated else 0
        self._outputs.append(Transmit(group.path, buffers, size, group.tos, group.df))


def _run_end(sizes: list[int], index: int, end: int, size: int) -> int:
    """Return where the packets that one group takes end: equal ones, and a shorter one as the last."""
    for position in range(index, end):
        if sizes[position] != size:
            return position + 1 if sizes[position] < size else position
    return end
