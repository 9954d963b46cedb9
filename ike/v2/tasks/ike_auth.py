"""IKE_AUTH: both ends prove who they are, and make the first Child SA (RFC 7296 sections 1.2 and 2.15)."""

from __future__ import annotations

from ike.constants import AuthMethod, ExchangeType, NotifyType, name_of
from ike.crypto.auth import psk_auth, verify_psk_auth
from ike.errors import AuthenticationFailed, IkeError, LocalError, Reach
from ike.events import FailureKind, Level
from ike.names import describe
from ike.negotiate import Mismatch, choose
from ike.timers import Timer
from ike.v2 import reasons
from ike.v2.channel import Channel
from ike.v2.child import install
from ike.v2.negotiation import ChildOffer, answer_child
from ike.v2.sa import IkeSa, error_payloads
from ike.v2.settings import Backoff, IkeSettings
from ike.v2.states import AUTHENTICATED, State
from ike.v2.tasks.delete import DeleteSpi, Farewell, delete_if_unfit
from ike.v2.tasks.task import Failure, Task
from ike.wire.message import Message
from ike.wire.payloads import AuthPayload, IdPayload, NotifyPayload, Payload, SaPayload
from ike.wire.proposals import WireProposal
from policy.clock import Nanos
from policy.model import PresharedKey
from policy.pad import PeerEntry
from policy.path import Path
from policy.proposals import Prf, Suite, Transform, TransformType
from policy.secret import Secret
from policy.selectors import Flow


class IkeAuth(Task):
    """The initiator's side."""

    exchange = ExchangeType.IKE_AUTH

    def __init__(self, sa: IkeSa, peer: PeerEntry, entry: str, flow: Flow | None) -> None:
        found = sa.core.entry(entry)
        if found is None:
            raise LocalError(f"entry {entry} is gone")
        self._peer = peer
        self._entry = found
        self._offer = ChildOffer(sa, found, flow, first=True)

    def backoff(self, settings: IkeSettings) -> Backoff:
        """Dial: patiently, but never seldom."""
        return settings.dial

    def build(self, sa: IkeSa, now: Nanos) -> list[Payload]:
        """Return IDi, [IDr], AUTH, [N(INITIAL_CONTACT)], SA, TSi, TSr, notifies."""
        secrets = preshared_keys(self._peer)
        if not secrets:
            raise LocalError("no preshared key")
        identity = sa.local_id = reasons.own_identity(self._peer, sa.path)
        idi = IdPayload(True, identity)
        parts: list[Payload] = [idi]
        if self._peer.remote_id is not None:
            parts.append(IdPayload(False, self._peer.remote_id))
        parts.append(AuthPayload(AuthMethod.SHARED_KEY, own_auth(sa, secrets[0], idi)))
        if not _has_other(sa):
            parts.append(NotifyPayload(NotifyType.INITIAL_CONTACT))
        return parts + self._offer.payloads()

    def process(self, sa: IkeSa, message: Message, now: Nanos) -> None:
        """Verify the responder, then take its Child SA or its reason for none."""
        idr, auth = message.first(IdPayload), message.first(AuthPayload)
        if idr is None or auth is None:
            local = reasons.own_identity(self._peer, sa.path)
            reason = reasons.refused_auth(message.error(), local, self._peer)
            self._offer.withdraw(sa)
            failed = message.notify(NotifyType.AUTHENTICATION_FAILED) is not None
            kind = FailureKind.AUTHENTICATION if failed else FailureKind.REFUSED
            sa.close(Failure(kind, reason), now)
            return
        expected = reasons.expected_identity(self._peer, sa.path)
        if idr.identity != expected:
            self._reject(sa, reasons.unknown_identity(idr.identity, sa.path, (self._peer,)), now)
            return
        if auth.method != AuthMethod.SHARED_KEY or not any(
            peer_auth_verifies(sa, secret, idr, auth.data) for secret in preshared_keys(self._peer)
        ):
            self._reject(sa, reasons.wrong_key(idr.identity, self._peer), now)
            return
        sa.remote_id = idr.identity
        sa.become(State.ESTABLISHED)
        established(sa, now)
        self._take_child(sa, message, now)
        sa.core.demands.established(sa, now)

    def failed(self, sa: IkeSa, failure: Failure, now: Nanos) -> None:
        """Closing the IKE SA tells everyone who waits."""
        self._offer.withdraw(sa)

    def _take_child(self, sa: IkeSa, message: Message, now: Nanos) -> None:
        """A failed Child SA leaves the IKE SA up (section 1.2)."""
        demands, entry = sa.core.demands, self._entry
        if message.first(SaPayload) is None:
            self._offer.withdraw(sa)
            error = message.error()
            reason = reasons.refused_child(error, self._offer.asked(), self._offer.offered(), entry.where)
            demands.refused(sa, entry.id, Failure(FailureKind.REFUSED, reason), now)
            return
        try:
            agreed = self._offer.accept(sa, message, sa.nonce_i, sa.nonce_r)
        except IkeError as error:
            self._offer.withdraw(sa)
            demands.refused(sa, entry.id, Failure(FailureKind.REFUSED, f"{error} ({entry.where})"), now)
            sa.start(DeleteSpi(self._offer.spis()), now)
            return
        delete_if_unfit(sa, install(sa, agreed, now), now)
        demands.answered(sa, entry.id, now)

    def _reject(self, sa: IkeSa, reason: str, now: Nanos) -> None:
        """The responder is not who it should be: tell it in an exchange of its own (section 2.21.2)."""
        self._offer.withdraw(sa)
        failure = Failure(FailureKind.AUTHENTICATION, reason)
        sa.core.demands.closed(sa, sa.state, failure, now)
        sa.become(State.DELETING)
        sa.start(Farewell(failure, NotifyPayload(NotifyType.AUTHENTICATION_FAILED)), now)


