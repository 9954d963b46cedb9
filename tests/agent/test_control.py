"""The control socket, what the requests do, metrics, and the log."""

from __future__ import annotations

import asyncio
import io
import json
import os
import socket
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ike.events import Event, Level
from tunnel.agent import metrics
from tunnel.agent.control import MAX_CLIENTS, MAX_LINE, ControlServer, RequestError
from tunnel.agent.log import MAX_WAITING, Log
from tunnel.agent.requests import Requests, flow_of
from tunnel.host.system import HostError
from tunnel.outputs import Explain, Initiate, Rekey, Status, Terminate


async def handler(request: Mapping[str, object]) -> dict[str, object]:
    if request["command"] == "refuse":
        raise RequestError("no")
    if request["command"] == "crash":
        raise KeyError("secret")
    return {"echo": request["command"]}


async def ask(path: Path, *lines: bytes) -> list[dict[str, Any]]:
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(b"".join(line + b"\n" for line in lines))
    writer.write_eof()
    answers = [json.loads(line) for line in (await reader.read()).splitlines()]
    writer.close()
    return answers


async def test_requests_and_answers(tmp_path: Path) -> None:
    path = tmp_path / "made" / "control.sock"
    failed: list[Exception] = []
    server = ControlServer(path, handler, failed=failed.append)
    await server.start()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    answers = await ask(
        path, b'{"command": "one"}', b"nonsense", b"[1]", b'{"command": 5}', b'{"command": "refuse"}',
        b'{"command": "crash"}', b"\xff", b'{"command": "two"}',
    )  # fmt: skip
    assert [answer["ok"] for answer in answers] == [True, False, False, False, False, False, False, True]
    assert [answer.get("error") for answer in answers[1:7]] == [
        "the request is not JSON",
        'the request is not an object with a "command"',
        'the request is not an object with a "command"',
        "no",
        "internal error (KeyError); see the agent's log",
        "the request is not JSON",
    ]
    assert [type(error) for error in failed] == [KeyError]
    server.stop()
    server.stop()
    assert not path.exists()


async def test_an_overlong_line_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    server = ControlServer(path, handler)
    await server.start()
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(b"x" * (2 * MAX_LINE))
    answer = json.loads(await reader.readline())
    assert answer == {"ok": False, "error": "the request is longer than 65536 octets"}
    assert await reader.read() == b""
    writer.close()
    server.stop()


