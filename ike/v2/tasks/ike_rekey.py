"""Rekeying the IKE SA itself (RFC 7296 sections 1.3.2, 2.8.2, 2.18, 2.25.2)."""

from __future__ import annotations

from dataclasses import dataclass

from ike.constants import ExchangeType, NotifyType
from ike.crypto.kex import KeyExchange, generate
from ike.crypto.keymat import derive_ike_keys
from ike.errors import BadAnswer, InvalidSyntax, LocalError, NoProposalChosen, TemporaryFailure
from ike.events import FailureKind, Level
from ike.names import describe, describe_offer
from ike.negotiate import Mismatch, check_group, choose, retry_group, verify_answer
from ike.timers import Timer
from ike.v2.channel import Channel
from ike.v2.negotiation import NONCE_LENGTH
from ike.v2.sa import IkeSa
from ike.v2.states import State
from ike.v2.tasks.child_create import ChildCreate
from ike.v2.tasks.child_rekey import ChildRekey
from ike.v2.tasks.delete import DeleteChildren, DeleteSpi, delete_ike
from ike.v2.tasks.ike_auth import start_timers
from ike.v2.tasks.task import Failure, Task
from ike.wire.message import Message
from ike.wire.payloads import KePayload, NoncePayload, NotifyPayload, Payload, SaPayload
from ike.wire.proposals import WireProposal, offer
from policy.clock import SECOND, Nanos
from policy.proposals import Group, Suite
from policy.secret import Secret

_TRY_AGAIN = 10 * SECOND
#: What a replaced IKE SA waits for its Delete.
_DELETE_WITHIN = 30 * SECOND


@dataclass(frozen=True, slots=True)
class Rival:
    """The peer's rekey of the same IKE SA, which we answered while ours was under way."""

    sa: IkeSa
    lowest: bytes


class IkeRekey(Task):
    """Make a successor of the IKE SA; Child SAs and waiting tasks move to it; then delete the predecessor."""

    exchange = ExchangeType.CREATE_CHILD_SA

    def __init__(self) -> None:
        self.rival: Rival | None = None
        self._tries = 0
        self._group: Group | None = None
        self._kex: KeyExchange | None = None
        self._nonce = b""
        self._spi = b""
        self._wire: tuple[WireProposal, ...] = ()

    def build(self, sa: IkeSa, now: Nanos) -> list[Payload] | None:
        """Return SA with our new SPI, Ni, KEi."""
        if not sa.usable or sa.peer is None or sa.channel is None:
            return None
        groups = [group for proposal in sa.peer.ike.proposals for group in proposal.groups]
        if not groups:
            return None
        wanted = self._group if self._group is not None else sa.channel.suite.group
        group = wanted if wanted in groups else groups[0]
        self._spi = sa.core.new_spi()
        self._nonce = sa.core.entropy(NONCE_LENGTH)
        self._kex = generate(group, sa.core.entropy)
        self._wire = offer(sa.peer.ike.proposals, self._spi)
        return [SaPayload(self._wire), NoncePayload(self._nonce), KePayload(group, self._kex.public)]

    def process(self, sa: IkeSa, message: Message, now: Nanos) -> None:
        """Take the successor; of two, the one with the lowest nonce goes (section 2.8.2)."""
        error = message.error()
        if error is not None:
            self._refused(sa, error, now)
            return
        answer, ke, nonce = message.first(SaPayload), message.first(KePayload), message.first(NoncePayload)
        if answer is None or ke is None or nonce is None or self._kex is None:
            raise BadAnswer("the response to an IKE SA rekey lacks SA, KE or nonce")
        suite = verify_answer(self._wire, answer.proposals)
        if ke.group != self._kex.group or suite.group != self._kex.group:
            raise BadAnswer("the response is of another key exchange method")
        spi_r = answer.proposals[0].spi
        if spi_r == bytes(8):
            raise BadAnswer("the answer's SPI is zero")
        shared = self._kex.shared(ke.data)
        new = _successor(sa, suite, self._spi, spi_r, (self._nonce, nonce.data), shared, now, initiator=True)
        rival = self.rival
        if rival is not None and rival.sa.state is not State.CLOSED and new.lowest_nonce < rival.lowest:
            adopt(sa, rival.sa, now)
            delete_ike(new, "redundant: both ends rekeyed", now)
            return
        if sa.successor is None:
            adopt(sa, new, now)
            delete_ike(sa, "replaced", now)
        else:
            delete_ike(new, "the IKE SA has a successor already", now)

    def failed(self, sa: IkeSa, failure: Failure, now: Nanos) -> None:
        """The IKE SA lives until its hard lifetime ends."""
        sa.core.counters["ike_rekey_failed"] += 1
        if self.rival is not None:
            _stands(sa, self.rival, now)
        elif sa.usable:
            sa.core.demands.report(sa, failure, now)
            sa.core.timers.set(sa.number, Timer.REKEY_IKE, now + _TRY_AGAIN)

    def _refused(self, sa: IkeSa, error: NotifyPayload, now: Nanos) -> None:
        if self.rival is not None:
            _stands(sa, self.rival, now)
            return
        if error.type == NotifyType.INVALID_KE_PAYLOAD and self._kex is not None and self._tries == 0:
            self._group = retry_group(self._wire, error.data, self._kex.group)
            self._tries += 1
            sa.start(self, now, urgent=True)
            return
        if error.type == NotifyType.TEMPORARY_FAILURE and sa.defer(self, self._tries, now):
            self._tries += 1
            return
        where = "" if sa.peer is None else str(sa.peer.where)
        reason = (
            f"the peer refused to rekey the IKE SA: {error} (we offered {describe_offer(self._wire)}; {where})"
        )
        self.failed(sa, Failure(FailureKind.REFUSED, reason), now)


