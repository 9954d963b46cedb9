"""Traffic selector negotiation (RFC 7296 section 2.9): narrowing, never widening."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from policy.selectors import AddressRange, Flow, PortRange, SelectorPair, TrafficSelector
from policy.spd import Mode, SpdEntry

if TYPE_CHECKING:
    from ike.v2.sa import IkeSa

#: Selectors a side that we answer with, and pairs of them that one Child SA has: narrowing is always allowed.
_MAX_SIDE, _MAX_PAIRS = 8, 32


@dataclass(frozen=True, slots=True)
class Narrowed:
    """What a responder grants: the SPD entry, both sides, and whether the peer asked for more."""

    entry: SpdEntry
    local: tuple[TrafficSelector, ...]
    remote: tuple[TrafficSelector, ...]
    pairs: tuple[SelectorPair, ...]
    narrowed: bool


def offered_sides(
    entry: SpdEntry, flow: Flow | None
) -> tuple[tuple[TrafficSelector, ...], tuple[TrafficSelector, ...]]:
    """Return our and the peer's side to ask for: first the packet's own selectors, then the entry's."""
    local, remote = entry.selectors.local, entry.selectors.remote
    if flow is None or not entry.selectors.matches_outbound(flow):
        return (local,), (remote,)
    first_local = _packet_side(flow.version, flow.protocol, flow.source, flow.source_port)
    first_remote = _packet_side(flow.version, flow.protocol, flow.destination, flow.destination_port)
    return _unique((first_local, local)), _unique((first_remote, remote))


def grant(
    entries: Sequence[SpdEntry],
    local: Sequence[TrafficSelector],
    remote: Sequence[TrafficSelector],
    *,
    transport: bool,
    prefer: str | None = None,
) -> Narrowed | None:
    """Return what policy grants of the sides that the peer asks for, or None: TS_UNACCEPTABLE.

    *local* and *remote* are as we see them. A transport-mode entry is granted only to a peer that asks for
    transport mode. Among entries that intersect: *prefer* (the entry of a rekeyed Child SA), then one that
    contains the first selectors of both sides (the packet that the peer has), then one that covers all that
    is asked for, then SPD order.
    """
    best: tuple[tuple[bool, bool, bool], Narrowed] | None = None
    for entry in entries:
        mode = Mode.TUNNEL if entry.protection is None else entry.protection.mode
        if mode is Mode.TRANSPORT and not transport:
            continue
        if not (_meets(entry.selectors.remote, remote) and _meets(entry.selectors.local, local)):
            continue  # most of a peer's thousand entries are left here
        found = _intersect(entry, local, remote)
        if found is None:
            continue
        rank = (entry.id == prefer, _contains_first(entry, local, remote), not found.narrowed)
        if best is None or rank > best[0]:
            best = (rank, found)
    return None if best is None else best[1]


def accepted_pairs(
    asked: tuple[Sequence[TrafficSelector], Sequence[TrafficSelector]],
    answered: tuple[Sequence[TrafficSelector], Sequence[TrafficSelector]],
) -> tuple[SelectorPair, ...] | None:
    """Return the pairs of the responder's (local, remote) answer; None if it is wider than what we asked."""
    for ours, theirs in zip(asked, answered, strict=True):
        if not theirs or not all(any(mine.covers(one) for mine in ours) for one in theirs):
            return None
    return _pairs(answered[0], answered[1]) or None


def covered(pairs: Sequence[SelectorPair], by: Sequence[SelectorPair]) -> bool:
    """Whether every one of *pairs* lies in one of *by*."""
    return all(any(other.covers(pair) for other in by) for pair in pairs)


def as_seen(sa: IkeSa, asked: Sequence[TrafficSelector], *, local: bool) -> tuple[TrafficSelector, ...]:
    """Return transport-mode selectors with the addresses that we see where a NAT changed them (section 2.23.1).

    *local*: they are our side, TSr of a request to us.
    """
    behind_nat = sa.nat_local if local else sa.nat_remote
    address = (sa.path.local if local else sa.path.remote).address
    if not behind_nat:
        return tuple(asked)
    here = AddressRange.of(address)
    return tuple(
        replace(one, addresses=here)
        if one.addresses.start == one.addresses.end and one.addresses.version == here.version
        else one
        for one in asked
    )


def as_asked(
    granted: Sequence[TrafficSelector], asked: Sequence[TrafficSelector], seen: Sequence[TrafficSelector]
) -> tuple[TrafficSelector, ...]:
    """Return what is granted with the addresses that the peer knows: those that ``as_seen`` replaced, again."""
    known = {there.addresses: here.addresses for here, there in zip(asked, seen, strict=True)}
    return tuple(replace(one, addresses=known.get(one.addresses, one.addresses)) for one in granted)


def _packet_side(version: int, protocol: int, address: int, port: int | None) -> TrafficSelector:
    ports = PortRange(0, 65535) if port is None else PortRange(port, port)
    return TrafficSelector(protocol, AddressRange(version, address, address), ports)


def _meets(side: TrafficSelector, asked: Sequence[TrafficSelector]) -> bool:
    """Whether any selector asked for has addresses in common with *side*."""
    mine = side.addresses
    return any(
        each.addresses.start <= mine.end and mine.start <= each.addresses.end
        for each in asked
        if each.addresses.version == mine.version
    )


def _intersect(
    entry: SpdEntry, local: Sequence[TrafficSelector], remote: Sequence[TrafficSelector]
) -> Narrowed | None:
    ours = _reduce(entry.selectors.local.intersect(asked) for asked in local)
    theirs = _reduce(entry.selectors.remote.intersect(asked) for asked in remote)
    pairs = tuple(pair for pair in _pairs(ours, theirs) if entry.selectors.covers(pair))
    if not pairs:
        return None
    whole = all(any(s.covers(asked) for s in ours) for asked in local) and all(
        any(s.covers(asked) for s in theirs) for asked in remote
    )
    used_local = _unique(pair.local for pair in pairs)
    used_remote = _unique(pair.remote for pair in pairs)
    return Narrowed(entry, used_local, used_remote, pairs, not whole)


def _contains_first(entry: SpdEntry, local: Sequence[TrafficSelector], remote: Sequence[TrafficSelector]) -> bool:
    return entry.selectors.covers(SelectorPair(local[0], remote[0]))


def _pairs(local: Sequence[TrafficSelector], remote: Sequence[TrafficSelector]) -> tuple[SelectorPair, ...]:
    """Return every pair of one family and one protocol; one without a protocol takes the other's."""
    pairs: list[SelectorPair] = []
    for ours in local:
        for theirs in remote:
            if ours.addresses.version != theirs.addresses.version:
                continue
            protocol = ours.protocol or theirs.protocol
            if {ours.protocol, theirs.protocol} - {0, protocol}:
                continue
            pairs.append(
                SelectorPair(
                    TrafficSelector(protocol, ours.addresses, ours.ports),
                    TrafficSelector(protocol, theirs.addresses, theirs.ports),
                )
            )
    kept = [pair for pair in pairs if not any(other != pair and other.covers(pair) for other in pairs)]
    return tuple(dict.fromkeys(kept))[:_MAX_PAIRS]


def _reduce(found: Iterable[TrafficSelector | None]) -> tuple[TrafficSelector, ...]:
    selectors = _unique(one for one in found if one is not None)
    kept = [one for one in selectors if not any(other != one and other.covers(one) for other in selectors)]
    return tuple(kept)[:_MAX_SIDE]


def _unique(selectors: Iterable[TrafficSelector]) -> tuple[TrafficSelector, ...]:
    return tuple(dict.fromkeys(selectors))
