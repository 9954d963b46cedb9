"""The agent's log: one line an event, on standard error (the journal's, under systemd), and to whoever listens."""

from __future__ import annotations

import json
import sys
from asyncio import Event as Signal
from collections import deque
from datetime import UTC, datetime
from typing import TextIO

from ike.events import Event, Level
from policy.problems import escaped

LEVELS = {"debug": Level.DEBUG, "info": Level.INFO, "warning": Level.WARNING, "error": Level.ERROR}
#: Events that wait for one listener; past it the oldest are lost, and he is told how many.
MAX_WAITING = 1024
#: Events that are kept for who comes later.
MAX_KEPT = 100


class Listener:
    """Somebody who is told of events, as records ready for JSON."""

    def __init__(self) -> None:
        self._waiting: deque[dict[str, object]] = deque()
        self._lost = 0
        self._signal = Signal()

    def put(self, record: dict[str, object]) -> None:
        """Queue an event; the agent never waits for who is slow."""
        if len(self._waiting) >= MAX_WAITING:
            self._waiting.popleft()
            self._lost += 1
        self._waiting.append(record)
        self._signal.set()

    async def take(self) -> list[dict[str, object]]:
        """Wait for events and return them; before those that come after lost ones stands how many were lost."""
        await self._signal.wait()
        self._signal.clear()
        lost, self._lost = self._lost, 0
        found = [{"event": "events_lost", "level": "warning", "lost": lost}] if lost else []
        taken: list[dict[str, object]] = [*found, *self._waiting]
        self._waiting.clear()
        return taken


class Log:
    """Writes events of *level* and above: ``time level name: message``, or JSON. No peer can forge a line."""

    def __init__(self, level: str = "info", stream: TextIO | None = None, *, form: str = "human") -> None:
        self.level = LEVELS[level]
        self.form = form
        self._stream = sys.stderr if stream is None else stream
        self._listeners: list[Listener] = []
        self._kept: deque[tuple[Event, str]] = deque(maxlen=MAX_KEPT)

    def event(self, event: Event) -> None:
        """Write one event, and tell the listeners of it."""
        if event.level < self.level:
            return
        moment = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        self._kept.append((event, moment))
        if self._listeners or self.form == "json":
            record = _record(event, moment)
            for listener in self._listeners:
                listener.put(record)
        if self.form == "json":
            line = json.dumps(record)
        else:
            line = f"{moment} {event.level.name.lower():7} {event.name}: {escaped(event.message)}"
        print(line, file=self._stream, flush=True)

    def say(self, level: Level, name: str, message: str) -> None:
        """Write an event of the agent's own."""
        self.event(Event(name, level, message))

    def listen(self, last: int = 0) -> Listener:
        """Return a listener who is told of the *last* events and of all from now on, until ``forget``."""
        listener = Listener()
        for event, moment in list(self._kept)[-last:] if last > 0 else ():
            listener.put(_record(event, moment))
        self._listeners.append(listener)
        return listener

    def forget(self, listener: Listener) -> None:
        """Tell *listener* no more."""
        self._listeners.remove(listener)


def _record(event: Event, moment: str) -> dict[str, object]:
    """Return an event with its fields; what is neither text, number nor truth becomes text."""
    plain = {
        name: value if isinstance(value, int | float | bool | None) else escaped(str(value))
        for name, value in event.fields.items()
    }
    return {
        "time": moment,
        "level": event.level.name.lower(),
        "event": event.name,
        "message": escaped(event.message),
        **({"fields": plain} if plain else {}),
    }
