"""The targets of guided fuzzing take their seeds, and their like, without it: so they do not rot."""

from __future__ import annotations

from random import Random

import pytest

from tests.fuzz.targets import TARGETS, seeds


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_takes_its_seeds_and_what_is_like_them(name: str) -> None:
    target, dice = TARGETS[name][0](), Random(4)
    found = [data for _, data in seeds(name)]
    assert found
    for data in (b"", b"\0", *found):
        target(data)
    for _ in range(60):
        octets = bytearray(dice.choice(found))
        for _ in range(3):
            octets[dice.randrange(len(octets))] = dice.randrange(256)
        target(bytes(octets[: dice.randrange(len(octets) + 1)]))
