"""Steering and guard as text: read by a small interpreter, compared with the SPD, and accepted by nft itself."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv6Address, ip_address, ip_network
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.model import ConnectionType
from policy.selectors import (
    ANY_PORT,
    ICMP,
    ICMPV6,
    OPAQUE_PORT,
    PORT_PROTOCOLS,
    AddressRange,
    Flow,
    PortRange,
    SelectorPair,
    TrafficSelector,
)
from policy.spd import Disposition, Mode, Snapshot, Spd, SpdEntry
from tests.support.packets import ANY4, ANY6, entry, selector_pair, snapshot
from tests.support.policies import SITE_TO_SITE, compiled, policy_text
from tunnel.host.links import Links
from tunnel.host.marks import OWN_MARK, STEER_MARK
from tunnel.host.rows import MAP_FROM
from tunnel.host.ruleset import remove, render, render_held

TUN = "mg0"
STEER = "steer"


@dataclass(frozen=True)
class Packet:
    """What a rule can see. *port* is None for a later fragment; for ICMP it is type * 256 + code.

    *route* is the interface that the kernel would choose; *to* the type of the destination address.
    """

    flow: Flow
    iif: str = "lan"
    oif: str = "wan"
    mark: int = 0
    to_this_host: bool = False
    cast: bool = False

    @property
    def kind(self) -> str:
        """The type of the destination address."""
        return "local" if self.to_this_host else "multicast" if self.cast else "unicast"

    @property
    def ports_shown(self) -> bool:
        """Whether the first octets behind the IP header are there to see."""
        return self.flow.source_port is not None

    @property
    def later_fragment(self) -> bool:
        """Whether it is one: its protocol has ports, and they are not shown."""
        return self.flow.source_port is None and self.flow.protocol in _SHOWING


_SHOWING = PORT_PROTOCOLS | {ICMP, ICMPV6}
Found = str | Callable[[Packet], str]
#: A rule: the tests that all must hold, and what follows then.
Rule = tuple[list[Callable[[Packet], bool]], Found]
_WORDS = re.compile(r"\{[^}]*\}|\S+")


class Rules:
    """A naive interpreter of the script: rules are parsed once and tried one after the other."""

    def __init__(self, script: str, soft: Sequence[tuple[str, str]] = ()) -> None:
        self._soft = {(int(ip_address(one)), int(ip_address(other))) for one, other in soft}
        self._maps: dict[str, tuple[str, dict[str, str]]] = {}
        for name, key, body in re.findall(
            r"  map (\w+) \{\n    typeof ([^\n]*) : verdict\n    elements = \{\n(.*?)    \}\n  \}",
            script,
            re.DOTALL,
        ):
            pairs = [line.strip().rstrip(",").rsplit(" : ", 1) for line in body.splitlines()]
            assert len(dict(pairs)) == len(pairs)
            self._maps[name] = key, dict(pairs)
        self.chains: dict[str, list[str]] = {}
        for name, body in re.findall(r"  chain (\w+) \{\n(.*?)^  \}", script, re.DOTALL | re.MULTILINE):
            lines = [line.strip() for line in body.splitlines()]
            self.chains[name] = [line for line in lines if not line.startswith("type ")]
        self._rules = {name: [self._parse(line) for line in lines] for name, lines in self.chains.items()}

    def verdict(self, chain: str, packet: Packet) -> str:
        """Return accept, steer, or the counter under which the packet is dropped."""
        for tests, found in self._rules[chain]:
            if all(test(packet) for test in tests):
                said = found if isinstance(found, str) else found(packet)
                if said.startswith("goto "):
                    return self.verdict(said.removeprefix("goto "), packet)
                if said:
                    return said
        return "accept"

    def _parse(self, line: str) -> Rule:
        words = _WORDS.findall(line)
        if "vmap" in words:
            at, start = words.index("vmap"), words.index("nfproto") + 2
            start += {"ip frag-off": 6, "frag frag-off": 4}.get(" ".join(words[start : start + 2]), 0)
            tests, _ = self._tests(words[:start])
            return tests, self._look_up(" ".join(words[start:at]), words[at + 1].removeprefix("@"))
        return self._tests(words)

    def _look_up(self, expression: str, name: str) -> Callable[[Packet], str]:
        key, elements = self._maps[name]
        fields = [field.strip() for field in expression.split(" . ")]
        assert [field.split(" & ")[0] for field in fields] == key.split(" . ")
        values = [_value(field) for field in fields]

        def found(packet: Packet) -> str:
            got = [value(packet) for value in values]
            return "" if None in got else elements.get(" . ".join(map(str, got)), "")

        return found

    def _tests(self, words: list[str]) -> Rule:
        tests: list[Callable[[Packet], bool]] = []
        verdict = ""
        counter = "drop"
        while words:
            match words:
                case ["accept"]:
                    return tests, verdict or "accept"
                case ["drop"]:
                    return tests, counter
                case ["goto", chain]:
                    return tests, f"goto {chain}"
                case ["counter", "name", name, *rest]:
                    counter = name
                case ["meta", "mark", "set", value, *rest]:
                    verdict = STEER if int(value, 16) == STEER_MARK else ""
                case ["ip" | "ip6", _, ".", "ip" | "ip6", _, str(name), *rest] if name.startswith("@soft"):
                    tests.append(self._is_soft(words[0], words[1] == "saddr"))
                case _:
                    test, rest = _test(words)
                    tests.append(test)
            words = rest
        return tests, ""

    def _is_soft(self, family: str, outbound: bool) -> Callable[[Packet], bool]:
        def test(packet: Packet) -> bool:
            flow = packet.flow
            pair = (flow.source, flow.destination) if outbound else (flow.destination, flow.source)
            return flow.version == (4 if family == "ip" else 6) and pair in self._soft

        return test


def _value(field: str) -> Callable[[Packet], object]:
    """Return what reads a field of a map's key from a packet; None when the packet has none."""
    name, _, mask = field.partition(" & ")
    match name.split():
        case ["ip" | "ip6" as family, side]:
            version = 4 if family == "ip" else 6
            bits = int(ip_address(mask)) if mask else 2**128 - 1

            def address(packet: Packet) -> object:
                flow = packet.flow
                if flow.version != version:
                    return None
                at = (flow.source if side == "saddr" else flow.destination) & bits
                return AddressRange(version, at, at).first

            return address
        case ["meta", "l4proto"]:
            return lambda packet: packet.flow.protocol
        case ["th", "sport"]:
            return lambda packet: packet.flow.source_port if packet.ports_shown else None
        case ["th", "dport"]:
            return lambda packet: packet.flow.destination_port if packet.ports_shown else None
    raise AssertionError(f"unknown: {field}")


