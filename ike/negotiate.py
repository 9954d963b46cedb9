"""The choice of a suite, and the check of a peer's choice (RFC 7296 sections 2.7 and 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    for index, ours in enumerate(acceptable):
        for proposal in offered:
            result = _match(proposal, ours, preferred_group)
            if isinstance(result, _Match):
                answer = WireProposal(proposal.number, proposal.protocol, spi, result.transforms)
                return Choice(result.suite, answer, index, proposal)
    return Mismatch(
        describe_offer(offered),
        ", ".join(describe_proposal(ours) for ours in acceptable),
        tuple(_nearest(proposal, acceptable, preferred_group) for proposal in offered if acceptable),
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


@dataclass(frozen=True, slots=True)
class _Match:
    suite: Suite
    transforms: tuple[Transform, ...]


def _match(offered: WireProposal, ours: Proposal, preferred_group: int | None) -> _Match | list[Difference]:
    """Choose one transform of each type, or tell every type that differs."""
    if offered.protocol != ours.protocol:
        return [Difference(None, ours.protocol.name, _protocol_name(offered.protocol))]
    results = [_match_cipher(offered, ours, cipher, preferred_group) for cipher in _ciphers(offered, ours)]
    match = next((result for result in results if isinstance(result, _Match)), None)
    return results[0] if match is None else match


def _ciphers(offered: WireProposal, ours: Proposal) -> list[Transform | Difference | None]:
    """Return every cipher that could be chosen, in our order: the rest may depend on it."""
    there = offered.of_type(TransformType.ENCR)
    common: list[Transform | Difference | None] = [transform for transform in ours.encr if transform in there]
    return common or [_pick(offered, TransformType.ENCR, ours.encr, required=False)]


def _match_cipher(
    offered: WireProposal, ours: Proposal, cipher: Transform | Difference | None, preferred_group: int | None
) -> _Match | list[Difference]:
    """Choose one transform of each other type, or tell every type that differs."""
    choices = [cipher]
    ike = ours.protocol is ProtocolId.IKE
    choices.append(
        _pick(offered, TransformType.PRF, _transforms(TransformType.PRF, ours.prf), required=ike),
    )
    if not isinstance(cipher, Difference):  # what integrity is wanted depends on the cipher
        combined = cipher is not None and cipher.id in _COMBINED
        integ = () if combined else _transforms(TransformType.INTEG, ours.integ)
        choices.append(_pick(offered, TransformType.INTEG, integ, required=not combined))
    groups = _transforms(TransformType.KE, sorted(ours.groups, key=lambda group: group != preferred_group))
    choices.append(_pick(offered, TransformType.KE, groups, required=ike))
    esn = () if ike else _transforms(TransformType.ESN, ours.esn or (Esn.NO,))
    choices.append(_pick(offered, TransformType.ESN, esn, required=not ike))
    unknown = [kind for kind in offered.types if kind not in _KNOWN]
    choices += [Difference(kind, "nothing", alternatives(_offered(offered, kind))) for kind in unknown]
    differences = [choice for choice in choices if isinstance(choice, Difference)]
    chosen = tuple(choice for choice in choices if isinstance(choice, Transform))
    return differences or _Match(_suite(offered.protocol, chosen), chosen)


_KNOWN = frozenset(TransformType)
#: Ciphers that no integrity algorithm goes with.
_COMBINED = AEAD | {Encr.NULL_AUTH_AES_GMAC}
#: Types whose number 0 is NONE: to offer it, or to leave the type out, says the same (section 3.3.6).
_NONES = frozenset({TransformType.INTEG, TransformType.KE})


def _pick(
    offered: WireProposal, kind: int, wanted: Sequence[Transform], *, required: bool
) -> Transform | Difference | None:
    """Return the first wanted transform that is offered; None if the type is neither wanted nor offered.

    *required*: neither NONE nor nothing will do, whatever is wanted.
    """
    none = Transform(kind, 0)
    if required and kind in _NONES:
        wanted = [transform for transform in wanted if transform != none]
    there = offered.of_type(kind)
    choice = next((transform for transform in wanted if transform in there), None)
    if choice is not None:
        return choice
    if not required and (not wanted or (kind in _NONES and none in wanted)):
        if kind in _NONES and none in there:
            return none
        if kind not in offered.types:
            return None
    return Difference(kind, alternatives(wanted), alternatives(_offered(offered, kind)))


def _transforms(kind: TransformType, numbers: Sequence[int]) -> tuple[Transform, ...]:
    return tuple(Transform(kind, number) for number in numbers)


def _offered(offered: WireProposal, kind: int) -> list[Transform]:
    opaque = [Transform(other.type, other.id) for other in offered.opaque if other.type == kind]
    return [*offered.of_type(kind), *opaque]


def _optional(transforms: tuple[Transform, ...]) -> bool:
    return any(transform.type in _NONES and transform.id == 0 for transform in transforms)


def _nearest(offered: WireProposal, acceptable: Sequence[Proposal], preferred_group: int | None) -> Nearest:
    candidates: list[Nearest] = []
    for index, ours in enumerate(acceptable):
        result = _match(offered, ours, preferred_group)
        differences = () if isinstance(result, _Match) else tuple(result)
        candidates.append(Nearest(offered.number, index, describe_proposal(ours), differences))
    return min(candidates, key=lambda nearest: _distance(nearest.differences))


def _distance(differences: tuple[Difference, ...]) -> tuple[bool, int]:
    """Another protocol is farther than any number of transforms."""
    return any(difference.type is None for difference in differences), len(differences)


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


def _protocol_name(protocol: int) -> str:
    try:
        return ProtocolId(protocol).name
    except ValueError:
        return f"protocol {protocol}"
