"""One Child SA's negotiation, as IKE_AUTH and CREATE_CHILD_SA share it (RFC 7296 sections 1.2, 1.3, 2.9, 2.17)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ike.constants import NotifyType
from ike.crypto.kex import KeyExchange, generate
from ike.crypto.keymat import ChildKeys, derive_child_keys
from ike.errors import (
    BadAnswer,
    InvalidPublicValue,
    InvalidSyntax,
    LocalError,
    NoAdditionalSas,
    NoProposalChosen,
    TsUnacceptable,
)
from ike.names import describe_offer, describe_proposal
from ike.negotiate import Choice, Mismatch, check_group, choose, verify_answer
from ike.v2.child import Agreed, Child, install, selectors_text
from ike.v2.response import DYNAMIC, by_default_response
from ike.v2.traffic import Narrowed, accepted_pairs, as_asked, as_seen, grant, offered_sides
from ike.wire.message import Message
from ike.wire.payloads import KePayload, NoncePayload, NotifyPayload, Payload, SaPayload, TsPayload
from ike.wire.proposals import offer
from policy.clock import Nanos
from policy.proposals import Group, Proposal, ProtocolId, Suite
from policy.secret import Secret
from policy.selectors import Flow, SelectorPair, TrafficSelector
from policy.spd import Mode, Protection, SpdEntry

if TYPE_CHECKING:
    from ike.v2.sa import IkeSa

NONCE_LENGTH = 32
_AH_AND_NAT = "AH cannot cross the NAT between the ends: write an esp:... method, such as esp:null-sha256"


class ChildOffer:
    """The initiator's side: what we ask for, and what we take."""

    def __init__(self, sa: IkeSa, entry: SpdEntry, flow: Flow | None, *, first: bool) -> None:
        """*first*: in IKE_AUTH, without nonce and key exchange of its own (section 1.2)."""
        if entry.protection is None:
            raise LocalError(f"entry {entry.id} is not protected")
        usable = [proposal for proposal in single_protocols(entry) if crosses(sa, proposal)]
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
        proposals = [replace(proposal, groups=groups) for proposal in usable]
        self.wire = offer(proposals, self.spi_in.to_bytes(4, "big"))
        self.local, self.remote = offered_sides(entry, flow)

    @property
    def transport(self) -> bool:
        """Whether we ask for transport mode."""
        return self.protection.mode is Mode.TRANSPORT

    def payloads(self) -> list[Payload]:
        """Return SA, [Ni, [KEi]], TSi, TSr and the notifies."""
        parts: list[Payload] = [SaPayload(self.wire)]
        if self.nonce:
            parts.append(NoncePayload(self.nonce))
        if self.kex is not None:
            parts.append(KePayload(self.kex.group, self.kex.public))
        parts += [TsPayload(True, self.local), TsPayload(False, self.remote)]
        parts += _mode_notifies(self.transport)
        return parts

    def accept(self, sa: IkeSa, message: Message, ni: bytes, nr: bytes) -> Agreed:
        """Return what the response grants. BadAnswer if it is not something that we asked for."""
        answer = message.first(SaPayload)
        tsi, tsr = sides(message)
        if answer is None or not tsi or not tsr:
            raise BadAnswer("the response has no SA or no traffic selectors")
        suite = verify_answer(self.wire, answer.proposals)
        spi_out = int.from_bytes(answer.proposals[0].spi, "big")
        if spi_out == 0:
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
        from_us, from_peer = _keys(sa, suite, ni, nr, shared)
        return Agreed(
            entry=self.entry,
            suite=suite,
            mode=self.protection.mode,
            spi_in=self.spi_in,
            spi_out=spi_out,
            pairs=pairs,
            keys_in=from_peer,
            keys_out=from_us,
        )

    def asked(self) -> str:
        """Return what we ask for, for a message."""
        return str(self.entry.selectors)

    def offered(self) -> str:
        """Return what we offer, for a message."""
        written = ", ".join(describe_proposal(proposal) for proposal in single_protocols(self.entry))
        return f"{written}, that is {describe_offer(self.wire)}"

    def withdraw(self, sa: IkeSa) -> None:
        """Free the SPI: nothing came of it."""
        if not any(child.spi_in == self.spi_in for child in sa.children.values()):
            sa.core.spis_in.discard(self.spi_in)


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
    choice = _choose(sa, request, ke, granted.entry, first=first)
    spi_in = sa.core.new_child_spi()
    answer = replace(choice.answer, spi=spi_in.to_bytes(4, "big"))
    parts: list[Payload] = [SaPayload((answer,))]
    if not first:
        parts.append(NoncePayload(nr))
    shared = None
    if choice.suite.group is not Group.NONE and ke is not None:
        kex = generate(choice.suite.group, sa.core.entropy)
        try:
            shared = kex.shared(ke.data)
        except InvalidPublicValue:
            sa.core.spis_in.discard(spi_in)
            raise
        parts.append(KePayload(kex.group, kex.public))
    from_peer, from_us = _keys(sa, choice.suite, ni, nr, shared)
    agreed = Agreed(
        entry=granted.entry,
        suite=choice.suite,
        mode=protection.mode,
        spi_in=spi_in,
        spi_out=int.from_bytes(choice.offered.spi, "big"),
        pairs=granted.pairs,
        keys_in=from_peer,
        keys_out=from_us,
    )
    if granted.entry.rule == DYNAMIC:
        sa.core.dynamic[granted.entry.id] = granted.entry
    child = install(sa, agreed, now, dormant=replaces is not None, replaces=replaces)
    parts += [
        TsPayload(True, as_asked(granted.remote, tsi, seen_i)),
        TsPayload(False, as_asked(granted.local, tsr, seen_r)),
    ]
    parts += _mode_notifies(protection.mode is Mode.TRANSPORT)
    if granted.narrowed and _more_possible(entries, granted, seen_r, seen_i, transport=transport):
        parts.append(NotifyPayload(NotifyType.ADDITIONAL_TS_POSSIBLE))
    return parts, child


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


