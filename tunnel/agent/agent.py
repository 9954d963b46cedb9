"""The Policy Agent: puts the assigned policy in force, and keeps it so while file, addresses and names change.

Order at start: policy, guard, TUN, routes, sockets, loop. From the guard on nothing that the policy protects can
leave in clear, whatever fails afterwards.
"""

from __future__ import annotations

import asyncio
import signal
import traceback
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from typing import TypeVar

import uvloop

from ike.events import Level
from policy.clock import SECOND
from policy.path import Endpoint, IpAddress
from policy.problems import ConfigErrors
from policy.spd import Snapshot
from tunnel.agent import capture, metrics
from tunnel.agent.control import ControlServer, RequestError
from tunnel.agent.guardkeeper import GuardKeeper
from tunnel.agent.log import LEVELS, Log
from tunnel.agent.policies import AssignedPolicy, NoSuchPolicy
from tunnel.agent.requests import Requests
from tunnel.agent.runtime import Runtime
from tunnel.dataplane.reference import ReferenceDataPlane
from tunnel.gateway import Gateway
from tunnel.host import addresses, names, privileges, process
from tunnel.host.addresses import HostAddresses
from tunnel.host.heldguard import HeldGuard
from tunnel.host.steering import Steering, counters, forwarding_hints, tune
from tunnel.host.system import HostError
from tunnel.host.tun import Tun
from tunnel.host.wire import Wire
from tunnel.outputs import Command, Shutdown, SoftSa

#: Seconds after which a policy without DNS names is looked at for some; changes of addresses are gathered so long.
_NAMES_EVERY_S = 60.0
_SETTLE_S = 0.3
#: The longest wait between two tries to make the TUN anew.
_LONGEST_WAIT_S = 30.0
#: How long an orderly stop waits for the peers' answers to its deletes.
_FAREWELL_S = 1.0
_FIRST_MTU = 1400
#: Peers whose routes are looked up, some 50 us each, before packets have their turn again.
_PEERS_A_TURN = 32

_Result = TypeVar("_Result")


