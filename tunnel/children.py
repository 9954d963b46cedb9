"""The Child SAs that are installed, and how each SPD entry fares: what the gateway itself remembers."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum

from ike.events import ChildSa, Event, Level
from policy.clock import Nanos
from policy.path import Path
from policy.secret import Secret
from policy.spd import Disposition, Snapshot, SpdEntry

#: More than policies have entries; hosts of one template are forgotten past it.
_MAX_OUTCOMES = 32768
_NO_KEYS = (Secret(b""), Secret(b""), Secret(b""))


class EntryState(Enum):
    """How an SPD entry fares."""

    UP = "up"
    NEGOTIATING = "negotiating"
    SOFT = "soft"  # in clear for a while: the peer never answered IKE
    DOWN = "down"
    FAILED = "failed"
    NOT_APPLICABLE = "n/a"


#: A peer's states as an operator reads them.
_WORDS = {
    EntryState.DOWN: "unknown",
    EntryState.NEGOTIATING: "negotiating",
    EntryState.UP: "secured",
    EntryState.SOFT: "in clear",
    EntryState.FAILED: "blocked",
    EntryState.NOT_APPLICABLE: "not negotiated",
}
_BEST_FIRST = (EntryState.UP, EntryState.NEGOTIATING, EntryState.SOFT, EntryState.FAILED)


@dataclass(frozen=True, slots=True)
class Installed:
    """A pair of SAs in the data plane. *sa* holds no keys; its path and ``dormant`` are the present ones."""

    sa: ChildSa
    since: Nanos


@dataclass(frozen=True, slots=True)
class Change:
    """An entry fares otherwise than before. *reason* says why when it failed."""

    entry: str
    peer: str
    before: EntryState
    after: EntryState
    reason: str

    def event(self) -> Event:
        """Return it as news: for hosts that a rule names only as a range, this is where one sees them."""
        before, after = _WORDS[self.before], _WORDS[self.after]
        why = f" ({self.reason})" if self.reason else ""
        soft = EntryState.SOFT in (self.before, self.after)
        return Event(
            "peer_state",
            Level.INFO if soft else Level.DEBUG,
            f"{self.peer or self.entry}: {before} -> {after}{why}",
            {"entry": self.entry, "peer": self.peer, "before": before, "after": after, "reason": self.reason},
        )


@dataclass(frozen=True, slots=True)
class Draining:
    """An inbound SA whose pair is gone and which still receives what is in flight, until *until*."""

    child: int
    spi_in: int
    until: Nanos


class Children:
    """Installed pairs by child, inbound halves that drain, and the state of each entry."""

    __slots__ = (
        "_by_entry",
        "_draining",
        "_due",
        "_idle",
        "_installed",
        "_looks",
        "_outcome",
        "changes",
        "dynamic",
    )

    def __init__(self) -> None:
        self._installed: dict[int, Installed] = {}
        self._by_entry: dict[str, dict[int, None]] = {}
        self._draining: dict[int, Draining] = {}
        #: Heap of the same: a gateway that rekeys thousands of SAs is asked for its deadline at every burst.
        self._due: list[tuple[Nanos, int]] = []
        self._outcome: dict[str, tuple[EntryState, str]] = {}
        #: When to see whether a pair is still in use, by child.
        self._idle: dict[int, Nanos] = {}
        self._looks: list[tuple[Nanos, int]] = []
        #: Entries that the default response rule granted, as long as they have SAs.
        self.dynamic: dict[str, SpdEntry] = {}
        #: What changed since somebody took note.
        self.changes: list[Change] = []

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

    def install(self, sa: ChildSa, now: Nanos, idle: Nanos | None = None) -> None:
        """Remember that the data plane has *sa*; it ends when it carried nothing for *idle*."""
        before = self.state(sa.entry)[0]
        self._installed[sa.child] = Installed(replace(sa, keys_in=_NO_KEYS, keys_out=_NO_KEYS), now)
        self._by_entry.setdefault(sa.entry, {})[sa.child] = None
        self._outcome.pop(sa.entry, None)
        if sa.dynamic is not None:
            self.dynamic[sa.entry] = sa.dynamic
        if idle is not None:
            self._look_at(sa.child, now + idle)
        if before is not EntryState.UP:
            self.changes.append(Change(sa.entry, sa.peer, before, EntryState.UP, ""))

    def remove(self, child: int, reason: str) -> Installed | None:
        """Forget a pair and return it; *reason* is shown when its entry has none left."""
        installed = self._installed.pop(child, None)
        if installed is None:
            return None
        self._idle.pop(child, None)
        others = self._by_entry[installed.sa.entry]
        del others[child]
        if others:
            return installed
        del self._by_entry[installed.sa.entry]
        self.dynamic.pop(installed.sa.entry, None)
        # A negotiation for the entry may already be under way: the reason why it is needed is older news.
        state, _ = self._outcome.get(installed.sa.entry, (EntryState.DOWN, ""))
        if state is not EntryState.NEGOTIATING:
            self._keep(installed.sa.entry, EntryState.DOWN, reason)
        after = self.state(installed.sa.entry)[0]
        self.changes.append(Change(installed.sa.entry, installed.sa.peer, EntryState.UP, after, reason))
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
        """Return when the next inbound SA is drained, or the next pair's use is looked at."""
        while self._looks and self._idle.get(self._looks[0][1]) != self._looks[0][0]:
            heapq.heappop(self._looks)
        return min([heap[0][0] for heap in (self._due, self._looks) if heap], default=None)

    def idle(self, now: Nanos) -> list[int]:
        """Return the pairs whose use is to be looked at; each is looked at again when ``used`` says so."""
        found: list[int] = []
        while self._looks and self._looks[0][0] <= now:
            at, child = heapq.heappop(self._looks)
            if self._idle.get(child) == at:
                found.append(child)
        return found

    def used(self, child: int, look_again: Nanos | None) -> None:
        """Look at the use of *child* again at *look_again*, or never."""
        if look_again is None:
            self._idle.pop(child, None)
        elif child in self._idle:
            self._look_at(child, look_again)

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

    def negotiating(self, entry: str, peer: str) -> None:
        """Note that a negotiation for *entry* began."""
        self._note(entry, peer, EntryState.NEGOTIATING, "")

    def failed(self, entry: str, peer: str, reason: str) -> None:
        """Note that the negotiation for *entry* came to nothing."""
        self._note(entry, peer, EntryState.FAILED, reason)

    def soft(self, entry: str, peer: str, reason: str) -> None:
        """Note that *entry* has a soft SA."""
        self._note(entry, peer, EntryState.SOFT, reason)

    def down(self, entry: str, peer: str, reason: str) -> None:
        """Note that *entry* has a soft SA no more."""
        self._note(entry, peer, EntryState.DOWN, reason)

    def state(self, entry: str) -> tuple[EntryState, str | None]:
        """Return state and reason of a PROTECT entry."""
        if entry in self._by_entry:
            return EntryState.UP, None
        state, reason = self._outcome.get(entry, (EntryState.DOWN, ""))
        return state, reason or None

    def hosts(self, template: str) -> list[str]:
        """Return the ids of *template*'s entries for single hosts that anything is known of."""
        stem = f"{template}@"
        return [entry for entry in {**self._by_entry, **self._outcome} if entry.startswith(stem)]

    def load(self, snapshot: Snapshot) -> None:
        """Forget the entries that are gone, so that the table stays as large as the policy."""
        self._outcome = {
            entry: outcome for entry, outcome in self._outcome.items() if snapshot.spd.entry(entry) is not None
        }

    def states(self, snapshot: Snapshot) -> dict[str, tuple[EntryState, str | None]]:
        """Return state and reason of every entry of *snapshot*; a template's is the best of its hosts'."""
        found: dict[str, tuple[EntryState, str | None]] = {}
        for entry in snapshot.spd.entries:
            if entry.disposition is not Disposition.PROTECT:
                found[entry.id] = (EntryState.NOT_APPLICABLE, entry.note or None)
            elif entry.per_host:
                states = {self.state(host)[0] for host in self.hosts(entry.id)}
                found[entry.id] = (next((s for s in _BEST_FIRST if s in states), EntryState.DOWN), None)
            else:
                found[entry.id] = self.state(entry.id)
        return found

    def _note(self, entry: str, peer: str, state: EntryState, reason: str) -> None:
        before = self.state(entry)[0]
        self._keep(entry, state, reason)
        after = self.state(entry)[0]
        if after is not before:
            self.changes.append(Change(entry, peer, before, after, reason))

    def _look_at(self, child: int, at: Nanos) -> None:
        self._idle[child] = at
        heapq.heappush(self._looks, (at, child))

    def _keep(self, entry: str, state: EntryState, reason: str) -> None:
        """Remember an outcome. Entries for single hosts come with the packets: the oldest are forgotten."""
        self._outcome.pop(entry, None)
        self._outcome[entry] = (state, reason)
        if len(self._outcome) > _MAX_OUTCOMES:
            del self._outcome[next(iter(self._outcome))]