async def test_clients_are_limited(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    server = ControlServer(path, handler)
    await server.start()
    clients = [await asyncio.open_unix_connection(str(path)) for _ in range(MAX_CLIENTS)]
    for reader, writer in clients:
        writer.write(b'{"command": "x"}\n')
        await reader.readline()
    (answer,) = await ask(path)
    assert answer == {"ok": False, "error": "32 clients are connected, and no more are served"}
    clients[0][1].close()
    await asyncio.sleep(0.05)
    assert (await ask(path, b'{"command": "x"}'))[0]["ok"]
    for _, writer in clients:
        writer.close()
    server.stop()


async def test_who_has_the_socket(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    first = ControlServer(path, handler)
    first.claim()  # nobody answered there
    second = ControlServer(path, handler)
    with pytest.raises(HostError, match=r"another agent answers on .*; stop it, or set agent\.control"):
        second.claim()
    second.stop()
    assert path.exists()  # the file of the first is left
    await first.start()
    assert (await ask(path, b'{"command": "x"}'))[0]["ok"]
    first.stop()
    path.write_text("something precious")
    with pytest.raises(HostError, match="exists and is no socket"):
        second.claim()
    assert path.read_text() == "something precious"
    with pytest.raises(HostError, match="cannot be made: AF_UNIX path too long"):
        ControlServer(tmp_path / ("x" * 200), handler).claim()


class FakeAgent:
    def __init__(self) -> None:
        self.commands: list[object] = []
        self.answers: list[dict[str, object]] = []
        self.assigned: list[str | None] = []

    def command(self, command: object) -> dict[str, object]:
        self.commands.append(command)
        return self.answers.pop(0) if self.answers else {"rules": []}

    def uptime(self) -> int:
        return 7

    def errors(self) -> dict[str, object]:
        return {"errors": {"send": 0}}

    async def reload(self) -> dict[str, object]:
        return {"policy": "reloaded"}

    async def assign(self, name: str | None) -> dict[str, object]:
        self.assigned.append(name)
        return {"policy": name}


async def do(agent: FakeAgent, command: str, **arguments: object) -> dict[str, object]:
    any_agent: Any = agent
    answer = await Requests(any_agent).handle({"command": command, **arguments})
    assert isinstance(answer, dict)
    return answer


async def test_each_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunnel.host.steering.counters", lambda: {"clear_in": 3})
    agent = FakeAgent()
    status = await do(agent, "status")
    assert (status["uptime_s"], status["guard"], status["errors"]) == (7, {"clear_in": 3}, {"send": 0})
    await do(agent, "rekey", target="R", ike=True)
    await do(agent, "terminate")
    assert await do(agent, "reload") == {"policy": "reloaded"}
    await do(agent, "assign", name="P")
    await do(agent, "unassign")
    assert agent.assigned == ["P", None]
    assert "version" in await do(agent, "version")
    await do(agent, "explain", source="10.0.0.1", destination="10.0.0.2", protocol=6, source_port=1)
    assert agent.commands[:3] == [Status(), Rekey("R", ike=True), Terminate(None)]
    assert isinstance(agent.commands[3], Explain)
    with pytest.raises(RequestError, match=r'no command "statsu".*"status"'):
        await do(agent, "statsu")
    with pytest.raises(RequestError, match='has no "name"'):
        await do(agent, "assign")
    agent.answers = [{"error": "there is no rule"}]
    with pytest.raises(RequestError, match="there is no rule"):
        await do(agent, "rekey", target="X")


def _entries(*states: str) -> dict[str, object]:
    entries = [{"disposition": "protect", "state": state, "reason": f"why {state}"} for state in states]
    return {"rules": [{"rule": "R", "entries": entries}, {"rule": "S", "entries": [{"disposition": "bypass"}]}]}


async def test_initiate_waits_for_the_end() -> None:
    agent = FakeAgent()
    agent.answers = [{}, _entries("negotiating"), _entries("up", "negotiating"), _entries("up", "up")]
    assert (await do(agent, "initiate", rule="R"))["rule"] == "R"
    assert agent.commands[0] == Initiate("R")
    agent.answers = [{}, _entries("negotiating"), _entries("failed")]
    with pytest.raises(RequestError, match="why failed"):
        await do(agent, "initiate", rule="R")
    agent.answers = [{}, *[_entries("negotiating")] * 9]
    with pytest.raises(RequestError, match=r"not up after 0\.05 s: why negotiating"):
        await do(agent, "initiate", rule="R", timeout=0.05)
    for timeout in (-1, 301, "5", float("nan")):
        with pytest.raises(RequestError, match="timeout is not a number of seconds"):
            await do(agent, "initiate", rule="R", timeout=timeout)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"source": "10.0.0.1"}, 'no "destination"'),
        ({"source": "10.0.0.256", "destination": "10.0.0.1"}, "10.0.0.256"),
        ({"source": "::1", "destination": "10.0.0.1"}, "different families"),
        ({"source": "10.0.0.2", "destination": "10.0.0.1", "protocol": 256}, "protocol is not a number"),
        ({"source": "10.0.0.2", "destination": "10.0.0.1", "source_port": "1"}, "source_port is not a number"),
    ],
)
def test_flows_that_are_none(request_: dict[str, object], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        flow_of(request_)


STATUS = {
    "rules": [{"entries": [{"disposition": "protect", "state": s} for s in ("up", "down")]}, {"entries": []}],
    "peers": [{"state": "up"}],
    "children": [{}, {}],
    "held": 4,
    "drops": {"integrity": 2},
    "ike": {"cookie demanded": 5},
    "errors": {"kernel": 6},
}


def test_metrics_text() -> None:
    lines = metrics.render(STATUS).splitlines()
    assert {
        "mirrorgate_entries_configured 2", "mirrorgate_entries_up 1", "mirrorgate_peers_up 1",
        'mirrorgate_ike_messages_total{outcome="cookie demanded"} 5',
        'mirrorgate_socket_errors_total{kind="kernel"} 6',
        "mirrorgate_child_sas 2", "mirrorgate_held_packets 4", 'mirrorgate_drops_total{reason="integrity"} 2',
    } <= set(lines)  # fmt: skip


async def test_metrics_over_http() -> None:
    server = await metrics.serve("127.0.0.1:0", lambda: STATUS)
    port = server.sockets[0].getsockname()[1]

    async def get(request: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        answer = await reader.read()
        writer.close()
        return answer

    found = await get(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    assert found.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"mirrorgate_entries_up 1\n" in found
    assert (await get(b"GET / HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 404")
    assert await get(b"x" * 9000) == b""
    with pytest.raises(HostError, match=f"metrics cannot be served on 127.0.0.1:{port}"):
        await metrics.serve(f"127.0.0.1:{port}", lambda: STATUS)
    server.close()


def test_a_peer_cannot_forge_a_line_of_the_log() -> None:
    stream = io.StringIO()
    log = Log("info", stream)
    log.event(Event("x", Level.WARNING, "named \n2026-01-01T00:00:00Z info forged\x1b[2J"))
    log.event(Event("quiet", Level.DEBUG, "not shown"))
    (line,) = stream.getvalue().splitlines()
    assert "\x1b" not in line
    assert " warning x: named " in line
    log.level = Level.DEBUG
    log.say(Level.DEBUG, "shown", "now")
    assert "shown: now" in stream.getvalue()


def test_these_tests_leave_no_umask() -> None:
    before = os.umask(0o022)
    os.umask(before)
    assert before != 0o177


async def test_events_are_followed_until_the_client_goes(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    log = Log("info", io.StringIO())
    server = ControlServer(path, handler, log=log)
    await server.start()
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(b'{"command": "events"}\n')
    assert json.loads(await reader.readline()) == {"ok": True, "result": {}}
    log.event(Event("child_rekeyed", Level.INFO, "a\nb", {"child": 7, "peer": "x\n", "reason": None}))
    log.event(Event("chatter", Level.DEBUG, "below the level"))
    log.say(Level.WARNING, "host", "no route")
    one, other = [json.loads(await reader.readline()) for _ in range(2)]
    assert (one["event"], one["level"], one["message"]) == ("child_rekeyed", "info", "a\\nb")
    assert one["fields"] == {"child": 7, "peer": "x\\n", "reason": None}
    assert (other["event"], "fields" in other) == ("host", False)
    writer.close()
    for _ in range(100):
        if not log._listeners:
            break
        await asyncio.sleep(0.01)
    assert not log._listeners
    server.stop()


async def test_a_slow_listener_loses_the_oldest_and_is_told() -> None:
    log = Log("info", io.StringIO())
    listener = log.listen()
    for number in range(MAX_WAITING + 5):
        log.event(Event("e", Level.INFO, str(number)))
    taken = await listener.take()
    assert taken[0]["lost"] == 5
    assert [record["message"] for record in taken[1:]] == [str(n) for n in range(5, MAX_WAITING + 5)]
    log.event(Event("e", Level.INFO, "next"))
    assert [record["message"] for record in await listener.take()] == ["next"]


def test_the_log_as_json() -> None:
    stream = io.StringIO()
    log = Log("info", stream, form="json")
    log.event(Event("ike_established", Level.INFO, "up", {"peer": "gw-b", "path": Path("/x"), "nat": False}))
    (line,) = stream.getvalue().splitlines()
    record = json.loads(line)
    assert record.pop("time").endswith("Z")
    assert record == {
        "level": "info", "event": "ike_established", "message": "up",
        "fields": {"peer": "gw-b", "path": "/x", "nat": False},
    }  # fmt: skip
