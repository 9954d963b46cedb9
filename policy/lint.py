"""What a policy says that cannot be meant: conflicts are mistakes, the rest are warnings."""

from __future__ import annotations

import itertools
import math
from collections.abc import Set
from typing import TypeAlias

from policy.icmp import icmp_text, is_icmp
from policy.model import (
    ActionKind,
    AddressSpec,
    DnsName,
    Filter,
    Policy,
    PresharedKey,
    Rule,
    Server,
    Special,
)
from policy.path import IpAddress
from policy.problems import ConfigError, quoted
from policy.selectors import AddressRange, PortRange
from policy.texts import protocol_name

#: A key that an attacker who recorded one exchange could find by trying: below this it is called weak.
WEAK_SECRET_BITS = 80.0

_Side: TypeAlias = tuple[str, PortRange]
_Selector: TypeAlias = tuple[int, _Side, _Side]


def conflicts(policy: Policy) -> list[ConfigError]:
    """Return the filters of active rules that select the same packets for different rules.

    Order is by specificity alone, so nothing tells such filters apart and one of them could never match. A rule
    for one kind of interface is narrower than one for all.
    """
    found: list[ConfigError] = []
    before: dict[tuple[_Selector, bool], list[Rule]] = {}
    for rule in policy.rules:
        if not rule.active:
            continue
        for entry in rule.filter_list.filters:
            earlier_rules = before.setdefault((_selector(entry), entry.mirrored), [])
            conflict = next(filter(None, (_conflict(earlier, rule, entry) for earlier in earlier_rules)), None)
            earlier_rules.append(rule)
            if conflict is not None:
                found.append(conflict)
                break
    return found


def _conflict(earlier: Rule, rule: Rule, entry: Filter) -> ConfigError | None:
    if earlier is rule or not _differ(earlier, rule):
        return None
    both = f"rules {quoted(earlier.name)} and {quoted(rule.name)}"
    if earlier.connection_type is rule.connection_type:
        return ConfigError(
            rule.where,
            f"{both} shadow each other: both have the filter {filter_text(entry)}",
            "remove it from one of their filter lists, or make one narrower",
        )
    if earlier.filter_action.kind is rule.filter_action.kind is ActionKind.NEGOTIATE:
        return ConfigError(
            rule.where,
            f"{both} protect the same packets differently: only their connection_type tells them apart "
            f"({filter_text(entry)})",
            "use the same filter_action, authentication and tunnel_endpoint in both",
        )
    return None


def lint(policy: Policy) -> list[ConfigError]:
    """Return warnings about *policy*: it works, but hardly as meant."""
    found = _repeated(policy)
    weak: set[int] = set()
    halves = {
        _one_way(entry)
        for rule in policy.rules
        if rule.active and rule.tunnel_endpoint is not None
        for entry in rule.filter_list.filters
        if not entry.mirrored
    }
    for rule in policy.rules:
        negotiates = rule.filter_action.kind is ActionKind.NEGOTIATE
        if not negotiates and (rule.tunnel_endpoint is not None or rule.authentication):
            message = (
                f"rule {quoted(rule.name)} does not negotiate: its tunnel_endpoint and authentication do nothing"
            )
            found.append(ConfigError(rule.where, message, "remove them"))
        if negotiates:
            found += _negotiation(rule, halves)
        for method in rule.authentication:
            if isinstance(method, PresharedKey) and id(method) not in weak:
                weak.add(id(method))
                found += _weak_secret(method)
    return found


def secret_bits(octets: bytes) -> float:
    """Return a generous estimate of how many bits of guessing *octets* are worth."""
    text = octets.decode("utf-8", "replace")
    pool = 0
    for size, has in (
        (26, any("a" <= c <= "z" for c in text)),
        (26, any("A" <= c <= "Z" for c in text)),
        (10, any("0" <= c <= "9" for c in text)),
        (33, any(not c.isalnum() for c in text)),
        (100, any(ord(c) > 127 for c in text)),
    ):
        pool += size if has else 0
    # Repeats and runs ("aaaa", "1234") and a poor choice of characters ("abababab") count for little.
    steps = itertools.pairwise(text)
    surprising = 1 + sum(abs(ord(b) - ord(a)) > 1 for a, b in steps) if text else 0
    return surprising * math.log2(max(1, min(pool, len(set(text)) ** 2)))


