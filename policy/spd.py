"""The Security Policy Database (RFC 4301 section 4.4.1): compiled, ordered, immutable, with a generation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import Enum
from ipaddress import ip_address

from policy.clock import Nanos
from policy.lifetimes import Lifetime
from policy.model import ConnectionType, Encapsulation, SecurityMethod, Where
from policy.pad import Pad, peer_at
from policy.path import IpAddress
from policy.proposals import Group
from policy.selector_index import SelectorIndex
from policy.selectors import AddressRange, Flow, SelectorPair


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
    #: Octets that tunnel-mode packets are padded to a multiple of (RFC 4303 section 2.7); dummy packets a second.
    padding: int = 0
    dummies: int = 0
    #: A pair of SAs that carried nothing for this long is deleted; None: never.
    idle: Nanos | None = None


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
    #: Each remote host has SAs of its own: the remote address is populated from the packet (RFC 4301 section
    #: 4.4.1.2). Such an entry is a template; what is negotiated, held and shown is ``for_host`` of it.
    per_host: bool = False
    #: The kind of interface that the entry is for.
    interfaces: ConnectionType = ConnectionType.ALL
    #: The filter as the operator wrote it, for messages.
    filter: str = field(default="", compare=False)
    #: Why the disposition is not the filter action's, if it is not.
    note: str = field(default="", compare=False)
    where: Where = field(default=Where(), compare=False)

    def for_host(self, remote: IpAddress) -> SpdEntry:
        """Return the entry for one remote host: itself, unless it is a template (``per_host``).

        Its id is the template's, "@" and the address; its peer is the PAD's peer at that address.
        """
        if not self.per_host or self.protection is None:
            return self
        host = replace(self.selectors.remote, addresses=AddressRange.of(remote))
        return replace(
            self,
            id=f"{self.id}@{remote}",
            selectors=replace(self.selectors, remote=host),
            protection=replace(self.protection, peer=peer_at(self.protection.peer, remote)),
            per_host=False,
        )

    def is_for(self, interface: ConnectionType) -> bool:
        """Whether the entry decides about packets on *interface* (see ``Spd.lookup_inbound``)."""
        if self.interfaces is ConnectionType.ALL or self.interfaces is interface:
            return True
        return interface is ConnectionType.ALL and self.disposition is Disposition.PROTECT


@dataclass(frozen=True, slots=True)
class Spd:
    """The entries in matching order, most specific first.

    Lookups give what a scan from the first entry on would give; indexes built at their first use make them fast.
    """

    entries: tuple[SpdEntry, ...] = ()
    _indexes: dict[tuple[str, ConnectionType], SelectorIndex] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _by_id: dict[str, SpdEntry] = field(default_factory=dict, init=False, repr=False, compare=False)

    def lookup_outbound(self, flow: Flow, interface: ConnectionType = ConnectionType.ALL) -> SpdEntry | None:
        """Return the first outbound entry that matches, or None. See ``lookup_inbound`` for *interface*."""
        index = self._indexes.get(("outbound", interface))
        if index is None:
            pairs = ((at, e.selectors) for at, e in enumerate(self.entries) if e.outbound and e.is_for(interface))
            index = self._indexes["outbound", interface] = SelectorIndex(pairs)
        at = index.first(flow)
        return None if at is None else self.entries[at]

    def lookup_inbound(self, flow: Flow, interface: ConnectionType = ConnectionType.ALL) -> SpdEntry | None:
        """Return the first inbound entry that matches, or None.

        *interface* is the kind that the packet passes. ALL is for packets of which it is not known any more: the
        host's packet filter, which knows it, has permitted or blocked already what entries for one kind permit or
        block, so that only those of them that protect count.
        """
        index = self._indexes.get(("inbound", interface))
        if index is None:
            # A packet that arrives has our local side as its destination: the mirrored pair, read outbound.
            entries = ((at, e) for at, e in enumerate(self.entries) if e.inbound and e.is_for(interface))
            pairs = ((at, e.selectors.mirror()) for at, e in entries)
            index = self._indexes["inbound", interface] = SelectorIndex(pairs)
        at = index.first(flow)
        return None if at is None else self.entries[at]

    def entry(self, entry_id: str) -> SpdEntry | None:
        """Return the entry of that id, which may be a template's for one host."""
        if len(self._by_id) != len(self.entries):
            for entry in reversed(self.entries):
                self._by_id[entry.id] = entry
        found = self._by_id.get(entry_id)
        if found is not None:
            return found
        stem, _, host = entry_id.rpartition("@")
        template = self._by_id.get(stem)
        if template is None or not template.per_host:
            return None
        try:
            remote = ip_address(host)
        except ValueError:
            return None
        addresses = template.selectors.remote.addresses
        inside = remote.version == addresses.version and addresses.contains(int(remote))
        return template.for_host(remote) if inside else None


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
    #: The default response rule: what a peer that no other rule names may ask to have secured; it is granted what
    #: it asks for, host to host, as an entry of its own that lives as long as its SAs. One entry an IP version, of
    #: the rule "<Dynamic>"; empty when the policy has no such rule.
    response: tuple[SpdEntry, ...] = ()
    #: The addresses that DNS names of the policy had then.
    names: tuple[tuple[str, tuple[IpAddress, ...]], ...] = ()
    warnings: tuple[str, ...] = ()

    def with_dynamic(self, entries: Iterable[SpdEntry]) -> Snapshot:
        """Return this snapshot with the dynamic entries of the default response rule, after all others."""
        added = tuple(entries)
        return replace(self, spd=Spd(self.spd.entries + added)) if added else self
