"""IKE_SA_INIT: algorithms, nonces, key exchange, NAT detection (RFC 7296 sections 1.2, 2.6, 2.7, 2.23).

Nothing here is authenticated before IKE_AUTH, so an error answer ends an attempt only after a grace in which
nothing better came. (Whoever can answer at all has seen our SPI, so the grace only has to outlast the true
peer's answer; a forger who also suppresses that could suppress everything.)
"""

from __future__ import annotations

from ike.constants import ExchangeType, NotifyType
from ike.crypto.kex import KeyExchange, generate
from ike.crypto.keymat import derive_ike_keys
from ike.errors import BadAnswer, IkeError, LocalError, NoProposalChosen
from ike.events import FailureKind
from ike.names import describe_offer, describe_proposal
from ike.negotiate import Choice, Mismatch, check_group, choose, retry_group, verify_answer
from ike.timers import Timer
from ike.v2 import reasons
from ike.v2.channel import Channel
from ike.v2.core import Core
from ike.v2.nat import VENDOR_ID, detect, detection_notifies, floated
from ike.v2.negotiation import NONCE_LENGTH
from ike.v2.sa import IkeSa
from ike.v2.settings import Backoff, IkeSettings
from ike.v2.states import State
from ike.v2.tasks.ike_auth import IkeAuth
from ike.v2.tasks.task import Failure, InitialTask
from ike.wire.message import Message
from ike.wire.payloads import KePayload, NoncePayload, NotifyPayload, Payload, SaPayload, VendorIdPayload
from ike.wire.proposals import offer
from policy.clock import Nanos
from policy.model import Encapsulation
from policy.pad import PeerEntry
from policy.path import NATT_PORT, Path
from policy.proposals import Group, Proposal
from policy.selectors import Flow

#: Restarts of one attempt because of cookies or INVALID_KE_PAYLOAD: no forger may keep us restarting.
_MAX_RESTARTS = 8


