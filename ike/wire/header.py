"""The IKE header (RFC 7296 section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ike.errors import InvalidMajorVersion, WireError
from ike.wire.cursor import Cursor

HEADER_LENGTH = 28
MAJOR_VERSION = 2
#: Largest message we build or parse: what one UDP datagram can carry.
MAX_MESSAGE = 65535

_INITIATOR, _VERSION, _RESPONSE = 0x08, 0x10, 0x20


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The header's fields; *next_payload* and *length* are filled in when a message is encoded.

    *initiator* is the sender being the original initiator of the IKE SA, *response* the direction of the
    exchange.
    """

    spi_i: bytes
    spi_r: bytes
    exchange: int
    initiator: bool
    response: bool
    message_id: int
    next_payload: int = 0
    major: int = MAJOR_VERSION
    minor: int = 0
    length: int = HEADER_LENGTH

    def encode(self) -> bytes:
        """Return the 28 octets. Reserved flags and the version bit are zero."""
        flags = (_INITIATOR if self.initiator else 0) | (_RESPONSE if self.response else 0)
        return (
            self.spi_i
            + self.spi_r
            + bytes([self.next_payload, self.major << 4 | self.minor, self.exchange, flags])
            + self.message_id.to_bytes(4, "big")
            + self.length.to_bytes(4, "big")
        )

    def sized(self, next_payload: int, length: int) -> Header:
        """Return the header with its first payload type and total length set."""
        return replace(self, next_payload=next_payload, length=length)


def parse_header(data: bytes) -> Header:
    """Return the header of the whole message *data*.

    The length must be that of *data*. Minor version, version bit and reserved flags are ignored (section 2.5).
    Raises WireError; InvalidMajorVersion carries what the answer needs.
    """
    cursor = Cursor(data)
    spi_i, spi_r = cursor.take(8), cursor.take(8)
    next_payload, version, exchange, flags = cursor.u8(), cursor.u8(), cursor.u8(), cursor.u8()
    message_id, length = cursor.u32(), cursor.u32()
    initiator, response = bool(flags & _INITIATOR), bool(flags & _RESPONSE)
    if version >> 4 != MAJOR_VERSION:
        raise InvalidMajorVersion(
            version >> 4,
            spi_i=spi_i,
            spi_r=spi_r,
            exchange=exchange,
            initiator=initiator,
            response=response,
            message_id=message_id,
        )
    if length != len(data):
        raise WireError(f"header says {length} octets, {len(data)} received")
    if length > MAX_MESSAGE:
        raise WireError(f"message of {length} octets")
    if spi_i == bytes(8):
        raise WireError("the initiator's SPI is zero")
    return Header(
        spi_i=spi_i,
        spi_r=spi_r,
        exchange=exchange,
        initiator=initiator,
        response=response,
        message_id=message_id,
        next_payload=next_payload,
        major=version >> 4,
        minor=version & 15,
        length=length,
    )
