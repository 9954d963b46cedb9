"""Addresses, ports, protocols, durations and sizes as a config file writes them."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.clock import SECOND
from policy.model import AddressSpec, DnsName, Server, Special
from policy.problems import TextError
from policy.selectors import AddressRange, PortRange
from policy.texts import (
    PROTOCOLS,
    parse_address,
    parse_duration,
    parse_endpoint,
    parse_flow,
    parse_ports,
    parse_protocol,
    parse_size,
    protocol_name,
)


def span(first: str, last: str) -> AddressRange:
    return AddressRange.of(ip_address(first), ip_address(last))


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("any", Special.ANY),
        ("ME", Special.ME),
        ("10.1.0.5", AddressRange.of(ip_address("10.1.0.5"))),
        ("2001:db8::1", AddressRange.of(ip_address("2001:db8::1"))),
        ("10.1.0.0/24", AddressRange.network(ip_network("10.1.0.0/24"))),
        ("10.1.0.0/255.255.255.0", AddressRange.network(ip_network("10.1.0.0/24"))),
        ("2001:db8::/32", AddressRange.network(ip_network("2001:db8::/32"))),
        ("10.1.0.10-10.1.0.20", span("10.1.0.10", "10.1.0.20")),
        ("10.1.0.10 - 10.1.0.20", span("10.1.0.10", "10.1.0.20")),
        ("fe80::1-fe80::ff", span("fe80::1", "fe80::ff")),
        ("db-1.example.com", DnsName("db-1.example.com")),
        ("DB.Example.", DnsName("db.example")),
        ("gateway", Server.GATEWAY),
        ("DNS", Server.DNS),
        ("dhcp", Server.DHCP),
        ("wins", Server.WINS),
        ("gateway.", DnsName("gateway")),
        ("an.", DnsName("an")),
        ("0.0.0.0/0", AddressRange.any(4)),
    ],
)
def test_addresses(text: str, spec: AddressSpec) -> None:
    assert parse_address(text) == spec


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("10.1.0.5/24", '"10.1.0.5/24" has host bits set (did you mean "10.1.0.0/24"?)'),
        ("2001:db8::1/64", 'has host bits set (did you mean "2001:db8::/64"?)'),
        ("10.1.0.0/33", '"33" is not a prefix length (an IPv4 prefix is 0 to 32)'),
        ("2001:db8::/129", '"129" is not a prefix length (an IPv6 prefix is 0 to 128)'),
        ("lan/24", '"lan/24" is not a network (write it as "10.1.0.0/24" or "2001:db8::/64")'),
        ("10.1.0.20-10.1.0.10", 'runs backwards (write "10.1.0.10-10.1.0.20")'),
        ("10.1.0.1-2001:db8::1", "begins and ends in different families (use one family in a range)"),
        ("10.1.0.1-20", 'is not an address range (write it as "10.1.0.10-10.1.0.20")'),
        ("10.1.0", '"10.1.0" is not an address'),
        ("10.1.0.256", '"10.1.0.256" is not an address'),
        ("host.256", "the last label of a DNS name is not a number"),
        ("anyy", '"anyy" is not an address (did you mean "any"? For a host of that name write "anyy.")'),
        ("mee", 'did you mean "me"?'),
        (
            "",
            '"" is not an address (any, me, dns, dhcp, wins, gateway, a host, net/len, first-last, or a DNS name)',
        ),
        ("a..b", '"a..b" is not an address'),
        ("-a.example", '"-a.example" is not an address'),
        ("fe80::1%eth0", "has a zone (a selector cannot name an interface: remove the % and after)"),
        ("2001:db8::xyz", '"2001:db8::xyz" is not an address'),
        ("a" * 300, "is not an address"),
    ],
)
def test_refused_addresses(text: str, message: str) -> None:
    with pytest.raises(TextError) as caught:
        parse_address(text)
    assert message in str(caught.value)


def test_endpoints() -> None:
    assert parse_endpoint("10.9.0.2") == ip_address("10.9.0.2")
    assert parse_endpoint("2001:db8::2") == ip_address("2001:db8::2")
    assert parse_endpoint("any") is Special.ANY
    assert parse_endpoint("gw.example") == DnsName("gw.example")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("me", 'tunnel_endpoint = "me" is this host itself (name the peer\'s address)'),
        ("10.9.0.0/24", '"10.9.0.0/24" is a network; a tunnel ends at one address'),
        ("0.0.0.0", '"0.0.0.0" is not the address of a host'),
        ("224.0.0.1", '"224.0.0.1" is not the address of a host'),
        ("10.9.0", '"10.9.0" is not an address (write the peer\'s address, its DNS name, or "any")'),
    ],
)
def test_refused_endpoints(text: str, message: str) -> None:
    with pytest.raises(TextError) as caught:
        parse_endpoint(text)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("value", "ports"),
    [(80, (80, 80)), ("80", (80, 80)), ("1024-65535", (1024, 65535)), ("any", (0, 65535)), ("1 - 2", (1, 2))],
)
def test_ports(value: object, ports: tuple[int, int]) -> None:
    assert parse_ports(value) == PortRange(*ports)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("http", '"http" is not a port (write a number, or a range such as "1024-65535")'),
        (70000, "port 70000 does not exist (ports are 0 to 65535)"),
        (-1, "port -1 does not exist"),
        ("20-10", 'the port range 20-10 runs backwards (write "10-20")'),
        ("10-", '"10-" is not a port'),
        (True, "a port must be a number or a text"),
        (1.5, "a port must be a number or a text"),
        ("\u0661", "is not a port"),
    ],
)
def test_refused_ports(value: object, message: str) -> None:
    with pytest.raises(TextError) as caught:
        parse_ports(value)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("value", "number"),
    [("tcp", 6), ("UDP", 17), ("icmp", 1), ("icmpv6", 58), ("ipv6-icmp", 58), ("gre", 47), ("sctp", 132),
     ("esp", 50), ("ah", 51), ("any", 0), (6, 6), ("6", 6), (255, 255)],
)  # fmt: skip
def test_protocols(value: object, number: int) -> None:
    assert parse_protocol(value) == number


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("tpc", 'unknown protocol "tpc" (did you mean "tcp"?)'),
        ("zzzzz", 'unknown protocol "zzzzz" (a name such as tcp, udp, icmp, or a number from 1 to 255)'),
        (0, 'protocol 0 is no next-layer protocol (write "any" for every protocol)'),
        (256, "protocol 256 does not exist (protocols are 1 to 255)"),
        (False, "a protocol must be a name or a number"),
    ],
)
def test_refused_protocols(value: object, message: str) -> None:
    with pytest.raises(TextError) as caught:
        parse_protocol(value)
    assert message in str(caught.value)


def test_protocol_names_go_back() -> None:
    assert all(protocol_name(number) == name for name, number in PROTOCOLS.items())
    assert protocol_name(200) == "200"


@pytest.mark.parametrize(
    ("words", "flow"),
    [
        (("tcp", "10.1.0.5:40000", "10.2.0.9:443"), "protocol 6 10.1.0.5:40000 -> 10.2.0.9:443"),
        (("tcp", "10.1.0.5", "10.2.0.9:443"), "protocol 6 10.1.0.5 -> 10.2.0.9:443"),
        (("17", "[2001:db8::1]:53", "2001:db8::2"), "protocol 17 [2001:db8::1]:53 -> 2001:db8::2"),
        (("icmpv6", "2001:db8::1", "[2001:db8::2]"), "protocol 58 2001:db8::1 -> 2001:db8::2"),
    ],
)
def test_flows(words: tuple[str, str, str], flow: str) -> None:
    assert str(parse_flow(*words)) == flow


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("any", "10.1.0.5", "10.2.0.9"), "a packet has one protocol"),
        (("tcp", "10.1.0", "10.2.0.9"), '"10.1.0" is not an address (write "10.1.0.5"'),
        (("tcp", "10.1.0.5", "2001:db8::1"), "10.1.0.5 and 2001:db8::1 are of different families"),
        (("icmp", "10.1.0.5:1", "10.2.0.9"), "icmp has no ports (leave the port out)"),
        (("tcp", "10.1.0.5:1-2", "10.2.0.9"), '"1-2" is not one port'),
        (("tcp", "10.1.0.5:http", "10.2.0.9"), '"http" is not a port'),
    ],
)
def test_refused_flows(words: tuple[str, str, str], message: str) -> None:
    with pytest.raises(TextError) as caught:
        parse_flow(*words)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("8h", 28800),
        ("90m", 5400),
        ("3600s", 3600),
        ("1d", 86400),
        ("1 h", 3600),
        (60, 60),
        ("60", 60),
        ("1w", 604800),
    ],
)
def test_durations(value: object, seconds: int) -> None:
    assert parse_duration(value) == seconds * SECOND


@pytest.mark.parametrize(
    ("value", "octets"),
    [
        ("100GiB", 100 * 2**30),
        ("500MB", 500 * 10**6),
        ("64KiB", 65536),
        ("64kib", 65536),
        ("1TB", 10**12),
        ("512 B", 512),
        (4096, 4096),
    ],
)
def test_sizes(value: object, octets: int) -> None:
    assert parse_size(value) == octets


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("8x", 'unknown unit of time "x" (write "90m", "8h", "3600s" or "1d")'),
        ("soon", '"soon" is not a duration'),
        ("", '"" is not a duration'),
        ("0s", '"0s" is no limit'),
        (-5, "is no limit"),
        (True, "a duration must be a text"),
        ("999999999999999999w", "is too large"),
    ],
)
def test_refused_durations(value: object, message: str) -> None:
    with pytest.raises(TextError) as caught:
        parse_duration(value)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("10Gib", None),
        ("10GIBB", 'unknown unit of size "GIBB" (did you mean "GiB"?)'),
        ("10 parsec", 'unknown unit of size "parsec" (write "100GiB", "500MB" or "64KiB")'),
        ("much", '"much" is not a size'),
        (0, "is no limit"),
        ([], "a size must be a text"),
    ],
)
def test_refused_sizes(value: object, message: str | None) -> None:
    if message is None:
        assert parse_size(value) == 10 * 2**30
        return
    with pytest.raises(TextError) as caught:
        parse_size(value)
    assert message in str(caught.value)


@settings(deadline=None)
@given(st.text(max_size=50) | st.integers() | st.booleans() | st.floats() | st.none())
def test_anything_parses_or_is_refused_in_one_line(value: object) -> None:
    parsers = [parse_ports, parse_protocol, parse_duration, parse_size]
    if isinstance(value, str):
        parsers += [parse_address, parse_endpoint]  # type: ignore[list-item]
    said: list[str] = []
    for parse in parsers:
        try:
            parse(value)
        except TextError as error:
            said.append(str(error))
    assert all(line.isprintable() for line in said)
