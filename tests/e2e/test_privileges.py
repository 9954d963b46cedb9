"""What an agent may do while it runs: as root with next to nothing of it, and as a user of its own."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import sandbox
from tests.support.agent_process import Agent, Directory
from tests.support.netns import Sites, build_sites, wait_for
from tunnel.host.privileges import NEEDED

pytestmark = pytest.mark.e2e

LAN_B = "10.2.0.5"
_SOMEBODY = 65534
#: As a service manager does it with AmbientCapabilities; what is imported before need not be readable after.
_AS_SOMEBODY = f"""
import ctypes, encodings.ascii, encodings.idna, encodings.unicode_escape, os, sys
import tunnel.cli.main, tunnel.agent.agent
from tunnel.host import privileges
ctypes.CDLL(None).prctl(8, 1, 0, 0, 0)
os.setgroups([])
os.setresgid({_SOMEBODY}, {_SOMEBODY}, {_SOMEBODY})
os.setresuid({_SOMEBODY}, {_SOMEBODY}, {_SOMEBODY})
privileges.drop(privileges.NEEDED)
sys.exit(tunnel.cli.main.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def two_sites() -> Iterator[Sites]:
    built = build_sites()
    yield built
    built.close()


def held(agent: Agent, name: str) -> set[int]:
    """Return what each thread of an agent says of itself in /proc."""
    found = set()
    for status in Path(f"/proc/{agent.pid}/task").glob("*/status"):
        match = re.search(rf"^{name}:\s*(\w+)", status.read_text(), re.MULTILINE)
        assert match is not None
        found.add(int(match[1], 16))
    return found


@pytest.mark.parametrize("who", ["root", "somebody", "unit"])
def test_three_capabilities_are_enough(two_sites: Sites, who: str) -> None:
    mask = sum(1 << capability for capability in NEEDED)
    with Directory() as directory, Directory() as far:
        one = directory.config("site-a.toml")
        far.write_secret("site.psk", directory.secret())
        other = far.config("site-b.toml")
        command = None
        if who == "unit" and (lacking := sandbox.missing()) is not None:
            pytest.skip(lacking)
        if who != "root":
            for path in (directory.path, *directory.path.iterdir()):
                os.chown(path, _SOMEBODY, _SOMEBODY)
            as_unit = ("-m", "tests.support.sandbox")
            command = (sys.executable, *(as_unit if who == "unit" else ("-c", _AS_SOMEBODY)))
        started = Agent(two_sites.gateway_a, one, command) if command else Agent(two_sites.gateway_a, one)
        with started as agent, Agent(two_sites.gateway_b, other):
            assert two_sites.lan_a.ping(LAN_B, wait=8).returncode == 0
            for name in ("CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb"):
                wanted = {mask} if who == "root" or name != "CapBnd" else held(agent, name)
                assert held(agent, name) == wanted, name
            assert held(agent, "NoNewPrivs") == {1}
            if who == "unit":
                assert held(agent, "Seccomp") == {2}, "the unit's filter is in force"
            assert os.stat(f"/proc/{agent.pid}/mem").st_uid == 0, "not dumpable: its memory is root's alone"
            assert re.search(r"Max core file size +0 +0 ", Path(f"/proc/{agent.pid}/limits").read_text())
            two_sites.gateway_a.run("nft", "flush", "ruleset")
            agent.wait_log("guard_lost")
            generation = agent.status()["generation"]
            agent.signal(signal.SIGHUP)
            wait_for(lambda: agent.status()["generation"] > generation, "the config is read again")
            two_sites.gateway_a.ip("link", "del", "mg0")
            wait_for(lambda: two_sites.lan_a.ping(LAN_B, wait=1).returncode == 0, "it makes another TUN", 15)
            assert agent.stop() == 0
            rules = two_sites.gateway_a.run("nft", "list", "ruleset").stdout
            assert "mirrorgate" not in rules, "an orderly stop takes everything away"
