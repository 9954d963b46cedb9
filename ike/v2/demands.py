"""Who waits for a Child SA, and what is done about it: dialling, reuse of IKE SAs, failures, hints.

One demand an SPD entry, however often it is asked for; it ends in ChildInstalled or in AcquireFailed.
"""

from __future__ import annotations

from dataclasses import dataclass

from ike.constants import NotifyType
from ike.events import AcquireFailed, FailureKind, Level
from ike.timers import Timer
from ike.v2 import reasons
from ike.v2.child import Child, ChildState, activate
from ike.v2.core import Core
from ike.v2.sa import IkeSa
from ike.v2.states import AUTHENTICATED, State
from ike.v2.tasks.child_create import ChildCreate
from ike.v2.tasks.delete import delete_ike
from ike.v2.tasks.ike_auth import preshared_keys
from ike.v2.tasks.liveness import probe
from ike.v2.tasks.task import Failure
from ike.wire.message import Message
from policy.clock import Nanos
from policy.model import Encapsulation
from policy.pad import PeerEntry, is_one_of_many
from policy.path import IKE_PORT, NATT_PORT, Endpoint, IpAddress, Path
from policy.selectors import AddressRange, Flow
from policy.spd import Mode, SpdEntry

_DIALLING = (State.INITIATING, State.AUTHENTICATING)


@dataclass(slots=True)
class _Demand:
    flow: Flow | None
    #: Number of the IKE SA that shall bring it.
    sa: int


