"""The pcapng file format, as far as a capture needs it (draft-ietf-opsawg-pcapng): raw IP on named interfaces."""

from __future__ import annotations

import struct
from collections.abc import Sequence

_RAW_IP = 101
_SECTION, _INTERFACE, _ENHANCED = 0x0A0D0D0A, 1, 6
_NAME, _RESOLUTION, _FLAGS = 2, 9, 2
_NANOSECONDS = 9


def opening(interfaces: Sequence[str]) -> bytes:
    """Return the section header and one description an interface, numbered from 0; times are in nanoseconds."""
    section = struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1)
    found = _block(_SECTION, section)
    for name in interfaces:
        options = _option(_NAME, name.encode()) + _option(_RESOLUTION, bytes([_NANOSECONDS])) + bytes(4)
        found += _block(_INTERFACE, struct.pack("<HHI", _RAW_IP, 0, 0) + options)
    return found


def packet(interface: int, time: int, octets: bytes, *, outbound: bool) -> bytes:
    """Return the block of one IP packet that was seen at *time*, nanoseconds since 1970."""
    head = struct.pack("<IIIII", interface, time >> 32, time & 0xFFFFFFFF, len(octets), len(octets))
    flags = _option(_FLAGS, struct.pack("<I", 2 if outbound else 1)) + bytes(4)
    return _block(_ENHANCED, head + _padded(octets) + flags)


def _block(kind: int, body: bytes) -> bytes:
    length = 12 + len(body)
    return struct.pack("<II", kind, length) + body + struct.pack("<I", length)


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + _padded(value)


def _padded(octets: bytes) -> bytes:
    return octets + bytes(-len(octets) % 4)
