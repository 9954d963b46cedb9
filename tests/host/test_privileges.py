"""Capabilities are dropped, proven dropped, and what is kept is enough; the shipped unit exposes little."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tunnel.host import privileges
from tunnel.host.privileges import NEEDED, Capability

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "configs" / "mirrorgate.service"

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to have capabilities to drop")


def _after(program: str, *command: str) -> str:
    text = f"from tunnel.host import privileges\nfrom tunnel.host.privileges import NEEDED, Capability\n{program}"
    done = subprocess.run(
        [*command, sys.executable, "-c", text], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@root_only
def test_nothing_else_is_left_here_and_in_what_is_started() -> None:
    said = _after(
        "import subprocess, pathlib\nprivileges.drop(NEEDED)\n"
        "print(pathlib.Path('/proc/self/status').read_text())\n"
        "print(subprocess.run(['cat', '/proc/self/status'], capture_output=True, text=True).stdout)"
    )
    mask = sum(1 << capability for capability in NEEDED)
    for name in ("CapPrm", "CapEff", "CapBnd", "CapInh", "CapAmb"):
        held = [int(value, 16) for value in re.findall(rf"^{name}:\s*(\w+)", said, re.MULTILINE)]
        assert held == [mask, mask], name


@root_only
def test_they_cannot_be_had_again() -> None:
    said = _after(
        "import os\nprivileges.drop(NEEDED)\n"
        "for path in ('/proc/1/mem', '/dev/kmsg'):\n"
        "    try:\n        os.open(path, os.O_RDWR); print('opened', path)\n"
        "    except OSError as error:\n        print(type(error).__name__)\n"
        "try:\n    privileges.drop(list(Capability)); print(privileges._status('CapEff'))\n"
        "except Exception as error:\n    print(error)"
    )
    mask = sum(1 << capability for capability in NEEDED)
    assert "opened /proc/1/mem" not in said
    assert said.splitlines()[-1] == str(mask), "asked for more, got what there was"


@root_only
def test_what_is_lacking_is_named() -> None:
    assert _after("print([c.name for c in privileges.lacking()])").strip() == "[]"
    said = _after("privileges.drop({Capability.NET_RAW})\nprint([c.name for c in privileges.lacking()])")
    assert said.strip() == "['NET_BIND_SERVICE', 'NET_ADMIN']"


def test_files_of_others_need_one_more(tmp_path: Path) -> None:
    mine = tmp_path / "gateway.toml"
    mine.write_text("")
    mine.chmod(0o600)
    assert privileges.reader_of([mine, tmp_path / "missing"]) == frozenset()
    if os.geteuid() == 0:
        os.chown(mine, 65534, 65534)
        assert privileges.reader_of([mine]) == {Capability.DAC_READ_SEARCH}
        mine.chmod(0o644)
        assert privileges.reader_of([mine]) == frozenset()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_the_shipped_unit_exposes_little() -> None:
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(UNIT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    match = re.search(r"Overall exposure level for mirrorgate.service: ([\d.]+)", done.stdout)
    assert match is not None, done.stdout + done.stderr
    assert float(match[1]) <= 2.0


def test_the_shipped_unit_keeps_what_the_agent_needs() -> None:
    lines = dict(line.split("=", 1) for line in UNIT.read_text().splitlines() if re.match(r"\w+=", line))
    for name in ("AmbientCapabilities", "CapabilityBoundingSet"):
        assert lines[name].split() == ["CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_NET_BIND_SERVICE"]
        assert {word.removeprefix("CAP_") for word in lines[name].split()} == {each.name for each in NEEDED}
