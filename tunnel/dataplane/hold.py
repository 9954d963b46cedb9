"""Packets that wait for an SA (RFC 4301 section 5.1 leaves it to us: stated and bounded).

A superpacket counts by its segments. The oldest go first, per SPD entry and over all.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass

from policy.clock import SECOND, Nanos


@dataclass(frozen=True, slots=True)
class HoldLimits:
    """Bounds. Ten seconds is longer than any first negotiation with a live peer, and less than TCP's patience."""

    entry_packets: int = 256
    entry_octets: int = 512 * 1024
    total_packets: int = 4096
    total_octets: int = 8 * 1024 * 1024
    age: Nanos = 10 * SECOND


@dataclass(frozen=True, slots=True)
class Held:
    """One frame: its own copy, and how many packets it is."""

    entry: str
    data: bytes
    packets: int
    since: Nanos


class _Queue:
    __slots__ = ("keys", "octets", "packets")

    def __init__(self) -> None:
        self.keys: deque[int] = deque()
        self.packets = 0
        self.octets = 0


class Hold:
    """All held frames, in arrival order, and the queue of each SPD entry."""

    __slots__ = ("_frames", "_limits", "_next", "_octets", "_queues", "packets")

    def __init__(self, limits: HoldLimits) -> None:
        self._limits = limits
        self._frames: OrderedDict[int, Held] = OrderedDict()
        self._queues: dict[str, _Queue] = {}
        self._next = 0
        self._octets = 0
        #: Packets held now.
        self.packets = 0

    def push(self, frame: Held) -> int:
        """Keep *frame*; return how many packets had to go for it."""
        key, self._next = self._next, self._next + 1
        queue = self._queues.setdefault(frame.entry, _Queue())
        self._frames[key] = frame
        queue.keys.append(key)
        self._count(queue, frame, 1)
        limits, gone = self._limits, 0
        while queue.packets > limits.entry_packets or queue.octets > limits.entry_octets:
            gone += self._pop(queue.keys[0]).packets
        while self.packets > limits.total_packets or self._octets > limits.total_octets:
            gone += self._pop(next(iter(self._frames))).packets
        return gone

    def take(self, entry: str) -> list[Held]:
        """Remove and return the frames of *entry*, oldest first."""
        queue = self._queues.get(entry)
        return [self._pop(key) for key in list(queue.keys)] if queue else []

    def expire(self, now: Nanos) -> int:
        """Drop the frames that waited too long; return how many packets they were."""
        gone = 0
        while self._frames:
            key, frame = next(iter(self._frames.items()))
            if now - frame.since < self._limits.age:
                break
            gone += self._pop(key).packets
        return gone

    def deadline(self) -> Nanos | None:
        """Return when the oldest frame will have waited too long."""
        oldest = next(iter(self._frames.values()), None)
        return None if oldest is None else oldest.since + self._limits.age

    def entries(self) -> list[str]:
        """Return the SPD entries that have held frames."""
        return list(self._queues)

    def _pop(self, key: int) -> Held:
        frame = self._frames.pop(key)
        queue = self._queues[frame.entry]
        queue.keys.popleft()  # the oldest of its entry always goes first
        self._count(queue, frame, -1)
        if not queue.keys:
            del self._queues[frame.entry]
        return frame

    def _count(self, queue: _Queue, frame: Held, sign: int) -> None:
        queue.packets += sign * frame.packets
        queue.octets += sign * len(frame.data)
        self.packets += sign * frame.packets
        self._octets += sign * len(frame.data)
