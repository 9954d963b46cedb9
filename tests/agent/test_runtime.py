"""The event loop's side of the gateway, with stand-ins for gateway, TUN and sockets."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Container
from ipaddress import ip_address
from typing import Any

import pytest

from ike.events import Event, Level
from policy.clock import SECOND
from policy.path import Endpoint
from policy.spd import Snapshot
from tests.support.fakes import PATH, FakeDataPlane
from tunnel.agent import runtime as module
from tunnel.agent.runtime import Runtime
from tunnel.dataplane.contract import Transmit, TunFrame, WriteTun
from tunnel.host.process import now
from tunnel.host.tun import TunGone
from tunnel.outputs import Output, SoftSa, Steer, TunMtu


class FakeGateway:
    """Notes its inputs; says what it is told to. Like the real one it refuses input before it was polled empty."""

    def __init__(self) -> None:
        self.inputs: list[tuple[Any, ...]] = []
        self.outputs: deque[Output] = deque()
        self.next: list[Output] = []
        self.wanted: int | None = None
        self.fail: Exception | None = None
        self.dataplane = FakeDataPlane()

    def _take(self, *what: Any) -> None:
        assert not self.outputs, "poll until None before the next mutation"
        self.inputs.append(what)
        self.outputs.extend(self.next)
        self.next = []
        if self.fail is not None:
            fail, self.fail = self.fail, None
            raise fail

    def handle_tun(self, frames: Any, at: int) -> None:
        self._take("tun", len(frames))

    def handle_wire(self, datagrams: Any, at: int) -> None:
        self._take("wire", len(datagrams))

    def handle_timeout(self, at: int) -> None:
        self.wanted = None
        self._take("timeout")

    def path_mtu(self, remote: Endpoint, mtu: int, at: int) -> None:
        self._take("mtu", str(remote.address), mtu)

    def poll(self) -> Output | None:
        return self.outputs.popleft() if self.outputs else None

    def deadline(self) -> int | None:
        return self.wanted


class FakeTun:
    """A pipe: what is written to ``far`` makes it readable."""

    def __init__(self) -> None:
        self.fd, self.far = os.pipe()
        os.set_blocking(self.fd, False)
        self.written: list[Any] = []
        self.gone = False
        self.limits: list[int] = []

    def ready(self, count: int = 1) -> None:
        os.write(self.far, b"x" * count)

    def read(self, limit: int) -> list[TunFrame]:
        self.limits.append(limit)
        if self.gone:
            raise TunGone("gone")
        try:
            return [TunFrame(b"") for _ in os.read(self.fd, limit)]
        except BlockingIOError:
            return []

    def write(self, frames: Any) -> None:
        if self.gone:
            raise TunGone("gone")
        self.written.append(frames)


class FakeSocket:
    def __init__(self) -> None:
        self.fd, self.far = os.pipe()
        os.set_blocking(self.fd, False)
        self.blocked = False
        self.writable, self.flushed = True, 0
        self.unseen = 0
        self.reads = 16
        self.apart: FakeSocket | None = None

    def receive(self, limit: int, *, unseen: bool = True) -> list[bytes]:
        return [b"" for _ in os.read(self.fd, limit)]

    def flush(self) -> None:
        self.flushed += 1
        self.blocked = False


class FakeWire:
    def __init__(self) -> None:
        self.sockets = {(4, 4500): FakeSocket()}
        self.sent: list[Transmit] = []
        self.fail: Exception | None = None
        self.block = False

    def screen(self, known: Container[int]) -> None:
        self.known = known

    def readable(self) -> list[FakeSocket]:
        return list(self.sockets.values())

    def send(self, transmit: Transmit) -> FakeSocket:
        if self.fail is not None:
            fail, self.fail = self.fail, None
            raise fail
        self.sent.append(transmit)
        sock = self.sockets[4, 4500]
        sock.blocked |= self.block
        return sock


class Bench:
    def __init__(self) -> None:
        self.gateway, self.tun, self.wire = FakeGateway(), FakeTun(), FakeWire()
        self.events: list[Event] = []
        self.mtus: list[int] = []
        self.steered: list[Snapshot] = []
        self.softened: list[SoftSa] = []
        self.gone = 0
        any_gateway: Any = self.gateway
        any_tun: Any = self.tun
        any_wire: Any = self.wire
        self.runtime = Runtime(
            asyncio.get_running_loop(), any_gateway, tun=any_tun, wire=any_wire,
            on_event=self.events.append, on_mtu=self.mtus.append, on_tun_gone=self._gone,
            on_steer=self.steered.append, on_soft=self.softened.append,
        )  # fmt: skip
        self.runtime.start()

    def _gone(self) -> None:
        self.gone += 1

    async def turn(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)
        await asyncio.sleep(0.01)


@pytest.fixture
async def bench() -> Any:
    made = Bench()
    yield made
    made.runtime.stop()
    for fd in (made.tun.fd, made.tun.far, made.wire.sockets[4, 4500].fd, made.wire.sockets[4, 4500].far):
        os.close(fd)


SENT = Transmit(PATH, (b"x",))


async def test_bursts_in_and_outputs_out(bench: Bench) -> None:
    event = Event("e", Level.INFO, "m")
    soft, snapshot = SoftSa(ip_address("192.0.2.1"), ip_address("192.0.2.2"), SECOND), Snapshot(generation=3)
    bench.gateway.next = [SENT, WriteTun(()), TunMtu(1300), event, Steer(snapshot), soft]
    bench.tun.ready(3)
    await bench.turn()
    os.write(bench.wire.sockets[4, 4500].far, b"xx")
    await bench.turn()
    assert bench.gateway.inputs == [("tun", 3), ("wire", 2)]
    assert (bench.wire.sent, bench.tun.written, bench.mtus, bench.events) == ([SENT], [()], [1300], [event])
    assert (bench.steered, bench.softened) == ([snapshot], [soft])


async def test_what_a_socket_dropped_unseen_comes_into_the_books(bench: Bench) -> None:
    sock = bench.wire.sockets[4, 4500]
    assert bench.wire.known is bench.gateway.dataplane.known
    sock.unseen = 7
    os.write(sock.far, b"x")
    await bench.turn()
    assert bench.gateway.dataplane.calls == [("drop_unknown", 7)]
    assert sock.unseen == 0


async def test_ike_goes_before_what_may_need_its_sa(bench: Bench) -> None:
    """A few messages at a time, and each burst is carried out before the next is read."""
    apart = FakeSocket()
    bench.wire.sockets[4, 4500].apart = apart
    os.write(apart.far, b"i" * 6)
    os.write(bench.wire.sockets[4, 4500].far, b"eee")
    await bench.turn()
    assert bench.gateway.inputs == [("wire", 4), ("wire", 3)]
    os.close(apart.fd)
    os.close(apart.far)


async def test_a_readiness_moves_one_bounded_burst(bench: Bench) -> None:
    bench.tun.ready(150)
    await bench.turn()
    assert [count for _, count in bench.gateway.inputs] == [64, 64, 22]


async def test_the_timer(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.gateway.wanted = now() + 5_000_000
    bench.runtime.drain()
    await asyncio.sleep(0.05)
    assert bench.gateway.inputs == [("timeout",)]
    # A machine that slept: the loop's clock does not know, so the wait is cut.
    monkeypatch.setattr(module, "_LOOK_S", 0.01)
    bench.gateway.wanted = now() + 10**15
    bench.runtime.drain()
    await asyncio.sleep(0.05)
    assert bench.gateway.inputs == [("timeout",), ("timeout",)]
    bench.gateway.wanted = now() + 10**15
    bench.runtime.drain()
    bench.gateway.wanted = None
    bench.runtime.drain()
    await asyncio.sleep(0.03)
    assert len(bench.gateway.inputs) == 2


async def test_a_bug_is_reported_without_what_it_said_and_the_loop_goes_on(bench: Bench) -> None:
    bench.gateway.fail = KeyError("secret octets")
    bench.gateway.next = [SENT]
    bench.tun.ready()
    await bench.turn()
    (event,) = bench.events
    assert (event.name, event.level) == ("internal_error", Level.ERROR)
    assert "KeyError in _take" in event.message
    assert "secret" not in event.message
    assert bench.wire.sent == [SENT]
    bench.tun.ready()
    await bench.turn()
    assert bench.gateway.inputs == [("tun", 1), ("tun", 1)]


async def test_an_output_that_fails_does_not_keep_the_others(bench: Bench) -> None:
    bench.wire.fail = ValueError("x")
    bench.gateway.next = [SENT, SENT, WriteTun(())]
    bench.tun.ready()
    await bench.turn()
    assert (bench.wire.sent, bench.tun.written) == ([SENT], [()])
    assert [event.name for event in bench.events] == ["internal_error"]


async def test_a_full_socket_pauses_the_tun(bench: Bench) -> None:
    sock = bench.wire.sockets[4, 4500]
    loop = asyncio.get_running_loop()
    added: list[int] = []
    real = loop.add_writer
    loop.add_writer = lambda fd, *_: added.append(fd)  # type: ignore[method-assign]
    bench.wire.block = True
    bench.gateway.next = [SENT, SENT, SENT]
    bench.tun.ready()
    await bench.turn()
    assert added == [sock.fd]  # once, not for each transmit
    bench.tun.ready()
    await bench.turn()
    assert bench.gateway.inputs == [("tun", 1)]
    bench.wire.block = False
    loop.add_writer = real  # type: ignore[method-assign]
    bench.runtime._writable(sock)  # type: ignore[arg-type]
    await bench.turn()
    assert sock.flushed == 1
    assert bench.gateway.inputs == [("tun", 1), ("tun", 1)]


async def test_a_tun_that_is_gone_is_said_once(bench: Bench) -> None:
    bench.tun.gone = True
    bench.tun.ready()
    await bench.turn()
    assert bench.gone == 1
    assert len(bench.tun.limits) == 1  # it is not read any more
    bench.gateway.next = [WriteTun(()), SENT]
    os.write(bench.wire.sockets[4, 4500].far, b"x")
    await bench.turn()
    assert bench.wire.sent == [SENT]
    assert (bench.gone, bench.events) == (1, [])
    bench.tun.gone = False
    bench.runtime.attach_tun(bench.tun)  # type: ignore[arg-type]
    await bench.turn()
    assert bench.gateway.inputs[-1] == ("tun", 1)


async def test_a_tun_that_goes_while_it_is_written_to(bench: Bench) -> None:
    bench.tun.gone = True
    bench.gateway.next = [WriteTun(()), WriteTun(()), SENT]
    os.write(bench.wire.sockets[4, 4500].far, b"x")
    await bench.turn()
    assert (bench.gone, bench.events, bench.wire.sent) == (1, [], [SENT])


async def test_path_mtus_come_after_the_burst_once_for_each_remote(bench: Bench) -> None:
    one, other = (Endpoint(ip_address(text), 4500) for text in ("192.0.2.1", "192.0.2.2"))
    for mtu in (1400, 1300):
        bench.runtime.path_mtu(one, mtu)
    bench.runtime.path_mtu(other, 1200)
    assert bench.gateway.inputs == []
    await bench.turn()
    assert bench.gateway.inputs == [("mtu", "192.0.2.1", 1300), ("mtu", "192.0.2.2", 1200)]