def _repeated(policy: Policy) -> list[ConfigError]:
    """Filters that say again what another one says, or half of it."""
    found: list[ConfigError] = []
    first: dict[_Selector, tuple[Rule, Filter]] = {}
    for rule in policy.rules:
        for entry in rule.filter_list.filters if rule.active else ():
            earlier = first.setdefault(_selector(entry), (rule, entry))
            if earlier[1] is entry and earlier[0] is rule:
                continue
            if earlier[0].connection_type is not rule.connection_type:
                continue
            same_direction = earlier[1].mirrored == entry.mirrored
            if same_direction and earlier[0] is not rule and _differ(earlier[0], rule):
                continue  # an error already
            if not same_direction and not (earlier[1].mirrored or entry.mirrored):
                continue
            found.append(
                ConfigError(
                    entry.where if entry.where.line else rule.where,
                    f"rule {quoted(rule.name)}: the filter {filter_text(entry)} repeats one of rule "
                    f"{quoted(earlier[0].name)}",
                    "remove one of them"
                    if same_direction
                    else "one is mirrored and the other is not: is it meant?",
                )
            )
    return found


def _negotiation(rule: Rule, halves: Set[_Selector]) -> list[ConfigError]:
    found: list[ConfigError] = []
    endpoint = rule.tunnel_endpoint
    if endpoint is Special.ANY and any(method.remote_id is None for method in rule.authentication):
        message = (
            f'rule {quoted(rule.name)}: tunnel_endpoint = "any" and no remote_id lets in whoever knows the key'
        )
        found.append(ConfigError(rule.where, message, "add remote_id"))
    for entry in rule.filter_list.filters if rule.active else ():
        where = entry.where if entry.where.line else rule.where
        other_half = _one_way(entry, reverse=True) in halves and endpoint is not None
        if not entry.mirrored and not other_half:
            message = f"rule {quoted(rule.name)}: a filter is not mirrored, so its replies are not protected"
            found.append(ConfigError(where, message, "write mirrored = true"))
        if isinstance(endpoint, (DnsName, Special, type(None))):
            continue
        if _covers(entry.source, endpoint) or _covers(entry.destination, endpoint):
            message = (
                f"rule {quoted(rule.name)}: the filter {filter_text(entry)} covers the tunnel endpoint {endpoint} "
                "too, so all traffic with it but IKE and ESP goes into the tunnel"
            )
            found.append(ConfigError(where, message, "add a permit rule for it if that is not meant"))
    return found


def _weak_secret(method: PresharedKey) -> list[ConfigError]:
    octets = method.secret.reveal()
    bits = secret_bits(octets)
    if bits >= WEAK_SECRET_BITS:
        return []
    message = f"the preshared key is weak: {len(octets)} octets, about {bits:.0f} bits"
    return [ConfigError(method.where, message, "make one with: openssl rand -base64 32")]


def _differ(one: Rule, other: Rule) -> bool:
    if one.filter_action.kind is not other.filter_action.kind:
        return True
    if one.filter_action.kind is not ActionKind.NEGOTIATE:
        return False
    return (one.filter_action, one.tunnel_endpoint, one.authentication) != (
        other.filter_action,
        other.tunnel_endpoint,
        other.authentication,
    )


def _selector(entry: Filter) -> _Selector:
    """Return what *entry* selects; a mirrored filter and its mirror image select the same."""
    source = (address_text(entry.source), entry.source_port)
    destination = (address_text(entry.destination), entry.destination_port)
    if entry.mirrored and destination < source:
        source, destination = destination, source
    return entry.protocol, source, destination


def _one_way(entry: Filter, *, reverse: bool = False) -> _Selector:
    source = (address_text(entry.source), entry.source_port)
    destination = (address_text(entry.destination), entry.destination_port)
    return (entry.protocol, destination, source) if reverse else (entry.protocol, source, destination)


def address_text(spec: AddressSpec) -> str:
    """Return *spec* as it is written in a config file."""
    match spec:
        case Special():
            return spec.value
        case Server():
            return spec.value
        case DnsName():
            return spec.name
        case AddressRange():
            return str(spec)


def filter_text(entry: Filter) -> str:
    """Return *entry* in one line: "tcp 10.1.0.0/24 <-> 10.2.0.0/24:80"."""

    def side(spec: AddressSpec, ports: PortRange) -> str:
        without = ports.is_any or is_icmp(entry.protocol)
        return address_text(spec) if without else f"{address_text(spec)} port {ports}"

    arrow = "<->" if entry.mirrored else "->"
    protocol = f"{protocol_name(entry.protocol)} " if entry.protocol else ""
    if is_icmp(entry.protocol) and not entry.source_port.is_any:
        protocol += f"{icmp_text(entry.protocol, entry.source_port)} "
    return (
        f"{protocol}{side(entry.source, entry.source_port)} {arrow} "
        f"{side(entry.destination, entry.destination_port)}"
    )


def _covers(spec: AddressSpec, endpoint: IpAddress) -> bool:
    if spec is Special.ANY:
        return True
    return isinstance(spec, AddressRange) and spec.version == endpoint.version and spec.contains(int(endpoint))
