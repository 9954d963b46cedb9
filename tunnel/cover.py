"""Dummy packets among the real ones (RFC 4303 section 2.6): when, and how large."""

from __future__ import annotations

import heapq

from policy.clock import SECOND, Entropy, Nanos

#: Octets of a dummy packet at the most; the SA may carry less.
_LARGEST = 1400


class Cover:
    """Which Child SAs send dummy packets. The gaps between them are drawn anew each time, as their sizes are."""

    __slots__ = ("_due", "_entropy", "_gaps")

    def __init__(self, entropy: Entropy) -> None:
        self._entropy = entropy
        #: Mean gap between two dummies by Child SA, and when the next are due.
        self._gaps: dict[int, Nanos] = {}
        self._due: list[tuple[Nanos, int]] = []

    def begin(self, child: int, per_second: int, now: Nanos) -> None:
        """Let *child* send so many a second, on average."""
        if per_second > 0:
            self._gaps[child] = SECOND // per_second
            self._plan(child, now)

    def end(self, child: int) -> None:
        """Let *child* send no more."""
        self._gaps.pop(child, None)

    def deadline(self) -> Nanos | None:
        """Return when the next is due."""
        while self._due and self._due[0][1] not in self._gaps:
            heapq.heappop(self._due)
        return self._due[0][0] if self._due else None

    def due(self, now: Nanos) -> list[tuple[int, int]]:
        """Return Child SA and octets of the dummies that are due. What was missed is not made up for."""
        found: list[tuple[int, int]] = []
        while self._due and self._due[0][0] <= now:
            _, child = heapq.heappop(self._due)
            if child in self._gaps:
                found.append((child, 1 + int.from_bytes(self._entropy(2), "big") * _LARGEST // 65536))
                self._plan(child, now)
        return found

    def _plan(self, child: int, now: Nanos) -> None:
        """Between half and one and a half of the mean gap from now."""
        share = 32768 + int.from_bytes(self._entropy(2), "big")
        heapq.heappush(self._due, (now + self._gaps[child] * share // 65536, child))
