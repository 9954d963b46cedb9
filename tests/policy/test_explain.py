"""An operator can always see which filter decides, and why the others do not."""

from __future__ import annotations

import json
from ipaddress import ip_address

import pytest

from policy.explain import Direction, explain, flow_text
from policy.order import effective_order
from policy.selectors import Flow
from policy.spd import Snapshot
from tests.support.policies import SITE_TO_SITE, changed, compiled, policy_text

OWN = ("10.1.0.1", "192.0.2.1")


def flow(protocol: int, source: str, destination: str, *ports: int) -> Flow:
    one, other = ip_address(source), ip_address(destination)
    return Flow(one.version, protocol, int(one), int(other), *ports)


def test_what_is_protected() -> None:
    said = explain(compiled(SITE_TO_SITE, *OWN), flow(6, "10.1.0.5", "10.2.0.9", 40000, 443))
    assert said.to_dict() == {
        "flow": "tcp 10.1.0.5:40000 -> 10.2.0.9:443",
        "direction": "outbound",
        "verdict": "protect",
        "entry": "LAN to LAN/LAN A and LAN B/1",
        "filter": "1: 10.1.0.0/24 <-> 10.2.0.0/24",
        "filter_list": "LAN A and LAN B",
        "filter_action": "Require ESP",
        "rule": "LAN to LAN",
        "where": "/etc/mg/a.toml:21:1",
        "why": 'filter 1: 10.1.0.0/24 <-> 10.2.0.0/24 of "LAN A and LAN B" is the most specific that matches, and '
        '"Require ESP" sends it through the tunnel to 10.9.0.2#gw-b.example',
        "considered": [],
    }
    json.dumps(said.to_dict())


@pytest.mark.parametrize(
    ("source", "destination", "direction"),
    [
        ("10.1.0.5", "10.2.0.9", Direction.OUTBOUND),  # forwarded: the direction in which an entry matches
        ("10.2.0.9", "10.1.0.5", Direction.INBOUND),
        ("10.1.0.1", "172.16.0.1", Direction.OUTBOUND),  # our own address
        ("172.16.0.1", "10.1.0.1", Direction.INBOUND),
        ("172.16.0.1", "172.16.0.2", Direction.OUTBOUND),  # nobody's
    ],
)
def test_directions(source: str, destination: str, direction: Direction) -> None:
    assert explain(compiled(SITE_TO_SITE, *OWN), flow(17, source, destination, 1, 2)).direction is direction


def test_what_arrives() -> None:
    packet = flow(1, "10.2.0.9", "10.1.0.5")
    said = explain(compiled(SITE_TO_SITE, *OWN), packet)
    assert (said.verdict, said.flow) == ("protect", "icmp 10.2.0.9 -> 10.1.0.5")
    assert said.why.endswith("accepts it from the tunnel to 10.9.0.2#gw-b.example only")
    clear = explain(
        compiled(changed(SITE_TO_SITE, ("inbound_clear = false", "inbound_clear = true")), *OWN), packet
    )
    assert clear.why.endswith("only; in clear it is accepted too (inbound_clear)")


def test_what_no_filter_matches() -> None:
    said = explain(compiled(SITE_TO_SITE, *OWN), flow(6, "10.1.0.5", "10.3.0.9", 1, 2))
    assert (said.verdict, said.entry) == ("no policy", None)
    assert "no filter of the policy matches" in said.why
    assert "no policy is assigned" in explain(Snapshot(generation=1), flow(6, "10.1.0.5", "10.3.0.9")).why


NEAR = policy_text(
    (
        "Web",
        "Pass",
        'source = "10.1.0.0/24", destination = "10.2.0.0/24", protocol = "tcp", destination_port = 80',
    ),
    ("One way", "Drop", 'source = "10.1.0.0/24", destination = "10.2.0.9", mirrored = false'),
    ("Six", "Drop", 'source = "any", destination = "2001:db8::/32"'),
    ("All", "10.9.0.2", 'source = "10.0.0.0/8", destination = "10.0.0.0/8"'),
)