class IkeInit(InitialTask):
    """The initiator's side."""

    exchange = ExchangeType.IKE_SA_INIT

    def __init__(self, sa: IkeSa, peer: PeerEntry, entry: str, flow: Flow | None) -> None:
        self._peer = peer
        self._entry, self._flow = entry, flow
        self._wire = offer(peer.ike.proposals, b"")
        groups = [group for proposal in peer.ike.proposals for group in proposal.groups]
        if not groups:
            raise LocalError("no key exchange method in the IKE proposals")
        self._kex = generate(groups[0], sa.core.entropy)
        sa.nonce_i = sa.core.entropy(NONCE_LENGTH)
        self._force = sa.core.entropy(20) if _wants_udp(sa.core, peer.name) else b""
        self._cookie: bytes | None = None
        self._restarts = 0

    def backoff(self, settings: IkeSettings) -> Backoff:
        """Dial: patiently, but never seldom."""
        return settings.dial

    def begin(self, sa: IkeSa, now: Nanos) -> None:
        """Send the first message."""
        sa.request(self, self.build(sa, now), now)
        self._keep_octets(sa)

    def build(self, sa: IkeSa, now: Nanos) -> list[Payload]:
        """Return [N(COOKIE)], SA, KE, Ni, N(NAT_DETECTION...), N(FRAGMENTATION), V."""
        parts: list[Payload] = []
        if self._cookie is not None:
            parts.append(NotifyPayload(NotifyType.COOKIE, data=self._cookie))
        parts += [
            SaPayload(self._wire),
            KePayload(self._kex.group, self._kex.public),
            NoncePayload(sa.nonce_i),
            *detection_notifies(sa.spi_i, bytes(8), sa.path, force=self._force),
            NotifyPayload(NotifyType.IKEV2_FRAGMENTATION_SUPPORTED),
            VendorIdPayload(VENDOR_ID),
        ]
        return parts

    def examine(self, sa: IkeSa, message: Message, path: Path, now: Nanos) -> None:
        """Take a response: a cookie or another group to retry with, an error to remember, or the real one."""
        sa.answered = True
        cookie = message.notify(NotifyType.COOKIE)
        error = message.error()
        if message.first(SaPayload) is not None and error is None:
            try:
                self._complete(sa, message, path, now)
            except IkeError as problem:
                self._remember(sa, f"the peer's IKE_SA_INIT response is unusable: {problem}", now)
        elif cookie is not None and 1 <= len(cookie.data) <= 64:
            if cookie.data != self._cookie:
                self._cookie = cookie.data
                self._restart(sa, now)
        elif error is not None and error.type == NotifyType.INVALID_KE_PAYLOAD:
            self._other_group(sa, error, now)
        elif error is not None:
            written = ", ".join(describe_proposal(proposal) for proposal in self._peer.ike.proposals)
            offered = f"{written}, that is {describe_offer(self._wire)}"
            self._remember(sa, reasons.refused_init(error, offered, self._peer.where), now)

    def process(self, sa: IkeSa, message: Message, now: Nanos) -> None:
        """Responses come through ``examine``: most of them do not end the exchange."""
        raise LocalError("IKE_SA_INIT responses are examined")

    def failed(self, sa: IkeSa, failure: Failure, now: Nanos) -> None:
        """Closing the IKE SA tells everyone who waits."""

    def settle(self, sa: IkeSa, now: Nanos) -> None:
        """Nothing better came: the refusal stands."""
        sa.close(Failure(FailureKind.REFUSED, sa.probable), now)

    def _remember(self, sa: IkeSa, reason: str, now: Nanos) -> None:
        if not sa.probable:
            sa.core.timers.set(sa.number, Timer.SETTLE, now + sa.core.settings.refusal_grace)
        sa.probable = reason

    def _restart(self, sa: IkeSa, now: Nanos) -> None:
        self._restarts += 1
        if self._restarts <= _MAX_RESTARTS:
            sa.resend(self.build(sa, now), now)
            self._keep_octets(sa)

    def _other_group(self, sa: IkeSa, error: NotifyPayload, now: Nanos) -> None:
        """INVALID_KE_PAYLOAD: only a group that we offered (section 1.2); nonce and SPI stay for the cookie."""
        try:
            group = retry_group(self._wire, error.data, self._kex.group)
        except BadAnswer as problem:
            self._remember(sa, f"{problem} ({self._peer.where})", now)
            return
        self._kex = generate(group, sa.core.entropy)
        self._restart(sa, now)

    def _keep_octets(self, sa: IkeSa) -> None:
        if sa.window.outstanding is not None:
            sa.init_request = sa.window.outstanding.datagrams[0]

    def _complete(self, sa: IkeSa, message: Message, path: Path, now: Nanos) -> None:
        answer, ke, nonce = message.first(SaPayload), message.first(KePayload), message.first(NoncePayload)
        if answer is None or ke is None or nonce is None or message.header.spi_r == bytes(8):
            raise BadAnswer("SA, KE, nonce or SPI is missing")
        suite = verify_answer(self._wire, answer.proposals)
        if ke.group != self._kex.group or suite.group != self._kex.group:
            raise BadAnswer(f"it is of another key exchange method than {self._kex.group.name}")
        shared = self._kex.shared(ke.data)
        sa.core.timers.cancel(sa.number, Timer.SETTLE)
        sa.completed_init()
        sa.spi_r = message.header.spi_r
        sa.nonce_r = nonce.data
        sa.init_response = message.octets
        keys = derive_ike_keys(suite, sa.nonce_i, sa.nonce_r, sa.spi_i, sa.spi_r, shared)
        shared.wipe()
        sa.channel = Channel(suite, keys, initiator=True)
        learn(sa, message, path)
        # The peer answers from where it is; port 4500 if there is a NAT, or UDP is wanted (section 2.23).
        sa.path = Path(path.local, sa.path.remote)
        udp = sa.nat_local or sa.nat_remote or (sa.nat_traversal and _udp_between(sa, self._peer.name))
        if udp and sa.path.local.port != NATT_PORT:
            sa.path = floated(sa.path)
        sa.become(State.AUTHENTICATING)
        entry, flow = self._entry, self._flow
        if sa.core.entry(entry) is None:  # the policy changed meanwhile; another entry may wait
            found = sa.core.demands.first_of(sa)
            if found is None:
                sa.close(Failure(FailureKind.LOCAL, "the policy no longer has the entry it was for"), now)
                return
            entry, flow = found
        try:
            task = IkeAuth(sa, self._peer, entry, flow)
        except LocalError as error:  # nothing to offer: AH where a NAT is, for one
            sa.close(Failure(FailureKind.REFUSED, str(error)), now)
            return
        sa.request(task, task.build(sa, now), now)


