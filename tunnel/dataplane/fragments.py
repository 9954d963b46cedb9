"""Fragments gathered until their datagram is complete (RFC 791 section 3.2, RFC 8200 section 4.5).

Where the policy looks at ports, a later fragment shows none; and transport mode is for whole datagrams alone (RFC
4301 sections 4.1 and 7). So the fragments of one datagram wait for each other, bounded in time, number and octets.
The complete datagram tells its flow; what leaves then is the original fragments, or the datagram put together.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field, replace

from policy.clock import SECOND, Nanos
from policy.selectors import Flow
from tunnel.dataplane.contract import DropReason
from tunnel.dataplane.flow import FRAGMENT, FlowError, Parsed, parse
from tunnel.dataplane.outer import carry

#: The IPv6 limit is 60 s, which no datagram on a working path needs.
LIFETIME = 15 * SECOND
MAX_DATAGRAMS, MAX_OCTETS, MAX_FRAGMENTS = 256, 4 * 1024 * 1024, 64
_LARGEST = 65535

Key = tuple[int, bytes]


@dataclass(frozen=True, slots=True)
class Piece:
    """One fragment: its packet, and the part [start, end) of the datagram that it carries."""

    packet: bytes
    start: int
    end: int
    last: bool
    #: Where its part begins in *packet*.
    at: int


@dataclass(frozen=True, slots=True)
class Datagram:
    """All fragments of one datagram, in order, and the outline of the first with the ports of the whole."""

    pieces: tuple[Piece, ...]
    outline: Parsed

    @property
    def flow(self) -> Flow:
        """The flow of the whole datagram."""
        return self.outline.flow

    def originals(self) -> list[tuple[bytes, Parsed]]:
        """Return the fragments as they came, each with the flow of the whole."""
        return [(piece.packet, replace(parse(piece.packet), flow=self.flow)) for piece in self.pieces]

    def joined(self) -> bytes:
        """Return the datagram put together. FlowError if no IP packet is that long."""
        first = self.pieces[0].packet
        body = b"".join(piece.packet[piece.at : piece.at + piece.end - piece.start] for piece in self.pieces)
        if first[0] >> 4 == 4:
            front = bytearray(first[: (first[0] & 15) * 4])
            front[6:8] = b"\0\0"
            at = 9
        else:
            size, at = _before_fragment(first)
            front = bytearray(first[:size])
            front[at] = first[size]
        if len(front) + len(body) > _LARGEST:
            raise FlowError(DropReason.MALFORMED)
        return carry(front, at, front[at], len(body)) + body


@dataclass(slots=True)
class _Waiting:
    since: Nanos
    pieces: list[Piece] = field(default_factory=list)
    octets: int = 0
    #: Length of the datagram, once its last fragment is there.
    total: int | None = None


class Fragments:
    """Datagrams that wait for the rest of their fragments."""

    __slots__ = ("_octets", "_waiting", "drops", "packets")

    def __init__(self) -> None:
        self._waiting: OrderedDict[Key, _Waiting] = OrderedDict()
        self._octets = 0
        #: Fragments that wait now.
        self.packets = 0
        #: Fragments that went nowhere since somebody took note, by reason.
        self.drops: dict[DropReason, int] = {}

    def add(self, packet: bytes, now: Nanos) -> Datagram | None:
        """Take a fragment; return its datagram when that is complete.

        FlowError for one that cannot be part of any. Every other fragment is returned in a Datagram or counted in
        ``drops``, exactly once.
        """
        key, piece = _piece(packet)
        waiting = self._waiting.get(key)
        if waiting is None:
            waiting = self._waiting[key] = _Waiting(now)
        if any(known.packet == packet for known in waiting.pieces):
            self._drop(
                DropReason.FRAGMENT_OVERLAP, 1
            )  # a copy: the datagram may yet be good (RFC 8200 section 4.5)
            return None
        if _contradicts(waiting, piece):
            self._give_up(key, DropReason.FRAGMENT_OVERLAP, 1)
            return None
        waiting.pieces.append(piece)
        waiting.octets += len(packet)
        self._octets += len(packet)
        self.packets += 1
        if piece.last:
            waiting.total = piece.end
        if waiting.total is not None and sum(p.end - p.start for p in waiting.pieces) == waiting.total:
            return self._complete(key)
        if len(waiting.pieces) >= MAX_FRAGMENTS:
            self._give_up(key, DropReason.FRAGMENT_LIMIT)
        while len(self._waiting) > MAX_DATAGRAMS or self._octets > MAX_OCTETS:
            self._give_up(next(iter(self._waiting)), DropReason.FRAGMENT_LIMIT)
        return None

    def expire(self, now: Nanos) -> None:
        """Give up the datagrams that waited too long."""
        while self._waiting:
            key, waiting = next(iter(self._waiting.items()))
            if now - waiting.since < LIFETIME:
                break
            self._give_up(key, DropReason.FRAGMENT_TIMEOUT)

    def deadline(self) -> Nanos | None:
        """Return when the oldest will have waited too long."""
        oldest = next(iter(self._waiting.values()), None)
        return None if oldest is None else oldest.since + LIFETIME

    def clear(self) -> None:
        """Give up all: the policy that they waited for is gone."""
        for key in list(self._waiting):
            self._give_up(key, DropReason.FRAGMENT_TIMEOUT)

    def _complete(self, key: Key) -> Datagram | None:
        waiting = self._forget(key)
        pieces = tuple(sorted(waiting.pieces, key=lambda piece: piece.start))
        try:
            outline = parse(pieces[0].packet)
        except FlowError as error:
            self._drop(error.reason, len(pieces))
            return None
        if pieces[0].start or (outline.flow.protocol in _WITH_PORTS and outline.flow.source_port is None):
            # The first fragment hides the ports: a tiny fragment (RFC 1858).
            self._drop(DropReason.FRAGMENT_PORTS, len(pieces))
            return None
        return Datagram(pieces, outline)

    def _give_up(self, key: Key, reason: DropReason, more: int = 0) -> None:
        self._drop(reason, len(self._forget(key).pieces) + more)

    def _forget(self, key: Key) -> _Waiting:
        waiting = self._waiting.pop(key)
        self._octets -= waiting.octets
        self.packets -= len(waiting.pieces)
        return waiting

    def _drop(self, reason: DropReason, count: int) -> None:
        self.drops[reason] = self.drops.get(reason, 0) + count


_WITH_PORTS = frozenset({1, 6, 17, 33, 58, 132, 136})


def datagram_of(packet: bytes) -> Key:
    """Return what the fragments of one datagram have in common (RFC 791 section 3.2, RFC 8200 section 4.5)."""
    return _piece(packet)[0]


def _piece(packet: bytes) -> tuple[Key, Piece]:
    """Return which datagram a fragment is of, and what part of it."""
    parsed = parse(packet)
    if not parsed.fragment:
        raise FlowError(DropReason.MALFORMED)
    if packet[0] >> 4 == 4:
        at = (packet[0] & 15) * 4
        word = packet[6] << 8 | packet[7]
        start, more = (word & 0x1FFF) * 8, bool(word & 0x2000)
        key = (4, packet[9:10] + packet[4:6] + packet[12:20])
    else:
        header, _ = _before_fragment(packet)
        at = header + 8
        word = packet[header + 2] << 8 | packet[header + 3]
        start, more = word & 0xFFF8, bool(word & 1)
        key = (6, packet[header + 4 : header + 8] + packet[8:40])
    size = parsed.length - at
    if size <= 0 or (more and size % 8) or start + size > _LARGEST:
        raise FlowError(DropReason.MALFORMED)
    return key, Piece(packet[: parsed.length], start, start + size, not more, at)


def _before_fragment(packet: bytes) -> tuple[int, int]:
    """Return where the IPv6 fragment header is, and the offset of the field that says that it follows."""
    at, end, kind = 6, 40, packet[6]
    while kind != FRAGMENT:
        if kind not in (0, 43, 60) or end + 8 > len(packet):
            raise FlowError(DropReason.MALFORMED)
        at, kind, end = end, packet[end], end + 8 + packet[end + 1] * 8
    return end, at


def _contradicts(waiting: _Waiting, piece: Piece) -> bool:
    """Whether *piece* overlaps another, or says otherwise where the datagram ends (RFC 5722)."""
    if any(piece.start < known.end and known.start < piece.end for known in waiting.pieces):
        return True
    if piece.last:
        return waiting.total is not None or any(known.end > piece.end for known in waiting.pieces)
    return waiting.total is not None and piece.end > waiting.total
