"""The text forms of addresses, ports, protocols, durations and sizes, as a config file writes them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from types import MappingProxyType

from policy.clock import SECOND, Nanos
from policy.icmp import icmp_ports, icmp_types, is_icmp
from policy.model import FULL_PADDING, AddressSpec, DnsName, Server, Special, TunnelEndpoint
from policy.path import IpAddress
from policy.problems import TextError, nearest, quoted
from policy.selectors import ANY_PROTOCOL, PORT_PROTOCOLS, AddressRange, Flow, PortRange

#: Protocol names (IANA's keywords, and Windows' for the last ones).
PROTOCOLS: Mapping[str, int] = MappingProxyType(
    {
        "any": ANY_PROTOCOL,
        "icmp": 1,
        "igmp": 2,
        "ipip": 4,
        "tcp": 6,
        "egp": 8,
        "udp": 17,
        "hmp": 20,
        "xns-idp": 22,
        "rdp": 27,
        "dccp": 33,
        "ipv6": 41,
        "rsvp": 46,
        "gre": 47,
        "esp": 50,
        "ah": 51,
        "icmpv6": 58,
        "rvd": 66,
        "ospf": 89,
        "pim": 103,
        "vrrp": 112,
        "l2tp": 115,
        "sctp": 132,
        "udplite": 136,
        "raw": 255,
    }
)
_PROTOCOL_ALIASES: Mapping[str, str] = MappingProxyType(
    {"icmp6": "icmpv6", "ipv6-icmp": "icmpv6", "ipip4": "ipip", "udp-lite": "udplite", "*": "any"}
)
_PROTOCOL_NAMES = {number: name for name, number in PROTOCOLS.items()}
#: Words for addresses that this host knows by itself.
_SERVERS = tuple(kind.value for kind in Server)
_ADDRESS_WORDS = ("any", "me", *_SERVERS)
_LABEL = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)\Z", re.ASCII)
_MAX_PADDING = 1400
_NUMBER = re.compile(r"[0-9]{1,18}\Z", re.ASCII)
_MEASURE = re.compile(r"([0-9]{1,18})\s*([A-Za-z]*)\Z", re.ASCII)
_TIME_UNITS: Mapping[str, int] = MappingProxyType({"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 604800})
_SIZE_UNITS: Mapping[str, int] = MappingProxyType(
    {"B": 1}
    | {f"{prefix}B": 1000**power for power, prefix in enumerate(("k", "M", "G", "T"), 1)}
    | {f"{prefix}iB": 1024**power for power, prefix in enumerate(("K", "M", "G", "T"), 1)}
)


def parse_address(text: str) -> AddressSpec:
    """Return what *text* means: any, me, dns and so on, a host, a network, a range, a DNS name. TextError."""
    stripped = text.strip()
    if stripped.lower() in ("any", "me"):
        return Special(stripped.lower())
    if stripped.lower() in _SERVERS:
        return Server(stripped.lower())
    if "/" in stripped:
        return AddressRange.network(_network(text, stripped))
    host = _host(stripped)
    if host is not None:
        return AddressRange.of(host)
    first_text, dash, last_text = stripped.partition("-")
    first, last = _host(first_text.strip()), _host(last_text.strip())
    if dash and (first is not None or last is not None):
        return _range(text, first, last)
    return DnsName(_dns_name(text, stripped))


def parse_endpoint(text: str) -> TunnelEndpoint:
    """Return the tunnel endpoint that *text* means: an address, a DNS name, or any. Raises TextError."""
    stripped = text.strip()
    if stripped.lower() == "any":
        return Special.ANY
    if stripped.lower() == "me":
        raise TextError('tunnel_endpoint = "me" is this host itself', "name the peer's address")
    host = _host(stripped)
    if host is not None:
        if host.is_unspecified or host.is_multicast:
            raise TextError(f"{quoted(text)} is not the address of a host", "name the peer's address")
        return host
    if "/" in stripped:
        raise TextError(f"{quoted(text)} is a network; a tunnel ends at one address", "name the peer's address")
    try:
        return DnsName(_dns_name(text, stripped))
    except TextError as error:
        raise TextError(error.message, 'write the peer\'s address, its DNS name, or "any"') from None


def parse_ports(value: object) -> PortRange:
    """Return the port range of a number or of "a-b". Raises TextError."""
    if isinstance(value, int) and not isinstance(value, bool):
        first = last = value
    elif isinstance(value, str):
        low, dash, high = value.partition("-")
        if value.strip().lower() == "any":
            return PortRange(0, 65535)
        if not _NUMBER.match(low.strip()) or (dash and not _NUMBER.match(high.strip())):
            raise TextError(f"{quoted(value)} is not a port", 'write a number, or a range such as "1024-65535"')
        first = int(low)
        last = int(high) if dash else first
    else:
        raise TextError("a port must be a number or a text", 'write 80 or "1024-65535"')
    if not 0 <= first <= 65535 or not 0 <= last <= 65535:
        raise TextError(
            f"port {first if first > 65535 or first < 0 else last} does not exist", "ports are 0 to 65535"
        )
    if first > last:
        raise TextError(f"the port range {first}-{last} runs backwards", f'write "{last}-{first}"')
    return PortRange(first, last)


def parse_padding(value: object) -> int:
    """Return how many octets packets are padded to a multiple of; "mtu" is ``FULL_PADDING``. Raises TextError."""
    if value == "mtu":
        return FULL_PADDING
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MAX_PADDING:
        raise TextError(
            f'must be 0 to {_MAX_PADDING} octets, or "mtu"',
            'such as 256: packets are padded to a multiple of it; "mtu": all are as large as the path allows',
        )
    return value


def parse_protocol(value: object) -> int:
    """Return the next-layer protocol number of a name or a number. Raises TextError."""
    if isinstance(value, int) and not isinstance(value, bool):
        number = value
    elif isinstance(value, str):
        word = value.strip().lower()
        word = _PROTOCOL_ALIASES.get(word, word)
        if word in PROTOCOLS:
            return PROTOCOLS[word]
        if not _NUMBER.match(word):
            near = nearest(word, PROTOCOLS)
            raise TextError(
                f"unknown protocol {quoted(value)}",
                f'did you mean "{near}"?' if near else "a name such as tcp, udp, icmp, or a number from 1 to 255",
            )
        number = int(word)
    else:
        raise TextError("a protocol must be a name or a number", 'write "tcp" or 6')
    if number == 0:
        raise TextError("protocol 0 is no next-layer protocol", 'write "any" for every protocol')
    if not 1 <= number <= 255:
        raise TextError(f"protocol {number} does not exist", "protocols are 1 to 255")
    return number


def parse_flow(protocol: str, source: str, destination: str) -> Flow:
    """Return the flow that "tcp", "10.1.0.5:40000", "[2001:db8::9]:443" mean; ports are optional. TextError.

    An ICMP message may be named: "icmp:echo-request", "icmp:3/4" (type and code).
    """
    protocol, _, message = protocol.partition(":")
    number = parse_protocol(int(protocol) if _NUMBER.match(protocol) else protocol)
    if number == ANY_PROTOCOL:
        raise TextError("a packet has one protocol", 'write "tcp", "udp", "icmp" or a number')
    one, source_port = _side(source)
    other, destination_port = _side(destination)
    if one.version != other.version:
        raise TextError(f"{one} and {other} are of different families", "a packet goes between two of one family")
    if message:
        source_port = destination_port = _message(number, message)
        return Flow(one.version, number, int(one), int(other), source_port, destination_port)
    ports = next((port for port in (source_port, destination_port) if port is not None), None)
    if ports is not None and number not in PORT_PROTOCOLS:
        raise TextError(f"{protocol_name(number)} has no ports", "leave the port out")
    return Flow(one.version, number, int(one), int(other), source_port, destination_port)


def protocol_name(number: int) -> str:
    """Return the name of a protocol, or its number as text."""
    return _PROTOCOL_NAMES.get(number, str(number))


def parse_duration(value: object) -> Nanos:
    """Return nanoseconds for "8h", "90m", "3600s", "1d", or a bare number of seconds. Raises TextError."""
    if isinstance(value, int) and not isinstance(value, bool):
        return _positive(value, f"{value} s") * SECOND
    if isinstance(value, str) and (match := _MEASURE.match(value.strip())):
        unit = match[2].lower() or "s"
        if unit in _TIME_UNITS:
            return _positive(int(match[1]) * _TIME_UNITS[unit], value) * SECOND
        raise TextError(f"unknown unit of time {quoted(match[2])}", 'write "90m", "8h", "3600s" or "1d"')
    raise TextError(
        f"{quoted(value)} is not a duration" if isinstance(value, str) else "a duration must be a text",
        'write "90m", "8h", "3600s" or "1d"',
    )


def parse_size(value: object) -> int:
    """Return octets for "100GiB", "500MB", "64KiB", or a bare number of octets. Raises TextError."""
    if isinstance(value, int) and not isinstance(value, bool):
        return _positive(value, f"{value} octets")
    if isinstance(value, str) and (match := _MEASURE.match(value.strip())):
        units = {name.lower(): factor for name, factor in _SIZE_UNITS.items()}
        unit = match[2] or "B"
        if unit.lower() in units:
            return _positive(int(match[1]) * units[unit.lower()], value)
        near = nearest(unit, _SIZE_UNITS)
        raise TextError(
            f"unknown unit of size {quoted(unit)}",
            f'did you mean "{near}"?' if near else 'write "100GiB", "500MB" or "64KiB"',
        )
    raise TextError(
        f"{quoted(value)} is not a size" if isinstance(value, str) else "a size must be a text",
        'write "100GiB", "500MB" or "64KiB"',
    )


def _message(protocol: int, text: str) -> int:
    """Return type * 256 + code of "echo-request" or "3/4"; a code that is not written is 0."""
    if not is_icmp(protocol):
        raise TextError(f"{protocol_name(protocol)} has no types", "only icmp and icmpv6 have them")
    kind, slash, code = text.partition("/")
    ports = icmp_ports(icmp_types(protocol, kind), code if slash else 0)
    if ports.start != ports.end:
        raise TextError(f"{quoted(text)} is not one ICMP message", "a packet has one type and one code")
    return ports.start


def _side(text: str) -> tuple[IpAddress, int | None]:
    """Return the address and the port of "10.1.0.5:80", "[2001:db8::9]:80" or a bare address."""
    host, port = text.strip(), ""
    if host.startswith("["):
        host, _, port = host[1:].partition("]")
        port = port.removeprefix(":")
    elif host.count(":") == 1:
        host, _, port = host.partition(":")
    address = _host(host)
    if address is None:
        raise TextError(
            f"{quoted(text)} is not an address", 'write "10.1.0.5", "10.1.0.5:443" or "[2001:db8::9]:443"'
        )
    if not port:
        return address, None
    ports = parse_ports(port)
    if ports.start != ports.end:
        raise TextError(f"{quoted(port)} is not one port", "a packet has one")
    return address, ports.start


def _positive(value: int, text: str) -> int:
    if value <= 0:
        raise TextError(f"{quoted(text)} is no limit", "write a value above 0, or leave the key out")
    if value > 2**62:
        raise TextError(f"{quoted(text)} is too large", "leave the key out for no limit")
    return value


def _host(text: str) -> IpAddress | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.scope_id is not None:
        raise TextError(
            f"{quoted(text)} has a zone", "a selector cannot name an interface: remove the % and after"
        )
    return address


def _network(text: str, stripped: str) -> IPv4Network | IPv6Network:
    try:
        return ip_network(stripped)
    except ValueError:
        pass
    try:
        loose = ip_network(stripped, strict=False)
    except ValueError:
        host, _, length = stripped.partition("/")
        address = _host(host)
        if address is None:
            raise TextError(
                f"{quoted(text)} is not a network", 'write it as "10.1.0.0/24" or "2001:db8::/64"'
            ) from None
        limit = 32 if isinstance(address, IPv4Address) else 128
        raise TextError(
            f"{quoted(text)}: {quoted(length)} is not a prefix length",
            f"an IPv{address.version} prefix is 0 to {limit}",
        ) from None
    raise TextError(f"{quoted(text)} has host bits set", f'did you mean "{loose}"?')


def _range(text: str, first: IpAddress | None, last: IpAddress | None) -> AddressRange:
    if first is None or last is None:
        raise TextError(f"{quoted(text)} is not an address range", 'write it as "10.1.0.10-10.1.0.20"')
    if first.version != last.version:
        raise TextError(f"{quoted(text)} begins and ends in different families", "use one family in a range")
    if int(first) > int(last):
        raise TextError(f"the range {quoted(text)} runs backwards", f'write "{last}-{first}"')
    return AddressRange.of(first, last)


def _dns_name(text: str, stripped: str) -> str:
    name = stripped.rstrip(".").lower() if stripped.count("..") == 0 else stripped
    labels = name.split(".")
    digits_only = all(label.isdigit() for label in labels)
    if digits_only or ":" in stripped or not all(_LABEL.match(label) for label in labels) or len(name) > 253:
        near = nearest(stripped, _ADDRESS_WORDS)
        raise TextError(
            f"{quoted(text)} is not an address",
            f'did you mean "{near}"?'
            if near
            else "any, me, dns, dhcp, wins, gateway, a host, net/len, first-last, or a DNS name",
        )
    if len(labels) == 1 and not stripped.endswith(".") and (near := nearest(stripped, _ADDRESS_WORDS)):
        raise TextError(
            f"{quoted(text)} is not an address", f'did you mean "{near}"? For a host of that name write "{name}."'
        )
    if labels[-1].isdigit():
        raise TextError(f"{quoted(text)} is not an address", "the last label of a DNS name is not a number")
    return name