class Demands:
    """The demands of one endpoint."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._waiting: dict[str, _Demand] = {}
        #: The same by IKE SA, in the order in which they came.
        self._of_sa: dict[int, dict[str, None]] = {}
        #: Failures in a row, by entry: they set how long the data plane should not ask again.
        self._failures: dict[str, int] = {}
        #: IKE SAs, by number, that do not answer while unauthenticated answers say that they are unknown.
        self._forgotten: set[int] = set()
        self._hinted: dict[str, Nanos] = {}
        #: IKE SAs, by number, that dial a host which stands in the policy only as one of many.
        self._to_hosts: set[int] = set()
        #: Dial no more.
        self.stopped = False

    def acquire(self, entry_id: str, flow: Flow | None, now: Nanos) -> None:
        """Get a Child SA for *entry_id* (that carries *flow*), unless that is under way."""
        if entry_id in self._waiting:
            return
        if self.stopped:
            self._fail(entry_id, Failure(FailureKind.LOCAL, "shutting down"), now)
            return
        core, entry = self._core, self._core.entry(entry_id)
        if entry is None or entry.protection is None:
            self._fail(entry_id, Failure(FailureKind.LOCAL, f"no policy entry {entry_id} needs protection"), now)
            return
        peer = core.snapshot.pad.by_name(entry.protection.peer)
        problem = "its peer is not known" if peer is None else _cannot_dial(peer)
        if peer is None or (problem and not self._usable(peer.name)):
            self._fail(entry_id, Failure(FailureKind.LOCAL, f"{problem} ({entry.where})"), now)
            return
        present = self._present(peer.name, entry_id, flow)
        if present is not None:
            self._is_there(entry_id, present, now)
            return
        usable = self._usable(peer.name, entry)
        if usable is not None:
            self._wait(entry_id, flow, usable)
            usable.start(ChildCreate(entry_id, flow), now)
            return
        dialling = next(
            (s for s in core.of_peer(peer.name) if s.initiator and s.state in _DIALLING and _carries(s, entry)),
            None,
        )
        if dialling is not None:
            self._wait(entry_id, flow, dialling)
            return
        self._dial(peer, entry_id, flow, now)

    def waits(self, entry: str) -> bool:
        """Whether somebody waits for *entry*."""
        return entry in self._waiting

    def satisfied(self, child: Child, now: Nanos) -> None:
        """A Child SA is there: whoever waits for one like it is content, whichever end made it."""
        demand = self._waiting.get(child.entry)
        self._failures.pop(child.entry, None)
        if demand is not None and (demand.flow is None or child.carries(demand.flow)):
            self._stop_waiting(child.entry)

    def answered(self, sa: IkeSa, entry: str, now: Nanos) -> None:
        """Our exchange for *entry* succeeded; if the demand still stands, the peer narrowed the packet away."""
        if entry in self._waiting:
            reason = "the peer granted a Child SA that does not carry the packet: it narrowed the selectors"
            self.refused(sa, entry, Failure(FailureKind.REFUSED, reason), now)

    def established(self, sa: IkeSa, now: Nanos) -> None:
        """An IKE SA is up: start what waits for it, and see whether the peer dialled at the same time."""
        for entry, flow in self._waiting_for(sa):
            sa.start(ChildCreate(entry, flow), now)
        self._core.dialler.established(sa, now)
        self._to_hosts.discard(sa.number)
        self._drop_unanswered(sa, now)
        if any(other.initiator != sa.initiator and other.usable for other in self._core.of_peer(sa.peer_name)):
            settings = self._core.settings
            self._core.timers.set(sa.number, Timer.REDUNDANT, now + settings.redundant_after)

    def first_of(self, sa: IkeSa) -> tuple[str, Flow | None] | None:
        """Return an entry that waits for *sa* and is still in the policy."""
        return next((each for each in self._waiting_for(sa) if self._core.entry(each[0]) is not None), None)

    def moved(self, old: IkeSa, new: IkeSa) -> None:
        """An IKE SA was rekeyed."""
        for entry, flow in self._waiting_for(old):
            self._wait(entry, flow, new)

    def refused(self, sa: IkeSa, entry: str, failure: Failure, now: Nanos) -> None:
        """Our exchange for *entry* failed, the IKE SA lives on."""
        if entry in self._waiting:
            if failure.kind is FailureKind.NO_ANSWER:  # it did answer once: never a reason to speak in clear
                failure = Failure(FailureKind.REFUSED, failure.reason)
            self.report(sa, failure, now, entry=entry)
            self._fail(entry, failure, now)

    def failed(self, entry: str, failure: Failure, now: Nanos) -> None:
        """Nothing comes of the demand for *entry*."""
        if entry in self._waiting:
            self._fail(entry, failure, now)

    def closed(self, sa: IkeSa, was: State, failure: Failure, now: Nanos) -> None:
        """An IKE SA ended: what waits for it fails, with all that is known about the reason."""
        self._to_hosts.discard(sa.number)
        if sa.initiator and was in _DIALLING:
            failure = _explain(sa, failure)
            self.report(sa, failure, now)
        for entry, _ in self._waiting_for(sa):
            self._fail(entry, failure, now)

    def report(self, sa: IkeSa, failure: Failure, now: Nanos, *, entry: str = "") -> None:
        """Tell why a negotiation of ours failed."""
        name = sa.peer_name or str(sa.path.remote.address)
        self._core.remember_failure(name, failure.reason)
        sa.tell(
            now,
            "negotiation_failed",
            Level.WARNING,
            f"negotiation with {name} failed: {failure.reason}",
            limit=f"{name} {entry} {failure.reason}",
            reason=failure.reason,
            kind=failure.kind.value,
            entry=entry,
            role="initiator" if sa.initiator else "responder",
        )

    def refused_request(self, sa: IkeSa, reason: str, now: Nanos) -> None:
        """Tell why we refused what the peer asked for."""
        name = sa.peer_name or str(sa.path.remote.address)
        self._core.remember_failure(name, reason)
        sa.tell(
            now,
            "negotiation_failed",
            Level.WARNING,
            f"request of {name} refused: {reason}",
            limit=f"{name} {reason}",
            reason=reason,
            kind=FailureKind.REFUSED.value,
            role="responder",
        )

    # Hints: nobody authenticated them, so they lead to a probe or a call at most, and seldom.

    def hint(self, sa: IkeSa, message: Message, now: Nanos) -> None:
        """An unprotected message for an IKE SA: INVALID_IKE_SPI says that the peer may have forgotten it (2.4)."""
        self._core.counters["unprotected"] += 1
        if message.notify(NotifyType.INVALID_IKE_SPI) is None and message.notify(NotifyType.INVALID_SPI) is None:
            return
        if sa.usable and self._may_act(f"sa {sa.number}", now):
            probe(sa, now)
        unanswered = sa.window.outstanding is not None and sa.window.outstanding.sent >= 2
        if sa.usable and unanswered and sa.initiator != message.header.initiator:
            self._redial(sa, now)

    def _redial(self, sa: IkeSa, now: Nanos) -> None:
        """The peer seems to have forgotten an IKE SA: make another beside it, which proves who answers.

        The old one goes when the new one is established and the old one is still not answered.
        """
        peer, waiting = sa.peer, [child.entry for child in sa.children.values() if not self.waits(child.entry)]
        if peer is None or not waiting or _cannot_dial(peer) or not self._may_act(f"redial {peer.name}", now):
            return
        self._forgotten.add(sa.number)
        self._dial(peer, waiting[0], None, now)

    def _drop_unanswered(self, sa: IkeSa, now: Nanos) -> None:
        """The peer, authenticated, answers *sa*: a twin whose request it does not answer is dead."""
        for number in list(self._forgotten):
            other = self._core.sas.get(number)
            if other is None or other.state is State.CLOSED:
                self._forgotten.discard(number)
                continue
            if other.peer_name != sa.peer_name:
                continue
            request = other.window.outstanding
            if other is sa or not other.usable or request is None or other.remote_id != sa.remote_id:
                continue
            if request.sent >= 2:
                other.close(Failure(FailureKind.LOCAL, "the peer forgot it, and answers a new one"), now)

    def unknown_spi(self, path: Path, now: Nanos) -> None:
        """ESP came for an SA that we do not have: did we restart, or is the peer behind?

        Of the many hosts of a range one is asked at a time: the address may be forged.
        """
        at_address = self._core.snapshot.pad.candidates(path.remote.address)
        peer = next((p for p in at_address if p.address is not None and not p.responds_only), None)
        if peer is None or not self._may_act(f"peer {peer.name}", now):
            return
        if is_one_of_many(peer.name) and not self._may_act("one of many", now):
            return
        alive = [sa for sa in self._core.of_peer(peer.name) if sa.state in AUTHENTICATED or sa.state in _DIALLING]
        for sa in alive:
            probe(sa, now)
        entries = self._core.entries_of(peer.name)
        if not alive and entries and not _cannot_dial(peer):
            self.acquire(entries[0].id, None, now)

    def settle_redundant(self, sa: IkeSa, now: Nanos) -> None:
        """Both ends dialled at once: the IKE SA with the lowest nonce goes, by who initiated it (as in 2.8.2).

        Only if each of its Child SAs has an equal on the other IKE SA; traffic moved there long ago.
        """
        twins = [
            other
            for other in self._core.of_peer(sa.peer_name)
            if other.usable and other.remote_id == sa.remote_id and other.local_id == sa.local_id
        ]
        if len(twins) < 2:
            return
        loser = min(twins, key=lambda other: other.lowest_nonce)
        kept = [c for other in twins if other is not loser for c in other.children.values()]
        served = all(any(_serves(other, child) for other in kept) for child in loser.children.values())
        if loser.initiator and served:
            drain = self._core.settings.rekey_drain
            delete_ike(loser, "redundant: both ends dialled at once", now, drain=drain)

    def forget(self, entry: str, reason: str, now: Nanos) -> None:
        """The policy no longer has *entry*."""
        self.failed(entry, Failure(FailureKind.LOCAL, reason), now)
        self._failures.pop(entry, None)

    def entries(self) -> list[str]:
        """Return the entries that somebody waits for."""
        return list(self._waiting)

    def _dial(self, peer: PeerEntry, entry: str, flow: Flow | None, now: Nanos) -> None:
        core = self._core
        if peer.address is None:
            return
        local = self._source(peer.address, entry)
        if local is None:
            self._fail(entry, Failure(FailureKind.LOCAL, f"we have no address to reach {peer.address} from"), now)
            return
        if len(core.sas) >= core.settings.sa_limit:
            self._fail(entry, Failure(FailureKind.LOCAL, "too many IKE SAs"), now)
            return
        if is_one_of_many(peer.name) and len(self._to_hosts) >= core.settings.hosts_dialled_limit:
            self._fail(entry, Failure(FailureKind.LOCAL, "too many hosts are asked already"), now)
            return
        sa = IkeSa(
            core,
            initiator=True,
            spi_i=core.new_spi(),
            spi_r=bytes(8),
            path=self._first_path(peer, local, peer.address),
            state=State.INITIATING,
            now=now,
        )
        sa.identify(peer)
        self._wait(entry, flow, sa)
        if is_one_of_many(peer.name):
            self._to_hosts.add(sa.number)
        core.dialler.dial(sa, peer, entry, flow, now)

    def _first_path(self, peer: PeerEntry, local: IpAddress, remote: IpAddress) -> Path:
        """Port 500, or 4500 at once where policy asks for UDP encapsulation (section 2.23 allows either)."""
        port = NATT_PORT if Encapsulation.UDP in self._core.encapsulations(peer.name) else IKE_PORT
        return Path(Endpoint(local, port), Endpoint(remote, port))

    def _source(self, remote: IpAddress, entry_id: str) -> IpAddress | None:
        """Return our address to dial from: in transport mode it is the entry's own."""
        entry = self._core.entry(entry_id)
        own = None if entry is None else _own_host(entry)
        return self._core.source_for(remote) if own is None else own.first

    def _usable(self, peer: str, entry: SpdEntry | None = None) -> IkeSa | None:
        usable = [sa for sa in self._core.of_peer(peer) if sa.usable and (entry is None or _carries(sa, entry))]
        return usable[-1] if usable else None

    def _present(self, peer: str, entry: str, flow: Flow | None) -> tuple[IkeSa, Child] | None:
        for sa in reversed(self._core.of_peer(peer)):
            for child in reversed(sa.children.values()):
                fits = flow is None or child.carries(flow)
                if child.entry == entry and child.state is ChildState.LIVE and fits:
                    return sa, child
        return None

    def _is_there(self, entry: str, present: tuple[IkeSa, Child], now: Nanos) -> None:
        """Asked for what is there: send on it if it slept; the data plane may ask again at once."""
        sa, child = present
        activate(sa, child)
        reason = f"Child SA {child.number} is up already"
        self._core.emit(AcquireFailed(entry, FailureKind.LOCAL, reason, 0))

    def _fail(self, entry: str, failure: Failure, now: Nanos) -> None:
        self._stop_waiting(entry)
        settings = self._core.settings
        wait = settings.retry_first
        if failure.kind in (FailureKind.REFUSED, FailureKind.AUTHENTICATION):
            count = self._failures.pop(entry, 0)
            while len(self._failures) >= settings.failures_limit:
                del self._failures[next(iter(self._failures))]
            self._failures[entry] = count + 1
            wait = min(settings.retry_first << min(count, 16), settings.retry_cap)
        wait += wait * self._core.entropy(1)[0] // 1024
        self._core.emit(AcquireFailed(entry, failure.kind, failure.reason, wait))

    def _wait(self, entry: str, flow: Flow | None, sa: IkeSa) -> None:
        self._stop_waiting(entry)
        self._waiting[entry] = _Demand(flow, sa.number)
        self._of_sa.setdefault(sa.number, {})[entry] = None

    def _stop_waiting(self, entry: str) -> None:
        demand = self._waiting.pop(entry, None)
        if demand is None:
            return
        others = self._of_sa[demand.sa]
        del others[entry]
        if not others:
            del self._of_sa[demand.sa]

    def _waiting_for(self, sa: IkeSa) -> list[tuple[str, Flow | None]]:
        """Return the entries that *sa* shall bring, with the flows that they were asked for."""
        return [(entry, self._waiting[entry].flow) for entry in self._of_sa.get(sa.number, ())]

    def _may_act(self, key: str, now: Nanos) -> bool:
        last = self._hinted.get(key)
        if last is not None and now - last < self._core.settings.hint_interval:
            return False
        self._hinted.pop(key, None)
        while len(self._hinted) >= 1024:
            del self._hinted[next(iter(self._hinted))]
        self._hinted[key] = now
        return True


