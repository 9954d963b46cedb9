"""A policy and a host's addresses become exactly one SPD and PAD, or an error that says why not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.compile import CompileError, compile_policy
from policy.model import ConnectionType, Rule, Where
from policy.order import sort_key
from policy.overlaps import MAX_COMPARED
from policy.pad import Identity
from policy.path import IpAddress
from policy.selectors import ANY_PORT, AddressRange, PortRange, SelectorPair, TrafficSelector
from policy.spd import Disposition, Mode, Snapshot, SpdEntry
from tests.support.policies import KEY, SITE_TO_SITE, changed, compiled, load_text, policy_text, warnings_of

OWN = ("10.1.0.1", "192.0.2.1")
LANS = 'source = "10.1.0.0/24", destination = "10.2.0.0/24"'


def rows(snapshot: Snapshot) -> list[tuple[str, str, str]]:
    """Return local, remote and direction of each entry in order."""
    ways = {(True, True): "both", (True, False): "out", (False, True): "in"}
    return [
        (str(e.selectors.local), str(e.selectors.remote), ways[e.outbound, e.inbound])
        for e in snapshot.spd.entries
    ]


def test_no_policy_is_empty_tables() -> None:
    snapshot = compile_policy(None, generation=7, local_addresses=[ip_address("10.1.0.1")])
    assert snapshot == Snapshot(generation=7, local_addresses=(ip_address("10.1.0.1"),))


def test_site_to_site() -> None:
    snapshot = compiled(SITE_TO_SITE, *OWN, generation=3)
    (entry,) = snapshot.spd.entries
    assert (entry.id, entry.disposition) == ("LAN to LAN/LAN A and LAN B/1", Disposition.PROTECT)
    assert rows(snapshot) == [("10.1.0.0/24", "10.2.0.0/24", "both")]
    assert entry.protection is not None
    assert entry.protection.mode is Mode.TUNNEL
    assert entry.protection.tunnel_remote == ip_address("10.9.0.2")
    (peer,) = snapshot.pad.peers
    assert peer.name == entry.protection.peer == "10.9.0.2#gw-b.example"
    assert (peer.address, peer.entries) == (ip_address("10.9.0.2"), (entry.id,))
    assert (peer.local_id, peer.remote_id) == (Identity.parse("gw-a.example"), Identity.parse("gw-b.example"))
    assert (snapshot.generation, snapshot.policy, snapshot.warnings) == (3, "Site A to site B", ())
    assert entry.where == Where("/etc/mg/a.toml", 21, 1)


@pytest.mark.parametrize(
    ("filter_", "own", "expected"),
    [
        # me is local, whichever side it is
        ('source = "me", destination = "10.2.0.9"', OWN[:1], [("10.1.0.1", "10.2.0.9", "both")]),
        ('source = "10.2.0.9", destination = "me"', OWN[:1], [("10.1.0.1", "10.2.0.9", "both")]),
        ('source = "me", destination = "10.2.0.9", mirrored = false', OWN[:1], [("10.1.0.1", "10.2.0.9", "out")]),
        ('source = "10.2.0.9", destination = "me", mirrored = false', OWN[:1], [("10.1.0.1", "10.2.0.9", "in")]),
        # else the only side that covers an own address
        ('source = "10.2.0.0/24", destination = "10.1.0.0/24"', OWN, [("10.1.0.0/24", "10.2.0.0/24", "both")]),
        (f"{LANS}, mirrored = false", OWN, [("10.1.0.0/24", "10.2.0.0/24", "out")]),
        (
            'source = "10.2.0.0/24", destination = "10.1.0.0/24", mirrored = false',
            OWN,
            [("10.1.0.0/24", "10.2.0.0/24", "in")],
        ),
        # else, if both do, the narrower
        ('source = "any", destination = "10.1.0.0/24"', OWN, [("10.1.0.0/24", "0.0.0.0/0", "both")]),
        ('source = "10.0.0.0/8", destination = "10.1.0.0/16"', OWN, [("10.1.0.0/16", "10.0.0.0/8", "both")]),
        # else the source
        (
            'source = "172.16.1.0/24", destination = "172.16.2.0/24"',
            OWN,
            [("172.16.1.0/24", "172.16.2.0/24", "both")],
        ),
        # any is each family that the other side allows
        (
            'source = "any", destination = "any"',
            OWN,
            [("0.0.0.0/0", "0.0.0.0/0", "both"), ("::/0", "::/0", "both")],
        ),
        ('source = "any", destination = "2001:db8::/32"', OWN, [("::/0", "2001:db8::/32", "both")]),
        # me is each own address of a family that fits, without loopback and link-local
        (
            'source = "me", destination = "any"',
            ("10.1.0.1", "127.0.0.1", "169.254.0.1", "2001:db8::1", "fe80::1", "::1", "10.1.0.1"),
            [("2001:db8::1", "::/0", "both"), ("10.1.0.1", "0.0.0.0/0", "both")],
        ),
        (
            'source = "me", destination = "10.2.0.0/24"',
            ("10.1.0.1", "10.1.0.2", "2001:db8::1"),
            [("10.1.0.1", "10.2.0.0/24", "both"), ("10.1.0.2", "10.2.0.0/24", "both")],
        ),
        # ports stay with their side
        (
            'source = "10.2.0.9", source_port = 80, destination = "me", protocol = "tcp"',
            OWN[:1],
            [("10.1.0.1[6]", "10.2.0.9:80[6]", "both")],
        ),
        (
            'source = "10.1.0.5-10.1.0.9", destination = "10.2.0.1"',
            OWN,
            [("10.1.0.5-10.1.0.9", "10.2.0.1", "both")],
        ),
    ],
)
def test_filters_become_entries(filter_: str, own: tuple[str, ...], expected: list[tuple[str, str, str]]) -> None:
    assert rows(compiled(policy_text(("R", "Drop", filter_)), *own)) == expected


def test_any_is_nobodys_side() -> None:
    text = policy_text(("R", "10.9.0.2", 'source = "10.7.0.0/24", destination = "any"'))
    assert rows(compiled(text, *OWN))[0] == ("10.7.0.0/24", "0.0.0.0/0", "both")


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        ("10.1.0.0/24", ("10.1.0.7", "10.2.0.9", "both")),
        ("10.2.0.0/24", ("10.2.0.9", "10.1.0.7", "both")),
        ("10.3.0.0/24", ("10.1.0.7", "10.2.0.9", "both")),  # neither is near: the source is local
    ],
)
def test_one_filter_list_serves_both_ends(network: str, expected: tuple[str, str, str]) -> None:
    policy = load_text(
        policy_text(("R", "10.9.0.2", 'source = "10.1.0.7", destination = "10.2.0.9"'))
    ).configuration.policies[0]
    snapshot = compile_policy(
        policy,
        generation=1,
        local_addresses=[ip_network(network)[1]],
        local_networks=[AddressRange.network(ip_network(network))],
    )
    assert rows(snapshot)[0] == expected


def test_ids_stay_when_addresses_come_and_go() -> None:
    text = policy_text(
        ("A/B", "10.9.0.2", 'source = "me", destination = "any"\nsource = "me", destination = "10.2.0.9"')
    )
    one = {entry.id for entry in compiled(text, "10.1.0.1").spd.entries}
    two = {entry.id for entry in compiled(text, "10.1.0.1", "10.1.0.7").spd.entries}
    assert one == {"A%2FB/A%2FB list/1/10.1.0.1/ipv4", "A%2FB/A%2FB list/2/10.1.0.1"}
    assert two - one == {"A%2FB/A%2FB list/1/10.1.0.7/ipv4", "A%2FB/A%2FB list/2/10.1.0.7"}
    assert one <= two


def test_order_is_most_specific_first() -> None:
    text = policy_text(
        ("Everything", "Drop", 'source = "me", destination = "any"'),
        ("Host", "Pass", 'source = "me", destination = "10.2.0.9"'),
        ("Web", "10.9.0.2", 'source = "me", destination = "any", protocol = "tcp", destination_port = 443'),
        ("TCP", "Drop", 'source = "me", destination = "any", protocol = "tcp"'),
        ("High ports", "Pass", 'source = "me", destination = "any", protocol = "tcp", destination_port = "1-999"'),
        ("Net", "10.9.0.3", 'source = "me", destination = "10.2.0.0/16"'),
        ("Range", "Drop", 'source = "me", destination = "10.2.0.0-10.2.255.254"'),
    )
    order = [entry.rule for entry in compiled(text, "10.1.0.1").spd.entries]
    assert order == ["Host", "Range", "Net", "Web", "High ports", "TCP", "Everything"]


def test_ties_are_block_then_negotiate_then_permit_then_names() -> None:
    """Filters that are told apart in the file and fall together on this host."""
    near, me = 'source = "10.1.0.1", destination = "10.2.0.9"', 'source = "me", destination = "10.2.0.9"'
    for first, second, winner in (
        ("Pass", "Drop", "B"),
        ("10.9.0.2", "Pass", "A"),
        ("Pass", "10.9.0.2", "B"),
        ("10.9.0.2", "Drop", "B"),
        ("10.9.0.2", "10.9.0.3", "A"),
    ):
        snapshot = compiled(policy_text(("A", first, near), ("B", second, me)), "10.1.0.1")
        assert snapshot.spd.entries[0].rule == winner
        loser = "B" if winner == "A" else "A"
        assert len(snapshot.warnings) == 1
        assert (
            f'on this host, rule "{loser}" selects the same as rule "{winner}" (10.1.0.1 <->'
            in snapshot.warnings[0]
        )
        assert f'(rule "{winner}" wins; make one of them narrower)' in snapshot.warnings[0]


def test_rules_that_overlap_are_told_which_one_wins() -> None:
    text = policy_text(
        ("Host", "Pass", 'source = "10.1.0.5", destination = "10.2.0.0/16"'),
        (
            "Mail",
            "Drop",
            'source = "10.1.0.0/24", destination = "10.2.0.0/16", protocol = "tcp", destination_port = 25',
        ),
    )
    (warning,) = compiled(text, *OWN).warnings
    assert (
        'rules "Host" and "Mail" overlap, and for 10.1.0.5[6] <-> 10.2.0.0/16:25[6] the first one wins' in warning
    )
    stricter = changed(
        text,
        ('filter_action = "Pass"', 'filter_action = "x"'),
        ('filter_action = "Drop"', 'filter_action = "Pass"'),
        ('filter_action = "x"', 'filter_action = "Drop"'),
    )
    assert compiled(stricter, *OWN).warnings == ()
    many = "\n".join(
        f'source = "10.1.0.5", destination = "172.16.{i // 256}.{i % 256}"' for i in range(MAX_COMPARED)
    )
    more = changed(
        text, ('{ source = "10.1.0.5", destination = "10.2.0.0/16" }', f"{{ {'}, {'.join(many.splitlines())} }}")
    )
    assert compiled(more, *OWN).warnings == ()


def test_peers_are_shared_by_rules_and_listed_in_order() -> None:
    text = policy_text(
        ("Wide", "10.9.0.2#b", 'source = "10.1.0.0/24", destination = "10.2.0.0/16"'),
        ("Narrow", "10.9.0.2#b", 'source = "10.1.0.0/24", destination = "10.2.3.0/24"'),
        ("Other id", "10.9.0.2#c", 'source = "10.1.0.0/24", destination = "10.3.0.0/16"'),
        ("Anyone", "any#road", 'source = "10.1.0.0/24", destination = "10.4.0.0/16"'),
        ("Plain", "10.9.0.1", 'source = "10.1.0.0/24", destination = "10.5.0.0/16"'),
    )
    snapshot = compiled(text, *OWN)
    assert [(peer.name, peer.entries) for peer in snapshot.pad.peers] == [
        ("10.9.0.1", ("Plain/Plain list/1",)),
        ("10.9.0.2#b", ("Narrow/Narrow list/1", "Wide/Wide list/1")),
        ("10.9.0.2#c", ("Other id/Other id list/1",)),
        ("any#road", ("Anyone/Anyone list/1",)),
    ]
    anyone = snapshot.spd.entry("Anyone/Anyone list/1")
    assert anyone is not None
    assert anyone.protection is not None
    assert anyone.protection.tunnel_remote is None
    assert snapshot.pad.peers[-1].address is None


def test_one_peer_cannot_have_two_keys() -> None:
    text = policy_text(
        ("A", "10.9.0.2", LANS), ("B", "10.9.0.2", 'source = "10.1.0.0/24", destination = "10.3.0.0/16"')
    )
    at = text.rindex('secret = "') + len('secret = "')
    with pytest.raises(CompileError) as caught:
        compiled(text[:at] + "x" + text[at:], *OWN)
    assert 'rules "A" and "B" authenticate the peer "10.9.0.2" differently' in str(caught.value)
    assert caught.value.where.line > 0


def test_a_tunnel_that_ends_here_is_refused() -> None:
    with pytest.raises(CompileError) as caught:
        compiled(changed(SITE_TO_SITE, ('"10.9.0.2"', '"192.0.2.1"')), *OWN)
    assert "the tunnel endpoint 192.0.2.1 is this host itself" in str(caught.value)
    assert "write mirrored = false, or remove the rule and mirror the filters of the one with the" in str(
        caught.value
    )
    assert str(caught.value).startswith("/etc/mg/a.toml:11:1: ")


OUT = f"{LANS}, mirrored = false"
BACK = 'source = "10.2.0.0/24", destination = "10.1.0.0/24", mirrored = false'


def test_two_rules_of_one_tunnel_are_one_entry() -> None:
    """As in Windows: each direction has a rule, whose endpoint is where its packets end."""
    text = policy_text(("Out", "10.9.0.2", OUT), ("In", "192.0.2.1", BACK))
    snapshot = compiled(text, *OWN)
    assert rows(snapshot) == [("10.1.0.0/24", "10.2.0.0/24", "both")]
    assert [peer.name for peer in snapshot.pad.peers] == ["10.9.0.2"]
    assert snapshot.spd.entries[0].id == "Out/Out list/1"
    turned = compiled(policy_text(("In", "192.0.2.1", BACK), ("Out", "10.9.0.2", OUT)), *OWN)
    assert turned.spd.entries == snapshot.spd.entries
    assert warnings_of(text) == []


@pytest.mark.parametrize(
    ("half", "said"),
    [
        (
            ("Out", "10.9.0.2", OUT),
            'rule "Out" is the outbound half of a tunnel: its filter 10.1.0.0/24 -> 10.2.0.0/24 is not '
            "mirrored, and "
            "there is no rule for 10.2.0.0/24 -> 10.1.0.0/24 whose tunnel_endpoint is this host's own address",
        ),
        (
            ("In", "192.0.2.1", BACK),
            'rule "In" is the inbound half of a tunnel: its filter 10.2.0.0/24 -> 10.1.0.0/24 is not '
            "mirrored, and "
            "there is no rule for 10.1.0.0/24 -> 10.2.0.0/24 whose tunnel_endpoint is the peer's address (add",
        ),
    ],
)
def test_half_a_tunnel_is_refused(half: tuple[str, str, str], said: str) -> None:
    with pytest.raises(CompileError) as caught:
        compiled(policy_text(half), *OWN)
    assert said in str(caught.value)
    assert len(caught.value.errors) == 1


def test_halves_of_one_tunnel_must_agree() -> None:
    text = policy_text(("Out", "10.9.0.2", OUT), ("In", "192.0.2.1", BACK))
    at = text.rindex(f'secret = "{KEY}"')
    other = text[:at] + text[at:].replace(KEY, KEY[::-1])
    with pytest.raises(CompileError, match='rules "Out" and "In" are the two halves of one tunnel, and treat its'):
        compiled(other, *OWN)


def test_an_entry_knows_its_kind_of_interface() -> None:
    text = changed(SITE_TO_SITE, ('connection_type = "all"', 'connection_type = "remote-access"'))
    assert compiled(text, *OWN).spd.entries[0].interfaces is ConnectionType.REMOTE_ACCESS


def test_two_rules_of_one_name_are_refused() -> None:
    policy = load_text(SITE_TO_SITE).configuration.policies[0]
    twice: tuple[Rule, ...] = policy.rules * 2
    with pytest.raises(CompileError, match='two rules are called "LAN to LAN"'):
        compile_policy(replace(policy, rules=twice), generation=1, local_addresses=[])


def test_an_inactive_rule_leaves_nothing() -> None:
    text = changed(SITE_TO_SITE, ('connection_type = "all"', "active = false"))
    snapshot = compiled(text, *OWN)
    assert (snapshot.spd.entries, snapshot.pad.peers) == ((), ())


def test_me_without_an_address_warns() -> None:
    snapshot = compiled(policy_text(("R", "Drop", 'source = "me", destination = "any"')), "127.0.0.1")
    assert snapshot.spd.entries == ()
    assert 'rule "R": this host has no address for "me" now' in snapshot.warnings[0]
    other = compiled(policy_text(("R", "Drop", 'source = "me", destination = "2001:db8::/32"')), "10.1.0.1")
    assert "joins no two addresses of one family (it matches nothing now)" in other.warnings[0]


TO_NAME = 'source = "me", destination = "db.example"'


def test_names_become_their_addresses() -> None:
    names = {"db.example": ["10.2.0.9", "2001:db8::9", "10.2.0.9"]}
    snapshot = compiled(policy_text(("R", "10.9.0.2", TO_NAME)), "10.1.0.1", "2001:db8::1", names=names)
    assert rows(snapshot) == [("2001:db8::1", "2001:db8::9", "both"), ("10.1.0.1", "10.2.0.9", "both")]
    assert dict(snapshot.names) == {"db.example": (ip_address("10.2.0.9"), ip_address("2001:db8::9"))}


def test_a_name_that_vanishes_keeps_its_addresses() -> None:
    text = policy_text(("R", "10.9.0.2", TO_NAME))
    first = compiled(text, "10.1.0.1", names={"db.example": ["10.2.0.9"]})
    second = compiled(text, "10.1.0.1", names={}, previous=first)
    third = compiled(text, "10.1.0.1", names={}, previous=second)
    assert rows(first) == rows(second) == rows(third)
    assert 'the name "db.example" has no address now; the last ones known are kept' in third.warnings[0]


def test_a_name_that_never_had_an_address_is_never_left_in_clear() -> None:
    for action in ("Drop", "10.9.0.2"):
        with pytest.raises(CompileError, match=r'the name "db.example" has no address'):
            compiled(policy_text(("R", action, TO_NAME)), "10.1.0.1", names={})
    permitted = compiled(policy_text(("R", "Pass", TO_NAME)), "10.1.0.1", names={})
    assert permitted.spd.entries == ()
    assert "nothing is permitted by it now" in permitted.warnings[0]


def test_a_tunnel_without_an_address_is_closed() -> None:
    text = changed(SITE_TO_SITE, ('"10.9.0.2"', '"gw-b.example"'))
    closed = compiled(text, *OWN, names={})
    (entry,) = closed.spd.entries
    assert (entry.disposition, entry.protection, closed.pad.peers) == (Disposition.DISCARD, None, ())
    assert entry.note == "its tunnel endpoint has no address now"
    assert 'the tunnel endpoint "gw-b.example" has no address now, so its traffic is dropped' in closed.warnings[0]
    opened = compiled(text, *OWN, names={"gw-b.example": ["10.9.0.2", "10.9.0.3"]}, previous=closed)
    assert opened.pad.peers[0].address == ip_address("10.9.0.2")
    assert opened.spd.entries[0].id == entry.id
    # The address in use stays in use while the name still has it.
    turned = compiled(text, *OWN, names={"gw-b.example": ["10.9.0.3", "10.9.0.2"]}, previous=opened)
    assert turned.pad.peers[0].address == ip_address("10.9.0.2")
    moved = compiled(text, *OWN, names={"gw-b.example": ["10.9.0.3"]}, previous=turned)
    assert moved.pad.peers[0].address == ip_address("10.9.0.3")


SERVERS = {
    "dns": [
        ip_address("10.1.0.53"),
        ip_address("2001:db8::53"),
        ip_address("127.0.0.53"),
        ip_address("10.1.0.53"),
    ],
    "gateway": [ip_address("10.1.0.1")],
}


def compiled_with_servers(text: str, servers: Mapping[str, Sequence[IpAddress]]) -> Snapshot:
    return compile_policy(
        load_text(text).configuration.policies[0],
        generation=1,
        local_addresses=[ip_address("10.1.0.1"), ip_address("2001:db8::1")],
        servers=servers,
    )


@pytest.mark.parametrize("filter_", ['source = "me", destination = "dns"', 'source = "dns", destination = "me"'])
def test_servers_that_this_host_was_told_of(filter_: str) -> None:
    """Each address once; a stub on loopback and this host itself are no servers of this host."""
    text = policy_text(("R", "Drop", f'{filter_}, protocol = "udp"'))
    assert rows(compiled_with_servers(text, SERVERS)) == [
        ("2001:db8::1[17]", "2001:db8::53[17]", "both"),
        ("10.1.0.1[17]", "10.1.0.53[17]", "both"),
    ]


@pytest.mark.parametrize(
    ("word", "name"),
    [("dns", "DNS server"), ("dhcp", "DHCP server"), ("wins", "WINS server"), ("gateway", "default gateway")],
)
def test_servers_that_nobody_told_of(word: str, name: str) -> None:
    text = policy_text(("R", "Drop", f'source = "me", destination = "{word}"'))
    snapshot = compiled_with_servers(text, {"gateway": SERVERS["gateway"]})
    assert snapshot.spd.entries == ()
    assert f'rule "R": this host knows no {name} now (its filters for it match nothing)' in snapshot.warnings[0]


def test_settings_of_the_action_reach_the_entry() -> None:
    text = changed(
        SITE_TO_SITE, ("inbound_clear = false", "inbound_clear = true\nreplay_window = 128"), ('"auto"', '"udp"')
    )
    protection = compiled(text, *OWN).spd.entries[0].protection
    action = load_text(text).configuration.policies[0].rules[0].filter_action
    assert protection is not None
    assert (protection.methods, protection.lifetime, protection.pfs) == (
        action.methods,
        action.lifetime,
        action.pfs,
    )
    assert (protection.inbound_clear, protection.fallback_clear) == (True, False)
    assert (protection.encapsulation, protection.replay_window) == (action.encapsulation, 128)


def test_ten_thousand_filters() -> None:
    rows_ = "\n".join(
        f'source = "10.1.0.0/24", destination = "10.{64 + i // 256}.{i % 256}.0/24"' for i in range(10_000)
    )
    snapshot = compiled(policy_text(("R", "10.9.0.2", rows_)), *OWN)
    assert len(snapshot.spd.entries) == 10_000
    assert len(snapshot.pad.peers[0].entries) == 10_000


START = int(ip_address("10.0.0.0"))
SPANS = st.tuples(st.integers(0, 9), st.integers(0, 9)).map(
    lambda p: AddressRange(4, START + min(p), START + max(p))
)
PORTS = st.just(ANY_PORT) | st.tuples(st.integers(0, 3), st.integers(0, 3)).map(
    lambda p: PortRange(min(p), max(p))
)


def entry_of(
    protocol: int, local: tuple[AddressRange, PortRange], remote: tuple[AddressRange, PortRange]
) -> SpdEntry:
    pair = SelectorPair(TrafficSelector(protocol, *local), TrafficSelector(protocol, *remote))
    return SpdEntry(
        id="x",
        rule="x",
        filter_list="x",
        filter_action="x",
        selectors=pair,
        outbound=True,
        inbound=True,
        disposition=Disposition.BYPASS,
    )


def span(size: int) -> AddressRange:
    return AddressRange(4, START, START + size - 1)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        # as many bits on both sides together: more on the local side
        ((0, (8, ANY_PORT), (16, ANY_PORT)), (0, (16, ANY_PORT), (8, ANY_PORT))),
        # ranges that fix as many bits: the smaller one, local before remote
        ((0, (5, ANY_PORT), (8, ANY_PORT)), (0, (8, ANY_PORT), (5, ANY_PORT))),
        ((0, (8, ANY_PORT), (5, ANY_PORT)), (0, (8, ANY_PORT), (8, ANY_PORT))),
        # addresses before protocol, protocol before ports
        ((0, (8, ANY_PORT), (8, ANY_PORT)), (6, (16, PortRange(1, 1)), (8, PortRange(1, 1)))),
        ((6, (8, ANY_PORT), (8, ANY_PORT)), (0, (8, ANY_PORT), (8, ANY_PORT))),
        # two sides with ports, then the remote one, then the smaller range
        ((6, (8, PortRange(1, 9)), (8, PortRange(1, 9))), (6, (8, ANY_PORT), (8, PortRange(1, 1)))),
        ((6, (8, ANY_PORT), (8, PortRange(1, 9))), (6, (8, PortRange(1, 1)), (8, ANY_PORT))),
        ((6, (8, PortRange(1, 2)), (8, PortRange(1, 9))), (6, (8, PortRange(1, 3)), (8, PortRange(1, 2)))),
        ((6, (8, PortRange(1, 3)), (8, PortRange(1, 2))), (6, (8, PortRange(1, 3)), (8, PortRange(1, 3)))),
    ],
)
def test_each_step_of_the_order(
    first: tuple[int, tuple[int, PortRange], tuple[int, PortRange]],
    second: tuple[int, tuple[int, PortRange], tuple[int, PortRange]],
) -> None:
    one, other = (
        entry_of(protocol, (span(local[0]), local[1]), (span(remote[0]), remote[1]))
        for protocol, local, remote in (first, second)
    )
    assert sort_key(one) < sort_key(other)


SIDES = st.tuples(SPANS, PORTS)
ENTRIES = st.builds(entry_of, st.sampled_from([0, 6]), SIDES, SIDES)


@settings(deadline=None, max_examples=300)
@given(ENTRIES, ENTRIES)
def test_an_entry_within_another_never_comes_after_it(one: SpdEntry, other: SpdEntry) -> None:
    if one.selectors != other.selectors and one.selectors.covers(other.selectors):
        assert sort_key(other) < sort_key(one)
