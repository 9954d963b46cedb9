"""Message IDs, retransmission and stored responses of one IKE SA (RFC 7296 sections 2.1 to 2.3).

The window is one: one request of ours is outstanding, and one request of the peer is expected. Each direction
counts by itself, so the peer's request is taken while ours is outstanding.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import Enum

from ike.v2.settings import Backoff
from policy.clock import SECOND, Nanos

_LAST_ID = 2**32 - 1


class Verdict(Enum):
    """What a request's message ID says."""

    NEW = "new"
    REPEATED = "repeated"
    OUTSIDE = "outside"


@dataclass(slots=True)
class Outstanding:
    """Our request under way; *datagrams* are sent again octet for octet."""

    message_id: int
    datagrams: tuple[bytes, ...]
    backoff: Backoff
    started: Nanos
    sent: int
    next_at: Nanos
    #: Whether it was told that nobody answers.
    told: bool = False

    @property
    def give_up_at(self) -> Nanos:
        """When the request has failed."""
        return self.started + self.backoff.total


@dataclass(frozen=True, slots=True)
class _Answered:
    message_id: int
    request: bytes
    datagrams: tuple[bytes, ...]


class Window:
    """The window of one IKE SA."""

    __slots__ = ("_answered", "_first_fragment", "expected", "next_id", "outstanding")

    def __init__(self) -> None:
        #: Message ID of our next request, and of the peer's.
        self.next_id = 0
        self.expected = 0
        self.outstanding: Outstanding | None = None
        self._answered: _Answered | None = None
        self._first_fragment: tuple[int, bytes] | None = None

    @property
    def exhausted(self) -> bool:
        """Whether message IDs have run out: the IKE SA must be closed (section 2.2)."""
        return self.next_id > _LAST_ID or self.expected > _LAST_ID

    def send(self, datagrams: tuple[bytes, ...], backoff: Backoff, now: Nanos) -> None:
        """Make *datagrams* the outstanding request, with the ID ``next_id``."""
        self.outstanding = Outstanding(self.next_id, datagrams, backoff, now, 1, now + backoff.delay(1))
        self.next_id += 1

    def replace(self, datagrams: tuple[bytes, ...], now: Nanos) -> None:
        """Send another IKE_SA_INIT in place of the one outstanding (sections 1.2 and 2.6): the ID stays 0."""
        if self.outstanding is not None:
            self.outstanding.datagrams = datagrams
            self.outstanding.sent = 1
            self.outstanding.next_at = now + self.outstanding.backoff.delay(1)

    def timeout(self, now: Nanos) -> tuple[bytes, ...] | None:
        """Return what to send again now: nothing if it is not time. None when the request has failed."""
        current = self.outstanding
        if current is None or now < min(current.next_at, current.give_up_at):
            return ()
        if now >= current.give_up_at:
            return None
        current.sent += 1
        current.next_at = now + current.backoff.delay(current.sent)
        return current.datagrams

    def falls_silent(self, now: Nanos) -> bool:
        """Whether it is time to say that the peer does not answer: once a request, after two seconds."""
        current = self.outstanding
        if current is None or current.told or now - current.started < 2 * SECOND:
            return False
        current.told = True
        return True

    def deadline(self) -> Nanos | None:
        """Return when ``timeout`` is wanted."""
        current = self.outstanding
        return None if current is None else min(current.next_at, current.give_up_at)

    def answers(self, message_id: int) -> bool:
        """Whether a response with *message_id* is to the outstanding request."""
        return self.outstanding is not None and self.outstanding.message_id == message_id

    def complete(self) -> None:
        """The outstanding request was answered, or given up."""
        self.outstanding = None

    def judge(self, message_id: int) -> Verdict:
        """Return what to do with a request, by its message ID alone."""
        if message_id == self.expected:
            return Verdict.NEW
        if message_id == self.expected - 1 and self._answered is not None:
            return Verdict.REPEATED
        return Verdict.OUTSIDE

    def first_fragment(self, message_id: int, octets: bytes) -> None:
        """Remember the octets of the request's first (or only) fragment, once it was authenticated."""
        self._first_fragment = (message_id, _digest(octets))

    def answer(self, datagrams: tuple[bytes, ...]) -> None:
        """Store the response to the expected request, and expect the next one."""
        digest = b""
        if self._first_fragment is not None and self._first_fragment[0] == self.expected:
            digest = self._first_fragment[1]
        self._answered = _Answered(self.expected, digest, datagrams)
        self.expected += 1

    def repeat(self, message_id: int, octets: bytes) -> tuple[bytes, ...]:
        """Return the stored response if *octets* are those of the request's first fragment (RFC 7383 2.6.1)."""
        stored = self._answered
        if stored is None or stored.message_id != message_id or stored.request != _digest(octets):
            return ()
        return stored.datagrams


def _digest(octets: bytes) -> bytes:
    return hashlib.sha256(octets).digest()