def _test(words: list[str]) -> tuple[Callable[[Packet], bool], list[str]]:
    """Return the test that a rule opens with, and the rest of the rule."""
    match words:
        case ["meta", "mark", value, *rest]:
            mark = int(value, 16)
            return (lambda packet: packet.mark == mark), rest
        case ["meta", "nfproto", family, *rest]:
            version = {"ipv4": 4, "ipv6": 6}[family]
            return (lambda packet: packet.flow.version == version), rest
        case ["meta", "l4proto", "!=", protocols, *rest]:
            others = _protocols(protocols)
            return (lambda packet: packet.flow.protocol not in others), rest
        case ["meta", "l4proto", protocols, *rest]:
            numbers = _protocols(protocols)
            return (lambda packet: packet.flow.protocol in numbers), rest
        case ["iifname", names, *rest]:
            wanted = _names(names)
            return (lambda packet: packet.iif in wanted), rest
        case ["oifname", names, *rest] | ["fib", "daddr", "oifname", names, *rest]:
            wanted = _names(names)
            return (lambda packet: packet.oif in wanted), rest
        case ["ip" | "ip6" as family, "saddr" | "daddr" as side, addresses, *rest]:
            version, (first, last) = 4 if family == "ip" else 6, _span(addresses)

            def within(packet: Packet) -> bool:
                flow = packet.flow
                return flow.version == version and (
                    first <= (flow.source if side == "saddr" else flow.destination) <= last
                )

            return within, rest
        case ["udp", "dport", ports, *rest]:
            both = {int(port) for port in _set(ports)}
            return (lambda packet: packet.flow.protocol == 17 and packet.flow.destination_port in both), rest
        case ["th", "sport", ports, *rest] | ["@th,0,16", ports, *rest]:
            low, high = _port_span(ports)
            return (lambda packet: packet.ports_shown and low <= (packet.flow.source_port or 0) <= high), rest
        case ["th", "dport", ports, *rest]:
            low, high = _port_span(ports)
            return (lambda packet: packet.ports_shown and low <= (packet.flow.destination_port or 0) <= high), rest
        case ["ip", "frag-off", "&", "0x1fff", "!=", "0", *rest]:
            return (lambda packet: packet.flow.version == 4 and packet.later_fragment), rest
        case ["frag", "nexthdr", protocols, *rest]:
            carried = _protocols(protocols)
            return (lambda packet: packet.flow.version == 6 and packet.flow.protocol in carried), rest
        case ["frag", "frag-off", "!=", "0", *rest]:
            return (lambda packet: packet.flow.version == 6 and packet.later_fragment), rest
        case ["fib", "daddr", "type", kinds, *rest]:
            found = set(_set(kinds))
            return (lambda packet: packet.kind in found), rest
        case ["icmpv6", "type", _, *rest]:
            return (lambda packet: False), rest  # no packet here is neighbour discovery
        case ["ip6", "hoplimit", _, *rest]:
            return (lambda packet: True), rest
    raise AssertionError(f"unknown: {words}")