def learn(sa: IkeSa, message: Message, path: Path) -> None:
    """Take from the peer's IKE_SA_INIT message what it can do, and where NATs are."""
    found = detect(message, path)
    sa.nat_traversal = found is not None
    if found is not None:
        sa.nat_local, sa.nat_remote = found
    sa.fragmentation = message.notify(NotifyType.IKEV2_FRAGMENTATION_SUPPORTED) is not None
    sa.mirrorgate = any(vendor.data == VENDOR_ID for vendor in message.all(VendorIdPayload))


def respond_init(core: Core, message: Message, path: Path, now: Nanos) -> IkeSa:
    """Answer a stranger's IKE_SA_INIT request with a half-open IKE SA.

    Raises the errors that a stranger is told: NoProposalChosen with a text, InvalidKePayload. The caller has
    checked bounds, cookie and shape.
    """
    request, ke, nonce = message.first(SaPayload), message.first(KePayload), message.first(NoncePayload)
    if request is None or ke is None or nonce is None:
        raise LocalError("the shape of IKE_SA_INIT was not checked")
    choice = choose_suite(core, request, ke.group, path)
    if isinstance(choice, Mismatch):
        raise _no_common(core, choice, path)
    check_group(choice.suite, ke.group)
    kex = generate(Group(ke.group), core.entropy)
    shared = kex.shared(ke.data)
    sa = IkeSa(
        core,
        initiator=False,
        spi_i=message.header.spi_i,
        spi_r=core.new_spi(),
        path=path,
        state=State.HALF_OPEN,
        now=now,
    )
    sa.nonce_i, sa.nonce_r = nonce.data, core.entropy(NONCE_LENGTH)
    sa.init_request = message.octets
    keys = derive_ike_keys(choice.suite, sa.nonce_i, sa.nonce_r, sa.spi_i, sa.spi_r, shared)
    shared.wipe()
    sa.channel = Channel(choice.suite, keys, initiator=False)
    learn(sa, message, path)
    sa.window.first_fragment(0, message.octets)
    sa.init_response = sa.answer(message.header, _answer(core, sa, choice, kex, path), path, now)
    core.half_open.add(path.remote, message.octets, sa.number)
    core.timers.set(sa.number, Timer.HALF_OPEN, now + core.settings.half_open_time)
    return sa


def choose_suite(core: Core, request: SaPayload, group: int, path: Path) -> Choice | Mismatch:
    """Choose from what the peers that may be at this address may use (the identity comes with IKE_AUTH)."""
    acceptable: list[Proposal] = []
    seen: set[int] = set()  # peers of one policy share their proposals, and there may be thousands
    for peer in core.snapshot.pad.candidates(path.remote.address):
        if id(peer.ike.proposals) not in seen:
            seen.add(id(peer.ike.proposals))
            acceptable += [proposal for proposal in peer.ike.proposals if proposal not in acceptable]
    return choose(request.proposals, acceptable, preferred_group=group)


def _answer(core: Core, sa: IkeSa, choice: Choice, kex: KeyExchange, path: Path) -> list[Payload]:
    parts: list[Payload] = [
        SaPayload((choice.answer,)),
        KePayload(kex.group, kex.public),
        NoncePayload(sa.nonce_r),
    ]
    if sa.nat_traversal:
        forced = Encapsulation.UDP in core.encapsulations_at(path.remote.address)
        force = core.entropy(20) if forced else b""
        parts += detection_notifies(sa.spi_i, sa.spi_r, path, force=force)
    if sa.fragmentation:
        parts.append(NotifyPayload(NotifyType.IKEV2_FRAGMENTATION_SUPPORTED))
    parts.append(VendorIdPayload(VENDOR_ID))
    return parts


def _no_common(core: Core, mismatch: Mismatch, path: Path) -> IkeError:
    candidates = core.snapshot.pad.candidates(path.remote.address)
    where = ", ".join(dict.fromkeys(str(peer.where) for peer in candidates[:4]))
    return NoProposalChosen(f"no common IKE proposal: {mismatch} ({where})")


def _wants_udp(core: Core, peer: str) -> bool:
    """Whether an entry of *peer* asks for UDP encapsulation whatever is on the way."""
    return Encapsulation.UDP in core.encapsulations(peer)


def _udp_between(sa: IkeSa, peer: str) -> bool:
    """Whether policy and peer prefer UDP without a NAT."""
    wanted = sa.core.encapsulations(peer)
    return Encapsulation.UDP in wanted or (sa.mirrorgate and Encapsulation.AUTO in wanted)
