"""A task is one intent of ours: it builds a request and processes the response; both roles share its file.

Message IDs and retransmission are the window's business, legality that of the tables.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ike.constants import ExchangeType
from ike.events import FailureKind
from ike.v2.settings import Backoff, IkeSettings
from ike.wire.message import Message
from ike.wire.payloads import Payload
from policy.clock import Nanos
from policy.path import Path

if TYPE_CHECKING:
    from ike.v2.sa import IkeSa


@dataclass(frozen=True, slots=True)
class Failure:
    """Why something did not come about."""

    kind: FailureKind
    reason: str


class Task(ABC):
    """One intent."""

    exchange: ClassVar[ExchangeType]

    @abstractmethod
    def build(self, sa: IkeSa, now: Nanos) -> list[Payload] | None:
        """Return the request's payloads, or None when there is nothing to do any more."""

    @abstractmethod
    def process(self, sa: IkeSa, message: Message, now: Nanos) -> None:
        """Take the response; IkeError means that the task failed."""

    @abstractmethod
    def failed(self, sa: IkeSa, failure: Failure, now: Nanos) -> None:
        """The task failed, timed out, or its IKE SA is gone: clean up and tell who waits."""

    def backoff(self, settings: IkeSettings) -> Backoff:
        """Return how its request is retransmitted."""
        return settings.request


class InitialTask(Task):
    """The intent whose responses nobody authenticated yet: they are examined, and most do not end it."""

    @abstractmethod
    def examine(self, sa: IkeSa, message: Message, path: Path, now: Nanos) -> None:
        """Take one response."""

    @abstractmethod
    def settle(self, sa: IkeSa, now: Nanos) -> None:
        """Nothing better came than what ``examine`` remembered."""
