"""Rows of a chain: a selector for each side and a verdict, as nftables rules; long runs of them as verdict maps.

A chain is searched rule by rule, so ten thousand filters would cost each packet ten thousand comparisons. Those
that look at the same bits (the same prefix lengths, a protocol or none, single ports) are equal or disjoint: of a
run of such filters one look-up in a hash table finds the only one that can match. Of equal ones the first counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import TypeAlias

from policy.selectors import ICMP, ICMPV6, PORT_PROTOCOLS, AddressRange, PortRange, TrafficSelector

#: A run of fewer rows stays rules: a hash costs about as much as comparing these.
MAP_FROM = 8
_LATER_FRAGMENT = {4: "ip frag-off & 0x1fff != 0", 6: "frag frag-off != 0"}
_WITH_PORTS = ", ".join(str(protocol) for protocol in sorted(PORT_PROTOCOLS))
_SHOWING = ", ".join(str(protocol) for protocol in sorted(PORT_PROTOCOLS | {ICMP, ICMPV6}))


@dataclass(frozen=True, slots=True)
class Row:
    """What happens to packets from *source* to *destination*: *verdict*, in the words of nftables.

    *front* is what else must hold (the interface). Later fragments show no ports: with *fragments* those that may
    belong to the row go its way.
    """

    source: TrafficSelector
    destination: TrafficSelector
    verdict: str
    front: str = ""
    fragments: bool = True

    @property
    def version(self) -> int:
        """IP version of the traffic."""
        return self.source.addresses.version


#: The rows of one SPD entry.
_Step: TypeAlias = Sequence[Row]
#: What the row looks at: family, prefix lengths, whether a protocol is named, which ports, and its front.
_Shape: TypeAlias = tuple[int, int, int, bool, bool, bool, str]


@dataclass(slots=True)
class Maps:
    """The verdict maps of a table; chains that need the same one share it."""

    _names: dict[tuple[str, tuple[str, ...]], str] = field(default_factory=dict)

    def name(self, key: str, elements: Iterable[str]) -> str:
        """Return the name of the map with this key (a ``typeof``) and these elements."""
        content = key, tuple(elements)
        return self._names.setdefault(content, f"map{len(self._names)}")

    def render(self) -> list[str]:
        """Return the definitions."""
        lines = []
        for (key, elements), name in self._names.items():
            lines += [f"  map {name} {{", f"    typeof {key} : verdict", "    elements = {"]
            lines += [f"      {element}," for element in elements]
            lines += ["    }", "  }"]
        return lines


def rules(steps: Iterable[_Step], maps: Maps) -> list[str]:
    """Return the rules of *steps*, the rows of each SPD entry in SPD order: the first row that matches decides."""
    lines: list[str] = []
    by_version: dict[int, list[_Step]] = {4: [], 6: []}
    for step in steps:
        if step:
            by_version[step[0].version].append(step)  # the families never meet
    for version in (4, 6):
        for part in _parts(by_version[version]):
            if len(part) < MAP_FROM:
                lines += [line for step in part for row in step for line in _single(row)]
            elif _in_any_order(part):
                lines += _regrouped(part, maps)
            else:
                for run in _runs(part):
                    lines += _run(run, maps)
    return lines


def _parts(steps: Sequence[_Step]) -> Iterator[list[_Step]]:
    """Cut *steps* where neither the verdicts nor the shape go on."""
    part: list[_Step] = []
    shapes = None
    verdicts: tuple[tuple[str, bool], ...] = ()
    same_shape = same_verdict = True
    for step in steps:
        found, said = _shapes(step), _verdicts(step)
        if part:
            same_shape = same_shape and found is not None and found == shapes
            same_verdict = same_verdict and said == verdicts
            if not (same_shape or same_verdict):
                yield part
                part = []
        if not part:
            same_shape, same_verdict, shapes, verdicts = found is not None, True, found, said
        part.append(step)
    if part:
        yield part


def _verdicts(step: _Step) -> tuple[tuple[str, bool], ...]:
    return tuple((row.verdict, row.fragments) for row in step)


def _in_any_order(part: Sequence[_Step]) -> bool:
    """Whether all entries say the same, and no packet can match rows that differ."""
    if any(_verdicts(step) != _verdicts(part[0]) for step in part):
        return False
    if len(part[0]) == 1:
        return True
    ends = [
        (addresses.start, addresses.end, number)
        for step in part
        for number, row in enumerate(step)
        for addresses in (row.source.addresses,)
    ]
    reached: dict[int, int] = {}
    for start, end, number in sorted(ends):
        if any(start <= other for which, other in reached.items() if which != number):
            return False
        reached[number] = max(end, reached.get(number, -1))
    return True


def _regrouped(part: Sequence[_Step], maps: Maps) -> list[str]:
    """Return the rules of rows whose order does not matter: a map for each shape that many have."""
    lines = []
    for rows in zip(*part, strict=True):
        groups: dict[_Shape | None, list[Row]] = {}
        for row in rows:
            groups.setdefault(_shape(row), []).append(row)
        for shape, group in groups.items():
            if shape is None or len(group) < MAP_FROM:
                lines += [line for row in group for line in _single(row)]
            else:
                lines += _map_of(group, maps)
    return lines


def _runs(steps: Sequence[_Step]) -> Iterator[list[_Step]]:
    """Cut *steps* into runs of one shape, in which no later row loses to an earlier entry's; others are alone."""
    run: list[_Step] = []
    shapes: tuple[_Shape, ...] | None = None
    later: set[tuple[int, ...]] = set()
    for step in steps:
        found = _shapes(step)
        if run and (found is None or found != shapes or _meets(step, later)):
            yield run
            run, later = [], set()
        shapes = found
        run.append(step)
        later.update(_common(row) for row in step[1:])
    if run:
        yield run


