"""Where the packets of an IKE SA or a Child SA go: a local and a remote endpoint, and the encapsulation."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import TypeAlias

IpAddress: TypeAlias = IPv4Address | IPv6Address

#: IKE (RFC 7296 section 2) and its port under NAT traversal, shared with UDP-encapsulated ESP (RFC 3948).
IKE_PORT = 500
NATT_PORT = 4500
#: A path whose ports are 0 carries raw IP protocol 50 or 51.
RAW_PORT = 0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address and a UDP port (0 for raw ESP and AH)."""

    address: IpAddress
    port: int

    def __str__(self) -> str:
        if self.port == RAW_PORT:
            return str(self.address)
        host = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Path:
    """The pair of endpoints that packets travel between.

    ``local.port`` selects the host's socket: 500 (IKE without marker), 4500 (IKE with the non-ESP marker,
    UDP-encapsulated ESP) or 0 (raw protocol 50 or 51).
    """

    local: Endpoint
    remote: Endpoint

    @property
    def encapsulated(self) -> bool:
        """Whether ESP on this path is UDP-encapsulated (RFC 3948)."""
        return self.remote.port != RAW_PORT

    @property
    def version(self) -> int:
        """IP version of the outer header, 4 or 6."""
        return self.remote.address.version

    def __str__(self) -> str:
        return f"{self.local}-{self.remote}"
