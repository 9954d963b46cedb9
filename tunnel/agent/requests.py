"""What the control socket's commands do."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from ipaddress import ip_address
from typing import TYPE_CHECKING

from ike.events import Level
from policy.path import IpAddress
from policy.problems import quoted, suggestion
from policy.selectors import Flow
from tunnel.agent import capture
from tunnel.agent.control import Caller, Request, RequestError, Result
from tunnel.host import steering
from tunnel.outputs import Command, Explain, Initiate, Rekey, Status, Terminate
from tunnel.version import VERSION

if TYPE_CHECKING:
    from tunnel.agent.agent import Agent

_POLL_S, _LONGEST_POLL_S = 0.02, 0.5
_DEFAULT_TIMEOUT_S = 30.0
_MAX_TIMEOUT_S = 300.0
_MAX_NAME = 500


class Requests:
    """Carries out requests against *agent*."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._commands: dict[str, Callable[[Request], Awaitable[dict[str, object]]]] = {
            "status": lambda _request: self.status(),
            "explain": self._explain,
            "initiate": self._initiate,
            "rekey": self._rekey,
            "terminate": self._terminate,
            "reload": self._reload,
            "assign": self._assign,
            "unassign": self._unassign,
            "version": self._version,
        }

    async def handle(self, request: Request, caller: Caller) -> Result:
        """Carry out one request. RequestError when it cannot be."""
        name = str(request["command"])
        if name == "capture":
            return self._capture(request, caller)
        command = self._commands.get(name)
        if command is None:
            raise RequestError(f'there is no command "{name}": {suggestion(name, self._commands, what="command")}')
        return await command(request)

    def _execute(self, command: Command) -> dict[str, object]:
        answer = self._agent.command(command)
        if "error" in answer:
            raise RequestError(str(answer["error"]))
        return answer

    async def status(self) -> dict[str, object]:
        """Return the whole state: the gateway's, the guard's and the agent's own."""
        answer = self._execute(Status())
        guard = await asyncio.get_running_loop().run_in_executor(None, steering.counters)
        return {
            "version": VERSION,
            "uptime_s": self._agent.uptime(),
            **answer,
            "guard": guard,
            **self._agent.health(),
        }

    async def _explain(self, request: Request) -> dict[str, object]:
        return self._execute(Explain(flow_of(request)))

    async def _initiate(self, request: Request) -> dict[str, object]:
        rule = _text(request, "rule")
        timeout = request.get("timeout", _DEFAULT_TIMEOUT_S)
        if not isinstance(timeout, int | float) or not 0 <= timeout <= _MAX_TIMEOUT_S:
            raise RequestError(f"timeout is not a number of seconds from 0 to {_MAX_TIMEOUT_S:.0f}")
        host = _host(request)
        self._execute(Initiate(rule, host))
        waited, pause = 0.0, _POLL_S
        while waited <= timeout:
            states = self._entries(rule, host)
            failed = [entry for entry in states if entry["state"] == "failed"]
            if failed:
                raise RequestError(str(failed[0].get("reason") or "the negotiation failed"))
            if states and all(entry["state"] == "up" for entry in states):
                return {"rule": rule, "entries": states}
            await asyncio.sleep(pause)
            waited += pause
            pause = min(1.2 * pause, _LONGEST_POLL_S)  # a status of thousands of SAs takes its time
        reason = next((str(entry["reason"]) for entry in self._entries(rule, host) if entry.get("reason")), "")
        raise RequestError(f"not up after {timeout:g} s" + (f": {reason}" if reason else ""))

    def _entries(self, name: str, host: IpAddress | None) -> list[dict[str, object]]:
        """Return how the entries of a rule fare, of those for each host the one of *host*."""
        rules = self._execute(Status())["rules"]
        found: list[dict[str, object]] = []
        for rule in rules if isinstance(rules, list) else ():
            for entry in rule["entries"] if rule["rule"] == name else ():
                if entry["disposition"] != "protect":
                    continue
                if entry.get("per_host"):
                    found += [each for each in entry["hosts"] if each["host"] == str(host)]
                else:
                    found.append(entry)
        return found

    async def _rekey(self, request: Request) -> dict[str, object]:
        return self._execute(Rekey(_optional(request, "target"), ike=request.get("ike") is True))

    async def _terminate(self, request: Request) -> dict[str, object]:
        return self._execute(Terminate(_optional(request, "target")))

    async def _reload(self, _request: Request) -> dict[str, object]:
        return await self._agent.reload()

    async def _assign(self, request: Request) -> dict[str, object]:
        return await self._agent.assign(_text(request, "name"))

    async def _unassign(self, _request: Request) -> dict[str, object]:
        return await self._agent.assign(None)

    def _capture(self, request: Request, caller: Caller) -> Result:
        """Packets and keys, to root and one client at a time, whoever else may use the socket."""
        if caller.uid != 0:
            self._agent.say(Level.WARNING, "capture", f"refused to {caller}: packets and keys are for root alone")
            raise RequestError(f"a capture tells keys: it is for root alone (you have uid {caller.uid})")
        wanted, rule = capture.limits(request), _optional(request, "rule")
        if isinstance(wanted, str):
            raise RequestError(wanted)
        if self._agent.capturing:
            raise RequestError("a capture is under way already")
        if rule is not None and not self._agent.negotiates(rule):
            raise RequestError(f"no filter of a rule {quoted(rule)} negotiates security")
        seconds, count = wanted
        to = f"{(_optional(request, 'to') or 'a client')[:_MAX_NAME]} ({caller})"
        return self._agent.capture(rule, seconds=seconds, count=count, to=to)

    async def _version(self, _request: Request) -> dict[str, object]:
        return {"version": VERSION}


def flow_of(request: Request) -> Flow:
    """Return the flow that an explain request names. RequestError says what is wrong with it."""
    try:
        source, destination = ip_address(_text(request, "source")), ip_address(_text(request, "destination"))
    except ValueError as error:
        raise RequestError(str(error)) from error
    if source.version != destination.version:
        raise RequestError(f"{source} and {destination} are of different families")
    numbers: list[int | None] = []
    for name, limit in (("protocol", 255), ("source_port", 65535), ("destination_port", 65535)):
        value = request.get(name)
        if value is not None and (not isinstance(value, int) or not 0 <= value <= limit):
            raise RequestError(f"{name} is not a number from 0 to {limit}")
        numbers.append(value if isinstance(value, int) else None)
    protocol, source_port, destination_port = numbers
    return Flow(source.version, protocol or 0, int(source), int(destination), source_port, destination_port)


def _host(request: Request) -> IpAddress | None:
    text = _optional(request, "host")
    if text is None:
        return None
    try:
        return ip_address(text)
    except ValueError as error:
        raise RequestError(str(error)) from error


def _text(request: Request, name: str) -> str:
    value = request.get(name)
    if not isinstance(value, str):
        raise RequestError(f'the request has no "{name}"')
    return value


def _optional(request: Request, name: str) -> str | None:
    return None if request.get(name) is None else _text(request, name)