def _set(text: str) -> list[str]:
    return [word.strip() for word in text.strip("{} ").split(",")]


def _names(text: str) -> set[str]:
    return {name.strip('"') for name in _set(text)}


def _protocols(text: str) -> set[int]:
    names = {"udp": 17, "esp": 50, "ah": 51}
    return {names.get(word) or int(word) for word in _set(text)}


def _port_span(text: str) -> tuple[int, int]:
    first, _, last = text.partition("-")
    return int(first), int(last or first)


def _span(text: str) -> tuple[int, int]:
    first, _, last = text.partition("-")
    if last:
        return int(ip_address(first)), int(ip_address(last))
    network = ip_network(first)
    return int(network.network_address), int(network.broadcast_address)


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
        assert len(at) == 2  # and listener discovery
        assert at[-1] < first


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


def protecting(pair: SelectorPair, **protection: Any) -> SpdEntry:
    made = entry(f"e{pair}", pair)
    assert made.protection is not None
    return replace(made, protection=replace(made.protection, **protection))


# Soft SAs


def test_a_soft_pair_passes_in_clear_where_its_entry_may_and_in_its_place() -> None:
    blocked = entry("b", selector_pair("10.1.0.0/24", "10.2.0.0/24", 6, ANY_PORT, WEB), Disposition.DISCARD)
    may = protecting(selector_pair("10.1.0.0/24", "10.2.0.0/24"), fallback_clear=True)
    must = protecting(selector_pair("10.1.0.0/24", "10.0.0.0/8"))
    pairs = [(ip_address(a), ip_address(b), 42) for a, b in (("10.1.0.5", "10.2.0.5"), ("10.1.0.5", "10.3.0.5"))]
    script = render(snapshot(blocked, may, must), TUN, soft=pairs)
    assert "10.1.0.5 . 10.2.0.5 timeout 42s, 10.1.0.5 . 10.3.0.5 timeout 42s" in script
    accepted_by_nft(script)
    known = [(str(a), str(b)) for a, b, _ in pairs]
    rules, strangers = Rules(script, known), Rules(script)
    out, back = flow("10.1.0.5", "10.2.0.5", 17), flow("10.2.0.5", "10.1.0.5", 17)
    for chain in ("prerouting", "output"):
        assert rules.verdict(chain, Packet(out)) == "accept"
        assert strangers.verdict(chain, Packet(out)) == STEER
    assert rules.verdict("postrouting", Packet(out)) == "accept"
    assert strangers.verdict("postrouting", Packet(out)) == "clear_out"
    assert rules.verdict("prerouting", Packet(back)) == rules.verdict("arrived", Packet(back)) == "accept"
    assert strangers.verdict("arrived", Packet(back)) == "clear_in"
    assert rules.verdict("output", Packet(OUT)) == "blocked"  # tcp 80: the entry before says so
    other = flow("10.1.0.5", "10.3.0.5")  # whose entry never falls back
    assert rules.verdict("output", Packet(other)) == STEER
    assert rules.verdict("postrouting", Packet(other)) == "clear_out"


