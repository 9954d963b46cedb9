"""The command line's end of the control socket."""

from __future__ import annotations

import json
import socket
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from pathlib import Path as FilePath
from typing import Any

#: ``initiate`` answers when the negotiation ended, which takes half a minute at the most by default.
_TIMEOUT_S = 320


class AgentError(Exception):
    """The agent is not there, or refuses; the text is one sentence for the operator."""


def call(control: FilePath, command: str, arguments: Mapping[str, object] | None = None) -> dict[str, Any]:
    """Send one command to the agent and return its result. AgentError."""
    with closing(stream(control, command, arguments)) as answers:
        return next(answers)


def stream(
    control: FilePath, command: str, arguments: Mapping[str, object] | None = None
) -> Generator[dict[str, Any], None, None]:
    """Send one command to the agent and yield its results, until the agent has no more. AgentError."""
    request = {"command": command, **(arguments or {})}
    with _connected(control, _TIMEOUT_S) as sock:
        try:
            sock.sendall(json.dumps(request).encode() + b"\n")
            with sock.makefile("rb") as lines:
                while True:
                    yield _result(control, lines.readline())
        except OSError as error:
            raise AgentError(f"the agent did not answer on {control}: {error.strerror or error}") from error


def _result(control: FilePath, line: bytes) -> dict[str, Any]:
    if not line:
        raise AgentError("the agent closed the connection without an answer; see its log")
    try:
        answer = json.loads(line)
        if answer["ok"]:
            result: dict[str, Any] = answer["result"]
            return result
        error_text = str(answer["error"])
    except (ValueError, KeyError, TypeError) as error:
        raise AgentError(
            f"the answer on {control} cannot be understood: is the agent of another version?"
        ) from error
    raise AgentError(error_text)


def follow(control: FilePath, last: int = 0) -> Iterator[dict[str, Any]]:
    """Yield the agent's *last* events and then each as it happens, until it stops. AgentError."""
    with _connected(control, None) as sock, sock.makefile("rb") as lines:
        sock.sendall(json.dumps({"command": "events", "last": last}).encode() + b"\n")
        for line in lines:
            record = json.loads(line)
            if "event" in record:
                yield record
            elif not record.get("ok"):
                raise AgentError(str(record.get("error")))


def _connected(control: FilePath, timeout: float | None) -> socket.socket:
    """Return a connection to the agent. AgentError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(timeout)
    try:
        sock.connect(str(control))
        return sock
    except FileNotFoundError as error:
        reason = f"no agent is running (there is no {control}); start one with: mirrorgate run CONFIG"
        cause: OSError = error
    except ConnectionRefusedError as error:
        reason = (
            f"no agent answers on {control}: it was killed or crashed. The guard still blocks what the policy "
            "protects; start the agent again with: mirrorgate run CONFIG"
        )
        cause = error
    except PermissionError as error:
        reason, cause = f"{control} is root's: run this command as root", error
    except OSError as error:
        reason, cause = f"{control} cannot be reached: {error.strerror or error}", error
    sock.close()
    raise AgentError(reason) from cause
