"""The choice of a suite, and the check of a peer's choice (RFC 7296 sections 2.7 and 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ike.constants import name_of
from ike.errors import BadAnswer, InvalidKePayload
from ike.names import (
    alternatives,
    describe,
    describe_offer,
    describe_proposal,
    type_name,
)
from ike.wire.proposals import WireProposal
from policy.proposals import (
    AEAD,
    Encr,
    Esn,
    Group,
    Integ,
    Prf,
    Proposal,
    ProtocolId,
    Suite,
    Transform,
    TransformType,
)

__all__ = [
    "Choice",
    "Difference",
    "Mismatch",
    "check_group",
    "choose",
    "describe",
    "retry_group",
    "verify_answer",
]


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen: *answer* is the proposal for the SA payload, *index* that of our proposal."""

    suite: Suite
    answer: WireProposal
    index: int
    #: The peer's proposal that was chosen; its SPI is the peer's.
    offered: WireProposal


@dataclass(frozen=True, slots=True)
class Difference:
    """Why one offered proposal and one of ours do not meet, in one transform type (None: the protocol)."""

    type: int | None
    wanted: str
    got: str

    def __str__(self) -> str:
        name = "protocol" if self.type is None else type_name(self.type)
        return f"{name} (wanted {self.wanted}, got {self.got})"


@dataclass(frozen=True, slots=True)
class Nearest:
    """For one offered proposal: which of ours comes nearest, and where they differ, first type first."""

    number: int
    index: int
    ours: str
    differences: tuple[Difference, ...]


@dataclass(frozen=True, slots=True)
class Mismatch:
    """No offered proposal is acceptable. *nearest* has an entry for each offered proposal, in order."""

    offer: str
    accepted: str
    nearest: tuple[Nearest, ...]

    def __str__(self) -> str:
        """Return one line that tells the operator what to change."""
        line = f"peer offers {self.offer or 'nothing'}; we accept {self.accepted or 'nothing'}"
        if not self.nearest:
            return line
        best = min(self.nearest, key=lambda nearest: _distance(nearest.differences))
        return f"{line}; nearest differs in: {', '.join(map(str, best.differences))}"


def choose(
    offered: Sequence[WireProposal],
    acceptable: Sequence[Proposal],
    *,
    spi: bytes = b"",
    preferred_group: int | None = None,
) -> Choice | Mismatch:
    """Return the first of *acceptable*, in our order of preference, that an offered proposal allows.

    Of each type the answer has exactly the transform that was chosen, as it was offered; *spi* is our SPI in
    it. *preferred_group* is the group of the KE payload that came along: among acceptable groups it wins, which
    saves a round trip. The caller compares it with the suite's group: ``check_group``.
    """
    offers = [_Offer(proposal) for proposal in offered]
    for index, ours in enumerate(acceptable):
        for theirs in offers:
            result = _match(theirs, ours, preferred_group)
            if isinstance(result, _Match):
                proposal = theirs.proposal
                answer = WireProposal(proposal.number, proposal.protocol, spi, result.transforms)
                return Choice(result.suite, answer, index, proposal)
    return Mismatch(
        describe_offer(offered),
        ", ".join(describe_proposal(ours) for ours in acceptable),
        tuple(_nearest(theirs, acceptable) for theirs in offers if acceptable),
    )


def verify_answer(sent: Sequence[WireProposal], answer: Sequence[WireProposal]) -> Suite:
    """Return the suite that the responder chose from what we *sent*. BadAnswer if it did not choose from it.

    Exactly one proposal with the number of one of ours, exactly one transform of each type that we offered
    there, each of them as we sent it (section 3.3.6); a type that we offered with NONE may be left out.
    """
    if len(answer) != 1:
        raise BadAnswer(f"{len(answer)} proposals in the answer")
    chosen = answer[0]
    ours = next((proposal for proposal in sent if proposal.number == chosen.number), None)
    if ours is None:
        raise BadAnswer(f"the answer's proposal number is {chosen.number}")
    if chosen.protocol != ours.protocol:
        raise BadAnswer(f"the answer's protocol is {chosen.protocol}")
    if len(chosen.spi) != len(ours.spi):
        raise BadAnswer(f"the answer's SPI has {len(chosen.spi)} octets")
    if chosen.opaque:
        raise BadAnswer("the answer has attributes that were not sent")
    for transform in chosen.transforms:
        if transform not in ours.transforms:
            raise BadAnswer(f"the answer has {alternatives([transform])}, which was not offered")
    for kind in ours.types:
        count = len(chosen.of_type(kind))
        if count > 1 or (count == 0 and not _optional(ours.of_type(kind))):
            raise BadAnswer(f"the answer has {count} transforms for {type_name(kind)}")
    return _suite(ours.protocol, chosen.transforms)


