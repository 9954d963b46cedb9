"""AH (RFC 4302): what the ICV covers, making it and checking it.

The ICV covers the IP header before AH with mutable fields as zeros and predictable ones as they will arrive, AH
with its ICV field as zeros, and everything after (section 3.3.3).
"""

from __future__ import annotations

import struct

from tunnel.dataplane.contract import DropReason
from tunnel.dataplane.flow import FlowError
from tunnel.dataplane.macs import Mac
from tunnel.dataplane.outer import PROTOCOL_AT

#: Next header, payload length, reserved, SPI, sequence number.
FIXED = struct.Struct("!BBHII")
#: IPv4 options that stay as they are (RFC 4302 appendix A1): end, no operation, security, extended security,
#: commercial security, router alert, sender directed delivery.
_IMMUTABLE = frozenset({0, 1, 130, 133, 134, 148, 149})
#: Loose and strict source routes: mutable, and the last address they name is the destination on arrival.
_SOURCE_ROUTES = frozenset({131, 137})
_ROUTING = 43
#: An IPv6 option whose data routers may change (RFC 8200 section 4.2).
_CHANGES = 0x20


def length(mac: Mac, version: int) -> int:
    """Return the octets of AH: a multiple of 4, of 8 in IPv6 (section 2.2)."""
    unit = 8 if version == 6 else 4
    return FIXED.size + mac.size + -(FIXED.size + mac.size) % unit


def seal(mac: Mac, spi: int, number: int, esn: bool, header: bytes, next_header: int, payload: bytes) -> bytes:
    """Return AH and *payload*, to stand behind *header*, which says already that AH follows and how much."""
    size = length(mac, header[0] >> 4)
    padding = bytes(size - FIXED.size - mac.size)
    fixed = FIXED.pack(next_header, size // 4 - 2, 0, spi, number & 0xFFFF_FFFF)
    high = (number >> 32).to_bytes(4, "big") if esn else b""
    covered = b"".join((canonical(header), fixed, bytes(mac.size), padding, payload, high))
    return b"".join((fixed, mac.compute(covered, number), padding, payload))


def genuine(mac: Mac, header: bytes, packet: bytes, high: bytes) -> bool:
    """Whether the ICV of *packet*, AH and what follows, holds behind *header*; *high* is the upper ESN half.

    The caller has checked that AH is as long as ``length`` says. FlowError for options that do not hold together.
    """
    start, end = FIXED.size, FIXED.size + mac.size
    covered = b"".join((canonical(header), packet[:start], bytes(mac.size), packet[end:], high))
    return mac.verify(covered, packet[start:end])


def canonical(header: bytes) -> bytes:
    """Return *header* as the ICV covers it. FlowError if it does not hold together."""
    return _canonical_v4(header) if header[0] >> 4 == 4 else _canonical_v6(header)


def _canonical_v4(header: bytes) -> bytes:
    """Section 3.3.3.1.1: TOS, flags, fragment offset, TTL and checksum are mutable; options are whole units."""
    found = bytearray(header)
    found[1] = 0
    found[6:9] = bytes(3)
    found[10:12] = bytes(2)
    at = 20
    while at < len(found):
        kind = found[at]
        if kind == 0:
            break
        if kind == 1:
            at += 1
            continue
        size = found[at + 1] if at + 1 < len(found) else 0
        if size < 2 or at + size > len(found):
            raise FlowError(DropReason.MALFORMED)
        if kind in _SOURCE_ROUTES and size >= 7 and found[at + 2] <= size - 3:
            found[16:20] = found[at + size - (size - 3) % 4 - 4 : at + size - (size - 3) % 4]
        if kind not in _IMMUTABLE:
            found[at : at + size] = bytes(size)
        at += size
    return bytes(found)


def _canonical_v6(header: bytes) -> bytes:
    """Section 3.3.3.1.2: traffic class, flow label and hop limit are mutable; then the extension headers."""
    found = bytearray(header)
    found[0:4] = b"\x60\0\0\0"
    found[7] = 0
    kind, at = found[PROTOCOL_AT[6]], 40
    while at < len(found):
        size = 8 + found[at + 1] * 8 if at + 8 <= len(found) else 0
        if not size or at + size > len(found):
            raise FlowError(DropReason.MALFORMED)
        if kind == _ROUTING:
            _arrive(found, at, size)
        else:
            _options_v6(found, at + 2, at + size)
        kind, at = found[at], at + size
    return bytes(found)


def _options_v6(found: bytearray, at: int, end: int) -> None:
    """Section 3.3.3.1.2.2: options keep type and length; data that may change en route counts as zeros."""
    while at < end:
        if found[at] == 0:  # Pad1
            at += 1
            continue
        size = 2 + found[at + 1] if at + 1 < end else 0
        if not size or at + size > end:
            raise FlowError(DropReason.MALFORMED)
        if found[at] & _CHANGES:
            found[at + 2 : at + size] = bytes(size - 2)
        at += size


def _arrive(found: bytearray, at: int, size: int) -> None:
    """Section 3.3.3.1.2.3: a routing header counts as it will arrive, with nothing left to visit."""
    left, addresses = found[at + 3], (size - 8) // 16
    if found[at + 2] != 0 or left > addresses:
        raise FlowError(DropReason.MALFORMED)
    if not left:
        return
    rows = [bytes(found[at + 8 + 16 * row : at + 24 + 16 * row]) for row in range(addresses)]
    visited = addresses - left
    route = [*rows[:visited], bytes(found[24:40]), *rows[visited:]]
    found[24:40] = route.pop()
    found[at + 3] = 0
    found[at + 8 : at + 8 + 16 * addresses] = b"".join(route)
