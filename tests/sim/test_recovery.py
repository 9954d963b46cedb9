"""Reboots, partitions and peers that vanish, under traffic (RFC 7296 sections 2.4 and 1.5)."""

from __future__ import annotations

from typing import Any

import pytest

from policy.clock import SECOND
from tests.support.sim.scenes import A_TO_B, B_TO_A, Sites, policies, sites
from tunnel.outputs import Shutdown, Status, Terminate


def first_after(scene: Sites, moment: int, host: str) -> float | None:
    """Return how many seconds after *moment* the first packet was delivered at *host*."""
    times = [delivery.time for delivery in scene.world.hosts[host].deliveries if delivery.time > moment]
    return (times[0] - moment) / SECOND if times else None


@pytest.mark.parametrize("flow", [A_TO_B, B_TO_A], ids=["a sends", "b sends"])
@pytest.mark.parametrize("rebooted", ["a", "b"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_reboot_under_traffic_is_over_in_five_seconds(flow: object, rebooted: str, seed: int) -> None:
    # The rebooted end knows nothing: ESP comes for SPIs that it does not have, or it dials with INITIAL_CONTACT.
    scene = sites(seed)
    scene.establish()
    direction, receiver = (A_TO_B, "b") if flow == A_TO_B else (B_TO_A, "a")
    scene.world.stream(direction, every_s=0.05, duration_s=20)
    scene.world.run(2)
    moment = scene.world.now
    scene.world.hosts[rebooted].reboot()
    scene.world.run(20)
    after = first_after(scene, moment + SECOND // 10, receiver)
    assert after is not None
    assert after < 5
    scene.settle()
    assert len(scene.children(scene.a)) == 1


def test_both_ends_reboot_at_once() -> None:
    scene = sites()
    scene.establish()
    scene.a.reboot()
    scene.b.reboot()
    numbers = [scene.world.probe(A_TO_B), scene.world.probe(B_TO_A)]
    scene.world.run(5)
    assert scene.world.missing(numbers) == []
    scene.settle()


def test_a_daemon_that_is_down_for_a_while() -> None:
    scene = sites()
    scene.establish()
    scene.world.stream(A_TO_B, every_s=0.1, duration_s=120)
    scene.b.crash()
    scene.world.run(50)
    scene.b.boot()
    moment = scene.world.now
    scene.world.run(70)
    after = first_after(scene, moment, "b")
    assert after is not None
    assert after < 30
    scene.settle()


@pytest.mark.parametrize("seconds", [2, 20, 200])
def test_a_partition_heals(seconds: int) -> None:
    scene = sites(seconds)
    scene.establish()
    numbers = scene.world.stream(A_TO_B, every_s=0.1, duration_s=seconds + 80)
    scene.world.stream(B_TO_A, every_s=0.1, duration_s=seconds + 80)
    scene.world.run(1)
    scene.world.partition("a")
    scene.world.run(seconds)
    scene.world.partition("a", down=False)
    scene.world.run(70)
    recent = numbers[-60:-10]  # the last ones may be under way
    assert scene.world.missing(recent) == []
    scene.settle(90)


def test_one_direction_is_cut() -> None:
    scene = sites(liveness_s := 5, policies(liveness_s=liveness_s))
    scene.establish()
    link = scene.world.links["a"]
    link.faults.drop_if = lambda packet: packet.source.address == scene.b.addresses[0]
    scene.world.stream(A_TO_B, every_s=0.1, duration_s=200)
    scene.world.run(90)
    # A hears nothing of B any more: liveness checks fail and the SA goes.
    assert any(event.name == "ike_deleted" for event in scene.a.events)
    link.faults.drop_if = None
    scene.world.run(70)
    number = scene.world.probe(A_TO_B)
    scene.world.run(1)
    assert scene.world.arrived(number)
    scene.settle(90)


def test_a_dead_peer_is_noticed_while_idle() -> None:
    scene = sites(both=policies(liveness_s=10))
    scene.establish()
    scene.b.crash()
    scene.world.run(60)
    assert scene.children(scene.a) == []
    status: Any = scene.a.command(Status())
    assert [peer["state"] for peer in status["peers"]] == ["down"]


def test_an_idle_tunnel_stays_up() -> None:
    scene = sites()
    scene.establish()
    before = scene.children(scene.a)
    scene.world.run(1200)
    assert scene.children(scene.a) == before
    scene.settle()


def test_an_orderly_shutdown_tells_the_peer() -> None:
    scene = sites()
    scene.establish()
    assert scene.a.command(Shutdown()) == {"closing": ["198.51.100.1"]}
    scene.world.run(1)
    assert scene.children(scene.a) == scene.children(scene.b) == []
    scene.settle()


def test_nobody_gets_in_during_an_orderly_shutdown() -> None:
    # B has packets all the time and dials at once; an SA that A granted now would be left behind when A exits.
    scene = sites()
    scene.establish()
    numbers = scene.world.stream(B_TO_A, every_s=0.05, duration_s=20)
    scene.world.run(1)
    scene.a.command(Shutdown())
    scene.world.run(3)
    assert scene.children(scene.a) == scene.children(scene.b) == []
    scene.a.reboot()
    scene.world.run(18)
    assert scene.world.missing(numbers[-100:-10]) == []
    scene.settle()


def test_a_terminated_tunnel_comes_back_with_the_next_packet() -> None:
    scene = sites()
    scene.establish()
    answer = scene.a.command(Terminate("LAN to LAN"))
    assert len(answer["terminated"]) == 1  # type: ignore[arg-type]
    scene.world.run(1)
    assert scene.children(scene.b) == []
    number = scene.world.probe(B_TO_A)
    scene.world.run(2)
    assert scene.world.arrived(number)
    scene.settle()
