"""The table of payloads that a message may and must have, and the function that interprets it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ike.constants import ExchangeType, NotifyType, PayloadType
from ike.errors import InvalidSyntax, WireError
from ike.wire.message import MAX_PAYLOADS, Message, encode_message, parse_message
from ike.wire.payloads import CertPayload, IdPayload, NotifyPayload, Payload, TsPayload, UnknownPayload
from ike.wire.protected import Reassembler, open_message, seal
from ike.wire.rules import MAX_CERTIFICATES, SHAPES, check
from tests.support.ike_messages import (
    AUTH,
    DELETE,
    EVERY_PAYLOAD,
    EXCHANGES,
    ID_I,
    ID_R,
    IKE_SA,
    KE,
    NONCE,
    NOTIFY,
    TS_I,
    TS_R,
    VENDOR,
    cipher,
    header,
)

INIT = ExchangeType.IKE_SA_INIT
KNOWN = [payload for payload in EVERY_PAYLOAD if not isinstance(payload, UnknownPayload)]


def message(exchange: int, response: bool, payloads: tuple[Payload, ...], protect: bool | None = None) -> Message:
    """Return the message as it is after parsing and, unless it is IKE_SA_INIT, opening."""
    head = header(exchange, response=response)
    if not (exchange != INIT if protect is None else protect):
        return parse_message(encode_message(head, payloads))
    whole = open_message(cipher(), parse_message(seal(cipher(), head, payloads)), Reassembler())
    assert whole is not None
    return whole


def legal(exchange: int, response: bool, payloads: tuple[Payload, ...]) -> bool:
    received = message(exchange, response, payloads)
    try:
        check(received)
    except WireError as error:
        # Only what is authenticated costs the IKE SA.
        if type(error) is not (InvalidSyntax if received.opened else WireError):
            raise
        return False
    return True


def count(payloads: tuple[Payload, ...], kind: int) -> int:
    return sum(payload.payload_type == kind for payload in payloads)


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_legal_messages_in_any_order(exchange: tuple[ExchangeType, bool]) -> None:
    payloads = EXCHANGES[exchange]
    assert legal(*exchange, payloads)
    assert legal(*exchange, payloads[::-1])
    assert legal(*exchange, (UnknownPayload(200, False, b""), *payloads, UnknownPayload(13, False, b"")))


#: What may not be left out, by RFC 7296 sections 1.2 to 1.4.
MANDATORY: dict[tuple[ExchangeType, bool], set[PayloadType]] = {
    (INIT, False): {PayloadType.SA, PayloadType.KE, PayloadType.NONCE},
    (INIT, True): {PayloadType.SA, PayloadType.KE, PayloadType.NONCE},
    (ExchangeType.IKE_AUTH, False): {PayloadType.IDi, PayloadType.SA, PayloadType.TSi, PayloadType.TSr},
    (ExchangeType.IKE_AUTH, True): {PayloadType.IDr},
    (ExchangeType.CREATE_CHILD_SA, False): {PayloadType.SA, PayloadType.NONCE},
    (ExchangeType.CREATE_CHILD_SA, True): {PayloadType.SA, PayloadType.NONCE},
    (ExchangeType.INFORMATIONAL, False): set(),
    (ExchangeType.INFORMATIONAL, True): set(),
}
#: What may come more than once.
REPEATABLE: dict[ExchangeType, set[PayloadType]] = {
    INIT: {PayloadType.NOTIFY, PayloadType.VENDOR, PayloadType.CERTREQ},
    ExchangeType.IKE_AUTH: {PayloadType.NOTIFY, PayloadType.VENDOR, PayloadType.CERT, PayloadType.CERTREQ},
    ExchangeType.CREATE_CHILD_SA: {PayloadType.NOTIFY, PayloadType.VENDOR},
    ExchangeType.INFORMATIONAL: {PayloadType.NOTIFY, PayloadType.VENDOR, PayloadType.DELETE},
}
#: Types that stand or fall together.
PAIRS: dict[tuple[ExchangeType, bool], set[PayloadType]] = {
    (ExchangeType.IKE_AUTH, True): {PayloadType.SA, PayloadType.TSi, PayloadType.TSr},
    (ExchangeType.CREATE_CHILD_SA, False): {PayloadType.TSi, PayloadType.TSr},
    (ExchangeType.CREATE_CHILD_SA, True): {PayloadType.TSi, PayloadType.TSr},
}


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_delete_each_payload(exchange: tuple[ExchangeType, bool]) -> None:
    """CVE-2013-6467, CVE-2023-21758: a mandatory payload is missing."""
    payloads = EXCHANGES[exchange]
    for index, missing in enumerate(payloads):
        rest = payloads[:index] + payloads[index + 1 :]
        needed = missing.payload_type in MANDATORY[exchange] | PAIRS.get(exchange, set())
        assert legal(*exchange, rest) is not needed, missing


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_duplicate_each_payload(exchange: tuple[ExchangeType, bool]) -> None:
    """CVE-2013-6467: a payload is repeated."""
    payloads = EXCHANGES[exchange]
    for extra in payloads:
        repeatable = extra.payload_type in REPEATABLE[exchange[0]]
        assert legal(*exchange, (*payloads, extra)) is repeatable, extra


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_add_each_payload(exchange: tuple[ExchangeType, bool]) -> None:
    """CVE-2015-3991 and class 3: a payload of another exchange."""
    payloads = EXCHANGES[exchange]
    allowed = {rule.payload: rule.maximum for rule in SHAPES[exchange].rules}
    for extra in KNOWN:
        kind = PayloadType(extra.payload_type)
        if kind in PAIRS.get(exchange, set()):
            continue
        fits = count(payloads, kind) < allowed.get(kind, 0)
        assert legal(*exchange, (*payloads, extra)) is fits, extra


def test_swap_the_identities() -> None:
    assert not legal(ExchangeType.IKE_AUTH, False, (IdPayload(False, ID_I.identity), AUTH, IKE_SA, TS_I, TS_R))
    assert not legal(ExchangeType.IKE_AUTH, True, (ID_I, AUTH))
    twice = (TS_I, TsPayload(True, TS_R.selectors))
    assert not legal(ExchangeType.CREATE_CHILD_SA, False, (IKE_SA, NONCE, *twice))


@pytest.mark.parametrize("exchange", [key for key in EXCHANGES if key[0] != INIT])
def test_only_notifies_come_in_the_clear(exchange: tuple[ExchangeType, bool]) -> None:
    """CVE-2019-10155: what is not protected is refused, INFORMATIONAL's notify (section 1.5) aside."""
    for payload in KNOWN:
        received = message(*exchange, (payload,), protect=False)
        if exchange[0] == ExchangeType.INFORMATIONAL and payload is NOTIFY:
            check(received)
        else:
            with pytest.raises(WireError):
                check(received)


