"""Many rows at once are the rows one by one."""

from __future__ import annotations

import struct

import numpy
import pytest

from tunnel.dataplane.checksum import ones_sum
from tunnel.dataplane.rows import aead, column_sums, put16, rows_of, split


@pytest.mark.parametrize("start", [0, 1, 10])
@pytest.mark.parametrize("end", [11, 12, 1400])
def test_column_sums_are_the_sums_of_the_columns(start: int, end: int) -> None:
    for fill in (b"\xff", b"\x00", bytes(range(251))):
        data = (fill * 60_000)[: 40 * 1400]
        expected = [ones_sum(row[start:end]) for row in split(data, 1400)]
        assert column_sums(rows_of(data, 1400, 40), start, end).tolist() == expected


def test_rows_are_cut_where_they_begin_and_written_where_they_are() -> None:
    assert split(b"\x00\x01\x02\x00\x04\x00", 2) == [b"\x00\x01", b"\x02\x00", b"\x04\x00"]
    rows = rows_of(bytearray(b"-abcdef"), 3, 2, 1)
    put16(rows, 1, numpy.array([0x0102, 0xFF00]))
    assert rows.tobytes() == b"a\x01\x02d\xff\x00"


@pytest.mark.parametrize("first", [1, 2**32 - 2, 2**64 - 4])
def test_the_headers_of_a_run(first: int) -> None:
    """RFC 4106 sections 3 to 5: the IV is the sequence number, additional data hold all of an ESN."""
    numbers = range(first, first + 3)
    fronts, nonces, additional = aead(0x0102_0304, first, 3, b"salt", esn=True)
    assert fronts == [struct.pack("!IIQ", 0x0102_0304, number % 2**32, number) for number in numbers]
    assert nonces == [b"salt" + number.to_bytes(8, "big") for number in numbers]
    assert additional == [struct.pack("!IQ", 0x0102_0304, number) for number in numbers]
    if first == 1:
        assert aead(0x0102_0304, 1, 3, b"salt", esn=False)[2] == [front[:8] for front in fronts]
