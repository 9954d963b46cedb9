"""Soft SAs: pairs of hosts that talk in clear for a while, because the peer never answered IKE.

Windows Server 2003's "allow unsecured communication with non-IPSec-aware computers". A soft SA is made only when
nothing at all came back; a peer that answered and failed gets none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from policy.clock import SECOND, Nanos
from policy.path import IpAddress
from policy.spd import Mode, SpdEntry

#: How long a soft SA stands before the peer is asked again.
SOFT_LIFETIME = 300 * SECOND
#: Pairs at once; past it the oldest ends, and its next packet asks the peer again.
MAX_SOFT = 4096

Pair: TypeAlias = tuple[IpAddress, IpAddress]


@dataclass(frozen=True, slots=True)
class Soft:
    """A soft SA: the pair (local, remote), and until when."""

    pair: Pair
    until: Nanos


class SoftSas:
    """The soft SAs there are, by pair of hosts, and the entries that asked for each."""

    __slots__ = ("_entries", "_until")

    def __init__(self) -> None:
        self._until: dict[Pair, Nanos] = {}
        self._entries: dict[str, Pair] = {}

    def __len__(self) -> int:
        return len(self._until)

    def begin(self, entry: SpdEntry, now: Nanos) -> tuple[Soft, list[Pair]] | None:
        """Make one for *entry*; return it and the pairs that had to end for it.

        None where the policy allows none: the entry must say ``fallback_clear`` and name two hosts.
        """
        pair = pair_of(entry)
        if pair is None:
            return None
        until = now + SOFT_LIFETIME
        self._until.pop(pair, None)
        self._until[pair] = until
        self._entries[entry.id] = pair
        gone: list[Pair] = []
        while len(self._until) > MAX_SOFT:
            oldest = next(iter(self._until))
            self.end(oldest)
            gone.append(oldest)
        return Soft(pair, until), gone

    def end(self, pair: Pair) -> list[str]:
        """End the soft SA of *pair*; return the entries that had it."""
        self._until.pop(pair, None)
        gone = [entry for entry, had in self._entries.items() if had == pair]
        for entry in gone:
            del self._entries[entry]
        return gone

    def has(self, pair: Pair) -> bool:
        """Whether *pair* has one."""
        return pair in self._until

    def until(self, entry: str) -> Nanos | None:
        """Return when the soft SA of *entry* ends, None if it has none."""
        pair = self._entries.get(entry)
        return None if pair is None else self._until.get(pair)

    def pair(self, entry: str) -> Pair | None:
        """Return the pair whose soft SA *entry* has."""
        return self._entries.get(entry)

    def expired(self, now: Nanos) -> list[Pair]:
        """Return the pairs whose time is up."""
        found: list[Pair] = []
        for pair, until in self._until.items():
            if until > now:
                break  # all live equally long: the rest began later
            found.append(pair)
        return found

    def deadline(self) -> Nanos | None:
        """Return when the next one ends."""
        return next(iter(self._until.values()), None)

    def entries(self) -> list[str]:
        """Return the entries that have one."""
        return list(self._entries)


def pair_of(entry: SpdEntry) -> Pair | None:
    """Return the two hosts between which *entry* may fall back to clear, None if it may not."""
    protection, local, remote = entry.protection, entry.selectors.local.addresses, entry.selectors.remote.addresses
    if protection is None or not protection.fallback_clear or protection.mode is not Mode.TRANSPORT:
        return None
    if local.start != local.end or remote.start != remote.end:
        return None
    return local.first, remote.first
