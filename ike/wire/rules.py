"""Which payloads a message may and must have (RFC 7296 sections 1.2 to 1.5, appendix C), as a table.

``check`` is the one function that interprets it. What depends on state (message IDs, roles, which notify is
allowed when) belongs to the state machine.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from ike.constants import ExchangeType, NotifyType, PayloadType, name_of
from ike.errors import InvalidSyntax, WireError
from ike.wire.message import MAX_PAYLOADS, Message
from ike.wire.payloads import UnknownPayload

MAX_CERTIFICATES = 8


@dataclass(frozen=True, slots=True)
class Rule:
    """How often a payload type occurs. *encrypted*: it must stand inside the Encrypted payload."""

    payload: PayloadType
    minimum: int
    maximum: int
    encrypted: bool = True


@dataclass(frozen=True, slots=True)
class Shape:
    """What one exchange looks like in one direction.

    *together*: types that occur equally often. *waived_by*: status notifies that, like any error notify, excuse
    the payloads that are missing.
    """

    rules: tuple[Rule, ...]
    together: tuple[tuple[PayloadType, ...], ...] = ()
    waived_by: tuple[NotifyType, ...] = ()


_P = PayloadType
_ANY = MAX_PAYLOADS

_INIT = (
    Rule(_P.SA, 1, 1, encrypted=False),
    Rule(_P.KE, 1, 1, encrypted=False),
    Rule(_P.NONCE, 1, 1, encrypted=False),
    Rule(_P.NOTIFY, 0, _ANY, encrypted=False),
    Rule(_P.VENDOR, 0, _ANY, encrypted=False),
)
_COMMON = (Rule(_P.NOTIFY, 0, _ANY), Rule(_P.VENDOR, 0, _ANY), Rule(_P.CP, 0, 1))
_AUTH = (Rule(_P.CERT, 0, MAX_CERTIFICATES), Rule(_P.AUTH, 0, 1), Rule(_P.EAP, 0, 1), *_COMMON)
_CREATE = (
    Rule(_P.SA, 1, 1),
    Rule(_P.NONCE, 1, 1),
    Rule(_P.KE, 0, 1),
    Rule(_P.TSi, 0, 1),
    Rule(_P.TSr, 0, 1),
    *_COMMON,
)
_INFORMATIONAL = (
    # A notify about an unknown SPI comes in the clear (section 1.5); the state machine only ever hints at it.
    Rule(_P.NOTIFY, 0, _ANY, encrypted=False),
    Rule(_P.VENDOR, 0, _ANY),
    Rule(_P.DELETE, 0, _ANY),
    Rule(_P.CP, 0, 1),
)

#: (exchange, response) -> shape.
SHAPES: dict[tuple[int, bool], Shape] = {
    (ExchangeType.IKE_SA_INIT, False): Shape((*_INIT, Rule(_P.CERTREQ, 0, _ANY, encrypted=False))),
    (ExchangeType.IKE_SA_INIT, True): Shape(
        (*_INIT, Rule(_P.CERTREQ, 0, _ANY, encrypted=False)),
        waived_by=(NotifyType.COOKIE, NotifyType.REDIRECT),
    ),
    (ExchangeType.IKE_AUTH, False): Shape(
        (
            Rule(_P.IDi, 1, 1),
            Rule(_P.IDr, 0, 1),
            Rule(_P.CERTREQ, 0, _ANY),
            Rule(_P.SA, 1, 1),
            Rule(_P.TSi, 1, 1),
            Rule(_P.TSr, 1, 1),
            *_AUTH,
        ),
    ),
    (ExchangeType.IKE_AUTH, True): Shape(
        (Rule(_P.IDr, 1, 1), Rule(_P.SA, 0, 1), Rule(_P.TSi, 0, 1), Rule(_P.TSr, 0, 1), *_AUTH),
        together=((_P.SA, _P.TSi, _P.TSr),),
    ),
    (ExchangeType.CREATE_CHILD_SA, False): Shape(_CREATE, together=((_P.TSi, _P.TSr),)),
    (ExchangeType.CREATE_CHILD_SA, True): Shape(_CREATE, together=((_P.TSi, _P.TSr),)),
    (ExchangeType.INFORMATIONAL, False): Shape(_INFORMATIONAL),
    (ExchangeType.INFORMATIONAL, True): Shape(_INFORMATIONAL),
}


def check(message: Message) -> None:
    """Raise if the payloads of *message* are not what its exchange and direction allow.

    A protected message must have been opened: that is InvalidSyntax if it fails, WireError otherwise. Payloads
    of unknown types are skipped (section 2.5).
    """
    error = InvalidSyntax if message.opened else WireError
    header = message.header
    exchange = name_of(ExchangeType, header.exchange)
    where = f"{exchange} {'response' if header.response else 'request'}"
    shape = SHAPES.get((header.exchange, header.response))
    if shape is None:
        raise error(f"unknown exchange type {exchange}")
    if message.protected is not None and not message.opened:
        raise error(f"{where} was not opened")
    if any(not isinstance(payload, UnknownPayload) for payload in message.outer):
        raise error(f"{where} with payloads before its Encrypted payload")
    counts = Counter(
        payload.payload_type for payload in message.payloads if not isinstance(payload, UnknownPayload)
    )
    waived = header.response and _waived(message, shape)
    for rule in shape.rules:
        count = counts.pop(rule.payload, 0)
        if count > rule.maximum:
            raise error(f"{where} with {count} {rule.payload.name} payloads")
        if count < rule.minimum and not waived:
            raise error(f"{where} without {rule.payload.name}")
        if count and rule.encrypted and not message.opened:
            raise error(f"{where} with unprotected {rule.payload.name}")
    if counts:
        raise error(f"{where} with {name_of(PayloadType, min(counts))}")
    if message.opened and header.exchange == ExchangeType.IKE_SA_INIT:
        raise error(f"{where} in an Encrypted payload")
    _check_together(message, shape, where, error)


def _check_together(message: Message, shape: Shape, where: str, error: type[WireError]) -> None:
    for types in shape.together:
        if len({len(message.of_type(payload)) for payload in types}) > 1:
            raise error(f"{where} with only some of {', '.join(payload.name for payload in types)}")


def _waived(message: Message, shape: Shape) -> bool:
    return message.error() is not None or any(message.notify(kind) for kind in shape.waived_by)
