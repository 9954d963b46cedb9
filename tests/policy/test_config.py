# ruff: noqa: E501  (a table has one row a line)
"""A config file means exactly what it says, and every mistake in it is one line that says what to do."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from policy.clock import SECOND
from policy.config import load
from policy.defaults import ALL_ICMP_TRAFFIC, BUILT_IN_POLICIES, DEFAULT_IKE_PROPOSALS, DEFAULT_METHODS, PERMIT
from policy.lifetimes import Lifetime
from policy.model import (
    ActionKind,
    CertificateAuth,
    ConnectionType,
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
    Where,
)
from policy.problems import ConfigErrors
from policy.proposals import Group
from policy.secret import Secret
from policy.selectors import AddressRange, PortRange
from policy.suites import parse_ike_proposal, parse_method
from tests.support.policies import KEY, SITE_TO_SITE, changed, errors_of, load_text, policy_text, warnings_of


def net(text: str) -> AddressRange:
    return AddressRange.network(ip_network(text))


def test_the_whole_example() -> None:
    loaded = load_text(SITE_TO_SITE)
    lans = FilterList(
        name="LAN A and LAN B", filters=(Filter(source=net("10.1.0.0/24"), destination=net("10.2.0.0/24")),)
    )
    action = FilterAction(
        name="Require ESP",
        kind=ActionKind.NEGOTIATE,
        methods=(parse_method("esp:aes256gcm16"), parse_method("esp:aes128-sha256")),
        lifetime=Lifetime(3600 * SECOND, 100 * 2**30),
        pfs=Group.X25519,
    )
    rule = Rule(
        name="LAN to LAN",
        filter_list=lans,
        filter_action=action,
        authentication=(PresharedKey(secret=Secret(KEY.encode()), remote_id="gw-b.example"),),
        tunnel_endpoint=ip_address("10.9.0.2"),
    )
    assert loaded.configuration.policies == (
        Policy(
            name="Site A to site B",
            description="LAN A to LAN B through the two gateways",
            ike=KeyExchange(proposals=(parse_ike_proposal("aes256gcm16-prfsha384-x25519"),)),
            local_id="gw-a.example",
            rules=(rule,),
        ),
    )
    assert loaded.configuration.agent.assigned == "Site A to site B"
    assert loaded.configuration.agent.control == Path("/run/mirrorgate/control.sock")
    assert loaded.configuration.file == Path("/etc/mg/a.toml")
    assert loaded.warnings == ()
    found = loaded.configuration.policies[0].rules[0]
    assert found.where == Where("/etc/mg/a.toml", 11, 1)
    assert found.filter_list.filters[0].where == Where("/etc/mg/a.toml", 21, 1)


def test_every_other_key() -> None:
    text = """
