"""What the model can say and this version's agent cannot do: refused before a policy is put in force.

The agent speaks IKEv2 with preshared keys. A policy that needs more is never half applied:
each need gives one line with a way out.
"""

from __future__ import annotations

from collections.abc import Sequence

from policy.model import (
    ActionKind,
    AuthenticationMethod,
    CertificateAuth,
    Encapsulation,
    Policy,
    Rule,
    Where,
)
from policy.problems import ConfigError, quoted
from policy.proposals import Proposal, ProtocolId
from policy.windows2003 import missing


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
    found += _ciphers(policy.ike.proposals, policy.where, f"policy {quoted(policy.name)}: IKE")
    if policy.default_response:
        found += _authentication(policy.authentication, policy.where, "the default response rule")
    return tuple(dict.fromkeys(found))


def _rule(rule: Rule) -> list[ConfigError]:
    name = f"rule {quoted(rule.name)}"
    if rule.filter_action.kind is not ActionKind.NEGOTIATE:
        return []
    action = rule.filter_action
    proposals = [proposal for method in action.methods for proposal in method.protocols]
    found = _ciphers(proposals, action.where, f"{name}: its filter action {quoted(action.name)}")
    found += _fallback(rule, name) + _padding(rule, name) + _bare(rule, name)
    return found + _authentication(rule.authentication, rule.where, name)


def _ciphers(proposals: Sequence[Proposal], where: Where, name: str) -> list[ConfigError]:
    """Return one line if any of *proposals* needs a cipher that cannot be computed here."""
    for proposal in proposals:
        cipher = missing(proposal)
        if cipher is not None:
            message = f"{name} offers {quoted(proposal.text)}, and {cipher.name} is not available in this version"
            return [ConfigError(where, message, "write modern algorithms, or leave them out for the defaults")]
    return []


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


def _padding(rule: Rule, name: str) -> list[ConfigError]:
    """Padding is cut off by the length of the inner IP header (RFC 4303 section 2.7): only a tunnel has one."""
    action = rule.filter_action
    if rule.tunnel_endpoint is not None or not (action.traffic_padding or action.dummy_packets):
        return []
    word = "traffic_padding" if action.traffic_padding else "dummy_packets"
    return [
        ConfigError(
            rule.where,
            f"{name} has no tunnel_endpoint, and its filter action {quoted(action.name)} says {word}: "
            "only tunnels can hide how much is said",
            f"give the rule a filter action without {word}, or write tunnel_endpoint",
        )
    ]


def _bare(rule: Rule, name: str) -> list[ConfigError]:
    """AH covers the outer addresses and ports, so nothing may change them: it is never carried in UDP."""
    action = rule.filter_action
    with_ah = [
        method
        for method in action.methods
        if any(protocol.protocol is ProtocolId.AH for protocol in method.protocols)
    ]
    if action.encapsulation is not Encapsulation.UDP or not with_ah:
        return []
    return [
        ConfigError(
            action.where if action.where.line else rule.where,
            f'{name}: its filter action {quoted(action.name)} says encapsulation = "udp" and offers '
            f"{quoted(with_ah[0].text)}, and AH cannot be carried in UDP",
            'write encapsulation = "auto", or offer ESP only',
        )
    ]


def _authentication(methods: Sequence[AuthenticationMethod], where: Where, name: str) -> list[ConfigError]:
    found = [
        ConfigError(
            method.where,
            f"{name}: certificate authentication is not available in this version",
            'use { method = "psk", ... }',
        )
        for method in methods
        if isinstance(method, CertificateAuth)
    ]
    if not methods:
        found.append(
            ConfigError(
                where,
                f"{name} negotiates and has no authentication that this version knows",
                'add authentication = [{ method = "psk", secret_file = "..." }]',
            )
        )
    return found
