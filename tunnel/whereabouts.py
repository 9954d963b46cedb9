"""Which addresses the two ends of a rehearsal have, as far as their policies say."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address

from policy.model import ActionKind, AddressSpec, Policy, Rule, Special
from policy.path import IpAddress
from policy.selectors import AddressRange

#: Where an end is that the other waits for at any address (RFC 5737, RFC 3849).
_ANYWHERE = (ip_address("192.0.2.1"), ip_address("2001:db8::1"))


def infer(policy: Policy | None, other: Policy | None) -> tuple[IpAddress, ...]:
    """Return the addresses that the host of *policy* must have, for the two policies to be about each other.

    *other* names them: as its tunnel endpoint, or as the host across a filter without one. So does *policy*
    itself, where a filter without a tunnel endpoint goes from one host to another: the source is this host,
    unless the destination is "me". Empty when neither does.
    """
    found = list(_named_by(other))
    if not found:
        found = list(_own(policy))
    if not found and _waits(other):
        versions = {address.version for address in _endpoints(policy)}
        found = [address for address in _ANYWHERE if address.version in versions]
    return tuple(dict.fromkeys(found))


def _rules(policy: Policy | None) -> Iterator[Rule]:
    for rule in policy.rules if policy is not None else ():
        if rule.active:
            yield rule


def _endpoints(policy: Policy | None) -> Iterator[IpAddress]:
    for rule in _rules(policy):
        endpoint = rule.tunnel_endpoint
        if isinstance(endpoint, IPv4Address | IPv6Address):
            yield endpoint


def _waits(policy: Policy | None) -> bool:
    return any(rule.tunnel_endpoint is Special.ANY for rule in _rules(policy))


def _named_by(other: Policy | None) -> Iterator[IpAddress]:
    yield from _endpoints(other)
    for _, far in _hosts(other):
        if far is not None:
            yield far


def _own(policy: Policy | None) -> Iterator[IpAddress]:
    for near, _ in _hosts(policy):
        if near is not None:
            yield near


def _hosts(policy: Policy | None) -> Iterator[tuple[IpAddress | None, IpAddress | None]]:
    """Yield this host and the other of each filter that negotiates without a tunnel, None where it names none."""
    for rule in _rules(policy):
        if rule.tunnel_endpoint is not None or rule.filter_action.kind is not ActionKind.NEGOTIATE:
            continue
        for each in rule.filter_list.filters:
            near, far = each.source, each.destination
            if far is Special.ME:
                near, far = far, near
            yield _host(near), _host(far)


def _host(side: AddressSpec) -> IpAddress | None:
    return side.first if isinstance(side, AddressRange) and side.is_host else None
