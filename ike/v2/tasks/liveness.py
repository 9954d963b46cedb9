"""Liveness: an empty INFORMATIONAL exchange (RFC 7296 section 2.4)."""

from __future__ import annotations

from ike.constants import ExchangeType
from ike.timers import Timer
from ike.v2.sa import IkeSa
from ike.v2.tasks.task import Failure, Task
from ike.wire.message import Message
from ike.wire.payloads import Payload
from policy.clock import Nanos


class Liveness(Task):
    """Ask whether the peer is there; when nobody answers, the window gives up and the IKE SA closes."""

    exchange = ExchangeType.INFORMATIONAL

    def build(self, sa: IkeSa, now: Nanos) -> list[Payload]:
        """Return no payloads."""
        return []

    def process(self, sa: IkeSa, message: Message, now: Nanos) -> None:
        """It is there."""

    def failed(self, sa: IkeSa, failure: Failure, now: Nanos) -> None:
        """The IKE SA closes."""


def check_liveness(sa: IkeSa, now: Nanos) -> None:
    """Probe the peer if nothing authentic came of it for the time that policy names, neither IKE nor ESP."""
    interval = None if sa.peer is None else sa.peer.ike.liveness
    if interval is None or not sa.usable:
        return
    numbers = [number for child in sa.children.values() for number in child.numbers]
    heard = max([sa.heard, *map(sa.core.last_heard, numbers)])
    if now - heard >= interval:
        probe(sa, now)
        heard = now
    # By chance a little later: both ends seldom ask at once, nor do we ask all who fell silent at once.
    later = interval * sa.core.entropy(1)[0] // 2048
    sa.core.timers.set(sa.number, Timer.LIVENESS, heard + interval + later)


def probe(sa: IkeSa, now: Nanos) -> None:
    """Probe the peer, unless a request under way does so already."""
    if sa.usable and sa.idle_tasks:
        sa.start(Liveness(), now)
