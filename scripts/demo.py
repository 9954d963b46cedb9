"""The stories that scripts/demo tells.

sites: two sites, two gateways, one tunnel, and what crossed between them.
web-server: one port of one host under AH.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import sys
import time

from demo_teller import Teller
from demo_web import tell_web_server

from tests.support.agent_process import Agent, Directory
from tests.support.capture import Capture
from tests.support.netns import Pinging, Sites, sites, wait_for

LAN_A, LAN_B = "10.1.0.5", "10.2.0.5"

#: Anything between the gateways that is neither IKE nor ESP, nor the link's own multicast and neighbour discovery.
ANYTHING_ELSE = (
    "(ip or ip6) and not (udp port 500 or udp port 4500 or esp or ip multicast or ip6 multicast "
    "or (icmp6 and ip6[40] >= 133 and ip6[40] <= 137))"
)

INTRODUCTION = """\
Mirrorgate: two sites, two gateways, one tunnel, all on this machine.

   host 10.1.0.5 --- gateway A ====== the internet ====== gateway B --- host 10.2.0.5
                     10.9.0.1                              10.9.0.2
"""


def main() -> int:
    """Tell it; 0 when all of it was so."""
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__)
    parser.add_argument(
        "--seconds", type=int, default=5, metavar="N", help="how long each throughput measurement takes (5)"
    )
    parser.add_argument(
        "story", nargs="?", choices=("sites", "web-server"), default="sites",
        help="a tunnel between two sites (the default), or TCP port 80 of a host under AH",
    )  # fmt: skip
    options = parser.parse_args()
    seconds = options.seconds
    if not 1 <= seconds <= 600:
        parser.error("--seconds takes 1 to 600")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
    try:
        return tell(seconds) if options.story == "sites" else tell_web_server(Teller())
    except AssertionError as error:
        print(f"\nThe demo failed: {error}", file=sys.stderr)
        return 1


def tell(seconds: int) -> int:
    """Run the demo; *seconds* is how long each throughput measurement takes."""
    teller = Teller()
    print(INTRODUCTION)
    with sites() as built, Directory() as directory, Capture(built.internet, "to-a", ANYTHING_ELSE) as strangers:
        teller.step("Five network namespaces stand for the hosts, the gateways and the internet between them.")
        configs = [directory.config(name) for name in ("site-a.toml", "site-b.toml")]
        with Agent(built.gateway_a, configs[0]) as one, Agent(built.gateway_b, configs[1]) as other:
            teller.step(
                "Both gateways run: configs/site-a.toml and configs/site-b.toml with a secret made just now."
            )
            with Capture(built.internet) as capture:
                first_packets(teller, built)
            throughput(teller, built, seconds)
            teller.step('What each gateway says of it ("mirrorgate status"):')
            for name, agent in (("gateway A", one), ("gateway B", other)):
                teller.detail(f"--- {name}")
                teller.detail(agent.run("status").stdout)
            teller.step(f'Why a packet is treated as it is ("mirrorgate explain tcp {LAN_A}:4000 {LAN_B}:80"):')
            teller.detail(one.run("explain", "tcp", f"{LAN_A}:4000", f"{LAN_B}:80").stdout)
        return verdict(teller, capture, strangers)


def first_packets(teller: Teller, built: Sites) -> None:
    """Ping through a tunnel that is not there yet."""
    begun = time.monotonic()
    if built.lan_a.ping(LAN_B, wait=8).returncode != 0:
        raise AssertionError(f"no answer from {LAN_B} through the tunnel")
    spent = (time.monotonic() - begun) * 1000
    teller.step(
        "The first packet from LAN A to LAN B found no tunnel. It waited while the gateways agreed on keys,"
    )
    teller.detail(f"and was answered after {spent:.0f} ms: nothing is lost at the start.")
    with Pinging(built.lan_a, LAN_B) as ping:
        wait_for(lambda: len(ping.answered) >= 20, "twenty answers through the tunnel")
    output = built.lan_b.ping(LAN_A, count=10, interval=0.05).stdout
    average = re.search(r"= [\d.]+/([\d.]+)/", output)
    teller.step(f"Ping from A to B: {ping.sent - len(ping.lost)} sent, {len(ping.lost)} lost; from B to A:")
    teller.detail(f"{average[1] if average else '?'} ms on average.")
    if ping.lost:
        raise AssertionError(f"{len(ping.lost)} pings were lost")


def throughput(teller: Teller, built: Sites, seconds: int) -> None:
    """Measure one TCP connection each way."""
    server = built.lan_b.start("iperf3", "--server")
    try:
        wait_for(lambda: built.lan_b.run("ss", "-Hltn", "sport = :5201").stdout, "iperf3 listens")
        teller.step(f"Throughput of one TCP connection through the tunnel, {seconds} s each way (iperf3):")
        for text, words in ((" A to B", ()), (" B to A", ("--reverse",))):
            done = built.lan_a.run(
                "iperf3", "--client", LAN_B, "--time", str(seconds), "--json", *words, timeout=seconds + 30
            )
            total = json.loads(done.stdout)["end"]["sum_received"]
            teller.detail(f"{text}  {total['bits_per_second'] / 1e9:.2f} Gbit/s")
    finally:
        server.terminate()
        server.wait(5)


def verdict(teller: Teller, capture: Capture, strangers: Capture) -> int:
    """Say what crossed the link between the gateways; 0 when it was IKE and ESP alone."""
    crossed = capture.crossed()
    others = strangers.packets()
    teller.step("What crossed the internet while the pings ran, by a capture between the gateways:")
    teller.detail(
        f"{crossed.ike} IKE messages, {crossed.esp} ESP packets, {len(crossed.clear)} packets in clear, "
        f"{crossed.other} others."
    )
    teller.detail(f"Over the whole demo, throughput included, packets other than IKE and ESP: {len(others)}.")
    for packet in others[:5]:
        teller.detail(f"  {packet.summary()}")
    if crossed.clear or crossed.other or others or not crossed.esp:
        print("\nSomething crossed that should not have.", file=sys.stderr)
        return 1
    print("\nOnly IKE and ESP crossed. Everything the demo made is being removed.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
