"""Delete: pairs of SAs, the IKE SA, and taking leave after a failed AUTH (RFC 7296 sections 1.4.1, 2.21.2)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

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
        return [*_deletes(self._gone)]

    def process(self, sa: IkeSa, message: Message, now: Nanos) -> None:
        """The peer has deleted its half; if our Deletes crossed it says nothing (section 1.4.1)."""

    def failed(self, sa: IkeSa, failure: Failure, now: Nanos) -> None:
        """Our half is gone anyway."""

    def closes(self, protocol: int, spi: bytes) -> bool:
        """Whether the Child SA that the peer names by its inbound SPI is being deleted."""
        return any(children.sends_on(child, protocol, int.from_bytes(spi, "big")) for child in self._gone)


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
    """Delete what the peer made of an offer and we refused to take, of whatever protocol it is."""

    exchange = ExchangeType.INFORMATIONAL

    def __init__(self, spis: Iterable[tuple[int, int]]) -> None:
        self._payloads = [DeletePayload(protocol, (spi.to_bytes(4, "big"),)) for protocol, spi in spis]

    def build(self, sa: IkeSa, now: Nanos) -> list[Payload]:
        """Return the Delete payloads."""
        return [*self._payloads]

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


def deleted_by_peer(sa: IkeSa, payloads: Sequence[DeletePayload], now: Nanos) -> list[DeletePayload]:
    """Remove what the peer deletes; return the Deletes for the other direction.

    None of them if there is nothing of ours left to delete: when Deletes cross, the response names none. A bundle
    goes whole, whichever half is named.
    """
    named = [children.by_spi_out(sa, payload.protocol, spi) for payload in payloads for spi in payload.spis]
    gone = list({child.number: child for child in named if child is not None}.values())
    for child in gone:
        reason = "replaced" if child.state is ChildState.REPLACED else "the peer deleted it"
        children.remove(sa, child, reason, now, drain=sa.core.settings.drain)
    return _deletes(gone)


def _deletes(gone: Sequence[Child]) -> list[DeletePayload]:
    """Return one Delete payload a protocol, with the SPIs that we receive on."""
    spis: dict[ProtocolId, list[bytes]] = {}
    for child in gone:
        for protocol, spi_in, _ in child.spis:
            spis.setdefault(ProtocolId(protocol), []).append(spi_in.to_bytes(4, "big"))
    return [DeletePayload(protocol, tuple(each)) for protocol, each in spis.items()]
