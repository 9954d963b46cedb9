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
version                                              the agent's version
========== ========================================= ==================================================
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path as FilePath
from typing import TypeAlias

from tunnel.host.system import HostError

Request: TypeAlias = Mapping[str, object]
Handler: TypeAlias = Callable[[Request], Awaitable[dict[str, object]]]

MAX_LINE = 65536
MAX_CLIENTS = 32


class RequestError(Exception):
    """A request that cannot be carried out; the text is the answer's ``error``."""


class ControlServer:
    """Serves *handler* on the socket at *path*."""

    def __init__(self, path: FilePath, handler: Handler) -> None:
        self._path = path
        self._handler = handler
        self._clients: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen. A socket file that nobody answers on is left over from a crash and replaced. HostError."""
        directory = self._path.parent
        try:
            directory.mkdir(mode=0o755, parents=True, exist_ok=True)
            if self._path.exists():
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
            finally:
                os.umask(before)
        except OSError as error:
            raise HostError(f"the control socket {self._path} cannot be made: {error.strerror}") from error
        self._server = await asyncio.start_unix_server(self._serve, sock=listening, limit=MAX_LINE)

    async def stop(self) -> None:
        """Listen no more and remove the socket file."""
        if self._server is not None:
            self._server.close()
        for client in list(self._clients):
            client.cancel()
        with contextlib.suppress(OSError):
            self._path.unlink()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None or len(self._clients) >= MAX_CLIENTS:
            writer.close()
            return
        self._clients.add(task)
        try:
            while line := await reader.readline():
                writer.write(json.dumps(await self._answer(line)).encode() + b"\n")
                await writer.drain()
        except (ValueError, ConnectionError, asyncio.CancelledError):
            pass  # a line over the limit, a client gone, or the agent stops
        finally:
            self._clients.discard(task)
            writer.close()

    async def _answer(self, line: bytes) -> dict[str, object]:
        try:
            request = json.loads(line)
        except ValueError:
            return {"ok": False, "error": "the request is not JSON"}
        if not isinstance(request, dict) or not isinstance(request.get("command"), str):
            return {"ok": False, "error": 'the request is not an object with a "command"'}
        try:
            return {"ok": True, "result": await self._handler(request)}
        except RequestError as error:
            return {"ok": False, "error": str(error)}


def _answers(path: FilePath) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True
