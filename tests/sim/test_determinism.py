"""One seed is one run, octet for octet: also in another process with other hash seeds."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from tests.support.sim.walk import soak

ROOT = Path(__file__).parents[2]


def digest(trace: list[str]) -> str:
    return hashlib.sha256("\n".join(trace).encode()).hexdigest()


def replay(seed: int, hash_seed: str) -> str:
    """Return what ``scripts/sim_replay.py`` prints, as a digest."""
    result = subprocess.run(
        [sys.executable, "scripts/sim_replay.py", str(seed)],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    )
    return digest(result.stdout.splitlines())


def test_one_seed_twice() -> None:
    first = soak(4).trace
    assert len(first) > 500
    assert first == soak(4).trace
    assert digest(first) != digest(soak(5).trace)


def test_other_hash_seeds_and_another_process() -> None:
    assert digest(soak(4).trace) == replay(4, "1") == replay(4, "2")
