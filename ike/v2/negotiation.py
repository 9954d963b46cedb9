"""One Child SA's negotiation, as IKE_AUTH and CREATE_CHILD_SA share it (RFC 7296 sections 1.2, 1.3, 2.9, 2.17)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ike.constants import NotifyType
from ike.crypto.kex import KeyExchange, generate
from ike.crypto.keymat import ChildKeys, derive_bundle_keys
from ike.errors import (
    BadAnswer,
    InvalidSyntax,
    LocalError,
    NoAdditionalSas,
    NoProposalChosen,
    TsUnacceptable,
)
from ike.negotiate import Mismatch, check_group
from ike.v2 import bundle
from ike.v2.bundle import Method
from ike.v2.child import Agreed, AgreedHalf, Child, install, selectors_text
from ike.v2.response import DYNAMIC, by_default_response
from ike.v2.traffic import Narrowed, accepted_pairs, as_asked, as_seen, grant, offered_sides
from ike.wire.message import Message
from ike.wire.payloads import KePayload, NoncePayload, NotifyPayload, Payload, SaPayload, TsPayload
from policy.clock import Nanos
from policy.proposals import Group, ProtocolId, Suite
from policy.secret import Secret
from policy.selectors import Flow, SelectorPair, TrafficSelector
from policy.spd import Mode, Protection, SpdEntry

if TYPE_CHECKING:
    from ike.v2.sa import IkeSa

NONCE_LENGTH = 32
_AH_AND_NAT = "AH cannot cross the NAT between the ends: write an esp:... method, such as esp:null-sha256"
_BUNDLE_AND_OTHERS = (
    "AH and ESP on one packet can be agreed on between two Mirrorgates only: IKEv2 has no words for it; name a "
    "method of one protocol beside it"
)


class ChildOffer:
    """The initiator's side: what we ask for, and what we take."""

    def __init__(self, sa: IkeSa, entry: SpdEntry, flow: Flow | None, *, first: bool) -> None:
        """*first*: in IKE_AUTH, without nonce and key exchange of its own (section 1.2)."""
        if entry.protection is None:
            raise LocalError(f"entry {entry.id} is not protected")
        usable = [method for method in methods_of(entry) if _obstacle(sa, method) is None]
        if not usable:
            raise LocalError(_nothing_to_offer(sa, entry))
        self.entry = entry
        self.protection = entry.protection
        self.spi_in = sa.core.new_child_spi()
        self.nonce = b"" if first else sa.core.entropy(NONCE_LENGTH)
        self.kex: KeyExchange | None = None
        groups = () if first or self.protection.pfs is None else (self.protection.pfs,)
        if groups:
            self.kex = generate(groups[0], sa.core.entropy)
        methods = [replace(method, inner=replace(method.inner, groups=groups)) for method in usable]
        self.outer_spi_in = sa.core.new_child_spi() if any(method.outer for method in methods) else 0
        self.wire = bundle.build(methods, self.spi_in, self.outer_spi_in)
        self.local, self.remote = offered_sides(entry, flow)

    @property
    def transport(self) -> bool:
        """Whether we ask for transport mode."""
        return self.protection.mode is Mode.TRANSPORT

    @property
    def fragments(self) -> bool:
        """Whether we ask that later fragments, which show no ports, pass too (NON_FIRST_FRAGMENTS_ALSO)."""
        return not self.transport and not self.entry.selectors.any_ports

    def payloads(self) -> list[Payload]:
        """Return SA, [Ni, [KEi]], TSi, TSr and the notifies."""
        parts: list[Payload] = [SaPayload(self.wire.inner)]
        if self.nonce:
            parts.append(NoncePayload(self.nonce))
        if self.kex is not None:
            parts.append(KePayload(self.kex.group, self.kex.public))
        parts += [TsPayload(True, self.local), TsPayload(False, self.remote)]
        parts += self.wire.notifies()
        parts += _mode_notifies(self.transport, fragments=self.fragments)
        return parts

    def accept(self, sa: IkeSa, message: Message, ni: bytes, nr: bytes) -> Agreed:
        """Return what the response grants. BadAnswer if it is not something that we asked for."""
        answer = message.first(SaPayload)
        tsi, tsr = sides(message)
        if answer is None or not tsi or not tsr:
            raise BadAnswer("the response has no SA or no traffic selectors")
        answered = bundle.read(message, answer.proposals) if sa.mirrorgate else bundle.Offer(answer.proposals)
        suite, outer = bundle.verify(self.wire, answered)
        spis = [int.from_bytes(each.spi, "big") for each in (*answered.inner, *answered.outer)]
        if 0 in spis:
            raise BadAnswer("the answer's SPI is zero")
        pairs = accepted_pairs((self.local, self.remote), (tsi, tsr))
        if pairs is None:
            raise BadAnswer(
                f"the peer answers with selectors that are not part of what we asked for ({self.asked()})"
            )
        if (message.notify(NotifyType.USE_TRANSPORT_MODE) is not None) != self.transport:
            raise BadAnswer(f"the peer does not agree on {self.protection.mode.value} mode")
        shared = None
        if suite.group is not Group.NONE:
            ke = message.first(KePayload)
            if ke is None or self.kex is None or ke.group != self.kex.group:
                raise BadAnswer("the response's KE payload is missing or of another group")
            shared = self.kex.shared(ke.data)
        *around, (from_us, from_peer) = _keys(sa, [outer, suite], ni, nr, shared)
        self._free_unused_spi(sa, outer)
        return Agreed(
            entry=self.entry,
            suite=suite,
            mode=self.protection.mode,
            spi_in=self.spi_in,
            spi_out=spis[0],
            pairs=pairs,
            keys_in=from_peer,
            keys_out=from_us,
            outer=None if outer is None else AgreedHalf(
                suite=outer, spi_in=self.outer_spi_in, spi_out=spis[1], keys_in=around[0][1], keys_out=around[0][0]
            ),
            tfc=_takes_padding(message, suite, self.transport),
            later_fragments=self.fragments and _agrees_on_fragments(message),
        )  # fmt: skip

    def asked(self) -> str:
        """Return what we ask for, for a message."""
        return str(self.entry.selectors)

    def offered(self) -> str:
        """Return what we offer, for a message."""
        written = ", ".join(map(str, methods_of(self.entry)))
        return f"{written}, that is {self.wire}"

    def spis(self) -> list[tuple[int, int]]:
        """Return protocol and inbound SPI of all that the peer may have made of it."""
        found = dict.fromkeys((proposal.protocol, self.spi_in) for proposal in self.wire.inner)
        return [*found, *dict.fromkeys((proposal.protocol, self.outer_spi_in) for proposal in self.wire.outer)]

    def withdraw(self, sa: IkeSa) -> None:
        """Free the SPIs: nothing came of it."""
        if not any(child.spi_in == self.spi_in for child in sa.children.values()):
            sa.core.spis_in.difference_update((self.spi_in, self.outer_spi_in))

    def _free_unused_spi(self, sa: IkeSa, outer: Suite | None) -> None:
        if outer is None:
            sa.core.spis_in.discard(self.outer_spi_in)


