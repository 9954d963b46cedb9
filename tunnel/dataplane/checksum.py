"""The Internet checksum (RFC 1071), by big-integer arithmetic; of many equal pieces at once, by numpy.

65536 is 1 modulo 65535, so the one's complement sum of octets is the octets' value as one big-endian integer,
modulo 65535. Halving the integer by shifts of a multiple of 16 bits keeps that value and costs less than one
long division: measured 2.4 us against 3.9 us for 1432 octets, where a loop over words takes 10 us.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TypeAlias

import numpy

Buffer: TypeAlias = bytes | bytearray | memoryview

#: Shifts (bits, mask) that bring an integer of some size down to a few machine words.
Folds: TypeAlias = tuple[tuple[int, int], ...]

#: For fewer pieces the call into numpy costs more than it saves.
_FEW = 3
#: An integer of fewer octets than this is divided at once.
_SMALL = 128


@lru_cache(maxsize=4096)
def folds(size: int) -> Folds:
    """Return the shifts that fold an integer of *size* octets, keeping its value modulo 65535."""
    steps: list[tuple[int, int]] = []
    while size > _SMALL:
        words = (size + 3) // 4
        steps.append((words * 16, (1 << (words * 16)) - 1))
        size = words * 2 + 1
    return tuple(steps)


def ones_sum(data: Buffer) -> int:
    """Return the one's complement sum of *data* modulo 65535 (0 stands for 0xFFFF); an odd octet is padded."""
    size = len(data)
    value = int.from_bytes(data, "big")
    for bits, mask in folds(size):
        value = (value >> bits) + (value & mask)
    return (value << 8 if size & 1 else value) % 65535


def piece_sums(data: Buffer, start: int, size: int, count: int) -> list[int]:
    """Return the ones_sum of each of *count* pieces of *size* octets, the first at *start*.

    A superpacket's 44 pieces of 1386 octets cost 0.3 us each this way, 2.1 us one by one.
    """
    if size & 1 or count < _FEW:
        view = memoryview(data)
        return [ones_sum(view[at : at + size]) for at in range(start, start + size * count, size)]
    words = numpy.frombuffer(data, "<u2", count * size // 2, start).reshape(count, size // 2)
    sums = words.sum(axis=1, dtype=numpy.uint32) % 65535
    # The sum of byte-swapped words is the byte-swapped sum (RFC 1071 section 2 (B)).
    swapped: list[int] = (sums >> 8 | (sums & 0xFF) << 8).tolist()
    return swapped


def checksum(data: Buffer, initial: int = 0) -> int:
    """Return the checksum to store: the complement of the sum of *data* and *initial*."""
    return -(ones_sum(data) + initial) % 65535


def pseudo_header(addresses: Buffer, protocol: int, length: int) -> int:
    """Return the sum of the pseudo-header (RFC 9293 section 3.1, RFC 8200 section 8.1).

    *addresses* is source and destination as they stand in the IP header, of either family.
    """
    return ones_sum(addresses) + protocol + (length >> 16) + (length & 0xFFFF)


def transport_valid(addresses: Buffer, protocol: int, parts: Sequence[Buffer]) -> bool:
    """Whether the checksum inside a transport header holds; every part but the last is of even length."""
    length = sum(map(len, parts))
    return (pseudo_header(addresses, protocol, length) + sum(map(ones_sum, parts))) % 65535 == 0