def test_the_pair_of_a_set_is_ordered() -> None:
    may = protecting(selector_pair("10.0.0.0/8", "10.0.0.0/8"), fallback_clear=True)
    rules = Rules(render(snapshot(may), TUN), [("10.1.0.5", "10.2.0.5")])
    assert rules.verdict("output", Packet(OUT)) == "accept"
    assert rules.verdict("output", Packet(IN)) == STEER


def test_soft_pairs_of_ipv6() -> None:
    may = protecting(selector_pair("fd00:1::/64", "fd00:2::/64"), fallback_clear=True)
    pair = (ip_address("fd00:1::5"), ip_address("fd00:2::5"), 300)
    script = render(snapshot(may), TUN, soft=[pair])
    accepted_by_nft(script)
    rules = Rules(script, [("fd00:1::5", "fd00:2::5")])
    assert rules.verdict("output", Packet(flow("fd00:1::5", "fd00:2::5"))) == "accept"
    assert rules.verdict("arrived", Packet(flow("fd00:2::5", "fd00:1::5"))) == "accept"
    assert rules.verdict("arrived", Packet(flow("fd00:2::6", "fd00:1::5"))) == "clear_in"


# Multicast and broadcast


def test_multicast_is_never_secured() -> None:
    group = flow("10.1.0.5", "239.1.2.3", 17)
    for made, out, back in (
        (entry("all", ANY4), "clear_out", "accept"),
        (protecting(ANY4, fallback_clear=True), "accept", "accept"),
        (entry("no", ANY4, Disposition.DISCARD), "blocked", "blocked"),
        (entry("yes", ANY4, Disposition.BYPASS), "accept", "accept"),
    ):
        script = render(snapshot(made), TUN)
        accepted_by_nft(script)
        rules = Rules(script)
        for chain in ("output", "postrouting"):
            assert rules.verdict(chain, Packet(group, cast=True)) == out
        assert rules.verdict("prerouting", Packet(group, iif="wan", cast=True)) == back
    first = entry("yes", selector_pair("0.0.0.0/0", "239.0.0.0/8"), Disposition.BYPASS)
    rules = Rules(render(snapshot(first, entry("all", ANY4)), TUN))
    assert rules.verdict("output", Packet(group, cast=True)) == "accept"
    assert rules.verdict("output", Packet(group, oif=TUN, cast=True)) == "drop"  # nobody counts it


# Kinds of interfaces


@pytest.mark.parametrize("kind", [ConnectionType.LAN, ConnectionType.REMOTE_ACCESS])
def test_an_entry_for_one_kind_of_interface(kind: ConnectionType) -> None:
    made = replace(entry("e", selector_pair("10.1.0.0/24", "10.2.0.0/24")), interfaces=kind)
    links = Links(("eth0", "eth1"), ("ppp0",))
    script = render(snapshot(made), TUN, links=links)
    accepted_by_nft(script)
    rules = Rules(script)
    for name in ("eth1", "ppp0"):
        covered = (name == "ppp0") is (kind is ConnectionType.REMOTE_ACCESS)
        assert rules.verdict("output", Packet(OUT, oif=name)) == (STEER if covered else "accept")
        assert rules.verdict("prerouting", Packet(OUT, oif=name)) == (STEER if covered else "accept")
        assert rules.verdict("postrouting", Packet(OUT, oif=name)) == ("clear_out" if covered else "accept")
        assert rules.verdict("arrived", Packet(IN, iif=name)) == ("clear_in" if covered else "accept")
    assert rules.verdict("postrouting", Packet(OUT, oif=TUN)) == "accept"
    nothing = Rules(render(snapshot(made), TUN, links=Links()))
    assert nothing.verdict("output", Packet(OUT, oif="eth0")) == "accept"
    unknown = Rules(render(snapshot(made), TUN))
    assert unknown.verdict("output", Packet(OUT, oif="eth0")) == STEER


# Transport mode