def answer_child(
    sa: IkeSa, message: Message, ni: bytes, nr: bytes, now: Nanos, *, first: bool, replaces: Child | None = None
) -> tuple[list[Payload], Child]:
    """Grant the Child SA that a request asks for: return the response's payloads and the installed Child SA.

    Raises NoProposalChosen, TsUnacceptable, InvalidKePayload or NoAdditionalSas, none of which harms the IKE SA
    (section 2.21.2), with a text for the operator.
    """
    request = message.first(SaPayload)
    tsi, tsr = sides(message)
    if request is None or not tsi or not tsr:
        raise InvalidSyntax("a request for a Child SA without SA or traffic selectors")
    if len(sa.children) >= sa.core.settings.children_limit:
        raise NoAdditionalSas(f"this IKE SA has {len(sa.children)} Child SAs already")
    transport = message.notify(NotifyType.USE_TRANSPORT_MODE) is not None
    seen_i, seen_r = (as_seen(sa, tsi, local=False), as_seen(sa, tsr, local=True)) if transport else (tsi, tsr)
    entries = sa.core.entries_of(sa.peer_name)
    granted, protection = _granted(sa, entries, seen_r, seen_i, transport=transport, replaces=replaces)
    ke = message.first(KePayload)
    chosen = _choose(sa, message, ke, granted.entry, first=first)
    agreed, public = _agree(sa, granted, chosen, ke, (ni, nr))
    own_transport = protection.mode is Mode.TRANSPORT
    agreed = replace(
        agreed,
        tfc=_takes_padding(message, agreed.suite, own_transport),
        later_fragments=not own_transport and _agrees_on_fragments(message),
    )
    parts: list[Payload] = [SaPayload((replace(chosen.inner.answer, spi=agreed.spi_in.to_bytes(4, "big")),))]
    parts += ([] if first else [NoncePayload(nr)]) + public
    if granted.entry.rule == DYNAMIC:
        sa.core.dynamic[granted.entry.id] = granted.entry
    child = install(sa, agreed, now, dormant=replaces is not None, replaces=replaces)
    parts += [
        TsPayload(True, as_asked(granted.remote, tsi, seen_i)),
        TsPayload(False, as_asked(granted.local, tsr, seen_r)),
    ]
    if chosen.outer is not None and agreed.outer is not None:
        outer = replace(chosen.outer.answer, spi=agreed.outer.spi_in.to_bytes(4, "big"))
        parts += bundle.Offer((), (outer,)).notifies()
    parts += _mode_notifies(own_transport, fragments=agreed.later_fragments)
    if granted.narrowed and _more_possible(entries, granted, seen_r, seen_i, transport=transport):
        parts.append(NotifyPayload(NotifyType.ADDITIONAL_TS_POSSIBLE))
    return parts, child