def respond_auth(sa: IkeSa, message: Message, path: Path, now: Nanos) -> list[Payload]:
    """Verify the initiator and prove who we are; AuthenticationFailed costs the half-open IKE SA."""
    sa.core.timers.cancel(sa.number, Timer.HALF_OPEN)
    idi = next((payload for payload in message.all(IdPayload) if payload.initiator), None)
    auth = message.first(AuthPayload)
    if idi is None or auth is None:
        raise AuthenticationFailed("the peer's IKE_AUTH has no AUTH payload: it wants EAP, which we do not speak")
    peer, secret = _authenticate(sa, idi, auth, path)
    sa.identify(peer)
    sa.remote_id = idi.identity
    identity = sa.local_id = reasons.own_identity(peer, path)
    idr = IdPayload(False, identity)
    parts: list[Payload] = [idr, AuthPayload(AuthMethod.SHARED_KEY, own_auth(sa, secret, idr))]
    sa.become(State.ESTABLISHED)
    sa.core.half_open.remove(sa.number)
    if message.notify(NotifyType.INITIAL_CONTACT) is not None:
        _initial_contact(sa, now)
    established(sa, now)
    try:
        payloads, _ = answer_child(sa, message, sa.nonce_i, sa.nonce_r, now, first=True)
    except IkeError as error:
        if error.reach is Reach.IKE_SA:
            raise
        sa.core.demands.refused_request(sa, str(error), now)
        payloads = error_payloads(error)
    sa.core.demands.established(sa, now)
    return parts + payloads


def established(sa: IkeSa, now: Nanos) -> None:
    """Start the life of an IKE SA: lifetimes, liveness, keepalives (sections 2.4, 2.8, 2.23)."""
    peer, core, channel = sa.peer, sa.core, sa.channel
    if peer is None or channel is None:
        raise LocalError("an established IKE SA without a peer")
    sa.established = now
    sa.seniority = core.new_number()
    sa.lowest_nonce = min(sa.nonce_i, sa.nonce_r)
    sa.init_request = sa.init_response = b""
    start_timers(sa, now)
    suite = describe(channel.suite)
    core.failures.pop(peer.name, None)
    sa.tell(
        now,
        "ike_established",
        Level.INFO,
        f"IKE SA with {peer.name} ({sa.remote_id}) on {sa.path}: {suite}, "
        f"{'initiator' if sa.initiator else 'responder'}",
        suite=suite,
        remote_id=str(sa.remote_id),
        path=str(sa.path),
        initiator=sa.initiator,
        nat_local=sa.nat_local,
        nat_remote=sa.nat_remote,
    )


def start_timers(sa: IkeSa, now: Nanos) -> None:
    """Set what an established IKE SA waits for."""
    if sa.peer is None:
        return
    core, settings = sa.core, sa.peer.ike
    soft, hard = settings.lifetime.soft_time(core.entropy), settings.lifetime.time
    if soft is not None and hard is not None:
        core.timers.set(sa.number, Timer.REKEY_IKE, now + soft)
        core.timers.set(sa.number, Timer.EXPIRE_IKE, now + hard)
    if settings.liveness is not None:
        core.timers.set(sa.number, Timer.LIVENESS, now + settings.liveness)
    if sa.nat_local:
        core.timers.set(sa.number, Timer.KEEPALIVE, now + core.settings.keepalive)


