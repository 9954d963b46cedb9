"""One IKE SA: its state, its window, its tasks and its Child SAs (RFC 7296).

A message is judged in this order: message ID, legality in this state, integrity, shape; only then does anything
change. What is unprotected after IKE_SA_INIT is a hint at most.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ike.constants import ExchangeType, NotifyType, name_of
from ike.errors import IkeError, IntegrityError, LocalError, Reach, UnsupportedCriticalPayload, WireError
from ike.events import FailureKind, Level, PathChanged, SendIke
from ike.timers import Timer
from ike.v2 import child as children
from ike.v2.channel import Channel
from ike.v2.child import Child
from ike.v2.core import Core
from ike.v2.nat import KEEPALIVE, fragment_limit, with_marker
from ike.v2.states import AUTHENTICATED, Direction, State, legal, may_become
from ike.v2.tasks.task import Failure, InitialTask, Task
from ike.v2.window import Verdict, Window
from ike.wire import rules
from ike.wire.header import Header
from ike.wire.message import Message, encode_message
from ike.wire.payloads import NotifyPayload, Payload
from policy.clock import Nanos
from policy.pad import Identity, PeerEntry
from policy.path import NATT_PORT, Path

if TYPE_CHECKING:
    from collections.abc import Iterable


class IkeSa:
    """One IKE SA, from the first message to the last."""

    def __init__(
        self, core: Core, *, initiator: bool, spi_i: bytes, spi_r: bytes, path: Path, state: State, now: Nanos
    ) -> None:
        self.core = core
        self.number = core.new_number()
        self.initiator = initiator
        self.spi_i = spi_i
        self.spi_r = spi_r
        self.path = path
        self.state = state
        self.created = now
        #: When its IKE_SA_INIT request left first.
        self.dialled: Nanos | None = None
        self.established: Nanos | None = None
        #: Taken from the same series as *number* when it was established: tells what was before what.
        self.seniority: int | None = None
        #: Last authenticated message of the peer, and our last message.
        self.heard: Nanos = now
        self.spoke: Nanos = now
        self.peer: PeerEntry | None = None
        self.local_id: Identity | None = None
        self.remote_id: Identity | None = None
        self.channel: Channel | None = None
        self.window = Window()
        self.current: Task | None = None
        self.queue: deque[Task] = deque()
        #: Tasks put off by TEMPORARY_FAILURE, by the detail of their timer.
        self.deferred: dict[int, Task] = {}
        self._deferrals = 0
        self.children: dict[int, Child] = {}
        self.nat_local = self.nat_remote = self.mirrorgate = self.fragmentation = False
        #: Whether the peer does NAT traversal at all.
        self.nat_traversal = False
        #: Octets and nonces of IKE_SA_INIT (section 2.15), until AUTH is done; the lowest nonce afterwards.
        self.init_request = self.init_response = b""
        self.nonce_i = self.nonce_r = b""
        self.lowest_nonce = b""
        #: The IKE SA that took our Child SAs over.
        self.successor: IkeSa | None = None
        #: What an unauthenticated answer to IKE_SA_INIT said.
        self.probable = ""
        self.answered = False  # whether anything came from the peer, authentic or not
        #: Set by the answer to a request that ends the IKE SA: it closes once the response is out.
        self.closing: Failure | None = None
        #: The IKE SA that both ends rekey at once, while it is open which successor stands.
        self.predecessor: IkeSa | None = None
        #: A Delete for it waits its turn.
        self.leaving = False
        core.add(self)

    # What we are.

    @property
    def our_spi(self) -> bytes:
        """The SPI that the peer puts into messages to us."""
        return self.spi_i if self.initiator else self.spi_r

    @property
    def peer_name(self) -> str:
        """Name of the PAD entry, empty while unknown."""
        return "" if self.peer is None else self.peer.name

    @property
    def usable(self) -> bool:
        """Whether new work may be started on it."""
        return self.state is State.ESTABLISHED and not self.leaving

    @property
    def idle_tasks(self) -> bool:
        """Whether nothing is under way or waiting."""
        return self.current is None and not self.queue

    def tasks(self) -> Iterable[Task]:
        """Return the task under way and those that wait, in order."""
        return ([self.current] if self.current is not None else []) + list(self.queue)

    def become(self, state: State) -> None:
        """Go to *state*; the table says from where."""
        if not may_become(self.state, state):
            raise LocalError(f"an IKE SA cannot go from {self.state.value} to {state.value}")
        self.state = state

    def identify(self, peer: PeerEntry) -> None:
        """Know the PAD entry."""
        self.core.unbind(self)
        self.peer = peer
        self.core.bind(self, peer.name)

    def tell(
        self, now: Nanos, name: str, level: Level, message: str, *, limit: str | None = None, **fields: object
    ) -> None:
        """Emit an event about this IKE SA."""
        self.core.tell(
            now, name, level, message, limit=limit, ike=self.our_spi.hex(), peer=self.peer_name, **fields
        )

    # What arrives.

    def receive(self, message: Message, path: Path, now: Nanos) -> None:
        """Take one message whose SPI is ours."""
        header = message.header
        if header.initiator == self.initiator:
            return self._ignore("reflected")
        if header.exchange == ExchangeType.IKE_SA_INIT:
            return self._receive_init(message, path, now)
        if message.protected is None:
            return self.core.demands.hint(self, message, now)
        if header.response:
            if not self.window.answers(header.message_id):
                return self._ignore("response out of window")
        elif self._repeated(message, path):
            return None
        direction = Direction.RESPONSE if header.response else Direction.REQUEST
        if not legal(self.state, header.exchange, direction) or self.channel is None:
            self._unexpected(message, direction, now)
            return None
        try:
            opened = self._open(self.channel, message)
        except IntegrityError:
            return self._ignore("integrity")
        except IkeError as error:
            self._authenticated(path, now)
            return self._malformed(message, error, path, now)
        self._authenticated(path, now)
        if opened is None:
            return None
        try:
            rules.check(opened)
        except WireError as error:
            return self._malformed(message, error, path, now)
        if header.response:
            self._take_response(opened, now)
        else:
            self._take_request(opened, path, now)
        return None

    def _receive_init(self, message: Message, path: Path, now: Nanos) -> None:
        """Take an IKE_SA_INIT response: nothing in it is authenticated yet."""
        if not message.header.response or not self.window.answers(message.header.message_id):
            return self._ignore("init out of window")
        if not legal(self.state, ExchangeType.IKE_SA_INIT, Direction.RESPONSE) or message.protected is not None:
            return self._unexpected(message, Direction.RESPONSE, now)
        rules.check(message)
        if isinstance(self.current, InitialTask):
            self.current.examine(self, message, path, now)
        return None

    def _repeated(self, message: Message, path: Path) -> bool:
        """Deal with a request that is not new: repeat the response to the last one, ignore the others."""
        message_id = message.header.message_id
        match self.window.judge(message_id):
            case Verdict.NEW:
                return False
            case Verdict.REPEATED:
                self.transmit(self.window.repeat(message_id, message.octets), path)
                self.core.counters["request repeated"] += 1
            case Verdict.OUTSIDE:
                self._ignore("request out of window")
        return True

    def _open(self, channel: Channel, message: Message) -> Message | None:
        opened = channel.open(message)
        protected = message.protected
        if not message.header.response and protected is not None and protected.number == 1:
            self.window.first_fragment(message.header.message_id, message.octets)
        return opened

    def _authenticated(self, path: Path, now: Nanos) -> None:
        """A new message of the peer was authentic: it is alive, and its NAT may have moved it (2.23)."""
        self.heard = now
        if path == self.path:
            return
        floating = self.state is State.HALF_OPEN or self.state is State.AUTHENTICATING
        if floating or self.nat_remote:
            self.move(path)

    def move(self, path: Path) -> None:
        """Send along *path* from now on, with the encapsulated Child SAs."""
        self.core.relocate(self, path)
        for child in self.children.values():
            child.path = children.child_path(self, child.encapsulation, child.protocol)
        moved = tuple(c.number for c in self.children.values() if c.path.encapsulated)
        if moved:
            self.core.emit(PathChanged(moved, self.children[moved[0]].path))

    def _take_request(self, message: Message, path: Path, now: Nanos) -> None:
        try:
            payloads = self.core.respond(self, message, path, now)
        except IkeError as error:
            payloads = error_payloads(error)
            if error.reach is Reach.IKE_SA:
                self.closing = Failure(FailureKind.REFUSED, str(error))
            self._refused(message, error, now)
        self.answer(message.header, payloads, path, now)
        if self.closing is not None:
            self.close(self.closing, now, drain=self.core.settings.drain)
        else:
            self.advance(now)

    def _refused(self, message: Message, error: IkeError, now: Nanos) -> None:
        if error.notify in (NotifyType.TEMPORARY_FAILURE, NotifyType.CHILD_SA_NOT_FOUND):
            self.core.counters[error.notify.name] += 1  # ordinary when exchanges cross (section 2.25)
            return
        exchange = name_of(ExchangeType, message.header.exchange)
        self.core.demands.refused_request(self, f"{exchange} refused: {error}", now)

    def _take_response(self, message: Message, now: Nanos) -> None:
        task = self.current
        self._completed()
        if task is None:
            return
        try:
            task.process(self, message, now)
        except IkeError as error:
            self._task_failed(task, Failure(FailureKind.REFUSED, str(error)), now)
        if self.state is not State.CLOSED:
            self.advance(now)

    def _task_failed(self, task: Task, failure: Failure, now: Nanos) -> None:
        """A task failed: an IKE SA that is not yet established fails with it."""
        task.failed(self, failure, now)
        if self.state not in AUTHENTICATED:
            self.close(failure, now)

    def _malformed(self, message: Message, error: IkeError, path: Path, now: Nanos) -> None:
        """Authenticated octets that are wrong: fatal, but for an unknown critical payload (section 2.21.3)."""
        if message.header.response:
            task = self.current
            self._completed()
            failure = Failure(FailureKind.REFUSED, f"the peer's response is malformed: {error}")
            if task is not None:
                self._task_failed(task, failure, now)
            if not isinstance(error, UnsupportedCriticalPayload):
                self.close(failure, now)
            elif self.state is not State.CLOSED:
                self.advance(now)
            return
        self._refused(message, error, now)
        self.answer(message.header, error_payloads(error), path, now)
        if not isinstance(error, UnsupportedCriticalPayload):
            self.close(Failure(FailureKind.REFUSED, f"the peer's request is malformed: {error}"), now)

    def _unexpected(self, message: Message, direction: Direction, now: Nanos) -> None:
        exchange = name_of(ExchangeType, message.header.exchange)
        self._ignore("unexpected")
        self.tell(
            now,
            "unexpected_message",
            Level.INFO,
            f"{exchange} {direction.value} of {self.path.remote} ignored: the IKE SA is {self.state.value}",
            limit=f"{self.path.remote.address} {exchange} {direction.value} {self.state.value}",
        )

    def _ignore(self, why: str) -> None:
        self.core.counters[why] += 1

    # What we send.

    def start(self, task: Task, now: Nanos, *, urgent: bool = False) -> None:
        """Queue *task*, and send its request if nothing is outstanding."""
        if len(self.queue) >= self.core.settings.queue_limit:
            task.failed(self, Failure(FailureKind.LOCAL, "too many tasks wait on this IKE SA"), now)
            return
        if urgent:
            self.queue.appendleft(task)
        else:
            self.queue.append(task)
        if self.state in AUTHENTICATED:
            self.advance(now)

    def advance(self, now: Nanos) -> None:
        """Send the next task's request if nothing is outstanding."""
        while self.current is None and self.queue and self.state in AUTHENTICATED:
            task = self.queue.popleft()
            payloads = task.build(self, now)
            if payloads is not None:
                self.request(task, payloads, now)

    def request(self, task: Task, payloads: Sequence[Payload], now: Nanos) -> None:
        """Send *payloads* as the outstanding request."""
        if self.window.exhausted:
            self.close(Failure(FailureKind.LOCAL, "message IDs are used up"), now)
            return
        datagrams = self._encode(task.exchange, self.window.next_id, payloads, response=False)
        self.current = task
        self.window.send(datagrams, task.backoff(self.core.settings), now)
        self._arm()
        self.transmit(datagrams, self.path)
        self.spoke = now

    def defer(self, task: Task, tries: int, now: Nanos) -> bool:
        """Try *task* again later, later with each try (section 2.25); False when it was tried often enough."""
        settings = self.core.settings
        if tries >= settings.temporary_tries or self.state is not State.ESTABLISHED:
            return False
        self._deferrals += 1
        self.deferred[self._deferrals] = task
        # Both ends may be put off by each other: chance must part them.
        wait = settings.temporary_wait << tries
        at = now + wait + wait * self.core.entropy(1)[0] // 256
        self.core.timers.set(self.number, Timer.RETRY, at, self._deferrals)
        return True

    def retry(self, detail: int, now: Nanos) -> None:
        """Start a task that was put off."""
        task = self.deferred.pop(detail, None)
        if task is not None:
            self.start(task, now)

    def resend(self, payloads: Sequence[Payload], now: Nanos) -> bytes:
        """Send another IKE_SA_INIT in place of the one outstanding; return its octets."""
        datagrams = self._encode(ExchangeType.IKE_SA_INIT, 0, payloads, response=False)
        self.window.replace(datagrams, now)
        self._arm()
        self.transmit(datagrams, self.path)
        return datagrams[0]

    def answer(self, header: Header, payloads: Sequence[Payload], path: Path, now: Nanos) -> bytes:
        """Send the response to the request with *header* to where it came from, and store it."""
        datagrams = self._encode(header.exchange, header.message_id, payloads, response=True)
        self.window.answer(datagrams)
        self.transmit(datagrams, path)
        self.spoke = now
        return datagrams[0]

    def transmit(self, datagrams: Sequence[bytes], path: Path) -> None:
        """Emit datagrams."""
        for data in datagrams:
            self.core.emit(SendIke(path, with_marker(path, data)))

    def completed_init(self) -> None:
        """IKE_SA_INIT was answered."""
        self._completed()

    def _completed(self) -> None:
        self.window.complete()
        self.current = None
        self.core.timers.cancel(self.number, Timer.RETRANSMIT)

    def _encode(
        self, exchange: int, message_id: int, payloads: Sequence[Payload], *, response: bool
    ) -> tuple[bytes, ...]:
        header = Header(
            spi_i=self.spi_i,
            spi_r=self.spi_r,
            exchange=exchange,
            initiator=self.initiator,
            response=response,
            message_id=message_id,
        )
        if exchange == ExchangeType.IKE_SA_INIT:
            return (encode_message(header, payloads),)
        if self.channel is None:
            raise LocalError("a protected message without keys")
        fragment = None
        if self.fragmentation:
            size = 1280 if self.peer is None else self.peer.ike.fragment_size
            fragment = fragment_limit(self.path, size)
        return self.channel.seal(header, payloads, fragment)

    def _arm(self) -> None:
        at = self.window.deadline()
        if at is not None:
            self.core.timers.set(self.number, Timer.RETRANSMIT, at)

    # Time.

    def retransmit(self, now: Nanos) -> None:
        """Send the outstanding request again, or give it up."""
        datagrams = self.window.timeout(now)
        if datagrams is None:
            self._gave_up(now)
            return
        self._arm()
        self.transmit(datagrams, self.path)
        if datagrams:
            self.spoke = now
            self.core.counters["retransmitted"] += 1
            if self.window.falls_silent(now):  # somebody may be waiting, long before it is given up
                text = f"no answer yet from {self.path.remote} ({self.peer_name})"
                self.tell(now, "no_answer", Level.INFO, text, limit=str(self.path.remote))

    def _gave_up(self, now: Nanos) -> None:
        task = self.current
        self._completed()
        failure = Failure(FailureKind.NO_ANSWER, f"no answer from {self.path.remote} to {self._asked(task)}")
        if task is not None:
            task.failed(self, failure, now)
        self.close(failure, now)

    def _asked(self, task: Task | None) -> str:
        return "a request" if task is None else task.exchange.name

    def keepalive(self, now: Nanos) -> None:
        """Keep the mapping of a NAT before us alive (RFC 3948 section 4), if nothing else did."""
        interval = self.core.settings.keepalive
        if self.state not in AUTHENTICATED or not self.nat_local:
            return
        if now - self.spoke >= interval and self.path.local.port == NATT_PORT:
            self.core.emit(SendIke(self.path, KEEPALIVE))
            self.spoke = now
        self.core.timers.set(self.number, Timer.KEEPALIVE, self.spoke + interval)

    # The end.

    def close(self, failure: Failure, now: Nanos, *, drain: Nanos = 0) -> None:
        """End the IKE SA here and now: Child SAs go, tasks fail, keys are forgotten (section 2.12).

        It lingers a while to repeat its last response, which needs no keys.
        """
        if self.state is State.CLOSED:
            return
        was = self.state
        self.state = State.CLOSED
        core = self.core
        for child in reversed(list(self.children.values())):
            children.remove(self, child, failure.reason, now, drain=drain)
        waiting = [*self.tasks(), *self.deferred.values()]
        self._completed()
        self.queue.clear()
        self.deferred.clear()
        for task in waiting:
            task.failed(self, failure, now)
        core.unbind(self)
        core.timers.forget(self.number)
        if self.channel is not None:
            self.channel.wipe()
            self.channel = None  # the ciphers have keys of their own, which cannot be overwritten
        if was in AUTHENTICATED:
            self.tell(
                now,
                "ike_deleted",
                Level.DEBUG if was is State.REKEYED else Level.INFO,
                f"IKE SA with {self.peer_name} is gone: {failure.reason}",
                reason=failure.reason,
                kind=failure.kind.value,
            )
        core.demands.closed(self, was, failure, now)
        core.timers.set(self.number, Timer.LINGER, now + core.settings.linger)


def error_payloads(error: IkeError) -> list[Payload]:
    """Return the notify that an error names (section 2.21); nothing if it names none."""
    if error.notify is None:
        return []
    return [NotifyPayload(error.notify, error.notify_protocol, error.notify_spi, error.notify_data)]


def is_authentication_failure(message: Message) -> bool:
    """Whether a request of an initiator says that our AUTH does not verify (section 2.21.2)."""
    return message.notify(NotifyType.AUTHENTICATION_FAILED) is not None
