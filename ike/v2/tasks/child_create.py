"""CREATE_CHILD_SA for a further Child SA (RFC 7296 section 1.3.1)."""

from __future__ import annotations

from ike.constants import ExchangeType, NotifyType
from ike.errors import IkeError, LocalError
from ike.events import FailureKind
from ike.v2 import reasons
from ike.v2.child import install
from ike.v2.negotiation import NONCE_LENGTH, ChildOffer, answer_child
from ike.v2.sa import IkeSa
from ike.v2.tasks.delete import DeleteSpi, delete_if_unfit
from ike.v2.tasks.task import Failure, Task
from ike.wire.message import Message
from ike.wire.payloads import NoncePayload, Payload
from policy.clock import Nanos
from policy.selectors import Flow


class ChildCreate(Task):
    """A Child SA for an SPD entry that someone waits for."""

    exchange = ExchangeType.CREATE_CHILD_SA

    def __init__(self, entry: str, flow: Flow | None) -> None:
        self.entry = entry
        self._flow = flow
        self._offer: ChildOffer | None = None
        self._tries = 0

    def build(self, sa: IkeSa, now: Nanos) -> list[Payload] | None:
        """Return SA, Ni, [KEi], TSi, TSr, notifies."""
        entry = sa.core.entry(self.entry)
        if entry is None:
            failure = Failure(FailureKind.LOCAL, "the policy no longer has this entry")
            sa.core.demands.failed(self.entry, failure, now)
            return None
        if not sa.core.demands.waits(self.entry):
            return None  # the peer made one meanwhile
        try:
            self._offer = ChildOffer(sa, entry, self._flow, first=False)
        except LocalError as error:  # nothing to offer: AH where a NAT is, for one
            sa.core.demands.refused(sa, self.entry, Failure(FailureKind.REFUSED, str(error)), now)
            return None
        return self._offer.payloads()

    def process(self, sa: IkeSa, message: Message, now: Nanos) -> None:
        """Install what the peer granted; TEMPORARY_FAILURE is tried again (section 2.25)."""
        offer, demands = self._offer, sa.core.demands
        if offer is None:
            return
        error, nonce = message.error(), message.first(NoncePayload)
        if error is not None or nonce is None:
            offer.withdraw(sa)
            if (
                error is not None
                and error.type == NotifyType.TEMPORARY_FAILURE
                and sa.defer(self, self._tries, now)
            ):
                self._tries += 1
                return
            reason = reasons.refused_child(error, offer.asked(), offer.offered(), offer.entry.where)
            demands.refused(sa, self.entry, Failure(FailureKind.REFUSED, reason), now)
            return
        try:
            agreed = offer.accept(sa, message, offer.nonce, nonce.data)
        except IkeError as problem:
            offer.withdraw(sa)
            reason = f"{problem} ({offer.entry.where})"
            demands.refused(sa, self.entry, Failure(FailureKind.REFUSED, reason), now)
            sa.start(DeleteSpi(offer.spis()), now)
            return
        delete_if_unfit(sa, install(sa, agreed, now), now)
        demands.answered(sa, self.entry, now)

    def failed(self, sa: IkeSa, failure: Failure, now: Nanos) -> None:
        """Nothing came of it."""
        if self._offer is not None:
            self._offer.withdraw(sa)
        sa.core.demands.refused(sa, self.entry, failure, now)


def respond_child_create(sa: IkeSa, message: Message, now: Nanos) -> list[Payload]:
    """Answer a request for a further Child SA."""
    nonce = message.first(NoncePayload)
    ni = b"" if nonce is None else nonce.data
    payloads, _ = answer_child(sa, message, ni, sa.core.entropy(NONCE_LENGTH), now, first=False)
    return payloads
