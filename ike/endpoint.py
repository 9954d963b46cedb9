"""The IKE endpoint: all IKE SAs of a host behind one pure object (RFC 7296).

Feed it one input, ``poll`` until None, then read ``deadline``. It has no clock, no sockets and no randomness
of its own.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress

from ike.constants import ExchangeType
from ike.errors import InvalidMajorVersion, WireError
from ike.events import FailureKind, IkeOutput, IkeSaKeys, Level
from ike.names import describe
from ike.status import IkeSaStatus
from ike.timers import Due, Timer
from ike.v2 import reload as policy_reload
from ike.v2.child import ChildState, of_number
from ike.v2.core import Core
from ike.v2.demands import Demands
from ike.v2.dialler import NOBODY, Dialler
from ike.v2.requests import respond
from ike.v2.sa import IkeSa
from ike.v2.settings import IkeSettings
from ike.v2.states import State
from ike.v2.strangers import Strangers
from ike.v2.tasks.child_rekey import ChildRekey
from ike.v2.tasks.delete import delete_children, delete_ike
from ike.v2.tasks.ike_init import IkeInit
from ike.v2.tasks.ike_rekey import IkeRekey
from ike.v2.tasks.liveness import check_liveness
from ike.v2.tasks.task import Failure
from ike.wire.glance import glance
from ike.wire.message import parse_message
from policy.clock import SECOND, Entropy, Nanos
from policy.path import IpAddress, Path
from policy.selectors import Flow
from policy.spd import Snapshot


class IkeEndpoint:
    """IKEv2 with preshared keys, initiator and responder."""

    def __init__(
        self,
        *,
        entropy: Entropy,
        last_heard: Callable[[int], Nanos] = lambda child: 0,
        settings: IkeSettings | None = None,
    ) -> None:
        """*last_heard* tells when a Child SA last received an authenticated packet, 0 for never."""
        self._core = Core(entropy, last_heard, IkeSettings() if settings is None else settings)
        self._core.demands = Demands(self._core)
        self._core.dialler = Dialler(self._core, self._quarantine)
        self._core.respond = respond
        self._strangers = Strangers(self._core)
        #: How many rekeys an operator asked for, at one instant.
        self._asked: tuple[Nanos, int] = (0, 0)

    # Inputs.

    def load(self, snapshot: Snapshot, now: Nanos) -> None:
        """Swap the policy; SAs that it no longer allows are deleted, the others are not touched."""
        policy_reload.load(self._core, snapshot, now)

    def receive(self, path: Path, data: bytes, now: Nanos) -> None:
        """Take one IKE message, its non-ESP marker removed."""
        try:
            self._receive(path, data, now)
        except WireError as error:
            self._core.counters["malformed"] += 1
            self._core.tell(
                now,
                "malformed_message",
                Level.DEBUG,
                f"message of {path.remote} is not IKE: {error}",
                limit=str(path.remote.address),
            )

    def acquire(self, entry: str, flow: Flow | None, now: Nanos) -> None:
        """Get a Child SA for an SPD entry: always ends in ChildInstalled or AcquireFailed."""
        try:
            self._core.demands.acquire(entry, flow, now)
        except Exception as error:
            self._quarantine(None, error, now)
            self._core.demands.failed(entry, Failure(FailureKind.LOCAL, "internal error"), now)

    def expire(self, child: int, hard: bool, now: Nanos) -> None:
        """A Child SA crossed its octet limits or ran out of sequence numbers."""
        self._expire(child, hard, "its octets or sequence numbers are used up", now)

    def mapping(self, child: int, path: Path, now: Nanos) -> None:
        """Authenticated ESP came from a new path: a NAT before the peer moved it (section 2.23)."""
        sa = self._core.children.get(child)
        if sa is None or not sa.nat_remote or not path.encapsulated or path == sa.path:
            return
        sa.move(path)

    def unknown_spi(self, path: Path, spi: int, now: Nanos) -> None:
        """ESP came for no SA of ours: a hint that may lead to a dial or a liveness check, seldom."""
        self._core.demands.unknown_spi(path, now)

    def source(self, remote: IpAddress, local: IpAddress) -> None:
        """Speak to *remote* from *local*: the host's routing says so."""
        self._core.sources[remote] = local

    def rekey_child(self, child: int, now: Nanos) -> None:
        """Rekey a Child SA now, or of many some in the next turns."""
        sa = self._core.children.get(child)
        if self._has_time(now):
            self._expire(child, False, "", now)
        elif sa is not None:
            self._core.timers.set(sa.number, Timer.REKEY_CHILD, now, child)

    def rekey_ike(self, peer: str, now: Nanos) -> None:
        """Rekey the IKE SAs with *peer* now, or of many some in the next turns."""
        for sa in self._core.of_peer(peer):
            if not self._has_time(now):
                self._core.timers.set(sa.number, Timer.REKEY_IKE, now)
            elif sa.usable and not any(isinstance(task, IkeRekey) for task in sa.tasks()):
                sa.start(IkeRekey(), now)

    def terminate_child(self, child: int, now: Nanos, reason: str = "terminated by the operator") -> None:
        """Delete a Child SA."""
        self._expire(child, True, reason, now)

    def terminate_peer(self, peer: str, now: Nanos) -> None:
        """Delete the IKE SAs with *peer* and all that hangs on them."""
        for sa in self._core.of_peer(peer):
            delete_ike(sa, "terminated by the operator", now)

    def shutdown(self, now: Nanos) -> None:
        """Delete every IKE SA in an orderly way, and dial no more until a policy is loaded."""
        self._core.demands.stopped = True
        for sa in list(self._core.sas.values()):
            if sa.state is not State.CLOSED:
                delete_ike(sa, "shutting down", now)

    def handle_timeout(self, now: Nanos) -> None:
        """Do what is due, or a part of it: ``deadline`` says when to come again. Spurious calls are harmless."""
        for _ in range(self._core.settings.work_a_turn):
            due = self._core.timers.next_due(now)
            if due is None:
                return
            if due.owner == NOBODY:
                self._dial(now)
                continue
            sa = self._core.sas.get(due.owner)
            if sa is None:
                continue
            try:
                self._fire(sa, due, now)
            except Exception as error:
                self._quarantine(sa, error, now)

    # Outputs.

    def poll(self) -> IkeOutput | None:
        """Return the next output, or None."""
        return self._core.outputs.popleft() if self._core.outputs else None

    def deadline(self) -> Nanos | None:
        """Return when ``handle_timeout`` is next wanted."""
        return self._core.timers.deadline()

    def status(self, now: Nanos) -> list[IkeSaStatus]:
        """Return every IKE SA that is not closed, oldest first."""
        return [self._status(sa, now) for sa in self._core.sas.values() if sa.state is not State.CLOSED]

    def failures(self) -> Mapping[str, str]:
        """Return why the last negotiation with each peer (or address) failed, until one succeeds."""
        return dict(self._core.failures)

    def counters(self) -> Mapping[str, int]:
        """Return how often what happened since the start, by names of ours: no peer can make new ones."""
        return dict(self._core.counters)

    def half_open(self) -> int:
        """Return the IKE SAs of peers that asked for one and have not said who they are yet."""
        return len(self._core.half_open)

    # Helpers.

    def _receive(self, path: Path, data: bytes, now: Nanos) -> None:
        """Parse what is worth it, and hand it to its IKE SA. Raises WireError for what is not an IKE message."""
        look = glance(data)
        if look is None or (look.length != len(data) and look.ours):
            self._core.counters["malformed"] += 1
            return
        sa = self._core.by_spi.get(look.our_spi) if look.ours else None
        try:
            if not look.ours:
                if self._strangers.attends(now):
                    parse_message(data)
            elif sa is None:
                if not self._strangers.dismiss(look, path, data, now):
                    self._strangers.receive(parse_message(data), path, now)
            elif look.protected or look.exchange == ExchangeType.IKE_SA_INIT or self._strangers.attends(now):
                was = sa.established
                sa.receive(parse_message(data), path, now)
                if was is None and sa.established is not None:
                    self._strangers.prove(path)
        except InvalidMajorVersion as error:
            self._strangers.other_version(error, path, len(data), now)
        except WireError:
            raise
        except Exception as error:  # other IkeErrors among them: who raises them must see that they are answered
            self._quarantine(sa, error, now)

    def _has_time(self, now: Nanos) -> bool:
        """Whether what an operator asks for fits into this turn: of a thousand rekeys most do not."""
        at, count = self._asked
        self._asked = (now, count + 1 if at == now else 1)
        return self._asked[1] <= self._core.settings.work_a_turn

    def _expire(self, child: int, hard: bool, reason: str, now: Nanos) -> None:
        sa = self._core.children.get(child)
        record = None if sa is None else of_number(sa, child)
        if sa is None or record is None:
            return
        if hard:
            delete_children(sa, [record], reason, now)
        elif record.state is ChildState.LIVE and not any(
            isinstance(task, ChildRekey) and task.old is record for task in [*sa.tasks(), *sa.deferred.values()]
        ):
            sa.start(ChildRekey(record), now)

    def _dial(self, now: Nanos) -> None:
        try:
            self._core.dialler.turn(now)
        except Exception as error:
            self._quarantine(None, error, now)

    def _fire(self, sa: IkeSa, due: Due, now: Nanos) -> None:
        match due.timer:
            case Timer.RETRANSMIT:
                if isinstance(sa.current, IkeInit):
                    self._core.dialler.repeat(sa, now)
                else:
                    sa.retransmit(now)
            case Timer.FALLBACK:
                if isinstance(sa.current, IkeInit) and not sa.answered:
                    self._fall_back(sa, now)
            case Timer.SETTLE:
                if isinstance(sa.current, IkeInit):
                    sa.current.settle(sa, now)
            case Timer.HALF_OPEN:
                sa.close(Failure(FailureKind.NO_ANSWER, "the initiator never came back with IKE_AUTH"), now)
            case Timer.RETRY:
                sa.retry(due.detail, now)
            case Timer.LIVENESS:
                check_liveness(sa, now)
            case Timer.KEEPALIVE:
                sa.keepalive(now)
            case Timer.REKEY_IKE:
                if sa.usable and not any(isinstance(task, IkeRekey) for task in sa.tasks()):
                    sa.start(IkeRekey(), now)
            case Timer.EXPIRE_IKE:
                self._ike_expired(sa, now)
            case Timer.REKEY_CHILD:
                self._expire(due.detail, False, "", now)
            case Timer.EXPIRE_CHILD:
                self._expire(due.detail, True, "its lifetime ended", now)
            case Timer.REDUNDANT:
                self._core.demands.settle_redundant(sa, now)
            case Timer.LINGER:
                self._core.remove(sa)

    def _fall_back(self, sa: IkeSa, now: Nanos) -> None:
        """Nobody answered, as far as ``fallback_clear`` cares: unless the peer was hardly asked, or just now."""
        dialler = self._core.dialler
        at = now + SECOND if dialler.waits(sa) else dialler.answer_due(sa)
        if now < at:
            self._core.timers.set(sa.number, Timer.FALLBACK, at)
        else:
            sa.close(Failure(FailureKind.NO_ANSWER, "nobody answered"), now)

    def _ike_expired(self, sa: IkeSa, now: Nanos) -> None:
        if sa.state is State.REKEYED:
            sa.close(Failure(FailureKind.NO_ANSWER, "replaced, and the peer never deleted it"), now)
        else:
            delete_ike(sa, "its lifetime ended", now)

    def _quarantine(self, sa: IkeSa | None, error: Exception, now: Nanos) -> None:
        """A bug of ours: the IKE SA that met it goes, the endpoint lives, and somebody is told where."""
        frames = traceback.extract_tb(error.__traceback__)[-4:]
        where = " < ".join(f"{frame.name}:{frame.lineno}" for frame in reversed(frames))
        self._core.tell(
            now,
            "internal_error",
            Level.ERROR,
            f"internal error in the IKE endpoint: {type(error).__name__} at {where}",
            where=where,
            error=type(error).__name__,
        )
        self._core.counters["internal error"] += 1
        if sa is not None:
            failure = Failure(FailureKind.LOCAL, "internal error")
            with suppress(Exception):  # it is told already
                sa.close(failure, now)
            if self._core.timers.at(sa.number, Timer.LINGER) is None:  # closing it met the bug, now or before
                self._core.remove(sa)
                self._core.demands.closed(sa, State.CLOSED, failure, now)

    def export_keys(self) -> list[IkeSaKeys]:
        """Return the keys of every IKE SA, for the operator's capture: the only way that they leave."""
        return [
            IkeSaKeys(
                spi_i=sa.spi_i, spi_r=sa.spi_r, suite=channel.suite,
                sk_ei=keys.sk_ei, salt_ei=keys.salt_ei, sk_er=keys.sk_er, salt_er=keys.salt_er,
                sk_ai=keys.sk_ai, sk_ar=keys.sk_ar,
            )
            for sa in self._core.sas.values()
            if (channel := sa.channel) is not None and any((keys := channel.keys).sk_ei.reveal())
        ]  # fmt: skip

    def _status(self, sa: IkeSa, now: Nanos) -> IkeSaStatus:
        request = sa.window.outstanding
        return IkeSaStatus(
            peer=sa.peer_name,
            spi_i=sa.spi_i,
            spi_r=sa.spi_r,
            state=sa.state.value,
            role="initiator" if sa.initiator else "responder",
            path=sa.path,
            suite="" if sa.channel is None else describe(sa.channel.suite),
            nat_local=sa.nat_local,
            nat_remote=sa.nat_remote,
            remote_id="" if sa.remote_id is None else str(sa.remote_id),
            established=sa.established,
            rekey_at=self._core.timers.at(sa.number, Timer.REKEY_IKE),
            children=tuple(number for child in sa.children.values() for number in child.numbers),
            last_failure=self._core.failures.get(sa.peer_name, ""),
            unanswered=0 if request is None else request.sent,
            silent_for=0 if request is None else now - request.started,
        )
