"""The packet that an ICMP error is about (RFC 4301 section 6.2).

An error that comes over an SA must be about a packet that went out over it: anybody behind the other end could say
anything else. It need not come from an address of the SA's: routers on the way report errors too.
"""

from __future__ import annotations

from policy.selectors import PORT_PROTOCOLS, Flow
from tunnel.dataplane.contract import Buffer
from tunnel.dataplane.flow import FRAGMENT, Parsed

#: Octets of an ICMP or ICMPv6 error before the packet that it quotes.
_HEADER = 8
_MAX_EXTENSIONS = 8


def quoted_flow(packet: Buffer, parsed: Parsed) -> Flow | None:
    """Return the flow of the packet that the ICMP error *packet* quotes, cut off though it may be.

    None where too little is quoted to tell. A port that is not quoted, or that a fragment has not, is None.
    """
    quote = bytes(packet[parsed.transport + _HEADER : parsed.length])
    if not quote:
        return None
    if quote[0] >> 4 == 4 and parsed.flow.version == 4:
        return _quoted_v4(quote)
    if quote[0] >> 4 == 6 and parsed.flow.version == 6:
        return _quoted_v6(quote)
    return None


def concerns(flow: Flow, parsed: Parsed) -> bool:
    """Whether an error goes to whoever sent the packet that it is about."""
    return flow.source == parsed.flow.destination


def _quoted_v4(quote: bytes) -> Flow | None:
    size = (quote[0] & 15) * 4
    if len(quote) < 20 or size < 20:
        return None
    source, destination = quote[12:16], quote[16:20]
    whole = not (quote[6] & 0x1F or quote[7])
    return _flow(4, quote[9], source, destination, quote[size:] if whole else b"")


def _quoted_v6(quote: bytes) -> Flow | None:
    if len(quote) < 40:
        return None
    protocol, at, whole = quote[6], 40, True
    for _ in range(_MAX_EXTENSIONS):
        if protocol not in (0, 43, 60, FRAGMENT):
            break
        if at + 8 > len(quote):
            return None
        if protocol == FRAGMENT:
            whole = whole and not (quote[at + 2] or quote[at + 3] & 0xF8)
            protocol, at = quote[at], at + 8
        else:
            protocol, at = quote[at], at + 8 + quote[at + 1] * 8
    return _flow(6, protocol, quote[8:24], quote[24:40], quote[at:] if whole else b"")


def _flow(version: int, protocol: int, source: bytes, destination: bytes, rest: bytes) -> Flow:
    ports: tuple[int | None, int | None] = (None, None)
    if protocol in PORT_PROTOCOLS and len(rest) >= 4:
        ports = rest[0] << 8 | rest[1], rest[2] << 8 | rest[3]
    elif protocol in (1, 58) and len(rest) >= 2:
        ports = (rest[0] << 8 | rest[1],) * 2
    return Flow(version, protocol, int.from_bytes(source, "big"), int.from_bytes(destination, "big"), *ports)
