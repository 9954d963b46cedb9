"""Traffic selectors on the wire (RFC 7296 section 3.13)."""

from __future__ import annotations

from collections.abc import Sequence

from ike.constants import TsType
from ike.errors import WireError
from ike.wire.cursor import Cursor
from policy.selectors import AddressRange, PortRange, TrafficSelector

MAX_SELECTORS = 64

_HEADER = 8  # type, protocol, length, ports


def encode_selectors(selectors: Sequence[TrafficSelector]) -> bytes:
    """Return the body of a TS payload."""
    return bytes([len(selectors), 0, 0, 0]) + b"".join(_encode(selector) for selector in selectors)


def parse_selectors(cursor: Cursor) -> tuple[tuple[TrafficSelector, ...], int]:
    """Return the selectors of a TS payload's body, and how many of unknown types were skipped."""
    count = cursor.u8()
    cursor.take(3)  # RESERVED
    if not 1 <= count <= MAX_SELECTORS:
        raise WireError(f"{count} traffic selectors")
    selectors: list[TrafficSelector] = []
    for _ in range(count):
        kind, protocol, length = cursor.u8(), cursor.u8(), cursor.u16()
        selector = _parse(kind, protocol, cursor.restrict(length - 4))
        if selector is not None:
            selectors.append(selector)
    cursor.finish()
    return tuple(selectors), count - len(selectors)


def _encode(selector: TrafficSelector) -> bytes:
    addresses, ports = selector.addresses, selector.ports
    kind, size = (TsType.IPV4_ADDR_RANGE, 4) if addresses.version == 4 else (TsType.IPV6_ADDR_RANGE, 16)
    return (
        bytes([kind, selector.protocol])
        + (_HEADER + 2 * size).to_bytes(2, "big")
        + ports.start.to_bytes(2, "big")
        + ports.end.to_bytes(2, "big")
        + addresses.start.to_bytes(size, "big")
        + addresses.end.to_bytes(size, "big")
    )


def _parse(kind: int, protocol: int, cursor: Cursor) -> TrafficSelector | None:
    if kind == TsType.IPV4_ADDR_RANGE:
        version, size = 4, 4
    elif kind == TsType.IPV6_ADDR_RANGE:
        version, size = 6, 16
    else:
        return None
    ports = PortRange(cursor.u16(), cursor.u16())
    start, end = int.from_bytes(cursor.take(size), "big"), int.from_bytes(cursor.take(size), "big")
    cursor.finish()
    if ports.start > ports.end and not ports.is_opaque:
        raise WireError(f"port range {ports.start}-{ports.end}")
    if start > end:
        raise WireError("address range that ends before it starts")
    return TrafficSelector(protocol, AddressRange(version, start, end), ports)
