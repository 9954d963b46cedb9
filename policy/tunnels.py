"""Windows' tunnels of two rules: each direction has a rule of its own, with the endpoint where its packets end.

The outbound rule (local network to remote network) names the peer, the inbound one (remote network to local
network) names this host, and neither is mirrored. Together they say what one mirrored filter says, and become it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from policy.lint import filter_text
from policy.model import ActionKind, AddressSpec, Filter, Rule
from policy.path import IpAddress
from policy.problems import ConfigError, quoted
from policy.selectors import PortRange

_Side: TypeAlias = tuple[AddressSpec, PortRange]
_Key: TypeAlias = tuple[int, _Side, _Side]


def join_halves(
    rules: Sequence[Rule], own: Collection[IpAddress], address_of: Callable[[Rule], IpAddress | None]
) -> tuple[tuple[Rule, ...], list[ConfigError]]:
    """Return *rules* with the halves of tunnels joined into mirrored filters, and what is wrong with halves.

    *address_of* gives where a rule's tunnel ends; *own* are this host's addresses. A joined filter stands in the
    outbound rule, at its place there.
    """
    inbound = [rule for rule in rules if _is_tunnel(rule) and address_of(rule) in own]
    halves = _Halves({}, [])
    for rule in inbound:
        halves.take(rule)
    joined = tuple(halves.join(rule) if _is_tunnel(rule) else rule for rule in rules if rule not in inbound)
    for rule, entry in halves.waiting.values():
        halves.errors.append(_lonely(rule, entry, "inbound", "the peer's address"))
    return joined, halves.errors


def _is_tunnel(rule: Rule) -> bool:
    return rule.active and rule.tunnel_endpoint is not None and rule.filter_action.kind is ActionKind.NEGOTIATE


@dataclass(frozen=True, slots=True)
class _Halves:
    #: Inbound halves that found no outbound one yet, by what the outbound one selects.
    waiting: dict[_Key, tuple[Rule, Filter]]
    errors: list[ConfigError]

    def take(self, rule: Rule) -> None:
        """Note the filters of an inbound rule."""
        for entry in rule.filter_list.filters:
            if entry.mirrored:
                message = (
                    f"rule {quoted(rule.name)}: the tunnel endpoint {rule.tunnel_endpoint} is this host itself, "
                    f"as in the inbound half of a tunnel of two rules, but its filter {filter_text(entry)} is "
                    "mirrored"
                )
                hint = "write mirrored = false, or remove the rule and mirror the filters of the one with the peer"
                self.errors.append(ConfigError(rule.where, message, hint))
            else:
                self.waiting[_key(entry, reverse=True)] = (rule, entry)

    def join(self, rule: Rule) -> Rule:
        """Return an outbound rule with each of its halves joined with the inbound one."""
        filters = tuple(
            entry if entry.mirrored else self._joined(rule, entry) for entry in rule.filter_list.filters
        )
        return replace(rule, filter_list=replace(rule.filter_list, filters=filters))

    def _joined(self, rule: Rule, entry: Filter) -> Filter:
        other, _ = self.waiting.pop(_key(entry), (None, None))
        if other is None:
            self.errors.append(_lonely(rule, entry, "outbound", "this host's own address"))
        elif (other.filter_action, other.authentication, other.connection_type) != (
            rule.filter_action,
            rule.authentication,
            rule.connection_type,
        ):
            self.errors.append(
                ConfigError(
                    other.where,
                    f"rules {quoted(rule.name)} and {quoted(other.name)} are the two halves of one tunnel, and "
                    "treat its packets differently",
                    "use the same filter_action, authentication and connection_type in both",
                )
            )
        return replace(entry, mirrored=True)


def _key(entry: Filter, *, reverse: bool = False) -> _Key:
    source, destination = (entry.source, entry.source_port), (entry.destination, entry.destination_port)
    return (entry.protocol, destination, source) if reverse else (entry.protocol, source, destination)


def _lonely(rule: Rule, entry: Filter, half: str, endpoint: str) -> ConfigError:
    missing = replace(
        entry,
        source=entry.destination,
        destination=entry.source,
        source_port=entry.destination_port,
        destination_port=entry.source_port,
    )
    return ConfigError(
        entry.where if entry.where.line else rule.where,
        f"rule {quoted(rule.name)} is the {half} half of a tunnel: its filter {filter_text(entry)} is not "
        f"mirrored, and there is no rule for {filter_text(missing)} whose tunnel_endpoint is {endpoint}",
        "add that rule, or write mirrored = true in the rule that names the peer",
    )
