"""What the model can say and this version's agent cannot do: refused before a policy is put in force.

The agent does tunnel-mode ESP under IKEv2 with preshared keys. A policy that needs more is never half applied:
each need gives one line with a way out.
"""

from __future__ import annotations

from policy.model import (
    ActionKind,
    CertificateAuth,
    ConnectionType,
    FilterAction,
    Policy,
    Rule,
)
from policy.problems import ConfigError, quoted
from policy.proposals import ProtocolId


def unavailable(policy: Policy) -> tuple[ConfigError, ...]:
    """Return why *policy* cannot be put in force by this version; empty when it can."""
    found: list[ConfigError] = []
    if policy.default_response:
        found.append(
            ConfigError(
                policy.where,
                f"policy {quoted(policy.name)}: the default response rule is not available in this version",
                "write default_response = false and name the peers in rules",
            )
        )
    if policy.ike.version != 2:
        found.append(
            ConfigError(
                policy.where,
                f"policy {quoted(policy.name)}: IKE version 1 is not available in this version",
                "write ike = { version = 2 }",
            )
        )
    for rule in policy.rules:
        if rule.active:
            found += _rule(rule)
    return tuple(dict.fromkeys(found))


def _rule(rule: Rule) -> list[ConfigError]:
    name = f"rule {quoted(rule.name)}"
    found: list[ConfigError] = []
    if rule.connection_type is not ConnectionType.ALL:
        found.append(
            ConfigError(
                rule.where,
                f'{name}: connection_type = "{rule.connection_type.value}" is not available in this version',
                'write connection_type = "all"',
            )
        )
    if rule.filter_action.kind is not ActionKind.NEGOTIATE:
        return found
    if rule.tunnel_endpoint is None:
        found.append(
            ConfigError(
                rule.where,
                f"{name}: transport mode is not available in this version",
                "name the peer's address in tunnel_endpoint",
            )
        )
    return found + _action(rule.filter_action) + _authentication(rule, name)


def _action(action: FilterAction) -> list[ConfigError]:
    name = f"filter action {quoted(action.name)}"
    found = [
        ConfigError(
            action.where,
            f"{name}: AH ({quoted(method.text)}) is not available in this version",
            'write "esp:..." methods; "esp:null-sha256" gives integrity without encryption',
        )
        for method in action.methods
        if any(part.protocol is ProtocolId.AH for part in method.protocols)
    ]
    if action.fallback_clear:
        found.append(
            ConfigError(
                action.where,
                f"{name}: fallback_clear = true is not available in this version",
                "write fallback_clear = false, and a permit rule for hosts that do not support IPsec",
            )
        )
    return found


def _authentication(rule: Rule, name: str) -> list[ConfigError]:
    found = [
        ConfigError(
            method.where,
            f"{name}: certificate authentication is not available in this version",
            'use { method = "psk", ... }',
        )
        for method in rule.authentication
        if isinstance(method, CertificateAuth)
    ]
    if len(rule.authentication) > 1:
        found.append(
            ConfigError(
                rule.where,
                f"{name}: more than one authentication method is not available in this version",
                "keep the first one",
            )
        )
    if not rule.authentication:
        found.append(
            ConfigError(
                rule.where,
                f"{name} negotiates and has no authentication that this version knows",
                'add authentication = [{ method = "psk", secret_file = "..." }]',
            )
        )
    return found