class Agent:
    """One agent, from start to orderly stop. ``run`` is the whole life."""

    def __init__(self, policies: AssignedPolicy, log: Log) -> None:
        self._policies = policies
        self._log = log
        settings = policies.configuration.agent
        self._steering = Steering(settings.tun, HeldGuard())
        self._snapshot = Snapshot(generation=0)
        self._host = HostAddresses()
        self._names: Mapping[str, Sequence[IpAddress]] = {}
        self._stopping = asyncio.Event()
        self._changing = asyncio.Lock()
        self._look = asyncio.Event()
        self._born = process.now()
        self._lag = metrics.Lag()
        self._dataplane: ReferenceDataPlane
        self._runtime: Runtime
        self._guard: GuardKeeper
        self._tasks: list[asyncio.Task[None]] = []
        self._ask_again_s = _NAMES_EVERY_S
        self._unreachable: set[IpAddress] = set()
        #: Runs ``ip`` and ``nft``, one after the other, while packets go on.
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="host")

    async def run(self) -> None:
        """Live until SIGTERM or SIGINT. HostError or ConfigErrors when it cannot start; then nothing is left."""
        settings = self._policies.configuration.agent
        lacking = privileges.lacking()
        leftover = bool(counters()) if not lacking else False
        self._host = addresses.current(settings.tun)
        self._names = await self._resolve(self._policies.assigned)
        self._snapshot = self._policies.compile(self._policies.assigned, self._host, self._names, self._snapshot)
        if lacking:
            names = ", ".join(f"CAP_{capability.name}" for capability in lacking)
            raise HostError(
                "the agent needs root: it opens a TUN device and raw sockets and sets nftables rules "
                f"(of the capabilities for it, {names} is lacking)"
            )
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        loop.add_signal_handler(signal.SIGHUP, lambda: self._spawn(self._reload_quietly()))
        async with self._changing:
            await self._start(leftover)
        await self._serve()

    def command(self, command: Command) -> dict[str, object]:
        """Give the gateway a command and carry out what follows."""
        answer = self._runtime.gateway.command(command, process.now())
        self._runtime.drain()
        return answer

    @property
    def capturing(self) -> bool:
        """Whether a client captures now."""
        return self._runtime.tap is not None

    def negotiates(self, rule: str) -> bool:
        """Whether any filter of *rule* asks for security."""
        entries = self._runtime.gateway.snapshot.spd.entries
        return any(entry.rule == rule and entry.protection is not None for entry in entries)

    def capture(
        self, rule: str | None, *, seconds: float, count: int, to: str
    ) -> AsyncGenerator[dict[str, object], None]:
        """Return packets and keys as they come; see ``capture.stream``."""
        tap = capture.Tap(self._runtime.gateway, self._dataplane, rule)

        def attach(tap: capture.Tap | None) -> None:
            self._runtime.tap = tap

        say = partial(self.say, Level.WARNING, "capture")
        return capture.stream(tap, seconds=seconds, count=count, attach=attach, say=say, to=to)

    def say(self, level: Level, name: str, message: str) -> None:
        """Write an event of the agent's own to the log."""
        self._log.say(level, name, message)

    def uptime(self) -> int:
        """Return the seconds since the start."""
        return (process.now() - self._born) // 10**9

    def health(self) -> dict[str, object]:
        """Return what sockets and TUN could not do, how late the event loop was, and whether somebody captures."""
        return {
            "errors": {**self._runtime.wire.errors, "tun_write": self._runtime.tun.write_errors},
            "loop_lag_s": round(self._lag.worst(), 6),
            "capturing": self.capturing,
        }

    async def reload(self) -> dict[str, object]:
        """Read the config file again. RequestError when it has mistakes; then nothing changes."""
        process.notify("RELOADING=1")
        try:
            async with self._changing:
                await self._reread()
        except (ConfigErrors, NoSuchPolicy, HostError) as error:
            self._log.say(
                Level.WARNING, "reload_refused", f"nothing changed: {'; '.join(str(error).splitlines())}"
            )
            raise RequestError(f"nothing changed: {error}") from error
        finally:
            process.notify("READY=1")
        self._log.level, self._log.form = _level(self._policies), self._policies.configuration.agent.log_format
        for warning in self._policies.warnings:
            self._log.say(Level.WARNING, "config", str(warning))
        return self._in_force()

    async def assign(self, name: str | None) -> dict[str, object]:
        """Put the policy called *name* in force, or none. RequestError when it is not there or is wrong."""
        try:
            async with self._changing:
                await self._change(name)
                self._policies.assigned = name
        except (ConfigErrors, NoSuchPolicy, HostError) as error:
            raise RequestError(str(error)) from error
        return self._in_force()

    async def _reread(self) -> None:
        """Put what the file says now in force; on any error it is as before."""
        policies = self._policies
        before = policies.configuration, policies.warnings, policies.assigned
        try:
            await self._on_host(policies.reread)
            await self._change(policies.assigned)
        except BaseException:
            policies.configuration, policies.warnings, policies.assigned = before
            raise
        old, new = before[0].agent, policies.configuration.agent
        for name in ("tun", "control", "metrics", "offload"):
            if getattr(old, name) != getattr(new, name):
                self._log.say(
                    Level.WARNING, "config", f"agent.{name} changes with the next start, not by a reload"
                )

    def _in_force(self) -> dict[str, object]:
        return {"policy": self._snapshot.policy, "generation": self._snapshot.generation}

    async def _start(self, leftover: bool) -> None:
        """Claim what only one agent can have, then guard, TUN and routes; on any error undo what was done."""
        settings = self._policies.configuration.agent
        with ExitStack() as undo:
            requests = Requests(self)
            self._control = ControlServer(settings.control, requests.handle, failed=self._failed, log=self._log)
            self._control.claim()
            undo.callback(self._control.stop)
            wire = Wire(offload=settings.offload != "off", path_mtu=self._path_mtu)
            undo.callback(wire.close)
            self._guard = GuardKeeper(self._steering, self._log, on_host=self._on_host, spawn=self._spawn)
            undo.callback(self._guard.stop)
            if not leftover:  # after a crash the guard stays until an agent takes it over
                undo.callback(self._open_guard)
            await self._on_host(self._steering.guard, self._snapshot)
            tun = await self._open_tun()
            undo.callback(tun.destroy)
            self._dataplane = ReferenceDataPlane(tun_features=tun.offload)
            self._runtime = Runtime(
                asyncio.get_running_loop(), Gateway(entropy=process.entropy, dataplane=self._dataplane),
                tun=tun, wire=wire,
                on_event=self._log.event, on_mtu=self._mtu, on_tun_gone=lambda: self._spawn(self._tun_gone()),
                on_steer=self._steer, on_soft=self._soft,
            )  # fmt: skip
            self._metrics = await metrics.serve(settings.metrics, requests.status) if settings.metrics else None
            self._runtime.gateway.load(self._snapshot, process.now())
            self._runtime.drain()
            await self._tell_paths()
            await self._control.start()
            undo.pop_all()
        self._runtime.start()
        # What is there now stays: the collector need not look through it again while packets wait.
        process.calm_collector()

    async def _open_tun(self) -> Tun:
        """Return the TUN, up and with the routes to it."""
        settings = self._policies.configuration.agent
        tun = Tun(self._steering.tun, offload=settings.offload, refused=self._offload_refused)
        try:
            await self._on_host(tun.up, _FIRST_MTU)
            for warning in await self._on_host(tune, tun.name):
                self._log.say(Level.WARNING, "host", warning)
            await self._on_host(self._steering.route, self._snapshot)
        except BaseException:
            tun.destroy()
            raise
        return tun

    def _open_guard(self) -> None:
        with suppress(HostError):
            self._worker.submit(self._steering.remove).result()

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        watcher = addresses.Watcher()
        loop.add_reader(watcher.fd, self._addresses_changed, watcher)
        self._guard.start()
        for warning in (*map(str, self._policies.warnings), *self._snapshot.warnings):
            self._log.say(Level.WARNING, "config", warning)
        for hint in forwarding_hints(self._snapshot):
            self._log.say(Level.WARNING, "host", hint)
        self._spawn(self._follow_addresses())
        self._spawn(self._follow_names())
        self._spawn(self._watchdog())
        self._spawn(self._lag.follow())
        self._log.say(Level.INFO, "ready", f"the agent is up; TUN {self._runtime.tun.name}")
        process.notify(f"READY=1\nSTATUS=policy {self._snapshot.policy or 'none'}")
        try:
            await self._stopping.wait()
        finally:
            process.notify("STOPPING=1")
            loop.remove_reader(watcher.fd)
            watcher.close()
            await self._farewell()

    async def _farewell(self) -> None:
        """Tell the peers, then undo everything in the reverse order of the start. HostError when a step failed."""
        self._control.stop()
        if self._metrics is not None:
            self._metrics.close()
        for task in self._tasks:
            task.cancel()
        closing = self.command(Shutdown()).get("closing")
        until = process.now() + int(_FAREWELL_S * 1e9)
        # The core calls nobody back: look whether the answers came.
        while closing and process.now() < until and self._runtime.gateway.ike.status(process.now()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        self._runtime.stop()
        self._guard.stop()
        failed: list[str] = []
        # Whatever the worker still does for a change that was cancelled, it does before this.
        for step in (self._steering.remove, self._runtime.wire.close, self._runtime.tun.destroy):
            try:
                await self._on_host(step)
            except (HostError, OSError) as error:
                failed.append(str(error))
        if failed:
            raise HostError(f"the stop was not orderly, look what is left: {'; '.join(failed)}")
        self._log.say(Level.INFO, "stopped", "orderly: SAs deleted, guard, routes and TUN removed")

    async def _change(self, name: str | None) -> None:
        """Compile and put in force: guard first, then the core, then routes. The caller has the lock."""
        answers = await self._resolve(name)
        snapshot = await self._on_host(self._policies.compile, name, self._host, answers, self._snapshot)
        gateway = self._runtime.gateway
        steered = snapshot.with_dynamic(gateway.children.dynamic.values())
        await self._on_host(self._steering.guard, steered)
        self._names, self._snapshot = answers, snapshot
        gateway.load(snapshot, process.now())
        self._runtime.drain()
        if gateway.snapshot.spd != steered.spd:  # a peer was granted something while the guard was replaced
            self._steer(gateway.snapshot)
        for warning in snapshot.warnings:
            self._log.say(Level.WARNING, "config", warning)
        try:
            await self._on_host(self._steering.route, snapshot)
        except HostError as error:
            # The policy is in force, and its guard: what the routes do not lead into the TUN is dropped.
            self._log.say(Level.ERROR, "routes", str(error))
        await self._tell_paths()

    async def _recompile(self, why: str) -> None:
        """Put the same policy in force again; what does not compile leaves the old one."""
        try:
            async with self._changing:
                await self._change(self._policies.assigned)
        except (ConfigErrors, NoSuchPolicy, HostError) as error:
            lines = "; ".join(str(error).splitlines())
            self._log.say(Level.WARNING, "policy_kept", f"{why}, but the policy of before stays in force: {lines}")

    async def _on_host(self, work: Callable[..., _Result], *arguments: object) -> _Result:
        """Do in the worker what would hold up packets; one thing at a time."""
        return await asyncio.get_running_loop().run_in_executor(self._worker, partial(work, *arguments))

    async def _resolve(self, policy: str | None) -> Mapping[str, Sequence[IpAddress]]:
        """Return the addresses of the names in *policy*, and note when to ask again: when the first is too old."""
        wanted = self._policies.dns_names(policy)
        if not wanted:
            return {}
        found = await asyncio.get_running_loop().run_in_executor(None, names.resolve, wanted)
        self._ask_again_s = min(answer.ttl for answer in found.values())
        return {name: answer.addresses for name, answer in found.items()}

    def _addresses_changed(self, watcher: addresses.Watcher) -> None:
        watcher.drain()
        self._look.set()

    async def _follow_addresses(self) -> None:
        while True:
            await self._look.wait()
            await asyncio.sleep(_SETTLE_S)
            self._look.clear()
            try:
                found = await self._on_host(addresses.current, self._steering.tun)
            except HostError as error:
                self._log.say(Level.WARNING, "host", str(error))
                continue
            if found != self._host:
                self._host = found
                self._log.say(Level.INFO, "addresses", f"now {', '.join(map(str, found.addresses)) or 'none'}")
                await self._recompile("this host's addresses changed")
            else:
                await self._tell_paths()
                if await self._on_host(self._steering.stale):  # entries for one kind of interface
                    await self._recompile("this host's interfaces changed")
                await self._heal()

    async def _heal(self) -> None:
        """Put back the routes and rules that somebody took away. Until then the guard drops what they led."""
        async with self._changing:
            try:
                if await self._on_host(self._steering.intact):
                    return
                self._log.say(
                    Level.WARNING, "steering_lost", "routes or rules of ours are gone; putting them back"
                )
                await self._on_host(self._runtime.tun.up, self._dataplane.tun_mtu())
                await self._on_host(self._steering.route, self._snapshot)
            except HostError as error:
                self._log.say(Level.ERROR, "routes", str(error))

    async def _follow_names(self) -> None:
        while True:
            await asyncio.sleep(self._ask_again_s)
            answers = await self._resolve(self._policies.assigned)
            known = {name: set(found) for name, found in self._names.items()}
            if any(found and set(found) != known.get(name) for name, found in answers.items()):
                await self._recompile("a DNS name of the policy has other addresses now")

    async def _watchdog(self) -> None:
        every = process.watchdog_seconds()
        while every is not None:
            process.notify("WATCHDOG=1")
            await asyncio.sleep(every)

    async def _tun_gone(self) -> None:
        """Make the TUN anew after somebody deleted it. Meanwhile the guard drops what the policy protects."""
        async with self._changing:
            name = self._runtime.tun.name
            self._log.say(Level.WARNING, "tun_gone", f"the TUN {name} was deleted; making it anew")
            self._runtime.tun.close()
            wait = _SETTLE_S
            while True:
                await asyncio.sleep(wait)
                try:
                    tun = await self._open_tun()
                    tun.set_mtu(self._dataplane.tun_mtu())
                    break
                except HostError as error:
                    wait = min(2 * wait, _LONGEST_WAIT_S)
                    what = f"{error}; what the policy protects stays blocked, next try in {wait:g} s"
                    self._log.say(Level.ERROR, "tun_lost", what)
            self._dataplane.set_offload(tun.offload)
            self._runtime.attach_tun(tun)

    async def _reload_quietly(self) -> None:
        with suppress(RequestError):
            await self.reload()

    async def _tell_paths(self) -> None:
        """Tell the core from which address, and with which MTU, each peer is reached; some peers a turn."""
        unreachable: set[IpAddress] = set()
        for number, address in enumerate(dict.fromkeys(peer.address for peer in self._snapshot.pad.peers), 1):
            if address is None:
                continue
            if number % _PEERS_A_TURN == 0:
                await asyncio.sleep(0)
            route = addresses.route_to(address)
            if route is None:
                unreachable.add(address)
                if address not in self._unreachable:
                    self._log.say(Level.WARNING, "no_route", f"there is no route to the peer {address}")
                continue
            self._runtime.gateway.source(address, route.source, process.now())
            self._runtime.drain()
            self._runtime.path_mtu(Endpoint(address, 0), route.mtu)
        self._unreachable = unreachable

    def _path_mtu(self, remote: Endpoint, mtu: int) -> None:
        self._runtime.path_mtu(remote, mtu)

    def _offload_refused(self, offload: object) -> None:
        self._log.say(Level.WARNING, "offload", "the kernel refuses superpackets on the TUN; going on without")
        self._dataplane.set_offload(self._runtime.tun.offload)

    def _steer(self, snapshot: Snapshot) -> None:
        """Put steering and guard of dynamic entries in force at once: the peer is answered only behind it."""
        self._steering.guard(snapshot)

    def _soft(self, soft: SoftSa) -> None:
        self._steering.soft(soft.local, soft.remote, soft.lifetime // SECOND)

    def _mtu(self, mtu: int) -> None:
        try:
            self._runtime.tun.set_mtu(mtu)
        except HostError as error:
            self._log.say(Level.WARNING, "host", str(error))

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.append(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.remove(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failed(error)

    def _failed(self, error: BaseException) -> None:
        """Log a bug of ours: where it is, and not what it says, which may be a secret's."""
        where = traceback.extract_tb(error.__traceback__)[-1]
        message = f"{type(error).__name__} in {where.name} ({where.filename}:{where.lineno}); going on"
        self._log.say(Level.ERROR, "internal_error", message)


def run(policies: AssignedPolicy) -> None:
    """Run an agent to its end. HostError, ConfigErrors."""
    process.harden()
    if not privileges.lacking():
        privileges.drop(privileges.NEEDED | privileges.reader_of([policies.path]))

    settings = policies.configuration.agent
    log = Log(settings.log_level, form=settings.log_format)

    async def life() -> None:
        await Agent(policies, log).run()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(life())


def _level(policies: AssignedPolicy) -> Level:
    return LEVELS[policies.configuration.agent.log_level]
