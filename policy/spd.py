"""The Security Policy Database (RFC 4301 section 4.4.1): compiled, ordered, immutable, with a generation."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from policy.lifetimes import Lifetime
from policy.model import Encapsulation, SecurityMethod, Where
from policy.pad import Pad
from policy.path import IpAddress
from policy.proposals import Group
from policy.selectors import Flow, SelectorPair


class Disposition(Enum):
    """What happens to a matching packet (RFC 4301 section 4.4.1)."""

    BYPASS = "bypass"
    DISCARD = "discard"
    PROTECT = "protect"


class Mode(Enum):
    """Tunnel or transport mode."""

    TUNNEL = "tunnel"
    TRANSPORT = "transport"


@dataclass(frozen=True, slots=True, kw_only=True)
class Protection:
    """How a PROTECT entry is to be protected (RFC 4301 section 4.4.1.2)."""

    #: Name of the PAD entry.
    peer: str
    mode: Mode
    methods: tuple[SecurityMethod, ...]
    lifetime: Lifetime
    pfs: Group | None = None
    #: Remote tunnel endpoint; None when the peer may be anywhere, or in transport mode.
    tunnel_remote: IpAddress | None = None
    #: Accept clear packets inbound ("accept unsecured, but always respond using IPsec").
    inbound_clear: bool = False
    #: Allow clear traffic with a peer that never answered IKE.
    fallback_clear: bool = False
    encapsulation: Encapsulation = Encapsulation.AUTO
    replay_window: int = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class SpdEntry:
    """One entry: a selector pair with its disposition. A mirrored filter is both outbound and inbound.

    *id* is stable across generations: it is made of rule name, filter list, filter number and expansion.
    """

    id: str
    rule: str
    filter_list: str
    filter_action: str
    selectors: SelectorPair
    outbound: bool
    inbound: bool
    disposition: Disposition
    protection: Protection | None = None
    where: Where = field(default=Where(), compare=False)


@dataclass(frozen=True, slots=True)
class Spd:
    """The entries in matching order, most specific first."""

    entries: tuple[SpdEntry, ...] = ()

    def lookup_outbound(self, flow: Flow) -> SpdEntry | None:
        """Return the first outbound entry that matches, or None. Linear; the data plane caches by flow."""
        return next((e for e in self.entries if e.outbound and e.selectors.matches_outbound(flow)), None)

    def lookup_inbound(self, flow: Flow) -> SpdEntry | None:
        """Return the first inbound entry that matches, or None."""
        return next((e for e in self.entries if e.inbound and e.selectors.matches_inbound(flow)), None)

    def entry(self, entry_id: str) -> SpdEntry | None:
        """Return the entry of that id."""
        return next((e for e in self.entries if e.id == entry_id), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A policy in force: everything the core needs, compiled for this host's addresses, swapped as one value.

    *policy* None is "no policy assigned": empty tables.
    """

    generation: int
    policy: str | None = None
    spd: Spd = Spd()
    pad: Pad = Pad()
    #: This host's addresses when the snapshot was compiled.
    local_addresses: tuple[IpAddress, ...] = ()
    warnings: tuple[str, ...] = ()
