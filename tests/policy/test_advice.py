# ruff: noqa: E501  (a table has one row a line)
"""What operators of host-to-host policies stumble over is told, and what is in order is not."""

from __future__ import annotations

import pytest

from policy.proposals import ProtocolId
from policy.suites import method_text, parse_ike_proposal, parse_method, proposal_text
from policy.windows2003 import IKE_PROPOSALS, LIFETIMES, METHODS, is_weak, missing
from tests.support.policies import KEY, changed, compiled, errors_of, load_text, warnings_of

TEXT = f"""\
[agent]
authentication = [{{ method = "psk", secret = "{KEY}" }}]
[[policy]]
name = "P"
ike = {{ version = 2 }}
[[policy.rule]]
name = "R"
filter_list = "L"
filter_action = "A"
[[filter_list]]
name = "L"
[[filter_list.filter]]
source = "me"
destination = "any"
[[filter_action]]
name = "A"
action = "negotiate"
inbound_clear = true
"""
PERMIT = """
[[policy.rule]]
name = "I"
filter_list = "All ICMP Traffic"
filter_action = "Permit"
[[filter_list]]"""


def test_nothing_is_told_of_a_policy_in_order() -> None:
    assert warnings_of(TEXT) == []
    assert warnings_of(changed(TEXT, ("inbound_clear = true", 'methods = ["ah:sha256"]'))) == []


@pytest.mark.parametrize(
    ("old", "new", "warning"),
    [
        (
            "inbound_clear = true",
            "inbound_clear = true\nfallback_clear = true",
            'a.toml:15:1: filter action "A" has fallback_clear: hosts that never answer are talked to in clear (write',
        ),
        (
            "inbound_clear = true",
            'methods = ["esp:aes256gcm16", "ah:sha256"]',
            'a.toml:15:1: filter action "A" offers "ah:sha256", which does not encrypt, and the peer may choose it (',
        ),
        (
            "inbound_clear = true",
            'methods = ["esp:aes128gmac"]',
            'filter action "A" offers "esp:aes128gmac", which does not encrypt: GMAC is GCM without its encryption (',
        ),
        (
            "inbound_clear = true",
            'methods = ["esp:aes256gcm16", "esp:null-sha256"]',
            'filter action "A" offers "esp:null-sha256", which does not encrypt, and the peer may choose it (',
        ),
        (
            '[[filter_list]]',
            PERMIT,
            'a.toml:11:1: rule "I" permits ICMP, so ping goes in clear and proves nothing about IPsec here (test with',
        ),
        (
            'destination = "any"',
            'destination = "224.0.0.0/4"',
            'a.toml:12:1: rule "R": the filter me <-> 224.0.0.0/4 is for multicast or broadcast, which no negotiation',
        ),
        ('destination = "any"', 'destination = "ff02::fb"', "is for multicast or broadcast"),
        ('destination = "any"', 'destination = "255.255.255.255"', "is for multicast or broadcast"),
        (
            'destination = "any"',
            'destination = "any"\nprotocol = "esp"',
            'rule "R": the filter esp me <-> any is for the packets of IPsec itself, which are exempt: nothing reaches',
        ),
        (
            'destination = "any"',
            'destination = "any"\nprotocol = "udp"\nsource_port = 500\ndestination_port = 500',
            "is for the packets of IPsec itself",
        ),
    ],
)  # fmt: skip
def test_advice(old: str, new: str, warning: str) -> None:
    (told,) = warnings_of(changed(TEXT, (old, new)))
    assert warning in told


def test_falling_back_without_letting_in_contradicts_itself() -> None:
    told = warnings_of(changed(TEXT, ("inbound_clear = true", "fallback_clear = true")))
    assert len(told) == 2
    assert (
        'filter action "A" contradicts itself: fallback_clear lets this host talk in clear with a host' in told[0]
    )


@pytest.mark.parametrize(
    "changes",
    [
        [('destination = "any"', 'destination = "any"\nprotocol = "udp"\ndestination_port = 500')],
        [('action = "negotiate"\ninbound_clear = true', 'action = "permit"'), ('"any"', '"224.0.0.1"')],
        [("[[filter_list]]", PERMIT.replace('name = "I"', 'name = "I"\nactive = false'))],
    ],
)
def test_what_only_looks_like_it_is_not_told(changes: list[tuple[str, str]]) -> None:
    assert warnings_of(changed(TEXT, *changes)) == []


def test_the_lists_of_windows_2003() -> None:
    """In its own order: Request settles for AH, Require does not, and those who ask may have either."""
    lists = {name: [method_text(method) for method in methods] for name, methods in METHODS.items()}
    esp = ["3des-sha1", "3des-md5", "des-sha1", "des-md5"]
    assert lists == {
        "windows-2003": [f"esp:{words}" for words in esp],
        "windows-2003-request": ["esp:3des-sha1", "esp:des-sha1", "ah:sha1", "ah:md5"],
        "windows-2003-response": [*(f"esp:{words}" for words in esp), "ah:sha1", "ah:md5"],
    }
    assert [proposal_text(proposal) for proposal in IKE_PROPOSALS] == [
        "3des-sha1-prfsha1-modp1024",
        "3des-md5-prfmd5-modp1024",
        "des-sha1-prfsha1-modp768",
        "des-md5-prfmd5-modp768",
    ]
    assert {lifetime.bytes for lifetime in LIFETIMES.values()} == {102_400_000}
    for methods in METHODS.values():
        assert all(is_weak(part) for method in methods for part in method.protocols)
        assert [missing(part) is None for m in methods for part in m.protocols] == [
            part.protocol is ProtocolId.AH for m in methods for part in m.protocols
        ]


