"""The built-in filter lists, filter actions and default policies of Windows Server 2003, and our own defaults."""

from __future__ import annotations

from dataclasses import replace

from policy.model import (
    ActionKind,
    AuthenticationMethod,
    Filter,
    FilterAction,
    FilterList,
    KeyExchange,
    Policy,
    Rule,
    Special,
)
from policy.selectors import ICMP, ICMPV6
from policy.suites import parse_ike_proposal, parse_method

#: Offered when a policy names no proposals: strongest first, each side of the usual hardware divide.
DEFAULT_IKE_PROPOSALS = tuple(
    map(
        parse_ike_proposal,
        (
            "aes256gcm16-prfsha384-x25519-ecp384-modp3072",
            "aes128gcm16-prfsha256-x25519-ecp256-modp3072-modp2048",
            "chacha20poly1305-prfsha256-x25519",
            "aes256-sha256-x25519-ecp256-modp3072-modp2048",
        ),
    )
)
#: Offered when a filter action that negotiates names no methods.
DEFAULT_METHODS = tuple(map(parse_method, ("esp:aes256gcm16", "esp:aes128gcm16", "esp:aes256-sha256")))

ALL_IP_TRAFFIC = FilterList(
    name="All IP Traffic",
    filters=(Filter(source=Special.ME, destination=Special.ANY),),
    description="All IP packets from this computer to any other computer",
)
ALL_ICMP_TRAFFIC = FilterList(
    name="All ICMP Traffic",
    filters=(
        Filter(source=Special.ME, destination=Special.ANY, protocol=ICMP),
        Filter(source=Special.ME, destination=Special.ANY, protocol=ICMPV6),
    ),
    description="All ICMP packets between this computer and any other computer",
)
#: What the default response rule grants.
DEFAULT_RESPONSE = FilterAction(
    name="Default Response",
    kind=ActionKind.NEGOTIATE,
    methods=(*DEFAULT_METHODS, parse_method("ah:sha256")),
    description="Secures what a peer asks for",
)
PERMIT = FilterAction(
    name="Permit", kind=ActionKind.PERMIT, description="Permit unsecured IP packets to pass through"
)


#: Request settles for integrity alone, Require always encrypts: so it is in Windows, with its own algorithms.
REQUEST_SECURITY = FilterAction(
    name="Request Security (Optional)",
    kind=ActionKind.NEGOTIATE,
    methods=(*DEFAULT_METHODS, parse_method("ah:sha256")),
    inbound_clear=True,
    fallback_clear=True,
    description="Accepts unsecured communication, but requests that clients establish security",
)
REQUIRE_SECURITY = FilterAction(
    name="Require Security",
    kind=ActionKind.NEGOTIATE,
    methods=DEFAULT_METHODS,
    inbound_clear=True,
    description="Accepts unsecured communication, but always requires clients to establish security",
)
_KEY_EXCHANGE = KeyExchange(proposals=DEFAULT_IKE_PROPOSALS)


def _server_rules(action: FilterAction) -> tuple[Rule, ...]:
    return (
        Rule(name="All IP Traffic", filter_list=ALL_IP_TRAFFIC, filter_action=action),
        Rule(name="All ICMP Traffic", filter_list=ALL_ICMP_TRAFFIC, filter_action=PERMIT),
    )


CLIENT = Policy(
    name="Client (Respond Only)",
    rules=(),
    ike=_KEY_EXCHANGE,
    default_response=True,
    description="Communicates normally; secures only what a server asks to have secured",
)
SERVER = Policy(
    name="Server (Request Security)",
    rules=_server_rules(REQUEST_SECURITY),
    ike=_KEY_EXCHANGE,
    default_response=True,
    description="Always requests security; allows unsecured communication with clients that do not answer",
)
SECURE_SERVER = Policy(
    name="Secure Server (Require Security)",
    rules=_server_rules(REQUIRE_SECURITY),
    ike=_KEY_EXCHANGE,
    default_response=True,
    description="Always requires security; does not send unsecured",
)

#: What a config file may name without defining it; its own definitions come first.
BUILT_IN_POLICIES = (CLIENT, SERVER, SECURE_SERVER)
BUILT_IN_FILTER_LISTS = (ALL_IP_TRAFFIC, ALL_ICMP_TRAFFIC)
BUILT_IN_FILTER_ACTIONS = (PERMIT, REQUEST_SECURITY, REQUIRE_SECURITY)


def authenticated(policy: Policy, methods: tuple[AuthenticationMethod, ...]) -> Policy:
    """Return *policy* with *methods* wherever it negotiates and names none: they are the agent's own."""
    rules = tuple(
        replace(rule, authentication=methods)
        if rule.filter_action.kind is ActionKind.NEGOTIATE and not rule.authentication
        else rule
        for rule in policy.rules
    )
    return replace(policy, rules=rules, authentication=policy.authentication or methods)
