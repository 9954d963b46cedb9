"""Payloads as values (RFC 7296 sections 3.3 to 3.16); each knows its type and encodes its body.

Nothing here is validated twice: ``parse_payload`` is the only way from octets, and what it returns is complete.
RESERVED fields are zero on sending and ignored on receipt (section 2.5).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, TypeAlias

from ike.constants import ERROR_NOTIFY_LIMIT, NotifyType, PayloadType, ProtocolId, name_of
from ike.errors import UnsupportedCriticalPayload, WireError
from ike.wire.cursor import Cursor
from ike.wire.proposals import WireProposal, encode_proposals, parse_proposals
from ike.wire.selectors import encode_selectors, parse_selectors
from policy.pad import Identity
from policy.selectors import TrafficSelector

#: Nonce lengths (RFC 7296 section 3.9).
MIN_NONCE, MAX_NONCE = 16, 256

_NO_RESERVED = bytes(3)


@dataclass(frozen=True, slots=True)
class SaPayload:
    """Security Association (section 3.3)."""

    payload_type: ClassVar[int] = PayloadType.SA
    proposals: tuple[WireProposal, ...]

    def encode_body(self) -> bytes:
        """Return the octets after the generic payload header."""
        return encode_proposals(self.proposals)


@dataclass(frozen=True, slots=True)
class KePayload:
    """Key Exchange (section 3.4). The length is checked where the group is: in the key exchange."""

    payload_type: ClassVar[int] = PayloadType.KE
    group: int
    data: bytes

    def encode_body(self) -> bytes:
        """Return the octets after the generic payload header."""
        return self.group.to_bytes(2, "big") + bytes(2) + self.data


@dataclass(frozen=True, slots=True)
class NoncePayload:
    """Nonce (section 3.9), 16 to 256 octets."""

    payload_type: ClassVar[int] = PayloadType.NONCE
    data: bytes

    def encode_body(self) -> bytes:
        """Return the octets after the generic payload header."""
        return self.data


@dataclass(frozen=True, slots=True)
class IdPayload:
    """Identification, IDi or IDr (section 3.5)."""

    initiator: bool
    identity: Identity
    #: RESERVED as received: AUTH covers it (section 2.15).
    reserved: bytes = field(default=_NO_RESERVED, compare=False, repr=False)

    @property
    def payload_type(self) -> int:
        """IDi or IDr."""
        return PayloadType.IDi if self.initiator else PayloadType.IDr

    @property
    def signed_body(self) -> bytes:
        """RestOfInitIDPayload or RestOfRespIDPayload as it stood in the message (section 2.15)."""
        return bytes([self.identity.type]) + self.reserved + self.identity.data

    def encode_body(self) -> bytes:
        """Return the octets after the generic payload header."""
        return bytes([self.identity.type]) + _NO_RESERVED + self.identity.data


@dataclass(frozen=True, slots=True)
class AuthPayload:
    """Authentication (section 3.8)."""

    payload_type: ClassVar[int] = PayloadType.AUTH
    method: int
    data: bytes

    def encode_body(self) -> bytes:
        """Return the octets after the generic payload header."""
        return bytes([self.method]) + _NO_RESERVED + self.data


@dataclass(frozen=True, slots=True)
class NotifyPayload:
    """Notify (section 3.10)."""

    payload_type: ClassVar[int] = PayloadType.NOTIFY
    type: int
    protocol: int = 0
    spi: bytes = b""
    data: bytes = b""

    @property
    def is_error(self) -> bool:
        """Whether it reports an error; types that are not known count too (section 3.10.1)."""
        return self.type < ERROR_NOTIFY_LIMIT

    def encode_body(self) -> bytes:
        """Return the octets after the generic payload header."""
        return bytes([self.protocol, len(self.spi)]) + self.type.to_bytes(2, "big") + self.spi + self.data

    def __str__(self) -> str:
        return name_of(NotifyType, self.type)


@dataclass(frozen=True, slots=True)
class DeletePayload:
    """Delete (section 3.11): the SPIs that the sender receives on, or none for the IKE SA itself."""

    payload_type: ClassVar[int] = PayloadType.DELETE
    protocol: int
    spis: tuple[bytes, ...] = ()

    def encode_body(self) -> bytes:
        """Return the octets after the generic payload header."""
        size = len(self.spis[0]) if self.spis else 0 if self.protocol == ProtocolId.IKE else 4
        return bytes([self.protocol, size]) + len(self.spis).to_bytes(2, "big") + b"".join(self.spis)


@dataclass(frozen=True, slots=True)
class VendorIdPayload:
    """Vendor ID (section 3.12)."""

    payload_type: ClassVar[int] = PayloadType.VENDOR
    data: bytes

    def encode_body(self) -> bytes:
        """Return the octets after the generic payload header."""
        return self.data


@dataclass(frozen=True, slots=True)
class TsPayload:
    """Traffic Selector, TSi or TSr (section 3.13). *skipped* counts selectors of unknown types."""

    initiator: bool
    selectors: tuple[TrafficSelector, ...]
    skipped: int = 0

    @property
    def payload_type(self) -> int:
        """TSi or TSr."""
        return PayloadType.TSi if self.initiator else PayloadType.TSr

    def encode_body(self) -> bytes:
        """Return the octets after the generic payload header."""
        return encode_selectors(self.selectors)


@dataclass(frozen=True, slots=True)
class CertPayload:
    """Certificate (section 3.6)."""

    payload_type: ClassVar[int] = PayloadType.CERT
    encoding: int
    data: bytes

    def encode_body(self) -> bytes:
        """Return the octets after the generic payload header."""
        return bytes([self.encoding]) + self.data


@dataclass(frozen=True, slots=True)
class CertReqPayload:
    """Certificate Request (section 3.7)."""

    payload_type: ClassVar[int] = PayloadType.CERTREQ
    encoding: int
    authorities: bytes

    def encode_body(self) -> bytes:
        """Return the octets after the generic payload header."""
        return bytes([self.encoding]) + self.authorities


@dataclass(frozen=True, slots=True)
class ConfigPayload:
    """Configuration (section 3.15): attribute types and their values."""

    payload_type: ClassVar[int] = PayloadType.CP
    type: int
    attributes: tuple[tuple[int, bytes], ...] = ()

    def encode_body(self) -> bytes:
        """Return the octets after the generic payload header."""
        return (
            bytes([self.type])
            + _NO_RESERVED
            + b"".join(
                kind.to_bytes(2, "big") + len(value).to_bytes(2, "big") + value for kind, value in self.attributes
            )
        )


@dataclass(frozen=True, slots=True)
class EapPayload:
    """Extensible Authentication (section 3.16), opaque."""

    payload_type: ClassVar[int] = PayloadType.EAP
    data: bytes

    def encode_body(self) -> bytes:
        """Return the octets after the generic payload header."""
        return self.data


@dataclass(frozen=True, slots=True)
class UnknownPayload:
    """A payload of a type that we do not know. One with the critical bit never gets here on receipt."""

    type: int
    critical: bool
    data: bytes

    @property
    def payload_type(self) -> int:
        """The unknown number."""
        return self.type

    def encode_body(self) -> bytes:
        """Return the octets after the generic payload header."""
        return self.data


Payload: TypeAlias = (
    SaPayload
    | KePayload
    | NoncePayload
    | IdPayload
    | AuthPayload
    | NotifyPayload
    | DeletePayload
    | VendorIdPayload
    | TsPayload
    | CertPayload
    | CertReqPayload
    | ConfigPayload
    | EapPayload
    | UnknownPayload
)


def parse_payload(kind: int, critical: bool, cursor: Cursor) -> Payload:
    """Return the payload of type *kind* whose body *cursor* covers exactly.

    The critical bit of a known type is ignored. Raises WireError, and UnsupportedCriticalPayload (section 2.5).
    """
    parser = _PARSERS.get(kind)
    if parser is None:
        if critical:
            raise UnsupportedCriticalPayload(kind)
        return UnknownPayload(kind, False, cursor.rest())
    payload = parser(cursor)
    cursor.finish()
    return payload


def _sa(cursor: Cursor) -> Payload:
    return SaPayload(parse_proposals(cursor))


def _ke(cursor: Cursor) -> Payload:
    group = cursor.u16()
    cursor.take(2)  # RESERVED
    data = cursor.rest()
    if not data:
        raise WireError("KE payload without data")
    return KePayload(group, data)


def _nonce(cursor: Cursor) -> Payload:
    if not MIN_NONCE <= cursor.left <= MAX_NONCE:
        raise WireError(f"nonce of {cursor.left} octets")
    return NoncePayload(cursor.rest())


def _identification(initiator: bool) -> Callable[[Cursor], Payload]:
    def parse(cursor: Cursor) -> Payload:
        kind, reserved = cursor.u8(), cursor.take(3)
        return IdPayload(initiator, Identity(kind, cursor.rest()), reserved)

    return parse


def _auth(cursor: Cursor) -> Payload:
    method = cursor.u8()
    cursor.take(3)  # RESERVED
    return AuthPayload(method, cursor.rest())


def _notify(cursor: Cursor) -> Payload:
    protocol, size, kind = cursor.u8(), cursor.u8(), cursor.u16()
    spi = cursor.take(size)
    return NotifyPayload(kind, protocol, spi, cursor.rest())


def _delete(cursor: Cursor) -> Payload:
    protocol, size, count = cursor.u8(), cursor.u8(), cursor.u16()
    if protocol == ProtocolId.IKE:
        if size or count:
            raise WireError("Delete of an IKE SA with SPIs")
    elif protocol in (ProtocolId.AH, ProtocolId.ESP) and size != 4:
        raise WireError(f"Delete with SPIs of {size} octets")
    if not size and count:
        raise WireError("Delete with empty SPIs")
    return DeletePayload(protocol, tuple(cursor.take(size) for _ in range(count)))


def _vendor(cursor: Cursor) -> Payload:
    return VendorIdPayload(cursor.rest())


def _selectors(initiator: bool) -> Callable[[Cursor], Payload]:
    def parse(cursor: Cursor) -> Payload:
        return TsPayload(initiator, *parse_selectors(cursor))

    return parse


def _cert(cursor: Cursor) -> Payload:
    return CertPayload(cursor.u8(), cursor.rest())


def _certreq(cursor: Cursor) -> Payload:
    return CertReqPayload(cursor.u8(), cursor.rest())


def _config(cursor: Cursor) -> Payload:
    kind = cursor.u8()
    cursor.take(3)  # RESERVED
    attributes: list[tuple[int, bytes]] = []
    while cursor.left:
        attribute = cursor.u16() & 0x7FFF  # the top bit is RESERVED
        attributes.append((attribute, cursor.take(cursor.u16())))
    return ConfigPayload(kind, tuple(attributes))


def _eap(cursor: Cursor) -> Payload:
    return EapPayload(cursor.rest())


_PARSERS: dict[int, Callable[[Cursor], Payload]] = {
    PayloadType.SA: _sa,
    PayloadType.KE: _ke,
    PayloadType.IDi: _identification(initiator=True),
    PayloadType.IDr: _identification(initiator=False),
    PayloadType.CERT: _cert,
    PayloadType.CERTREQ: _certreq,
    PayloadType.AUTH: _auth,
    PayloadType.NONCE: _nonce,
    PayloadType.NOTIFY: _notify,
    PayloadType.DELETE: _delete,
    PayloadType.VENDOR: _vendor,
    PayloadType.TSi: _selectors(initiator=True),
    PayloadType.TSr: _selectors(initiator=False),
    PayloadType.CP: _config,
    PayloadType.EAP: _eap,
}