def _stands(sa: IkeSa, rival: Rival, now: Nanos) -> None:
    """Ours came to nothing: the peer's successor stands, or if the peer deleted that too, nothing does."""
    if sa.successor is not None or sa.state is State.CLOSED:
        return
    if rival.sa.state is State.CLOSED:
        delete_ike(sa, "the peer deleted its successor", now)
    else:
        adopt(sa, rival.sa, now)


def respond_ike_rekey(sa: IkeSa, message: Message, now: Nanos) -> list[Payload]:
    """Answer the peer's rekey of the IKE SA."""
    if isinstance(sa.current, ChildCreate | ChildRekey | DeleteChildren | DeleteSpi):
        raise TemporaryFailure("a Child SA is being created, rekeyed or deleted")
    request, ke, nonce = message.first(SaPayload), message.first(KePayload), message.first(NoncePayload)
    if request is None or nonce is None or sa.peer is None:
        raise InvalidSyntax("a rekey of the IKE SA without SA or nonce")
    spi_r = sa.core.new_spi()
    choice = choose(
        request.proposals,
        sa.peer.ike.proposals,
        spi=spi_r,
        preferred_group=None if ke is None else ke.group,
    )
    if isinstance(choice, Mismatch):
        raise NoProposalChosen(f"no common IKE proposal: {choice} ({sa.peer.where})")
    if choice.suite.group is Group.NONE:
        raise NoProposalChosen(f"the peer offers no key exchange for the IKE SA ({sa.peer.where})")
    check_group(choice.suite, None if ke is None else ke.group)
    if ke is None or len(choice.offered.spi) != 8 or choice.offered.spi == bytes(8):
        raise InvalidSyntax("a rekey of the IKE SA without KE or SPI")
    kex = generate(choice.suite.group, sa.core.entropy)
    shared = kex.shared(ke.data)
    nr = sa.core.entropy(NONCE_LENGTH)
    new = _successor(sa, choice.suite, choice.offered.spi, spi_r, (nonce.data, nr), shared, now, initiator=False)
    if isinstance(sa.current, IkeRekey):
        sa.current.rival = Rival(new, new.lowest_nonce)
        new.predecessor = sa
    else:
        adopt(sa, new, now)
    return [SaPayload((choice.answer,)), NoncePayload(nr), KePayload(kex.group, kex.public)]


def adopt(old: IkeSa, new: IkeSa, now: Nanos) -> None:
    """Move Child SAs, their timers and waiting tasks to the successor (section 2.8)."""
    if old.successor is not None or new.state is State.CLOSED:
        return
    core = old.core
    new.leaving, old.leaving = old.leaving, False
    old.successor = new
    if old.state is State.ESTABLISHED:
        old.become(State.REKEYED)
    moved, old.children = old.children, {}
    new.children = dict(sorted({**moved, **new.children}.items()))
    for number, child in moved.items():
        core.children.update(dict.fromkeys(child.numbers, new))
        for timer in (Timer.REKEY_CHILD, Timer.EXPIRE_CHILD):
            at = core.timers.at(old.number, timer, number)
            if at is not None:
                core.timers.cancel(old.number, timer, number)
                core.timers.set(new.number, timer, at, number)
    waiting = [task for task in old.queue if not isinstance(task, IkeRekey)]
    waiting += [task for task in old.deferred.values() if not isinstance(task, IkeRekey)]
    old.queue.clear()
    old.deferred.clear()
    for timer in (Timer.REKEY_IKE, Timer.LIVENESS, Timer.KEEPALIVE, Timer.REDUNDANT):
        core.timers.cancel(old.number, timer)
    core.timers.set(old.number, Timer.EXPIRE_IKE, now + _DELETE_WITHIN)
    core.demands.moved(old, new)
    suite = "" if new.channel is None else describe(new.channel.suite)
    new.tell(
        now,
        "ike_rekeyed",
        Level.INFO,
        f"IKE SA with {new.peer_name} rekeyed: {suite}, {len(new.children)} Child SAs moved",
        replaces=old.our_spi.hex(),
        suite=suite,
    )
    for task in waiting:
        new.start(task, now)


def _successor(
    sa: IkeSa,
    suite: Suite,
    spi_i: bytes,
    spi_r: bytes,
    nonces: tuple[bytes, bytes],
    shared: Secret,
    now: Nanos,
    *,
    initiator: bool,
) -> IkeSa:
    """Return the new IKE SA: keys from SK_d of the old one, message IDs from 0, path and identities kept."""
    if sa.channel is None or sa.peer is None or sa.channel.suite.prf is None:
        raise LocalError("an IKE SA that is not established cannot be rekeyed")
    old = sa.channel
    keys = derive_ike_keys(suite, *nonces, spi_i, spi_r, shared, old.keys.sk_d, old.suite.prf)
    shared.wipe()
    new = IkeSa(
        sa.core, initiator=initiator, spi_i=spi_i, spi_r=spi_r, path=sa.path, state=State.ESTABLISHED, now=now
    )
    new.channel = Channel(suite, keys, initiator=initiator)
    new.local_id, new.remote_id = sa.local_id, sa.remote_id
    new.nat_local, new.nat_remote, new.nat_traversal = sa.nat_local, sa.nat_remote, sa.nat_traversal
    new.mirrorgate, new.fragmentation = sa.mirrorgate, sa.fragmentation
    new.nonce_i, new.nonce_r = nonces
    new.lowest_nonce = min(nonces)
    new.established = now
    new.seniority = sa.core.new_number()
    new.identify(sa.peer)
    start_timers(new, now)
    return new
