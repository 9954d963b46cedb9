"""Timers as a table of deadlines: the owner asks for the minimum, and may look too often.

Each IKE SA owns a few timers, some of them once per Child SA. Nothing fires by itself: ``due`` hands out what
has passed, in order of time and then of setting, so that a run repeats exactly.
"""

from __future__ import annotations

import heapq
from enum import Enum
from typing import NamedTuple

from policy.clock import Nanos


class Timer(Enum):
    """What an IKE SA waits for."""

    RETRANSMIT = "retransmit"  # the outstanding request (RFC 7296 section 2.1)
    DIAL = "dial"  # whose turn it is to send IKE_SA_INIT; the endpoint's own
    FALLBACK = "fallback"  # nobody answered at all, and policy then allows clear
    SETTLE = "settle"  # an unauthenticated refusal of IKE_SA_INIT stands if nothing better comes
    HALF_OPEN = "half open"  # the initiator never came back with IKE_AUTH
    RETRY = "retry"  # a task put off by TEMPORARY_FAILURE (section 2.25)
    LIVENESS = "liveness"  # section 2.4
    KEEPALIVE = "keepalive"  # RFC 3948 section 4
    REKEY_IKE = "rekey ike"  # section 2.8
    EXPIRE_IKE = "expire ike"
    REKEY_CHILD = "rekey child"  # per Child SA
    EXPIRE_CHILD = "expire child"  # per Child SA
    REDUNDANT = "redundant"  # of two IKE SAs that both ends made at once, one goes
    LINGER = "linger"  # a closed IKE SA still repeats its last response


class Due(NamedTuple):
    """A deadline that has passed: whose, which, and for which Child SA (0: the IKE SA itself)."""

    owner: int
    timer: Timer
    detail: int


class TimerTable:
    """Deadlines by (owner, timer, detail); setting one again moves it."""

    __slots__ = ("_count", "_current", "_heap", "_owned")

    def __init__(self) -> None:
        self._current: dict[Due, tuple[Nanos, int]] = {}
        self._owned: dict[int, dict[Due, None]] = {}
        self._heap: list[tuple[Nanos, int, int, str, int]] = []
        self._count = 0

    def set(self, owner: int, timer: Timer, at: Nanos, detail: int = 0) -> None:
        """Let *timer* of *owner* pass at *at*."""
        self._count += 1
        key = Due(owner, timer, detail)
        self._current[key] = (at, self._count)
        self._owned.setdefault(owner, {})[key] = None
        heapq.heappush(self._heap, (at, self._count, owner, timer.value, detail))
        if len(self._heap) > 2 * len(self._current) + 64:
            self._compact()

    def cancel(self, owner: int, timer: Timer, detail: int = 0) -> None:
        """Forget a timer; it need not be set."""
        self._drop(Due(owner, timer, detail))

    def forget(self, owner: int) -> None:
        """Forget every timer of *owner*."""
        for key in self._owned.pop(owner, {}):
            del self._current[key]

    def at(self, owner: int, timer: Timer, detail: int = 0) -> Nanos | None:
        """Return when a timer passes, or None if it is not set."""
        found = self._current.get(Due(owner, timer, detail))
        return None if found is None else found[0]

    def deadline(self) -> Nanos | None:
        """Return the earliest deadline."""
        self._drop_stale()
        return self._heap[0][0] if self._heap else None

    def next_due(self, now: Nanos) -> Due | None:
        """Take one deadline that has passed, earliest first, or None."""
        self._drop_stale()
        if not self._heap or self._heap[0][0] > now:
            return None
        _, _, owner, timer, detail = heapq.heappop(self._heap)
        key = Due(owner, Timer(timer), detail)
        self._drop(key)
        return key

    def __len__(self) -> int:
        return len(self._current)

    def _drop(self, key: Due) -> None:
        if self._current.pop(key, None) is None:
            return
        owned = self._owned[key.owner]
        del owned[key]
        if not owned:
            del self._owned[key.owner]

    def _drop_stale(self) -> None:
        while self._heap:
            at, count, owner, timer, detail = self._heap[0]
            if self._current.get(Due(owner, Timer(timer), detail)) == (at, count):
                return
            heapq.heappop(self._heap)

    def _compact(self) -> None:
        self._heap = [
            (at, count, key.owner, key.timer.value, key.detail) for key, (at, count) in self._current.items()
        ]
        heapq.heapify(self._heap)
