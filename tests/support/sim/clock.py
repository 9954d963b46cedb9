"""Virtual time, ordered events and deterministic entropy."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable
from random import Random

from policy.clock import Nanos


class Entropy:
    """Octets that depend on seed and name alone; callable like the ``entropy`` of the code under test."""

    def __init__(self, seed: int, name: str) -> None:
        self._key = hashlib.sha256(f"{seed}/{name}".encode()).digest()
        self._count = 0
        self._forced: list[bytes] = []

    def __call__(self, length: int) -> bytes:
        if self._forced and len(self._forced[0]) == length:
            return self._forced.pop(0)
        octets = b""
        while len(octets) < length:
            octets += hashlib.sha256(self._key + self._count.to_bytes(8, "big")).digest()
            self._count += 1
        return octets[:length]

    def force(self, octets: bytes) -> None:
        """Let the next request of exactly that length give *octets*: a test decides who wins a collision."""
        self._forced.append(octets)


class Schedule:
    """Events ordered by time, then by when they were scheduled."""

    def __init__(self, seed: int) -> None:
        self.now: Nanos = 1_000_000_000
        self.seed = seed
        self._heap: list[tuple[Nanos, int, Callable[[], object]]] = []
        self._count = 0

    def at(self, time: Nanos, action: Callable[[], object]) -> None:
        """Call *action* at *time*, or now if that has passed."""
        self._count += 1
        heapq.heappush(self._heap, (max(time, self.now), self._count, action))

    def after(self, delay: Nanos, action: Callable[[], object]) -> None:
        """Call *action* in *delay* nanoseconds."""
        self.at(self.now + delay, action)

    def next_at(self) -> Nanos | None:
        """Return when the next event is."""
        return self._heap[0][0] if self._heap else None

    def step(self) -> None:
        """Let the next event happen."""
        self.now, _, action = heapq.heappop(self._heap)
        action()

    def random(self, name: str) -> Random:
        """Return a generator that depends on seed and name alone."""
        return Random(f"{self.seed}/{name}")
