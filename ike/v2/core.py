"""What all IKE SAs of an endpoint share: policy, tables, timers, outputs and the numbers that must be unique."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from ike.events import Event, IkeOutput, Level
from ike.timers import TimerTable
from ike.v2.halfopen import HalfOpenTable
from ike.v2.settings import IkeSettings
from ike.wire.message import Message
from ike.wire.payloads import Payload
from policy.clock import Entropy, Nanos
from policy.model import Encapsulation
from policy.pad import is_one_of_many
from policy.path import IpAddress, Path
from policy.spd import Disposition, Snapshot, SpdEntry

if TYPE_CHECKING:
    from ike.v2.demands import Demands
    from ike.v2.dialler import Dialler
    from ike.v2.sa import IkeSa

#: SPIs 0 to 255 are reserved (RFC 4303 section 2.1).
_FIRST_CHILD_SPI = 256
#: Kinds of events that the rate limit remembers at once.
_LIMITED_EVENTS = 1024
#: Peers and addresses whose last failure is remembered.
_REMEMBERED_FAILURES = 4096
#: In the place of a peer's name, which is never empty: all that may be anywhere.
_ANYWHERE = ""


class Core:
    """Shared state. IKE SAs act on it; it never acts by itself."""

    demands: Demands
    dialler: Dialler
    #: Answers a request: set by the endpoint, for requests know every task and tasks know IKE SAs.
    respond: Callable[[IkeSa, Message, Path, Nanos], list[Payload]]

    def __init__(self, entropy: Entropy, last_heard: Callable[[int], Nanos], settings: IkeSettings) -> None:
        self.entropy = entropy
        self.last_heard = last_heard
        self.settings = settings
        self.snapshot = Snapshot(generation=0)
        self.timers = TimerTable()
        self.outputs: deque[IkeOutput] = deque()
        self.half_open = HalfOpenTable(settings)
        #: IKE SAs by our number for them, by our SPI, and those of each PAD entry by name.
        self.sas: dict[int, IkeSa] = {}
        self.by_spi: dict[bytes, IkeSa] = {}
        #: Those with each remote address.
        self._at_host: dict[IpAddress, dict[int, IkeSa]] = {}
        self._of_peer: dict[str, dict[int, IkeSa]] = {}
        #: IKE SA of each Child SA, by the Child SA's number, and the inbound SPIs in use.
        self.children: dict[int, IkeSa] = {}
        self.spis_in: set[int] = set()
        #: Why the last negotiation with each peer failed, until one succeeds.
        self.failures: dict[str, str] = {}
        #: What happened, by our own words for it: news told or suppressed, and messages that led nowhere.
        self.counters: Counter[str] = Counter()
        #: Entries that the default response rule granted, as long as they have Child SAs.
        self.dynamic: dict[str, SpdEntry] = {}
        #: Source address to each remote address, as the host knows it.
        self.sources: dict[IpAddress, IpAddress] = {}
        self._told: dict[tuple[str, str], Nanos] = {}
        #: What entries of each peer say of encapsulation, under the snapshot that it was looked up in.
        self._encapsulations: tuple[Snapshot, dict[str, frozenset[Encapsulation]]] = (self.snapshot, {})
        self._sa_count = 0
        self._child_count = 0

    def emit(self, output: IkeOutput) -> None:
        """Queue an output."""
        self.outputs.append(output)

    def tell(
        self, now: Nanos, name: str, level: Level, message: str, *, limit: str | None = None, **fields: object
    ) -> None:
        """Emit an event; with *limit*, at most one of its kind in ``event_interval``. All are counted."""
        self.counters[name] += 1
        if limit is not None and not self._may_tell(name, limit, now):
            self.counters[f"suppressed {name}"] += 1
            return
        self.emit(Event(name, level, message, fields))

    def remember_failure(self, name: str, reason: str) -> None:
        """Keep why the last negotiation with a peer (or an address that no peer is known at) failed."""
        self.failures.pop(name, None)
        while len(self.failures) >= _REMEMBERED_FAILURES:
            del self.failures[next(iter(self.failures))]
        self.failures[name] = reason

    def entry(self, entry_id: str) -> SpdEntry | None:
        """Return the PROTECT entry of that id."""
        entry = self.dynamic.get(entry_id) or self.snapshot.spd.entry(entry_id)
        if entry is None or entry.disposition is not Disposition.PROTECT or entry.protection is None:
            return None
        return entry

    def entries_of(self, peer: str) -> list[SpdEntry]:
        """Return the PROTECT entries that the PAD entry *peer* may obtain, in SPD order."""
        known = self.snapshot.pad.by_name(peer)
        found = [] if known is None else [self.entry(entry_id) for entry_id in known.entries]
        found += [e for e in self.dynamic.values() if e.protection is not None and e.protection.peer == peer]
        return [entry for entry in found if entry is not None and entry.protection is not None]

    def encapsulations(self, peer: str) -> frozenset[Encapsulation]:
        """Return what the entries of *peer* say of encapsulation; asked at every dial, of thousands of entries."""
        snapshot, known = self._encapsulations
        if snapshot is not self.snapshot or peer not in known:
            known = known if snapshot is self.snapshot else {}
            found = [entry.protection for entry in self.entries_of(peer)]
            said = frozenset(each.encapsulation for each in found if each is not None)
            if is_one_of_many(peer):  # anybody's address makes one
                return said
            known[peer] = said
            self._encapsulations = (self.snapshot, known)
        return known[peer]

    def encapsulations_at(self, address: IpAddress) -> frozenset[Encapsulation]:
        """Return what the entries of all peers say that may speak from *address*."""
        pad = self.snapshot.pad
        if self._encapsulations[0] is not self.snapshot:
            self._encapsulations = (self.snapshot, {})
        known = self._encapsulations[1]
        if _ANYWHERE not in known:
            found: frozenset[Encapsulation] = frozenset()
            known[_ANYWHERE] = found.union(*(self.encapsulations(peer.name) for peer in pad.anywhere()))
        return known[_ANYWHERE].union(*(self.encapsulations(peer.name) for peer in pad.settled(address)))

    def forget_dynamic(self, entry_id: str) -> None:
        """Forget a dynamic entry that has no Child SA any more."""
        if entry_id not in self.dynamic:
            return
        if not any(c.entry == entry_id for sa in self.sas.values() for c in sa.children.values()):
            del self.dynamic[entry_id]

    def new_number(self) -> int:
        """Return a number for an IKE SA, unique in the life of the endpoint."""
        self._sa_count += 1
        return self._sa_count

    def new_child_number(self) -> int:
        """Return a number for a Child SA, rising with birth."""
        self._child_count += 1
        return self._child_count

    def new_spi(self) -> bytes:
        """Return an IKE SPI that is not zero and not in use (section 3.1)."""
        while True:
            spi = self.entropy(8)
            if spi != bytes(8) and spi not in self.by_spi:
                return spi

    def new_child_spi(self) -> int:
        """Return an inbound SPI that is not in use, and reserve it."""
        while True:
            spi = int.from_bytes(self.entropy(4), "big")
            if spi >= _FIRST_CHILD_SPI and spi not in self.spis_in:
                self.spis_in.add(spi)
                return spi

    def add(self, sa: IkeSa) -> None:
        """Take an IKE SA into the tables."""
        self.sas[sa.number] = sa
        self.by_spi[sa.our_spi] = sa
        self._at_host.setdefault(sa.path.remote.address, {})[sa.number] = sa

    def relocate(self, sa: IkeSa, path: Path) -> None:
        """Let *sa* have *path* from now on."""
        self._leave_host(sa)
        sa.path = path
        self._at_host.setdefault(path.remote.address, {})[sa.number] = sa

    def at_host(self, remote: IpAddress) -> Iterable[IkeSa]:
        """Return the IKE SAs with a remote address, whatever peers they are of and whatever state they are in."""
        return self._at_host.get(remote, {}).values()

    def bind(self, sa: IkeSa, peer: str) -> None:
        """Know *sa* as one of PAD entry *peer*."""
        self._of_peer.setdefault(peer, {})[sa.number] = sa

    def remove(self, sa: IkeSa) -> None:
        """Take a closed IKE SA and its timers out of the tables."""
        self.sas.pop(sa.number, None)
        if self.by_spi.get(sa.our_spi) is sa:
            del self.by_spi[sa.our_spi]
        self.unbind(sa)
        self._leave_host(sa)
        self.half_open.remove(sa.number)
        self.timers.forget(sa.number)

    def _leave_host(self, sa: IkeSa) -> None:
        known = self._at_host.get(sa.path.remote.address, {})
        known.pop(sa.number, None)
        if not known:
            self._at_host.pop(sa.path.remote.address, None)

    def unbind(self, sa: IkeSa) -> None:
        """Know *sa* no longer by its peer: it is closed, though it may linger."""
        if sa.peer is None:
            return
        known = self._of_peer.get(sa.peer.name, {})
        known.pop(sa.number, None)
        if not known:
            self._of_peer.pop(sa.peer.name, None)

    def of_peer(self, peer: str) -> list[IkeSa]:
        """Return the IKE SAs with PAD entry *peer*, oldest first, closed ones left out."""
        return list(self._of_peer.get(peer, {}).values())

    def peers(self) -> Iterable[str]:
        """Return the names of peers with IKE SAs."""
        return list(self._of_peer)

    def source_for(self, remote: IpAddress) -> IpAddress | None:
        """Return our address to speak to *remote* from.

        The host's word stands; without it, the own address that shares the longest prefix with *remote*.
        """
        known = self.sources.get(remote)
        if known is not None:
            return known
        own = [address for address in self.snapshot.local_addresses if address.version == remote.version]
        return min(own, key=lambda address: (int(address) ^ int(remote)).bit_length(), default=None)

    def _may_tell(self, name: str, limit: str, now: Nanos) -> bool:
        key = (name, limit)
        last = self._told.get(key)
        if last is not None and now - last < self.settings.event_interval:
            return False
        self._told.pop(key, None)
        while len(self._told) >= _LIMITED_EVENTS:
            del self._told[next(iter(self._told))]
        self._told[key] = now
        return True
