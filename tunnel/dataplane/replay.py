"""The anti-replay window (RFC 4303 section 3.4.3 and appendix A2).

Usage per packet: ``infer`` the full sequence number, ``check`` it, authenticate, ``commit`` it. Only ``commit``
changes state.
"""

from __future__ import annotations

from tunnel.dataplane.contract import DropReason

_LOW = 0xFFFF_FFFF
#: 32 is the least that RFC 4303 section 3.4.3 allows; 8192 covers a burst of GRO reads that overtake each other.
MIN_WINDOW, MAX_WINDOW = 32, 8192


class ReplayWindow:
    """Which of the last *size* sequence numbers were received.

    Numbers up to ``_anchor`` are bits of an integer (bit i is ``_anchor - i``); all after it, up to and including
    ``top``, were received in order. So a packet in order costs one addition, whatever the window's size.
    """

    __slots__ = ("_anchor", "_bits", "_mask", "esn", "size", "top")

    def __init__(self, size: int, *, esn: bool = False) -> None:
        """ValueError if *size* is not 32 to 8192."""
        if not MIN_WINDOW <= size <= MAX_WINDOW:
            raise ValueError(f"replay window of {size} packets is not {MIN_WINDOW} to {MAX_WINDOW}")
        self.size = size
        self.esn = esn
        #: The highest sequence number authenticated so far; 0 before the first.
        self.top = 0
        self._anchor = 0
        self._bits = 1  # number 0 is never sent (RFC 4303 section 3.3.3)
        self._mask = (1 << size) - 1

    def infer(self, low: int) -> int:
        """Return the sequence number whose low 32 bits came with the packet (RFC 4303 appendix A2.2).

        Without ESN it is *low* itself. With ESN the result may be negative (a number of a subspace before the
        first): no such packet was ever sent, and ``check`` says so.
        """
        if not self.esn:
            return low
        top_high, top_low = self.top >> 32, self.top & _LOW
        bottom = top_low - self.size + 1
        if bottom >= 0:  # the window lies within one subspace
            high = top_high if low >= bottom else top_high + 1
        else:  # the window spans two subspaces
            high = top_high - 1 if low >= bottom & _LOW else top_high
        return (high << 32) + low

    def check(self, number: int) -> DropReason | None:
        """Return why a packet with this sequence number must go, or None."""
        if number > self.top:
            return None
        if number <= self.top - self.size or number <= 0:
            return DropReason.OUTSIDE_WINDOW
        if number > self._anchor or self._bits >> (self._anchor - number) & 1:
            return DropReason.REPLAYED
        return None

    def commit(self, number: int) -> None:
        """Record an authenticated packet whose number passed ``check``."""
        if number == self.top + 1:
            self.top = number
            return
        if number <= self.top:
            self._bits |= 1 << (self._anchor - number)
            return
        run = self.top - self._anchor
        if number - self.top >= self.size:
            self._bits = 1
        else:
            received = (1 << min(run, self.size)) - 1
            bits = (self._bits << run | received) & self._mask if run < self.size else received
            self._bits = (bits << (number - self.top) | 1) & self._mask
        self.top = self._anchor = number