def check_group(suite: Suite, group: int | None) -> None:
    """Raise InvalidKePayload unless the KE payload's *group* (None: there is none) is the chosen one.

    A suite without key exchange ignores the KE payload (section 3.3.6).
    """
    if suite.group is not Group.NONE and group != suite.group:
        raise InvalidKePayload(suite.group)


def retry_group(sent: Sequence[WireProposal], data: bytes, tried: int) -> Group:
    """Return the group that INVALID_KE_PAYLOAD's *data* asks for. BadAnswer unless we offered it too.

    Any other group would let an attacker steer us to one that we do not want (section 1.2).
    """
    group = int.from_bytes(data, "big")
    wanted = Transform(TransformType.KE, group)
    if len(data) != 2 or group in (tried, Group.NONE) or not any(wanted in ours.transforms for ours in sent):
        raise BadAnswer(f"the peer wants key exchange method {group}, which was not offered or was just tried")
    return Group(group)


class _Offer:
    """One offered proposal, indexed once: what a stranger offers may be large, and is compared often."""

    __slots__ = ("by_type", "proposal", "there", "types")

    def __init__(self, proposal: WireProposal) -> None:
        self.proposal = proposal
        self.there = frozenset(proposal.transforms)
        self.types = proposal.types
        self.by_type: dict[int, list[Transform]] = {kind: [] for kind in self.types}
        for transform in proposal.transforms:
            self.by_type[transform.type].append(transform)
        for other in proposal.opaque:
            self.by_type[other.type].append(Transform(other.type, other.id))


@dataclass(frozen=True, slots=True)
class _Match:
    suite: Suite
    transforms: tuple[Transform, ...]


@dataclass(frozen=True, slots=True)
class _Gap:
    """A type in which an offer and our proposal do not meet (None: the protocol), put in words only if told."""

    type: int | None
    wanted: Sequence[Transform] = ()


def _match(offer: _Offer, ours: Proposal, preferred_group: int | None) -> _Match | list[_Gap]:
    """Choose one transform of each type, or tell every type that differs."""
    if offer.proposal.protocol != ours.protocol:
        return [_Gap(None)]
    first: list[_Gap] | None = None
    for cipher in _ciphers(offer, ours):
        result = _match_cipher(offer, ours, cipher, preferred_group)
        if isinstance(result, _Match):
            return result
        first = first or result
    return first or []


def _ciphers(offer: _Offer, ours: Proposal) -> list[Transform | _Gap | None]:
    """Return every cipher that could be chosen, in our order: the rest may depend on it."""
    common: list[Transform | _Gap | None] = [cipher for cipher in ours.encr if cipher in offer.there]
    return common or [_pick(offer, TransformType.ENCR, ours.encr, required=False)]


