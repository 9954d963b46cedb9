"""Rules -> Peer Authorization Database (RFC 4301 section 4.4.3): who may speak for which entries."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address

from policy.model import AuthenticationMethod, Policy, Rule, Where
from policy.pad import Identity, Pad, PeerEntry, peer_at
from policy.path import IpAddress
from policy.problems import ConfigError, quoted
from policy.selectors import AddressRange
from policy.spd import SpdEntry


@dataclass(slots=True)
class _Peer:
    address: IpAddress | None
    remote_id: str | None
    authentication: tuple[AuthenticationMethod, ...]
    rule: str
    where: Where = field(default=Where())
    #: In the order in which they came; the values mean nothing.
    hosts: dict[AddressRange, None] = field(default_factory=dict)
    responds_only: bool = False


class PeerTable:
    """The peers that the rules of one policy name: rules with the same endpoint and identity share one.

    A peer is called by its endpoint and the identity that it must prove, "10.9.0.2#gw-b.example", so that its name
    depends on nothing else in the policy and stays from one generation to the next.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._peers: dict[str, _Peer] = {}
        self.errors: list[ConfigError] = []
        self.warnings: list[ConfigError] = []

    def name_for(self, rule: Rule, address: IpAddress | None) -> str:
        """Return the name of the peer that *rule* negotiates with at *address* (None: anywhere)."""
        remote_id = self._remote_id(rule)
        name = "any" if address is None else str(address)
        if remote_id is not None:
            name += f"#{remote_id}"
        known = self._peers.setdefault(name, _Peer(address, remote_id, rule.authentication, rule.name, rule.where))
        if known.authentication != rule.authentication:
            self.errors.append(
                ConfigError(
                    rule.where,
                    f"rules {quoted(known.rule)} and {quoted(rule.name)} authenticate the peer {quoted(name)} "
                    "differently, and nothing tells which is meant",
                    "use the same authentication in both, or give each its own remote_id",
                )
            )
        return name

    def template_for(self, rule: Rule, hosts: AddressRange) -> str:
        """Return the name of the peer that stands for each of *hosts*: rules that authenticate alike share it."""
        remote_id = self._remote_id(rule)
        name = "each host" if remote_id is None else f"each host#{remote_id}"
        known = self._peers.get(name)
        if known is not None and known.authentication != rule.authentication:
            name = f"each host of {rule.name}"
            known = self._peers.get(name)
        if known is None:
            known = _Peer(None, remote_id, rule.authentication, rule.name, rule.where)
            self._peers[name] = known
        known.hosts[hosts] = None
        return name

    def unite(self) -> dict[str, str]:
        """Let a host that rules name by its address be the one that other rules mean by "each host".

        A host proves itself once, so it must be one peer: else it would get the entries of one of them only.
        Returns the new names by the old ones. Where they authenticate differently, they stay apart: a warning.
        """
        names: dict[str, str] = {}
        templates = [
            (name, peer, _merged(peer.hosts))
            for name, peer in self._peers.items()
            if peer.hosts and not peer.responds_only
        ]
        for name, peer in list(self._peers.items()):
            if peer.address is None:
                continue
            host = AddressRange.of(peer.address)
            for template, other, spans in templates:
                at = bisect_right(spans, (host.version, host.start), key=lambda s: (s.version, s.start)) - 1
                if at < 0 or not spans[at].covers(host):
                    continue
                if (other.remote_id, other.authentication) == (peer.remote_id, peer.authentication):
                    names[name] = peer_at(template, peer.address)
                    del self._peers[name]
                    break
                message = (
                    f"rules {quoted(peer.rule)} and {quoted(other.rule)} authenticate {peer.address} differently: "
                    "it gets what the rule says whose identity and key it proves, and nothing of the other"
                )
                self.warnings.append(ConfigError(peer.where, message, "use the same authentication in both"))
        return names

    def respond(self, name: str) -> None:
        """Add the peer of the default response rule."""
        hosts = dict.fromkeys((AddressRange.any(4), AddressRange.any(6)))
        policy = self._policy
        self._peers[name] = _Peer(
            None, None, policy.authentication, name, policy.where, hosts=hosts, responds_only=True
        )

    def _remote_id(self, rule: Rule) -> str | None:
        identities = tuple(dict.fromkeys(method.remote_id for method in rule.authentication))
        if len(identities) > 1:
            self.errors.append(
                ConfigError(
                    rule.where,
                    f"rule {quoted(rule.name)} expects several identities of one peer",
                    "write the same remote_id in each authentication method",
                )
            )
        return identities[0] if identities else None

    def pad(self, entries: Sequence[SpdEntry]) -> Pad:
        """Return the database; *entries* are in the order of the SPD."""
        by_peer: dict[str, list[tuple[str, AddressRange]]] = {name: [] for name in self._peers}
        for entry in entries:
            if entry.protection is None:
                continue
            reach, name = entry.selectors.remote.addresses, entry.protection.peer
            if name not in by_peer:  # one host of a template
                host, _, name = name.partition("=")
                reach = AddressRange.of(ip_address(host))
            by_peer[name].append((entry.id, reach))
        local_id = Identity.parse(self._policy.local_id) if self._policy.local_id is not None else None
        peers = [
            PeerEntry(
                name=name,
                address=peer.address,
                local_id=local_id,
                remote_id=Identity.parse(peer.remote_id) if peer.remote_id is not None else None,
                authentication=peer.authentication,
                ike=self._policy.ike,
                entries=tuple(entry for entry, _ in by_peer[name]),
                reach=tuple(reach for _, reach in by_peer[name]) if peer.hosts else (),
                hosts=tuple(peer.hosts),
                responds_only=peer.responds_only,
                where=peer.where,
            )
            for name, peer in self._peers.items()
        ]
        return Pad(tuple(sorted(peers, key=lambda peer: (peer.address is None, peer.name))))


def _merged(ranges: Iterable[AddressRange]) -> list[AddressRange]:
    """Return the same addresses as ranges in order that do not overlap."""
    found: list[AddressRange] = []
    for each in sorted(ranges):
        last = found[-1] if found else None
        if last is not None and last.version == each.version and each.start <= last.end:
            found[-1] = AddressRange(last.version, last.start, max(last.end, each.end))
        else:
            found.append(each)
    return found
