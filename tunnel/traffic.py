"""What the SAs of each rule carried since the start, also those that are gone: totals that never fall."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from ike.events import ChildSa
from policy.proposals import ProtocolId
from tunnel.dataplane.contract import SaStats


@dataclass(slots=True)
class Carried:
    """Inner packets and their octets, as the counters of SAs have them."""

    packets_in: int = 0
    bytes_in: int = 0
    packets_out: int = 0
    bytes_out: int = 0

    def add(self, stats: SaStats, *, inbound: bool) -> None:
        """Add what one SA carried."""
        if inbound:
            self.packets_in += stats.packets
            self.bytes_in += stats.octets
        else:
            self.packets_out += stats.packets
            self.bytes_out += stats.octets

    def to_dict(self) -> dict[str, int]:
        """Return it for JSON."""
        return {
            "packets_in": self.packets_in, "bytes_in": self.bytes_in,
            "packets_out": self.packets_out, "bytes_out": self.bytes_out,
        }  # fmt: skip


class Traffic:
    """Keeps the totals by rule. An SA is told of when it is installed, and with its counters when deleted."""

    __slots__ = ("_gone", "_halves")

    def __init__(self) -> None:
        self._gone: dict[str, Carried] = {}
        #: Rule and SPI of the halves that are there, by child and direction.
        self._halves: dict[tuple[int, bool], tuple[str, int]] = {}

    def begin(self, sa: ChildSa, rule: str) -> None:
        """Count the pair of *sa* for *rule*. Of AH around ESP only the latter counts: a packet passes both."""
        if sa.bundle is None or sa.protocol is ProtocolId.ESP:
            self._halves[sa.child, True] = rule, sa.spi_in
            self._halves[sa.child, False] = rule, sa.spi_out

    def end(self, child: int, stats: SaStats | None, *, inbound: bool) -> None:
        """Keep what half a pair carried that is deleted."""
        half = self._halves.pop((child, inbound), None)
        if half is not None and stats is not None:
            self._gone.setdefault(half[0], Carried()).add(stats, inbound=inbound)

    def keep(self, rules: Iterable[str]) -> None:
        """Forget rules that the policy has no more, so that the table stays as large as the policy."""
        wanted = {*rules, *(rule for rule, _ in self._halves.values())}
        self._gone = {rule: carried for rule, carried in self._gone.items() if rule in wanted}

    def totals(self, query: Callable[[int, int, bool], SaStats | None]) -> dict[str, Carried]:
        """Return what each rule's SAs carried; *query* gives the counters of a child's SPI, inbound or not."""
        found = {rule: replace(carried) for rule, carried in self._gone.items()}
        for (child, inbound), (rule, spi) in self._halves.items():
            if (stats := query(child, spi, inbound)) is not None:
                found.setdefault(rule, Carried()).add(stats, inbound=inbound)
        return found
