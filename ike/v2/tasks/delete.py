"""Delete: pairs of SAs, the IKE SA, and taking leave after a failed AUTH (RFC 7296 sections 1.4.1, 2.21.2)."""

from __future__ import annotations

from collections.abc import Sequence

from ike.constants import ExchangeType, ProtocolId
from ike.events import FailureKind
from ike.v2 import child as children
from ike.v2.child import Child, ChildState
from ike.v2.sa import IkeSa
from ike.v2.settings import Backoff, IkeSettings
from ike.v2.states import State
from ike.v2.tasks.task import Failure, Task
from ike.wire.message import Message
from ike.wire.payloads import DeletePayload, NotifyPayload, Payload
from policy.clock import Nanos


class DeleteChildren(Task):
    """Tell the peer that Child SAs are deleted: each end names the SPIs that it receives on.

    Ours are gone when the task starts (``delete_children``), so that nothing is used while the request waits.
    """

    exchange = ExchangeType.INFORMATIONAL

    def __init__(self, gone: Sequence[Child]) -> None:
        self._gone = tuple(gone)

    def build(self, sa: IkeSa, now: Nanos) -> list[Payload]:
        """Return one Delete payload a protocol."""
        payloads: list[Payload] = []
        for protocol in dict.fromkeys(child.protocol for child in self._gone):
            spis = tuple(child.spi_in.to_bytes(4, "big") for child in self._gone if child.protocol == protocol)
            payloads.append(DeletePayload(protocol, spis))
        return payloads

    def process(self, sa: IkeSa, message: Message, now: Nanos) -> None:
        """The peer has deleted its half; if our Deletes crossed it says nothing (section 1.4.1)."""

    def failed(self, sa: IkeSa, failure: Failure, now: Nanos) -> None:
        """Our half is gone anyway."""

    def closes(self, protocol: int, spi: bytes) -> bool:
        """Whether the Child SA that the peer names by its inbound SPI is being deleted."""
        number = int.from_bytes(spi, "big")
        return any(child.spi_out == number and child.protocol == protocol for child in self._gone)


def delete_children(
    sa: IkeSa, gone: Sequence[Child], reason: str, now: Nanos, *, drain: Nanos = 0, urgent: bool = False
) -> None:
    """Remove Child SAs, the inbound halves after *drain*, and tell the peer as soon as the window allows."""
    for child in gone:
        children.remove(sa, child, reason, now, drain=drain)
    sa.start(DeleteChildren(gone), now, urgent=urgent)


def delete_if_unfit(sa: IkeSa, child: Child, now: Nanos) -> None:
    """Delete what was asked for under a policy that changed before the answer came."""
    reason = children.unfit(sa, child)
    if reason:
        delete_children(sa, [child], reason, now)


class DeleteSpi(Task):
    """Delete the half of a Child SA that the peer made and we refused to take."""

    exchange = ExchangeType.INFORMATIONAL

    def __init__(self, protocol: int, spi_in: int) -> None:
        self._payload = DeletePayload(protocol, (spi_in.to_bytes(4, "big"),))

    def build(self, sa: IkeSa, now: Nanos) -> list[Payload]:
        """Return the Delete payload."""
        return [self._payload]

    def process(self, sa: IkeSa, message: Message, now: Nanos) -> None:
        """Nothing of ours is left."""

    def failed(self, sa: IkeSa, failure: Failure, now: Nanos) -> None:
        """Nothing of ours is left."""


class Farewell(Task):
    """The last request of an IKE SA: a Delete for itself, or AUTHENTICATION_FAILED."""

    exchange = ExchangeType.INFORMATIONAL

    def __init__(self, failure: Failure, notify: NotifyPayload | None = None, *, drain: Nanos = 0) -> None:
        self._failure = failure
        self._notify = notify
        self._drain = drain

    def build(self, sa: IkeSa, now: Nanos) -> list[Payload]:
        """Return the Delete; Child SAs go with it."""
        if sa.state is not State.DELETING:
            sa.become(State.DELETING)
        for child in reversed(list(sa.children.values())):
            children.remove(sa, child, self._failure.reason, now, drain=self._drain)
        return [DeletePayload(ProtocolId.IKE)] if self._notify is None else [self._notify]

    def process(self, sa: IkeSa, message: Message, now: Nanos) -> None:
        """The peer knows."""
        sa.close(self._failure, now)

    def failed(self, sa: IkeSa, failure: Failure, now: Nanos) -> None:
        """The peer never said that it knows."""
        sa.close(self._failure, now)

    def backoff(self, settings: IkeSettings) -> Backoff:
        """Not for long."""
        return settings.farewell


def delete_ike(sa: IkeSa, reason: str, now: Nanos, *, drain: Nanos = 0) -> None:
    """Delete an IKE SA in an orderly way: what waits fails now, what is under way is waited for."""
    failure = Failure(FailureKind.LOCAL, reason)
    if sa.state not in (State.ESTABLISHED, State.REKEYED):
        if sa.state is not State.DELETING:
            sa.close(failure, now)
        return
    if sa.leaving:
        return
    sa.leaving = True
    waiting = list(sa.queue)
    sa.queue.clear()
    for child in reversed(list(sa.children.values())):
        children.remove(sa, child, reason, now, drain=drain)
    for task in waiting:
        task.failed(sa, failure, now)
    sa.start(Farewell(failure, drain=drain), now)


def deleted_by_peer(sa: IkeSa, payload: DeletePayload, now: Nanos) -> DeletePayload | None:
    """Remove what the peer deletes; return the Delete for the other direction.

    None if there is nothing of ours left to delete: when Deletes cross, the response names none.
    """
    gone: list[bytes] = []
    for spi in payload.spis:
        child = children.by_spi_out(sa, payload.protocol, spi)
        if child is None:
            continue
        gone.append(child.spi_in.to_bytes(4, "big"))
        reason = "replaced" if child.state is ChildState.REPLACED else "the peer deleted it"
        children.remove(sa, child, reason, now, drain=sa.core.settings.drain)
    return DeletePayload(payload.protocol, tuple(gone)) if gone else None
