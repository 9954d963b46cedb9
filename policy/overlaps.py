"""What the order of a compiled SPD decides behind the operator's back: twins and partial overlaps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from policy.model import ConnectionType
from policy.problems import ConfigError, quoted
from policy.selectors import SelectorPair
from policy.spd import Disposition, SpdEntry

#: Pairs are compared for overlaps up to this many entries: the work grows with the square, and a compilation must
#: not hold up the packets (300 entries take about a twentieth of a second).
MAX_COMPARED = 300
_MAX_SHOWN = 20
_STRICTNESS = {Disposition.BYPASS: 0, Disposition.PROTECT: 1, Disposition.DISCARD: 2}


def twins(entries: Sequence[SpdEntry]) -> Iterator[ConfigError]:
    """Yield entries that became equal only on this host; *entries* are in matching order, so the earlier wins."""
    first: dict[tuple[SelectorPair, ConnectionType], SpdEntry] = {}
    for entry in entries:
        earlier = first.setdefault((entry.selectors, entry.interfaces), entry)
        if earlier is entry or _same_treatment(earlier, entry) or not _same_way(earlier, entry):
            continue
        yield ConfigError(
            entry.where,
            f"on this host, rule {quoted(entry.rule)} selects the same as rule {quoted(earlier.rule)} "
            f"({entry.selectors})",
            f"rule {quoted(earlier.rule)} wins; make one of them narrower",
        )


def overlaps(entries: Sequence[SpdEntry]) -> Iterator[ConfigError]:
    """Yield entries that lose packets to a rule that is neither narrower nor stricter.

    *entries* are in matching order. Losing a packet to a stricter rule keeps it out of the clear: not told.
    """
    if len(entries) > MAX_COMPARED:
        return
    shown = 0
    seen: set[tuple[str, str]] = set()
    for later_at, later in enumerate(entries):
        for earlier in entries[:later_at]:
            if _same_treatment(earlier, later) or not _same_way(earlier, later) or earlier.rule == later.rule:
                continue
            if _STRICTNESS[earlier.disposition] > _STRICTNESS[later.disposition]:
                continue
            if (earlier.rule, later.rule) in seen:
                continue
            common = earlier.selectors.intersect(later.selectors)
            if common is None or common in (earlier.selectors, later.selectors):
                continue
            seen.add((earlier.rule, later.rule))
            shown += 1
            if shown > _MAX_SHOWN:
                return
            yield ConfigError(
                later.where,
                f"rules {quoted(earlier.rule)} and {quoted(later.rule)} overlap, and for {common} the first one "
                "wins because its filter fixes more",
                "write a filter for the common part if that is not meant",
            )


def _same_treatment(one: SpdEntry, other: SpdEntry) -> bool:
    return (one.disposition, one.protection) == (other.disposition, other.protection)


def _same_way(one: SpdEntry, other: SpdEntry) -> bool:
    if ConnectionType.ALL not in (one.interfaces, other.interfaces) and one.interfaces is not other.interfaces:
        return False
    return (one.outbound and other.outbound) or (one.inbound and other.inbound)
