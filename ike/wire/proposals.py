"""Proposals on the wire (RFC 7296 sections 3.3.1 to 3.3.5), and policy's proposals made into them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ike.errors import LocalError, WireError
from ike.wire.cursor import Cursor
from policy.proposals import AEAD, Esn, Proposal, ProtocolId, Transform, TransformType

MAX_PROPOSALS = 16
MAX_TRANSFORMS = 64

_LAST, _MORE_PROPOSALS, _MORE_TRANSFORMS = 0, 2, 3
_PROPOSAL_HEADER, _TRANSFORM_HEADER = 8, 8
_KEY_LENGTH = 14  # attribute type, RFC 7296 section 3.3.5
_ATTRIBUTE_FORMAT = 0x8000
#: SPI sizes by protocol (RFC 7296 section 3.3.1); an IKE SPI is there only when an IKE SA is rekeyed.
_SPI_SIZES = {ProtocolId.IKE: (0, 8), ProtocolId.AH: (4,), ProtocolId.ESP: (4,)}


@dataclass(frozen=True, slots=True)
class OpaqueTransform:
    """A transform whose attributes we do not understand: never acceptable (RFC 7296 section 3.3.6)."""

    type: int
    id: int
    attributes: bytes


@dataclass(frozen=True, slots=True)
class WireProposal:
    """One proposal substructure.

    *opaque* holds the transforms with attributes that are not understood: they count as offered types, are
    never chosen, and are encoded after the others.
    """

    number: int
    protocol: int
    spi: bytes
    transforms: tuple[Transform, ...]
    opaque: tuple[OpaqueTransform, ...] = ()

    def of_type(self, kind: int) -> tuple[Transform, ...]:
        """Return the transforms of one type that can be chosen, in the sender's order of preference."""
        return tuple(transform for transform in self.transforms if transform.type == kind)

    @property
    def types(self) -> tuple[int, ...]:
        """The transform types that are offered, in order of their numbers."""
        chosen = {transform.type for transform in self.transforms}
        return tuple(sorted(chosen | {transform.type for transform in self.opaque}))


def to_wire(proposal: Proposal, number: int, spi: bytes) -> WireProposal:
    """Return policy's *proposal* as the proposal substructure *number*.

    AH and ESP always carry an ESN transform (section 3.3.3): "no ESN" unless the proposal says otherwise.
    Combined-mode ciphers go without integrity.
    LocalError if combined-mode and other ciphers are mixed: they need separate proposals (section 3.3);
    ``offer`` splits them.
    """
    combined = [transform.id in AEAD for transform in proposal.encr]
    if any(combined) and not all(combined):
        raise LocalError("combined-mode and other ciphers in one proposal")
    integ = () if any(combined) else proposal.integ
    esn = proposal.esn
    if proposal.protocol != ProtocolId.IKE and not esn:
        esn = (Esn.NO,)
    transforms = [
        *proposal.encr,
        *(Transform(TransformType.PRF, prf) for prf in proposal.prf),
        *(Transform(TransformType.INTEG, choice) for choice in integ),
        *(Transform(TransformType.KE, group) for group in proposal.groups),
        *(Transform(TransformType.ESN, use) for use in esn),
    ]
    return WireProposal(number, proposal.protocol, spi, tuple(transforms))


def offer(proposals: Sequence[Proposal], spi: bytes) -> tuple[WireProposal, ...]:
    """Return *proposals* numbered from 1, those that mix combined-mode and other ciphers split in two."""
    separate = [part for proposal in proposals for part in _separate(proposal)]
    return tuple(to_wire(proposal, number, spi) for number, proposal in enumerate(separate, 1))


def encode_proposals(proposals: Sequence[WireProposal]) -> bytes:
    """Return the body of an SA payload."""
    last = len(proposals) - 1
    return b"".join(
        _encode_proposal(proposal, _LAST if index == last else _MORE_PROPOSALS)
        for index, proposal in enumerate(proposals)
    )


def parse_proposals(cursor: Cursor) -> tuple[WireProposal, ...]:
    """Return the proposals of an SA payload's body.

    Several proposals are numbered by ones (section 3.3.1); one alone may have any number, it may be an answer.
    """
    proposals: list[WireProposal] = []
    more = True
    while more:
        if len(proposals) == MAX_PROPOSALS:
            raise WireError(f"more than {MAX_PROPOSALS} proposals")
        kind = cursor.u8()
        if kind not in (_LAST, _MORE_PROPOSALS):
            raise WireError(f"proposal substructure type {kind}")
        more = kind == _MORE_PROPOSALS
        proposals.append(_parse_proposal(cursor))
        if proposals[-1].number != proposals[0].number + len(proposals) - 1:
            raise WireError(f"proposal number {proposals[-1].number} out of order")
    cursor.finish()
    return tuple(proposals)


