"""The control socket: a UNIX stream socket, mode 0600, JSON lines.

A client writes one object a line, ``{"command": NAME, ...arguments}``, and reads one object a line in that
order: ``{"ok": true, "result": {...}}`` or ``{"ok": false, "error": "one sentence"}``. Commands and arguments:

========== ========================================= ==================================================
status                                               the whole state
explain    protocol, source, destination,            what happens to a flow and why; addresses are text,
           source_port, destination_port             ports numbers or absent (ICMP: type * 256 + code)
initiate   rule, timeout (seconds)                   negotiate now; answers when it is up or has failed
rekey      target (or absent: all), ike              rekey Child SAs of a rule, or IKE SAs of a peer
terminate  target (or absent: all)                   delete Child SAs of a rule, and IKE SAs left alone
reload                                               read the config file again
assign     name                                      put another policy in force until reload or restart
unassign                                             put no policy in force
capture    rule (or absent: all), seconds, count,    for root alone: packets and keys until "done", as many
           to (where they are written, for the log)  answers as it takes, {"packets": [...], "keys": [...]}
version                                              the agent's version
events     last (or absent: none of them)            ``result`` is empty; then an event a line, ``{"time",
                                                     "level", "event", "message", "fields"}``, the *last* ones
                                                     and those that happen, until the client goes
========== ========================================= ==================================================
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import struct
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import TypeAlias

from tunnel.agent.log import Log
from tunnel.host.system import HostError

Request: TypeAlias = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is at the other end of the socket, as the kernel says (SO_PEERCRED), when he connected."""

    pid: int
    uid: int
    #: Who logged in at first, also behind sudo (``/proc/PID/loginuid``); None when nobody did.
    login: int | None = None

    def __str__(self) -> str:
        login = "" if self.login in (None, self.uid) else f", logged in as uid {self.login}"
        return f"uid {self.uid}, pid {self.pid}{login}"


#: One result, or one after the other for as long as the client listens.
Result: TypeAlias = dict[str, object] | AsyncGenerator[dict[str, object], None]
Handler: TypeAlias = Callable[[Request, Caller], Awaitable[Result]]

MAX_LINE = 65536
MAX_CLIENTS = 32
_NOBODY_LOGGED_IN = 2**32 - 1


class RequestError(Exception):
    """A request that cannot be carried out; the text is the answer's ``error``."""


class ControlServer:
    """Serves *handler* on the socket at *path*; *failed* is told of what it raises that is no RequestError."""

    def __init__(
        self,
        path: FilePath,
        handler: Handler,
        *,
        failed: Callable[[Exception], None] = lambda _error: None,
        log: Log | None = None,
    ) -> None:
        self._path = path
        self._handler = handler
        self._failed = failed
        self._log = log
        self._clients: set[asyncio.Task[None]] = set()
        self._listening: socket.socket | None = None
        self._server: asyncio.Server | None = None

    def claim(self) -> None:
        """Make the socket file: then no other agent does. Nobody is served yet. HostError when one answers there.

        A file that nobody answers on is left over from a crash and replaced.
        """
        directory = self._path.parent
        try:
            directory.mkdir(mode=0o755, parents=True, exist_ok=True)
            if self._path.exists():
                if not self._path.is_socket():
                    raise HostError(f"{self._path} exists and is no socket: set agent.control to another path")
                if _answers(self._path):
                    raise HostError(
                        f"another agent answers on {self._path}; stop it, or set agent.control to another path"
                    )
                self._path.unlink()
            # Made with mode 0600 from the first moment, not changed afterwards.
            listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            before = os.umask(0o177)
            try:
                listening.bind(str(self._path))
                listening.listen(MAX_CLIENTS)
            except BaseException:
                listening.close()
                raise
            finally:
                os.umask(before)
        except OSError as error:
            reason = error.strerror or str(error)
            raise HostError(f"the control socket {self._path} cannot be made: {reason}") from error
        self._listening = listening

    async def start(self) -> None:
        """Serve clients, also those that came since ``claim``."""
        if self._listening is None:
            self.claim()
        self._server = await asyncio.start_unix_server(self._serve, sock=self._listening, limit=MAX_LINE)

    def stop(self) -> None:
        """Listen no more, and remove the socket file if it is ours."""
        listening, self._listening = self._listening, None
        if listening is None:
            return
        if self._server is not None:
            self._server.close()
        listening.close()
        for client in list(self._clients):
            client.cancel()
        with contextlib.suppress(OSError):
            self._path.unlink()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None or len(self._clients) >= MAX_CLIENTS:
            writer.write(_line(_refusal(f"{MAX_CLIENTS} clients are connected, and no more are served")))
            writer.close()
            return
        self._clients.add(task)
        caller = _caller(writer.get_extra_info("socket"))
        try:
            while line := await reader.readline():
                if self._log is not None and (last := _wants_events(line)) is not None:
                    await _tell(self._log, last, reader, writer)
                    break
                async with contextlib.aclosing(self._answers(line, caller)) as answers:
                    async for answer in answers:
                        writer.write(_line(answer))
                        await writer.drain()
        except ValueError:
            writer.write(_line(_refusal(f"the request is longer than {MAX_LINE} octets")))
        except (ConnectionError, asyncio.CancelledError):
            pass  # the client is gone, or the agent stops
        finally:
            self._clients.discard(task)
            writer.close()

    async def _answers(self, line: bytes, caller: Caller) -> AsyncGenerator[dict[str, object], None]:
        try:
            request = json.loads(line)
        except (ValueError, RecursionError):
            yield _refusal("the request is not JSON")
            return
        if not isinstance(request, dict) or not isinstance(request.get("command"), str):
            yield _refusal('the request is not an object with a "command"')
            return
        try:
            result = await self._handler(request, caller)
            if isinstance(result, dict):
                yield {"ok": True, "result": result}
                return
            async with contextlib.aclosing(result) as parts:
                async for part in parts:
                    yield {"ok": True, "result": part}
        except RequestError as error:
            yield _refusal(str(error))
        except Exception as error:  # a bug of ours costs one answer
            self._failed(error)
            yield _refusal(f"internal error ({type(error).__name__}); see the agent's log")


def _caller(connected: socket.socket) -> Caller:
    pid, uid, _ = struct.unpack("=iII", connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    try:
        login = int(FilePath(f"/proc/{pid}/loginuid").read_text())
    except (OSError, ValueError):
        return Caller(pid, uid)
    return Caller(pid, uid, None if login == _NOBODY_LOGGED_IN else login)


def _wants_events(line: bytes) -> int | None:
    """Return how many of the last events a request asks for, None when it is not for events."""
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(request, dict) or request.get("command") != "events":
        return None
    last = request.get("last")
    return last if isinstance(last, int) and not isinstance(last, bool) else 0


async def _tell(log: Log, last: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Write events until the client closes its end. A slow one loses the oldest, and delays nobody."""
    listener = log.listen(last)
    gone = asyncio.ensure_future(reader.read())
    try:
        writer.write(_line({"ok": True, "result": {}}))
        while not gone.done():
            news = asyncio.ensure_future(listener.take())
            await asyncio.wait({gone, news}, return_when=asyncio.FIRST_COMPLETED)
            if not news.done():
                news.cancel()
                return
            for record in news.result():
                writer.write(_line(record))
            await writer.drain()
    finally:
        log.forget(listener)
        gone.cancel()


def _line(answer: dict[str, object]) -> bytes:
    return json.dumps(answer).encode() + b"\n"


def _refusal(sentence: str) -> dict[str, object]:
    return {"ok": False, "error": sentence}


def _answers(path: FilePath) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True
