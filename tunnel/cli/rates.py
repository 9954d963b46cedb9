"""What changes between two looks at the status: octets a second, by Child SA and in all."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

#: Looks that a sparkline of all traffic shows, and one of a Child SA.
SHOWN, SHOWN_EACH = 60, 12
_BARS = "▁▂▃▄▅▆▇█"


class Rates:
    """Octets a second in and out, from one look to the next; and those of the last minute or so."""

    def __init__(self) -> None:
        self._before: dict[int, tuple[int, int]] = {}
        self._totals = (0, 0)
        self._at: float | None = None
        self.children: dict[int, tuple[float, float]] = {}
        self.received: deque[float] = deque([0.0] * SHOWN, maxlen=SHOWN)
        self.sent: deque[float] = deque([0.0] * SHOWN, maxlen=SHOWN)
        self._each: dict[int, deque[float]] = {}

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
        totals = _totals(status)  # rules remember what SAs carried that a rekey replaced since
        if passed > 0:
            for shown, was, total in zip((self.received, self.sent), self._totals, totals, strict=True):
                shown.append(max(total - was, 0) / passed)
        each = {child: self._each.get(child) or deque([0.0] * SHOWN_EACH, maxlen=SHOWN_EACH) for child in seen}
        for child, rate in self.children.items():
            each[child].append(sum(rate))
        self._each, self._before, self._totals, self._at = each, seen, totals, now

    def nothing(self) -> None:
        """Note that no agent answers: nothing is known to pass, and the next look is the first again."""
        if self._at is not None:
            self.received.append(0.0)
            self.sent.append(0.0)
        self._each, self._before, self.children, self._at = {}, {}, {}, None

    def sparkline(self, child: int) -> str:
        """Return what passed through a Child SA of late, both ways, as a row of bars."""
        return bars(self._each.get(child, ()))


def _totals(status: Mapping[str, Any]) -> tuple[int, int]:
    carried = [rule["carried"] for rule in status["rules"]]
    return sum(each["bytes_in"] for each in carried), sum(each["bytes_out"] for each in carried)


def bars(values: Iterable[float]) -> str:
    """Return *values* as bars whose highest is the greatest of them."""
    shown = list(values)
    top = max(shown, default=0.0)
    return "".join(
        _BARS[min(int(value / top * len(_BARS)), len(_BARS) - 1)] if top else _BARS[0] for value in shown
    )


def bits(octets_per_second: float) -> str:
    """Return a rate as "12.3 Mbit/s"."""
    value = octets_per_second * 8
    for unit in ("bit/s", "kbit/s", "Mbit/s"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "bit/s" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.2f} Gbit/s"


def short_bits(octets_per_second: float) -> str:
    """Return a rate for a narrow column whose head says bit/s: "12.3M", and "-" for none."""
    if not octets_per_second:
        return "-"
    number, unit = bits(octets_per_second).split()
    return number + unit.removesuffix("bit/s")