def _separate(proposal: Proposal) -> list[Proposal]:
    aead = tuple(transform for transform in proposal.encr if transform.id in AEAD)
    other = tuple(transform for transform in proposal.encr if transform.id not in AEAD)
    if not aead or not other:
        return [proposal]
    parts = [replace(proposal, encr=aead, integ=()), replace(proposal, encr=other)]
    return parts if proposal.encr[0].id in AEAD else parts[::-1]


def _encode_proposal(proposal: WireProposal, kind: int) -> bytes:
    encoded = [_attributes(transform) for transform in proposal.transforms]
    encoded += [(transform.type, transform.id, transform.attributes) for transform in proposal.opaque]
    last = len(encoded) - 1
    transforms = b"".join(
        bytes([_LAST if index == last else _MORE_TRANSFORMS, 0])
        + (_TRANSFORM_HEADER + len(attributes)).to_bytes(2, "big")
        + bytes([transform_type, 0])
        + transform_id.to_bytes(2, "big")
        + attributes
        for index, (transform_type, transform_id, attributes) in enumerate(encoded)
    )
    length = _PROPOSAL_HEADER + len(proposal.spi) + len(transforms)
    return (
        bytes([kind, 0])
        + length.to_bytes(2, "big")
        + bytes([proposal.number, proposal.protocol, len(proposal.spi), len(encoded)])
        + proposal.spi
        + transforms
    )


def _attributes(transform: Transform) -> tuple[int, int, bytes]:
    if transform.key_bits is None:
        return transform.type, transform.id, b""
    return (
        transform.type,
        transform.id,
        (_ATTRIBUTE_FORMAT | _KEY_LENGTH).to_bytes(2, "big") + transform.key_bits.to_bytes(2, "big"),
    )


def _parse_proposal(outer: Cursor) -> WireProposal:
    outer.u8()  # RESERVED
    length = outer.u16()
    cursor = outer.restrict(length - 4)
    number, protocol, spi_size, count = cursor.u8(), cursor.u8(), cursor.u8(), cursor.u8()
    sizes = _SPI_SIZES.get(protocol)  # type: ignore[call-overload]  # unknown protocols survive
    if sizes is not None and spi_size not in sizes:
        raise WireError(f"SPI of {spi_size} octets for protocol {protocol}")
    if number == 0:
        raise WireError("proposal number 0")
    if not 1 <= count <= MAX_TRANSFORMS:
        raise WireError(f"{count} transforms in a proposal")
    spi = cursor.take(spi_size)
    if spi and not any(spi):
        raise WireError("an SPI of zero in a proposal")
    transforms: list[Transform] = []
    opaque: list[OpaqueTransform] = []
    for left in range(count - 1, -1, -1):
        transform = _parse_transform(cursor, _MORE_TRANSFORMS if left else _LAST)
        if isinstance(transform, Transform):
            transforms.append(transform)
        else:
            opaque.append(transform)
    cursor.finish()
    return WireProposal(number, protocol, spi, tuple(transforms), tuple(opaque))


def _parse_transform(outer: Cursor, expected: int) -> Transform | OpaqueTransform:
    kind = outer.u8()
    if kind != expected:
        raise WireError(f"transform substructure type {kind}, {expected} expected")
    outer.u8()  # RESERVED
    length = outer.u16()
    cursor = outer.restrict(length - 4)
    transform_type = cursor.u8()
    cursor.u8()  # RESERVED
    transform_id = cursor.u16()
    attributes = cursor.rest()
    if not attributes:
        return Transform(transform_type, transform_id)
    key_bits = _parse_attributes(Cursor(attributes))
    if key_bits is None:
        return OpaqueTransform(transform_type, transform_id, attributes)
    return Transform(transform_type, transform_id, key_bits)


def _parse_attributes(cursor: Cursor) -> int | None:
    """Return the Key Length if it is the one attribute there, else None; every length is checked."""
    found: list[tuple[int, int]] = []
    while cursor.left:
        kind, value = cursor.u16(), cursor.u16()
        if not kind & _ATTRIBUTE_FORMAT:
            cursor.take(value)
        found.append((kind, value))
    if len(found) == 1 and found[0][0] == _ATTRIBUTE_FORMAT | _KEY_LENGTH:
        return found[0][1]
    return None
