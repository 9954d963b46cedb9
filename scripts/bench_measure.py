"""What is measured between the two ends of a tunnel, and in which unit."""

from __future__ import annotations

import json
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from tests.support.netns import Namespace, wait_for

Figures: TypeAlias = dict[str, float]


@dataclass(frozen=True, slots=True)
class Unit:
    """A measure: what it is, its unit, and whether more is better."""

    what: str
    unit: str
    more_is_better: bool = True


MEASURES = {
    "tcp_1": Unit("TCP, one stream", "Gbit/s"),
    "tcp_4": Unit("TCP, four streams", "Gbit/s"),
    "udp_64": Unit("UDP, 64 octets", "kpps"),
    "udp_1200": Unit("UDP, 1,200 octets", "kpps"),
    "rtt_p50": Unit("ping, median", "ms", more_is_better=False),
    "rtt_p99": Unit("ping, 99 %", "ms", more_is_better=False),
}


@dataclass(frozen=True, slots=True)
class Ends:
    """Who talks to whom: *client* to *server* at *address*."""

    client: Namespace
    server: Namespace
    address: str


def measure(ends: Ends, seconds: float, names: Sequence[str] = tuple(MEASURES)) -> Figures:
    """Return the measures of *names*. AssertionError when nothing comes through."""
    if ends.client.ping(ends.address, count=2, wait=10).returncode != 0:
        raise AssertionError(f"no answer from {ends.address}")
    ways: dict[str, Callable[[], float]] = {
        "tcp_1": lambda: _tcp(ends, seconds, 1),
        "tcp_4": lambda: _tcp(ends, seconds, 4),
        "udp_64": lambda: _udp(ends, seconds, 64),
        "udp_1200": lambda: _udp(ends, seconds, 1200),
    }
    server = ends.server.start("iperf3", "-s")
    try:
        wait_for(lambda: ":5201" in ends.server.run("ss", "-Hltn").stdout, "iperf3 listens")
        found = {name: way() for name, way in ways.items() if name in names}
    finally:
        server.kill()
        server.wait()
    if not {"rtt_p50", "rtt_p99"}.isdisjoint(names):
        times = _round_trips(ends, seconds)
        found |= {"rtt_p50": statistics.median(times), "rtt_p99": times[int(len(times) * 0.99)]}
    return {name: found[name] for name in names}


def median(rounds: Sequence[Figures]) -> Figures:
    """Return each measure's median."""
    return {name: statistics.median(figures[name] for figures in rounds) for name in rounds[0]}


def _tcp(ends: Ends, seconds: float, streams: int) -> float:
    said = _iperf(ends, seconds, "-P", str(streams))
    return float(said["end"]["sum_received"]["bits_per_second"]) / 1e9


def _udp(ends: Ends, seconds: float, octets: int) -> float:
    """Send as fast as one program can, and count what arrives, in thousands of datagrams a second.

    With the largest buffer that a program may ask for: what the receiving program is too slow for tells of it, and
    not of the tunnel.
    """
    said = _iperf(ends, seconds, "-u", "-b", "0", "-l", str(octets), "-w", "208K")
    end = said["end"]["sum"]
    return float(end["packets"] - end["lost_packets"]) / float(end["seconds"]) / 1e3


def _iperf(ends: Ends, seconds: float, *words: str) -> Any:
    time.sleep(0.3)  # the server takes one test at a time, and tidies up
    command = ("iperf3", "-c", ends.address, "-t", str(seconds), "-J", "--connect-timeout", "5000", *words)
    for _ in range(3):
        done = ends.client.run(*command, check=False, timeout=seconds + 40)
        said = json.loads(done.stdout or "{}")
        if "error" not in said and "end" in said:
            return said
        time.sleep(1)
    raise AssertionError(f"iperf3 {' '.join(words)}: {said.get('error', done.stderr or 'says nothing')}")


def _round_trips(ends: Ends, seconds: float) -> list[float]:
    """Return the sorted round-trip times in milliseconds, of a hundred pings a second."""
    count = max(100, int(seconds * 100))
    said = ends.client.ping(ends.address, count=count, interval=0.01).stdout
    times = sorted(float(match) for match in re.findall(r"time=([\d.]+) ms", said))
    if len(times) < count * 0.9:
        raise AssertionError(f"{len(times)} of {count} pings were answered")
    return times
