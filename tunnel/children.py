"""The Child SAs that are installed, and how each SPD entry fares: what the gateway itself remembers."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum

from ike.events import ChildSa
from policy.clock import Nanos
from policy.path import Path
from policy.secret import Secret
from policy.spd import Disposition, Snapshot

_NO_KEYS = (Secret(b""), Secret(b""), Secret(b""))


class EntryState(Enum):
    """How an SPD entry fares."""

    UP = "up"
    NEGOTIATING = "negotiating"
    DOWN = "down"
    FAILED = "failed"
    NOT_APPLICABLE = "n/a"


@dataclass(frozen=True, slots=True)
class Installed:
    """A pair of SAs in the data plane. *sa* holds no keys; its path and ``dormant`` are the present ones."""

    sa: ChildSa
    since: Nanos


@dataclass(frozen=True, slots=True)
class Draining:
    """An inbound SA whose pair is gone and which still receives what is in flight, until *until*."""

    child: int
    spi_in: int
    until: Nanos


class Children:
    """Installed pairs by child, inbound halves that drain, and the state of each entry."""

    __slots__ = ("_by_entry", "_draining", "_due", "_installed", "_outcome")

    def __init__(self) -> None:
        self._installed: dict[int, Installed] = {}
        self._by_entry: dict[str, dict[int, None]] = {}
        self._draining: dict[int, Draining] = {}
        #: Heap of the same: a gateway that rekeys thousands of SAs is asked for its deadline at every burst.
        self._due: list[tuple[Nanos, int]] = []
        self._outcome: dict[str, tuple[EntryState, str]] = {}

    def __iter__(self) -> Iterator[Installed]:
        return iter(self._installed.values())

    def __len__(self) -> int:
        return len(self._installed)

    def get(self, child: int) -> Installed | None:
        """Return the pair of *child*, or None."""
        return self._installed.get(child)

    def inbound_spi(self, child: int) -> int | None:
        """Return the inbound SPI of *child*, also while it drains, or None."""
        if (installed := self._installed.get(child)) is not None:
            return installed.sa.spi_in
        draining = self._draining.get(child)
        return None if draining is None else draining.spi_in

    def install(self, sa: ChildSa, now: Nanos) -> None:
        """Remember that the data plane has *sa*."""
        self._installed[sa.child] = Installed(replace(sa, keys_in=_NO_KEYS, keys_out=_NO_KEYS), now)
        self._by_entry.setdefault(sa.entry, {})[sa.child] = None
        self._outcome.pop(sa.entry, None)

    def remove(self, child: int, reason: str) -> Installed | None:
        """Forget a pair and return it; *reason* is shown when its entry has none left."""
        installed = self._installed.pop(child, None)
        if installed is None:
            return None
        others = self._by_entry[installed.sa.entry]
        del others[child]
        if others:
            return installed
        del self._by_entry[installed.sa.entry]
        # A negotiation for the entry may already be under way: the reason why it is needed is older news.
        state, _ = self._outcome.get(installed.sa.entry, (EntryState.DOWN, ""))
        if state is not EntryState.NEGOTIATING:
            self._outcome[installed.sa.entry] = (EntryState.DOWN, reason)
        return installed

    def drain(self, child: int, spi_in: int, until: Nanos) -> None:
        """Remember to delete an inbound SA at *until*."""
        self._draining[child] = Draining(child, spi_in, until)
        heapq.heappush(self._due, (until, child))

    def drained(self, now: Nanos) -> list[Draining]:
        """Forget and return the inbound SAs whose time is up."""
        found: list[Draining] = []
        while self._due and self._due[0][0] <= now:
            found.append(self._draining.pop(heapq.heappop(self._due)[1]))
        return found

    def deadline(self) -> Nanos | None:
        """Return when the next inbound SA is drained."""
        return self._due[0][0] if self._due else None

    def draining(self) -> tuple[Draining, ...]:
        """Return the inbound SAs that drain."""
        return tuple(self._draining.values())

    def activate(self, child: int) -> None:
        """Note that the outbound half is in use."""
        if (installed := self._installed.get(child)) is not None:
            self._installed[child] = replace(installed, sa=replace(installed.sa, dormant=False))

    def move(self, child: int, path: Path) -> None:
        """Note where the packets of *child* go now."""
        if (installed := self._installed.get(child)) is not None:
            self._installed[child] = replace(installed, sa=replace(installed.sa, path=path))

    def of_entry(self, entry: str) -> list[Installed]:
        """Return the pairs that serve *entry*, oldest first."""
        return [self._installed[child] for child in self._by_entry.get(entry, ())]

    def negotiating(self, entry: str) -> None:
        """Note that a negotiation for *entry* began."""
        self._outcome[entry] = (EntryState.NEGOTIATING, "")

    def failed(self, entry: str, reason: str) -> None:
        """Note that the negotiation for *entry* came to nothing."""
        self._outcome[entry] = (EntryState.FAILED, reason)

    def load(self, snapshot: Snapshot) -> None:
        """Forget the entries that are gone, so that the table stays as large as the policy."""
        self._outcome = {
            entry: outcome for entry, outcome in self._outcome.items() if snapshot.spd.entry(entry) is not None
        }

    def states(self, snapshot: Snapshot) -> dict[str, tuple[EntryState, str | None]]:
        """Return state and reason of every entry of *snapshot*."""
        found: dict[str, tuple[EntryState, str | None]] = {}
        for entry in snapshot.spd.entries:
            if entry.disposition is not Disposition.PROTECT:
                found[entry.id] = (EntryState.NOT_APPLICABLE, entry.note or None)
            elif entry.id in self._by_entry:
                found[entry.id] = (EntryState.UP, None)
            else:
                state, reason = self._outcome.get(entry.id, (EntryState.DOWN, ""))
                found[entry.id] = (state, reason or None)
        return found
