"""Traffic selectors and their algebra (RFC 4301 section 4.4.1.1, RFC 7296 section 3.13)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    summarize_address_range,
)

from policy.path import IpAddress

#: Next-layer protocol "any" (IANA 0 is HOPOPT, never a next-layer protocol of a selector).
ANY_PROTOCOL = 0
ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58
#: Protocols whose first octets are a source and a destination port: TCP, UDP, DCCP, SCTP, UDP-Lite.
PORT_PROTOCOLS = frozenset({6, 17, 33, 132, 136})


@dataclass(frozen=True, slots=True, order=True)
class AddressRange:
    """Addresses from *start* to *end* inclusive, of one family; as integers, so that comparing is cheap."""

    version: int
    start: int
    end: int

    def __post_init__(self) -> None:
        limit = 2**32 if self.version == 4 else 2**128
        if self.version not in (4, 6) or not 0 <= self.start <= self.end < limit:
            raise ValueError(f"not an address range: v{self.version} {self.start:#x}-{self.end:#x}")

    @classmethod
    def of(cls, first: IpAddress, last: IpAddress | None = None) -> AddressRange:
        """Return the range from *first* to *last* (or the one address). ValueError if families differ."""
        last = first if last is None else last
        if first.version != last.version:
            raise ValueError(f"{first} and {last} are of different families")
        return cls(first.version, int(first), int(last))

    @classmethod
    def network(cls, network: IPv4Network | IPv6Network) -> AddressRange:
        """Return all the addresses of *network*."""
        return cls(network.version, int(network.network_address), int(network.broadcast_address))

    @classmethod
    def any(cls, version: int) -> AddressRange:
        """Return every address of the family: 0.0.0.0/0 or ::/0."""
        return cls(version, 0, 2**32 - 1 if version == 4 else 2**128 - 1)

    @property
    def first(self) -> IpAddress:
        """The lowest address."""
        return IPv4Address(self.start) if self.version == 4 else IPv6Address(self.start)

    @property
    def last(self) -> IpAddress:
        """The highest address."""
        return IPv4Address(self.end) if self.version == 4 else IPv6Address(self.end)

    @property
    def is_host(self) -> bool:
        """Whether it is exactly one address."""
        return self.start == self.end

    @property
    def is_any(self) -> bool:
        """Whether it is the whole family."""
        return self == AddressRange.any(self.version)

    @property
    def specificity(self) -> int:
        """Number of leading bits that the range fixes, rounded up for ranges that are no prefix.

        A host has 32 or 128, a /24 has 24, any has 0: the Windows model's address weight.
        """
        width = 32 if self.version == 4 else 128
        return width - (self.end - self.start).bit_length()

    def contains(self, address: int) -> bool:
        """Whether the integer *address* (of this family) lies inside."""
        return self.start <= address <= self.end

    def covers(self, other: AddressRange) -> bool:
        """Whether *other* is a subset."""
        return self.version == other.version and self.start <= other.start and other.end <= self.end

    def intersect(self, other: AddressRange) -> AddressRange | None:
        """Return the common part, or None."""
        if self.version != other.version:
            return None
        start, end = max(self.start, other.start), min(self.end, other.end)
        return AddressRange(self.version, start, end) if start <= end else None

    def prefixes(self) -> Iterator[IPv4Network | IPv6Network]:
        """Yield the networks that make up the range exactly, in order."""
        return iter(summarize_address_range(self.first, self.last))

    def __str__(self) -> str:
        if self.is_host:
            return str(self.first)
        networks = list(self.prefixes())
        return str(networks[0]) if len(networks) == 1 else f"{self.first}-{self.last}"


@dataclass(frozen=True, slots=True, order=True)
class PortRange:
    """Ports from *start* to *end* inclusive; 0-65535 is ANY and 65535-0 is OPAQUE (RFC 7296 section 3.13.1).

    For ICMP and ICMPv6 the 16-bit value is type * 256 + code (RFC 4301 section 4.4.1.1).
    """

    start: int
    end: int

    @property
    def is_any(self) -> bool:
        """Whether every port, present or not, matches."""
        return self.start == 0 and self.end == 65535

    @property
    def is_opaque(self) -> bool:
        """Whether only packets whose ports cannot be seen match."""
        return self.start == 65535 and self.end == 0

    def contains(self, port: int | None) -> bool:
        """Whether *port* matches; None means that the packet shows none (a later fragment, say)."""
        if self.is_any:
            return True
        if port is None or self.is_opaque:
            return port is None and self.is_opaque
        return self.start <= port <= self.end

    def covers(self, other: PortRange) -> bool:
        """Whether *other* is a subset."""
        if self.is_any or self == other:
            return True
        if self.is_opaque or other.is_opaque:
            return False
        return self.start <= other.start and other.end <= self.end

    def intersect(self, other: PortRange) -> PortRange | None:
        """Return the common part, or None."""
        if self.is_any:
            return other
        if other.is_any or self == other:
            return self
        if self.is_opaque or other.is_opaque:
            return None
        start, end = max(self.start, other.start), min(self.end, other.end)
        return PortRange(start, end) if start <= end else None

    def __str__(self) -> str:
        if self.is_any:
            return "any"
        if self.is_opaque:
            return "opaque"
        return str(self.start) if self.start == self.end else f"{self.start}-{self.end}"


ANY_PORT = PortRange(0, 65535)
OPAQUE_PORT = PortRange(65535, 0)


@dataclass(frozen=True, slots=True, order=True)
class TrafficSelector:
    """One side of a flow: next-layer protocol, address range and port range (RFC 7296 section 3.13.1)."""

    protocol: int
    addresses: AddressRange
    ports: PortRange = ANY_PORT

    def contains(self, protocol: int, address: int, port: int | None) -> bool:
        """Whether a packet's side matches (the caller has compared the family)."""
        return (
            self.protocol in (ANY_PROTOCOL, protocol)
            and self.addresses.contains(address)
            and self.ports.contains(port)
        )

    def covers(self, other: TrafficSelector) -> bool:
        """Whether *other* is a subset."""
        return (
            self.protocol in (ANY_PROTOCOL, other.protocol)
            and self.addresses.covers(other.addresses)
            and self.ports.covers(other.ports)
        )

    def intersect(self, other: TrafficSelector) -> TrafficSelector | None:
        """Return the common part, or None: the narrowing of RFC 7296 section 2.9."""
        if self.protocol not in (ANY_PROTOCOL, other.protocol) and other.protocol != ANY_PROTOCOL:
            return None
        addresses = self.addresses.intersect(other.addresses)
        ports = self.ports.intersect(other.ports)
        if addresses is None or ports is None:
            return None
        return TrafficSelector(self.protocol or other.protocol, addresses, ports)

    def __str__(self) -> str:
        protocol = f"[{self.protocol}]" if self.protocol else ""
        ports = "" if self.ports.is_any else f":{self.ports}"
        return f"{self.addresses}{ports}{protocol}"


