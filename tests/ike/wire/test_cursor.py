"""The cursor: nothing is read past an end, nothing is left behind."""

from __future__ import annotations

import pytest

from ike.errors import WireError
from ike.wire.cursor import Cursor


def test_reads_in_network_order() -> None:
    cursor = Cursor(bytes(range(1, 12)))
    assert (cursor.u8(), cursor.u16(), cursor.u32()) == (1, 0x0203, 0x04050607)
    assert (cursor.position, cursor.left) == (7, 4)
    assert cursor.take(2) == b"\x08\x09"
    assert cursor.rest() == b"\x0a\x0b"
    cursor.finish()


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_leftovers_are_errors(count: int) -> None:
    cursor = Cursor(bytes(3))
    cursor.take(count)
    if count == 3:
        cursor.finish()
        return
    with pytest.raises(WireError):
        cursor.finish()


@pytest.mark.parametrize("count", [-1, 4, 2**16, 2**32])
def test_lengths_are_checked(count: int) -> None:
    """Class of CVE-2021-41990: no length is trusted, large or negative."""
    with pytest.raises(WireError):
        Cursor(bytes(3)).take(count)
    with pytest.raises(WireError):
        Cursor(bytes(3)).restrict(count)


def test_an_inner_length_cannot_leave_the_outer_one() -> None:
    outer = Cursor(bytes(10), 2, 8)
    inner = outer.restrict(4)
    assert outer.left == 2
    with pytest.raises(WireError):
        inner.restrict(5)
    assert inner.rest() == bytes(4)
    for read in (inner.u8, inner.u16, inner.u32):
        with pytest.raises(WireError):
            read()
