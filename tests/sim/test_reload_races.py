"""The policy changes in the middle of an exchange: what was asked for under the old one must not outlive it."""

from __future__ import annotations

import pytest

from policy.clock import MILLISECOND
from tests.support.sim.policies import action
from tests.support.sim.scenes import A_TO_B, B_TO_A, Sites, policies, sites
from tunnel.outputs import Rekey

NARROW = (("10.1.0.0/28", "10.2.0.0/24"),)
ANOTHER = (("10.1.0.0/25", "10.2.0.0/24"), ("10.1.0.128/25", "10.2.0.0/24"))


def narrowed(scene: Sites, filters: tuple[tuple[str, str], ...]) -> None:
    """Assign narrower policies at both ends."""
    a, b = policies(filters=filters)
    scene.a.assign(a)
    scene.b.assign(b)


@pytest.mark.parametrize("filters", [NARROW, ANOTHER], ids=["narrow", "split"])
@pytest.mark.parametrize("delay_ms", [1, 6, 11, 16, 21, 26, 31, 36, 41])
def test_while_the_first_sa_is_negotiated(filters: tuple[tuple[str, str], ...], delay_ms: int) -> None:
    # IKE_SA_INIT, IKE_AUTH: 10 ms each way. The world checks that no Child SA is wider than its entry.
    scene = sites(delay_ms)
    scene.world.probe(A_TO_B)
    scene.world.schedule.after(delay_ms * MILLISECOND, lambda: narrowed(scene, filters))
    scene.world.run(5)
    numbers = [scene.world.probe(A_TO_B), scene.world.probe(B_TO_A)]
    scene.world.run(5)
    assert scene.world.missing(numbers) == []
    scene.settle()


@pytest.mark.parametrize("filters", [NARROW, ANOTHER], ids=["narrow", "split"])
@pytest.mark.parametrize("delay_ms", [1, 6, 11, 16, 21])
@pytest.mark.parametrize("ike", [False, True], ids=["child", "ike"])
def test_while_an_sa_is_rekeyed(filters: tuple[tuple[str, str], ...], delay_ms: int, ike: bool) -> None:
    scene = sites(delay_ms)
    scene.establish()
    scene.a.command(Rekey(ike=ike))
    scene.world.schedule.after(delay_ms * MILLISECOND, lambda: narrowed(scene, filters))
    scene.world.run(5)
    numbers = [scene.world.probe(A_TO_B), scene.world.probe(B_TO_A)]
    scene.world.run(5)
    assert scene.world.missing(numbers) == []
    scene.settle()


@pytest.mark.parametrize("delay_ms", [1, 6, 11, 16, 21])
def test_while_only_one_end_changes(delay_ms: int) -> None:
    scene = sites(delay_ms)
    scene.establish()
    scene.a.command(Rekey())
    scene.world.schedule.after(
        delay_ms * MILLISECOND, lambda: scene.a.assign(policies(action("esp:aes256gcm16"), filters=NARROW)[0])
    )
    scene.world.run(3)
    scene.a.assign(policies()[0])
    scene.world.run(15)
    numbers = [scene.world.probe(A_TO_B), scene.world.probe(B_TO_A)]
    scene.world.run(5)
    assert scene.world.missing(numbers) == []
    scene.settle()