def test_a_template_is_its_whole_range() -> None:
    made = replace(protecting(selector_pair("10.1.0.5/32", "10.2.0.0/24"), mode=Mode.TRANSPORT), per_host=True)
    rules = Rules(render(replace(snapshot(made), local_addresses=(ip_address("10.1.0.5"),)), TUN))
    for host in ("10.2.0.1", "10.2.0.254"):
        assert rules.verdict("output", Packet(flow("10.1.0.5", host))) == STEER
        back = flow(host, "10.1.0.5")
        assert rules.verdict("prerouting", Packet(back, to_this_host=True)) == "clear_in"
        assert rules.verdict("prerouting", Packet(back, iif=TUN, to_this_host=True)) == "accept"
    assert rules.verdict("output", Packet(flow("10.1.0.5", "10.3.0.1"))) == "accept"
    assert rules.verdict("output", Packet(flow("10.1.0.5", "10.2.0.1"), mark=OWN_MARK)) == "accept"


def test_opaque_ports_are_those_that_nobody_sees() -> None:
    made = entry("e", ported(OPAQUE_PORT, OPAQUE_PORT))
    script = render(snapshot(made), TUN)
    accepted_by_nft(script)
    rules = Rules(script)
    assert rules.verdict("output", Packet(OUT)) == "accept"
    assert rules.verdict("output", Packet(replace(OUT, source_port=None, destination_port=None))) == STEER
    every = entry("e", ported(OPAQUE_PORT, OPAQUE_PORT, 0))
    script = render(snapshot(every), TUN)
    accepted_by_nft(script)
    rules = Rules(script)
    assert rules.verdict("output", Packet(OUT)) == "accept"
    assert rules.verdict("output", Packet(replace(OUT, protocol=47, source_port=None))) == STEER


# Verdict maps


def hosts(count: int, port: int | None = None) -> list[SpdEntry]:
    ports = ANY_PORT if port is None else PortRange(port, port)
    return [
        replace(entry(f"h{n}", selector_pair("10.1.0.5/32", f"10.2.0.{n}/32", 6, ANY_PORT, ports)), outbound=True)
        for n in range(count)
    ]


def test_a_short_run_stays_rules_and_a_long_one_becomes_a_map() -> None:
    assert "vmap" not in render(snapshot(*hosts(MAP_FROM - 1)), TUN)
    script = render(snapshot(*hosts(MAP_FROM, 80)), TUN)
    accepted_by_nft(script)
    assert "ip saddr . ip daddr . meta l4proto . th dport vmap @" in script
    rules = Rules(script)
    assert rules.verdict("output", Packet(flow("10.1.0.5", "10.2.0.3"))) == STEER
    assert rules.verdict("output", Packet(flow("10.1.0.5", "10.2.0.3", dport=81))) == "accept"
    assert rules.verdict("output", Packet(flow("10.1.0.5", "10.2.0.3", 6, None, None))) == STEER
    assert rules.verdict("output", Packet(flow("10.1.0.5", "10.2.0.99"))) == "accept"


def test_of_equal_filters_the_first_one_counts() -> None:
    first = replace(entry("first", hosts(4)[3].selectors, Disposition.DISCARD))
    rules = Rules(render(snapshot(first, *hosts(20)), TUN))
    assert rules.verdict("output", Packet(flow("10.1.0.5", "10.2.0.3"))) == "blocked"
    rules = Rules(render(snapshot(*hosts(20), first), TUN))
    assert rules.verdict("output", Packet(flow("10.1.0.5", "10.2.0.3"))) == STEER


def test_chains_share_their_maps() -> None:
    script = render(snapshot(*hosts(200)), TUN)
    # Steered, let in, let out, and the two of multicast, which no entry here names.
    assert script.count(" : verdict\n") <= 5


@pytest.mark.slow
def test_ten_thousand_filters() -> None:
    many = [
        entry(
            f"p{n}",
            selector_pair(
                "10.1.0.5/32", f"10.{n >> 8 & 255}.{n & 255}.7/32", 6, ANY_PORT, PortRange(n % 9 + 1, n % 9 + 1)
            ),
        )
        for n in range(5000)
    ]
    many += [
        entry(f"s{n}", selector_pair("10.1.0.5/32", f"10.{n >> 8 & 255}.{n & 255}.0/24")) for n in range(5000)
    ]
    script = render(snapshot(*many), TUN)
    rules = Rules(script)
    assert all(len(chain) < 30 for chain in rules.chains.values())  # what a packet costs does not grow with them
    assert rules.verdict("output", Packet(flow("10.1.0.5", "10.1.4.7", 6, 9, 260 % 9 + 1))) == STEER
    accepted_by_nft(script)


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