@dataclass(frozen=True, slots=True)
class SelectorPair:
    """A selector of an SPD entry or of a Child SA, in the local/remote form of RFC 4301.

    Both sides are of one family and one protocol.
    """

    local: TrafficSelector
    remote: TrafficSelector

    @property
    def version(self) -> int:
        """IP version of the traffic, 4 or 6."""
        return self.local.addresses.version

    @property
    def protocol(self) -> int:
        """Next-layer protocol, 0 for any."""
        return self.local.protocol

    def mirror(self) -> SelectorPair:
        """Return the pair with its sides exchanged, ports too."""
        return SelectorPair(self.remote, self.local)

    def covers(self, other: SelectorPair) -> bool:
        """Whether *other* is a subset."""
        return self.local.covers(other.local) and self.remote.covers(other.remote)

    def intersect(self, other: SelectorPair) -> SelectorPair | None:
        """Return the common part, or None."""
        local, remote = self.local.intersect(other.local), self.remote.intersect(other.remote)
        if local is None or remote is None or 0 != local.protocol != remote.protocol != 0:
            return None
        return SelectorPair(local, remote)

    def matches_outbound(self, flow: Flow) -> bool:
        """Whether a packet that leaves (source is local) matches."""
        return (
            flow.version == self.local.addresses.version
            and self.local.contains(flow.protocol, flow.source, flow.source_port)
            and self.remote.contains(flow.protocol, flow.destination, flow.destination_port)
        )

    def matches_inbound(self, flow: Flow) -> bool:
        """Whether a packet that arrives (source is remote) matches."""
        return (
            flow.version == self.local.addresses.version
            and self.remote.contains(flow.protocol, flow.source, flow.source_port)
            and self.local.contains(flow.protocol, flow.destination, flow.destination_port)
        )

    def matches_inbound_but_ports(self, flow: Flow) -> bool:
        """Whether a packet that arrives might match, whatever ports it has."""
        return (
            flow.version == self.local.addresses.version
            and self.protocol in (ANY_PROTOCOL, flow.protocol)
            and self.remote.addresses.contains(flow.source)
            and self.local.addresses.contains(flow.destination)
        )

    @property
    def any_ports(self) -> bool:
        """Whether packets match whatever ports they have."""
        return self.local.ports.is_any and self.remote.ports.is_any

    def __str__(self) -> str:
        return f"{self.local} <-> {self.remote}"


@dataclass(frozen=True, slots=True)
class Flow:
    """What the selectors see of one packet. Addresses are integers; a port that cannot be seen is None.

    For ICMP and ICMPv6 both ports carry type * 256 + code (RFC 4301 section 4.4.1.1).
    """

    version: int
    protocol: int
    source: int
    destination: int
    source_port: int | None = None
    destination_port: int | None = None

    @property
    def destination_address(self) -> IpAddress:
        """The destination as an address."""
        return AddressRange(self.version, self.destination, self.destination).first

    @property
    def source_address(self) -> IpAddress:
        """The source as an address."""
        return AddressRange(self.version, self.source, self.source).first

    def __str__(self) -> str:
        def side(address: int, port: int | None) -> str:
            text = str(AddressRange(self.version, address, address).first)
            if port is None:
                return text
            return f"[{text}]:{port}" if self.version == 6 else f"{text}:{port}"

        return (
            f"protocol {self.protocol} {side(self.source, self.source_port)} -> "
            f"{side(self.destination, self.destination_port)}"
        )
