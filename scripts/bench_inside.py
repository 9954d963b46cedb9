"""What is measured of Mirrorgate alone: look-ups, handshakes, many tunnels, and the cost of doing nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from policy.spd import Spd
from tests.support.agent_process import Agent, Directory
from tests.support.host_net import hosts
from tests.support.ike_pair import Node, Pair, pair_of
from tests.support.netns import Namespace, sites, wait_for
from tests.support.packets import Pair as Planes
from tests.support.packets import drain, snapshot, tun, udp4
from tunnel.dataplane.contract import TunFrame

Tell = Callable[[str], None]
_TUNNELS = 1000
_FAR = "10.77.0.0/16"


def look_ups(tell: Tell) -> dict[str, float]:
    """Return microseconds a packet, by number of filters: of a known flow, and of each new flow."""
    found: dict[str, float] = {}
    for filters in (10, 1000, 10_000):
        tell(f"look-ups: {filters} filters")
        found[f"known_flow_us_{filters}"] = _packets(filters, 1)
        found[f"new_flow_us_{filters}"] = _packets(filters, 60_000)
    return found


def _packets(filters: int, flows: int) -> float:
    """Return the microseconds that outbound() takes for a small packet, the best of five runs."""
    planes = Planes()
    known = snapshot()
    entries = known.spd.entries
    more = tuple(
        replace(entries[0], id=f"n{number}", selectors=pair_of(f"172.16.{number >> 8}.{number & 255}/32", _FAR))
        for number in range(filters - len(entries))
    )
    planes.left.load(replace(known, spd=Spd((*more, *entries))), 0)
    best = float("inf")
    for run in range(5):
        packets = [
            tun(udp4(b"x" * 20, sport=1024 + (number + run * 3000) % flows % 60_000)) for number in range(3000)
        ]
        frames = [TunFrame(packet) for packet in packets]
        begun = time.perf_counter()
        planes.left.outbound(frames, 1)
        best = min(best, (time.perf_counter() - begun) / len(frames))
        drain(planes.left)
    return best * 1e6


def handshakes(tell: Tell) -> dict[str, float]:
    """Return IKE SAs with their first Child SA a second and a core: PSK, x25519, AES-256-GCM."""
    tell("handshakes")
    spent = {"A": 0.0, "B": 0.0}
    pair = Pair(check=False)
    rounds = 300
    for _ in range(rounds):
        _timed(spent, pair.a, lambda: pair.a.endpoint.acquire("lan", None, pair.now), pair)
        while pair.wire:
            datagram = pair.take()
            node = pair.other(datagram.sender)
            _timed(spent, node, lambda: pair.deliver(datagram), pair)  # noqa: B023
        if not pair.a.live:
            raise AssertionError("no handshake")
        for node, peer in ((pair.a, "gw-b"), (pair.b, "gw-a")):
            node.endpoint.terminate_peer(peer, pair.now)
            pair.drain(node)
        pair.run()
        pair.tick(60 * 10**9)
        pair.run()
        for node in (pair.a, pair.b):
            node.history.clear()
            node.sent.clear()
            node.events.clear()
    return {
        "initiator_per_s": rounds / spent["A"],
        "responder_per_s": rounds / spent["B"],
        "both_per_s": rounds / (spent["A"] + spent["B"]),
    }


def many_tunnels(tell: Tell) -> dict[str, float]:
    """Return how long a thousand tunnels of one agent take to come up, and the memory of each, at either end."""
    tell(f"{_TUNNELS} tunnels between two agents")
    with hosts("hub", "spokes") as built, Directory() as directory:
        built["spokes"].batch([f"addr add 10.9.{1 + n // 250}.{1 + n % 250}/16 dev eth0" for n in range(_TUNNELS)])
        built["spokes"].batch(["addr del 10.9.0.2/24 dev eth0"])
        built["hub"].batch(["route add 10.9.0.0/16 dev eth0"])
        configs = [
            directory.config(f"{name}.toml", text=_MANY.format(source=source, destination=destination))
            for name, source, destination in (
                ("hub", "10.9.0.1", "10.9.0.0/16"),
                ("spokes", "me", "10.9.0.1"),
            )
        ]
        with Agent(built["hub"], configs[0]) as hub, Agent(built["spokes"], configs[1]) as spokes:
            before = [_resident(agent) for agent in (hub, spokes)]
            begun = time.monotonic()
            spokes.run("initiate", "R", "--json", check=False, timeout=120)
            wait_for(lambda: len(spokes.children()) >= _TUNNELS, "all tunnels are up", 120, every=0.2)
            spent = time.monotonic() - begun
            wait_for(lambda: len(hub.children()) >= _TUNNELS, "all tunnels are up at the hub", 20)
            after = [_resident(agent) for agent in (hub, spokes)]
            idle = [_cpu_percent(agent, 10) for agent in (hub, spokes)]
    return {
        "seconds": spent,
        "kib_per_tunnel_hub": (after[0] - before[0]) / _TUNNELS,
        "kib_per_tunnel_spokes": (after[1] - before[1]) / _TUNNELS,
        "idle_cpu_percent_hub": idle[0],
        "idle_cpu_percent_spokes": idle[1],
    }


_MANY = """
[agent]
assigned = "P"
[[policy]]
name = "P"
[[policy.rule]]
name = "R"
filter_list = "L"
filter_action = "A"
authentication = [{{ method = "psk", secret_file = "bench.psk" }}]
[[filter_list]]
name = "L"
filter = [{{ source = "{source}", destination = "{destination}", protocol = "icmp" }}]
[[filter_action]]
name = "A"
action = "negotiate"
methods = ["esp:aes256gcm16"]
encapsulation = "none"
"""


def hub(tell: Tell) -> dict[str, float]:
    """Return what a thousand rules cost one hub, each a tunnel to a peer of its own, all wanted at one moment.

    The peers are the addresses of another agent. A liveness interval is in the idle time.
    """
    tell(f"a hub with {_TUNNELS} rules")
    with hosts("hub", "spokes") as built, Directory() as directory:
        built["spokes"].batch([f"addr add {_spoke(n)}/16 dev eth0" for n in range(_TUNNELS)])
        built["spokes"].batch(["addr del 10.9.0.2/24 dev eth0"])
        built["hub"].batch(
            ["route add 10.9.0.0/16 dev eth0", "route add 10.96.0.0/11 dev eth0", "addr add 192.168.0.1/16 dev lo"]
        )
        configs = (
            directory.config("hub.toml", text=_hub_text()),
            directory.config("spokes.toml", text=_spokes_text()),
        )
        with Agent(built["spokes"], configs[1]) as spokes:
            begun = time.monotonic()
            with Agent(built["hub"], configs[0]) as agent:
                started = time.monotonic() - begun
                return {"start_s": started, **_of_hub(tell, built["hub"], agent, spokes)}


def _of_hub(tell: Tell, namespace: Namespace, agent: Agent, spokes: Agent) -> dict[str, float]:
    before, cpu, begun = _resident(agent), _ticks(agent), time.monotonic()
    namespace.run("python3", "-c", _TO_ALL.format(count=_TUNNELS))
    wait_for(lambda: len(agent.children()) >= _TUNNELS, "all tunnels are up", 60, every=0.3)
    found = {"up_s": time.monotonic() - begun, "up_cpu_s": _cpu_since(agent, cpu)}
    wait_for(lambda: len(spokes.children()) >= _TUNNELS, "all tunnels are up at the other end", 20)
    found["kib_per_tunnel"] = (_resident(agent) - before) / _TUNNELS
    old, cpu, begun = _spis(agent), _ticks(agent), time.monotonic()
    agent.run("rekey")
    wait_for(lambda: len(_spis(agent)) == _TUNNELS and not old & _spis(agent), "all are rekeyed", 60, every=0.3)
    found |= {"rekey_s": time.monotonic() - begun, "rekey_cpu_s": _cpu_since(agent, cpu)}
    old = _spis(agent)
    agent.config.write_text(agent.config.read_text().replace('name = "R7"', 'name = "Seven"'))
    begun = time.monotonic()
    agent.run("reload")
    found |= {"reload_s": time.monotonic() - begun, "kept_by_reload": float(len(old & _spis(agent)))}
    tell("idle")
    return found | {"idle_cpu_percent": _cpu_percent(agent, 40)}


_TO_ALL = """
import socket
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind(("192.168.0.1", 0))
for n in range({count}):
    sock.sendto(b"x", (f"10.{{100 + n // 250}}.{{n % 250}}.5", 9))
