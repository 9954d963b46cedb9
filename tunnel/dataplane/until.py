"""Times until which something holds, by entry: bounded, for entries of single hosts come with the packets."""

from __future__ import annotations

from collections.abc import Callable

from policy.clock import Nanos


class Until:
    """Until when something holds, by SPD entry; past *limit* the oldest is forgotten."""

    __slots__ = ("_limit", "_times")

    def __init__(self, limit: int) -> None:
        self._times: dict[str, Nanos] = {}
        self._limit = limit

    def __len__(self) -> int:
        return len(self._times)

    def set(self, entry: str, until: Nanos) -> None:
        """It holds for *entry* until *until*."""
        self._times.pop(entry, None)
        while len(self._times) >= self._limit:
            del self._times[next(iter(self._times))]
        self._times[entry] = until

    def holds(self, entry: str, now: Nanos) -> bool:
        """Whether it holds for *entry*."""
        until = self._times.get(entry)
        if until is None:
            return False
        if now >= until:
            del self._times[entry]
            return False
        return True

    def end(self, entry: str) -> None:
        """It holds for *entry* no more."""
        self._times.pop(entry, None)

    def keep(self, wanted: Callable[[str], bool]) -> None:
        """Forget the entries that are not *wanted*."""
        self._times = {entry: until for entry, until in self._times.items() if wanted(entry)}