def _meets(step: _Step, later: set[tuple[int, ...]]) -> bool:
    """Whether the first row may match what a later row of an entry before it matches: that one would lose."""
    return len(step) > 1 and _common(step[0]) in later


def _common(row: Row) -> tuple[int, ...]:
    """Return what any two rows of the same entries' shapes that a packet can match both have in common."""
    source, destination = row.source.addresses, row.destination.addresses
    width = 32 if row.version == 4 else 128
    shift = width - min(source.specificity, destination.specificity)
    return source.start >> shift, destination.start >> shift, row.source.protocol


def _run(run: Sequence[_Step], maps: Maps) -> list[str]:
    if len(run) < MAP_FROM:
        return [line for step in run for row in step for line in _single(row)]
    return [line for rows in zip(*run, strict=True) for line in _map_of(rows, maps)]


def _map_of(rows: Sequence[Row], maps: Maps) -> list[str]:
    """Return the rules of rows of one shape: their map, and that of their later fragments."""
    late = [row for row in rows if row.fragments] if _has_ports(rows[0]) else []
    return [_mapped(rows, maps), *([_mapped(late, maps, later_fragments=True)] if late else [])]


def _shapes(step: _Step) -> tuple[_Shape, ...] | None:
    shapes = tuple(_shape(row) for row in step)
    found = tuple(shape for shape in shapes if shape is not None)
    return found if len(found) == len(shapes) else None


def _shape(row: Row) -> _Shape | None:
    """Return the shape of a row; None when no hash can find it: ranges, or nothing to look at."""
    source, destination = row.source, row.destination
    here, there = _prefix_length(source.addresses), _prefix_length(destination.addresses)
    if here is None or there is None:
        return None
    if _has_ports(row):
        if source.protocol not in PORT_PROTOCOLS:
            return None
        if not all(ports.is_any or ports.start == ports.end for ports in (source.ports, destination.ports)):
            return None
    elif here == there == 0 and not source.protocol:
        return None
    named = source.protocol != 0
    return row.version, here, there, named, not source.ports.is_any, not destination.ports.is_any, row.front


def _prefix_length(addresses: AddressRange) -> int | None:
    """Return the length of the prefix that the range is, or None if it is none."""
    width = 32 if addresses.version == 4 else 128
    bits = (addresses.start ^ addresses.end).bit_length()
    low = (1 << bits) - 1
    return width - bits if addresses.start & low == 0 and addresses.end & low == low else None


def _has_ports(row: Row) -> bool:
    return not (row.source.ports.is_any and row.destination.ports.is_any)