@pytest.mark.parametrize(
    ("packet", "verdict", "considered"),
    [
        (
            flow(6, "10.1.0.5", "10.2.0.8", 9, 80),
            "bypass",
            [
                ("All", "matches too, but is less specific"),
                ("One way", "destination: wanted 10.2.0.9, got 10.2.0.8"),
                ("Six", "family: wanted IPv6, got IPv4"),
            ],
        ),
        (
            flow(6, "10.1.0.5", "10.2.0.8", 9, 81),
            "protect",
            [
                ("One way", "destination: wanted 10.2.0.9, got 10.2.0.8"),
                ("Six", "family: wanted IPv6, got IPv4"),
                ("Web", "destination port: wanted 80, got 81"),
            ],
        ),
        (
            flow(17, "10.1.0.5", "10.2.0.9", 9, 80),
            "discard",
            [
                ("All", "matches too, but is less specific"),
                ("Six", "family: wanted IPv6, got IPv4"),
                ("Web", "protocol: wanted tcp, got udp"),
            ],
        ),
        (
            flow(6, "10.2.0.9", "10.1.0.5", 80, 9),
            "bypass",
            [
                ("All", "matches too, but is less specific"),
                ("One way", "direction: the filter is not mirrored and is for packets going out"),
                ("Six", "family: wanted IPv6, got IPv4"),
            ],
        ),
    ],
)
def test_what_was_considered(packet: Flow, verdict: str, considered: list[tuple[str, str]]) -> None:
    direction = Direction.INBOUND if str(packet).startswith("protocol 6 10.2.0.9") else Direction.OUTBOUND
    said = explain(compiled(NEAR, *OWN), packet, direction)
    assert said.verdict == verdict
    assert sorted((other.rule, other.why_not) for other in said.considered) == considered


def test_the_nearest_come_first_and_no_more_than_five() -> None:
    rows = "\n".join(f'source = "10.1.0.0/24", destination = "10.2.0.{i}", protocol = "udp"' for i in range(9))
    text = policy_text(
        ("Many", "Drop", rows), ("Port", "Pass", 'source = "10.1.0.0/24", destination = "10.3.0.0/16"')
    )
    said = explain(compiled(text, *OWN), flow(6, "10.1.0.5", "10.2.0.200", 1, 2))
    assert len(said.considered) == 5
    assert said.considered[0].rule == "Port"
    assert said.considered[0].why_not == "destination: wanted 10.3.0.0/16, got 10.2.0.200"


def test_a_port_that_cannot_be_seen() -> None:
    said = explain(compiled(NEAR, *OWN), flow(6, "10.1.0.5", "10.2.0.8"), Direction.OUTBOUND)
    assert ("Web", "destination port: wanted 80, got none") in {(c.rule, c.why_not) for c in said.considered}


def test_a_tunnel_without_an_address_says_so() -> None:
    closed = compiled(changed(SITE_TO_SITE, ('"10.9.0.2"', '"gw-b.example"')), *OWN, names={})
    said = explain(closed, flow(6, "10.1.0.5", "10.2.0.9", 1, 2))
    assert said.verdict == "discard"
    assert said.why.endswith('"Require ESP" drops: its tunnel endpoint has no address now')


def test_flows_of_the_sixth_version() -> None:
    assert flow_text(flow(58, "2001:db8::1", "2001:db8::2")) == "icmpv6 2001:db8::1 -> 2001:db8::2"
    assert flow_text(flow(6, "2001:db8::1", "2001:db8::2", 1, 2)) == "tcp [2001:db8::1]:1 -> [2001:db8::2]:2"


def test_the_effective_order_is_numbered() -> None:
    order = effective_order(compiled(NEAR, *OWN))
    assert [(row.number, row.rule, row.action, row.direction) for row in order] == [
        (1, "One way", "block", "out"),
        (2, "Web", "permit", "both"),
        (3, "Six", "block", "both"),
        (4, "All", "negotiate", "both"),
    ]
    assert (order[1].protocol, order[1].local, order[1].remote) == ("tcp", "10.1.0.0/24", "10.2.0.0/24 port 80")
    assert (order[2].local, order[3].peer, order[1].peer) == ("any", "10.9.0.2", "")
