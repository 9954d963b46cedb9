"""Times by entry, bounded."""

from __future__ import annotations

from tunnel.dataplane.until import Until


def test_what_holds_and_what_does_not() -> None:
    times = Until(3)
    times.set("a", 10)
    assert times.holds("a", 9)
    assert not times.holds("a", 10)
    assert len(times) == 0, "what is over is forgotten"
    times.set("a", 20)
    times.end("a")
    assert not times.holds("a", 0)


def test_the_oldest_goes_first() -> None:
    times = Until(3)
    for name in "abac":
        times.set(name, 100)
    times.set("d", 100)
    assert [times.holds(name, 0) for name in "abcd"] == [True, False, True, True]
    times.keep("ad".__contains__)
    assert [times.holds(name, 0) for name in "abcd"] == [True, False, False, True]
