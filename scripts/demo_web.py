"""The classic exercise: TCP port 80 of a server under AH, its other ports in clear, strangers refused."""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

from demo_teller import Teller
from scapy.layers.inet import TCP
from scapy.layers.ipsec import AH

from tests.support.agent_process import Agent, Directory
from tests.support.capture import Capture
from tests.support.host_net import Hosts, ask, hosts

CLIENT, SERVER = "10.9.0.1", "10.9.0.2"
HTTP, SSH = 80, 22

INTRODUCTION = """\
Mirrorgate: one port of one host, all on this machine.

   client 10.9.0.1 ------- TCP port 80 under AH, all else in clear ------- server 10.9.0.2
   outsider 10.9.0.3, without IPsec
"""


def tell_web_server(teller: Teller) -> int:
    """Run the exercise; 0 when all of it was so."""
    print(INTRODUCTION)
    with hosts("client", "server", "outsider") as built, Directory() as directory:
        built.serve("server", HTTP, SSH)
        teller.step("Three hosts on one network. The server answers on ports 80 and 22, without IPsec so far:")
        _show(teller, built)
        server, client = (directory.config(name) for name in ("web-server.toml", "web-client.toml"))
        with Agent(built["server"], server) as agent, Agent(built["client"], client) as asking:
            teller.step("Server and client run configs/web-server.toml and configs/web-client.toml. Now:")
            with Capture(built.link, "wan", "not arp and not icmp6") as capture:
                seen = _show(teller, built)
            teller.step('What the client says of it ("mirrorgate status"):')
            teller.detail(asking.run("status").stdout)
            teller.step(f'Why ("mirrorgate explain tcp {CLIENT}:4000 {SERVER}:{HTTP}"):')
            teller.detail(asking.run("explain", "tcp", f"{CLIENT}:4000", f"{SERVER}:{HTTP}").stdout)
            stopped = agent.status()["guard"].get("clear_in", 0)
        crossed = Counter(kind for packet in capture.packets() if (kind := _kind(packet)))
        teller.step("What crossed the network meanwhile, by a capture:")
        for kind, count in sorted(crossed.items()):
            teller.detail(f"{count:5} {kind}")
        teller.detail(f"The server's guard dropped {stopped} packets that came for port 80 in clear.")
    wanted = {("client", HTTP): True, ("client", SSH): True, ("outsider", HTTP): False, ("outsider", SSH): True}
    leaked = sum(count for kind, count in crossed.items() if kind.startswith("answers of port 80 in clear"))
    if seen != wanted or leaked or not stopped:
        print("\nThat is not as it should be.", file=sys.stderr)
        return 1
    print("\nPort 80 spoke AH or nothing. Everything the demo made is being removed.")
    return 0


def _show(teller: Teller, built: Hosts) -> dict[tuple[str, int], bool]:
    seen = {}
    for name in ("client", "outsider"):
        for port in (HTTP, SSH):
            seen[name, port] = ask(built[name], SERVER, port, wait=2)
            teller.detail(f"{name:9} port {port:2}: {'answered' if seen[name, port] else 'no answer'}")
    return seen


def _kind(packet: Any) -> str:
    if packet.haslayer(AH):
        return "under AH (port 80)"
    if not packet.haslayer(TCP):
        return ""
    layer = packet[TCP]
    if layer.sport == HTTP:
        return "answers of port 80 in clear"
    return "attempts at port 80 in clear, by the outsider" if layer.dport == HTTP else f"in clear (port {SSH})"
