"""Policies for simulated hosts, built from the model's own values."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

from policy.clock import SECOND, seconds
from policy.lifetimes import Lifetime
from policy.model import (
    ActionKind,
    AddressSpec,
    Encapsulation,
    Filter,
    FilterAction,
    FilterList,
    KeyExchange,
    Policy,
    PresharedKey,
    Rule,
    Special,
)
from policy.proposals import Group
from policy.secret import Secret
from policy.selectors import ANY_PORT, AddressRange, PortRange
from policy.suites import parse_ike_proposal, parse_method

PERMIT = FilterAction(name="Permit", kind=ActionKind.PERMIT)
BLOCK = FilterAction(name="Block", kind=ActionKind.BLOCK)


def address(text: str) -> AddressSpec:
    """Return ``me``, ``any``, a host or a network."""
    if text in ("me", "any"):
        return Special(text)
    return AddressRange.network(ip_network(text))


def action(
    *methods: str,
    lifetime_s: float | None = 3600,
    lifetime_bytes: int | None = None,
    pfs: Group | None = None,
    encapsulation: Encapsulation = Encapsulation.AUTO,
    inbound_clear: bool = False,
    name: str = "Require ESP",
) -> FilterAction:
    """Return a filter action that negotiates."""
    return FilterAction(
        name=name,
        kind=ActionKind.NEGOTIATE,
        methods=tuple(map(parse_method, methods or ("esp:aes128gcm16",))),
        lifetime=Lifetime(None if lifetime_s is None else seconds(lifetime_s), lifetime_bytes),
        pfs=pfs,
        encapsulation=encapsulation,
        inbound_clear=inbound_clear,
    )


def filter_of(source: str, destination: str, protocol: int = 0, destination_port: int | None = None) -> Filter:
    """Return a mirrored filter."""
    port = ANY_PORT if destination_port is None else PortRange(destination_port, destination_port)
    return Filter(
        source=address(source), destination=address(destination), protocol=protocol, destination_port=port
    )


def rule(
    name: str,
    *filters: Filter,
    endpoint: str | None = None,
    then: FilterAction | None = None,
    secret: str = "a shared secret",
    remote_id: str | None = None,
) -> Rule:
    """Return a rule over *filters*; with *endpoint* a tunnel ("any": whoever authenticates)."""
    known = then or action()
    authentication = (PresharedKey(secret=Secret(secret.encode()), remote_id=remote_id),)
    return Rule(
        name=name,
        filter_list=FilterList(name=f"{name} list", filters=filters),
        filter_action=known,
        authentication=authentication if known.kind is ActionKind.NEGOTIATE else (),
        tunnel_endpoint=None if endpoint is None else (Special.ANY if endpoint == "any" else ip_address(endpoint)),
    )


def policy(
    *rules: Rule,
    name: str = "Test",
    local_id: str | None = None,
    ike_lifetime_s: float = 8 * 3600,
    liveness_s: float | None = 30,
    proposals: tuple[str, ...] = ("aes128gcm16-prfsha256-x25519",),
) -> Policy:
    """Return a policy of *rules*."""
    return Policy(
        name=name,
        rules=rules,
        local_id=local_id,
        ike=KeyExchange(
            proposals=tuple(map(parse_ike_proposal, proposals)),
            lifetime=Lifetime(seconds(ike_lifetime_s)),
            liveness=None if liveness_s is None else round(liveness_s * SECOND),
        ),
    )


def with_rules(old: Policy, *rules: Rule) -> Policy:
    """Return *old* with other rules."""
    return replace(old, rules=rules)
