"""The event loop's side of the gateway: descriptors become inputs, outputs become system calls, one timer.

The loop is driven through ``add_reader``, ``add_writer`` and ``call_at`` only, so that any asyncio loop serves.
Each readiness moves one bounded burst and returns, so that TUN, wire, timers and control share the loop fairly.
"""

from __future__ import annotations

import asyncio
import contextlib
import traceback
from collections.abc import Callable
from functools import partial

from ike.events import Event, Level
from policy.clock import Nanos
from policy.path import Endpoint
from policy.spd import Snapshot
from tunnel import pump
from tunnel.agent.capture import Tap
from tunnel.dataplane.contract import Transmit, WriteTun
from tunnel.gateway import Gateway
from tunnel.host.process import now
from tunnel.host.sockets import WireSocket
from tunnel.host.toobig import TooBigSocket
from tunnel.host.tun import Tun, TunGone
from tunnel.host.wire import Wire
from tunnel.outputs import Output, SoftSa, Steer, TunMtu

#: Of the TUN's frames, which may be single packets, as many a wake-up as one send takes; a socket says how many
#: reads it wants (``reads``).
_FRAMES = 64
#: Messages of IKE's own socket that go before each burst of the other one on its port.
_FIRST = 4
#: The longest sleep of the timer.
_LOOK_S = 20.0