def _has_other(sa: IkeSa) -> bool:
    """Whether another IKE SA with the same host is up: several rules may know it under several names."""
    return any(other.state in AUTHENTICATED for other in sa.core.at_host(sa.path.remote.address))


def preshared_keys(peer: PeerEntry) -> list[Secret]:
    """Return the preshared keys of a PAD entry, in order."""
    return [method.secret for method in peer.authentication if isinstance(method, PresharedKey)]


def own_auth(sa: IkeSa, secret: Secret, identity: IdPayload) -> bytes:
    """Return our AUTH data: over our own first message and the peer's nonce."""
    channel, prf = _channel(sa)
    mine, nonce = (sa.init_request, sa.nonce_r) if sa.initiator else (sa.init_response, sa.nonce_i)
    sk_p = channel.keys.sk_pi if sa.initiator else channel.keys.sk_pr
    return psk_auth(prf, secret, message=mine, nonce=nonce, sk_p=sk_p, id_body=identity.signed_body)


def peer_auth_verifies(sa: IkeSa, secret: Secret, identity: IdPayload, received: bytes) -> bool:
    """Whether the peer's AUTH data is right: over its first message as received, and our nonce."""
    channel, prf = _channel(sa)
    theirs, nonce = (sa.init_response, sa.nonce_i) if sa.initiator else (sa.init_request, sa.nonce_r)
    sk_p = channel.keys.sk_pr if sa.initiator else channel.keys.sk_pi
    return verify_psk_auth(
        prf, secret, received, message=theirs, nonce=nonce, sk_p=sk_p, id_body=identity.signed_body
    )


def _channel(sa: IkeSa) -> tuple[Channel, Prf]:
    if sa.channel is None or sa.channel.suite.prf is None:
        raise LocalError("AUTH without keys")
    return sa.channel, sa.channel.suite.prf


def _authenticate(sa: IkeSa, idi: IdPayload, auth: AuthPayload, path: Path) -> tuple[PeerEntry, Secret]:
    """Return the PAD entry and the key that the initiator's identity and AUTH fit."""
    channel, _ = _channel(sa)
    candidates = sa.core.snapshot.pad.candidates(path.remote.address)
    named = [entry for entry in candidates if idi.identity == reasons.expected_identity(entry, path)]
    if not named:
        raise AuthenticationFailed(reasons.unknown_identity(idi.identity, path, candidates))
    if auth.method != AuthMethod.SHARED_KEY:
        method = name_of(AuthMethod, auth.method)
        raise AuthenticationFailed(f"the peer authenticates by {method}, we by preshared key ({named[0].where})")
    for entry in named:
        for secret in preshared_keys(entry):
            if peer_auth_verifies(sa, secret, idi, auth.data):
                if not _suite_allowed(entry, channel.suite):
                    raise AuthenticationFailed(f"{entry.name} may not use this IKE suite ({entry.where})")
                return entry, secret
    reason = reasons.wrong_key(idi.identity, named[0])
    sa.core.remember_failure(named[0].name, reason)
    raise AuthenticationFailed(reason)


def _suite_allowed(entry: PeerEntry, suite: Suite) -> bool:
    """Whether the suite, chosen before the identity was known, is one that *entry* allows."""
    transforms = [Transform(TransformType.KE, suite.group)]
    if suite.encr is not None:
        transforms.append(Transform(TransformType.ENCR, suite.encr, suite.key_bits or None))
    if suite.prf is not None:
        transforms.append(Transform(TransformType.PRF, suite.prf))
    if not suite.aead:
        transforms.append(Transform(TransformType.INTEG, suite.integ))
    chosen = WireProposal(1, suite.protocol, b"", tuple(transforms))
    return not isinstance(choose([chosen], entry.ike.proposals), Mismatch)


def _initial_contact(sa: IkeSa, now: Nanos) -> None:
    """The peer says that it has no other IKE SA with us: those of the same identity are dead (section 2.4).

    An IKE SA that was established after this one began is spared: then both ends dialled at once, and the peer
    spoke before it knew of the other.
    """
    for other in sa.core.of_peer(sa.peer_name):
        if other is sa or other.seniority is None or other.remote_id != sa.remote_id:
            continue
        elsewhere = other.path.local.address != sa.path.local.address
        if other.seniority < sa.number and not (elsewhere and other.local_id != sa.local_id):
            other.close(Failure(FailureKind.LOCAL, "the peer restarted (INITIAL_CONTACT)"), now)
