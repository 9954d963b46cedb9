"""Garbage on ports 500 and 4500: nothing breaks, nothing grows, who is established goes on, who is new gets in.

MIRRORGATE_SIEGE_SECONDS makes it longer than the few seconds of an ordinary run.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from scapy.layers.inet import UDP

from tests.support.agent_process import ROOT, Agent, Directory, tunnel
from tests.support.capture import Capture
from tests.support.netns import Sites, sites, wait_for

pytestmark = pytest.mark.e2e

LAN_B = "10.2.0.5"
GATEWAY_A = "10.9.0.1"
_SECONDS = float(os.environ.get("MIRRORGATE_SIEGE_SECONDS", "8"))
_MEGABITS = 50


def test_garbage_at_fifty_megabits(tmp_path: Path) -> None:
    with sites() as built, Directory() as directory:
        with Capture(built.internet, "to-a", "udp port 500 or udp port 4500") as capture:
            with tunnel(built, directory) as (one, _):
                assert built.lan_a.ping(LAN_B, wait=8).returncode == 0
                one.run("rekey")
                one.run("rekey", "--ike")
                assert built.lan_a.ping(LAN_B, count=5).returncode == 0
            known = [bytes(packet[UDP].payload) for packet in capture.packets() if packet.haslayer(UDP)]
        seeds = tmp_path / "seeds"
        seeds.write_text("\n".join(payload.hex() for payload in known if len(payload) > 28))
        with tunnel(built, directory) as (one, other):
            assert built.lan_a.ping(LAN_B, wait=8).returncode == 0
            seeds.write_text(seeds.read_text() + "\n" + _recorded(built))
            calm = _throughput(built, 3)
            _besieged(built, seeds, 2)  # tables and caches reach their bounds
            before = _resident(one)
            besieger = _start(built, seeds, _SECONDS + 4)
            under = _throughput(built, max(3, _SECONDS / 2))
            other.kill()
            other.start()
            wait_for(
                lambda: built.lan_b.ping("10.1.0.5", wait=1).returncode == 0,
                "a new tunnel under siege",
                5,
                every=0.1,
            )
            assert besieger.wait(_SECONDS + 60) == 0
            assert _resident(one) - before < 16_000, "memory is flat (KiB)"
            assert built.lan_a.ping(LAN_B, wait=3).returncode == 0
            assert "internal_error" not in one.log()
            assert "Traceback" not in one.log()
            assert len(one.log().splitlines()) < 500 + 20 * _SECONDS, "what is told of strangers is limited"
            print(f"calm {calm:.2f}, under siege {under:.2f} Gbit/s")
            assert under > calm / 2


def _recorded(built: Sites) -> str:
    """Return ESP packets of the tunnel that is up, for replays."""
    with Capture(built.internet, "to-a", "udp port 4500") as capture:
        built.lan_a.ping(LAN_B, count=10, interval=0.02)
    return "\n".join(bytes(packet[UDP].payload).hex() for packet in capture.packets() if packet.haslayer(UDP))


def _start(built: Sites, seeds: Path, seconds: float):  # type: ignore[no-untyped-def]
    return built.internet.start(
        sys.executable, "-m", "tests.support.besieger", GATEWAY_A, str(seconds), str(_MEGABITS), str(seeds),
        environment={"PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def _besieged(built: Sites, seeds: Path, seconds: float) -> None:
    assert _start(built, seeds, seconds).wait(seconds + 30) == 0


def _throughput(built: Sites, seconds: float) -> float:
    server = built.lan_b.start("iperf3", "-s", "-1")
    try:
        wait_for(lambda: ":5201" in built.lan_b.run("ss", "-Hltn").stdout, "iperf3 listens")
        said = built.lan_a.run("iperf3", "-c", LAN_B, "-t", str(seconds), "-J", timeout=seconds + 30).stdout
        return float(json.loads(said)["end"]["sum_received"]["bits_per_second"]) / 1e9
    finally:
        server.kill()
        server.wait()


def _resident(agent: Agent) -> int:
    """Return an agent's resident memory in KiB."""
    lines = Path(f"/proc/{agent.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))