def _choose(sa: IkeSa, request: SaPayload, ke: KePayload | None, entry: SpdEntry, *, first: bool) -> Choice:
    """Choose a suite for the Child SA; NoProposalChosen or InvalidKePayload if there is none yet."""
    group = None if ke is None else ke.group
    usable = acceptable(sa, entry, first=first)
    if not usable:
        raise NoProposalChosen(_nothing_to_offer(sa, entry))
    choice = choose(request.proposals, usable, preferred_group=group)
    if isinstance(choice, Mismatch):
        raise NoProposalChosen(f"no common ESP/AH proposal: {choice} ({entry.where})")
    if choice.offered.spi == bytes(4):
        raise InvalidSyntax("a Child SA with SPI zero")
    check_group(choice.suite, group)
    return choice


def single_protocols(entry: SpdEntry) -> list[Proposal]:
    """Return the entry's proposals of one protocol: IKEv2 negotiates no bundle of AH and ESP in one exchange."""
    if entry.protection is None:
        return []
    return [method.protocols[0] for method in entry.protection.methods if len(method.protocols) == 1]


def acceptable(sa: IkeSa, entry: SpdEntry, *, first: bool) -> list[Proposal]:
    """Return the proposals that we accept for *entry*.

    With PFS configured its group is a must; without, a peer that wants PFS gets it with any group of the IKE
    proposals. In IKE_AUTH there is no key exchange to do it with.
    """
    plain = [replace(proposal, groups=()) for proposal in single_protocols(entry) if crosses(sa, proposal)]
    if first or entry.protection is None:
        return plain
    if entry.protection.pfs is not None:
        return [replace(proposal, groups=(entry.protection.pfs,)) for proposal in plain]
    ours = [] if sa.peer is None else [g for p in sa.peer.ike.proposals for g in p.groups]
    groups = tuple(dict.fromkeys(ours))
    return plain + ([replace(proposal, groups=groups) for proposal in plain] if groups else [])


def crosses(sa: IkeSa, proposal: Proposal) -> bool:
    """Whether *proposal* gets through what is between the ends: AH covers the addresses that a NAT changes."""
    return proposal.protocol is not ProtocolId.AH or not (sa.nat_local or sa.nat_remote)


def _nothing_to_offer(sa: IkeSa, entry: SpdEntry) -> str:
    if any(not crosses(sa, proposal) for proposal in single_protocols(entry)):
        return f"{_AH_AND_NAT} ({entry.where})"
    return f"AH and ESP on one packet cannot be agreed on by IKEv2: name a method of one protocol ({entry.where})"


def sides(message: Message) -> tuple[tuple[TrafficSelector, ...], tuple[TrafficSelector, ...]]:
    """Return the selectors of TSi and of TSr, empty where there are none."""
    payloads = message.all(TsPayload)
    tsi = next((payload.selectors for payload in payloads if payload.initiator), ())
    tsr = next((payload.selectors for payload in payloads if not payload.initiator), ())
    return tsi, tsr


def _keys(sa: IkeSa, suite: Suite, ni: bytes, nr: bytes, shared: Secret | None) -> tuple[ChildKeys, ChildKeys]:
    """Return the keys from the exchange's initiator to its responder, and back (section 2.17)."""
    channel = sa.channel
    if channel is None or channel.suite.prf is None:
        raise LocalError("an IKE SA without keys")
    keys = derive_child_keys(suite, channel.keys.sk_d, channel.suite.prf, ni, nr, shared)
    if shared is not None:
        shared.wipe()
    return keys


def _mode_notifies(transport: bool) -> list[Payload]:
    notifies: list[Payload] = [NotifyPayload(NotifyType.ESP_TFC_PADDING_NOT_SUPPORTED)]
    if transport:
        notifies.append(NotifyPayload(NotifyType.USE_TRANSPORT_MODE))
    return notifies


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
