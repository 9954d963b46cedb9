"""Flows that stand for all others between two ends: one for each pair of entries that can decide."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from policy.selectors import ICMP, ICMPV6, TCP, UDP, AddressRange, Flow, PortRange, SelectorPair
from policy.spd import Mode, SpdEntry
from tunnel.differences import End

#: More flows than a person reads; who has more entries asks for one flow at a time.
MAX_FLOWS = 32
#: Combinations that are looked at, so that ten thousand filters do not hold up the command.
_MAX_LOOKED_AT, _MAX_ENTRIES = 20_000, 2000
#: Pieces that one side of an entry is cut into.
_MAX_PIECES = 16
_EPHEMERAL = 40000
#: A host's place in its network: not the first, which is often the gateway itself.
_FIFTH = 5


def representatives(ends: tuple[End, End]) -> list[tuple[int, Flow]]:
    """Return flows with the number of the end that sends them, at most one for each pair of deciding entries.

    They are made of the selectors of both policies, both ways, and cut where the other end's selectors begin or
    end: what is behind such an edge gets another answer.
    """
    found: dict[tuple[object, ...], tuple[int, Flow]] = {}
    unmatched: list[tuple[int, Flow]] = []
    for looked, (number, flow) in enumerate(_candidates(ends)):
        if looked >= _MAX_LOOKED_AT or len(found) >= MAX_FLOWS:
            break
        one = ends[number].snapshot.spd.lookup_outbound(flow)
        other = ends[1 - number].snapshot.spd.lookup_inbound(flow)
        if one is None is other:
            unmatched.append((number, flow))
            continue
        found.setdefault((number, one.id if one else None, other.id if other else None), (number, flow))
    return list(found.values()) or list(dict(unmatched).items())


def sender(ends: tuple[End, End], flow: Flow) -> int | None:
    """Return the number of the end that *flow* comes from, None if it cannot be told."""
    for number, end in enumerate(ends):
        own = {(address.version, int(address)) for address in end.addresses}
        if (flow.version, flow.source) in own:
            return number
        if (flow.version, flow.destination) in own:
            return 1 - number
    for number, end in enumerate(ends):
        entry = end.snapshot.spd.lookup_outbound(flow)
        if entry is not None and not entry.selectors.local.addresses.is_any:
            return number
        entry = end.snapshot.spd.lookup_inbound(flow)
        if entry is not None and not entry.selectors.local.addresses.is_any:
            return 1 - number
    return None


def _candidates(ends: tuple[End, End]) -> Iterator[tuple[int, Flow]]:
    for number, end in enumerate(ends):
        other = ends[1 - number]
        mirrored = [entry.selectors.mirror() for entry in other.snapshot.spd.entries[:_MAX_ENTRIES]]
        for entry in end.snapshot.spd.entries[:_MAX_ENTRIES]:
            for pair in _pairs(entry, end, other, mirrored):
                for flow in _flows(pair):
                    if entry.outbound:
                        yield number, flow
                    if entry.inbound:
                        yield 1 - number, _back(flow, entry.selectors)
    for one in ends[0].addresses:
        for far in ends[1].addresses:
            if one.version == far.version:
                flow = Flow(one.version, TCP, int(one), int(far), _EPHEMERAL, 80)
                yield 0, flow
                yield 1, Flow(one.version, TCP, int(far), int(one), _EPHEMERAL, 80)


def _pairs(
    entry: SpdEntry, end: End, other: End, mirrored: list[SelectorPair]
) -> Iterator[tuple[SelectorPair, int, int]]:
    """Yield addresses of *entry* between these two ends; *mirrored* is what *other* selects, seen from here."""
    if not _between(entry, other):
        return
    pair = entry.selectors
    for local in _addresses(pair.local.addresses, end, [each.local.addresses for each in mirrored]):
        for remote in _addresses(pair.remote.addresses, other, [each.remote.addresses for each in mirrored]):
            yield pair, local, remote


def _between(entry: SpdEntry, other: End) -> bool:
    """Whether *entry* can be about packets between its end and *other*."""
    protection = entry.protection
    if protection is not None and protection.tunnel_remote is not None:
        return protection.tunnel_remote in other.addresses
    remote = entry.selectors.remote.addresses
    if any(address.version == remote.version and remote.contains(int(address)) for address in other.addresses):
        return True
    if protection is not None:
        return protection.mode is Mode.TUNNEL
    return any(remote.intersect(each.selectors.local.addresses) for each in other.snapshot.spd.entries)


def _addresses(wanted: AddressRange, end: End, others: list[AddressRange]) -> list[int]:
    """Return an address of *wanted* for each piece that *others* cut it into; a host is nothing but itself."""
    own = [int(a) for a in end.addresses if a.version == wanted.version and wanted.contains(int(a))]
    if wanted.is_host:
        return [wanted.start]
    if own and (wanted.is_any or not _is_gateway(end)):
        return own[:1]
    chosen = [_inside(wanted)]
    for other in others:
        common = wanted.intersect(other)
        if common is None or common == wanted:
            continue
        chosen.append(_inside(common))
        chosen += [edge for edge in (common.start - 1, common.end + 1) if wanted.contains(edge)]
    return list(dict.fromkeys(chosen))[:_MAX_PIECES]


def _is_gateway(end: End) -> bool:
    protections = (entry.protection for entry in end.snapshot.spd.entries)
    return any(protection is not None and protection.mode is Mode.TUNNEL for protection in protections)


def _inside(addresses: AddressRange) -> int:
    return min(addresses.start + _FIFTH, addresses.end)


def _flows(pair: tuple[SelectorPair, int, int]) -> Iterator[Flow]:
    selectors, local, remote = pair
    version = selectors.version
    protocols = (selectors.protocol,) if selectors.protocol else (TCP, UDP, ICMP if version == 4 else ICMPV6)
    for protocol in protocols:
        here, there = selectors.local.ports, selectors.remote.ports
        if protocol in (ICMP, ICMPV6):
            echo = 8 * 256 if protocol == ICMP else 128 * 256
            value = echo if here.contains(echo) else here.start
            yield Flow(version, protocol, local, remote, value, value)
        elif protocol in (TCP, UDP):
            yield Flow(version, protocol, local, remote, _port(here, _EPHEMERAL), _port(there, _port_of(here)))
        else:
            yield Flow(version, protocol, local, remote)


def _port(ports: PortRange, otherwise: int) -> int:
    return otherwise if ports.is_any or ports.is_opaque else ports.start


def _port_of(other: PortRange) -> int:
    """Return the port for a side that may have any: a client's against a server's, else a server's."""
    return 80 if other.is_any or other.is_opaque else _EPHEMERAL


def _back(flow: Flow, selectors: SelectorPair) -> Flow:
    """Return a flow that the other side begins: to a server too, where the filter leaves the ports open."""
    if selectors.local.ports.is_any and selectors.remote.ports.is_any:
        return replace(flow, source=flow.destination, destination=flow.source)
    return _reversed(flow)


def _reversed(flow: Flow) -> Flow:
    return Flow(
        flow.version, flow.protocol, flow.destination, flow.source, flow.destination_port, flow.source_port
    )  # fmt: skip
