# ruff: noqa: E501  (a table has one row a line)
"""Rules without a tunnel endpoint: transport mode between this host's addresses and each host of the other side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.clock import SECOND
from policy.compile import compile_policy
from policy.defaults import DEFAULT_IKE_PROPOSALS, DEFAULT_METHODS, PERMIT, authenticated
from policy.diff import diff
from policy.explain import Direction, explain
from policy.model import (
    ActionKind,
    AddressSpec,
    Filter,
    FilterAction,
    FilterList,
    KeyExchange,
    Policy,
    PresharedKey,
    Rule,
    Special,
)
from policy.order import effective_order
from policy.pad import Identity
from policy.path import IpAddress
from policy.secret import Secret
from policy.selectors import AddressRange, Flow
from policy.spd import Disposition, Mode, Snapshot
from tests.support.policies import KEY, compiled, policy_text

OWN = ("10.1.0.1", "192.0.2.1", "2001:db8::1")


def text_of(filter_: str, *, remote_id: str = "", action: str = "") -> str:
    identity = f', remote_id = "{remote_id}"' if remote_id else ""
    text = policy_text(("A@B", "Drop", filter_)).replace('filter_action = "Drop"', 'filter_action = "Protect"', 1)
    rule = f'authentication = [{{ method = "psk", secret = "{KEY}"{identity} }}]\n[[filter_list]]'
    return text.replace("[[filter_list]]", rule, 1).replace(
        'methods = ["esp:aes256gcm16"]', f'methods = ["esp:aes256gcm16"]\n{action}'
    )


def rows(snapshot: Snapshot) -> list[tuple[str, str, bool]]:
    return [(str(e.selectors.local), str(e.selectors.remote), e.per_host) for e in snapshot.spd.entries]


@pytest.mark.parametrize(
    ("filter_", "expected"),
    [
        ('source = "me", destination = "10.2.0.9"', [("10.1.0.1", "10.2.0.9", False), ("192.0.2.1", "10.2.0.9", False)]),
        # a network that this host is in stands for its addresses there
        ('source = "10.1.0.0/24", destination = "10.2.0.0/24"', [("10.1.0.1", "10.2.0.0/24", True)]),
        ('source = "10.2.0.0/24", destination = "10.1.0.0/24"', [("10.1.0.1", "10.2.0.0/24", True)]),
        ('source = "10.1.0.1", destination = "10.2.0.0/24"', [("10.1.0.1", "10.2.0.0/24", True)]),
        ('source = "10.1.0.1-10.1.0.9", destination = "10.2.0.9"', [("10.1.0.1", "10.2.0.9", False)]),
        (
            'source = "any", destination = "any", protocol = "tcp", destination_port = 80',
            [
                ("2001:db8::1[6]", "::/0:80[6]", True),
                ("10.1.0.1[6]", "0.0.0.0/0:80[6]", True),
                ("192.0.2.1[6]", "0.0.0.0/0:80[6]", True),
            ],
        ),
    ],
)  # fmt: skip
def test_entries(filter_: str, expected: list[tuple[str, str, bool]]) -> None:
    snapshot = compiled(text_of(filter_), *OWN)
    assert rows(snapshot) == expected
    assert snapshot.warnings == ()
    for entry in snapshot.spd.entries:
        protection = entry.protection
        assert protection is not None
        assert (protection.mode, protection.tunnel_remote) == (Mode.TRANSPORT, None)
        assert protection.idle == (300 * SECOND if entry.per_host else None)
        peer = snapshot.pad.by_name(protection.peer)
        assert peer is not None
        assert (peer.address is None) == entry.per_host
        assert bool(peer.hosts) == entry.per_host


@pytest.mark.parametrize("local", ["10.7.0.0/24", "10.1.0.7", "127.0.0.1"])
def test_a_side_that_is_not_this_host_is_told(local: str) -> None:
    snapshot = compiled(text_of(f'source = "{local}", destination = "10.2.0.9"'), *OWN)
    assert snapshot.spd.entries == ()
    (warning,) = snapshot.warnings
    assert (
        f"protects between hosts (it has no tunnel_endpoint), and none of {local} is an address of this" in warning
    )
    assert warning.endswith("matches nothing here (write me, or name a tunnel_endpoint)")


def test_each_host_is_an_entry_and_a_peer_of_its_own() -> None:
    snapshot = compiled(text_of('source = "me", destination = "10.2.0.0/24"', remote_id="b@c=d"), "10.1.0.1")
    (template,) = snapshot.spd.entries
    assert template.id == "A%40B/A%40B list/1/10.1.0.1"
    host = snapshot.spd.entry(f"{template.id}@10.2.0.9")
    assert host == template.for_host(ip_address("10.2.0.9"))
    assert host is not None
    assert host.protection is not None
    assert (str(host.selectors.remote), host.per_host) == ("10.2.0.9", False)
    assert host.for_host(ip_address("10.2.0.7")) is host
    assert host.protection.peer == "10.2.0.9=each host#b@c=d"
    peer = snapshot.pad.by_name(host.protection.peer)
    assert peer is not None
    assert (peer.address, peer.remote_id) == (ip_address("10.2.0.9"), Identity.parse("b@c=d"))
    assert peer.entries == (host.id,)
    assert snapshot.pad.candidates(ip_address("10.2.0.9")) == (peer,)
    assert snapshot.pad.candidates(ip_address("10.3.0.9")) == ()
    for nobody in ("10.3.0.9", "2001:db8::9", "x", "", "10.2.0.9@10.2.0.9"):
        assert snapshot.spd.entry(f"{template.id}@{nobody}") is None
    assert [row.peer for row in effective_order(snapshot)] == ["each host#b@c=d"]


def test_ids_stay_when_addresses_come_and_go() -> None:
    text = text_of('source = "10.1.0.0/24", destination = "any"')
    one = {entry.id for entry in compiled(text, "10.1.0.1").spd.entries}
    two = {entry.id for entry in compiled(text, "10.1.0.1", "10.1.0.7").spd.entries}
    assert len(one) == 1
    assert len(two) == 2
    assert one < two


def test_rules_that_authenticate_alike_share_the_peer_of_each_host() -> None:
    text = text_of('source = "me", destination = "10.2.0.0/24"\nsource = "me", destination = "10.2.0.0/16"')
    snapshot = compiled(text, "10.1.0.1")
    (peer,) = snapshot.pad.peers
    assert [str(hosts) for hosts in peer.hosts] == ["10.2.0.0/24", "10.2.0.0/16"]
    (near,) = snapshot.pad.candidates(ip_address("10.2.0.9"))
    (far,) = snapshot.pad.candidates(ip_address("10.2.7.9"))
    assert (len(near.entries), len(far.entries)) == (2, 1)
    assert all(snapshot.spd.entry(entry) is not None for entry in (*near.entries, *far.entries))


BOTH = (
    'source = "me", destination = "10.2.0.9", protocol = "tcp", destination_port = 443\n'
    'source = "me", destination = "10.2.0.0/24"\n'
    'source = "me", destination = "10.3.0.9"'
)


def test_a_host_that_is_named_and_meant_by_a_network_is_one_peer() -> None:
    """It proves itself once, and may obtain the entries of both."""
    snapshot = compiled(text_of(BOTH), "10.1.0.1")
    assert [peer.name for peer in snapshot.pad.peers] == ["10.3.0.9", "each host"]
    host, _, template = snapshot.spd.entries
    assert [str(e.selectors.remote) for e in (host, template)] == ["10.2.0.9:443[6]", "10.2.0.0/24"]
    (peer,) = snapshot.pad.candidates(ip_address("10.2.0.9"))
    assert host.protection is not None
    assert host.protection.peer == peer.name == "10.2.0.9=each host"
    assert peer.entries == (host.id, f"{template.id}@10.2.0.9")
    assert all(snapshot.spd.entry(entry) is not None for entry in peer.entries)
    assert snapshot.pad.by_name(peer.name) == peer
    (near,) = snapshot.pad.candidates(ip_address("10.2.0.8"))
    assert near.entries == (f"{template.id}@10.2.0.8",)


def test_a_gateway_that_is_also_one_of_each_host_is_one_peer() -> None:
    text = policy_text(
        ("T", "10.2.0.9", 'source = "10.1.0.0/24", destination = "10.7.0.0/24"'),
        ("H", "Drop", 'source = "me", destination = "10.2.0.0/24"'),
    )
    rule = f'authentication = [{{ method = "psk", secret = "{KEY}" }}]\n'
    text = text.replace('filter_action = "Drop"\n', f'filter_action = "Protect"\n{rule}', 1)
    snapshot = compiled(text, "10.1.0.1")
    (peer,) = snapshot.pad.candidates(ip_address("10.2.0.9"))
    assert peer.entries == ("H/H list/1/10.1.0.1@10.2.0.9", "T/T list/1")
    assert snapshot.warnings == ()


def test_a_host_that_authenticates_in_two_ways_is_told() -> None:
    text = text_of('source = "me", destination = "10.2.0.0/24"')
    own = (
        '[[policy.rule]]\nname = "Own"\nfilter_list = "Own list"\nfilter_action = "Protect"\n'
        f'authentication = [{{ method = "psk", secret = "{KEY}", remote_id = "db" }}]\n[[filter_list]]\nname = "Own list"\n'
        'filter = [{ source = "me", destination = "10.2.0.9" }]\n[[filter_list]]'
    )
    snapshot = compiled(text.replace("[[filter_list]]", own, 1), "10.1.0.1")
    assert [peer.name for peer in snapshot.pad.peers] == ["10.2.0.9#db", "each host"]
    assert 'rules "Own" and "A@B" authenticate 10.2.0.9 differently: it gets what the' in snapshot.warnings[0]


@pytest.mark.parametrize(
    ("action", "outbound", "inbound"),
    [
        ("", "protects it between this host and 10.2.0.9", "accepts it protected by 10.2.0.9 only"),
        (
            "inbound_clear = true\nfallback_clear = true",
            "and 10.2.0.9; in clear only while that host does not answer at all (fallback_clear)",
            "only; in clear it is accepted too (inbound_clear)",
        ),
        (
            "fallback_clear = true",
            "(fallback_clear)",
            "only; in clear only while that host does not answer at all (fallback_clear)",
        ),
    ],
)
def test_explanations(action: str, outbound: str, inbound: str) -> None:
    snapshot = compiled(text_of('source = "me", destination = "any"', action=action), "10.1.0.1")
    here, there = int(ip_address("10.1.0.1")), int(ip_address("10.2.0.9"))
    said = explain(snapshot, Flow(4, 6, here, there, 1, 2), Direction.OUTBOUND)
    assert said.verdict == "protect"
    assert said.why.endswith(outbound)
    assert explain(snapshot, Flow(4, 6, there, here, 2, 1), Direction.INBOUND).why.endswith(inbound)


def test_ah_is_told_to_be_readable() -> None:
    text = text_of('source = "me", destination = "any"').replace('"esp:aes256gcm16"', '"ah:sha256"')
    flow = Flow(4, 6, int(ip_address("10.1.0.1")), int(ip_address("10.2.0.9")), 1, 2)
    assert explain(compiled(text, "10.1.0.1"), flow).why.endswith("; its methods let everybody read it")


def test_the_default_response_rule_is_told_of_and_compared() -> None:
    silent = compiled(policy_text(), "10.1.0.1")
    text = policy_text().replace(
        'name = "Test"\nlocal_id',
        f'name = "Test"\ndefault_response = true\nauthentication = [{{ method = "psk", secret = "{KEY}" }}]\nlocal_id',
    )
    asked = compiled(text, "10.1.0.1")
    flow = Flow(4, 6, int(ip_address("10.1.0.1")), int(ip_address("10.2.0.9")), 1, 2)
    assert explain(silent, flow).why.endswith("passes in clear")
    assert explain(asked, flow).why.endswith("until the other host asks to secure it (the default response rule)")
    assert str(diff(silent, asked)) == "2 entries added, 1 peer added"
    assert diff(asked, asked).same


def test_what_another_kind_of_interface_decides_is_told() -> None:
    text = policy_text(("R", "Drop", 'source = "me", destination = "any"')).replace(
        'filter_action = "Drop"\n', 'filter_action = "Drop"\nconnection_type = "remote-access"\n', 1
    )
    snapshot = compiled(text, "10.1.0.1")
    flow = Flow(4, 6, int(ip_address("10.1.0.1")), int(ip_address("10.2.0.9")), 1, 2)
    said = explain(snapshot, flow)
    assert said.verdict == "no policy"
    assert said.why.endswith('(on a lan interface; on a remote-access interface rule "R" decides)')
    assert said.considered[0].why_not == "interface: the rule is for remote-access"


START = int(ip_address("10.0.0.0"))
ADDRESSES = st.integers(0, 12)
SIDES: st.SearchStrategy[AddressSpec] = st.one_of(
    st.sampled_from([Special.ANY, AddressRange(4, START, START + 7), AddressRange(4, START + 8, START + 15)]),
    st.tuples(ADDRESSES, ADDRESSES).map(lambda p: AddressRange(4, START + min(p), START + max(p))),
    ADDRESSES.map(lambda n: AddressRange(4, START + n, START + n)),
)
NEGOTIATE = FilterAction(name="N", kind=ActionKind.NEGOTIATE, methods=DEFAULT_METHODS)
BLOCK = FilterAction(name="B", kind=ActionKind.BLOCK)
RULES = st.lists(
    st.tuples(st.just(Special.ME) | SIDES, SIDES, st.sampled_from([0, 6]), st.booleans(), st.sampled_from([NEGOTIATE, BLOCK, PERMIT])),
    min_size=1,
    max_size=6,
)  # fmt: skip


def policy_of(found: Sequence[tuple[AddressSpec, AddressSpec, int, bool, FilterAction]]) -> Policy:
    rules = [
        Rule(
            name=f"r{number}",
            filter_list=FilterList(
                name="l", filters=(Filter(source=one, destination=other, protocol=protocol, mirrored=mirrored),)
            ),
            filter_action=action,
        )
        for number, (one, other, protocol, mirrored, action) in enumerate(found)
    ]
    policy = Policy(name="p", rules=tuple(rules), ike=KeyExchange(proposals=DEFAULT_IKE_PROPOSALS))
    return authenticated(policy, (PresharedKey(secret=Secret(KEY.encode())),))


@settings(deadline=None, max_examples=150)
@given(RULES, st.sets(ADDRESSES, min_size=1, max_size=3), ADDRESSES, ADDRESSES, st.sampled_from([6, 17]))
def test_a_look_up_is_a_scan_and_each_host_is_its_own(
    found: list[tuple[AddressSpec, AddressSpec, int, bool, FilterAction]],
    own: set[int],
    source: int,
    destination: int,
    protocol: int,
) -> None:
    """The index against a scan; and what is found for a host names an entry and a peer of that host alone."""
    here: list[IpAddress] = [AddressRange(4, START + n, START + n).first for n in sorted(own)]
    snapshot = compile_policy(policy_of(found), generation=1, local_addresses=here)
    flow = Flow(4, protocol, START + source, START + destination, 1, 2)
    for outbound in (True, False):
        entry = snapshot.spd.lookup_outbound(flow) if outbound else snapshot.spd.lookup_inbound(flow)
        fits = [
            e
            for e in snapshot.spd.entries
            if (e.outbound and e.selectors.matches_outbound(flow) if outbound else e.inbound and e.selectors.matches_inbound(flow))
        ]  # fmt: skip
        assert entry is (fits[0] if fits else None)
        if entry is None or entry.disposition is not Disposition.PROTECT:
            continue
        # A transport-mode entry is between two hosts, and this side is this host.
        assert entry.selectors.local.addresses.first in here
        remote = flow.destination_address if outbound else flow.source_address
        host = entry.for_host(remote)
        assert host.selectors.remote.addresses == AddressRange.of(remote)
        assert replace(host, id="", protection=None) == replace(
            entry, id="", protection=None, selectors=host.selectors, per_host=False
        )
        assert snapshot.spd.entry(host.id) == host
        assert host.protection is not None
        peer = snapshot.pad.by_name(host.protection.peer)
        assert peer is not None
        assert peer.address == remote
        assert host.id in peer.entries
        assert peer in snapshot.pad.candidates(remote)


@settings(deadline=None, max_examples=100)
@given(RULES, st.sets(ADDRESSES, min_size=1, max_size=3), ADDRESSES)
def test_a_host_may_obtain_exactly_the_entries_that_reach_it(
    found: list[tuple[AddressSpec, AddressSpec, int, bool, FilterAction]], own: set[int], number: int
) -> None:
    here: list[IpAddress] = [AddressRange(4, START + n, START + n).first for n in sorted(own)]
    snapshot = compile_policy(policy_of(found), generation=1, local_addresses=here)
    host = AddressRange(4, START + number, START + number)
    wanted = {
        e.for_host(host.first).id
        for e in snapshot.spd.entries
        if e.protection is not None and e.selectors.remote.addresses.covers(host)
    }
    assert {entry for peer in snapshot.pad.candidates(host.first) for entry in peer.entries} == wanted
