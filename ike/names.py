"""Names of transforms, suites and proposals for operators; numbers that we do not know are shown as numbers."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

from ike.wire.proposals import WireProposal
from policy.proposals import Encr, Esn, Group, Integ, Prf, Proposal, ProtocolId, Suite, Transform, TransformType

_TYPES: dict[int, tuple[str, type[IntEnum]]] = {
    TransformType.ENCR: ("encryption", Encr),
    TransformType.PRF: ("PRF", Prf),
    TransformType.INTEG: ("integrity", Integ),
    TransformType.KE: ("key exchange", Group),
    TransformType.ESN: ("sequence numbers", Esn),
}
#: Names that are not the enumeration's, by type and number: members of two enumerations may be equal.
_SPECIAL: dict[tuple[int, int], str] = {
    (TransformType.ENCR, Encr.TRIPLE_DES): "3DES",
    (TransformType.ENCR, Encr.CHACHA20_POLY1305): "ChaCha20-Poly1305",
    (TransformType.INTEG, Integ.NONE): "no integrity",
    (TransformType.KE, Group.NONE): "no key exchange",
    (TransformType.ESN, Esn.NO): "no ESN",
    (TransformType.ESN, Esn.YES): "ESN",
}
#: Alternatives of one type, and proposals, that a message to the operator lists.
_ALTERNATIVES, _PROPOSALS = 4, 3


def describe(suite: Suite) -> str:
    """Return a suite's name: "AES-GCM-16-256/PRF-HMAC-SHA2-384/X25519"."""
    parts: list[Transform] = []
    if suite.encr is not None:
        parts.append(Transform(TransformType.ENCR, suite.encr, suite.key_bits or None))
    if suite.prf is not None:
        parts.append(Transform(TransformType.PRF, suite.prf))
    if suite.integ is not Integ.NONE:
        parts.append(Transform(TransformType.INTEG, suite.integ))
    if suite.group is not Group.NONE:
        parts.append(Transform(TransformType.KE, suite.group))
    if suite.esn:
        parts.append(Transform(TransformType.ESN, Esn.YES))
    return "/".join(transform_name(part) for part in parts)


def transform_name(transform: Transform) -> str:
    """Return a transform's name, with its key length."""
    length = "" if transform.key_bits is None else f"-{transform.key_bits}"
    return _name(transform.type, transform.id) + length


def type_name(transform_type: int) -> str:
    """Return a transform type's name in words."""
    known = _TYPES.get(transform_type)
    return known[0] if known else f"transform type {transform_type}"


def alternatives(transforms: Sequence[Transform]) -> str:
    """Return the names of *transforms*, a few of them: they are what a peer may choose from."""
    names: list[str] = []
    for transform in transforms:
        name = transform_name(transform)
        if name in names:
            continue
        if len(names) == _ALTERNATIVES:
            return "|".join([*names, "..."])
        names.append(name)
    return "|".join(names) or "nothing"


def describe_offer(proposals: Sequence[WireProposal]) -> str:
    """Return a few proposals of a peer in one line of bounded length."""
    texts = [describe_wire(proposal) for proposal in proposals[:_PROPOSALS]]
    return ", ".join(texts) + (", ..." if len(proposals) > _PROPOSALS else "")


def describe_wire(proposal: WireProposal) -> str:
    """Return one proposal of a peer: the alternatives of each type in turn."""
    offered = [*proposal.transforms, *(Transform(other.type, other.id) for other in proposal.opaque)]
    types = [kind for kind in proposal.types if kind != TransformType.ESN or proposal.protocol == ProtocolId.IKE]
    if Transform(TransformType.ESN, Esn.YES) in proposal.transforms:
        types.append(TransformType.ESN)
    return "/".join(
        alternatives([transform for transform in offered if transform.type == kind])
        for kind in types[: _ALTERNATIVES + 1]
    )


def describe_proposal(proposal: Proposal) -> str:
    """Return one of our proposals as the operator wrote it, or in names."""
    if proposal.text:
        return proposal.text
    groups = [
        list(proposal.encr),
        [Transform(TransformType.PRF, prf) for prf in proposal.prf],
        [Transform(TransformType.INTEG, integ) for integ in proposal.integ],
        [Transform(TransformType.KE, group) for group in proposal.groups],
    ]
    return "/".join(alternatives(group) for group in groups if group)


def _name(transform_type: int, number: int) -> str:
    special = _SPECIAL.get((transform_type, number))
    if special is not None:
        return special
    known = _TYPES.get(transform_type)
    if known is None:
        return f"type {transform_type} number {number}"
    try:
        name = known[1](number).name.replace("_", "-")
    except ValueError:
        return f"{known[0]} number {number}"
    return f"PRF-{name}" if transform_type == TransformType.PRF else name