def _agree(
    sa: IkeSa, granted: Narrowed, chosen: bundle.Chosen, ke: KePayload | None, nonces: tuple[bytes, bytes]
) -> tuple[Agreed, list[Payload]]:
    """Return what the responder agrees to, and its KE payload where there is a key exchange."""
    core, (choice, around) = sa.core, (chosen.inner, chosen.outer)
    public: list[Payload] = []
    shared = None
    if choice.suite.group is not Group.NONE and ke is not None:
        kex = generate(choice.suite.group, core.entropy)
        shared = kex.shared(ke.data)
        public.append(KePayload(kex.group, kex.public))
    suites = [None if around is None else around.suite, choice.suite]
    *outside, (from_peer, from_us) = _keys(sa, suites, *nonces, shared)
    outer = None if around is None else AgreedHalf(
        suite=around.suite,
        spi_in=core.new_child_spi(),
        spi_out=int.from_bytes(around.offered.spi, "big"),
        keys_in=outside[0][0],
        keys_out=outside[0][1],
    )  # fmt: skip
    entry = granted.entry
    return Agreed(
        entry=entry,
        suite=choice.suite,
        mode=Mode.TUNNEL if entry.protection is None else entry.protection.mode,
        spi_in=core.new_child_spi(),
        spi_out=int.from_bytes(choice.offered.spi, "big"),
        pairs=granted.pairs,
        keys_in=from_peer,
        keys_out=from_us,
        outer=outer,
    ), public


def _granted(
    sa: IkeSa,
    entries: Sequence[SpdEntry],
    local: Sequence[TrafficSelector],
    remote: Sequence[TrafficSelector],
    *,
    transport: bool,
    replaces: Child | None,
) -> tuple[Narrowed, Protection]:
    """Return what policy grants of both sides, by its rules or else by the default response rule."""
    prefer = None if replaces is None else replaces.entry
    granted = grant(entries, local, remote, transport=transport, prefer=prefer)
    if granted is None and transport:
        granted = by_default_response(sa, local, remote)
    if granted is None or granted.entry.protection is None:
        raise TsUnacceptable(_nothing_for(entries, remote, local, transport))
    return granted, granted.entry.protection


def _more_possible(
    entries: Sequence[SpdEntry],
    granted: Narrowed,
    local: Sequence[TrafficSelector],
    remote: Sequence[TrafficSelector],
    *,
    transport: bool,
) -> bool:
    """Whether another entry would grant another part of what is asked for (section 2.9)."""
    others = [entry for entry in entries if entry is not granted.entry]
    return grant(others, local, remote, transport=transport) is not None


def _choose(sa: IkeSa, message: Message, ke: KePayload | None, entry: SpdEntry, *, first: bool) -> bundle.Chosen:
    """Choose how to protect the Child SA; NoProposalChosen or InvalidKePayload if there is nothing yet."""
    group, request = None if ke is None else ke.group, message.first(SaPayload)
    usable, proposals = acceptable(sa, entry, first=first), () if request is None else request.proposals
    if not usable:
        raise NoProposalChosen(_nothing_to_offer(sa, entry))
    offered = bundle.read(message, proposals) if sa.mirrorgate else bundle.Offer(proposals)
    chosen = bundle.select(offered, usable, group)
    if isinstance(chosen, Mismatch):
        raise NoProposalChosen(f"no common ESP/AH proposal: {chosen} ({entry.where})")
    halves = [chosen.inner] if chosen.outer is None else [chosen.inner, chosen.outer]
    if any(half.offered.spi == bytes(4) for half in halves):
        raise InvalidSyntax("a Child SA with SPI zero")
    check_group(chosen.inner.suite, group)
    return chosen


def methods_of(entry: SpdEntry) -> list[Method]:
    """Return the entry's security methods."""
    if entry.protection is None:
        return []
    found = [method.protocols for method in entry.protection.methods]
    return [Method(each[0]) if len(each) == 1 else Method(each[-1], each[0]) for each in found]


