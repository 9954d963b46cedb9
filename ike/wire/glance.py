"""What a message says of itself before it is parsed: the few octets that decide whether it is worth it.

To parse a message costs about a hundred times what it cost to send. What has proven nothing yet is looked at here
alone; ``ike.wire.message`` sees it when it brought a cookie, or while there is no rush.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from ike.constants import ExchangeType, NotifyType, PayloadType
from ike.wire.header import HEADER_LENGTH, MAJOR_VERSION
from ike.wire.message import GENERIC_HEADER, MAX_PAYLOADS
from ike.wire.payloads import MAX_NONCE, MIN_NONCE

_HEAD = struct.Struct("!8s8sBBBBII")
_GENERIC = struct.Struct("!BxH")
_NOTIFY = struct.Struct("!BBH")
_INITIATOR, _RESPONSE = 0x08, 0x20
_PROTECTED = (PayloadType.SK, PayloadType.SKF)
_NO_SPI = bytes(8)


class Glance(NamedTuple):
    """The fields of an IKE header (RFC 7296 section 3.1) as they stand in it; nothing is checked."""

    spi_i: bytes
    spi_r: bytes
    first: int
    version: int
    exchange: int
    flags: int
    message_id: int
    length: int

    @property
    def ours(self) -> bool:
        """Whether it is of the version that is spoken here."""
        return self.version >> 4 == MAJOR_VERSION

    @property
    def initiator(self) -> bool:
        """Whether the original initiator of the IKE SA sent it."""
        return bool(self.flags & _INITIATOR)

    @property
    def response(self) -> bool:
        """Whether it is a response."""
        return bool(self.flags & _RESPONSE)

    @property
    def our_spi(self) -> bytes:
        """The SPI that its receiver chose."""
        return self.spi_r if self.flags & _INITIATOR else self.spi_i

    @property
    def protected(self) -> bool:
        """Whether its first payload is encrypted, as that of every message but IKE_SA_INIT is."""
        return self.first in _PROTECTED

    @property
    def opens(self) -> bool:
        """Whether it asks for a new IKE SA."""
        return self.exchange == ExchangeType.IKE_SA_INIT and self.spi_r == _NO_SPI and not self.flags & _RESPONSE


def glance(data: bytes) -> Glance | None:
    """Return the header's fields of *data*, None if it is too short to have one."""
    return Glance._make(_HEAD.unpack_from(data)) if len(data) >= HEADER_LENGTH else None


def nonce_and_cookie(look: Glance, data: bytes) -> tuple[bytes, bytes] | None:
    """Return the nonce of an IKE_SA_INIT request and the cookie before it, empty if there is none.

    A cookie is the first payload (RFC 7296 section 2.6), so nothing behind the nonce is looked at. None: up to
    there it is not well formed, or the header's length is not that of *data*.
    """
    kind, at, end, cookie = look.first, HEADER_LENGTH, len(data), b""
    if look.length != end:
        return None
    for _ in range(MAX_PAYLOADS):
        if kind == PayloadType.NONE or end - at < GENERIC_HEADER:
            return None
        following, length = _GENERIC.unpack_from(data, at)
        if not GENERIC_HEADER <= length <= end - at:
            return None
        body = at + GENERIC_HEADER
        at += length
        if kind == PayloadType.NONCE:
            return (data[body:at], cookie) if MIN_NONCE <= at - body <= MAX_NONCE else None
        if kind == PayloadType.NOTIFY and at - body >= _NOTIFY.size:
            _, spi_size, notify = _NOTIFY.unpack_from(data, body)
            if notify == NotifyType.COOKIE and spi_size == 0 and not cookie:
                cookie = data[body + _NOTIFY.size : at]
        kind = following
    return None
