"""The guard is restored after every loss, one after the other, and never because of what the agent does itself."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Coroutine

from policy.spd import Snapshot, Spd
from tests.host.test_ruleset import hosts
from tests.host.test_sockets import in_a_namespace
from tunnel.agent.guardkeeper import GuardKeeper
from tunnel.agent.log import Log
from tunnel.host.steering import Steering
from tunnel.host.system import HostError, run


class Kept:
    """A guard with its keeper; ``restored`` counts."""

    def __init__(self, filters: int = 3) -> None:
        self.steering = Steering("mg0")
        self.restored = 0
        self.refusals = 0
        self._tasks: list[asyncio.Task[None]] = []
        self.keeper = GuardKeeper(
            self.steering, Log("error", io.StringIO()), on_host=self._on_host, spawn=self._spawn
        )
        self.guard(filters)
        self.keeper.start()

    def guard(self, filters: int) -> None:
        self.steering.guard(Snapshot(generation=1, spd=Spd(tuple(hosts(filters)))))

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        self._tasks.append(asyncio.get_running_loop().create_task(work))

    async def _on_host(self, work: Callable[[], None]) -> None:
        if self.refusals:
            self.refusals -= 1
            raise HostError("nft says no")
        work()
        self.restored += 1

    async def until(self, restored: int) -> None:
        for _ in range(200):
            if self.restored == restored:
                break
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)  # and nothing more
        assert self.restored == restored


@in_a_namespace
def test_each_loss_is_mended() -> None:
    async def body() -> None:
        kept = Kept()
        sound = run(["nft", "list", "table", "inet", "mirrorgate"])
        for count, damage in enumerate(
            [
                ["flush", "ruleset"],
                ["flush", "chain", "inet", "mirrorgate", "postrouting"],
                ["delete", "table", "inet", "mirrorgate"],
                ["insert", "rule", "inet", "mirrorgate", "output", "accept"],
                ["flush", "table", "inet", "mirrorgate"],
            ],
            1,
        ):
            run(["nft", *damage])
            await kept.until(count)
            assert run(["nft", "list", "table", "inet", "mirrorgate"]) == sound, damage
        kept.keeper.stop()

    asyncio.run(body())


@in_a_namespace
def test_a_change_by_others_right_behind_a_replacement_of_ours_is_mended() -> None:
    """Both are read in one look: an ifup script reloads rules while a reload recompiles."""

    async def body() -> None:
        kept = Kept()
        await asyncio.sleep(0.05)
        kept.guard(4)
        sound = run(["nft", "list", "table", "inet", "mirrorgate"])
        run(["nft", "insert", "rule", "inet", "mirrorgate", "postrouting", "accept"])
        await kept.until(1)
        assert run(["nft", "list", "table", "inet", "mirrorgate"]) == sound
        kept.keeper.stop()

    asyncio.run(body())


@in_a_namespace
def test_replacements_of_our_own_are_no_loss_however_large() -> None:
    async def body() -> None:
        kept = Kept()
        for filters in (5, 250, 3):
            kept.guard(filters)
            await kept.until(0)
        wide = [each for n in range(40) for each in hosts(250, 1000 + n)]
        kept.steering.guard(Snapshot(generation=2, spd=Spd(tuple(wide))))  # more than the watch can follow
        await kept.until(0)
        kept.keeper.stop()

    asyncio.run(body())


@in_a_namespace
def test_what_cannot_be_restored_is_tried_again() -> None:
    async def body() -> None:
        kept = Kept()
        kept.refusals = 2
        run(["nft", "flush", "ruleset"])
        await kept.until(1)
        kept.keeper.stop()
        run(["nft", "flush", "ruleset"])
        await kept.until(1)

    asyncio.run(body())
