"""Keeps the guard in force: an nftables table that somebody took away or changed is back in milliseconds.

So is the one that nobody else can take away, when the process that holds it ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine

from ike.events import Level
from tunnel.agent.log import Log
from tunnel.host.guardwatch import GuardWatch, Loss
from tunnel.host.steering import Steering
from tunnel.host.system import HostError

#: The wait before another try when nft refuses the table: first, and longest.
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.3, 30.0
#: Who takes it away again and again is told of so often.
_TOLD_EVERY_S = 1.0
#: How often is looked whether the held guard is there.
_LOOK_EVERY_S = 0.25


class GuardKeeper:
    """Watches the table that *steering* makes. *on_host* runs a call that blocks, *spawn* a task.

    Made before the table is, so that nothing is missed between. HostError where the kernel tells nobody.
    """

    def __init__(
        self,
        steering: Steering,
        log: Log,
        *,
        on_host: Callable[[Callable[[], None]], Awaitable[None]],
        spawn: Callable[[Coroutine[None, None, None]], None],
    ) -> None:
        self._steering, self._log = steering, log
        self._on_host, self._spawn = on_host, spawn
        try:
            self._watch = GuardWatch(lambda: steering.revisions)
        except OSError as error:
            raise HostError(f"changes of nftables cannot be watched: {error.strerror}") from error
        self._replaced = 0
        self._loss: Loss | None = None
        self._restoring = self._stopped = False
        self._told = float("-inf")

    def start(self) -> None:
        """Look, and restore, from now on."""
        asyncio.get_running_loop().add_reader(self._watch.fd, self._changed)
        self._spawn(self._hold())

    def stop(self) -> None:
        """Look and restore no more: what comes after takes the table away. Also without ``start``."""
        self._loss = None
        self._stopped = True
        asyncio.get_running_loop().remove_reader(self._watch.fd)
        self._watch.close()

    def _changed(self) -> None:
        loss = self._watch.look()
        before, self._replaced = self._replaced, self._steering.replaced
        crossed = loss is Loss.UNKNOWN and before != self._replaced
        if loss is None or (crossed and self._watch.stands()):
            return  # it stands, or what could not be followed was a replacement of our own
        self._loss = loss
        if not self._restoring:
            self._restoring = True
            self._spawn(self._restore())

    async def _restore(self) -> None:
        wait = _FIRST_WAIT_S
        try:
            while (loss := self._loss) is not None:
                self._loss = None
                try:
                    await self._on_host(self._steering.restore)
                except Exception as error:
                    self._loss = loss
                    what = f"the guard {loss.value} and cannot be restored, next try in {wait:g} s: {error}"
                    self._log.say(Level.ERROR, "guard_lost", what)
                    await asyncio.sleep(wait)
                    wait = min(2 * wait, _LONGEST_WAIT_S)
                    continue
                self._tell(loss)
        finally:
            self._restoring = False

    def _tell(self, loss: Loss) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._told >= _TOLD_EVERY_S:
            self._told = now
            meanwhile = (
                "Until then what it requires to be protected was dropped where it could not be steered"
                if self._steering.can_hold and self._steering.not_held() is None
                else "Until then packets could pass in clear"
            )
            what = (
                f"the nftables table of the guard {loss.value}, not by this agent; it is in force again. "
                f"{meanwhile}: whoever loads other rules should not flush the whole ruleset"
            )
            self._log.say(Level.WARNING, "guard_lost", what)

    async def _hold(self) -> None:
        """Put the held guard in force again after its process ended; without it where this host cannot have it."""
        wait = _FIRST_WAIT_S
        while not self._stopped:
            if (why := self._steering.not_held()) is None:
                await asyncio.sleep(_LOOK_EVERY_S)
                continue
            if not self._steering.can_hold:
                what = f"{why}. While others flush the ruleset, packets can pass in clear for some milliseconds"
                self._log.say(Level.WARNING, "guard_unheld", what)
                return
            try:
                await self._on_host(self._steering.hold)
            except HostError as error:
                what = f"{why}, and it cannot be made anew, next try in {wait:g} s: {error}"
                self._log.say(Level.ERROR, "guard_unheld", what)
                await asyncio.sleep(wait)
                wait = min(2 * wait, _LONGEST_WAIT_S)
                continue
            wait = _FIRST_WAIT_S
            what = f"the guard that others cannot flush was away and is in force again: {why}"
            self._log.say(Level.WARNING, "guard_unheld", what)
