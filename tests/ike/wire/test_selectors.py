"""Traffic selectors on the wire (RFC 7296 section 3.13)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ike.errors import WireError
from ike.wire.cursor import Cursor
from ike.wire.selectors import MAX_SELECTORS, encode_selectors, parse_selectors
from policy.selectors import AddressRange, PortRange, TrafficSelector
from tests.support.ike_messages import FOREIGN_TS_TYPES, TS_R, traffic_selectors, v4


def parse(data: bytes) -> tuple[tuple[TrafficSelector, ...], int]:
    return parse_selectors(Cursor(data))


def test_layout() -> None:
    selector = v4(0x0A020000, 0x0A0200FF, 6, PortRange(80, 443))
    assert encode_selectors([selector]).hex() == (
        "01000000"  # one selector
        "07060010"  # TS_IPV4_ADDR_RANGE, TCP, 16 octets
        "005001bb"  # ports 80 to 443
        "0a020000"
        "0a0200ff"
    )
    six = TrafficSelector(58, AddressRange(6, 1, 2))
    assert encode_selectors([six]).hex() == f"01000000083a00280000ffff{1:032x}{2:032x}"


@settings(deadline=None)
@given(st.lists(traffic_selectors(), min_size=1, max_size=8))
def test_round_trip(sent: list[TrafficSelector]) -> None:
    assert parse(encode_selectors(sent)) == (tuple(sent), 0)


def test_every_prefix_and_every_extension_is_refused() -> None:
    data = TS_R.encode_body()
    for length in range(len(data)):
        with pytest.raises(WireError):
            parse(data[:length])
    with pytest.raises(WireError):
        parse(data + b"\0")


@pytest.mark.parametrize("count", [0, 1, MAX_SELECTORS - 1, MAX_SELECTORS, MAX_SELECTORS + 1, 255])
def test_number_of_selectors(count: int) -> None:
    """Class of CVE-2026-12413: N-1, N, N+1."""
    data = encode_selectors([v4(1, 2)] * count)
    if 1 <= count <= MAX_SELECTORS:
        assert parse(data) == ((v4(1, 2),) * count, 0)
    else:
        with pytest.raises(WireError):
            parse(data)


@pytest.mark.parametrize("kind", FOREIGN_TS_TYPES)
def test_unknown_types_are_skipped_and_counted(kind: int) -> None:
    foreign = bytes([kind, 0]) + (12).to_bytes(2, "big") + b"whatever"
    data = encode_selectors([v4(1, 2), v4(3, 4)])
    assert parse(b"\x03\0\0\0" + foreign + data[4:]) == ((v4(1, 2), v4(3, 4)), 1)
    assert parse(b"\x03\0\0\0" + data[4:] + foreign) == ((v4(1, 2), v4(3, 4)), 1)
    assert parse(b"\x01\0\0\0" + foreign) == ((), 1)


@pytest.mark.parametrize("length", [0, 3, 4, 8, 15, 17, 40, 65535])
def test_lengths_fit_the_type(length: int) -> None:
    data = bytearray(encode_selectors([v4(1, 2)]))
    data[6:8] = length.to_bytes(2, "big")
    with pytest.raises(WireError):
        parse(bytes(data))


@pytest.mark.parametrize(
    ("start", "end", "good"),
    [
        *((0, 65535, True), (0, 0, True), (80, 80, True), (65535, 0, True), (65535, 65535, True)),
        *((1, 0, False), (443, 80, False), (65534, 0, False), (65535, 1, False)),
    ],
)
def test_ports(start: int, end: int, good: bool) -> None:
    """Only OPAQUE, 65535 to 0, may end before it starts."""
    data = encode_selectors([v4(1, 2, 6, PortRange(start, end))])
    if good:
        assert parse(data)[0][0].ports == PortRange(start, end)
    else:
        with pytest.raises(WireError):
            parse(data)


@pytest.mark.parametrize(("kind", "size"), [(7, 4), (8, 16)])
def test_addresses_that_end_before_they_start(kind: int, size: int) -> None:
    head = bytes([1, 0, 0, 0, kind, 0]) + (8 + 2 * size).to_bytes(2, "big") + b"\0\0\xff\xff"
    low, high = bytes(size), b"\xff" * size
    assert parse(head + low + high)[0][0].addresses.is_any
    assert parse(head + high + high)[0][0].addresses.is_host
    with pytest.raises(WireError):
        parse(head + high + low)


def test_reserved_is_ignored() -> None:
    data = bytearray(encode_selectors([v4(1, 2)]))
    data[1:4] = b"\xff\xff\xff"
    assert parse(bytes(data)) == ((v4(1, 2),), 0)
