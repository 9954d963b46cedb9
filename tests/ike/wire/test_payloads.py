"""Payload bodies (RFC 7296 sections 3.4 to 3.16)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from ike.constants import NotifyType, PayloadType, ProtocolId
from ike.errors import UnsupportedCriticalPayload, WireError
from ike.wire.cursor import Cursor
from ike.wire.payloads import (
    AuthPayload,
    ConfigPayload,
    DeletePayload,
    IdPayload,
    KePayload,
    NoncePayload,
    NotifyPayload,
    Payload,
    UnknownPayload,
    parse_payload,
)
from policy.pad import Identity
from tests.support.ike_messages import AUTH, CONFIG, DELETE, EVERY_PAYLOAD, ID_I, ID_R, KE, REKEY, payloads


def parse(kind: int, body: bytes, critical: bool = False) -> Payload:
    return parse_payload(kind, critical, Cursor(body))


@settings(deadline=None)
@given(payloads)
def test_round_trip(sent: Payload) -> None:
    assert parse(sent.payload_type, sent.encode_body()) == sent


@pytest.mark.parametrize("sent", EVERY_PAYLOAD, ids=lambda sent: type(sent).__name__)
def test_one_of_each(sent: Payload) -> None:
    assert parse(sent.payload_type, sent.encode_body()) == sent
    # The critical bit of a type that we know means nothing (section 2.5).
    if not isinstance(sent, UnknownPayload):
        assert parse(sent.payload_type, sent.encode_body(), critical=True) == sent


@pytest.mark.parametrize(
    ("payload", "octets"),
    [
        (KePayload(31, b"\x09\x08"), "001f00000908"),
        (NoncePayload(b"n" * 16), "6e" * 16),
        (ID_I, "02000000" + b"gw-a.example".hex()),
        (ID_R, "010000000a090002"),
        (AuthPayload(2, b"\xaa"), "02000000aa"),
        (REKEY, "03044009c0ffee01"),
        (NotifyPayload(NotifyType.COOKIE, data=b"c"), "0000400663"),
        (DELETE, "030400020102030405060708"),
        (DeletePayload(ProtocolId.IKE), "01000000"),
        (DeletePayload(ProtocolId.AH), "02040000"),
        (CONFIG, "01000000" + "00010000" + "000300040a000001"),
    ],
)
def test_layout(payload: Payload, octets: str) -> None:
    assert payload.encode_body().hex() == octets


def test_types() -> None:
    assert [payload.payload_type for payload in EVERY_PAYLOAD] == [
        *(PayloadType.SA, PayloadType.KE, PayloadType.IDi, PayloadType.IDr, PayloadType.CERT),
        *(PayloadType.CERTREQ, PayloadType.AUTH, PayloadType.NONCE, PayloadType.NOTIFY, PayloadType.DELETE),
        *(PayloadType.VENDOR, PayloadType.TSi, PayloadType.TSr, PayloadType.CP, PayloadType.EAP, 200),
    ]


@pytest.mark.parametrize("length", [0, 15, 16, 17, 255, 256, 257])
def test_nonces_have_16_to_256_octets(length: int) -> None:
    if 16 <= length <= 256:
        assert parse(PayloadType.NONCE, b"n" * length) == NoncePayload(b"n" * length)
    else:
        with pytest.raises(WireError):
            parse(PayloadType.NONCE, b"n" * length)


@pytest.mark.parametrize(
    ("payload", "offsets"), [(KE, (2, 3)), (ID_I, (1, 2, 3)), (AUTH, (1, 2, 3)), (CONFIG, (1, 2, 3, 4))]
)
def test_reserved_is_ignored(payload: Payload, offsets: tuple[int, ...]) -> None:
    body = bytearray(payload.encode_body())
    for offset in offsets:
        body[offset] |= 0x80
    assert parse(payload.payload_type, bytes(body)) == payload


def test_auth_covers_the_id_as_it_came() -> None:
    """Section 2.15: RestOfInitIDPayload has the RESERVED octets of the sender."""
    body = b"\x02\x01\x02\x03gw-a.example"
    received = parse(PayloadType.IDi, body)
    assert isinstance(received, IdPayload)
    assert received == ID_I
    assert received.signed_body == body
    assert received.encode_body() == ID_I.signed_body == b"\x02\0\0\0gw-a.example"


@pytest.mark.parametrize("length", [0, 1, 3, 4, 65000])
def test_identities_have_any_length(length: int) -> None:
    """Class of CVE-2025-9242, CVE-2013-6075, CVE-2013-5018, CVE-2023-38711: any type, any shape, any length."""
    for kind in range(256):
        received = parse(PayloadType.IDr, bytes([kind, 0, 0, 0]) + b"\xfe" * length)
        assert received == IdPayload(False, Identity(kind, b"\xfe" * length))
        assert isinstance(received, IdPayload)
        assert str(received.identity).isascii()


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (PayloadType.KE, b""),
        (PayloadType.KE, b"\0\x1f\0"),
        (PayloadType.KE, b"\0\x1f\0\0"),
        (PayloadType.IDi, b"\x02\0\0"),
        (PayloadType.AUTH, b"\x02\0\0"),
        (PayloadType.CERT, b""),
        (PayloadType.CERTREQ, b""),
        (PayloadType.NOTIFY, b"\0\0\0"),
        (PayloadType.NOTIFY, b"\x03\x04\x40\x09\x01\x02\x03"),
        (PayloadType.NOTIFY, b"\x03\xff\x40\x09"),
        (PayloadType.DELETE, b"\x03\x04\0"),
        (PayloadType.DELETE, b"\x03\x04\0\x02\x01\x02\x03\x04\x05\x06\x07"),
        (PayloadType.DELETE, b"\x03\x04\0\x01\x01\x02\x03\x04\x05"),
        (PayloadType.DELETE, b"\x03\x04\xff\xff\x01\x02\x03\x04"),
        (PayloadType.DELETE, b"\x03\x08\0\x01" + bytes(8)),
        (PayloadType.DELETE, b"\x03\x00\xff\xff"),
        (PayloadType.DELETE, b"\x09\x00\xff\xff"),
        (PayloadType.DELETE, b"\x01\x08\0\x01" + bytes(8)),
        (PayloadType.DELETE, b"\x01\x00\0\x01"),
        (PayloadType.CP, b"\x01\0\0"),
        (PayloadType.CP, b"\x01\0\0\0\0\x01\0"),
        (PayloadType.CP, b"\x01\0\0\0\0\x01\0\x04\x0a\0\0"),
        (PayloadType.CP, b"\x01\0\0\0\0\x01\xff\xff\x0a\0\0\x01"),
        (PayloadType.SA, b""),
        (PayloadType.TSi, b""),
    ],
)
def test_malformed(kind: int, body: bytes) -> None:
    with pytest.raises(WireError):
        parse(kind, body)


@pytest.mark.parametrize("kind", [kind for kind in range(256) if kind not in (0, 46, 53) and not 33 <= kind <= 48])
def test_unknown_types(kind: int) -> None:
    """CVE-2015-3991 and CVE-2015-3204: payloads of IKEv1 (1 to 32) and of the future, critical or not."""
    assert parse(kind, b"body") == UnknownPayload(kind, False, b"body")
    with pytest.raises(UnsupportedCriticalPayload) as caught:
        parse(kind, b"body", critical=True)
    assert caught.value.notify is NotifyType.UNSUPPORTED_CRITICAL_PAYLOAD
    assert caught.value.notify_data == bytes([kind])


def test_errors_are_told_from_status() -> None:
    assert NotifyPayload(NotifyType.TEMPORARY_FAILURE).is_error
    assert NotifyPayload(8191).is_error  # unknown ones too
    assert NotifyPayload(16383).is_error
    assert not NotifyPayload(16384).is_error
    assert not NotifyPayload(65535).is_error
    assert (str(NotifyPayload(NotifyType.COOKIE)), str(NotifyPayload(8191))) == ("COOKIE", "8191")


def test_config_attributes_ignore_their_reserved_bit() -> None:
    assert parse(PayloadType.CP, b"\x02\0\0\0\x80\x01\0\x01x") == ConfigPayload(2, ((1, b"x"),))
