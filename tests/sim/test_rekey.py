"""Rekeying, alone and colliding, under traffic: no loss on the wire, no packet lost (RFC 7296 section 2.8)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from policy.clock import MILLISECOND
from policy.proposals import Group
from tests.support.sim.net import Faults, Packet
from tests.support.sim.policies import action
from tests.support.sim.scenes import A_TO_B, B_TO_A, Sites, policies, sites
from tunnel.outputs import Rekey, Terminate

CHILD, IKE = Rekey(), Rekey(ike=True)


class Busy:
    """Two sites with an established tunnel and packets both ways all the time, until ``finish``."""

    def __init__(
        self, seed: int = 1, *, duration_s: float = 1.5, every_s: float = 0.007, pairs: int = 1, **options: object
    ) -> None:
        self.pairs = pairs
        self.scene: Sites = sites(seed, **options)  # type: ignore[arg-type]
        self.scene.establish()
        world = self.scene.world
        self.streams = [world.stream(flow, every_s=every_s, duration_s=duration_s) for flow in (A_TO_B, B_TO_A)]
        self.duration_s = duration_s
        world.run(0.1)

    def finish(self) -> None:
        """Let the traffic end: every packet arrived, and both ends agree on one Child SA."""
        world = self.scene.world
        world.run(self.duration_s)
        lost = [number for stream in self.streams for number in world.missing(stream)]
        assert lost == [], f"lost {len(lost)}: {lost[:10]}"
        self.scene.settle()
        assert len(self.scene.children(self.scene.a)) == self.pairs
        assert self.ike_sas() == 1

    def ike_sas(self) -> int:
        """Return how many IKE SAs A has."""
        gateway = self.scene.a.gateway
        assert gateway is not None
        return len(gateway.ike.status(self.scene.world.now))


def test_a_child_rekey() -> None:
    # A --> CREATE_CHILD_SA (REKEY_SA) --> B;  <-- response <--;  A --> INFORMATIONAL (Delete) --> B
    busy = Busy()
    before = busy.scene.children(busy.scene.a)
    busy.scene.a.command(CHILD)
    busy.finish()
    assert busy.scene.children(busy.scene.a) != before


def test_a_child_rekey_with_pfs() -> None:
    busy = Busy(both=policies(action(pfs=Group.X25519)))
    busy.scene.a.command(CHILD)
    busy.finish()


def test_an_ike_rekey_keeps_the_children() -> None:
    busy = Busy()
    before = busy.scene.children(busy.scene.a)
    first = busy.scene.a.status()["peers"][0]["ike_sas"][0]["spi_i"]  # type: ignore[index]
    busy.scene.a.command(IKE)
    busy.finish()
    assert busy.scene.children(busy.scene.a) == before
    assert busy.scene.a.status()["peers"][0]["ike_sas"][0]["spi_i"] != first  # type: ignore[index]


#: What A does, what B does, and how long after A (in ms; the one-way delay is 10 ms).
COLLISIONS = {
    "both rekey the Child SA (2.8.1)": (CHILD, CHILD),
    "both rekey the IKE SA (2.8.1)": (IKE, IKE),
    "Child SA rekey meets IKE SA rekey (2.25.2)": (CHILD, IKE),
    "IKE SA rekey meets Child SA rekey (2.25.2)": (IKE, CHILD),
}


@pytest.mark.parametrize("delay_ms", [0, 3, 9, 11, 19, 21, 29, 35])
@pytest.mark.parametrize("what", list(COLLISIONS))
def test_collisions_lose_nothing(what: str, delay_ms: int) -> None:
    first, second = COLLISIONS[what]
    busy = Busy(delay_ms + 1)
    busy.scene.a.command(first)
    busy.scene.world.schedule.after(delay_ms * MILLISECOND, lambda: busy.scene.b.command(second))
    busy.finish()


@pytest.mark.parametrize("seed", range(1, 5))
def test_the_lower_nonce_loses_whoever_has_it(seed: int) -> None:
    # Both nonces of a collision are decided: with 00.. A's SA is the redundant one, with ff.. B's.
    for octet in (b"\x00", b"\xff"):
        busy = Busy(seed)
        busy.scene.a.entropy.force(octet * 32)
        busy.scene.a.command(CHILD)
        busy.scene.b.command(CHILD)
        busy.finish()


@pytest.mark.parametrize("delay_ms", [0, 5, 15, 25])
def test_everything_at_once(delay_ms: int) -> None:
    busy = Busy(delay_ms + 1)
    schedule = busy.scene.world.schedule
    for step, (host, command) in enumerate(
        [(busy.scene.a, CHILD), (busy.scene.b, IKE), (busy.scene.b, CHILD), (busy.scene.a, IKE)]
    ):
        at = step * delay_ms * MILLISECOND
        schedule.after(at, partial(host.command, command))
    busy.finish()


def is_ike(packet: Packet) -> bool:
    """Whether *packet* is IKE on port 4500."""
    return packet.source.port == 4500 and packet.payload[:4] == bytes(4)


@pytest.mark.parametrize("command", [CHILD, IKE], ids=["child", "ike"])
@pytest.mark.parametrize("lost", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("side", ["a", "b"])
def test_a_lost_message_of_a_rekey_is_sent_again(command: Rekey, lost: int, side: str) -> None:
    # The n-th IKE message that enters the link of A or B is lost: request, response or Delete.
    busy = Busy(lost, duration_s=5, every_s=0.02)
    busy.scene.world.links[side].faults.drop_if = _nth(lost)
    busy.scene.a.command(command)
    busy.finish()


@pytest.mark.parametrize("command", [CHILD, IKE], ids=["child", "ike"])
def test_colliding_rekeys_with_loss_of_ike_alone(command: Rekey) -> None:
    for seed in range(1, 7):
        busy = Busy(seed, duration_s=15, every_s=0.05)
        random = busy.scene.world.schedule.random("losses")
        faults = busy.scene.world.links["a"].faults
        faults.drop_if = lambda p: is_ike(p) and random.random() < 0.3  # noqa: B023
        busy.scene.a.command(command)
        busy.scene.b.command(command)
        busy.finish()


def test_a_rekey_meets_a_delete() -> None:
    # A --> CREATE_CHILD_SA (REKEY_SA) -->  <-- INFORMATIONAL (Delete of the same SA) <-- B
    for delay_ms in (0, 3, 9, 12):
        scene = sites(delay_ms + 1)
        scene.establish()
        scene.a.command(CHILD)
        scene.world.schedule.after(delay_ms * MILLISECOND, lambda: scene.b.command(Terminate()))  # noqa: B023
        scene.world.run(20)
        # Whatever came of it, the next packets find their way.
        numbers = [scene.world.probe(flow) for flow in (A_TO_B, B_TO_A)]
        scene.world.run(20)
        assert scene.world.missing(numbers) == []
        scene.settle()


def test_rekeying_by_time_again_and_again() -> None:
    both = policies(action(lifetime_s=20), ike_lifetime_s=70)
    busy = Busy(both=both, duration_s=100, every_s=0.05)
    busy.finish()
    assert (
        len([e for e in busy.scene.a.events if e.name == "child_rekeyed"])
        + len([e for e in busy.scene.b.events if e.name == "child_rekeyed"])
        >= 4
    )


def test_rekeying_by_octets() -> None:
    both = policies(action(lifetime_bytes=20_000))
    busy = Busy(both=both, duration_s=20, every_s=0.02)
    before = busy.scene.children(busy.scene.a)
    busy.finish()
    assert busy.scene.children(busy.scene.a)[0] > before[0] + 2


@pytest.mark.parametrize("method", ["esp:aes128gcm16", "ah:sha256+esp:aes256-sha256"])
@pytest.mark.parametrize("seed", range(1, 9))
def test_rekeys_at_random_moments_lose_nothing(seed: int, method: str) -> None:
    # Dozens of rekeys of both kinds from both ends, often close together; latency differs with direction and time.
    faults = Faults(latency=seed * MILLISECOND, jitter=seed * MILLISECOND, duplicate=0.1)
    pairs = 2 if "+" in method else 1
    both = policies(action(method))
    busy = Busy(seed, pairs=pairs, both=both, faults=faults, duration_s=5, every_s=0.01)
    schedule = busy.scene.world.schedule
    random = schedule.random("rekeys")
    for _ in range(30):
        host = random.choice((busy.scene.a, busy.scene.b))
        command = random.choice((CHILD, CHILD, IKE))
        schedule.after(random.randrange(4_000) * MILLISECOND, partial(host.command, command))
    busy.finish()


def test_long_lives_with_loss_and_reordering() -> None:
    faults = Faults(latency=10 * MILLISECOND, jitter=5 * MILLISECOND, loss=0.05, reorder=0.05, duplicate=0.05)
    scene = sites(4, policies(action(lifetime_s=30), ike_lifetime_s=100), faults=faults)
    scene.establish()
    streams = [scene.world.stream(flow, every_s=0.1, duration_s=200) for flow in (A_TO_B, B_TO_A)]
    scene.world.run(205)
    for numbers in streams:
        assert len(scene.world.missing(numbers)) < 0.15 * len(numbers)
    faults.loss = faults.reorder = faults.duplicate = 0
    scene.settle()


def _nth(count: int) -> Callable[[Packet], bool]:
    seen = 0

    def test(packet: Packet) -> bool:
        nonlocal seen
        if not is_ike(packet):
            return False
        seen += 1
        return seen == count

    return test
