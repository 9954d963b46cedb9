"""Soft and hard lifetimes of an SA (RFC 4301 section 4.4.2.1, RFC 7296 section 2.8)."""

from __future__ import annotations

from dataclasses import dataclass

from policy.clock import SECOND, Entropy, Nanos


@dataclass(frozen=True, slots=True)
class Lifetime:
    """Limits of an SA. *time* is in nanoseconds, *bytes* in octets; None means no limit of that kind."""

    time: Nanos | None = 3600 * SECOND
    bytes: int | None = None

    def soft_time(self, entropy: Entropy) -> Nanos | None:
        """Return when to rekey after birth: 80 to 95 % of the lifetime, jittered so that ends and SAs spread."""
        return None if self.time is None else int(self.time * _jitter(entropy))

    def soft_bytes(self, entropy: Entropy) -> int | None:
        """Return after how many octets to rekey."""
        return None if self.bytes is None else int(self.bytes * _jitter(entropy))


def _jitter(entropy: Entropy) -> float:
    return 0.80 + 0.15 * (int.from_bytes(entropy(4)) / 2**32)
