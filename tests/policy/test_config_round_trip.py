"""A policy written as a config file and read again is the same policy."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from policy.clock import SECOND
from policy.lifetimes import Lifetime
from policy.lint import address_text
from policy.model import (
    FULL_PADDING,
    ActionKind,
    AddressSpec,
    DnsName,
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
from policy.suites import parse_group, parse_ike_proposal, parse_method, proposal_text, transform_text
from tests.support.policies import KEY, load_text

START = int(ip_address("10.0.0.0"))
ADDRESSES: st.SearchStrategy[AddressSpec] = st.one_of(
    st.sampled_from([Special.ANY, DnsName("db.example"), AddressRange.any(4)]),
    st.tuples(st.integers(0, 999), st.integers(0, 999)).map(
        lambda p: AddressRange(4, START + min(p), START + max(p))
    ),
)
PORTS = st.just(ANY_PORT) | st.tuples(st.integers(0, 65535), st.integers(0, 65535)).map(
    lambda p: PortRange(min(p), max(p))
)
NAMES = st.text(st.characters(categories=["L", "N", "P", "S", "Zs"]), min_size=1, max_size=12).filter(
    lambda name: name.isprintable() and name.strip()
)
FILTERS = st.builds(
    Filter,
    source=ADDRESSES | st.just(Special.ME),
    destination=ADDRESSES,
    protocol=st.sampled_from([6, 17, 132]),
    source_port=PORTS,
    destination_port=PORTS,
    mirrored=st.booleans(),
    description=NAMES,
)
METHODS = st.lists(
    st.sampled_from(["esp:aes256gcm16", "esp:aes128-sha256-noesn", "esp:null-sha512", "esp:chacha20poly1305"]),
    min_size=1,
    unique=True,
).map(lambda texts: tuple(map(parse_method, texts)))
LIFETIMES = st.builds(
    Lifetime, st.integers(60, 10**6).map(lambda s: s * SECOND), st.none() | st.integers(1, 2**40)
)
ACTIONS = st.builds(
    FilterAction,
    name=NAMES,
    kind=st.just(ActionKind.NEGOTIATE),
    methods=METHODS,
    lifetime=LIFETIMES,
    pfs=st.none() | st.sampled_from(["modp2048", "ecp384", "x25519"]).map(parse_group),
    inbound_clear=st.booleans(),
    encapsulation=st.sampled_from(Encapsulation),
    replay_window=st.integers(64, 8192),
    traffic_padding=st.integers(0, 1400) | st.just(FULL_PADDING),
    dummy_packets=st.integers(0, 100),
    description=NAMES,
)
EXCHANGES = st.builds(
    KeyExchange,
    proposals=st.lists(
        st.sampled_from(["aes256gcm16-prfsha384-x25519", "aes128-sha256-prfsha256-modp2048-ecp256"]),
        min_size=1,
        unique=True,
    ).map(lambda texts: tuple(map(parse_ike_proposal, texts))),
    lifetime=st.integers(60, 10**6).map(lambda s: Lifetime(s * SECOND)),
    liveness=st.none() | st.integers(1, 999).map(lambda s: s * SECOND),
    fragment_size=st.integers(576, 65535),
)
POLICIES = st.builds(
    lambda name, list_name, rule_name, filters, action, ike, active: Policy(
        name=name,
        ike=ike,
        local_id="gw.example",
        rules=(
            Rule(
                name=rule_name,
                filter_list=FilterList(name=list_name, filters=tuple(filters)),
                filter_action=action,
                authentication=(PresharedKey(secret=Secret(KEY.encode()), remote_id="b.example"),),
                tunnel_endpoint=ip_address("192.0.2.2"),
                active=active,
            ),
        ),
    ),
    NAMES, NAMES, NAMES, st.lists(FILTERS, min_size=1, max_size=3), ACTIONS, EXCHANGES, st.booleans(),
)  # fmt: skip


def text_of(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def padding_text(action: FilterAction) -> str:
    return text_of("mtu") if action.traffic_padding == FULL_PADDING else str(action.traffic_padding)


def flag(value: bool) -> str:
    return str(value).lower()


def write(policy: Policy) -> str:
    (rule,) = policy.rules
    action, ike, (method,) = rule.filter_action, policy.ike, rule.authentication
    assert isinstance(method, PresharedKey)
    assert ike.lifetime.time is not None
    assert action.lifetime.time is not None
    liveness = '"off"' if ike.liveness is None else f'"{ike.liveness // SECOND}s"'
    limit = "" if action.lifetime.bytes is None else f', bytes = "{action.lifetime.bytes}B"'
    group = "" if action.pfs is None else f"pfs = {text_of(transform_text(4, Group(action.pfs)))}\n"
    filters = "".join(
        f"[[filter_list.filter]]\nsource = {text_of(address_text(f.source))}\n"
        f"destination = {text_of(address_text(f.destination))}\nprotocol = {f.protocol}\n"
        f"source_port = {text_of(str(f.source_port))}\ndestination_port = {text_of(str(f.destination_port))}\n"
        f"mirrored = {flag(f.mirrored)}\ndescription = {text_of(f.description)}\n"
        for f in rule.filter_list.filters
    )
    return (
        f"[[policy]]\nname = {text_of(policy.name)}\nlocal_id = {text_of(policy.local_id or '')}\n"
        f"ike = {{ proposals = [{', '.join(text_of(proposal_text(p)) for p in ike.proposals)}], "
        f"lifetime = {ike.lifetime.time // SECOND}, liveness = {liveness}, "
        f"fragment_size = {ike.fragment_size} }}\n"
        f"[[policy.rule]]\nname = {text_of(rule.name)}\nfilter_list = {text_of(rule.filter_list.name)}\n"
        f"filter_action = {text_of(action.name)}\nactive = {flag(rule.active)}\n"
        f"tunnel_endpoint = {text_of(str(rule.tunnel_endpoint))}\n"
        f'authentication = [{{ method = "psk", secret = {text_of(method.secret.reveal().decode())}, '
        f"remote_id = {text_of(method.remote_id or '')} }}]\n"
        f"[[filter_list]]\nname = {text_of(rule.filter_list.name)}\n{filters}"
        f"[[filter_action]]\nname = {text_of(action.name)}\naction = {text_of(action.kind.value)}\n"
        f"methods = [{', '.join(text_of(m.text) for m in action.methods)}]\n{group}"
        f"lifetime = {{ time = {action.lifetime.time // SECOND}{limit} }}\n"
        f"inbound_clear = {flag(action.inbound_clear)}\n"
        f"encapsulation = {text_of(action.encapsulation.value)}\nreplay_window = {action.replay_window}\n"
        f"traffic_padding = {padding_text(action)}\n"
        f"dummy_packets = {action.dummy_packets}\n"
        f"description = {text_of(action.description)}\n"
    )


@settings(deadline=None, max_examples=100)
@given(POLICIES)
def test_a_policy_written_and_read_again_is_the_same(policy: Policy) -> None:
    loaded = load_text(write(policy)).configuration
    assert loaded.policies == (policy,)
    assert loaded.file == Path("/etc/mg/a.toml")