def acceptable(sa: IkeSa, entry: SpdEntry, *, first: bool) -> list[Method]:
    """Return the methods that we accept for *entry*.

    With PFS configured its group is a must; without, a peer that wants PFS gets it with any group of the IKE
    proposals. In IKE_AUTH there is no key exchange to do it with.
    """
    usable = [method for method in methods_of(entry) if _obstacle(sa, method) is None]
    plain = _with_groups(usable, ())
    if first or entry.protection is None:
        return plain
    if entry.protection.pfs is not None:
        return _with_groups(usable, (entry.protection.pfs,))
    ours = [] if sa.peer is None else [g for p in sa.peer.ike.proposals for g in p.groups]
    groups = tuple(dict.fromkeys(ours))
    return plain + (_with_groups(usable, groups) if groups else [])


def _with_groups(methods: Sequence[Method], groups: tuple[Group, ...]) -> list[Method]:
    return [replace(method, inner=replace(method.inner, groups=groups)) for method in methods]


def _obstacle(sa: IkeSa, method: Method) -> str | None:
    """Return why *method* cannot be used with the peer of *sa*, None where it can."""
    with_ah = method.outer is not None or method.inner.protocol is ProtocolId.AH
    if with_ah and (sa.nat_local or sa.nat_remote):
        return _AH_AND_NAT
    if method.outer is not None and not sa.mirrorgate:
        return _BUNDLE_AND_OTHERS
    return None


def _nothing_to_offer(sa: IkeSa, entry: SpdEntry) -> str:
    reasons = dict.fromkeys(_obstacle(sa, method) for method in methods_of(entry))
    return f"{'; '.join(reason for reason in reasons if reason)} ({entry.where})"


def sides(message: Message) -> tuple[tuple[TrafficSelector, ...], tuple[TrafficSelector, ...]]:
    """Return the selectors of TSi and of TSr, empty where there are none."""
    payloads = message.all(TsPayload)
    tsi = next((payload.selectors for payload in payloads if payload.initiator), ())
    tsr = next((payload.selectors for payload in payloads if not payload.initiator), ())
    return tsi, tsr


def _keys(
    sa: IkeSa, suites: Sequence[Suite | None], ni: bytes, nr: bytes, shared: Secret | None
) -> list[tuple[ChildKeys, ChildKeys]]:
    """Return the keys from the exchange's initiator to its responder, and back (section 2.17), outermost first."""
    channel = sa.channel
    if channel is None or channel.suite.prf is None:
        raise LocalError("an IKE SA without keys")
    wanted = [suite for suite in suites if suite is not None]
    keys = derive_bundle_keys(wanted, channel.keys.sk_d, channel.suite.prf, ni, nr, shared)
    if shared is not None:
        shared.wipe()
    return keys


def _mode_notifies(transport: bool, *, fragments: bool) -> list[Payload]:
    """Return what is said beside the selectors (section 1.3.1). That we take padding is said by silence."""
    notifies: list[Payload] = []
    if transport:
        notifies.append(NotifyPayload(NotifyType.USE_TRANSPORT_MODE))
    if fragments:
        notifies.append(NotifyPayload(NotifyType.NON_FIRST_FRAGMENTS_ALSO))
    return notifies


def _takes_padding(message: Message, suite: Suite, transport: bool) -> bool:
    """Whether the peer takes padding and dummy packets: ESP in tunnel mode, and nothing said against it."""
    refused = message.notify(NotifyType.ESP_TFC_PADDING_NOT_SUPPORTED) is not None
    return suite.protocol is ProtocolId.ESP and not transport and not refused


def _agrees_on_fragments(message: Message) -> bool:
    return message.notify(NotifyType.NON_FIRST_FRAGMENTS_ALSO) is not None


def _nothing_for(
    entries: Sequence[SpdEntry],
    tsi: Sequence[TrafficSelector],
    tsr: Sequence[TrafficSelector],
    transport: bool,
) -> str:
    asked = selectors_text([SelectorPair(tsr[-1], tsi[-1])])
    told = transport or any(e.protection is not None and e.protection.mode is Mode.TRANSPORT for e in entries)
    ours = "; ".join(f"{e.selectors}{_mode_text(e) if told else ''} ({e.where})" for e in entries[:4]) or "nothing"
    mode = ", transport mode" if transport else ", tunnel mode"
    return f"the peer asks for {asked}{mode}; we have {ours}"


def _mode_text(entry: SpdEntry) -> str:
    return "" if entry.protection is None else f", {entry.protection.mode.value} mode"