def _cannot_dial(peer: PeerEntry) -> str:
    """Return why *peer* cannot be dialled, or nothing."""
    if peer.ike.version != 2:
        return f"{peer.name} needs IKEv{peer.ike.version}, which is not spoken ({peer.where})"
    if peer.responds_only:
        return f"{peer.name} is known by the default response rule alone: it must dial us ({peer.where})"
    if peer.hosts:
        return f"{peer.name} stands for each host of a range: there is none to dial yet ({peer.where})"
    if peer.address is None:
        return f"{peer.name} may be anywhere: it must dial us ({peer.where})"
    if not preshared_keys(peer):
        return f"{peer.name} has no preshared key, and certificates cannot be used yet ({peer.where})"
    if not any(proposal.groups for proposal in peer.ike.proposals):
        return f"{peer.name} has no IKE proposal with a key exchange method ({peer.where})"
    return ""


def _explain(sa: IkeSa, failure: Failure) -> Failure:
    """Return the failure of an attempt in words: nobody answered, or what the answers said."""
    if failure.kind is not FailureKind.NO_ANSWER:
        return failure
    if sa.state is State.CLOSED and sa.spi_r != bytes(8):
        return Failure(FailureKind.REFUSED, f"{failure.reason}: the peer answered IKE_SA_INIT but not IKE_AUTH")
    if sa.answered:
        reason = sa.probable or "the peer answered IKE_SA_INIT, but never with an agreement"
        return Failure(FailureKind.REFUSED, reason)
    return Failure(failure.kind, reasons.no_answer(sa.path.remote, sa.probable))


def _carries(sa: IkeSa, entry: SpdEntry) -> bool:
    """Whether a Child SA of *entry* can be made on *sa*: in transport mode it is between the addresses of both."""
    own = _own_host(entry)
    return own is None or (own.version == sa.path.version and own.contains(int(sa.path.local.address)))


def _own_host(entry: SpdEntry) -> AddressRange | None:
    """Return the own address of a transport-mode entry, None where any will do."""
    own = entry.selectors.local.addresses
    transport = entry.protection is not None and entry.protection.mode is Mode.TRANSPORT
    return own if transport and own.start == own.end else None


def _serves(other: Child, child: Child) -> bool:
    return other.entry == child.entry and all(
        any(mine.covers(pair) for mine in other.selectors) for pair in child.selectors
    )
