"""Packets of one size as the rows of an array: what is to be done to each is done to all at once, by numpy.

Thirty packets cost a third of what a loop over them costs; of a handful, the loop is quicker.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, TypeAlias

import numpy
from numpy.typing import NDArray

from tunnel.dataplane.checksum import Buffer

Rows: TypeAlias = NDArray[numpy.uint8]
Numbers: TypeAlias = NDArray[numpy.int64]

_LOW = 0xFFFF_FFFF

_FRONT = numpy.dtype([("spi", ">u4"), ("low", ">u4"), ("iv", ">u8")])
_NONCE = numpy.dtype([("salt", "V4"), ("iv", ">u8")])
_AAD = numpy.dtype([("spi", ">u4"), ("low", ">u4")])
_AAD_ESN = numpy.dtype([("spi", ">u4"), ("number", ">u8")])


def rows_of(data: Buffer, size: int, count: int, start: int = 0) -> Rows:
    """Return *count* rows of *size* octets of *data*, the first at *start*, without copying."""
    return numpy.frombuffer(data, numpy.uint8, count * size, start).reshape(count, size)


def split(data: Buffer, size: int) -> list[bytes]:
    """Return the rows of *data*, *size* octets each."""
    rows: list[bytes] = numpy.frombuffer(data, _octets(size)).tolist()
    return rows


def column_sums(rows: Rows, start: int, end: int) -> Numbers:
    """Return the one's complement sum (RFC 1071) of octets *start* to *end* of each row, modulo 65535."""
    even = end - ((end - start) & 1)
    # The sum of byte-swapped words is the byte-swapped sum (RFC 1071 section 2 (B)).
    sums: Numbers = rows[:, start:even].view("<u2").sum(axis=1, dtype=numpy.int64)
    if even != end:
        sums += rows[:, even]
    sums %= 65535
    sums = (sums >> 8) | ((sums & 0xFF) << 8)
    return sums


def put16(rows: Rows, at: int, values: Numbers) -> None:
    """Write *values* as 16 bits at octet *at* of each row."""
    rows[:, at : at + 2] = values.astype(">u2").view(numpy.uint8).reshape(-1, 2)


def aead(
    spi: int, first: int, count: int, salt: bytes, *, esn: bool
) -> tuple[list[bytes], list[bytes], list[bytes]]:
    """Return ESP header with IV, nonce, and additional data of *count* packets from sequence number *first* on.

    RFC 4106 sections 3 to 5, RFC 7634 section 2; the IV is the sequence number.
    """
    numbers = numpy.uint64(first) + numpy.arange(count, dtype=numpy.uint64)
    fronts = numpy.empty(count, _FRONT)
    fronts["spi"], fronts["low"], fronts["iv"] = spi, numbers & numpy.uint64(_LOW), numbers
    nonces = numpy.empty(count, _NONCE)
    nonces["salt"], nonces["iv"] = numpy.void(salt), numbers
    return (
        split(fronts.tobytes(), _FRONT.itemsize),
        split(nonces.tobytes(), _NONCE.itemsize),
        _additional(spi, numbers, esn=esn),
    )


def _additional(spi: int, numbers: NDArray[numpy.uint64], *, esn: bool) -> list[bytes]:
    data: NDArray[Any] = numpy.empty(len(numbers), _AAD_ESN if esn else _AAD)
    data["spi"] = spi
    if esn:
        data["number"] = numbers
    else:
        data["low"] = numbers
    return split(data.tobytes(), data.dtype.itemsize)


@lru_cache(maxsize=1024)
def _octets(size: int) -> numpy.dtype[numpy.void]:
    return numpy.dtype(f"V{size}")