@pytest.mark.parametrize("count", [MAX_CERTIFICATES - 1, MAX_CERTIFICATES, MAX_CERTIFICATES + 1])
@pytest.mark.parametrize("response", [False, True])
def test_number_of_certificates(count: int, response: bool) -> None:
    """Class of CVE-2026-12413: N-1, N, N+1."""
    others = tuple(p for p in EXCHANGES[ExchangeType.IKE_AUTH, response] if p.payload_type != PayloadType.CERT)
    received = (*others, *(CertPayload(4, b"c"),) * count)
    assert legal(ExchangeType.IKE_AUTH, response, received) is (count <= MAX_CERTIFICATES)


def test_ike_sa_init_is_not_protected() -> None:
    with pytest.raises(InvalidSyntax):
        check(message(INIT, False, EXCHANGES[INIT, False], protect=True))


def test_a_sealed_message_is_not_legal_yet() -> None:
    data = seal(cipher(), header(ExchangeType.INFORMATIONAL), [DELETE])
    with pytest.raises(WireError):
        check(parse_message(data))


def test_known_payloads_before_the_encrypted_one_are_refused() -> None:
    received = message(ExchangeType.INFORMATIONAL, False, (DELETE,))
    check(replace(received, outer=(UnknownPayload(200, False, b""),)))
    for outer in (NOTIFY, VENDOR, DELETE):
        with pytest.raises(InvalidSyntax):
            check(replace(received, outer=(outer,)))


@pytest.mark.parametrize("exchange", [0, 2, 4, 5, 32, 33, 38, 39, 42, 43, 44, 255])
def test_other_exchanges_are_refused(exchange: int) -> None:
    """IKEv1's Main, Aggressive and Quick Mode among them."""
    for response in (False, True):
        assert not legal(exchange, response, (NOTIFY,))


ERRORS = [
    (INIT, True, NotifyType.INVALID_KE_PAYLOAD, True),
    (INIT, True, NotifyType.NO_PROPOSAL_CHOSEN, True),
    (INIT, True, NotifyType.COOKIE, True),
    (INIT, True, NotifyType.REDIRECT, True),
    (INIT, True, 8191, True),
    (INIT, True, NotifyType.NAT_DETECTION_SOURCE_IP, False),
    (INIT, False, NotifyType.NO_PROPOSAL_CHOSEN, False),
    (INIT, False, NotifyType.COOKIE, False),
    (ExchangeType.IKE_AUTH, True, NotifyType.AUTHENTICATION_FAILED, True),
    (ExchangeType.IKE_AUTH, True, NotifyType.COOKIE, False),
    (ExchangeType.IKE_AUTH, False, NotifyType.AUTHENTICATION_FAILED, False),
    (ExchangeType.CREATE_CHILD_SA, True, NotifyType.TEMPORARY_FAILURE, True),
    (ExchangeType.CREATE_CHILD_SA, True, NotifyType.ADDITIONAL_TS_POSSIBLE, False),
    (ExchangeType.CREATE_CHILD_SA, False, NotifyType.TEMPORARY_FAILURE, False),
]


@pytest.mark.parametrize(("exchange", "response", "notify", "waived"), ERRORS)
def test_an_error_excuses_what_a_response_lacks(exchange: int, response: bool, notify: int, waived: bool) -> None:
    assert legal(exchange, response, (NotifyPayload(notify),)) is waived
    # It does not excuse what is too much.
    if waived:
        assert not legal(exchange, response, (NotifyPayload(notify), KE, KE))


def test_child_failure_in_ike_auth_leaves_the_identity() -> None:
    """Section 1.2: IDr, AUTH and the error, without SA and TS."""
    failure = NotifyPayload(NotifyType.NO_PROPOSAL_CHOSEN)
    assert legal(ExchangeType.IKE_AUTH, True, (ID_R, AUTH, failure))


def test_notifies_are_bounded_by_the_message_alone() -> None:
    assert legal(ExchangeType.INFORMATIONAL, False, (NOTIFY,) * MAX_PAYLOADS)
    init = EXCHANGES[INIT, False][:3]
    assert legal(INIT, False, init + (NOTIFY,) * (MAX_PAYLOADS - 3))


def test_the_table_is_whole() -> None:
    assert set(SHAPES) == set(EXCHANGES)
    for shape in SHAPES.values():
        kinds = [rule.payload for rule in shape.rules]
        assert len(kinds) == len(set(kinds))
        for rule in shape.rules:
            assert 0 <= rule.minimum <= rule.maximum <= MAX_PAYLOADS
            assert rule.payload not in (PayloadType.SK, PayloadType.SKF, PayloadType.NONE)
