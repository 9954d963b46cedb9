"""Random walks over everything that may happen: the seeds that once failed, and some more.

MIRRORGATE_SIM_SEEDS=FIRST-LAST runs other seeds, as many as wanted: ``scripts/sim_replay.py SEED`` shows one.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.sim.walk import soak

KEPT = [
    int(line.split("#")[0])
    for line in (Path(__file__).parent / "seeds.txt").read_text().splitlines()
    if line.split("#")[0].strip()
]


def chosen() -> list[int]:
    """Return the seeds to run beside those that are kept."""
    first, _, last = os.environ.get("MIRRORGATE_SIM_SEEDS", "1-12").partition("-")
    return [seed for seed in range(int(first), int(last or first) + 1) if seed not in KEPT]


@pytest.mark.parametrize("seed", KEPT)
def test_a_seed_that_once_failed(seed: int) -> None:
    soak(seed)


@pytest.mark.parametrize("seed", chosen())
def test_a_walk(seed: int) -> None:
    soak(seed)
