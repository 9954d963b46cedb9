"""What changes between two looks at the status: octets a second, by Child SA and in all."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

#: Looks that a sparkline shows.
SHOWN = 60


class Rates:
    """Octets a second in and out, from one look to the next; and those of the last minute or so."""

    def __init__(self) -> None:
        self._before: dict[int, tuple[int, int]] = {}
        self._at: float | None = None
        self.children: dict[int, tuple[float, float]] = {}
        self.received: deque[float] = deque([0.0] * SHOWN, maxlen=SHOWN)
        self.sent: deque[float] = deque([0.0] * SHOWN, maxlen=SHOWN)

    def look(self, status: Mapping[str, Any], now: float) -> None:
        """Take a status seen at *now*, in seconds. Of a Child SA that is new only what comes counts."""
        seen = {child["child"]: (child["bytes_in"], child["bytes_out"]) for child in status["children"]}
        passed = 0.0 if self._at is None else now - self._at
        self.children = {}
        for child, (received, sent) in seen.items():
            before = self._before.get(child, (received, sent))
            if passed > 0:
                rates = ((received - before[0]) / passed, (sent - before[1]) / passed)
                self.children[child] = (max(rates[0], 0.0), max(rates[1], 0.0))
        if passed > 0:
            self.received.append(sum(rate for rate, _ in self.children.values()))
            self.sent.append(sum(rate for _, rate in self.children.values()))
        self._before, self._at = seen, now


def bits(octets_per_second: float) -> str:
    """Return a rate as "12.3 Mbit/s"."""
    value = octets_per_second * 8
    for unit in ("bit/s", "kbit/s", "Mbit/s"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "bit/s" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.2f} Gbit/s"
