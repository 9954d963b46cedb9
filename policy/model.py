"""The policy model of Windows Server 2003, as frozen values (the words are the console's).

A policy is a set of rules; a rule joins a filter list, a filter action, authentication methods, a tunnel
endpoint or none, and a connection type. ``policy.compile`` turns a policy into RFC 4301's databases.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path as FilePath
from typing import TypeAlias

from policy.clock import SECOND
from policy.lifetimes import Lifetime
from policy.path import IpAddress
from policy.proposals import Group, Proposal
from policy.secret import Secret
from policy.selectors import ANY_PORT, ANY_PROTOCOL, AddressRange, PortRange


@dataclass(frozen=True, slots=True)
class Where:
    """Where the operator wrote something: file, line and column (both from 1)."""

    file: str = "<built-in>"
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file


NOWHERE = Where()


class Special(Enum):
    """Address kinds that are resolved when the policy is compiled."""

    ME = "me"
    ANY = "any"


class Server(Enum):
    """Servers that this host was told of; their addresses are given to the compiler."""

    DNS = "dns"
    DHCP = "dhcp"
    WINS = "wins"
    GATEWAY = "gateway"


@dataclass(frozen=True, slots=True)
class DnsName:
    """A DNS name; its addresses are given to the compiler, which never resolves anything itself."""

    name: str


AddressSpec: TypeAlias = AddressRange | Special | DnsName | Server


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Packets from *source* to *destination*; mirrored, the replies too.

    For ICMP and ICMPv6 both ports hold types and codes (``policy.icmp``).
    """

    source: AddressSpec
    destination: AddressSpec
    protocol: int = ANY_PROTOCOL
    source_port: PortRange = ANY_PORT
    destination_port: PortRange = ANY_PORT
    mirrored: bool = True
    description: str = ""
    where: Where = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterList:
    """A named list of filters, shared by any number of rules."""

    name: str
    filters: tuple[Filter, ...]
    description: str = ""
    where: Where = field(default=NOWHERE, compare=False)


class ActionKind(Enum):
    """What a filter action does with matching packets."""

    PERMIT = "permit"
    BLOCK = "block"
    NEGOTIATE = "negotiate"


class Encapsulation(Enum):
    """Whether ESP is carried in UDP (RFC 3948)."""

    AUTO = "auto"
    UDP = "udp"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class SecurityMethod:
    """One offer: one protocol, or AH and ESP on one packet (outermost first: AH, then ESP)."""

    protocols: tuple[Proposal, ...]
    text: str = ""


#: As ``traffic_padding``: every packet is as large as the path allows.
FULL_PADDING = 65535


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterAction:
    """Permit, block, or negotiate with security methods in order of preference."""

    name: str
    kind: ActionKind
    methods: tuple[SecurityMethod, ...] = ()
    lifetime: Lifetime = Lifetime(time=3600 * SECOND)
    pfs: Group | None = None
    inbound_clear: bool = False
    fallback_clear: bool = False
    encapsulation: Encapsulation = Encapsulation.AUTO
    #: Replay window in packets, 64 to 8192 (RFC 4303 section 3.4.3).
    replay_window: int = 1024
    #: In tunnels: octets that packets are padded to a multiple of (RFC 4303 section 2.7), 0 for none; and dummy
    #: packets a second (section 2.6). Both hide how much is said.
    traffic_padding: int = 0
    dummy_packets: int = 0
    description: str = ""
    where: Where = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class PresharedKey:
    """Authentication by preshared key. *secret* is None while only the shape of a file was checked."""

    secret: Secret
    remote_id: str | None = None
    where: Where = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateAuth:
    """Authentication by certificate (read, but not yet usable)."""

    certificate: FilePath
    key: FilePath
    ca: FilePath
    remote_id: str | None = None
    where: Where = field(default=NOWHERE, compare=False)


AuthenticationMethod: TypeAlias = PresharedKey | CertificateAuth


class ConnectionType(Enum):
    """Interfaces that a rule applies to."""

    ALL = "all"
    LAN = "lan"
    REMOTE_ACCESS = "remote-access"


#: ``tunnel_endpoint``: an address, a DNS name, Special.ANY (whoever authenticates; we only respond).
TunnelEndpoint: TypeAlias = IpAddress | DnsName | Special


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A filter list, a filter action, authentication methods, a tunnel endpoint or none, a connection type."""

    name: str
    filter_list: FilterList
    filter_action: FilterAction
    authentication: tuple[AuthenticationMethod, ...] = ()
    tunnel_endpoint: TunnelEndpoint | None = None
    connection_type: ConnectionType = ConnectionType.ALL
    active: bool = True
    where: Where = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyExchange:
    """Key exchange settings of a policy: IKE version, proposals in order of preference, and lifetime."""

    version: int = 2
    proposals: tuple[Proposal, ...] = ()
    lifetime: Lifetime = Lifetime(time=8 * 3600 * SECOND)
    #: Idle time after which a peer is probed (RFC 7296 section 2.4), nanoseconds; None = never.
    liveness: int | None = 30 * SECOND
    #: Largest IKE datagram before RFC 7383 fragmentation, octets of IP packet.
    fragment_size: int = 1280


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A named set of rules with its key exchange settings."""

    name: str
    rules: tuple[Rule, ...]
    ike: KeyExchange
    description: str = ""
    default_response: bool = False
    #: How the peers of the default response rule authenticate.
    authentication: tuple[AuthenticationMethod, ...] = ()
    local_id: str | None = None
    where: Where = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings:
    """The [agent] table."""

    assigned: str | None = None
    control: FilePath = FilePath("/run/mirrorgate/control.sock")
    tun: str = "mg0"
    log_level: str = "info"
    #: "human" or "json": one JSON object an event.
    log_format: str = "human"
    metrics: str | None = None
    #: Use of TUN and UDP offloads: "auto" probes and falls back; "off" moves single packets.
    offload: str = "auto"
    #: How built-in policies, rules and default response rules without authentication of their own authenticate.
    authentication: tuple[AuthenticationMethod, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """One config file: the agent's settings and its policies."""

    agent: AgentSettings
    policies: tuple[Policy, ...]
    file: FilePath

    def policy(self, name: str) -> Policy | None:
        """Return the policy of the file called *name* (the words are compared as written), or None."""
        return next((policy for policy in self.policies if policy.name == name), None)
