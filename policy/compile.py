"""Policy + this host's addresses -> SPD and PAD (RFC 4301 sections 4.4.1 and 4.4.3).

Here the console's words become the RFC's, and nowhere else. A snapshot is whole or there is none: what cannot be
put in force raises CompileError with every reason.

Names without an address. A selector's DNS name that resolves to nothing keeps the addresses it had in the previous
snapshot, with a warning. Without any, a permit filter is left out (stricter, with a warning), and a block or
negotiate filter is a CompileError: its packets cannot be told from others, so they would leave in clear. When a
tunnel endpoint has no address, its entries stay in the SPD as DISCARD, with a warning: nothing leaves, and the
next compilation that finds an address opens them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TypeAlias

from policy.availability import unavailable
from policy.clock import SECOND
from policy.defaults import DEFAULT_RESPONSE
from policy.lint import filter_text
from policy.model import ActionKind, AddressSpec, DnsName, Filter, Policy, Rule, Server, Special
from policy.order import sort_key
from policy.overlaps import overlaps, twins
from policy.path import IpAddress
from policy.peers import PeerTable
from policy.problems import CompileError, ConfigError, quoted
from policy.selectors import ICMP, ICMPV6, AddressRange, SelectorPair, TrafficSelector
from policy.spd import Disposition, Mode, Protection, Snapshot, Spd, SpdEntry
from policy.tunnels import join_halves

__all__ = ["CompileError", "Resolve", "compile_policy", "no_names"]

#: The addresses of a DNS name, in order of preference; empty when it has none now.
Resolve: TypeAlias = Callable[[str], Sequence[IpAddress]]

_DISPOSITIONS = {
    ActionKind.PERMIT: Disposition.BYPASS,
    ActionKind.BLOCK: Disposition.DISCARD,
    ActionKind.NEGOTIATE: Disposition.PROTECT,
}


#: A pair of SAs with one of many hosts that carried nothing for this long is deleted, as in Windows.
HOST_IDLE = 300 * SECOND
#: The rule of the entries that the default response rule grants, as Windows shows it.
DYNAMIC = "<Dynamic>"
_SERVERS = {
    Server.DNS: "DNS server",
    Server.DHCP: "DHCP server",
    Server.WINS: "WINS server",
    Server.GATEWAY: "default gateway",
}
#: Protocols that run over one IP version only.
_FAMILIES = {ICMP: 4, ICMPV6: 6}
_NO_SERVERS: Mapping[str, Sequence[IpAddress]] = MappingProxyType({})
_NO_SELECTORS = SelectorPair(TrafficSelector(0, AddressRange.any(4)), TrafficSelector(0, AddressRange.any(4)))


def no_names(_name: str) -> Sequence[IpAddress]:
    """Resolve nothing."""
    return ()


def compile_policy(
    policy: Policy | None,
    *,
    generation: int,
    local_addresses: Sequence[IpAddress],
    local_networks: Sequence[AddressRange] = (),
    resolve: Resolve = no_names,
    previous: Snapshot | None = None,
    servers: Mapping[str, Sequence[IpAddress]] = _NO_SERVERS,
) -> Snapshot:
    """Return *policy* in force on a host with *local_addresses*; None is "no policy assigned".

    *local_networks* are those that this host has an address in: they help to tell which side of a filter is local.
    ``me`` is each local address that is neither loopback nor link-local. *resolve* gives the addresses of DNS
    names; *previous* keeps them when a name does not resolve any more. *servers* are the addresses that "dns",
    "dhcp", "wins" and "gateway" stand for now. Raises CompileError.
    """
    own = tuple(sorted(set(local_addresses), key=lambda address: (address.version, int(address))))
    if policy is None:
        return Snapshot(generation=generation, local_addresses=own)
    if errors := unavailable(policy):
        raise CompileError(errors)
    names = _Names(resolve, previous)
    compiler = _Compiler(policy, own, tuple(local_networks), names, servers)
    compiler.add_rules(policy.rules)
    return compiler.finish(generation)


class _Names:
    """Addresses of DNS names: each is asked for once, and remembered across snapshots."""

    def __init__(self, resolve: Resolve, previous: Snapshot | None) -> None:
        self._resolve = resolve
        self._before = dict(previous.names) if previous is not None else {}
        self.found: dict[str, tuple[IpAddress, ...]] = {}
        self.stale: set[str] = set()

    def addresses(self, name: str) -> tuple[IpAddress, ...]:
        """Return the addresses of *name*, those that it had before when it has none now."""
        if name not in self.found:
            before = self._before.get(name, ())
            now = tuple(dict.fromkeys(self._resolve(name)))
            if not now and before:
                self.stale.add(name)
            # An address that is still good stays in front, so that a tunnel does not move at every answer.
            kept = tuple(address for address in before if address in now)
            self.found[name] = (kept + tuple(a for a in now if a not in kept)) or before
        return self.found[name]


@dataclass(frozen=True, slots=True)
class _Side:
    addresses: AddressRange
    #: Part of the entry's id when the filter alone does not say which entry it is.
    label: str
    me: bool


class _Compiler:
    """Builds the entries and peers of one snapshot."""

    def __init__(
        self,
        policy: Policy,
        own: tuple[IpAddress, ...],
        networks: tuple[AddressRange, ...],
        names: _Names,
        servers: Mapping[str, Sequence[IpAddress]],
    ) -> None:
        self._policy = policy
        self._own = own
        self._networks = networks
        self._own_numbers = {version: [int(a) for a in own if a.version == version] for version in (4, 6)}
        self._me = tuple(
            a for a in own if not (a.is_loopback or a.is_link_local or a.is_multicast or a.is_unspecified)
        )
        self._names = names
        self._servers = servers
        self._entries: list[SpdEntry] = []
        self._peers = PeerTable(policy)
        self._errors: list[ConfigError] = []
        self._warnings: list[ConfigError] = []

    def add_rules(self, rules: Sequence[Rule]) -> None:
        """Expand the filters of the active *rules* into entries."""
        joined, errors = join_halves(rules, self._own, self._endpoint)
        self._errors += errors
        for rule in joined:
            if rule.active:
                self._add_rule(rule)

    def _add_rule(self, rule: Rule) -> None:
        disposition = _DISPOSITIONS[rule.filter_action.kind]
        protection: Protection | None = None
        if disposition is Disposition.PROTECT:
            protection = self._protection(rule)
            disposition = Disposition.PROTECT if protection else Disposition.DISCARD
        for number, entry in enumerate(rule.filter_list.filters, 1):
            self._add_filter(rule, number, entry, disposition, protection)

    def finish(self, generation: int) -> Snapshot:
        """Return the snapshot, or raise CompileError."""
        self._unite_peers()
        if self._policy.default_response:
            self._peers.respond(DYNAMIC)
        self._errors += self._peers.errors
        self._warnings += self._peers.warnings
        ids: set[str] = set()
        for entry in self._entries:
            if entry.id in ids:
                self._errors.append(
                    ConfigError(entry.where, f"two rules are called {quoted(entry.rule)}", "rename one of them")
                )
            ids.add(entry.id)
        if self._errors:
            raise CompileError(dict.fromkeys(self._errors))
        self._entries.sort(key=sort_key)
        self._warnings += [*twins(self._entries), *overlaps(self._entries)]
        for name in sorted(self._names.stale):
            self._warnings.append(
                ConfigError(
                    self._policy.where, f"the name {quoted(name)} has no address now; the last ones known are kept"
                )
            )
        return Snapshot(
            generation=generation,
            policy=self._policy.name,
            spd=Spd(tuple(self._entries)),
            pad=self._peers.pad(self._entries),
            response=self._response(),
            local_addresses=self._own,
            names=tuple(sorted(self._names.found.items())),
            warnings=tuple(dict.fromkeys(map(str, self._warnings))),
        )

    def _unite_peers(self) -> None:
        names = self._peers.unite()
        for at, entry in enumerate(self._entries if names else ()):
            if entry.protection is not None and entry.protection.peer in names:
                peer = names[entry.protection.peer]
                self._entries[at] = replace(entry, protection=replace(entry.protection, peer=peer))

    def _response(self) -> tuple[SpdEntry, ...]:
        """Return what the default response rule grants from, one entry an IP version."""
        if not self._policy.default_response:
            return ()
        action = DEFAULT_RESPONSE
        return tuple(
            SpdEntry(
                id=f"{DYNAMIC}/ipv{version}",
                rule=DYNAMIC,
                filter_list=DYNAMIC,
                filter_action=action.name,
                selectors=SelectorPair(
                    TrafficSelector(0, AddressRange.any(version)), TrafficSelector(0, AddressRange.any(version))
                ),
                outbound=True,
                inbound=True,
                disposition=Disposition.PROTECT,
                protection=Protection(
                    peer=DYNAMIC,
                    mode=Mode.TRANSPORT,
                    methods=action.methods,
                    lifetime=action.lifetime,
                    idle=HOST_IDLE,
                ),
                per_host=True,
                where=self._policy.where,
            )
            for version in (4, 6)
        )

    def _protection(self, rule: Rule) -> Protection | None:
        """Return how *rule* protects; None when its endpoint has no address now."""
        endpoint = rule.tunnel_endpoint
        address = self._endpoint(rule)
        if isinstance(endpoint, DnsName) and address is None:
            message = (
                f"rule {quoted(rule.name)}: the tunnel endpoint {quoted(endpoint.name)} has no address now, "
                "so its traffic is dropped"
            )
            self._warnings.append(ConfigError(rule.where, message, "check the name, or write an address"))
            return None
        action = rule.filter_action
        transport = endpoint is None  # then the peer is the other side of each filter
        return Protection(
            peer="" if transport else self._peers.name_for(rule, address),
            mode=Mode.TRANSPORT if transport else Mode.TUNNEL,
            methods=action.methods,
            lifetime=action.lifetime,
            pfs=action.pfs,
            tunnel_remote=address,
            inbound_clear=action.inbound_clear,
            fallback_clear=action.fallback_clear,
            encapsulation=action.encapsulation,
            replay_window=action.replay_window,
            padding=0 if transport else action.traffic_padding,
            dummies=0 if transport else action.dummy_packets,
        )

    def _endpoint(self, rule: Rule) -> IpAddress | None:
        """Return where the tunnel of *rule* ends; None when it ends anywhere, nowhere now, or there is none."""
        endpoint = rule.tunnel_endpoint
        if isinstance(endpoint, DnsName):
            return next(iter(self._names.addresses(endpoint.name)), None)
        return None if isinstance(endpoint, Special) else endpoint

    def _add_filter(
        self, rule: Rule, number: int, entry: Filter, disposition: Disposition, protection: Protection | None
    ) -> None:
        where = entry.where if entry.where.line else rule.where
        sources = self._expand(rule, entry.source)
        destinations = self._expand(rule, entry.destination)
        stem = f"{_escaped(rule.name)}/{_escaped(rule.filter_list.name)}/{number}"
        unprotected = rule.filter_action.kind is ActionKind.NEGOTIATE and protection is None
        template = SpdEntry(
            id=stem,
            rule=rule.name,
            filter_list=rule.filter_list.name,
            filter_action=rule.filter_action.name,
            selectors=_NO_SELECTORS,
            outbound=True,
            inbound=True,
            disposition=disposition,
            protection=protection,
            interfaces=rule.connection_type,
            filter=f"{number}: {filter_text(entry)}",
            note="its tunnel endpoint has no address now" if unprotected else "",
            where=where,
        )
        joined = False
        for source in sources:
            for destination in destinations:
                version = source.addresses.version
                if destination.addresses.version != version or _FAMILIES.get(entry.protocol, version) != version:
                    continue
                joined = True
                local_is_source = self._source_is_local(source, destination)
                made = _entry(template, entry, (source, destination), local_is_source=local_is_source)
                if protection is not None and protection.mode is Mode.TRANSPORT:
                    self._entries += self._host_to_host(rule, made)
                else:
                    self._entries.append(made)
        if not joined and sources and destinations:
            message = (
                f"rule {quoted(rule.name)}: the filter {filter_text(entry)} joins no two addresses of one family"
            )
            self._warnings.append(ConfigError(where, message, "it matches nothing now"))

    def _host_to_host(self, rule: Rule, entry: SpdEntry) -> list[SpdEntry]:
        """Return a transport-mode entry for each own address of its local side (RFC 4301 section 4.1).

        A remote side of many addresses makes them templates, one SA pair a host.
        """
        local, remote = entry.selectors.local, entry.selectors.remote
        own = [a for a in self._me if a.version == entry.selectors.version and local.addresses.contains(int(a))]
        if local.addresses.start == local.addresses.end:
            own = [local.addresses.first] if local.addresses.first in self._own else []
        if not own:
            message = (
                f"rule {quoted(rule.name)} protects between hosts (it has no tunnel_endpoint), and none of "
                f"{local.addresses} is an address of this host: filter {entry.filter} matches nothing here"
            )
            self._warnings.append(ConfigError(entry.where, message, "write me, or name a tunnel_endpoint"))
            return []
        single = remote.addresses.start == remote.addresses.end
        peer = (
            self._peers.name_for(rule, remote.addresses.first)
            if single
            else self._peers.template_for(rule, remote.addresses)
        )
        if entry.protection is None:
            return []
        protection = replace(entry.protection, peer=peer, idle=None if single else HOST_IDLE)
        return [
            replace(
                entry,
                id=entry.id if local.addresses.start == local.addresses.end else f"{entry.id}/{address}",
                selectors=SelectorPair(replace(local, addresses=AddressRange.of(address)), remote),
                protection=protection,
                per_host=not single,
            )
            for address in own
        ]

    def _expand(self, rule: Rule, spec: AddressSpec) -> tuple[_Side, ...]:
        match spec:
            case AddressRange():
                return (_Side(spec, "", me=False),)
            case Special.ANY:
                return tuple(_Side(AddressRange.any(version), f"ipv{version}", me=False) for version in (4, 6))
            case Special.ME:
                if not self._me:
                    message = f'rule {quoted(rule.name)}: this host has no address for "me" now'
                    self._warnings.append(ConfigError(rule.where, message, "its filters match nothing"))
                return _hosts(self._me, me=True)
            case Server():
                told = dict.fromkeys(self._servers.get(spec.value, ()))
                known = [address for address in told if not address.is_loopback and address not in self._own]
                if not known:
                    message = f"rule {quoted(rule.name)}: this host knows no {_SERVERS[spec]} now"
                    self._warnings.append(ConfigError(rule.where, message, "its filters for it match nothing"))
                return _hosts(known, me=False)
            case DnsName():
                found = self._names.addresses(spec.name)
                if not found:
                    self._unresolved(rule, spec)
                return _hosts(found, me=False)

    def _unresolved(self, rule: Rule, name: DnsName) -> None:
        message = f"rule {quoted(rule.name)}: the name {quoted(name.name)} has no address"
        if rule.filter_action.kind is ActionKind.PERMIT:
            self._warnings.append(ConfigError(rule.where, message, "nothing is permitted by it now"))
        else:
            hint = "its traffic cannot be told from other traffic: write an address, or make the name resolve"
            self._errors.append(ConfigError(rule.where, message, hint))

    def _source_is_local(self, source: _Side, destination: _Side) -> bool:
        """Return which side of a filter is this host's (or its networks').

        ``me`` is; else the only side that covers an own address (``any`` covers everybody's and does not count);
        else, if both do, the narrower; else the only side that lies in a network that this host is on; else the
        source. So one filter list may serve both ends of a tunnel.
        """
        if source.me or destination.me:
            return source.me
        source_is, destination_is = self._is_own(source.addresses), self._is_own(destination.addresses)
        if source_is and destination_is:
            return _size(source.addresses) <= _size(destination.addresses)
        if source_is == destination_is:
            source_is, destination_is = self._is_near(source.addresses), self._is_near(destination.addresses)
        return source_is or not destination_is

    def _is_own(self, addresses: AddressRange) -> bool:
        own = self._own_numbers[addresses.version]
        return not addresses.is_any and any(addresses.contains(number) for number in own)

    def _is_near(self, addresses: AddressRange) -> bool:
        return any(network.covers(addresses) for network in self._networks)


def _entry(template: SpdEntry, entry: Filter, sides: tuple[_Side, _Side], *, local_is_source: bool) -> SpdEntry:
    """Return the entry of one expansion of a filter, seen from this host."""
    source, destination = sides
    pair = SelectorPair(
        TrafficSelector(entry.protocol, source.addresses, entry.source_port),
        TrafficSelector(entry.protocol, destination.addresses, entry.destination_port),
    )
    labels = [side.label for side in sides if side.label]
    return replace(
        template,
        id="/".join([template.id, *labels]),
        selectors=pair if local_is_source else pair.mirror(),
        outbound=entry.mirrored or local_is_source,
        inbound=entry.mirrored or not local_is_source,
    )


def _hosts(addresses: Iterable[IpAddress], *, me: bool) -> tuple[_Side, ...]:
    return tuple(_Side(AddressRange.of(address), str(address), me) for address in addresses)


def _size(addresses: AddressRange) -> int:
    return addresses.end - addresses.start


def _escaped(name: str) -> str:
    """Keep "/" and "@" for what they separate in an entry's id."""
    return name.replace("%", "%25").replace("/", "%2F").replace("@", "%40")
