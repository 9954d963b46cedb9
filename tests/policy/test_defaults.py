"""The built-in policies: what they are, by name, and which entries they give on a host with both families."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from policy.clock import SECOND
from policy.compile import compile_policy
from policy.config import Loaded
from policy.defaults import (
    BUILT_IN_POLICIES,
    CLIENT,
    DEFAULT_METHODS,
    PERMIT,
    REQUEST_SECURITY,
    REQUIRE_SECURITY,
    SECURE_SERVER,
    SERVER,
    authenticated,
)
from policy.model import ConnectionType, Policy
from policy.order import effective_order
from policy.pad import Pad
from policy.proposals import ProtocolId
from policy.selectors import AddressRange, Flow
from policy.spd import Disposition, Mode, Snapshot, Spd, SpdEntry
from policy.suites import method_text
from tests.support.policies import KEY, errors_of, load_text

AGENT = f'[agent]\nassigned = "NAME"\nauthentication = [{{ method = "psk", secret = "{KEY}" }}]\n'
OWN = tuple(map(ip_address, ("10.1.0.1", "192.0.2.1", "2001:db8::1", "127.0.0.1", "fe80::1")))
HOME = ("2001:db8::1", "10.1.0.1", "192.0.2.1")


def put_in_force(policy: Policy, loaded: Loaded) -> Snapshot:
    methods = loaded.configuration.agent.authentication
    return compile_policy(authenticated(policy, methods), generation=1, local_addresses=OWN)


def built_in(policy: Policy) -> Snapshot:
    return put_in_force(policy, load_text(AGENT.replace("NAME", policy.name)))


def methods(entry: SpdEntry) -> list[str]:
    assert entry.protection is not None
    return [method_text(method) for method in entry.protection.methods]


MODERN = ["esp:aes256gcm16", "esp:aes128gcm16", "esp:aes256-sha256"]


@pytest.mark.parametrize(
    ("policy", "flags", "offers"),
    [(SERVER, (True, True), [*MODERN, "ah:sha256"]), (SECURE_SERVER, (True, False), MODERN)],
)
def test_server_policies(policy: Policy, flags: tuple[bool, bool], offers: list[str]) -> None:
    snapshot = built_in(policy)
    rows = [
        (e.rule, str(e.selectors.local), str(e.selectors.remote), e.disposition.value, e.per_host)
        for e in snapshot.spd.entries
    ]
    anywhere = {6: "::/0", 4: "0.0.0.0/0"}
    expected = []
    for own in HOME:
        version = ip_address(own).version
        icmp = 58 if version == 6 else 1
        any_ = anywhere[version]
        expected.append(("All ICMP Traffic", f"{own}[{icmp}]", f"{any_}[{icmp}]", "bypass", False))
        expected.append(("All IP Traffic", own, any_, "protect", True))
    assert sorted(rows) == sorted(expected)
    assert [e.id for e in snapshot.spd.entries if e.disposition is Disposition.PROTECT] == [
        f"All IP Traffic/All IP Traffic/1/{own}/ipv{ip_address(own).version}" for own in HOME
    ]
    for entry in snapshot.spd.entries:
        assert entry.outbound
        assert entry.inbound
        assert entry.interfaces is ConnectionType.ALL
        if entry.protection is not None:
            assert entry.protection.mode is Mode.TRANSPORT
            assert (entry.protection.inbound_clear, entry.protection.fallback_clear) == flags
            assert entry.protection.idle == 300 * SECOND
            assert entry.protection.tunnel_remote is None
            assert methods(entry) == offers
    assert [peer.name for peer in snapshot.pad.peers] == ["<Dynamic>", "each host"]
    assert snapshot.warnings == ()


def test_the_client_only_responds() -> None:
    snapshot = built_in(CLIENT)
    assert snapshot.spd == Spd()
    (peer,) = snapshot.pad.peers
    assert peer.responds_only
    assert peer.hosts == (AddressRange.any(4), AddressRange.any(6))
    assert peer.address is None
    assert peer.entries == ()


@pytest.mark.parametrize("policy", BUILT_IN_POLICIES)
def test_the_default_response_rule(policy: Policy) -> None:
    snapshot = built_in(policy)
    assert [(e.id, e.selectors.version) for e in snapshot.response] == [
        ("<Dynamic>/ipv4", 4),
        ("<Dynamic>/ipv6", 6),
    ]
    for entry in snapshot.response:
        assert entry.rule == entry.filter_list == "<Dynamic>"
        assert entry.filter_action == "Default Response"
        assert entry.per_host
        assert entry.selectors.local.addresses.is_any
        assert entry.selectors.remote.addresses.is_any
        assert entry.protection is not None
        assert entry.protection.mode is Mode.TRANSPORT
        assert (entry.protection.inbound_clear, entry.protection.fallback_clear) == (False, False)
        assert entry.protection.idle == 300 * SECOND
        assert methods(entry) == [*MODERN, "ah:sha256"]
        assert snapshot.spd.entry(entry.id) is None
        assert snapshot.pad.by_name(entry.protection.peer) is not None
    assert [row.direction for row in effective_order(snapshot)][-2:] == ["asked", "asked"]
    host = snapshot.pad.candidates(ip_address("198.51.100.7"))[-1]
    assert host.responds_only
    assert host.address == ip_address("198.51.100.7")


def test_dynamic_entries_come_after_all_others_and_go() -> None:
    snapshot = built_in(SECURE_SERVER)
    flow = Flow(4, 6, int(OWN[0]), int(ip_address("10.2.0.9")), 80, 40000)
    granted = snapshot.response[0].for_host(ip_address("10.2.0.9"))
    assert granted.id == "<Dynamic>/ipv4@10.2.0.9"
    assert granted.protection is not None
    assert granted.protection.peer == "10.2.0.9=<Dynamic>"
    with_one = snapshot.with_dynamic([granted])
    assert with_one.spd.entries == (*snapshot.spd.entries, granted)
    assert with_one.spd.lookup_outbound(flow) == snapshot.spd.lookup_outbound(flow)
    assert built_in(CLIENT).with_dynamic([granted]).spd.lookup_outbound(flow) == granted
    assert with_one.spd.entry(granted.id) == granted
    assert snapshot.with_dynamic([]) is snapshot


def test_flags_of_the_actions_are_windows_own() -> None:
    assert (REQUEST_SECURITY.inbound_clear, REQUEST_SECURITY.fallback_clear) == (True, True)
    assert (REQUIRE_SECURITY.inbound_clear, REQUIRE_SECURITY.fallback_clear) == (True, False)
    assert PERMIT.methods == ()
    assert all(part.protocol is ProtocolId.ESP for method in DEFAULT_METHODS for part in method.protocols)
    assert [policy.name for policy in BUILT_IN_POLICIES] == [
        "Client (Respond Only)", "Server (Request Security)", "Secure Server (Require Security)",
    ]  # fmt: skip
    assert all(policy.default_response for policy in BUILT_IN_POLICIES)


OWN_NAMES = """
[[filter_action]]
name = "Permit"
action = "block"
[[policy]]
name = "NAME"
[[policy.rule]]
name = "R"
filter_list = "All ICMP Traffic"
filter_action = "Permit"
[[policy.rule]]
name = "S"
filter_list = "All IP Traffic"
filter_action = "Require Security"
""".replace("NAME", SERVER.name)


def test_own_definitions_come_first() -> None:
    loaded = load_text(AGENT.replace("NAME", SERVER.name) + OWN_NAMES)
    policy = loaded.configuration.policy(SERVER.name)
    assert policy is not None
    assert [rule.filter_action.kind.value for rule in policy.rules] == ["block", "negotiate"]
    assert policy.rules[1].authentication == loaded.configuration.agent.authentication
    assert policy.rules[0].authentication == ()


@pytest.mark.parametrize("policy", BUILT_IN_POLICIES)
def test_a_built_in_policy_needs_the_agents_authentication(policy: Policy) -> None:
    text = AGENT.replace("NAME", policy.name)
    assert errors_of(text) == []
    (error,) = errors_of(text.replace("authentication", "#"))
    assert error.startswith(
        f'a.toml:2:12: the built-in policy "{policy.name}" needs to know how hosts authenticate ('
    )
    assert error.endswith("under [agent])")
    (error,) = errors_of(text.replace("secret =", "secrt ="))
    assert error.startswith('a.toml:3:37: unknown key "secrt"')
    certificate = text.replace(f'"psk", secret = "{KEY}"', '"certificate", certificate = "c", key = "k", ca = "a"')
    assert "certificate authentication is not available in this version" in errors_of(certificate)[0]


def test_a_policy_has_authentication_of_its_own_for_those_who_ask() -> None:
    other = KEY[::-1]
    text = (
        f'{AGENT.replace("NAME", "P")}[[policy]]\nname = "P"\ndefault_response = true\n'
        f'authentication = [{{ method = "psk", secret = "{other}" }}]\n'
    )
    policy = load_text(text).configuration.policies[0]
    snapshot = compile_policy(policy, generation=1, local_addresses=OWN)
    assert snapshot.pad.peers[0].authentication == policy.authentication
    assert policy.authentication != load_text(text).configuration.agent.authentication
    assert snapshot.pad != Pad()
