"""Messages: the chain of payloads (RFC 7296 sections 3.1 and 3.2)."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ike.constants import ExchangeType, NotifyType, PayloadType
from ike.errors import LocalError, UnsupportedCriticalPayload, WireError
from ike.wire.header import HEADER_LENGTH, Header
from ike.wire.message import (
    MAX_PAYLOADS,
    encode_message,
    encode_payloads,
    generic_header,
    parse_message,
    parse_payloads,
)
from ike.wire.payloads import IdPayload, NotifyPayload, Payload, TsPayload, UnknownPayload, VendorIdPayload
from tests.support.ike_messages import (
    EVERY_PAYLOAD,
    EXCHANGES,
    ID_I,
    ID_R,
    KE,
    NONCE,
    NOTIFY,
    TS_I,
    TS_R,
    VENDOR,
    header,
    headers,
    payloads,
)


@settings(deadline=None)
@given(headers, st.lists(payloads, max_size=12))
def test_round_trip(head: Header, sent: list[Payload]) -> None:
    data = encode_message(head, sent)
    received = parse_message(data)
    assert received.payloads == tuple(sent)
    assert received.octets == data
    assert (received.protected, received.opened, received.outer) == (None, False, ())
    first = sent[0].payload_type if sent else PayloadType.NONE
    assert received.header == head.sized(first, len(data))


def test_layout() -> None:
    data = encode_message(header(), [NONCE, NotifyPayload(NotifyType.COOKIE, data=b"c")])
    assert data[HEADER_LENGTH - 12] == PayloadType.NONCE
    assert data[HEADER_LENGTH:].hex() == "29000024" + NONCE.data.hex() + "00000009" + "0000400663"
    assert int.from_bytes(data[24:28], "big") == len(data)


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_every_prefix_is_refused(exchange: tuple[ExchangeType, bool]) -> None:
    """CVE-2013-4564: cut off anywhere, with the header's length right or wrong."""
    data = encode_message(header(exchange[0], response=exchange[1]), EXCHANGES[exchange])
    parse_message(data)
    for length in range(len(data)):
        with pytest.raises(WireError):
            parse_message(data[:length])
        if length >= HEADER_LENGTH:
            fixed = data[:24] + length.to_bytes(4, "big") + data[28:length]
            with pytest.raises(WireError):
                parse_message(fixed)
    with pytest.raises(WireError):
        parse_message(data[:24] + (len(data) + 1).to_bytes(4, "big") + data[28:] + b"\0")


def test_any_order() -> None:
    backwards = encode_message(header(), EVERY_PAYLOAD[::-1])
    assert parse_message(backwards).payloads == EVERY_PAYLOAD[::-1]


@pytest.mark.parametrize("length", [0, 1, 2, 3, 5, 35, 37, 65535])
def test_generic_lengths_are_checked(length: int) -> None:
    data = bytearray(encode_message(header(), [NONCE]))
    data[30:32] = length.to_bytes(2, "big")
    with pytest.raises(WireError):
        parse_message(bytes(data))


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_each_length_field_at_each_edge(exchange: tuple[ExchangeType, bool]) -> None:
    """CVE-2021-41990, CVE-2021-41991: two octets anywhere are 0, 1, 2^15, 2^16 - 1; four are 2^31, 2^32 - 1.

    Whatever they mean there, the message is refused, or it is one that says the same when it is built again.
    """
    data = encode_message(header(exchange[0], response=exchange[1]), EXCHANGES[exchange])
    edges = [n.to_bytes(2, "big") for n in (0, 1, 3, 4, 5, 2**15 - 1, 2**15, 2**16 - 4, 2**16 - 1)]
    edges += [n.to_bytes(4, "big") for n in (0, 2**16, 2**31 - 1, 2**31, 2**32 - 28, 2**32 - 1)]
    for offset, edge in product(range(HEADER_LENGTH, len(data) - 1), edges):
        changed = (data[:offset] + edge + data[offset + len(edge) :])[: len(data)]
        try:
            message = parse_message(changed)
        except WireError:
            continue
        if not any(isinstance(payload, TsPayload) and payload.skipped for payload in message.payloads):
            again = parse_message(encode_message(message.header, message.payloads))
            assert again.payloads == message.payloads


@pytest.mark.parametrize("count", [MAX_PAYLOADS - 1, MAX_PAYLOADS, MAX_PAYLOADS + 1])
def test_number_of_payloads(count: int) -> None:
    """Class of CVE-2026-12413: N-1, N, N+1, known payloads or not."""
    for kind in (PayloadType.VENDOR, 200):
        body = b"".join(generic_header(kind if left else 0, b"") for left in range(count - 1, -1, -1))
        data = header().sized(kind, HEADER_LENGTH + len(body)).encode() + body
        if count <= MAX_PAYLOADS:
            assert len(parse_message(data).payloads) == count
        else:
            with pytest.raises(WireError):
                parse_message(data)
            with pytest.raises(WireError):
                parse_payloads(kind, body)


def test_we_keep_the_limits_too() -> None:
    assert len(encode_payloads([VENDOR] * MAX_PAYLOADS)[1]) == MAX_PAYLOADS * 12
    with pytest.raises(LocalError):
        encode_payloads([VENDOR] * (MAX_PAYLOADS + 1))
    most = 65535 - HEADER_LENGTH - 4
    assert len(encode_message(header(), [VendorIdPayload(bytes(most))])) == 65535
    for payload in (VendorIdPayload(bytes(most + 1)), VendorIdPayload(bytes(65536))):
        with pytest.raises(LocalError):
            encode_message(header(), [payload])


def test_critical_payloads() -> None:
    harmless, critical = UnknownPayload(200, False, b"what"), UnknownPayload(200, True, b"what")
    assert parse_message(encode_message(header(), [harmless, NONCE])).payloads == (harmless, NONCE)
    with pytest.raises(UnsupportedCriticalPayload) as caught:
        parse_message(encode_message(header(), [NONCE, critical]))
    assert caught.value.notify_data == b"\xc8"


def test_reserved_bits_of_the_generic_header_are_ignored() -> None:
    data = bytearray(encode_message(header(), [NONCE, VENDOR]))
    data[29] = 0x7F
    assert parse_message(bytes(data)).payloads == (NONCE, VENDOR)


def test_an_empty_message() -> None:
    data = encode_message(header(ExchangeType.INFORMATIONAL), [])
    assert len(data) == HEADER_LENGTH
    assert parse_message(data).payloads == ()


def test_lookups() -> None:
    cookie, failure = NotifyPayload(NotifyType.COOKIE, data=b"c"), NotifyPayload(NotifyType.TS_UNACCEPTABLE)
    message = parse_message(encode_message(header(), [NOTIFY, cookie, failure, TS_R, TS_I, ID_R, ID_I, KE]))
    assert message.all(NotifyPayload) == (NOTIFY, cookie, failure)
    assert message.first(TsPayload) == TS_R
    assert message.first(VendorIdPayload) is None
    assert message.of_type(PayloadType.TSi) == (TS_I,)
    assert message.of_type(PayloadType.IDr) == (ID_R,)
    assert message.first(IdPayload) == ID_R
    assert message.notify(NotifyType.COOKIE) == cookie
    assert message.notify(NotifyType.REKEY_SA) is None
    assert message.error() == failure
