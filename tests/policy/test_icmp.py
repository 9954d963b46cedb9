"""ICMP types and codes: words and numbers become the value that selectors hold, and are read back."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.explain import Direction, explain, flow_text
from policy.icmp import TYPES, icmp_ports, icmp_text, icmp_types, ports_text
from policy.order import effective_order
from policy.problems import TextError
from policy.selectors import ANY_PORT, ICMP, ICMPV6, OPAQUE_PORT, Flow, PortRange
from policy.spd import Disposition
from policy.texts import parse_flow
from tests.support.policies import compiled, policy_text

OCTET = st.integers(0, 255)


@pytest.mark.parametrize(
    ("protocol", "kind", "code", "ports", "text"),
    [
        (ICMP, "echo-request", None, PortRange(0x0800, 0x08FF), "echo-request"),
        (ICMPV6, "Echo-Request", None, PortRange(0x8000, 0x80FF), "echo-request"),
        (ICMP, 8, 0, PortRange(0x0800, 0x0800), "echo-request code 0"),
        (ICMP, "3", "0-4", PortRange(0x0300, 0x0304), "destination-unreachable code 0-4"),
        (ICMPV6, "1-4", None, PortRange(0x0100, 0x04FF), "type 1-4"),
        (ICMP, 200, None, PortRange(0xC800, 0xC8FF), "type 200"),
        (ICMP, "0-255", None, ANY_PORT, "any"),
        (ICMP, "1-2", "0-255", PortRange(0x0100, 0x02FF), "type 1-2"),
    ],
)
def test_types_and_codes(protocol: int, kind: object, code: object, ports: PortRange, text: str) -> None:
    assert icmp_ports(icmp_types(protocol, kind), code) == ports
    assert icmp_text(protocol, ports) == text


def test_texts_of_what_no_filter_says() -> None:
    assert icmp_text(ICMP, OPAQUE_PORT) == "opaque"
    assert icmp_text(ICMP, PortRange(0x0101, 0x0203)) == "type 1 code 1 to type 2 code 3"
    assert ports_text(6, PortRange(80, 80)) == "80"
    assert ports_text(ICMP, PortRange(0x0800, 0x08FF)) == "echo-request"


@pytest.mark.parametrize(
    ("kind", "code", "message"),
    [
        ("eco-request", None, 'unknown ICMP type "eco-request" (did you mean "echo-request"?)'),
        ("packet-too-big", None, 'unknown ICMP type "packet-too-big" (write a number, or protocol = "icmpv6")'),
        (
            "xyzzy",
            None,
            'unknown ICMP type "xyzzy" (a number, or one of: echo-reply, destination-unreachable, red',
        ),
        (256, None, "ICMP type 256 does not exist (they are 0 to 255)"),
        ("0-256", None, "ICMP type 256 does not exist"),
        (-1, None, "ICMP type -1 does not exist"),
        ("8-3", None, 'the range 8-3 runs backwards (write "3-8")'),
        (True, None, "an ICMP type must be a number or a text"),
        (8, [1], "an ICMP code must be a number or a text"),
        (8, "x", '"x" is no ICMP code (write a number, or a range such as "0-3")'),
        ("3-4", 1, "codes belong to one type, and these are several (write one icmp_type for each icmp_code)"),
    ],
)
def test_mistakes(kind: object, code: object, message: str) -> None:
    with pytest.raises(TextError) as caught:
        icmp_ports(icmp_types(ICMP, kind), code)
    assert message in str(caught.value)


@given(OCTET, OCTET, OCTET, OCTET)
def test_a_value_matches_exactly_its_types_and_codes(kind: int, code: int, other: int, another: int) -> None:
    ports = icmp_ports((kind, kind), code)
    assert ports.contains(other * 256 + another) == ((kind, code) == (other, another))
    assert icmp_ports((kind, kind), None).contains(other * 256 + another) == (kind == other)


@pytest.mark.parametrize("protocol", TYPES)
def test_each_name_is_read_back(protocol: int) -> None:
    for name, number in TYPES[protocol].items():
        assert icmp_types(protocol, name) == (number, number)
        assert icmp_text(protocol, icmp_ports((number, number), None)) == name


PING = policy_text(
    ("Ping", "Pass", 'source = "me", destination = "any", protocol = "icmp", icmp_type = "echo-request"')
)


def test_a_filter_for_one_message() -> None:
    snapshot = compiled(PING, "10.1.0.1")
    (entry,) = snapshot.spd.entries
    assert entry.filter == "1: icmp echo-request me <-> any"
    assert entry.selectors.local.ports == entry.selectors.remote.ports == PortRange(0x0800, 0x08FF)
    (row,) = effective_order(snapshot)
    assert (row.protocol, row.local, row.remote) == ("icmp echo-request", "10.1.0.1", "any")
    request = parse_flow("icmp:echo-request", "10.1.0.1", "10.2.0.9")
    assert flow_text(request) == "icmp echo-request code 0 10.1.0.1 -> 10.2.0.9"
    assert explain(snapshot, request).verdict == Disposition.BYPASS.value
    reply = explain(snapshot, parse_flow("1:0", "10.1.0.1", "10.2.0.9"), Direction.OUTBOUND)
    assert reply.verdict == "no policy"
    assert reply.considered[0].why_not == "message: wanted echo-request, got echo-reply code 0"
    blind = explain(snapshot, parse_flow("icmp", "10.1.0.1", "10.2.0.9"), Direction.OUTBOUND)
    assert blind.considered[0].why_not == "message: wanted echo-request, got none"


def test_flows_of_messages() -> None:
    source, destination = int(ip_address("2001:db8::1")), int(ip_address("2001:db8::2"))
    assert parse_flow("icmpv6:1/4", "2001:db8::1", "2001:db8::2") == Flow(6, 58, source, destination, 260, 260)
    for text, message in (("tcp:syn", "tcp has no types"), ("icmp:3/0-4", "is not one ICMP message")):
        with pytest.raises(TextError, match=message):
            parse_flow(text, "10.1.0.1", "10.2.0.9")
