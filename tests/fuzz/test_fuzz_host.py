"""Invariant: what files, servers and clients of a host say becomes a value or a refusal, never another exception.

Text files of the host (hosts, resolv.conf, leases, smb.conf), control messages of sockets, Packet Too Big, answers
of a name server, what ``ip`` prints, lines on the control socket, HTTP requests for metrics.
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Callable, Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

import dns.message
import dns.rdatatype
import dns.resolver
import dns.rrset
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from policy.selectors import Flow
from tests.agent.test_control import FakeAgent
from tunnel.agent import metrics
from tunnel.agent.control import ControlServer, RequestError
from tunnel.agent.requests import Requests, flow_of
from tunnel.host import cmsg, links, names, servers, toobig

TEXTS: dict[str, tuple[Callable[[str], Any], str]] = {
    "hosts": (names.hosts_file, "127.0.0.1 localhost\n::1%lo ip6 # x\n10.0.0.1\tgw.example gw\n"),
    "resolv.conf": (servers.resolv_conf, "search x\nnameserver 10.0.0.53 # one\nnameserver fe80::1%eth0\n"),
    "lease": (
        servers.keyed_lease,
        "ADDRESS=10.0.0.9\nSERVER_ADDRESS=10.0.0.1\ndhcp_server_identifier='10.0.0.2'\n",
    ),
    "dhclient": (
        servers.dhclient_leases,
        'lease {\n  interface "eth0";\n  option dhcp-server-identifier 10.0.0.1;\n}\nlease6 {\n'
        ' interface "eth1";\n  option dhcp6.server-id 0:1;\n}\n',
    ),
    "smb.conf": (servers.smb_conf, "[global]\n wins server = 10.0.0.1, tag:10.0.0.2\n"),
}
SPICE = st.sampled_from(
    ["\n", "\r", "\0", "\x85", "\u2028", " ", "\t", "#", "=", ",", ":", "%", '"', "'", "{", "}", ";", "10.0.0.256",
     "fe80::1%eth0", "::ffff:10.0.0.1", "999999999999", "1e9", "\ud800", "lease {", "nameserver"]
)  # fmt: skip


@st.composite
def texts(draw: st.DrawFn, seed: str) -> str:
    text = seed
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, len(text)))
        piece = draw(SPICE | st.text(max_size=6) | st.just(text[at : at + 20]))
        text = text[:at] + piece + text[at + draw(st.sampled_from([0, 0, 1, 3, 30])) :]
    return text


@pytest.mark.parametrize("kind", TEXTS)
@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_files_of_the_host(kind: str, data: st.DataObject) -> None:
    parse, seed = TEXTS[kind]
    found = parse(data.draw(texts(seed)))
    addresses = [one for listed in found.values() for one in listed] if isinstance(found, dict) else found
    assert all(isinstance(one, IPv4Address | IPv6Address) for one in addresses)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
ROUTES = st.dictionaries(
    st.sampled_from(["dst", "gateway", "metric", "via", "nexthops", "dev", "ifname", "flags", "operstate", "x"]),
    JSON | st.sampled_from(["default", "10.0.0.1", "eth0", {"host": "fe80::1"}]),
)


@settings(deadline=None, max_examples=200)
@given(st.lists(ROUTES | JSON, max_size=5))
def test_what_ip_prints(rows: list[Any]) -> None:
    for address in servers.default_gateways(rows):
        assert isinstance(address, IPv4Address | IPv6Address)


# The network's side.


@settings(deadline=None, max_examples=300)
@given(
    st.binary(max_size=120)
    | st.binary(max_size=60).map(lambda tail: b"\2\0\0\0\0\0\5\0\x60" + bytes(5) + b"\x32" + tail)
)
@example(b"\2\0\0\0" + struct.pack("!I", 1400) + b"\x60" + bytes(5) + b"\x32" + bytes(33))
def test_packet_too_big(data: bytes) -> None:
    found = toobig.parse(data)
    if found is not None:
        assert found[0].address.version == 6
        assert 0 <= found[1] <= 65535


_SIZES = {
    (0, cmsg.IP_PKTINFO): 12, (0, cmsg.IP_TOS): 1, (41, cmsg.IPV6_PKTINFO): 20, (41, cmsg.IPV6_TCLASS): 4,
    (41, cmsg.IPV6_HOPLIMIT): 4, (17, cmsg.UDP_GRO): 4,
}  # fmt: skip


@st.composite
def ancillary(draw: st.DrawFn) -> list[tuple[int, int, bytes]]:
    """Control messages as a kernel makes them: known ones of their size, at least; others of any."""
    found = []
    for _ in range(draw(st.integers(0, 6))):
        level, kind = draw(
            st.sampled_from([*_SIZES, (41, cmsg.IPV6_HOPOPTS), (41, cmsg.IPV6_RTHDR), (99, 99), (0, 77)])
        )
        least = _SIZES.get((level, kind), 0)
        found.append((level, kind, draw(st.binary(min_size=least, max_size=least + 40))))
    return found


@settings(deadline=None, max_examples=300)
@given(ancillary())
def test_control_messages(messages: list[tuple[int, int, bytes]]) -> None:
    said = cmsg.parse(messages)
    assert 0 <= said.tos <= 255
    assert len(said.local) in (0, 4, 16)
    if len(said.local) == 16:
        header = cmsg.header6(said, bytes(16), 50, 100)
        assert len(header) in (0, 40 + sum(len(data) for _, data in said.extensions))


class Answering:
    """A resolver whose server says anything."""

    def __init__(self, wire: bytes) -> None:
        self._wire = wire

    def resolve(self, name: str, kind: dns.rdatatype.RdataType, search: bool) -> dns.resolver.Answer:
        question = dns.message.make_query(name, kind).question[0]
        message = dns.message.from_wire(self._wire)
        return dns.resolver.Answer(question.name, kind, question.rdclass, message)  # type: ignore[arg-type]


def _answer() -> bytes:
    response = dns.message.make_response(dns.message.make_query("gw.example", "A"))
    response.answer.append(dns.rrset.from_text("gw.example.", 60, "IN", "A", "10.9.0.2"))
    return response.to_wire()


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=120), st.integers(0, 120), st.integers(0, 20))
def test_answers_of_a_name_server(octets: bytes, cut: int, length: int) -> None:
    """dnspython parses them; whatever it raises means that there is no answer."""
    wire = _answer()
    resolver: Any = Answering(wire[:cut] + octets[:length] + wire[cut + length // 2 :])
    found = names._from_dns(resolver, "gw.example")
    assert found is None or all(isinstance(one, IPv4Address | IPv6Address) for one in found.addresses)


# Clients on this host.

COMMANDS = st.sampled_from(
    [
        "status",
        "explain",
        "initiate",
        "rekey",
        "terminate",
        "assign",
        "unassign",
        "reload",
        "version",
        "statsu",
        "",
        "\ud800",
    ]
)
REQUESTS = st.fixed_dictionaries(
    {"command": COMMANDS},
    optional={
        name: JSON | st.sampled_from(["10.0.0.1", "fe80::1%x", "R", 0, -1, 65536, 2**64, True, 0.001])
        for name in ("source", "destination", "protocol", "source_port", "destination_port", "rule", "host",
                     "target", "timeout", "ike", "name", "to")
    },
)  # fmt: skip


@settings(deadline=None, max_examples=200)
@given(REQUESTS)
def test_a_request_is_answered_or_refused(request: dict[str, Any]) -> None:
    request = {**request, "timeout": 0} if request["command"] == "initiate" else request
    if request["command"] == "status":
        return  # it runs nft
    agent: Any = FakeAgent()
    try:
        answer = asyncio.run(_handled(Requests(agent), request))
    except RequestError:
        return
    assert isinstance(answer, dict)


async def _handled(requests: Requests, request: Mapping[str, object]) -> Any:
    return await requests.handle(request)


@settings(deadline=None, max_examples=200)
@given(st.dictionaries(st.sampled_from(["source", "destination", "protocol", "source_port", "x"]), JSON))
def test_a_flow_is_one_or_is_refused(request: dict[str, Any]) -> None:
    try:
        flow = flow_of(request)
    except RequestError:
        return
    assert isinstance(flow, Flow)


async def _echo(request: Mapping[str, object]) -> dict[str, object]:
    return {"echo": request["command"]}


@settings(deadline=None, max_examples=200)
@given(
    st.binary(max_size=100)
    | JSON.map(lambda value: json.dumps(value).encode())
    | st.sampled_from([b"[" * 60_000, b'{"command": "' + b"x" * 9000 + b'"}', b"9" * 60_000, b'{"command": NaN}'])
)
def test_a_line_on_the_control_socket(line: bytes) -> None:
    failed: list[Exception] = []
    server = ControlServer(Path("/nowhere"), _echo, failed=failed.append)

    async def answers() -> list[dict[str, object]]:
        return [answer async for answer in server._answers(line)]

    (answer,) = asyncio.run(answers())
    json.dumps(answer).encode()
    assert answer["ok"] in (True, False)
    assert failed == []


@settings(deadline=None, max_examples=25)
@given(st.binary(max_size=300) | st.binary(max_size=60).map(lambda tail: b"GET /metrics" + tail + b"\r\n\r\n"))
def test_an_http_request_for_metrics(request: bytes) -> None:
    complaints: list[dict[str, Any]] = []

    async def run() -> bytes:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        server = await metrics.serve("127.0.0.1:0", lambda: {"rules": [], "peers": [], "children": []})
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(request)
        writer.write_eof()
        said = await reader.read()
        writer.close()
        server.close()
        return said

    said = asyncio.run(run())
    assert said == b"" or said.startswith((b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 404 Not Found\r\n"))
    assert complaints == []


@settings(deadline=None, max_examples=100)
@given(st.lists(ROUTES | JSON, max_size=4))
def test_what_ip_says_of_links(rows: list[Any]) -> None:
    found = links.parse(rows, "mg0")
    assert found is not None


def test_the_seeds_say_something() -> None:
    assert names.hosts_file(TEXTS["hosts"][1])["gw"] == [ip_address("10.0.0.1")]
    for kind in ("resolv.conf", "lease", "dhclient", "smb.conf"):
        parse, seed = TEXTS[kind]
        assert parse(seed), kind