class Runtime:
    """Feeds *gateway* from *tun* and *wire* and carries out what it wants.

    *on_tun_gone* is called when the TUN was deleted, *on_mtu* when it should have another MTU, *on_steer* and
    *on_soft* when steering and guard should change: before any output behind it is carried out.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        gateway: Gateway,
        *,
        tun: Tun,
        wire: Wire,
        on_event: Callable[[Event], None],
        on_mtu: Callable[[int], None],
        on_tun_gone: Callable[[], None],
        on_steer: Callable[[Snapshot], None],
        on_soft: Callable[[SoftSa], None],
    ) -> None:
        self._loop = loop
        self.gateway = gateway
        self.tun = tun
        self.wire = wire
        wire.screen(gateway.dataplane.known_spis())
        self._on_event, self._on_mtu, self._on_tun_gone = on_event, on_mtu, on_tun_gone
        self._on_steer, self._on_soft = on_steer, on_soft
        self._timer: asyncio.TimerHandle | None = None
        self._due: Nanos | None = None
        self._reading_tun = False
        self._tun_lost = False
        #: Sockets that wait to become writable, by descriptor, and path MTUs that wait for the burst to end.
        self._full: set[int] = set()
        self._mtus: dict[Endpoint, int] = {}
        #: While an operator captures: sees all that comes and goes.
        self.tap: Tap | None = None

    def start(self) -> None:
        """Read from all descriptors from now on."""
        self.attach_tun(self.tun)
        for sock in self.wire.readable():
            self._loop.add_reader(sock.fd, self._guarded(partial(self._wire_ready, sock)))

    def stop(self) -> None:
        """Read no more."""
        self.detach_tun()
        for sock in self.wire.readable():
            self._loop.remove_reader(sock.fd)
            self._loop.remove_writer(sock.fd)
        if self._timer is not None:
            self._timer.cancel()

    def attach_tun(self, tun: Tun) -> None:
        """Read from *tun*."""
        self.tun = tun
        self._tun_lost = False
        self._reading_tun = True
        if not self._full:
            self._loop.add_reader(tun.fd, self._guarded(self._tun_ready))

    def detach_tun(self) -> None:
        """Read no more from the TUN."""
        if self._reading_tun:
            self._loop.remove_reader(self.tun.fd)
            self._reading_tun = False

    def drain(self) -> None:
        """Carry out the outputs of the last mutation and set the timer."""
        self._arm(pump.drain(self.gateway, self._carry_out))
        if self.tap is not None:
            self.tap.learn()

    def path_mtu(self, remote: Endpoint, mtu: int) -> None:
        """Take a report of a socket, once the burst under way is over: one mutation at a time."""
        if not self._mtus:
            self._loop.call_soon(self._guarded(self._take_path_mtus))
        self._mtus[remote] = mtu

    def _take_path_mtus(self) -> None:
        reports, self._mtus = self._mtus, {}
        for remote, mtu in reports.items():
            self.gateway.path_mtu(remote, mtu, now())
            self.drain()

    def _tun_ready(self) -> None:
        try:
            frames = self.tun.read(_FRAMES)
        except TunGone:
            self._lose_tun()
            return
        if frames:
            if self.tap is not None:
                self.tap.from_tun(frames)
            self.gateway.handle_tun(frames, now())
            self.drain()

    def _wire_ready(self, sock: WireSocket | TooBigSocket) -> None:
        if sock.apart is not None:
            self._take(sock.apart, _FIRST)
        self._take(sock, sock.reads)

    def _take(self, sock: WireSocket | TooBigSocket, reads: int) -> None:
        datagrams = sock.receive(reads, unseen=self.tap is None)  # an operator who captures sees all
        if sock.unseen:
            self.gateway.dataplane.drop_unknown(sock.unseen)
            sock.unseen = 0
        if datagrams:
            if self.tap is not None:
                self.tap.from_wire(datagrams)
            self.gateway.handle_wire(datagrams, now())
            self.drain()

    def _timeout(self) -> None:
        self._timer = self._due = None
        self.gateway.handle_timeout(now())
        self.drain()

    def _arm(self, deadline: Nanos | None) -> None:
        if deadline == self._due:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._due = deadline
        if deadline is not None:
            # The loop's clock stands still while the machine sleeps: look at ours once in a while.
            delay = min(max(0, deadline - now()) / 1e9, _LOOK_S)
            self._timer = self._loop.call_later(delay, self._guarded(self._timeout))

    def _carry_out(self, output: Output) -> None:
        """Do what *output* says. It never raises: the outputs behind it have to be carried out too."""
        try:
            if self.tap is not None:
                self.tap.output(output)
            match output:
                case Transmit():
                    sock = self.wire.send(output)
                    if sock is not None and sock.blocked:
                        self._wait_for(sock)
                case WriteTun():
                    if not self._tun_lost:
                        self.tun.write(output.frames)
                case Event():
                    self._on_event(output)
                case TunMtu(mtu):
                    self._on_mtu(mtu)
                case Steer(snapshot):
                    self._on_steer(snapshot)
                case SoftSa():
                    self._on_soft(output)
        except TunGone:
            self._lose_tun()
        except Exception as error:
            self._report(error)

    def _lose_tun(self) -> None:
        """Somebody deleted the TUN: say so once, and neither read nor write until there is another."""
        if not self._tun_lost:
            self._tun_lost = True
            self.detach_tun()
            self._on_tun_gone()

    def _wait_for(self, sock: WireSocket) -> None:
        """A full socket pauses the TUN: better that its queue is full than that sealed packets are thrown away."""
        if sock.fd in self._full:
            return
        self._full.add(sock.fd)
        if self._reading_tun:
            self._loop.remove_reader(self.tun.fd)
        self._loop.add_writer(sock.fd, self._guarded(partial(self._writable, sock)))

    def _writable(self, sock: WireSocket) -> None:
        sock.flush()
        if sock.blocked:
            return
        self._loop.remove_writer(sock.fd)
        self._full.discard(sock.fd)
        if self._reading_tun and not self._full:
            self._loop.add_reader(self.tun.fd, self._guarded(self._tun_ready))

    def _guarded(self, callback: Callable[[], object]) -> Callable[[], None]:
        """Return *callback* such that a bug in it is logged and the loop lives."""

        def run() -> None:
            try:
                callback()
            except Exception as error:
                self._report(error)
                with contextlib.suppress(Exception):
                    self.drain()

        return run

    def _report(self, error: Exception) -> None:
        """Say where a bug is; not what it said, which may hold octets of a packet."""
        where = traceback.extract_tb(error.__traceback__)[-1]
        message = f"{type(error).__name__} in {where.name} ({where.filename}:{where.lineno}); going on"
        with contextlib.suppress(Exception):
            self._on_event(Event("internal_error", Level.ERROR, message))
