"""The agent's log: one line an event, on standard error (the journal's, under systemd)."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import TextIO

from ike.events import Event, Level
from policy.problems import escaped

LEVELS = {"debug": Level.DEBUG, "info": Level.INFO, "warning": Level.WARNING, "error": Level.ERROR}


class Log:
    """Writes events of *level* and above as ``time level name: message``. Lines cannot be forged by a peer."""

    def __init__(self, level: str = "info", stream: TextIO | None = None) -> None:
        self.level = LEVELS[level]
        self._stream = sys.stderr if stream is None else stream

    def event(self, event: Event) -> None:
        """Write one event."""
        if event.level < self.level:
            return
        moment = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = f"{moment} {event.level.name.lower():7} {event.name}: {escaped(event.message)}"
        print(line, file=self._stream, flush=True)

    def say(self, level: Level, name: str, message: str) -> None:
        """Write an event of the agent's own."""
        self.event(Event(name, level, message))