# Against the SPD and a naive model, with runs of every shape.

_SPAN = 16
_BASE = {4: int(ip_address("10.0.0.0")), 6: int(ip_address("fd00::"))}
_FEW_PORTS = [1, 2, 3, 65535]


def _side(random: Random, version: int, length: int) -> AddressRange:
    width = 32 if version == 4 else 128
    if length == 0:
        return AddressRange.any(version)
    size = 1 << (width - length)
    at = _BASE[version] + random.randrange(_SPAN) // size * size
    return AddressRange(version, at, at + size - 1)


def _block(random: Random, number: int) -> list[SpdEntry]:
    """Return entries of one shape, few enough to stay rules or enough to become a map, sometimes ranges."""
    version = random.choice((4, 6))
    width = 32 if version == 4 else 128
    lengths = [random.choice((0, width - 3, width - 2, width, width)) for _ in range(2)]
    protocol = random.choice((0, 6, 6, 17, ICMP if version == 4 else ICMPV6))
    with_ports = [protocol in (6, 17) and random.random() < 0.5 for _ in range(2)]
    ranges = random.random() < 0.15
    kinds = (ConnectionType.ALL, ConnectionType.ALL, *ConnectionType)
    direction, kind, mixed = random.randrange(8), random.choice(kinds), random.random() < 0.2
    made = []
    for index in range(random.choice((1, 3, 10, 24))):
        ports = []
        for has_port in with_ports:
            one = random.choice(_FEW_PORTS)
            ports.append(
                PortRange(one, max(one, random.choice(_FEW_PORTS)) if ranges else one) if has_port else ANY_PORT
            )
        pair = SelectorPair(
            TrafficSelector(protocol, _side(random, version, lengths[0]), ports[0]),
            TrafficSelector(protocol, _side(random, version, lengths[1]), ports[1]),
        )
        one_of = entry(f"{number}/{index}", pair, random.choice(list(Disposition)))
        if one_of.protection is not None:
            flags: dict[str, Any] = {
                "inbound_clear": random.random() < 0.3,
                "fallback_clear": random.random() < 0.4,
            }
            # X"fallback_clear": random.random() < 0.4}
            one_of = replace(one_of, protection=replace(one_of.protection, **flags))
        if mixed:
            direction, kind = random.randrange(8), random.choice(kinds)
        made.append(replace(one_of, outbound=direction != 1, inbound=direction != 2, interfaces=kind))
    return made


def _packet(random: Random) -> Packet:
    version = random.choice((4, 6))
    protocol = random.choice((6, 6, 17, 47, ICMP if version == 4 else ICMPV6))
    one, other = (_BASE[version] + random.randrange(_SPAN + 1) for _ in range(2))
    ports: tuple[int | None, int | None] = (None, None)
    if protocol in (6, 17) and random.random() < 0.9:
        ports = random.choice(_FEW_PORTS), random.choice(_FEW_PORTS)
    elif protocol in (ICMP, ICMPV6):
        ports = (random.choice(_FEW_PORTS),) * 2
    name = random.choice(("lan", "wan", "ppp0"))
    cast = random.random() < 0.1
    return Packet(Flow(version, protocol, one, other, *ports), iif=name, oif=name, cast=cast)


def _kind_of(name: str) -> ConnectionType:
    return ConnectionType.REMOTE_ACCESS if name == "ppp0" else ConnectionType.LAN


def _model(entries: Sequence[SpdEntry], packet: Packet, outbound: bool) -> SpdEntry | None:
    """Return the first entry that covers *packet*, by a scan: the words of the documentation as code."""
    one = packet.flow
    for each in entries:
        if not (each.outbound if outbound else each.inbound):
            continue
        if each.interfaces not in (ConnectionType.ALL, _kind_of(packet.oif if outbound else packet.iif)):
            continue
        pair = each.selectors if outbound else each.selectors.mirror()
        if packet.later_fragment and each.disposition is not Disposition.BYPASS:
            pair = SelectorPair(replace(pair.local, ports=ANY_PORT), replace(pair.remote, ports=ANY_PORT))
        if pair.matches_outbound(one):
            return each
    return None


