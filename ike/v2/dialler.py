"""How fast an endpoint dials: one bucket for all IKE_SA_INIT requests that leave, repetitions among them.

A hub that starts, or whose line comes back, has all its peers to dial in one moment. It begins slowly, and goes
faster with each peer that answers at once; when answers take long, or nobody answers, it is slow again. So a
thousand peers are there within seconds, and a thousand dead ones are not a flood.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ike.errors import LocalError
from ike.events import FailureKind
from ike.timers import Timer
from ike.v2.states import State
from ike.v2.tasks.ike_init import IkeInit
from ike.v2.tasks.task import Failure
from policy.clock import SECOND, Nanos
from policy.pad import is_one_of_many

if TYPE_CHECKING:
    from collections.abc import Callable

    from ike.v2.core import Core
    from ike.v2.sa import IkeSa
    from ike.v2.settings import IkeSettings
    from policy.pad import PeerEntry
    from policy.selectors import Flow

    _Queue = dict[int, tuple[PeerEntry, str, Flow | None] | None]

#: Timers of the dialler are nobody's: IKE SAs count from one.
NOBODY = 0
#: So many requests without an answer say that nobody is there; one may have been lost.
_PROOF = 2


class Pace:
    """A token bucket whose rate follows the peers' answers."""

    __slots__ = ("_answered", "_full_at", "_settings", "_slowed", "rate")

    def __init__(self, settings: IkeSettings) -> None:
        self._settings = settings
        #: Requests a second, now.
        self.rate = settings.dial_rate
        #: When the bucket would be full if nothing more is taken.
        self._full_at: Nanos = 0
        self._answered: Nanos = 0
        self._slowed: Nanos = 0

    def ready_at(self) -> Nanos:
        """Return when there is a token."""
        return self._full_at - (self._settings.dial_burst - 1) * (SECOND // self.rate)

    def take(self, now: Nanos) -> bool:
        """Take a token, if there is one."""
        if now - self._answered > SECOND:
            self.rate = self._settings.dial_rate
        if now < self.ready_at():
            return False
        self._full_at = max(self._full_at, now) + SECOND // self.rate
        return True

    def answered(self, after: Nanos, now: Nanos) -> None:
        """A peer that was dialled is there, *after* so long."""
        settings = self._settings
        self._answered = now
        if after <= 2 * settings.dial.first:  # neither IKE_SA_INIT nor IKE_AUTH had to be repeated
            self.rate = min(self.rate + settings.dial_speed_up, settings.dial_rate_limit)
        elif now - self._slowed >= SECOND:
            self._slowed = now
            self.rate = max(self.rate // 2, settings.dial_rate)


class Dialler:
    """IKE SAs that are to be dialled, and requests to be repeated: in turns, each in their order."""

    def __init__(self, core: Core, quarantine: Callable[[IkeSa, Exception, Nanos], None]) -> None:
        """*quarantine* ends an IKE SA that met a bug of ours, and tells of it."""
        self._core = core
        self._quarantine = quarantine
        self._pace = Pace(core.settings)
        #: By number of the IKE SA, in order: what it begins with, None where it repeats. Peers that policy names
        #: have their first requests before all else, three turns of four; repetitions, and hosts that are one of
        #: many, may all be for the dead.
        self._first: _Queue = {}
        self._others: _Queue = {}
        self._firsts_in_row = 0

    def dial(self, sa: IkeSa, peer: PeerEntry, entry: str, flow: Flow | None, now: Nanos) -> None:
        """Begin with *sa* now, or when its turn comes."""
        if not self._busy and self._pace.take(now):
            self._begin(sa, peer, entry, flow, now)
            return
        queue = self._others if is_one_of_many(peer.name) else self._first
        queue[sa.number] = (peer, entry, flow)
        self._arm(now)

    def repeat(self, sa: IkeSa, now: Nanos) -> None:
        """IKE_SA_INIT of *sa* is due again: repeat it now or in its turn, or give it up."""
        request = sa.window.outstanding
        if request is not None and request.give_up_at <= now < self.answer_due(sa):
            self._core.timers.set(sa.number, Timer.RETRANSMIT, self.answer_due(sa))
            return
        if request is not None and now >= request.give_up_at and request.sent < _PROOF:
            text = "so many others are dialled that it was hardly asked; dial them at other times"
            sa.close(Failure(FailureKind.LOCAL, text), now)
            return
        if request is None or now >= request.give_up_at or (not self._busy and self._pace.take(now)):
            sa.retransmit(now)
            return
        self._core.timers.set(sa.number, Timer.RETRANSMIT, request.give_up_at)
        self._others[sa.number] = None
        self._arm(now)

    def waits(self, sa: IkeSa) -> bool:
        """Whether a request of *sa* waits for its turn."""
        return sa.number in self._first or sa.number in self._others

    def answer_due(self, sa: IkeSa) -> Nanos:
        """Return when silence begins to mean something: requests leave late here, and answers take their time.

        Before, an attempt must not end with NO_ANSWER: policy may allow clear text then.
        """
        return sa.spoke + self._core.settings.dial.first

    def established(self, sa: IkeSa, now: Nanos) -> None:
        """An IKE SA is up."""
        if sa.initiator and sa.dialled is not None:
            self._pace.answered(now - sa.dialled, now)
            if self._busy:
                self._arm(now)

    @property
    def _busy(self) -> bool:
        return bool(self._first or self._others)

    def turn(self, now: Nanos) -> None:
        """Let those go whose turn it is, a few at a time: each is some work, and packets wait meanwhile."""
        begun = 0
        try:
            while self._busy and begun < self._core.settings.work_a_turn:
                favoured = self._first and (self._firsts_in_row < 3 or not self._others)
                queue = self._first if favoured else self._others
                number = next(iter(queue))
                sa = self._core.sas.get(number)
                if sa is None or sa.state is not State.INITIATING:
                    del queue[number]
                    continue
                if not self._pace.take(now):
                    break
                begun += 1
                self._firsts_in_row = self._firsts_in_row + 1 if favoured else 0
                how = queue.pop(number)
                if how is None:
                    self._repeat(sa, now)
                else:
                    self._begin(sa, *how, now)
        finally:
            if self._busy:
                self._arm(now)

    def _repeat(self, sa: IkeSa, now: Nanos) -> None:
        try:
            sa.retransmit(now)
        except Exception as error:  # one IKE SA must not keep the others from their turn
            self._quarantine(sa, error, now)

    def _begin(self, sa: IkeSa, peer: PeerEntry, entry: str, flow: Flow | None, now: Nanos) -> None:
        core = self._core
        sa.dialled = now
        try:
            try:
                IkeInit(sa, peer, entry, flow).begin(sa, now)
                found = core.entry(entry)
                if found is not None and found.protection is not None and found.protection.fallback_clear:
                    core.timers.set(sa.number, Timer.FALLBACK, now + core.settings.fallback_after)
            except LocalError as error:  # an algorithm that policy names and we cannot do
                sa.close(Failure(FailureKind.LOCAL, f"{error} ({peer.where})"), now)
        except Exception as error:  # it would have no timer, and who waits for it would wait for ever
            self._quarantine(sa, error, now)

    def _arm(self, now: Nanos) -> None:
        self._core.timers.set(NOBODY, Timer.DIAL, max(now, self._pace.ready_at()))
