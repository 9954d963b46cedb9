"""What an operator sees of an IKE SA."""

from __future__ import annotations

from dataclasses import dataclass

from policy.clock import Nanos
from policy.path import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class IkeSaStatus:
    """One IKE SA. Times are absolute nanoseconds; *suite* and *remote_id* are texts, empty while unknown."""

    #: PAD entry, empty while a responder does not know yet who is there.
    peer: str
    spi_i: bytes
    spi_r: bytes
    state: str
    #: "initiator" or "responder" of this IKE SA.
    role: str
    path: Path
    suite: str
    nat_local: bool
    nat_remote: bool
    remote_id: str
    established: Nanos | None
    rekey_at: Nanos | None
    children: tuple[int, ...]
    #: Why the last exchange with this peer failed, empty if none did.
    last_failure: str = ""
    #: How often our request under way was sent without an answer, and for how long; 0 while none waits.
    unanswered: int = 0
    silent_for: Nanos = 0
