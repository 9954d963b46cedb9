"""Steering and guard as text: read by a small interpreter, compared with the SPD, and accepted by nft itself."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass, replace
from ipaddress import IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.selectors import ANY_PORT, ICMP, ICMPV6, AddressRange, Flow, PortRange, SelectorPair, TrafficSelector
from policy.spd import Disposition, Snapshot, Spd, SpdEntry
from tests.support.packets import ANY4, ANY6, entry, selector_pair, snapshot
from tests.support.policies import SITE_TO_SITE, compiled, policy_text
from tunnel.host.marks import OWN_MARK, STEER_MARK
from tunnel.host.ruleset import remove, render

TUN = "mg0"
STEER = "steer"


@dataclass(frozen=True)
class Packet:
    """What a rule can see. *port* is None for a later fragment; for ICMP it is type * 256 + code."""

    flow: Flow
    iif: str = "lan"
    oif: str = "wan"
    mark: int = 0
    to_this_host: bool = False


class Rules:
    """A naive interpreter of the script."""

    def __init__(self, script: str) -> None:
        self.chains: dict[str, list[str]] = {}
        for name, body in re.findall(r"  chain (\w+) \{\n(.*?)^  \}", script, re.DOTALL | re.MULTILINE):
            lines = [line.strip() for line in body.splitlines()]
            self.chains[name] = [line for line in lines if not line.startswith("type ")]

    def verdict(self, chain: str, packet: Packet) -> str:
        """Return accept, steer, or the counter under which the packet is dropped."""
        for rule in self.chains[chain]:
            words = re.findall(r"\{[^}]*\}|\S+", rule)
            found = self._rule(words, packet)
            if found.startswith("goto "):
                return self.verdict(found.removeprefix("goto "), packet)
            if found:
                return found
        return "accept"

    def _rule(self, words: list[str], packet: Packet) -> str:
        flow = packet.flow
        steer, counter = False, "drop"
        while words:
            match words:
                case ["accept"]:
                    return STEER if steer else "accept"
                case ["drop"]:
                    return counter
                case ["goto", chain]:
                    return f"goto {chain}"
                case ["counter", "name", name, *rest]:
                    counter, holds = name, True
                case ["meta", "mark", "set", value, *rest]:
                    steer, holds = int(value, 16) == STEER_MARK, True
                case ["meta", "mark", value, *rest]:
                    holds = packet.mark == int(value, 16)
                case ["meta", "nfproto", family, *rest]:
                    holds = flow.version == {"ipv4": 4, "ipv6": 6}[family]
                case ["meta", "l4proto", protocols, *rest]:
                    numbers = {"udp": 17, "esp": 50, "ah": 51}
                    holds = flow.protocol in {numbers.get(p) or int(p) for p in _set(protocols)}
                case ["iifname", names, *rest]:
                    holds = packet.iif in {name.strip('"') for name in _set(names)}
                case ["oifname", names, *rest]:
                    holds = packet.oif in {name.strip('"') for name in _set(names)}
                case ["ip" | "ip6" as family, "saddr" | "daddr" as side, addresses, *rest]:
                    address = flow.source if side == "saddr" else flow.destination
                    holds = flow.version == (4 if family == "ip" else 6) and _within(addresses, address)
                case ["udp", "dport", ports, *rest]:
                    holds = flow.protocol == 17 and str(flow.destination_port) in _set(ports)
                case ["th", "sport" | "dport" as side, ports, *rest]:
                    holds = _port(ports, flow.source_port if side == "sport" else flow.destination_port)
                case ["@th,0,16", ports, *rest]:
                    holds = _port(ports, flow.source_port)
                case ["ip", "frag-off", "&", "0x1fff", "!=", "0", *rest]:
                    holds = flow.version == 4 and flow.source_port is None
                case ["frag", "frag-off", "!=", "0", *rest]:
                    holds = flow.version == 6 and flow.source_port is None
                case ["fib", "daddr", "type", kinds, *rest]:
                    holds = packet.to_this_host and "local" in _set(kinds)
                case ["icmpv6", "type", _, *rest]:
                    holds = False  # no packet here is neighbour discovery
                case _:
                    raise AssertionError(f"unknown: {words}")
            if not holds:
                return ""
            words = rest
        return ""


def _set(text: str) -> list[str]:
    return [word.strip() for word in text.strip("{} ").split(",")]


def _port(text: str, port: int | None) -> bool:
    first, _, last = text.partition("-")
    return port is not None and int(first) <= port <= int(last or first)


def _within(text: str, value: int) -> bool:
    first, _, last = text.partition("-")
    if last:
        return int(ip_address(first)) <= value <= int(ip_address(last))
    network = ip_network(first)
    return int(network.network_address) <= value <= int(network.broadcast_address)


def flow(
    source: str, destination: str, protocol: int = 6, sport: int | None = 1000, dport: int | None = 80
) -> Flow:
    one, other = ip_address(source), ip_address(destination)
    return Flow(one.version, protocol, int(one), int(other), sport, dport)


def accepted_by_nft(script: str) -> None:
    """Have nft check the script, where that can be."""
    if os.geteuid() == 0 and shutil.which("nft"):
        done = subprocess.run(["nft", "-c", "-f", "-"], input=script, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{done.stderr}\n{script}"


SITE = compiled(SITE_TO_SITE, "10.1.0.1", "10.9.0.1")
OUT, IN = flow("10.1.0.5", "10.2.0.5"), flow("10.2.0.5", "10.1.0.5")
ELSEWHERE = flow("10.1.0.5", "192.0.2.7")


def test_site_to_site() -> None:
    script = render(SITE, TUN)
    accepted_by_nft(script)
    rules = Rules(script)
    assert rules.verdict("prerouting", Packet(OUT)) == STEER
    assert rules.verdict("prerouting", Packet(IN, iif="wan")) == "clear_in"
    assert rules.verdict("prerouting", Packet(IN, iif=TUN)) == "accept"
    assert rules.verdict("prerouting", Packet(ELSEWHERE)) == "accept"
    assert rules.verdict("output", Packet(OUT)) == STEER
    assert rules.verdict("output", Packet(OUT, mark=OWN_MARK)) == "accept"
    assert rules.verdict("postrouting", Packet(OUT)) == "clear_out"
    assert rules.verdict("postrouting", Packet(OUT, oif=TUN)) == "accept"
    assert rules.verdict("postrouting", Packet(OUT, mark=OWN_MARK)) == "accept"
    assert rules.verdict("postrouting", Packet(IN, iif=TUN, oif="lan")) == "accept"


def test_the_table_is_replaced_in_one_transaction_and_has_no_owner() -> None:
    script = render(SITE, TUN)
    assert script.startswith("add table inet mirrorgate\ndelete table inet mirrorgate\ntable inet mirrorgate {\n")
    assert "owner" not in script
    assert script.count("{") == script.count("}")
    accepted_by_nft(remove())


def test_clear_traffic_to_the_host_itself_is_not_steered_past_the_guard() -> None:
    # The kernel's local table comes before the rule on the mark: a mark would let the packet in.
    script = render(snapshot(entry("all", ANY4)), TUN)
    accepted_by_nft(script)
    rules = Rules(script)
    assert rules.verdict("prerouting", Packet(OUT, to_this_host=True)) == "clear_in"
    assert rules.verdict("prerouting", Packet(OUT)) == STEER
    assert rules.verdict("prerouting", Packet(OUT, iif="lo", to_this_host=True)) == "accept"


def test_what_was_opened_for_any_to_any_may_go_on_to_the_lan() -> None:
    rules = Rules(render(snapshot(entry("all", ANY4)), TUN))
    assert rules.verdict("prerouting", Packet(IN, iif=TUN)) == "accept"
    assert rules.verdict("postrouting", Packet(IN, iif=TUN, oif="lan")) == "accept"
    assert rules.verdict("postrouting", Packet(IN, iif="wan", oif="lan")) == "clear_out"


@pytest.mark.parametrize("protocol", [50, 51])
def test_ike_and_esp_to_this_host_pass_whatever_the_policy(protocol: int) -> None:
    rules = Rules(render(snapshot(), TUN))
    for port in (500, 4500):
        ike = flow("192.0.2.1", "10.9.0.1", 17, 500, port)
        assert rules.verdict("prerouting", Packet(ike, to_this_host=True)) == "accept"
        assert rules.verdict("prerouting", Packet(ike)) == STEER
    esp = flow("192.0.2.1", "10.9.0.1", protocol, None, None)
    assert rules.verdict("prerouting", Packet(esp, to_this_host=True)) == "accept"


def test_dispositions_and_directions() -> None:
    pair = selector_pair("10.1.0.0/24", "10.2.0.0/24")
    for disposition, out, back, leaves in (
        (Disposition.BYPASS, "accept", "accept", "accept"),
        (Disposition.DISCARD, "blocked", "blocked", "blocked"),
        (Disposition.PROTECT, STEER, "clear_in", "clear_out"),
    ):
        both = entry("e", pair, disposition)
        rules = Rules(render(snapshot(both), TUN))
        assert rules.verdict("prerouting", Packet(OUT)) == rules.verdict("output", Packet(OUT)) == out
        assert rules.verdict("prerouting", Packet(IN)) == back
        assert rules.verdict("arrived", Packet(IN)) == back
        assert rules.verdict("postrouting", Packet(OUT)) == leaves
        only_in = Rules(render(snapshot(replace(both, outbound=False)), TUN))
        assert [only_in.verdict(c, Packet(OUT)) for c in ("prerouting", "output", "postrouting")] == ["accept"] * 3
        assert only_in.verdict("prerouting", Packet(IN)) == back
        only_out = Rules(render(snapshot(replace(both, inbound=False)), TUN))
        assert only_out.verdict("prerouting", Packet(IN)) == only_out.verdict("arrived", Packet(IN)) == "accept"
        assert only_out.verdict("postrouting", Packet(OUT)) == leaves


def test_inbound_clear_lets_in_and_never_out() -> None:
    one = entry("e", selector_pair("10.1.0.0/24", "10.2.0.0/24"))
    assert one.protection is not None
    soft = replace(one, protection=replace(one.protection, inbound_clear=True))
    rules = Rules(render(snapshot(soft), TUN))
    assert rules.verdict("prerouting", Packet(IN)) == rules.verdict("arrived", Packet(IN)) == "accept"
    assert rules.verdict("postrouting", Packet(OUT)) == "clear_out"


def ported(source: PortRange, destination: PortRange, protocol: int = 6, version: int = 4) -> SelectorPair:
    nets = ("10.1.0.0/24", "10.2.0.0/24") if version == 4 else ("fd00:1::/64", "fd00:2::/64")
    here, there = (AddressRange.network(ip_network(net)) for net in nets)
    return SelectorPair(TrafficSelector(protocol, here, source), TrafficSelector(protocol, there, destination))


WEB = PortRange(80, 80)


def test_ports_and_later_fragments() -> None:
    fragment = replace(OUT, source_port=None, destination_port=None)
    for disposition, expected in ((Disposition.PROTECT, STEER), (Disposition.DISCARD, "blocked")):
        rules = Rules(render(snapshot(entry("web", ported(ANY_PORT, WEB), disposition)), TUN))
        assert rules.verdict("output", Packet(OUT)) == expected
        assert rules.verdict("output", Packet(replace(OUT, destination_port=81))) == "accept"
        assert rules.verdict("output", Packet(replace(OUT, protocol=17))) == "accept"
        assert rules.verdict("output", Packet(fragment)) == expected
        assert rules.verdict("postrouting", Packet(fragment)) != "accept"
        back = flow("10.2.0.5", "10.1.0.5", 6, 80, 1000)
        assert rules.verdict("prerouting", Packet(back)) == ("clear_in" if expected == STEER else "blocked")
    permitted = Rules(
        render(snapshot(entry("web", ported(ANY_PORT, WEB), Disposition.BYPASS), entry("rest", ANY4)), TUN)
    )
    assert permitted.verdict("output", Packet(OUT)) == "accept"
    assert permitted.verdict("output", Packet(fragment)) == STEER


def test_port_ranges_icmp_and_address_ranges() -> None:
    ranged = SelectorPair(
        TrafficSelector(
            17, AddressRange.of(ip_address("10.1.0.3"), ip_address("10.1.0.9")), PortRange(1024, 65535)
        ),
        TrafficSelector(17, AddressRange.of(ip_address("10.2.0.5"))),
    )
    echo = ported(PortRange(0x0800, 0x08FF), PortRange(0x0800, 0x08FF), ICMP)
    script = render(snapshot(entry("ranged", ranged), entry("echo", echo)), TUN)
    accepted_by_nft(script)
    rules = Rules(script)
    assert "ip saddr 10.1.0.3-10.1.0.9 ip daddr 10.2.0.5 meta l4proto 17 th sport 1024-65535" in script
    assert rules.verdict("output", Packet(flow("10.1.0.9", "10.2.0.5", 17, 1024, 9))) == STEER
    assert rules.verdict("output", Packet(flow("10.1.0.9", "10.2.0.5", 17, 1023, 9))) == "accept"
    assert rules.verdict("output", Packet(flow("10.1.0.10", "10.2.0.5", 17, 1024, 9))) == "accept"
    assert rules.verdict("output", Packet(flow("10.1.0.7", "10.2.0.7", ICMP, 0x0800, 0x0800))) == STEER
    assert rules.verdict("output", Packet(flow("10.1.0.7", "10.2.0.7", ICMP, 0x0000, 0x0000))) == "accept"


def test_ipv6() -> None:
    echo = ported(PortRange(0x8000, 0x80FF), PortRange(0x8000, 0x80FF), ICMPV6, 6)
    entries = (entry("web", ported(ANY_PORT, WEB, 6, 6)), entry("echo", echo), entry("all", ANY6))
    script = render(snapshot(*entries), TUN)
    accepted_by_nft(script)
    rules = Rules(script)
    assert rules.verdict("output", Packet(flow("fd00:1::5", "fd00:2::5"))) == STEER
    assert rules.verdict("output", Packet(flow("fd00:1::5", "fd00:2::5", 6, None, None))) == STEER
    assert rules.verdict("output", Packet(OUT)) == "accept"
    # Neighbour discovery comes first in every chain that a packet of a link passes.
    for chain in ("prerouting", "output", "postrouting"):
        at = [number for number, rule in enumerate(rules.chains[chain]) if rule.startswith("icmpv6 type")]
        first = next(number for number, rule in enumerate(rules.chains[chain]) if "nfproto" in rule)
        assert len(at) == 1
        assert at[0] < first


def test_hub_sends_what_one_spoke_sent_on_into_the_other_tunnel() -> None:
    hub = compiled(
        policy_text(
            ("One", "192.0.2.1", 'source = "10.0.0.0/16", destination = "10.0.1.0/24"'),
            ("Two", "192.0.2.2", 'source = "10.0.0.0/16", destination = "10.0.2.0/24"'),
            ("Three", "192.0.2.3#three", 'source = "10.0.0.0/24", destination = "10.0.3.0/24", protocol = "tcp"'),
        ),
        "10.0.0.1", "192.0.2.9",
    )  # fmt: skip
    script = render(hub, TUN)
    accepted_by_nft(script)
    rules = Rules(script)
    across = Packet(flow("10.0.1.5", "10.0.2.5"), iif=TUN)
    assert rules.verdict("prerouting", across) in (STEER, "accept")
    assert rules.verdict("postrouting", replace(across, oif=TUN)) == "accept"
    assert rules.verdict("prerouting", Packet(flow("10.0.1.5", "10.0.0.7"), iif=TUN)) == "accept"
    assert rules.verdict("prerouting", Packet(flow("10.0.3.5", "10.0.0.7"), iif=TUN)) == "accept"
    assert rules.verdict("prerouting", Packet(flow("10.0.3.5", "10.0.0.7"), iif="wan")) == "clear_in"


def test_hub_with_filters_that_do_not_overlap_steers_between_spokes() -> None:
    one, two = entry("one", ported(ANY_PORT, WEB)), entry("two", ported(WEB, ANY_PORT).mirror())
    assert two.protection is not None
    hub = snapshot(one, replace(two, protection=replace(two.protection, peer="other")))
    rules = Rules(render(hub, TUN))
    # From the peer of the second entry (10.1) to the peer of the first one (10.2).
    assert rules.verdict("prerouting", Packet(OUT, iif=TUN)) == STEER
    assert rules.verdict("prerouting", Packet(OUT, iif=TUN, to_this_host=True)) == "accept"


def test_no_policy_steers_and_guards_nothing() -> None:
    script = render(Snapshot(generation=0), TUN)
    accepted_by_nft(script)
    rules = Rules(script)
    for chain in ("prerouting", "output", "postrouting"):
        assert rules.verdict(chain, Packet(OUT)) == "accept"


# Any policy, any packet.

_HOSTS = {4: [0x0A000000 + n for n in range(8)], 6: [int(IPv6Address("fd00::")) + n for n in range(8)]}
_PORTS = [0, 80, 81, 1023, 1024, 65535]


@st.composite
def _ranges(draw: st.DrawFn, version: int) -> AddressRange:
    if draw(st.integers(0, 5)) == 0:
        return AddressRange.any(version)
    one, other = sorted((draw(st.sampled_from(_HOSTS[version])), draw(st.sampled_from(_HOSTS[version]))))
    return AddressRange(version, one, other)


@st.composite
def _port_ranges(draw: st.DrawFn) -> PortRange:
    if draw(st.booleans()):
        return ANY_PORT
    one, other = sorted((draw(st.sampled_from(_PORTS)), draw(st.sampled_from(_PORTS))))
    return PortRange(one, other)


@st.composite
def _entries(draw: st.DrawFn) -> SpdEntry:
    version = draw(st.sampled_from((4, 6)))
    protocol = draw(st.sampled_from((0, 6, 17, ICMP if version == 4 else ICMPV6)))
    here = there = ANY_PORT
    if protocol in (6, 17):
        here, there = draw(_port_ranges()), draw(_port_ranges())
    elif protocol:
        here = there = draw(_port_ranges())
    pair = SelectorPair(
        TrafficSelector(protocol, draw(_ranges(version)), here),
        TrafficSelector(protocol, draw(_ranges(version)), there),
    )
    made = entry("e", pair, draw(st.sampled_from(Disposition)))
    direction = draw(st.integers(0, 3))
    return replace(made, outbound=direction != 1, inbound=direction != 2)


@st.composite
def _flows(draw: st.DrawFn) -> Flow:
    version = draw(st.sampled_from((4, 6)))
    protocol = draw(st.sampled_from((6, 17, 47, ICMP if version == 4 else ICMPV6)))
    one, other = draw(st.sampled_from(_HOSTS[version])), draw(st.sampled_from(_HOSTS[version]))
    ports: tuple[int | None, int | None] = (None, None)
    if protocol in (6, 17):
        ports = draw(st.sampled_from(_PORTS)), draw(st.sampled_from(_PORTS))
    elif protocol != 47:
        ports = (draw(st.sampled_from(_PORTS)),) * 2
    return Flow(version, protocol, one, other, *ports)


_STEERED = {Disposition.BYPASS: "accept", Disposition.DISCARD: "blocked", Disposition.PROTECT: STEER}
_LET_IN = {Disposition.BYPASS: "accept", Disposition.DISCARD: "blocked", Disposition.PROTECT: "clear_in"}
_LET_OUT = {Disposition.BYPASS: "accept", Disposition.DISCARD: "blocked", Disposition.PROTECT: "clear_out"}


@settings(max_examples=120, deadline=None)
@given(st.lists(_entries(), max_size=5), st.lists(_flows(), min_size=1, max_size=8))
def test_the_rules_say_what_the_spd_says(entries: list[SpdEntry], flows: list[Flow]) -> None:
    spd = Spd(tuple(entries))
    rules = Rules(render(Snapshot(generation=1, policy="p", spd=spd), TUN))
    for one in flows:
        if one.protocol == 47 and any(e.selectors.protocol == 0 and _has_ports(e) for e in entries):
            continue
        out, back = spd.lookup_outbound(one), spd.lookup_inbound(one)
        expected_out = "accept" if out is None else _STEERED[out.disposition]
        expected_in = "accept" if back is None else _LET_IN[back.disposition]
        assert rules.verdict("output", Packet(one)) == expected_out
        assert rules.verdict("prerouting", Packet(one, to_this_host=True)) == expected_in
        assert rules.verdict("postrouting", Packet(one)) == (
            "accept" if out is None else _LET_OUT[out.disposition]
        )
        # Transit: the first entry that matches in either form decides.
        first = next((e for e in entries if e in (out, back)), None)
        if first is None:
            assert rules.verdict("prerouting", Packet(one)) == "accept"
        else:
            assert rules.verdict("prerouting", Packet(one)) in (expected_out, expected_in)
        if out is not None and out.disposition is not Disposition.BYPASS:
            fragment = replace(one, source_port=None, destination_port=None)
            if one.protocol in (6, 17) and not any(e.disposition is Disposition.BYPASS for e in entries):
                assert rules.verdict("postrouting", Packet(fragment)) != "accept"


def _has_ports(one: SpdEntry) -> bool:
    return not (one.selectors.local.ports.is_any and one.selectors.remote.ports.is_any)