def test_a_preset_is_its_list_and_its_lifetime() -> None:
    text = changed(
        TEXT,
        ("inbound_clear = true", 'preset = "windows-2003-request"'),
        ("version = 2", 'preset = "windows-2003"'),
    )
    loaded = load_text(text)
    (policy,) = loaded.configuration.policies
    action = policy.rules[0].filter_action
    assert (action.methods, action.lifetime) == (
        METHODS["windows-2003-request"],
        LIFETIMES["windows-2003-request"],
    )
    assert policy.ike.proposals == IKE_PROPOSALS
    told = [str(warning) for warning in loaded.warnings]
    assert any('policy "P": IKE offers "3des-sha1-modp1024", which can be broken today' in line for line in told)
    assert any('filter action "A" offers "esp:3des-sha1", which can be broken today' in line for line in told)
    assigned = changed(text, ("[agent]", '[agent]\nassigned = "P"'))
    assert [error.split(": ", 1)[1].partition(" (")[0] for error in errors_of(assigned)] == [
        'policy "P": IKE offers "3des-sha1-modp1024", and TRIPLE_DES is not available in this version',
        'rule "R": its filter action "A" offers "esp:3des-sha1", and TRIPLE_DES is not available in this version',
    ]


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("inbound_clear = true", 'preset = "windows-2000"', '18:10: "preset" cannot be "windows-2000" (did you mean "windows-2003"? (one of: windows-2003, windows-2003-request, windows-2003-response))'),
        ("inbound_clear = true", "preset = 2003", '18:10: "preset" cannot be 2003 (one of: windows-2003, windows-2003-request'),
        ("inbound_clear = true", 'preset = "windows-2003"\nmethods = ["ah:sha256"]', '18:1: "preset" and "methods" are both there (keep one'),
        ("version = 2", 'preset = "xp"', '5:18: "preset" cannot be "xp" (one of: windows-2003)'),
        ("version = 2", 'preset = "windows-2003", proposals = ["aes256gcm16-prfsha384-x25519"]', '5:9: "preset" and "proposals" are b'),
        ('action = "negotiate"\ninbound_clear = true', 'action = "block"\npreset = "windows-2003"', '18:1: "preset" means something only'),
    ],
)  # fmt: skip
def test_presets_that_mean_nothing(old: str, new: str, error: str) -> None:
    (line,) = errors_of(changed(TEXT, (old, new)))
    assert error in line


@pytest.mark.parametrize(
    "text",
    ["esp:aes128gmac", "esp:aes256gmac-noesn", "ah:aes192gmac", "ah:aesxcbc", "ah:aes128gmac+esp:aes256-aesxcbc"],
)
def test_gmac_and_xcbc_have_words(text: str) -> None:
    method = parse_method(text)
    assert method_text(method) == text
    assert parse_method(method_text(method)).protocols[-1].encr == method.protocols[-1].encr


@pytest.mark.parametrize("text", ["aes256gmac-prfsha256-x25519", "aes256-aesxcbc-prfsha256-x25519"])
def test_they_are_not_for_ike(text: str) -> None:
    with pytest.raises(ValueError, match="IKE does not use GMAC and XCBC here"):
        parse_ike_proposal(text)


def test_ah_is_never_in_udp() -> None:
    text = changed(
        TEXT,
        ("[agent]", '[agent]\nassigned = "P"'),
        ("inbound_clear = true", 'encapsulation = "udp"\nmethods = ["esp:aes256gcm16", "ah:sha256"]'),
    )
    assert errors_of(text) == [
        'a.toml:16:1: rule "R": its filter action "A" says encapsulation = "udp" and offers "ah:sha256", and AH cannot '
        'be carried in UDP (write encapsulation = "auto", or offer ESP only)'
    ]
    tunnel = changed(
        TEXT,
        ("inbound_clear = true", 'methods = ["ah:sha256"]'),
        ('filter_action = "A"', 'filter_action = "A"\ntunnel_endpoint = "10.9.0.2"'),
    )
    assert errors_of(tunnel) == []


KINDS = (
    changed(
        TEXT,
        ('filter_action = "A"\n', 'filter_action = "A"\nconnection_type = "lan"\n'),
        (
            "[[filter_list]]",
            '[[policy.rule]]\nname = "S"\nfilter_list = "L"\nfilter_action = "Drop"\nconnection_type = "all"\n[[filter_list]]',
        ),
    )
    + '[[filter_action]]\nname = "Drop"\naction = "block"\n'
)


def test_rules_for_kinds_of_interfaces_do_not_shadow_each_other() -> None:
    assert errors_of(KINDS) == []
    assert warnings_of(KINDS) == []
    snapshot = compiled(changed(KINDS, ("[agent]", '[agent]\nassigned = "P"')), "10.1.0.1")
    assert [(e.rule, e.interfaces.value) for e in snapshot.spd.entries] == [("R", "lan"), ("S", "all")]
    assert snapshot.warnings == ()
    assert 'rules "R" and "S" shadow each other' in errors_of(changed(KINDS, ('"lan"', '"all"')))[0]


def test_one_packet_cannot_be_protected_in_two_ways() -> None:
    """Behind the TUN nobody knows the interface any more."""
    text = changed(KINDS, ('action = "block"', 'action = "negotiate"'))
    assert (
        'rules "R" and "S" protect the same packets differently: only their connection_type' in errors_of(text)[0]
    )
