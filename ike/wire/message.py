"""Messages: a header and a chain of payloads (RFC 7296 sections 3.1 and 3.2).

A protected message is parsed up to its Encrypted (SK) or Encrypted Fragment (SKF) payload and no further:
``ike.wire.protected`` opens that, once the IKE SA is known.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from ike.constants import PayloadType
from ike.errors import LocalError, WireError
from ike.wire.cursor import Cursor
from ike.wire.header import HEADER_LENGTH, MAX_MESSAGE, Header, parse_header
from ike.wire.payloads import NotifyPayload, Payload, UnknownPayload, parse_payload

MAX_PAYLOADS = 64
#: Encrypted Fragment payloads a message, and so fragments a message (RFC 7383 section 2.6 asks for a bound).
MAX_FRAGMENTS = 16
GENERIC_HEADER = 4

_CRITICAL = 0x80
_P = TypeVar("_P", bound=Payload)


@dataclass(frozen=True, slots=True)
class Protected:
    """The Encrypted or Encrypted Fragment payload that ends a message, still sealed.

    *first* is the type of the first inner payload (0 in fragments after the first), *body* is IV, ciphertext
    and integrity check value, *aad* is the message up to the IV. SK has number and total 1.
    """

    kind: int
    first: int
    number: int
    total: int
    body: bytes
    aad: bytes


@dataclass(frozen=True, slots=True)
class Message:
    """A parsed message.

    *payloads* are the ones in the clear, or the inner ones once ``opened``. *protected* stays, so that
    "was it protected" is never forgotten. *octets* is the message as received: AUTH covers it.
    """

    header: Header
    payloads: tuple[Payload, ...]
    protected: Protected | None
    octets: bytes
    #: Whether the integrity check passed and *payloads* are the inner ones.
    opened: bool = False
    #: Payloads that stood before the Encrypted payload, after opening.
    outer: tuple[Payload, ...] = ()

    def all(self, kind: type[_P]) -> tuple[_P, ...]:
        """Return the payloads of one class."""
        return tuple(payload for payload in self.payloads if isinstance(payload, kind))

    def first(self, kind: type[_P]) -> _P | None:
        """Return the first payload of one class, or None."""
        return next((payload for payload in self.payloads if isinstance(payload, kind)), None)

    def of_type(self, payload_type: int) -> tuple[Payload, ...]:
        """Return the payloads of one type: it tells IDi from IDr and TSi from TSr."""
        return tuple(payload for payload in self.payloads if payload.payload_type == payload_type)

    def notify(self, kind: int) -> NotifyPayload | None:
        """Return the first notify of type *kind*, or None."""
        return next((notify for notify in self.all(NotifyPayload) if notify.type == kind), None)

    def error(self) -> NotifyPayload | None:
        """Return the first notify that reports an error, or None."""
        return next((notify for notify in self.all(NotifyPayload) if notify.is_error), None)

    def with_inner(self, payloads: tuple[Payload, ...]) -> Message:
        """Return the message after its protected part was opened."""
        if len(self.payloads) + len(payloads) > MAX_PAYLOADS:
            raise WireError(f"more than {MAX_PAYLOADS} payloads")
        return replace(self, payloads=payloads, outer=self.payloads, opened=True)


def parse_message(data: bytes) -> Message:
    """Return the message that *data* is, whole. Raises WireError and its subclasses, nothing else."""
    header = parse_header(data)
    cursor = Cursor(data, HEADER_LENGTH)
    payloads: list[Payload] = []
    for kind, critical, following, body in _walk(header.next_payload, cursor):
        if kind in (PayloadType.SK, PayloadType.SKF):
            cursor.finish()  # it must be the last payload (section 3.14)
            protected = _parse_protected(kind, following, body, data)
            return Message(header, tuple(payloads), protected, data)
        payloads.append(parse_payload(kind, critical, body))
    return Message(header, tuple(payloads), None, data)


def parse_payloads(first: int, data: bytes) -> tuple[Payload, ...]:
    """Return the chain of payloads that *data* is, the first of type *first*: the inside of SK."""
    cursor = Cursor(data)
    payloads: list[Payload] = []
    for kind, critical, _, body in _walk(first, cursor):
        if kind in (PayloadType.SK, PayloadType.SKF):
            raise WireError("an Encrypted payload inside an Encrypted payload")
        payloads.append(parse_payload(kind, critical, body))
    return tuple(payloads)


def encode_message(header: Header, payloads: Sequence[Payload]) -> bytes:
    """Return the unprotected message; next payload and length of *header* are filled in."""
    first, body = encode_payloads(payloads)
    if HEADER_LENGTH + len(body) > MAX_MESSAGE:
        raise LocalError(f"a message of {HEADER_LENGTH + len(body)} octets")
    return header.sized(first, HEADER_LENGTH + len(body)).encode() + body


def encode_payloads(payloads: Sequence[Payload]) -> tuple[int, bytes]:
    """Return the type of the first payload and the chained octets of all."""
    if len(payloads) > MAX_PAYLOADS:
        raise LocalError(f"{len(payloads)} payloads in a message")
    types = [payload.payload_type for payload in payloads] + [PayloadType.NONE]
    parts: list[bytes] = []
    for payload, following in zip(payloads, types[1:], strict=True):
        critical = isinstance(payload, UnknownPayload) and payload.critical
        parts.append(generic_header(following, payload.encode_body(), critical=critical))
    return types[0], b"".join(parts)


def generic_header(following: int, body: bytes, *, critical: bool = False) -> bytes:
    """Return *body* behind its generic payload header (section 3.2)."""
    length = GENERIC_HEADER + len(body)
    if length > MAX_MESSAGE:
        raise LocalError(f"a payload of {length} octets")
    return bytes([following, _CRITICAL if critical else 0]) + length.to_bytes(2, "big") + body


def _walk(first: int, cursor: Cursor) -> Iterator[tuple[int, bool, int, Cursor]]:
    """Yield type, critical bit, next type and body of each payload; the chain ends with the octets.

    The next payload field of an Encrypted payload names what is inside it: the caller stops there.
    """
    kind, count = first, 0
    while kind != PayloadType.NONE:
        count += 1
        if count > MAX_PAYLOADS:
            raise WireError(f"more than {MAX_PAYLOADS} payloads")
        following, flags, length = cursor.u8(), cursor.u8(), cursor.u16()
        body = cursor.restrict(length - GENERIC_HEADER)
        yield kind, bool(flags & _CRITICAL), following, body
        kind = following
    cursor.finish()


def _parse_protected(kind: int, first: int, body: Cursor, data: bytes) -> Protected:
    number = total = 1
    if kind == PayloadType.SKF:  # RFC 7383 section 2.5
        number, total = body.u16(), body.u16()
        if not 1 <= number <= total:
            raise WireError(f"fragment {number} of {total}")
        if total > MAX_FRAGMENTS:
            raise WireError(f"{total} fragments")
        if (number == 1) != (first != PayloadType.NONE):
            raise WireError(f"fragment {number} says that its first payload is {first}")
    return Protected(kind, first, number, total, data[body.position :], data[: body.position])
