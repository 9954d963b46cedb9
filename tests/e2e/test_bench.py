"""The benchmark measures, tells and draws; what it measures is nobody's business here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.support.agent_process import ROOT

pytestmark = pytest.mark.e2e


def bench(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts/bench.py"), *words],
        capture_output=True, text=True, check=False, timeout=180, stdin=subprocess.DEVNULL,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def test_a_table_a_chart_and_all_figures(tmp_path: Path) -> None:
    figures, chart = tmp_path / "bench.json", tmp_path / "bench.svg"
    names = ["no VPN", "Mirrorgate, UDP", "strongSwan kernel-libipsec"]
    done = bench(
        "--seconds", "1", "--rounds", "1", "--only", *names, "--parts", "tunnels", "handshakes",
        "--json", str(figures), "--svg", str(chart),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(figures.read_text())
    assert list(result["tunnels"]) == names
    assert result["problems"] == {}
    for measured in result["tunnels"].values():
        assert set(measured) == set(result["measures"])
        assert all(value > 0 for value in measured.values())
    assert result["inside"]["handshakes"]["responder_per_s"] > 0
    assert all(name in done.stdout for name in names)
    texts = {element.text for element in ElementTree.parse(chart).getroot().iter() if element.text}
    assert set(names) <= texts


def test_help_and_mistakes() -> None:
    assert "wireguard-go" in bench("--help").stdout
    done = bench("--only", "nobody")
    assert done.returncode == 2
    assert "there is no contender nobody" in done.stderr
