"""The built-in filter lists, filter actions and default policies of Windows Server 2003, and our own defaults."""

from __future__ import annotations

from policy.clock import SECOND
from policy.lifetimes import Lifetime
from policy.model import (
    ActionKind,
    Filter,
    FilterAction,
    FilterList,
    KeyExchange,
    Policy,
    Rule,
    SecurityMethod,
    Special,
)
from policy.proposals import Encr, Group, Integ, Prf, Proposal, ProtocolId, Transform, TransformType
from policy.selectors import ICMP
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
    filters=(Filter(source=Special.ME, destination=Special.ANY, protocol=ICMP),),
    description="All ICMP packets between this computer and any other computer",
)
PERMIT = FilterAction(
    name="Permit", kind=ActionKind.PERMIT, description="Permit unsecured IP packets to pass through"
)


def _esp(encr: Encr, integ: Integ, text: str) -> SecurityMethod:
    transform = Transform(TransformType.ENCR, encr)
    return SecurityMethod((Proposal(ProtocolId.ESP, (transform,), (), (integ,), (), (), text),), text)


def _ah(integ: Integ, text: str) -> SecurityMethod:
    return SecurityMethod((Proposal(ProtocolId.AH, (), (), (integ,), (), (), text),), text)


_3DES_SHA1 = _esp(Encr.TRIPLE_DES, Integ.HMAC_SHA1_96, "esp:3des-sha1")
_3DES_MD5 = _esp(Encr.TRIPLE_DES, Integ.HMAC_MD5_96, "esp:3des-md5")
_DES_SHA1 = _esp(Encr.DES, Integ.HMAC_SHA1_96, "esp:des-sha1")
_DES_MD5 = _esp(Encr.DES, Integ.HMAC_MD5_96, "esp:des-md5")
_WINDOWS_LIFETIME = Lifetime(time=900 * SECOND, bytes=100_000 * 1024)

REQUEST_SECURITY = FilterAction(
    name="Request Security (Optional)",
    kind=ActionKind.NEGOTIATE,
    methods=(_3DES_SHA1, _DES_SHA1, _ah(Integ.HMAC_SHA1_96, "ah:sha1"), _ah(Integ.HMAC_MD5_96, "ah:md5")),
    lifetime=_WINDOWS_LIFETIME,
    inbound_clear=True,
    fallback_clear=True,
    description="Accepts unsecured communication, but requests that clients establish security",
)
REQUIRE_SECURITY = FilterAction(
    name="Require Security",
    kind=ActionKind.NEGOTIATE,
    methods=(_3DES_SHA1, _3DES_MD5, _DES_SHA1, _DES_MD5),
    lifetime=_WINDOWS_LIFETIME,
    inbound_clear=True,
    description="Accepts unsecured communication, but always requires clients to establish security",
)


def _main_mode(encr: Encr, integ: Integ, prf: Prf, group: Group, text: str) -> Proposal:
    transform = Transform(TransformType.ENCR, encr)
    return Proposal(ProtocolId.IKE, (transform,), (prf,), (integ,), (group,), (), text)


_WINDOWS_KEY_EXCHANGE = KeyExchange(
    version=1,
    proposals=(
        _main_mode(Encr.TRIPLE_DES, Integ.HMAC_SHA1_96, Prf.HMAC_SHA1, Group.MODP_1024, "3des-sha1-modp1024"),
        _main_mode(Encr.TRIPLE_DES, Integ.HMAC_MD5_96, Prf.HMAC_MD5, Group.MODP_1024, "3des-md5-modp1024"),
        _main_mode(Encr.DES, Integ.HMAC_SHA1_96, Prf.HMAC_SHA1, Group.MODP_768, "des-sha1-modp768"),
        _main_mode(Encr.DES, Integ.HMAC_MD5_96, Prf.HMAC_MD5, Group.MODP_768, "des-md5-modp768"),
    ),
)


def _server_rules(action: FilterAction) -> tuple[Rule, ...]:
    return (
        Rule(name="All IP Traffic", filter_list=ALL_IP_TRAFFIC, filter_action=action),
        Rule(name="All ICMP Traffic", filter_list=ALL_ICMP_TRAFFIC, filter_action=PERMIT),
    )


CLIENT = Policy(
    name="Client (Respond Only)",
    rules=(),
    ike=_WINDOWS_KEY_EXCHANGE,
    default_response=True,
    description="Communicates normally; secures only what a server asks to have secured",
)
SERVER = Policy(
    name="Server (Request Security)",
    rules=_server_rules(REQUEST_SECURITY),
    ike=_WINDOWS_KEY_EXCHANGE,
    default_response=True,
    description="Always requests security; allows unsecured communication with clients that do not answer",
)
SECURE_SERVER = Policy(
    name="Secure Server (Require Security)",
    rules=_server_rules(REQUIRE_SECURITY),
    ike=_WINDOWS_KEY_EXCHANGE,
    default_response=True,
    description="Always requires security; does not send unsecured",
)

#: What a config file may name without defining it; its own definitions come first.
BUILT_IN_POLICIES = (CLIENT, SERVER, SECURE_SERVER)
BUILT_IN_FILTER_LISTS = (ALL_IP_TRAFFIC, ALL_ICMP_TRAFFIC)
BUILT_IN_FILTER_ACTIONS = (PERMIT,)
