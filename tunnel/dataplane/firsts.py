"""Later fragments that come in through a tunnel whose selectors have ports (RFC 4301 sections 7.2 and 7.3).

They show no ports, so they are let in by their first fragment: if it came in through the same SA and was accepted,
so are they. One that comes before its first, or without it, is dropped. A tunnel does not reassemble.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TypeAlias

from policy.clock import Nanos
from tunnel.dataplane.flow import Parsed
from tunnel.dataplane.fragments import LIFETIME, datagram_of

#: Datagrams that are remembered at once; past it the oldest is forgotten.
MAX_DATAGRAMS = 1024

_Key: TypeAlias = tuple[int, int, bytes]


class Firsts:
    """Which datagrams' first fragments were accepted, by the Child SA that they came through."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: OrderedDict[_Key, Nanos] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def accepted(self, child: int, packet: bytes, parsed: Parsed, now: Nanos) -> None:
        """Remember an accepted first fragment. FlowError if it cannot be one."""
        if not parsed.fragment or parsed.later_fragment:
            return
        self._known[child, *datagram_of(packet)] = now + LIFETIME
        while len(self._known) > MAX_DATAGRAMS:
            self._known.popitem(last=False)

    def follows(self, child: int, packet: bytes, now: Nanos) -> bool:
        """Whether a later fragment is of a datagram whose first was accepted. FlowError if it is of none."""
        key = (child, *datagram_of(packet))
        until = self._known.get(key)
        if until is not None and now >= until:
            del self._known[key]
            until = None
        return until is not None