def _match_cipher(
    offer: _Offer, ours: Proposal, cipher: Transform | _Gap | None, preferred_group: int | None
) -> _Match | list[_Gap]:
    """Choose one transform of each other type, or tell every type that differs."""
    choices = [cipher]
    ike = ours.protocol is ProtocolId.IKE
    choices.append(_pick(offer, TransformType.PRF, _transforms(TransformType.PRF, ours.prf), required=ike))
    if not isinstance(cipher, _Gap):  # what integrity is wanted depends on the cipher
        combined = cipher is not None and cipher.id in _COMBINED
        integ = () if combined else _transforms(TransformType.INTEG, ours.integ)
        choices.append(_pick(offer, TransformType.INTEG, integ, required=not combined))
    groups = _transforms(TransformType.KE, sorted(ours.groups, key=lambda group: group != preferred_group))
    choices.append(_pick(offer, TransformType.KE, groups, required=ike))
    esn = () if ike else _transforms(TransformType.ESN, ours.esn or (Esn.NO,))
    choices.append(_pick(offer, TransformType.ESN, esn, required=not ike))
    choices += [_Gap(kind) for kind in offer.types if kind not in _KNOWN]
    gaps = [choice for choice in choices if isinstance(choice, _Gap)]
    chosen = tuple(choice for choice in choices if isinstance(choice, Transform))
    return gaps or _Match(_suite(ours.protocol, chosen), chosen)


_KNOWN = frozenset(TransformType)
#: Ciphers that no integrity algorithm goes with.
_COMBINED = AEAD | {Encr.NULL_AUTH_AES_GMAC}
#: Types whose number 0 is NONE: to offer it, or to leave the type out, says the same (section 3.3.6).
_NONES = frozenset({TransformType.INTEG, TransformType.KE})


def _pick(offer: _Offer, kind: int, wanted: Sequence[Transform], *, required: bool) -> Transform | _Gap | None:
    """Return the first wanted transform that is offered; None if the type is neither wanted nor offered.

    *required*: neither NONE nor nothing will do, whatever is wanted.
    """
    none = Transform(kind, 0)
    if required and kind in _NONES:
        wanted = [transform for transform in wanted if transform != none]
    choice = next((transform for transform in wanted if transform in offer.there), None)
    if choice is not None:
        return choice
    if not required and (not wanted or (kind in _NONES and none in wanted)):
        if kind in _NONES and none in offer.there:
            return none
        if kind not in offer.by_type:
            return None
    return _Gap(kind, wanted)


def _transforms(kind: TransformType, numbers: Sequence[int]) -> tuple[Transform, ...]:
    return tuple(Transform(kind, number) for number in numbers)


def _optional(transforms: tuple[Transform, ...]) -> bool:
    return any(transform.type in _NONES and transform.id == 0 for transform in transforms)


def _nearest(offer: _Offer, acceptable: Sequence[Proposal]) -> Nearest:
    candidates: list[tuple[int, Proposal, list[_Gap]]] = []
    for index, ours in enumerate(acceptable):
        result = _match(offer, ours, None)
        candidates.append((index, ours, [] if isinstance(result, _Match) else result))
    index, ours, gaps = min(candidates, key=lambda candidate: _distance(candidate[2]))
    differences = tuple(_difference(offer, ours, gap) for gap in gaps)
    return Nearest(offer.proposal.number, index, describe_proposal(ours), differences)


def _difference(offer: _Offer, ours: Proposal, gap: _Gap) -> Difference:
    if gap.type is None:
        return Difference(None, ours.protocol.name, name_of(ProtocolId, offer.proposal.protocol))
    return Difference(gap.type, alternatives(gap.wanted), alternatives(offer.by_type.get(gap.type, [])))


def _distance(parts: Sequence[_Gap] | Sequence[Difference]) -> tuple[bool, int]:
    """Another protocol is farther than any number of transforms."""
    return any(part.type is None for part in parts), len(parts)


def _suite(protocol: int, transforms: Sequence[Transform]) -> Suite:
    """Return the suite of transforms that we know, at most one of each type."""
    by_type = {transform.type: transform for transform in transforms}
    encr, prf = by_type.get(TransformType.ENCR), by_type.get(TransformType.PRF)
    integ, group = by_type.get(TransformType.INTEG), by_type.get(TransformType.KE)
    esn = by_type.get(TransformType.ESN)
    return Suite(
        ProtocolId(protocol),
        encr=None if encr is None else Encr(encr.id),
        key_bits=0 if encr is None else encr.key_bits or 0,
        integ=Integ.NONE if integ is None else Integ(integ.id),
        prf=None if prf is None else Prf(prf.id),
        group=Group.NONE if group is None else Group(group.id),
        esn=esn is not None and esn.id == Esn.YES,
    )
