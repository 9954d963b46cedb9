"""Rekeying a Child SA: create, then delete, with the collisions of RFC 7296 sections 1.3.3, 2.8, 2.8.1, 2.25.1."""

from __future__ import annotations

from dataclasses import dataclass

from ike.constants import ExchangeType, NotifyType
from ike.errors import ChildSaNotFound, IkeError, LocalError, TemporaryFailure
from ike.events import FailureKind, Level
from ike.timers import Timer
from ike.v2 import child as children
from ike.v2 import reasons
from ike.v2.child import Agreed, Child, ChildState, install
from ike.v2.negotiation import NONCE_LENGTH, ChildOffer, answer_child
from ike.v2.sa import IkeSa
from ike.v2.tasks.delete import DeleteChildren, DeleteSpi, delete_children, delete_if_unfit
from ike.v2.tasks.task import Failure, Task
from ike.v2.traffic import covered
from ike.wire.message import Message
from ike.wire.payloads import NoncePayload, NotifyPayload, Payload
from policy.clock import SECOND, Nanos

#: A rekey that failed is tried again after this long, until the hard lifetime ends the Child SA.
_TRY_AGAIN = 10 * SECOND


@dataclass(frozen=True, slots=True)
class Rival:
    """The peer's rekey of the same Child SA, which we answered while ours was under way."""

    child: Child
    lowest: bytes


class ChildRekey(Task):
    """Make a successor, then delete the predecessor."""

    exchange = ExchangeType.CREATE_CHILD_SA

    def __init__(self, old: Child) -> None:
        self.old = old
        self.rival: Rival | None = None
        self._offer: ChildOffer | None = None
        self._tries = 0

    def build(self, sa: IkeSa, now: Nanos) -> list[Payload] | None:
        """Return N(REKEY_SA) with the SPI that we receive on, then SA, Ni, [KEi], TSi, TSr, notifies."""
        entry = sa.core.entry(self.old.entry)
        if self.old.number not in sa.children or self.old.state is not ChildState.LIVE or entry is None:
            return None
        try:
            self._offer = ChildOffer(sa, entry, None, first=False)
        except LocalError:  # a NAT came between, and AH cannot cross it: the hard lifetime ends the old one
            return None
        spi = self.old.spi_in.to_bytes(4, "big")
        return [NotifyPayload(NotifyType.REKEY_SA, self.old.protocol, spi), *self._offer.payloads()]

    def process(self, sa: IkeSa, message: Message, now: Nanos) -> None:
        """Install the successor; who of two rekeys made the lowest nonce deletes what it made (2.8.1)."""
        offer = self._offer
        if offer is None:
            return
        error, nonce = message.error(), message.first(NoncePayload)
        if error is not None or nonce is None:
            offer.withdraw(sa)
            self._refused(sa, error, now)
            return
        try:
            agreed = offer.accept(sa, message, offer.nonce, nonce.data)
        except IkeError as problem:
            offer.withdraw(sa)
            self._tell_failed(sa, f"{problem} ({offer.entry.where})", now)
            sa.start(DeleteSpi(offer.spis()), now)
            return
        self._succeed(sa, agreed, min(offer.nonce, nonce.data), now)

    def failed(self, sa: IkeSa, failure: Failure, now: Nanos) -> None:
        """The old Child SA lives until its hard lifetime ends."""
        sa.core.counters["child_rekey_failed"] += 1
        if self._offer is not None:
            self._offer.withdraw(sa)

    def _succeed(self, sa: IkeSa, agreed: Agreed, lowest: bytes, now: Nanos) -> None:
        old, drain = self.old, sa.core.settings.rekey_drain
        if not covered(old.selectors, agreed.pairs):
            sa.tell(
                now,
                "child_narrowed",
                Level.WARNING,
                f"the peer narrowed Child SA {old.number} ({old.entry}) while it was rekeyed (section 2.9.2)",
                child=old.number,
            )
        if self.rival is not None and lowest < self.rival.lowest:
            redundant = install(sa, agreed, now, dormant=True, replaces=old)
            redundant.state = ChildState.DELETING
            delete_children(sa, [redundant], "redundant: both ends rekeyed", now, drain=drain, urgent=True)
            return
        new = install(sa, agreed, now, replaces=old)
        if old.number in sa.children:
            old.state = ChildState.REPLACED
            delete_children(sa, [old], "replaced", now, drain=drain, urgent=True)
        delete_if_unfit(sa, new, now)

    def _refused(self, sa: IkeSa, error: NotifyPayload | None, now: Nanos) -> None:
        """Act on CHILD_SA_NOT_FOUND and TEMPORARY_FAILURE; both are ordinary when rekeys collide (2.25.1)."""
        if self.rival is not None or self.old.number not in sa.children:
            return  # the peer's rekey or Delete came first
        kind = None if error is None else error.type
        if kind == NotifyType.CHILD_SA_NOT_FOUND:
            entry = self.old.entry
            children.remove(sa, self.old, "the peer does not have it", now)
            sa.core.demands.acquire(entry, None, now)
            return
        if kind == NotifyType.TEMPORARY_FAILURE and sa.defer(self, self._tries, now):
            self._tries += 1
            return
        offer = self._offer
        if offer is not None:
            reason = reasons.refused_child(error, offer.asked(), offer.offered(), offer.entry.where)
            self._tell_failed(sa, reason, now)

    def _tell_failed(self, sa: IkeSa, reason: str, now: Nanos) -> None:
        sa.core.demands.report(sa, Failure(FailureKind.REFUSED, reason), now, entry=self.old.entry)
        if self.old.number in sa.children:
            sa.core.timers.set(sa.number, Timer.REKEY_CHILD, now + _TRY_AGAIN, self.old.number)


def respond_child_rekey(sa: IkeSa, message: Message, rekey: NotifyPayload, now: Nanos) -> list[Payload]:
    """Answer the peer's rekey: the successor sends only once the predecessor is deleted (section 2.8)."""
    old = children.by_spi_out(sa, rekey.protocol, rekey.spi)
    if old is None:
        closing = [task for task in sa.tasks() if isinstance(task, DeleteChildren)]
        if any(task.closes(rekey.protocol, rekey.spi) for task in closing):
            raise TemporaryFailure("the Child SA to rekey is being deleted")
        raise ChildSaNotFound(rekey.protocol, rekey.spi)
    if old.state is not ChildState.LIVE:
        raise TemporaryFailure("the Child SA to rekey has a successor already")
    nonce = message.first(NoncePayload)
    ni, nr = b"" if nonce is None else nonce.data, sa.core.entropy(NONCE_LENGTH)
    payloads, new = answer_child(sa, message, ni, nr, now, first=False, replaces=old)
    old.state = ChildState.REPLACED
    sa.core.timers.cancel(sa.number, Timer.REKEY_CHILD, old.number)
    if isinstance(sa.current, ChildRekey) and sa.current.old is old:
        sa.current.rival = Rival(new, min(ni, nr))
    return payloads
