"""ICMP types and codes in filters: one 16-bit value, type * 256 + code (RFC 4301 section 4.4.1.1).

The value stands in both ports of a selector (RFC 7296 section 3.13.1).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from policy.problems import TextError, nearest, quoted
from policy.selectors import ICMP, ICMPV6, PortRange

_NUMBER = re.compile(r"[0-9]{1,18}\Z", re.ASCII)
#: Message types by protocol (IANA's registries, in words).
TYPES: Mapping[int, Mapping[str, int]] = MappingProxyType(
    {
        ICMP: MappingProxyType(
            {
                "echo-reply": 0,
                "destination-unreachable": 3,
                "redirect": 5,
                "echo-request": 8,
                "router-advertisement": 9,
                "router-solicitation": 10,
                "time-exceeded": 11,
                "parameter-problem": 12,
                "timestamp-request": 13,
                "timestamp-reply": 14,
            }
        ),
        ICMPV6: MappingProxyType(
            {
                "destination-unreachable": 1,
                "packet-too-big": 2,
                "time-exceeded": 3,
                "parameter-problem": 4,
                "echo-request": 128,
                "echo-reply": 129,
                "router-solicitation": 133,
                "router-advertisement": 134,
                "neighbor-solicitation": 135,
                "neighbor-advertisement": 136,
                "redirect": 137,
            }
        ),
    }
)


def icmp_types(protocol: int, value: object) -> tuple[int, int]:
    """Return the first and the last type of a number, "a-b" or a name such as "echo-request". Raises TextError."""
    names = TYPES[protocol]
    if isinstance(value, str) and not value[:1].isdigit():
        word = value.strip().lower()
        if word in names:
            return names[word], names[word]
        near = nearest(word, names)
        other = ICMPV6 if protocol == ICMP else ICMP
        hint = f'did you mean "{near}"?' if near else f"a number, or one of: {', '.join(names)}"
        if word in TYPES[other]:
            hint = f'write a number, or protocol = "{"icmp" if other == ICMP else "icmpv6"}"'
        raise TextError(f"unknown ICMP type {quoted(value)}", hint)
    return _octets(value, "type")


def icmp_ports(types: tuple[int, int], codes: object | None) -> PortRange:
    """Return the selector's value of *types* and of the codes written, a number or "a-b"; None: all codes."""
    first, last = types
    if codes is None:
        return PortRange(first * 256, last * 256 + 255)
    low, high = _octets(codes, "code")
    if first != last and (low, high) != (0, 255):
        raise TextError(
            "codes belong to one type, and these are several", "write one icmp_type for each icmp_code"
        )
    return PortRange(first * 256 + low, last * 256 + high)


def icmp_text(protocol: int, ports: PortRange) -> str:
    """Return what an ICMP selector's value means: "echo-request", "type 3 code 4", "any"."""
    if ports.is_any:
        return "any"
    if ports.is_opaque:
        return "opaque"
    (first, low), (last, high) = divmod(ports.start, 256), divmod(ports.end, 256)
    names = {number: name for name, number in TYPES.get(protocol, {}).items()}
    kind = names.get(first, f"type {first}") if first == last else f"type {first}-{last}"
    if (low, high) == (0, 255):
        return kind
    if first != last:
        return f"type {first} code {low} to type {last} code {high}"
    return f"{kind} code {low}" if low == high else f"{kind} code {low}-{high}"


def is_icmp(protocol: int) -> bool:
    """Whether the protocol is ICMP or ICMPv6."""
    return protocol in TYPES


def ports_text(protocol: int, ports: PortRange) -> str:
    """Return a selector's ports as a person reads them, for ICMP its types and codes."""
    return icmp_text(protocol, ports) if is_icmp(protocol) else str(ports)


def _octets(value: object, what: str) -> tuple[int, int]:
    if isinstance(value, int) and not isinstance(value, bool):
        first = last = value
    elif isinstance(value, str):
        low, dash, high = value.partition("-")
        if not _NUMBER.match(low.strip()) or (dash and not _NUMBER.match(high.strip())):
            raise TextError(f"{quoted(value)} is no ICMP {what}", 'write a number, or a range such as "0-3"')
        first = int(low)
        last = int(high) if dash else first
    else:
        raise TextError(f"an ICMP {what} must be a number or a text", 'write 8, "0-3" or a name')
    if not 0 <= first <= 255 or not 0 <= last <= 255:
        raise TextError(f"ICMP {what} {last if 0 <= first <= 255 else first} does not exist", "they are 0 to 255")
    if first > last:
        raise TextError(f"the range {first}-{last} runs backwards", f'write "{last}-{first}"')
    return first, last