def _expected(found: SpdEntry | None, chain: str, packet: Packet, is_soft: bool) -> str:
    if found is None or found.disposition is Disposition.BYPASS:
        return "accept"
    if found.disposition is Disposition.DISCARD:
        return "blocked"
    assert found.protection is not None
    falls_back = found.protection.fallback_clear
    if chain == "arrived":
        return "accept" if found.protection.inbound_clear or (falls_back and is_soft) else "clear_in"
    if chain == "cast_in":
        return "accept"
    if chain == "cast_out":
        return "accept" if falls_back else "clear_out"
    if falls_back and is_soft:
        return "accept"
    return STEER if chain == "output" else "clear_out"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40))
def test_random_policies_and_packets(seed: int) -> None:
    random = Random(seed)
    entries = [each for number in range(random.randrange(1, 9)) for each in _block(random, number)]
    if seed % 3 == 0:  # many shapes that all say the same, in any order
        said = entry("", ANY4, random.choice([Disposition.PROTECT, Disposition.DISCARD]))
        entries = [replace(each, disposition=said.disposition, protection=said.protection) for each in entries]
        random.shuffle(entries)
    spd = Spd(tuple(entries))
    pairs = [
        (AddressRange(4, _BASE[4] + a, _BASE[4] + a).first, AddressRange(4, _BASE[4] + b, _BASE[4] + b).first, 9)
        for a in range(_SPAN) for b in range(0, _SPAN, 3)
    ]  # fmt: skip
    links = Links(("lan", "wan"), ("ppp0",))
    script = render(Snapshot(generation=1, policy="p", spd=spd), TUN, soft=pairs, links=links)
    rules = Rules(script, [(str(one), str(other)) for one, other, _ in pairs])
    held = Rules(render_held(Snapshot(generation=1, policy="p", spd=spd), TUN, links=links))
    assert "output" not in held.chains
    assert "vmap" in script or len(entries) < 60
    by_kind = any(each.interfaces is not ConnectionType.ALL for each in entries)
    soft = {(int(one), int(other)) for one, other, _ in pairs}
    for number in range(2500):
        packet = _packet(random)
        one = packet.flow
        outbound = number % 2 == 0
        found = _model(entries, packet, outbound)
        if not by_kind and not packet.later_fragment:
            assert (spd.lookup_outbound(one) if outbound else spd.lookup_inbound(one)) is found
        if outbound:
            chain = ("output", "postrouting")[number % 4 // 2]
            is_soft = one.version == 4 and (one.source, one.destination) in soft
        else:
            chain, packet = "prerouting", replace(packet, to_this_host=not packet.cast)
            is_soft = one.version == 4 and (one.destination, one.source) in soft
        seen_as = {(True, True): "cast_out", (True, False): "cast_in", (False, False): "arrived"}
        expected = _expected(found, seen_as.get((packet.cast, outbound), chain), packet, is_soft)
        if packet.to_this_host and packet.later_fragment and one.protocol == 17:
            expected = "accept"  # it may be of IKE, or of ESP in UDP
        assert rules.verdict(chain, packet) == expected, (packet, found)
        if chain != "output":  # the second guard says the same, but of what may be in clear it says nothing
            lenient = found is not None and found.protection is not None and found.protection.fallback_clear
            assert held.verdict(chain, packet) == ("accept" if lenient else expected), (packet, found)
        if not packet.cast and not outbound:
            # In transit the first entry that matches in either form decides, the outbound form before the other.
            there = _model(entries, packet, True)
            first = next((each for each in entries if each in (there, found)), None)
            leaving = first is not None and first is there
            is_soft = one.version == 4 and (
                ((one.source, one.destination) if leaving else (one.destination, one.source)) in soft
            )
            expected = _expected(first, "output" if leaving else "arrived", packet, is_soft)
            assert rules.verdict("prerouting", replace(packet, to_this_host=False)) == expected, (packet, first)
