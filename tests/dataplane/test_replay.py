"""The replay window against a naive model: the set of every number ever received."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.dataplane.contract import DropReason
from tunnel.dataplane.replay import ReplayWindow


class Naive:
    """RFC 4303 section 3.4.3, with a set."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.seen: set[int] = set()

    @property
    def top(self) -> int:
        return max(self.seen, default=0)

    def check(self, number: int) -> DropReason | None:
        if number <= 0 or number <= self.top - self.size:
            return DropReason.OUTSIDE_WINDOW
        return DropReason.REPLAYED if number in self.seen else None


#: Steps relative to the highest number so far: mostly in order, some reordering, some leaps.
_STEPS = st.lists(
    st.one_of(st.just(1), st.integers(-40, 5), st.integers(-9000, 9000), st.integers(1, 70)), max_size=200
)


@given(steps=_STEPS, size=st.sampled_from([32, 33, 64, 65, 1024, 8192]), start=st.integers(0, 2**33))
def test_agrees_with_the_naive_model(steps: list[int], size: int, start: int) -> None:
    window, naive = ReplayWindow(size, esn=True), Naive(size)
    if start:
        window.commit(start)
        naive.seen.add(start)
    for step in steps:
        number = naive.top + step
        expected = naive.check(number)
        assert window.check(number) is expected
        if expected is None:
            window.commit(number)
            naive.seen.add(number)
        assert window.top == naive.top


@given(st.lists(st.integers(1, 200), min_size=1, max_size=300))
def test_nothing_is_accepted_twice(numbers: list[int]) -> None:
    window = ReplayWindow(64)
    accepted = []
    for number in numbers:
        if window.check(number) is None:
            window.commit(number)
            accepted.append(number)
    assert len(accepted) == len(set(accepted))


@given(
    top=st.integers(0, 2**40),
    offset=st.integers(-8192, 2**31 - 8192),
    size=st.sampled_from([32, 64, 1024, 8192]),
)
def test_the_high_half_is_inferred_within_the_window_and_ahead_of_it(top: int, offset: int, size: int) -> None:
    # RFC 4303 appendix A2: right for every number from the window's bottom to 2^32 - size above it.
    number = top + max(offset, 1 - size)
    if number < 0:
        return
    window = ReplayWindow(size, esn=True)
    if top:
        window.commit(top)
    assert window.infer(number & 0xFFFF_FFFF) == number


@pytest.mark.parametrize(
    ("top", "size", "low", "number"),
    [
        # RFC 4303 appendix A2.2 case A: the window lies within one subspace.
        (0x1_0000_1000, 64, 0x0000_0FC1, 0x1_0000_0FC1),
        (0x1_0000_1000, 64, 0x0000_0FC0, 0x2_0000_0FC0),
        (0x1_0000_1000, 64, 0xFFFF_FFFF, 0x1_FFFF_FFFF),
        # case B: it spans two.
        (0x1_0000_0010, 64, 0xFFFF_FFF0, 0x0_FFFF_FFF0),
        (0x1_0000_0010, 64, 0x0000_0011, 0x1_0000_0011),
        (0x1_0000_0010, 64, 0xFFFF_FFD0, 0x1_FFFF_FFD0),
        # the low half wraps
        (0xFFFF_FFFF, 64, 0x0000_0000, 0x1_0000_0000),
        (0, 64, 0xFFFF_FFFF, -1),
    ],
)
def test_inference_by_case(top: int, size: int, low: int, number: int) -> None:
    window = ReplayWindow(size, esn=True)
    if top:
        window.commit(top)
    assert window.infer(low) == number


def test_without_esn_the_number_is_what_came() -> None:
    window = ReplayWindow(64)
    window.commit(0xFFFF_FFFF)
    assert window.infer(0) == 0
    assert window.check(0) is DropReason.OUTSIDE_WINDOW


def test_zero_and_negative_numbers_never_pass() -> None:
    window = ReplayWindow(64, esn=True)
    assert window.check(0) is DropReason.OUTSIDE_WINDOW
    assert window.check(-5) is DropReason.OUTSIDE_WINDOW


@pytest.mark.parametrize("size", [0, 31, 8193])
def test_silly_windows_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match="replay window"):
        ReplayWindow(size)
