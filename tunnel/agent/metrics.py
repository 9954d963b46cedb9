"""Prometheus metrics over HTTP, when ``agent.metrics`` names an address: configured against up, and every drop.

Labels have values of the config and of our own tables only, so that no peer can make series grow; and a series is
there from the start with 0, so that a tunnel which is down, or a reason never met, does not vanish.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path as FilePath
from typing import Any

from tunnel.children import EntryState
from tunnel.dataplane.contract import DropReason
from tunnel.host.system import HostError

_MAX_REQUEST = 4096
_TIMEOUT_S = 5
_FRESH_S = 1.0
_PAGE = resource.getpagesize()
_STARTED = time.time()
_NEGOTIATED = tuple(state.value for state in EntryState if state is not EntryState.NOT_APPLICABLE)
#: Counters of IKE that have a metric of their own: its name, its labels, and what they count.
_LIFE: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("ike_established", "mirrorgate_ike_sas_established_total", {}),
    ("child_established", "mirrorgate_child_sas_established_total", {}),
    ("negotiation_failed", "mirrorgate_negotiations_failed_total", {}),
    ("retransmitted", "mirrorgate_ike_retransmissions_total", {}),
    ("ike_rekeyed", "mirrorgate_rekeys_total", {"sa": "ike", "result": "done"}),
    ("ike_rekey_failed", "mirrorgate_rekeys_total", {"sa": "ike", "result": "failed"}),
    ("child_rekeyed", "mirrorgate_rekeys_total", {"sa": "child", "result": "done"}),
    ("child_rekey_failed", "mirrorgate_rekeys_total", {"sa": "child", "result": "failed"}),
)
_HELP = {
    "mirrorgate_build_info": "The version that runs.",
    "mirrorgate_uptime_seconds": "Time since the agent started.",
    "mirrorgate_policy_info": "The policy in force; none has an empty name.",
    "mirrorgate_entries_configured": "Filters that ask for security.",
    "mirrorgate_entries_up": "Filters that have an SA.",
    "mirrorgate_peers_configured": "Peers that the policy names or that an SA is with.",
    "mirrorgate_peers_up": "Peers that an IKE SA is established with.",
    "mirrorgate_tunnel_up": "Whether every filter of the rule has an SA (1) or not (0).",
    "mirrorgate_rule_entries": "Filters of the rule by how they fare.",
    "mirrorgate_rule_hosts": "Hosts that the rule secures each by itself, by how they fare.",
    "mirrorgate_received_bytes_total": "Octets of inner packets that the rule's SAs brought.",
    "mirrorgate_received_packets_total": "Inner packets that the rule's SAs brought.",
    "mirrorgate_sent_bytes_total": "Octets of inner packets that the rule's SAs took.",
    "mirrorgate_sent_packets_total": "Inner packets that the rule's SAs took.",
    "mirrorgate_ike_sas": "IKE SAs, half-open ones among them.",
    "mirrorgate_ike_half_open": "IKE SAs whose initiator has not authenticated itself yet.",
    "mirrorgate_child_sas": "Child SAs.",
    "mirrorgate_ike_sas_established_total": "IKE SAs that were established.",
    "mirrorgate_child_sas_established_total": "Child SAs that were established, rekeys aside.",
    "mirrorgate_negotiations_failed_total": "Negotiations that failed, at whichever end they began.",
    "mirrorgate_ike_retransmissions_total": "IKE requests of ours that were sent again.",
    "mirrorgate_rekeys_total": "Rekeys by result.",
    "mirrorgate_ike_messages_total": "What else happened in IKE, ignored and refused messages among it.",
    "mirrorgate_held_packets": "Packets that wait for an SA.",
    "mirrorgate_tun_packets_total": "Packets that came from the TUN to be protected.",
    "mirrorgate_wire_datagrams_total": "Datagrams that came from the network: ESP, AH, IKE.",
    "mirrorgate_ipsec_packets_sent_total": "ESP and AH packets that were sent.",
    "mirrorgate_icmp_errors_sent_total": "ICMP errors that were answered into the TUN.",
    "mirrorgate_drops_total": "Packets that were dropped, each by one reason.",
    "mirrorgate_guard_drops_total": "Packets that the nftables guard dropped.",
    "mirrorgate_host_errors_total": "What sockets and TUN could not do.",
    "mirrorgate_tun_mtu_bytes": "MTU of the TUN.",
    "mirrorgate_capture_active": "Whether an operator captures packets and keys now.",
    "mirrorgate_loop_lag_seconds": "The longest time in the last minute that the event loop came late.",
    "process_start_time_seconds": "When the agent started, in seconds since 1970.",
    "process_cpu_seconds_total": "Processor time of the agent.",
    "process_resident_memory_bytes": "Memory of the agent.",
}


class Lag:
    """How late the event loop is: looked at once a second, the worst of the last minute is shown."""

    def __init__(self, every_s: float = 1.0) -> None:
        self._every_s = every_s
        self._seen: deque[float] = deque([0.0], maxlen=60)

    async def follow(self) -> None:
        """Measure until cancelled."""
        clock = asyncio.get_running_loop().time
        while True:
            before = clock()
            await asyncio.sleep(self._every_s)
            self._seen.append(max(0.0, clock() - before - self._every_s))

    def worst(self) -> float:
        """Return the longest delay in seconds."""
        return max(self._seen)


class _Page:
    """The lines of one scrape; the samples of a metric stand together, under HELP and TYPE."""

    def __init__(self) -> None:
        self._metrics: dict[str, list[str]] = {}

    def add(self, name: str, value: object, **labels: object) -> None:
        pairs = ",".join(f'{label}="{_escaped(str(text))}"' for label, text in labels.items())
        self._metrics.setdefault(name, []).append(f"{name}{{{pairs}}} {value}" if pairs else f"{name} {value}")

    def text(self) -> str:
        lines: list[str] = []
        for name, samples in self._metrics.items():
            kind = "counter" if name.endswith("_total") else "gauge"
            lines += [f"# HELP {name} {_HELP[name]}", f"# TYPE {name} {kind}", *samples]
        return "\n".join([*lines, ""])


def render(status: Mapping[str, Any]) -> str:
    """Return the status object as Prometheus text (version 0.0.4)."""
    page = _Page()
    page.add("mirrorgate_build_info", 1, version=status.get("version", ""))
    page.add("mirrorgate_policy_info", 1, policy=status.get("policy") or "")
    page.add("mirrorgate_uptime_seconds", status.get("uptime_s", 0))
    entries = [entry for rule in status["rules"] for entry in _protected(rule)]
    page.add("mirrorgate_entries_configured", len(entries))
    page.add("mirrorgate_entries_up", sum(entry["state"] == "up" for entry in entries))
    known = [peer for peer in status["peers"] if peer["peer"]]  # without a name: half-open IKE SAs of strangers
    page.add("mirrorgate_peers_configured", len(known))
    page.add("mirrorgate_peers_up", sum(peer["state"] == "up" for peer in known))
    for rule in status["rules"]:
        if _protected(rule):
            _rule(page, rule)
    _ike(page, status)
    _packets(page, status)
    _process(page, status)
    return page.text()


def _rule(page: _Page, rule: Mapping[str, Any]) -> None:
    name, entries = rule["rule"], _protected(rule)
    fixed = [entry for entry in entries if not entry["per_host"]]  # the others have SAs when hosts come
    if fixed:
        page.add("mirrorgate_tunnel_up", int(all(entry["state"] == "up" for entry in fixed)), rule=name)
    hosts = [host for entry in entries for host in entry["hosts"]]
    for state in _NEGOTIATED:
        page.add("mirrorgate_rule_entries", _count(entries, state), rule=name, state=state)
        if any(entry["per_host"] for entry in entries):
            page.add("mirrorgate_rule_hosts", _count(hosts, state), rule=name, state=state)
    for metric, key in (
        ("mirrorgate_received_bytes_total", "bytes_in"), ("mirrorgate_received_packets_total", "packets_in"),
        ("mirrorgate_sent_bytes_total", "bytes_out"), ("mirrorgate_sent_packets_total", "packets_out"),
    ):  # fmt: skip
        page.add(metric, rule["carried"][key], rule=name)


def _ike(page: _Page, status: Mapping[str, Any]) -> None:
    counters = dict(status["ike"]["counters"])
    page.add("mirrorgate_ike_sas", sum(len(peer["ike_sas"]) for peer in status["peers"]))
    page.add("mirrorgate_ike_half_open", status["ike"]["half_open"])
    page.add("mirrorgate_child_sas", len(status["children"]))
    for key, metric, labels in _LIFE:
        page.add(metric, counters.pop(key, 0), **labels)
    for what, count in sorted(counters.items()):
        page.add("mirrorgate_ike_messages_total", count, what=what.replace(" ", "_").lower())


def _packets(page: _Page, status: Mapping[str, Any]) -> None:
    packets, drops = status["packets"], status["drops"]
    page.add("mirrorgate_held_packets", packets["held"])
    page.add("mirrorgate_tun_packets_total", packets["outbound_in"])
    page.add("mirrorgate_wire_datagrams_total", packets["inbound_in"])
    page.add("mirrorgate_ipsec_packets_sent_total", packets["esp_out"])
    page.add("mirrorgate_icmp_errors_sent_total", packets["errors_out"])
    for reason in DropReason:
        page.add("mirrorgate_drops_total", drops.get(reason.value, 0), reason=reason.value)
    for counter, count in status.get("guard", {}).items():
        page.add("mirrorgate_guard_drops_total", count, counter=counter)
    for where, count in status.get("errors", {}).items():
        page.add("mirrorgate_host_errors_total", count, where=where)
    page.add("mirrorgate_tun_mtu_bytes", status["tun_mtu"])


def _process(page: _Page, status: Mapping[str, Any]) -> None:
    page.add("mirrorgate_capture_active", int(status.get("capturing", False)))
    page.add("mirrorgate_loop_lag_seconds", f"{status.get('loop_lag_s', 0.0):.6f}")
    page.add("process_start_time_seconds", f"{_STARTED:.3f}")
    page.add("process_cpu_seconds_total", f"{time.process_time():.2f}")
    with contextlib.suppress(OSError):  # without procfs the metric is not there
        pages = FilePath("/proc/self/statm").read_text().split()[1]
        page.add("process_resident_memory_bytes", int(pages) * _PAGE)


async def serve(address: str, status: Callable[[], Awaitable[Mapping[str, Any]]]) -> asyncio.Server:
    """Answer GET /metrics on ``host:port``. HostError when the address cannot be bound.

    Whoever asks gets the page that the last one got, if that is not a second old: scrapes cannot load the agent.
    """
    scraping = asyncio.Lock()
    clock = asyncio.get_running_loop().time
    last, made = "", float("-inf")

    async def page() -> str:
        nonlocal last, made
        async with scraping:
            if clock() - made > _FRESH_S:
                last, made = render(await status()), clock()
            return last

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), _TIMEOUT_S)
            found = head.startswith((b"GET /metrics ", b"GET /metrics?"))
            body = (await asyncio.wait_for(page(), _TIMEOUT_S) if found else "metrics are at /metrics\n").encode()
            code = "200 OK" if found else "404 Not Found"
            writer.write(
                f"HTTP/1.1 {code}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"
                f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
                + body
            )
            await asyncio.wait_for(writer.drain(), _TIMEOUT_S)
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.close()

    host, _, port = address.rpartition(":")
    try:
        return await asyncio.start_server(answer, host.strip("[]"), int(port), limit=_MAX_REQUEST)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise HostError(
            f"metrics cannot be served on {address}: {reason}; set agent.metrics to another address"
        ) from error


def _protected(rule: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [entry for entry in rule["entries"] if entry["disposition"] == "protect"]


def _count(rows: Iterable[Mapping[str, Any]], state: str) -> int:
    return sum(row["state"] == state for row in rows)


def _escaped(value: str) -> str:
    """Escape a label's value as the text format wants it."""
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
