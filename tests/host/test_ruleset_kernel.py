"""The kernel's verdicts on real packets, against the naive model of the rules and the SPD."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import subprocess
from dataclasses import replace
from ipaddress import ip_address
from random import Random

import pytest
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment
from scapy.packet import Raw

from policy.selectors import ICMP, ICMPV6
from policy.spd import Snapshot, Spd
from tests.host.test_ruleset import STEER, Packet, Rules, _block, _expected, _model, _packet
from tests.host.test_sockets import in_a_namespace
from tunnel.host.links import Links
from tunnel.host.marks import STEER_MARK
from tunnel.host.ruleset import render, soft_element
from tunnel.host.system import run

PACKETS = 250


def octets(packet: Packet) -> bytes:
    """Return a packet of that flow; a later fragment where it shows no ports though its protocol has some."""
    flow = packet.flow
    body = bytes(24)
    if flow.source_port is not None and flow.destination_port is not None:
        kind = "!HH" if flow.protocol in (6, 17) else "!H"
        ports = (flow.source_port, flow.destination_port)[: len(kind) - 1]
        body = struct.pack(kind, *ports) + body
    ends = {"src": str(flow.source_address), "dst": str(flow.destination_address)}
    later = packet.later_fragment
    if flow.version == 4:
        return bytes(IP(**ends, proto=flow.protocol, id=7, frag=3 if later else 0) / Raw(body))
    if later:
        return bytes(IPv6(**ends) / IPv6ExtHdrFragment(nh=flow.protocol, offset=3) / Raw(body))
    return bytes(IPv6(**ends, nh=flow.protocol) / Raw(body))


def counted() -> dict[str, int]:
    said = json.loads(run(["nft", "-j", "reset", "counters", "table", "inet", "mirrorgate"]))
    return {i["counter"]["name"]: i["counter"]["packets"] for i in said["nftables"] if "counter" in i}


@pytest.mark.slow
@pytest.mark.parametrize("seed", [3, 4, 5, 6])
@in_a_namespace
def test_what_leaves(seed: int) -> None:
    random = Random(seed)
    entries = [each for number in range(random.randrange(3, 9)) for each in _block(random, number)]
    pairs = [
        (ip_address(f"10.0.0.{a}"), ip_address(f"10.0.0.{b}"), 99) for a in range(16) for b in range(0, 16, 3)
    ]
    soft = {(int(one), int(other)) for one, other, _ in pairs}
    links = Links(("veth7",), ("ppp0",))
    script = render(Snapshot(generation=1, spd=Spd(tuple(entries))), "mg0", soft=pairs, links=links)
    assert "vmap" in script
    rules = Rules(script, [(str(one), str(other)) for one, other, _ in pairs])
    counting = script.replace(
        f"meta mark set {STEER_MARK:#x} accept", f"counter name steered meta mark set {STEER_MARK:#x} accept"
    ).replace("  counter blocked {", "  counter steered { }\n  counter blocked {", 1)
    for line in (
        "link add veth7 type veth peer name peer7", "link set peer7 up", "link set veth7 up",
        "route add default dev veth7", "-6 route add default dev veth7",
    ):  # fmt: skip
        subprocess.run(["ip", *line.split()], check=True)
    run(["nft", "-f", "-"], stdin=counting)
    sockets = {
        4: socket.socket(socket.AF_INET, socket.SOCK_RAW, 255),
        6: socket.socket(socket.AF_INET6, socket.SOCK_RAW, 255),
    }
    counted()
    seen: dict[str, int] = {}
    for _ in range(PACKETS):
        packet = replace(_packet(random), iif="veth7", oif="veth7", cast=False)
        flow = packet.flow
        found = _model(entries, packet, True)
        is_soft = flow.version == 4 and (flow.source, flow.destination) in soft
        expected = _expected(found, "output", packet, is_soft)
        assert rules.verdict("output", packet) == expected
        with contextlib.suppress(PermissionError):  # dropped on the way out
            sockets[flow.version].sendto(octets(packet), (str(flow.destination_address), 0))
        counts = counted()
        names = (("steered", STEER), ("blocked", "blocked"))
        verdict = next((said for name, said in names if counts[name]), "accept")
        assert verdict == expected, (packet, found, counts)
        seen[verdict] = seen.get(verdict, 0) + 1
        if verdict == STEER:  # there is no rule that leads into a TUN here: the guard sees it leave
            assert counts["clear_out"] == 1
    assert len(seen) == 3, seen
    for sock in sockets.values():
        sock.close()


@in_a_namespace
def test_a_soft_pair_is_added_changed_and_taken_out() -> None:
    run(["nft", "-f", "-"], stdin=render(Snapshot(generation=0), "mg0"))
    for one, other in (("192.0.2.1", "192.0.2.2"), ("2001:db8::1", "2001:db8::2")):
        local, remote = ip_address(one), ip_address(other)

        def left(version: int = local.version) -> list[int]:
            said = json.loads(run(["nft", "-j", "list", "set", "inet", "mirrorgate", f"soft{version}"]))
            found = next(item["set"] for item in said["nftables"] if "set" in item)
            return [item["elem"]["timeout"] for item in found.get("elem", ())]

        for seconds in (300, 20, 0, 0, 5):
            run(["nft", "-f", "-"], stdin=soft_element(local, remote, seconds))
            assert left() == ([seconds] if seconds else [])


def test_the_packets_of_the_test_are_what_they_should_be() -> None:
    random = Random(1)
    kinds = set()
    for _ in range(200):
        packet = _packet(random)
        data = octets(packet)
        kinds.add((packet.flow.version, packet.flow.protocol, packet.later_fragment))
        assert data[0] >> 4 == packet.flow.version
    assert {(4, 17, True), (6, 17, True), (4, ICMP, False), (6, ICMPV6, False)} <= kinds
