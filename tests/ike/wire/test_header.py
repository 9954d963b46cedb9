"""The IKE header (RFC 7296 section 3.1)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from ike.constants import ExchangeType, NotifyType
from ike.errors import InvalidMajorVersion, WireError
from ike.wire.header import HEADER_LENGTH, Header, parse_header
from tests.support.ike_messages import SPI_I, SPI_R, header, headers


def test_layout() -> None:
    sent = header(ExchangeType.CREATE_CHILD_SA, message_id=0x01020304).sized(33, HEADER_LENGTH)
    assert sent.encode().hex() == (
        "c0c1c2c3c4c5c6c7"  # IKE SA Initiator's SPI
        "d0d1d2d3d4d5d6d7"  # IKE SA Responder's SPI
        "21"  # next payload
        "20"  # version 2.0
        "24"  # exchange type 36
        "08"  # initiator
        "01020304"  # message ID
        "0000001c"  # length
    )
    assert header(response=True).encode()[19] == 0x20
    assert header(response=True, initiator=True).encode()[19] == 0x28


@settings(deadline=None)
@given(headers)
def test_round_trip(sent: Header) -> None:
    assert parse_header(sent.encode()) == sent


@pytest.mark.parametrize("octet", range(256))
def test_every_version(octet: int) -> None:
    """CVE-2013-4564: the major version alone decides, and the answer has what it needs (section 2.5)."""
    data = bytearray(header(ExchangeType.IKE_AUTH, message_id=9).encode())
    data[17] = octet
    if octet >> 4 == 2:
        parsed = parse_header(bytes(data))
        assert (parsed.major, parsed.minor) == (2, octet & 15)
        return
    with pytest.raises(InvalidMajorVersion) as caught:
        parse_header(bytes(data))
    error = caught.value
    assert error.notify is NotifyType.INVALID_MAJOR_VERSION
    assert error.major == octet >> 4
    assert (error.spi_i, error.spi_r, error.message_id, error.exchange) == (SPI_I, SPI_R, 9, 35)
    assert (error.initiator, error.response) == (True, False)


@pytest.mark.parametrize("octet", range(256))
def test_every_flags_octet(octet: int) -> None:
    """Reserved flags and the version bit are ignored on receipt, and zero on sending."""
    data = bytearray(header().encode())
    data[19] = octet
    parsed = parse_header(bytes(data))
    assert (parsed.initiator, parsed.response) == (bool(octet & 0x08), bool(octet & 0x20))
    assert parsed.encode()[19] == octet & 0x28


def test_every_prefix_is_refused() -> None:
    """CVE-2013-4564."""
    data = header().encode()
    for length in range(len(data)):
        with pytest.raises(WireError):
            parse_header(data[:length])


@pytest.mark.parametrize("length", [0, 27, 29, 2**16, 2**31, 2**32 - 1])
def test_the_length_is_that_of_the_datagram(length: int) -> None:
    with pytest.raises(WireError):
        parse_header(header().sized(0, length).encode())
    with pytest.raises(WireError):
        parse_header(header().encode() + b"\0")


def test_messages_end_at_64_kb() -> None:
    for length in (65534, 65535):
        assert parse_header(header().sized(0, length).encode().ljust(length, b"\0")).length == length
    with pytest.raises(WireError):
        parse_header(header().sized(0, 65536).encode().ljust(65536, b"\0"))


def test_the_initiators_spi_is_not_zero() -> None:
    with pytest.raises(WireError):
        parse_header(bytes(8) + header().encode()[8:])
