"""Fuzz of the config reader.

Invariant: any text either is a Configuration, whose assigned policy compiles or raises CompileError, or raises
ConfigErrors with at least one error; every line of it is printable and has a place. Nothing else is ever raised.
"""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from policy.authentication import Sources
from policy.compile import CompileError, compile_policy
from policy.config import load, parse
from policy.order import effective_order
from policy.problems import ConfigErrors
from tests.support.policies import SITE_TO_SITE, policy_text

SEEDS = [
    SITE_TO_SITE,
    policy_text(
        ("A", "10.9.0.2#b", 'source = "me", destination = "any", protocol = "tcp", destination_port = "1-9"'),
        ("B", "Drop", 'source = "10.1.0.1-10.1.0.9", destination = "db.example", mirrored = false'),
        ("C", "Pass", 'source = "2001:db8::/32", destination = "any"'),
        ("D", "any", 'source = "any", destination = "any"'),
    ),
]
SPICE = [
    "[", "]", "[[", "]]", "{", "}", '"', "'", '"""', "=", ",", "\n", "#", ".", "-", "\\", "\0", "\u2028", "\ud800",
    "true", "false", "0", "-1", "1e9", "99999999999999999999", "1979-05-27", "[]", "{}", "nan", '""',
    "me", "any", "0.0.0.0/0", "::/0", "10.9.0.2", "127.0.0.1", "gw.example", "esp:", "ah:sha256", "aes256", "3des",
    "policy", "rule", "filter", "filter_list", "agent", "assigned", "name", "secret", "secret_file", "secret_env",
    "method", "kerberos", "certificate", "remote_id", "mirrored", "protocol", "icmp", "icmpv6", "negotiate",
]  # fmt: skip
SOURCES = Sources(lambda _path: b"x" * 40, lambda _path: 0o100600, lambda _name: None)
HOME = [ip_address("10.1.0.1"), ip_address("2001:db8::1"), ip_address("127.0.0.1")]


@st.composite
def mutations(draw: st.DrawFn) -> str:
    text = draw(st.sampled_from(SEEDS))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(text)))
        end = min(len(text), at + draw(st.sampled_from([0, 0, 1, 2, 5, 20, 100])))
        kind = draw(st.integers(0, 3))
        if kind == 0:
            piece = draw(st.sampled_from(SPICE))
        elif kind == 1:
            start = draw(st.integers(0, len(text)))
            piece = text[start : start + draw(st.integers(1, 120))]
        elif kind == 2:
            piece = draw(st.text(max_size=8))
        else:
            piece = ""
        text = text[:at] + piece + text[end:]
    return text


def holds(text: str) -> None:
    try:
        loaded = parse(text, Path("/etc/mg/a.toml"), SOURCES)
    except ConfigErrors as error:
        errors = error.errors
    else:
        errors = ()
        policy = loaded.configuration.policy(loaded.configuration.agent.assigned or "")
        try:
            snapshot = compile_policy(policy, generation=1, local_addresses=HOME)
            assert len(effective_order(snapshot)) == len(snapshot.spd.entries)
            assert {id_ for peer in snapshot.pad.peers for id_ in peer.entries} <= {
                e.id for e in snapshot.spd.entries
            }
        except CompileError as error:
            errors = error.errors
            assert errors
        assert all(str(warning).isprintable() for warning in loaded.warnings)
    assert all(str(error).isprintable() and error.message for error in errors)
    assert all(error.where.line >= 1 and error.where.column >= 1 for error in errors)


@settings(deadline=None, max_examples=400)
@given(mutations())
def test_a_mutated_config_parses_or_is_refused(text: str) -> None:
    holds(text)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.sampled_from(SPICE) | st.text(max_size=5), max_size=30).map(" ".join))
def test_any_text_parses_or_is_refused(text: str) -> None:
    holds(text)


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=200))
def test_any_octets_parse_or_are_refused(octets: bytes) -> None:
    said = []
    try:
        load(Path("/etc/mg/a.toml"), read=lambda _path: octets, mode_of=lambda _path: 0)
    except ConfigErrors as error:
        said = [str(one) for one in error.errors]
        assert said
    assert all(line.isprintable() for line in said)