agent = { control = "mg.sock", tun = "mg7", log_level = "debug", log_format = "json", metrics = "[::1]:9476", offload = "off" }
[[policy]]
name = "P"
ike = { lifetime = "4h", liveness = "off", fragment_size = 1400 }
[[policy.rule]]
name = "R"
filter_list = "L"
filter_action = "A"
tunnel_endpoint = "any"
active = false
authentication = [{ method = "psk", secret = "KEY", remote_id = "b" }]
[[policy.rule]]
name = "S"
filter_list = "All ICMP Traffic"
filter_action = "Permit"
[[filter_list]]
name = "L"
filter = [
  { source = "me", destination = "any", protocol = "tcp", source_port = "1024-65535", destination_port = 80 },
  { source = "a.example", destination = "10.0.0.1-10.0.0.9", mirrored = false, description = "d" },
]
[[filter_action]]
name = "A"
action = "negotiate"
lifetime = { bytes = "1MB" }
encapsulation = "udp"
replay_window = 64
inbound_clear = true
""".replace("KEY", KEY)
    loaded = load_text(text)
    agent, policy = loaded.configuration.agent, loaded.configuration.policies[0]
    assert (agent.assigned, agent.control, agent.tun) == (None, Path("/etc/mg/mg.sock"), "mg7")
    assert agent.log_format == "json"
    assert (agent.log_level, agent.metrics, agent.offload) == ("debug", "[::1]:9476", "off")
    assert policy.ike == KeyExchange(
        proposals=DEFAULT_IKE_PROPOSALS, lifetime=Lifetime(4 * 3600 * SECOND), liveness=None, fragment_size=1400
    )
    rule, other = policy.rules
    assert (rule.active, rule.tunnel_endpoint, rule.connection_type) == (False, Special.ANY, ConnectionType.ALL)
    assert (other.filter_list, other.filter_action, other.tunnel_endpoint) == (ALL_ICMP_TRAFFIC, PERMIT, None)
    assert rule.filter_list.filters == (
        Filter(
            source=Special.ME,
            destination=Special.ANY,
            protocol=6,
            source_port=PortRange(1024, 65535),
            destination_port=PortRange(80, 80),
        ),
        Filter(
            source=DnsName("a.example"),
            destination=AddressRange.of(ip_address("10.0.0.1"), ip_address("10.0.0.9")),
            mirrored=False,
            description="d",
        ),
    )
    action = rule.filter_action
    assert (action.methods, action.lifetime) == (DEFAULT_METHODS, Lifetime(3600 * SECOND, 10**6))
    assert (action.encapsulation, action.replay_window) == (Encapsulation.UDP, 64)
    assert (action.inbound_clear, action.fallback_clear) == (True, False)


def test_an_empty_file_is_an_agent_without_a_policy() -> None:
    configuration = load_text("").configuration
    assert (configuration.agent.assigned, configuration.policies) == (None, ())


#: (what is changed in the good file, the one line that the operator must read)
MISTAKES: list[tuple[str, str, str]] = [
    # misspelt or misplaced keys
    ("filter_list =", "filter_lst =", '13:1: unknown key "filter_lst" (did you mean "filter_list"?)'),
    ("assigned =", "asigned =", '2:1: unknown key "asigned" (did you mean "assigned"?)'),
    ("[[filter_action]]", "[[filter_actions]]", '25:1: unknown key "filter_actions" (did you mean "filter_action"?)'),
    ("default_response = false", "pfs = 1", '8:1: unknown key "pfs" (it belongs in [[filter_action]])'),
    ("bytes =", "byte =", '29:27: unknown key "byte" (did you mean "bytes"?)'),
    ("version = 2,", "verson = 2,", '7:9: unknown key "verson" (did you mean "version"?)'),
    ("remote_id =", "remoteid =", 'unknown key "remoteid" (did you mean "remote_id"?)'),
    ("source =", '"sou rce" =', '22:1: unknown key "sou rce" (did you mean "source"?)'),
    ("pfs =", "xyzzy =", '30:1: unknown key "xyzzy" ([[filter_action]] has: name, description, action, preset, me'),
    # missing keys
    ('name = "Require ESP"\n', "", '25:1: [[filter_action]] has no "name" (add name = ...)'),
    ('destination = "10.2.0.0/24"\n', "", '21:1: [[filter_list.filter]] has no "destination"'),
    ('filter_action = "Require ESP"\n', "", '11:1: [[policy.rule]] has no "filter_action"'),
    # wrong types
    ("default_response = false", 'default_response = "no"', '8:20: "default_response" must be true or false, not a text'),
    ('name = "LAN to LAN"', "name = 7", '12:8: "name" must be a text, not a number (put it in quotes)'),
    ("inbound_clear = false", "inbound_clear = 0", '31:17: "inbound_clear" must be true or false, not a number'),
    ('encapsulation = "auto"', "replay_window = 12.5", '33:17: "replay_window" must be a whole number, not a number with'),
    ('["esp:aes256gcm16", "esp:aes128-sha256"]', '"esp:aes256gcm16"', '28:11: "methods" must be an array, not a text'),
    ('{ time = "1h", bytes = "100GiB" }', '"1h"', '29:12: "lifetime" must be a table, not a text'),
    ("[[filter_list.filter]]", "[filter_list.filter]", "21:1: [[filter_list.filter]] is an array of tables"),
    ('local_id = "gw-a.example"', "local_id = 2001-01-01", '9:12: "local_id" must be a text, not a date'),
    # values
    ("aes256gcm16-prfsha384-x25519", "aes256gcm16-prfsha384-x25520", 'unknown algorithm "x25520" (did you mean "x25519"?)'),
    ("esp:aes128-sha256", "esp:aes128-sha265", '28:31: methods: in "esp:aes128-sha265": unknown algorithm "sha265" (did'),
    ("esp:aes128-sha256", "esp:3des-sha1", '"3des" is not available in this version (write "aes256gcm16")'),
    ("esp:aes128-sha256", "esp:aes128", "encryption without integrity is refused"),
    ('pfs = "x25519"', 'pfs = "x25518"', '30:7: pfs: unknown key exchange group "x25518" (did you mean "x25519"?)'),
    ("10.1.0.0/24", "10.1.0.5/24", '22:10: source: "10.1.0.5/24" has host bits set (did you mean "10.1.0.0/24"?)'),
    ("10.1.0.0/24", "10.1.0.0/33", '"33" is not a prefix length (an IPv4 prefix is 0 to 32)'),
    ("10.1.0.0/24", "2001:db8::/32", "23:15: source is IPv6 and destination is IPv4 (write one filter for each family)"),
    ('"10.9.0.2"', '"10.9.0"', '15:19: tunnel_endpoint: "10.9.0" is not an address'),
    ('"8h"', '"8x"', '7:79: lifetime: unknown unit of time "x" (write "90m", "8h", "3600s" or "1d")'),
    ('"8h"', '"8s"', "a lifetime below a minute would do nothing but rekey"),
    ('"1h"', '"1s"', "29:21: a lifetime below a minute would do nothing but rekey"),
    ('"100GiB"', '"100GIBB"', 'bytes: unknown unit of size "GIBB" (did you mean "GiB"?)'),
    ('action = "negotiate"', 'action = "negotate"', '"action" cannot be "negotate" (did you mean "negotiate"? (one of: permit'),
    ('encapsulation = "auto"', 'encapsulation = "tcp"', '"encapsulation" cannot be "tcp" (one of: auto, udp, none)'),
    ("version = 2", "version = 3", '7:19: "version" cannot be 3 (one of: 1, 2)'),
    ('encapsulation = "auto"', "traffic_padding = 2000", '33:19: traffic_padding: must be 0 to 1400 octets, or "mtu"'),
    ('encapsulation = "auto"', 'traffic_padding = "full"', '33:19: traffic_padding: must be 0 to 1400 octets, or'),
    ('encapsulation = "auto"', "dummy_packets = 101", '"dummy_packets" is too large (the greatest value is 100)'),
    ('encapsulation = "auto"', "replay_window = 32", '33:17: "replay_window" is too small (the least value is 64)'),
    ('encapsulation = "auto"', "replay_window = 9000", '"replay_window" is too large (the greatest value is 8192)'),
    ('["esp:aes256gcm16", "esp:aes128-sha256"]', "[]", '28:11: "methods" is empty (name at least one, or leave'),
    ('name = "LAN to LAN"', 'name = "<Dynamic>"', '12:8: name: "<Dynamic>" is the name of the default response rule ('),
    ('name = "LAN to LAN"', 'name = ""', "12:8: name: a name cannot be empty"),
    ('name = "LAN to LAN"', 'name = "a\\nb"', '12:8: name: "a\\nb" cannot be a name'),
    ('local_id = "gw-a.example"', 'local_id = "gw-ä.example"', 'local_id: "gw-ä.example" is not ASCII (write the "xn--" form'),
    ('local_id = "gw-a.example"', 'local_id = "keyid:"', 'local_id: "keyid:" has nothing after the colon'),
    # names that join the parts
    ('filter_list = "LAN A and LAN B"', 'filter_list = "LAN A and LAN C"', '13:15: there is no filter list "LAN A and LAN C" (did'),
    ('filter_action = "Require ESP"', 'filter_action = "Reqire ESP"', '14:17: there is no filter action "Reqire ESP" (did you mean'),
    ('assigned = "Site A to site B"', 'assigned = "Site B"', '2:12: there is no policy "Site B" to assign ('),
    ('filter_action = "Require ESP"', 'filter_action = "x"', '(filter action is one of: "Require ESP", "Permit", "Request Security (Optional)", '),
    # authentication
    ('method = "psk"', 'method = "pks"', 'unknown authentication method "pks" (did you mean "psk"?)'),
    ('method = "psk", ', "", "17:19: the authentication method has no name (add method = \"psk\")"),
    ('method = "psk"', "method = 1", '"method" must be a text, not a number'),
    (f'secret = "{KEY}", ', "", "17:19: the preshared key is missing (keep exactly one of secret_file, secret_env and"),
    (f'secret = "{KEY}"', 'secret = ""', "the preshared key is empty (write the key that both sides know)"),
    ("secret =", 'secret_env = "X", secret =', '"secret" and "secret_env" are both there (keep exactly one of'),
    (f'secret = "{KEY}"', 'secret_env = "NO_SUCH"', 'the environment variable "NO_SUCH" is not set'),
    (f'secret = "{KEY}"', 'secret_file = "site.psk"', 'there is no secret file "/etc/mg/site.psk" (create it with mode 0600'),
    ("authentication =", "active = true #", "11:1: the rule negotiates and has no authentication (add authentication = "),
    ("authentication = [", "authentication = [] # [", '17:18: "authentication" is empty (write authentication = ['),
    ("authentication = [{", "authentication = 7 # [{", '17:18: "authentication" must be tables, not a number'),
    ("authentication = [{", "authentication = [7] # [{", "17:19: authentication must be a table, not a number"),
    ("authentication = [{", "authentication = {} # [{", '17:18: "authentication" must be an array, not a table (write'),
    ('method = "psk"', 'method = "psk", certificate = "x"', 'unknown key "certificate" (it belongs in authentication with'),
    (f'method = "psk", secret = "{KEY}"', 'method = "certificate", key = "k"', 'with method = "certificate" has no "ca" (add'),
    # what this version does not do, in the policy that is assigned
    ("version = 2", "version = 1", "4:1: policy \"Site A to site B\": IKE version 1 is not available in this version"),
    ('"psk", ', '"kerberos" }, { method = "psk", ', "kerberos authentication is not available in this version (use"),
    ("default_response = false", "default_response = true", "8:20: the default response rule needs to know how hosts"),
    ("fallback_clear = false", "fallback_clear = true", "clear traffic is for hosts, not for what is behind a gateway"),
    (
        f'method = "psk", secret = "{KEY}"',
        'method = "certificate", certificate = "c.pem", key = "k.pem", ca = "ca.pem"',
        'rule "LAN to LAN": certificate authentication is not available in this version',
    ),
    *(
        ('assigned = "Site A to site B"', f'assigned = "{policy.name}"', f'2:12: the built-in policy "{policy.name}" needs to know')
        for policy in BUILT_IN_POLICIES
    ),
    # filters whose fields disagree
    ('source = "10.1', 'destination_port = 80\nsource = "10.1', "22:1: destination_port: a port needs a protocol that has p"),
    ('source = "10.1', 'protocol = "gre"\nsource_port = 80\nsource = "10.1', "23:1: source_port: gre has no ports (add prot"),
    ('source = "10.1', 'protocol = "icmpv6"\nsource = "10.1', '22:12: protocol icmpv6 does not run between IPv4 addresses ('),
    ('source = "10.1', 'protocol = "tpc"\nsource = "10.1', '22:12: protocol: unknown protocol "tpc" (did you mean "tcp"?)'),
    ('source = "10.1', 'icmp_type = 8\nsource = "10.1', '22:1: icmp_type: any is no protocol with ICMP types (add protocol'),
    ('source = "10.1', 'protocol = "icmp"\nicmp_code = 8\nsource = "10.1', "23:1: icmp_code: a code means something only beside"),
    ('source = "10.1', 'protocol = "icmp"\nicmp_type = "eco"\nsource = "10.1', '23:13: icmp_type: unknown ICMP type "eco" ('),
    ('source = "10.1', 'protocol = "icmp"\nicmp_type = 1.5\nsource = "10.1', "23:13: icmp_type: an ICMP type must be a number or a"),
    (
        'source = "10.1',
        'protocol = "icmp"\nicmp_type = 3\nicmp_code = 999\nsource = "10.1',
        "24:13: icmp_code: ICMP code 999 does not exist (they are 0 to 255)",
    ),
    ('source = "10.1', 'protocol = "icmp"\nsource_port = 8\nsource = "10.1', "23:1: source_port: icmp has no ports (add prot"),
    ('source = "10.1.0.0/24"', 'source = "dns"', '22:10: source = "dns" is a server of this host, so the other side must'),
    ('destination = "10.2.0.0/24"', 'destination = "dhcp"', '23:15: destination = "dhcp" is a server of this host, so'),
    ('source = "10.1.0.0/24"', 'source = "gatewy"', '22:10: source: "gatewy" is not an address (did you mean "gateway"?'),
    # the agent
    ("assigned =", 'log_level = "verbose"\nassigned =', '"log_level" cannot be "verbose" (one of: debug, info, warning'),
    ("assigned =", 'metrics = "9476"\nassigned =', 'metrics: "9476" is not an address with a port (write "127.0.0.1:9476"'),
    ("assigned =", 'metrics = "127.0.0.1:99999"\nassigned =', 'metrics: "99999" is not a port (ports are 1 to 65535)'),
    ("assigned =", 'tun = "a/b"\nassigned =', 'tun: "a/b" cannot be an interface name'),
    ("assigned =", 'offload = "on"\nassigned =', '"offload" cannot be "on" (one of: auto, off)'),
    ("assigned =", 'control = ""\nassigned =', 'control: "" is not a path (write the path of a file)'),
    # TOML itself
    ('version = 2', "version = ", "not TOML: invalid value"),
    ("[[policy]]", "[[policy]", "4:9: not TOML: "),
    ("[agent]", "[agent]\n[agent]", "2:7: not TOML: cannot declare"),
    ('encapsulation = "auto"', 'encapsulation = "auto', "not TOML: "),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "line"), MISTAKES)
def test_one_mistake_is_one_line(old: str, new: str, line: str) -> None:
    errors = errors_of(changed(SITE_TO_SITE, (old, new)))
    hits = [error for error in errors if line in error]
    assert len(hits) == 1, errors
    assert hits[0].startswith("a.toml:")
    assert all(error.isprintable() and error.count("(") == error.count(")") for error in errors)


def test_mistakes_do_not_bring_others_along() -> None:
    """A mistake is told once, where it is; what depends on it is not reported again."""
    followers = {old: errors_of(changed(SITE_TO_SITE, (old, new))) for old, new in (
        ("10.1.0.0/24", "10.1.0.5/24"),
        ("esp:aes128-sha256", "esp:nothing"),
        ('"1h"', '"x"'),
        ("version = 2", "version = 9"),
        ("pfs =", "pvs ="),
    )}  # fmt: skip
    assert {old: len(errors) for old, errors in followers.items()} == dict.fromkeys(followers, 1)


def test_all_mistakes_of_a_file_at_once_in_the_order_of_lines() -> None:
    text = changed(
        SITE_TO_SITE,
        ("assigned =", "asigned ="),
        ("x25519", "x25520"),
        ('filter_list = "LAN A', 'filter_list = "LAN X'),
        ("10.1.0.0/24", "10.1.0.5/24"),
        ("inbound_clear = false", 'inbound_clear = "no"'),
    )
    lines = [int(error.split(":")[1]) for error in errors_of(text)]
    assert lines == [2, 7, 13, 22, 31]


@pytest.mark.parametrize(
    ("table", "line"),
    [
        ('[[filter_list]]\nname = "LAN A and LAN B"\nfilter = [{ source = "me", destination = "any" }]',
         'duplicate filter list "LAN A and LAN B" (the first is at line 20; rename one of them)'),
        ('[[filter_action]]\nname = "Require ESP"\naction = "block"',
         'duplicate filter action "Require ESP" (the first is at line 26; rename one of them)'),
        ('[[policy]]\nname = "Site A to site B"',
         'duplicate policy "Site A to site B" (the first is at line 5; rename one of them)'),
    ],
)  # fmt: skip
def test_duplicate_names(table: str, line: str) -> None:
    errors = errors_of(f"{SITE_TO_SITE}\n{table}\n")
    assert len(errors) == 1
    assert line in errors[0]


def test_duplicate_rules() -> None:
    text = policy_text(
        ("One", "Drop", 'source = "me", destination = "10.0.0.1"'),
        ("Two", "Drop", 'source = "me", destination = "10.0.0.2"'),
    ).replace('name = "Two"', 'name = "One"')
    assert 'duplicate rule "One" (the first is at line 8; rename one of them)' in "\n".join(errors_of(text))


def test_rules_that_shadow_each_other() -> None:
    one = 'source = "10.1.0.0/24", destination = "10.2.0.0/24"'
    mirror = 'source = "10.2.0.0/24", destination = "10.1.0.0/24"'
    for second in (one, mirror):
        errors = errors_of(policy_text(("One", "Drop", one), ("Two", "10.9.0.2", second)))
        assert len(errors) == 1
        assert 'rules "One" and "Two" shadow each other: both have the filter 10.' in errors[0]
        assert "(remove it from one of their filter lists, or make one narrower)" in errors[0]


def test_two_tunnels_for_the_same_packets_shadow_each_other() -> None:
    one = 'source = "10.1.0.0/24", destination = "10.2.0.0/24"'
    errors = errors_of(policy_text(("One", "10.9.0.2", one), ("Two", "10.9.0.3", one)))
    assert len(errors) == 1
    assert 'rules "One" and "Two" shadow each other' in errors[0]


def test_an_inactive_rule_shadows_nothing() -> None:
    one = 'source = "10.1.0.0/24", destination = "10.2.0.0/24"'
    text = policy_text(("One", "Drop", one), ("Two", "Pass", one))
    assert errors_of(text) != []
    assert errors_of(text.replace('name = "Two"\n', 'name = "Two"\nactive = false\n', 1)) == []


def test_a_policy_that_is_not_assigned_may_need_more_and_says_so() -> None:
    text = changed(
        SITE_TO_SITE,
        ('assigned = "Site A to site B"', ""),
        ('tunnel_endpoint = "10.9.0.2"\n', ""),
        (f'method = "psk", secret = "{KEY}"', 'method = "certificate", certificate = "c", key = "k", ca = "/a"'),
    )
    loaded = load_text(text)
    method = loaded.configuration.policies[0].rules[0].authentication[0]
    assert method == CertificateAuth(
        certificate=Path("/etc/mg/c"), key=Path("/etc/mg/k"), ca=Path("/a"), remote_id="gw-b.example"
    )
    assert [warning.message for warning in loaded.warnings] == [
        'rule "LAN to LAN": certificate authentication is not available in this version',
    ]


def test_an_inactive_rule_may_need_what_there_is_not() -> None:
    text = changed(SITE_TO_SITE, ('tunnel_endpoint = "10.9.0.2"\n', "active = false\n"))
    assert errors_of(text) == []


def test_settings_of_negotiation_have_no_place_beside_block() -> None:
    errors = errors_of(changed(SITE_TO_SITE, ('action = "negotiate"', 'action = "block"')))
    assert [error.split(": ", 1)[1] for error in errors] == [
        f'"{key}" means something only to negotiate (remove it, or write action = "negotiate" (this one is "block"))'
        for key in ("methods", "lifetime", "pfs", "encapsulation")
    ]


@pytest.mark.parametrize(
    ("files", "error"),
    [
        ({"/etc/mg/site.psk": (0o600, KEY.encode())}, None),
        ({"/etc/mg/site.psk": (0o400, KEY.encode() + b"\n")}, None),
        ({"/etc/mg/site.psk": (0o600, KEY.encode() + b"\r\n")}, None),
        (
            {"/etc/mg/site.psk": (0o644, KEY.encode())},
            "can be used by others (mode 0644) (chmod 600 /etc/mg/site.psk)",
        ),
        (
            {"/etc/mg/site.psk": (0o640, KEY.encode())},
            "can be used by others (mode 0640) (chmod 600 /etc/mg/site.psk)",
        ),
        (
            {"/etc/mg/site.psk": (0o601, KEY.encode())},
            "can be used by others (mode 0601) (chmod 600 /etc/mg/site.psk)",
        ),
        ({"/etc/mg/site.psk": (0o040700, b"")}, 'the secret file "/etc/mg/site.psk" is not a regular file'),
        ({"/etc/mg/site.psk": (0o010600, b"")}, 'the secret file "/etc/mg/site.psk" is not a regular file'),
        ({"/etc/mg/site.psk": (0o600, b"")}, "the preshared key is empty"),
        ({"/etc/mg/site.psk": (0o600, b"\n")}, "the preshared key is empty"),
        ({"/etc/mg/site.psk": (0o600, b"x" * 70000)}, "is larger than 65536 octets (is it the right file?)"),
        ({}, 'there is no secret file "/etc/mg/site.psk"'),
    ],
)
def test_secret_files(files: dict[str, tuple[int, bytes]], error: str | None) -> None:
    text = changed(SITE_TO_SITE, (f'secret = "{KEY}"', 'secret_file = "site.psk"'))
    if error is not None:
        errors = errors_of(text, files)
        assert len(errors) == 1
        assert errors[0].startswith("a.toml:17:51: ")
        assert error in errors[0]
        return
    method = load_text(text, files).configuration.policies[0].rules[0].authentication[0]
    assert isinstance(method, PresharedKey)
    assert method.secret.reveal() == KEY.encode()


@pytest.mark.parametrize(
    ("trouble", "error"),
    [
        (PermissionError(13, "Permission denied"), "cannot be read: permission denied (run as its owner)"),
        (
            OSError(40, "Too many levels of symbolic links"),
            "cannot be read: too many levels of symbolic links (check",
        ),
        (ValueError("embedded null byte"), "cannot be read: not a path (check the path)"),
    ],
)
def test_secret_files_that_cannot_be_read(trouble: Exception, error: str) -> None:
    def fail(_path: Path) -> int:
        raise trouble

    text = changed(SITE_TO_SITE, (f'secret = "{KEY}"', 'secret_file = "site.psk"'))
    with pytest.raises(ConfigErrors) as caught:
        load(Path("/etc/mg/a.toml"), read=lambda _path: text.encode(), mode_of=fail)
    assert len(caught.value.errors) == 1
    assert error in str(caught.value)


def test_tables_of_the_wrong_kind() -> None:
    assert errors_of("policy = 7") == ['a.toml:1:10: "policy" must be tables, not a number']
    assert errors_of("policy = [7]") == ["a.toml:1:11: [[policy]] must be a table, not a number"]
    assert errors_of("agent = 7") == ['a.toml:1:9: "agent" must be a table, not a number']
    assert errors_of("[agent]\nassigned = 7") == [
        'a.toml:2:12: "assigned" must be a text, not a number (put it in quotes)'
    ]
    assert errors_of("[agent]\nlog_level = 7") == [
        'a.toml:2:13: "log_level" cannot be 7 (one of: debug, info, warning, error)'
    ]


def test_more_proposals_than_a_message_may_hold() -> None:
    many = ", ".join(['"aes256gcm16-prfsha384-x25519"'] * 17)
    (error,) = errors_of(changed(SITE_TO_SITE, ('"aes256gcm16-prfsha384-x25519"', many)))
    assert '"proposals" has more than 16 items (remove some)' in error


@pytest.mark.parametrize(("mode", "told"), [(0o600, False), (0o640, True), (0o604, True)])
def test_a_config_file_that_holds_a_key_is_a_secret_too(mode: int, told: bool) -> None:
    loaded = load_text(SITE_TO_SITE, {"/etc/mg/a.toml": (mode, b"")})
    assert [str(warning) for warning in loaded.warnings] == [
        "/etc/mg/a.toml:17:46: the config file holds this preshared key and can be read by others "
        "(chmod 600 /etc/mg/a.toml, or use secret_file)"
    ][: int(told)]


def test_a_key_with_a_line_end_is_told() -> None:
    (warning,) = warnings_of(changed(SITE_TO_SITE, (KEY, f"{KEY}\\n")))
    assert "the preshared key contains a line end (is it meant?)" in warning


def test_a_secret_from_the_environment() -> None:
    text = changed(SITE_TO_SITE, (f'secret = "{KEY}"', 'secret_env = "SITE_PSK"'))
    method = load_text(text, environment={"SITE_PSK": KEY}).configuration.policies[0].rules[0].authentication[0]
    assert method == PresharedKey(secret=Secret(KEY.encode()), remote_id="gw-b.example")
    assert "the preshared key is empty" in errors_of(text, environment={"SITE_PSK": ""})[0]


def test_no_error_and_no_warning_shows_a_secret() -> None:
    text = changed(SITE_TO_SITE, (KEY, "hunter2"))
    assert "hunter2" not in "".join(warnings_of(text)) + repr(load_text(text))
    broken = changed(text, ("remote_id =", "remoteid ="), ("secret =", "secret_env = 1, secret ="))
    assert errors_of(broken)
    assert "hunter2" not in "".join(errors_of(broken))


class Disk:
    """A config file that cannot be read, in each of the ways."""

    def __init__(self, answer: bytes | Exception) -> None:
        self.answer = answer

    def read(self, _path: Path) -> bytes:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (FileNotFoundError(2, "No such file"), "/a.toml: there is no such file (check the path)"),
        (IsADirectoryError(21, "Is a directory"), "/a.toml: is a directory (name the config file in it)"),
        (PermissionError(13, "Permission denied"), "/a.toml: permission denied (run as the owner of the file)"),
        (OSError(5, "Input/output error"), "/a.toml: cannot be read: input/output error"),
        (ValueError("embedded null byte"), '<config>: "/a.toml" is not a path'),
        (b"a = 1\nb = \xff\n", "/a.toml:2:5: the file is not UTF-8 text (save it as UTF-8)"),
        (
            b"\xef\xbb\xbf[agent]",
            "/a.toml:1:1: the file begins with a byte order mark (save it as UTF-8 without BOM)",
        ),
        (b"a = " + b"[" * 5000, "/a.toml:1:1: values are nested too deeply"),
        (b"a = " + b"1" * 5000, None),
    ],
)
def test_files_that_cannot_be_read(answer: bytes | Exception, line: str | None) -> None:
    disk = Disk(answer)
    with pytest.raises(ConfigErrors) as caught:
        load(Path("/a.toml"), read=disk.read, mode_of=lambda _path: 0)
    assert len(caught.value.errors) == 1
    assert str(caught.value).isprintable()
    assert line is None or str(caught.value) == line
