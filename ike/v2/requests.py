"""Which task answers a request: the dispatch of RFC 7296 sections 1.2 to 1.4, after legality was checked."""

from __future__ import annotations

from ike.constants import ExchangeType, NotifyType, ProtocolId
from ike.errors import InvalidSyntax, TemporaryFailure
from ike.events import FailureKind
from ike.v2.child import ChildState
from ike.v2.sa import IkeSa, is_authentication_failure
from ike.v2.tasks.child_create import respond_child_create
from ike.v2.tasks.child_rekey import respond_child_rekey
from ike.v2.tasks.delete import delete_children, deleted_by_peer
from ike.v2.tasks.ike_auth import respond_auth
from ike.v2.tasks.ike_rekey import IkeRekey, adopt, respond_ike_rekey
from ike.v2.tasks.task import Failure
from ike.wire.message import Message
from ike.wire.payloads import DeletePayload, NotifyPayload, Payload, SaPayload
from policy.clock import Nanos
from policy.path import Path


def respond(sa: IkeSa, message: Message, path: Path, now: Nanos) -> list[Payload]:
    """Return the response's payloads; IkeError names the notify that goes instead."""
    _settle_successor(sa, message, now)
    match message.header.exchange:
        case ExchangeType.IKE_AUTH:
            return respond_auth(sa, message, path, now)
        case ExchangeType.CREATE_CHILD_SA:
            return _create_child_sa(sa, message, now)
        case ExchangeType.INFORMATIONAL:
            return _informational(sa, message, now)
        case _:
            raise InvalidSyntax("an exchange that the tables do not allow")


def _settle_successor(sa: IkeSa, message: Message, now: Nanos) -> None:
    """The peer works on its successor of an IKE SA that we rekey too: for the peer it is decided (2.8.2)."""
    if sa.predecessor is None:
        return
    if not any(delete.protocol == ProtocolId.IKE for delete in message.all(DeletePayload)):
        adopt(sa.predecessor, sa, now)
    sa.predecessor = None


def _create_child_sa(sa: IkeSa, message: Message, now: Nanos) -> list[Payload]:
    """A new IKE SA, a rekeyed Child SA or a further one: told apart by the proposal and REKEY_SA (1.3)."""
    if not sa.usable:
        raise TemporaryFailure(f"the IKE SA is {sa.state.value}")
    request = message.first(SaPayload)
    if request is not None and any(proposal.protocol == ProtocolId.IKE for proposal in request.proposals):
        return respond_ike_rekey(sa, message, now)
    if any(isinstance(task, IkeRekey) for task in [sa.current]):
        raise TemporaryFailure("the IKE SA is being rekeyed")
    rekey = message.notify(NotifyType.REKEY_SA)
    if rekey is not None:
        return respond_child_rekey(sa, message, rekey, now)
    return respond_child_create(sa, message, now)


def _informational(sa: IkeSa, message: Message, now: Nanos) -> list[Payload]:
    """Delete, error notifies, liveness (section 1.4). What is not known is ignored."""
    deletes = message.all(DeletePayload)
    if any(delete.protocol == ProtocolId.IKE for delete in deletes):
        _ike_deleted(sa, now)
        return []
    if is_authentication_failure(message):
        reason = "the peer refused our AUTH (AUTHENTICATION_FAILED): preshared key or identity differs"
        where = "" if sa.peer is None else f" ({sa.peer.where})"
        sa.closing = Failure(FailureKind.AUTHENTICATION, reason + where)
        sa.core.demands.report(sa, sa.closing, now)
        return []
    answers: list[Payload] = [*deleted_by_peer(sa, deletes, now)]
    for notify in message.all(NotifyPayload):
        if notify.type == NotifyType.INVALID_SPI:
            _invalid_spi(sa, notify, now)
    return answers


def _ike_deleted(sa: IkeSa, now: Nanos) -> None:
    """The peer deletes the IKE SA; if it rekeyed it while we did, its successor stands (section 2.8.2)."""
    current = sa.current
    if isinstance(current, IkeRekey) and current.rival is not None:
        adopt(sa, current.rival.sa, now)
    reason = "replaced" if sa.successor is not None else "the peer deleted it"
    sa.closing = Failure(FailureKind.REFUSED, reason)


def _invalid_spi(sa: IkeSa, notify: NotifyPayload, now: Nanos) -> None:
    """The peer, authenticated, does not know the SPI that we send on: that Child SA is of no use."""
    spi = int.from_bytes(notify.data, "big")
    live = [child for child in sa.children.values() if child.state is ChildState.LIVE]
    useless = [child for child in live if any(spi_out == spi for _, _, spi_out in child.spis)]
    if useless:
        delete_children(sa, useless, "the peer does not know its SPI (INVALID_SPI)", now)
