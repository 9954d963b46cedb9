"""Every error knows its notify and its reach; the numbers are IANA's."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from enum import IntEnum

import pytest

import ike.constants
import ike.errors
from ike.constants import NotifyType, PayloadType, ProtocolId, name_of
from ike.errors import (
    ChildSaNotFound,
    IkeError,
    InvalidKePayload,
    InvalidMajorVersion,
    InvalidMessageId,
    InvalidSpi,
    LocalError,
    Reach,
    UnsupportedCriticalPayload,
)
from ike.wire.payloads import NotifyPayload


def subclasses(of: type[IkeError]) -> Iterator[type[IkeError]]:
    for kind in of.__subclasses__():
        yield kind
        yield from subclasses(kind)


EVERY = [kind for kind in subclasses(IkeError) if kind.__module__ == "ike.errors"]
ENUMERATIONS = [
    value
    for value in vars(ike.constants).values()
    if inspect.isclass(value) and issubclass(value, IntEnum) and value.__module__ == "ike.constants"
]


def build(kind: type[IkeError]) -> IkeError:
    arguments: dict[type[IkeError], IkeError] = {
        UnsupportedCriticalPayload: UnsupportedCriticalPayload(200),
        InvalidMajorVersion: InvalidMajorVersion(
            3,
            spi_i=b"i" * 8,
            spi_r=b"r" * 8,
            exchange=34,
            initiator=True,
            response=False,
            message_id=0,
        ),
        InvalidMessageId: InvalidMessageId(7),
        InvalidSpi: InvalidSpi(b"\1\2\3\4"),
        InvalidKePayload: InvalidKePayload(19),
        ChildSaNotFound: ChildSaNotFound(3, b"\1\2\3\4"),
    }
    return arguments[kind] if kind in arguments else kind("why")


@pytest.mark.parametrize("kind", EVERY)
def test_every_error_declares_notify_and_reach(kind: type[IkeError]) -> None:
    assert {"notify", "reach"} <= set(vars(kind)), f"{kind.__name__} inherits what it should declare"
    assert kind.notify is None or NotifyPayload(kind.notify).is_error
    assert isinstance(kind.reach, Reach)
    assert kind.__doc__
    error = build(kind)
    assert str(error)
    assert isinstance(error.notify_data, bytes)
    assert (error.notify_protocol == 0) == (error.notify_spi == b"")


def test_every_error_notify_of_the_base_standard_has_an_error() -> None:
    """RFC 7296 section 3.10.1."""
    base = {
        *("UNSUPPORTED_CRITICAL_PAYLOAD", "INVALID_IKE_SPI", "INVALID_MAJOR_VERSION", "INVALID_SYNTAX"),
        *("INVALID_MESSAGE_ID", "INVALID_SPI", "NO_PROPOSAL_CHOSEN", "INVALID_KE_PAYLOAD"),
        *("AUTHENTICATION_FAILED", "SINGLE_PAIR_REQUIRED", "NO_ADDITIONAL_SAS", "INTERNAL_ADDRESS_FAILURE"),
        *("FAILED_CP_REQUIRED", "TS_UNACCEPTABLE", "INVALID_SELECTORS", "TEMPORARY_FAILURE"),
        "CHILD_SA_NOT_FOUND",
    }
    assert {kind.notify.name for kind in EVERY if kind.notify is not None} == base


def test_notify_data() -> None:
    assert build(UnsupportedCriticalPayload).notify_data == b"\xc8"
    assert build(InvalidKePayload).notify_data == b"\x00\x13"
    assert build(InvalidMessageId).notify_data == b"\0\0\0\x07"
    assert build(InvalidSpi).notify_data == b"\1\2\3\4"
    gone = build(ChildSaNotFound)
    assert (gone.notify_protocol, gone.notify_spi, gone.notify_data) == (ProtocolId.ESP, b"\1\2\3\4", b"")


def test_our_fault_is_another_root() -> None:
    assert not issubclass(LocalError, IkeError)


@pytest.mark.parametrize("enumeration", ENUMERATIONS)
def test_one_number_a_line_with_its_source(enumeration: type[IntEnum]) -> None:
    lines = [line for line in inspect.getsource(enumeration).splitlines() if " = " in line]
    assert len(lines) == len(enumeration)
    for line in lines:
        assert re.fullmatch(r"    \w+ = \d+  # (RFC \d+|3GPP TS \d+).*", line), line


@pytest.mark.parametrize("enumeration", ENUMERATIONS)
def test_unknown_numbers_have_a_name_too(enumeration: type[IntEnum]) -> None:
    assert name_of(enumeration, 60000) == "60000"
    for member in enumeration:
        assert name_of(enumeration, int(member)) == member.name


def test_numbers_agree_with_another_decoder() -> None:
    """scapy's tables are someone else's reading of the registry."""
    from scapy.contrib import ikev2

    words = {"SK": "Encrypted", "SKF": "Encrypted_Fragment", "VENDOR": "VendorID"}
    for kind in PayloadType:
        theirs = ikev2.IKEv2PayloadTypes[int(kind)]
        assert theirs.upper() == words.get(kind.name, kind.name).upper()
    shared = 0
    for number, name in ikev2.IKEv2NotifyMessageTypes.items():
        if number in list(NotifyType):
            theirs = re.sub(r"^(IV2_)?NOTIFY_", "", name)
            assert NotifyType(number).name == theirs.upper()
            shared += 1
    assert shared > 60
