"""Sums of many pieces at once are the sums of the pieces."""

from __future__ import annotations

import pytest

from tunnel.dataplane.checksum import ones_sum, piece_sums


@pytest.mark.parametrize("size", [1, 2, 7, 100, 101, 1386, 1398, 65494])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 46])
def test_piece_sums_are_the_sums_of_the_pieces(size: int, count: int) -> None:
    for fill in (b"\xff", b"\x00", bytes(range(251))):
        data = (fill * (size * count // len(fill) + 1))[: size * count]
        expected = [ones_sum(data[at : at + size]) for at in range(0, len(data), size)]
        assert [total % 65535 for total in piece_sums(b"\x01\x02" + data, 2, size, count)] == expected
