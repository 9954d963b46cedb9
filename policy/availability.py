"""What the model can say and this version's agent cannot do: refused before a policy is put in force.

The agent speaks IKEv2 with preshared keys. A policy that needs more is never half applied:
each need gives one line with a way out.
"""

from __future__ import annotations

from policy.model import (
    ActionKind,
    CertificateAuth,
    Policy,
    Rule,
)
from policy.problems import ConfigError, quoted


def unavailable(policy: Policy) -> tuple[ConfigError, ...]:
    """Return why *policy* cannot be put in force by this version; empty when it can."""
    found: list[ConfigError] = []
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
    if rule.filter_action.kind is not ActionKind.NEGOTIATE:
        return found
    return found + _fallback(rule, name) + _authentication(rule, name)


def _fallback(rule: Rule, name: str) -> list[ConfigError]:
    """A soft SA is between two hosts: a gateway that does not answer says nothing about those behind it."""
    if rule.tunnel_endpoint is None or not rule.filter_action.fallback_clear:
        return []
    return [
        ConfigError(
            rule.where,
            f"{name} has a tunnel_endpoint, and its filter action {quoted(rule.filter_action.name)} says "
            "fallback_clear = true: clear traffic is for hosts, not for what is behind a gateway",
            "give the tunnel's rule a filter action without fallback_clear",
        )
    ]


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
    if not rule.authentication:
        found.append(
            ConfigError(
                rule.where,
                f"{name} negotiates and has no authentication that this version knows",
                'add authentication = [{ method = "psk", secret_file = "..." }]',
            )
        )
    return found
