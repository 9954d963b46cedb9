"""Time and entropy as arguments: the two types every pure module takes instead of a clock or an RNG."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

#: Monotonic time in integer nanoseconds (CLOCK_BOOTTIME on a host, virtual time in the simulator).
Nanos: TypeAlias = int

MICROSECOND: Nanos = 1_000
MILLISECOND: Nanos = 1_000_000
SECOND: Nanos = 1_000_000_000

#: ``entropy(n)`` returns *n* unpredictable octets: SPIs, nonces, private keys and jitter come from it.
Entropy: TypeAlias = Callable[[int], bytes]


def seconds(value: float) -> Nanos:
    """Return *value* seconds as integer nanoseconds."""
    return round(value * SECOND)