"""


def _spoke(number: int) -> str:
    return f"10.9.{1 + number // 250}.{1 + number % 250}"


def _spis(agent: Agent) -> set[int]:
    return {child["spi_in"] for child in agent.children()}


def _hub_text() -> str:
    rules = "".join(
        f'[[policy.rule]]\nname = "R{n}"\nfilter_list = "L{n}"\nfilter_action = "A"\n'
        f'tunnel_endpoint = "{_spoke(n)}"\nauthentication = [{{ method = "psk", secret_file = "bench.psk" }}]\n'
        for n in range(_TUNNELS)
    )
    lists = "".join(
        f'[[filter_list]]\nname = "L{n}"\n'
        f'filter = [{{ source = "192.168.0.0/16", destination = "10.{100 + n // 250}.{n % 250}.0/24" }}]\n'
        for n in range(_TUNNELS)
    )
    return f'[agent]\nassigned = "P"\n[[policy]]\nname = "P"\n{rules}{lists}{_ACTION}'


def _spokes_text() -> str:
    filters = "".join(
        f'[[filter_list.filter]]\nsource = "10.{100 + n // 250}.{n % 250}.0/24"\ndestination = "192.168.0.0/16"\n'
        for n in range(_TUNNELS)
    )
    return (
        '[agent]\nassigned = "P"\n[[policy]]\nname = "P"\n[[policy.rule]]\nname = "R"\nfilter_list = "L"\n'
        'filter_action = "A"\ntunnel_endpoint = "10.9.0.1"\n'
        'authentication = [{ method = "psk", secret_file = "bench.psk" }]\n'
        f'[[filter_list]]\nname = "L"\n{filters}{_ACTION}'
    )


_ACTION = """
[[filter_action]]
name = "A"
action = "negotiate"
methods = ["esp:aes256gcm16"]
encapsulation = "none"
"""


def idle(tell: Tell) -> dict[str, float]:
    """Return the CPU time that an agent with an idle tunnel takes, in per cent of a core."""
    tell("an idle tunnel")
    with sites() as built, Directory() as directory:
        configs = [directory.config(name) for name in ("site-a.toml", "site-b.toml")]
        with Agent(built.gateway_a, configs[0]) as one, Agent(built.gateway_b, configs[1]):
            if built.lan_a.ping("10.2.0.5", wait=8).returncode != 0:
                raise AssertionError("no tunnel")
            return {"cpu_percent": _cpu_percent(one, 20), "resident_mib": _resident(one) / 1024}


PARTS: dict[str, Callable[[Tell], dict[str, float]]] = {
    "lookups": look_ups,
    "handshakes": handshakes,
    "many": many_tunnels,
    "hub": hub,
    "idle": idle,
}


def _timed(spent: dict[str, float], node: Node, step: Callable[[], None], pair: Pair) -> None:
    begun = time.process_time()
    step()
    pair.drain(node)
    spent[node.name] += time.process_time() - begun


def _resident(agent: Agent) -> int:
    """Return the resident memory of an agent in KiB."""
    for line in Path(f"/proc/{agent.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise AssertionError("the agent is gone")


def _cpu_since(agent: Agent, ticks: int) -> float:
    return (_ticks(agent) - ticks) / os.sysconf("SC_CLK_TCK")


def _cpu_percent(agent: Agent, seconds: float) -> float:
    before = _ticks(agent)
    time.sleep(seconds)
    return (_ticks(agent) - before) / os.sysconf("SC_CLK_TCK") / seconds * 100


def _ticks(agent: Agent) -> int:
    words = Path(f"/proc/{agent.pid}/stat").read_text().rpartition(")")[2].split()
    return int(words[11]) + int(words[12])