def _mapped(rows: Sequence[Row], maps: Maps, *, later_fragments: bool = False) -> str:
    """Return the rule that looks *rows*, all of one shape, up in a map."""
    first = rows[0]
    word = "ip" if first.version == 4 else "ip6"
    fields: list[str] = []
    looked_at: list[str] = []
    for name, addresses in (("saddr", first.source.addresses), ("daddr", first.destination.addresses)):
        length = _prefix_length(addresses)
        if length:
            fields.append(f"{word} {name}")
            looked_at.append(f"{word} {name}{_mask(first.version, length)}")
    others = ["meta l4proto"] if first.source.protocol else []
    if not later_fragments:
        others += [
            f"th {name}"
            for name, side in (("sport", first.source), ("dport", first.destination))
            if not side.ports.is_any
        ]
    key = " . ".join([*fields, *others])
    elements: dict[str, str] = {}
    for row in rows:
        elements.setdefault(_element(row, later_fragments), row.verdict)
    name = maps.name(key, [f"{element} : {verdict}" for element, verdict in elements.items()])
    parts = [*_front(first), " . ".join([*looked_at, *others]), f"vmap @{name}"]
    if later_fragments:
        parts.insert(len(_front(first)), _LATER_FRAGMENT[first.version])
    return " ".join(parts)


def _element(row: Row, later_fragment: bool) -> str:
    values = [
        str(addresses.first)
        for addresses in (row.source.addresses, row.destination.addresses)
        if not addresses.is_any
    ]
    if row.source.protocol:
        values.append(str(row.source.protocol))
    if not later_fragment:
        values += [str(side.ports.start) for side in (row.source, row.destination) if not side.ports.is_any]
    return " . ".join(values)


def _mask(version: int, length: int) -> str:
    width = 32 if version == 4 else 128
    if length == width:
        return ""
    bits = (1 << width) - (1 << (width - length))
    return f" & {IPv4Address(bits) if version == 4 else IPv6Address(bits)}"


def _front(row: Row) -> list[str]:
    return [*([row.front] if row.front else []), f"meta nfproto {'ipv4' if row.version == 4 else 'ipv6'}"]


def _single(row: Row) -> list[str]:
    """Return the rules of one row: what it matches, and its later fragments where it needs ports."""
    source, destination = row.source, row.destination
    front = [*_front(row), *_addresses(row)]
    fragment = _LATER_FRAGMENT[row.version]
    protocol = [f"meta l4proto {source.protocol}"] if source.protocol else []
    if source.ports.is_opaque or destination.ports.is_opaque:
        # Only packets whose ports cannot be seen: later fragments, and protocols that have none.
        parts = [" ".join([*front, *protocol, fragment, row.verdict])]
        if source.protocol not in PORT_PROTOCOLS | {ICMP, ICMPV6}:
            hidden = protocol or [f"meta l4proto != {{ {_SHOWING} }}"]
            parts.append(" ".join([*front, *hidden, row.verdict]))
        return parts
    ports = _ports(source, destination)
    if ports and not source.protocol:
        protocol = [f"meta l4proto {{ {_WITH_PORTS} }}"]
    lines = [" ".join([*front, *protocol, *ports, row.verdict])]
    if ports and row.fragments:
        lines.append(" ".join([*front, *protocol, fragment, row.verdict]))
    return lines


def _addresses(row: Row) -> list[str]:
    word = "ip" if row.version == 4 else "ip6"
    sides = (("saddr", row.source.addresses), ("daddr", row.destination.addresses))
    return [f"{word} {name} {addresses}" for name, addresses in sides if not addresses.is_any]


def _ports(source: TrafficSelector, destination: TrafficSelector) -> list[str]:
    if source.protocol in (ICMP, ICMPV6):
        # Type and code are one number in both selectors (RFC 4301 section 4.4.1.1).
        ranges = [side.ports for side in (source, destination) if not side.ports.is_any]
        return [f"@th,0,16 {_range(ports)}" for ports in ranges[:1]]
    sides = (("sport", source), ("dport", destination))
    return [f"th {name} {_range(side.ports)}" for name, side in sides if not side.ports.is_any]


def _range(ports: PortRange) -> str:
    return str(ports.start) if ports.start == ports.end else f"{ports.start}-{ports.end}"
