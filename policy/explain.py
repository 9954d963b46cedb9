"""Why a packet is treated as it is: the entry that decides, and the nearest ones that do not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from policy.icmp import icmp_text, is_icmp
from policy.model import ConnectionType, Where
from policy.order import direction_text
from policy.selectors import AddressRange, Flow, PortRange, TrafficSelector
from policy.spd import Disposition, Mode, Protection, Snapshot, SpdEntry
from policy.suites import hides
from policy.texts import protocol_name

#: How many candidates are shown beside the entry that decides.
_SHOWN = 5


class Direction(Enum):
    """Which way a packet goes, seen from this host."""

    OUTBOUND = "outbound"
    INBOUND = "inbound"


@dataclass(frozen=True, slots=True)
class Considered:
    """An entry that does not decide, and the first field in which it differs."""

    entry: str
    rule: str
    why_not: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What the policy says about a flow. *verdict* is protect, bypass, discard or "no policy"."""

    flow: str
    direction: Direction
    verdict: str
    why: str
    entry: SpdEntry | None = None
    considered: tuple[Considered, ...] = ()

    def to_dict(self) -> dict[str, object]:
        """Return it for JSON; names and place are None where there is no entry."""
        entry = self.entry
        return {
            "flow": self.flow,
            "direction": self.direction.value,
            "verdict": self.verdict,
            "entry": entry.id if entry else None,
            "filter": entry.filter if entry else None,
            "filter_list": entry.filter_list if entry else None,
            "filter_action": entry.filter_action if entry else None,
            "rule": entry.rule if entry else None,
            "where": str(entry.where) if entry and entry.where != Where() else None,
            "why": self.why,
            "considered": [
                {"entry": other.entry, "rule": other.rule, "why_not": other.why_not} for other in self.considered
            ],
        }


def explain(
    snapshot: Snapshot,
    flow: Flow,
    direction: Direction | None = None,
    interface: ConnectionType = ConnectionType.LAN,
) -> Explanation:
    """Return why *flow* is treated as it is under *snapshot* on an *interface* of that kind.

    Without *direction* it is outbound when its source is this host, inbound when its destination is, and for
    forwarded packets the direction in which an entry matches (outbound when none or both do).
    """
    way = direction or _direction(snapshot, flow)
    outbound = way is Direction.OUTBOUND
    look_up = snapshot.spd.lookup_outbound if outbound else snapshot.spd.lookup_inbound
    entry = look_up(flow, interface)
    if entry is None:
        nothing = "no policy is assigned" if snapshot.policy is None else "no filter of the policy matches"
        verdict, why = "no policy", f"{nothing}, so the packet is none of IPsec's business and passes in clear"
        if snapshot.response:
            why += ", until the other host asks to secure it (the default response rule)"
    else:
        verdict, why = entry.disposition.value, _why(entry, flow, outbound=outbound)
    other = ConnectionType.LAN if interface is ConnectionType.REMOTE_ACCESS else ConnectionType.REMOTE_ACCESS
    elsewhere = look_up(flow, other)
    if elsewhere is not entry:
        says = "no filter matches" if elsewhere is None else f'rule "{elsewhere.rule}" decides'
        why += f" (on a {interface.value} interface; on a {other.value} interface {says})"
    return Explanation(
        flow=flow_text(flow),
        direction=way,
        verdict=verdict,
        why=why,
        entry=entry,
        considered=_considered(snapshot, flow, entry, interface, outbound=outbound),
    )


def flow_text(flow: Flow) -> str:
    """Return *flow* as a person writes it: "tcp 10.1.0.5:40000 -> 10.2.0.9:443"."""
    if is_icmp(flow.protocol):
        bare = replace(flow, source_port=None, destination_port=None)
        sides = str(bare).partition(" ")[2].partition(" ")[2]
        return " ".join(filter(None, (protocol_name(flow.protocol), _message_text(flow), sides)))
    protocol, _, rest = str(flow).removeprefix("protocol ").partition(" ")
    return f"{protocol_name(int(protocol))} {rest}"


def _direction(snapshot: Snapshot, flow: Flow) -> Direction:
    own = {(address.version, int(address)) for address in snapshot.local_addresses}
    if (flow.version, flow.source) in own:
        return Direction.OUTBOUND
    if (flow.version, flow.destination) in own:
        return Direction.INBOUND
    if snapshot.spd.lookup_outbound(flow) is None and snapshot.spd.lookup_inbound(flow) is not None:
        return Direction.INBOUND
    return Direction.OUTBOUND


def _why(entry: SpdEntry, flow: Flow, *, outbound: bool) -> str:
    name = f'filter {entry.filter or entry.id} of "{entry.filter_list}" is the most specific that matches, and '
    match entry.disposition:
        case Disposition.BYPASS:
            return f'{name}"{entry.filter_action}" permits'
        case Disposition.DISCARD:
            note = f": {entry.note}" if entry.note else ""
            return f'{name}"{entry.filter_action}" drops{note}'
        case Disposition.PROTECT:
            protection = entry.protection
            if protection is None:
                return f'{name}"{entry.filter_action}" protects'
            return f'{name}"{entry.filter_action}" {_how(protection, flow, outbound=outbound)}'


def _how(protection: Protection, flow: Flow, *, outbound: bool) -> str:
    """Return what a filter action that negotiates does with a packet."""
    where = f"the tunnel to {protection.peer}"
    host = flow.destination_address if outbound else flow.source_address
    if outbound:
        between = f"protects it between this host and {host}"
        said = f"sends it through {where}" if protection.mode is Mode.TUNNEL else between
        if protection.fallback_clear:
            said += "; in clear only while that host does not answer at all (fallback_clear)"
        if not any(map(hides, protection.methods)):
            said += "; its methods let everybody read it"
        return said
    said = (
        f"accepts it from {where} only"
        if protection.mode is Mode.TUNNEL
        else f"accepts it protected by {host} only"
    )
    if protection.inbound_clear:
        return f"{said}; in clear it is accepted too (inbound_clear)"
    if protection.fallback_clear:
        return f"{said}; in clear only while that host does not answer at all (fallback_clear)"
    return said


def _considered(
    snapshot: Snapshot, flow: Flow, winner: SpdEntry | None, interface: ConnectionType, *, outbound: bool
) -> tuple[Considered, ...]:
    """Return the nearest other entries: those with the most fields that match, in matching order."""
    scored: list[tuple[int, int, Considered]] = []
    for rank, entry in enumerate(snapshot.spd.entries):
        if entry is winner:
            continue
        wrong = _mismatches(entry, flow, interface, outbound=outbound)
        why_not = wrong[0] if wrong else "matches too, but is less specific"
        scored.append((len(wrong), rank, Considered(entry.id, entry.rule, why_not)))
    scored.sort(key=lambda item: item[:2])
    return tuple(candidate for _, _, candidate in scored[:_SHOWN])


def _mismatches(entry: SpdEntry, flow: Flow, interface: ConnectionType, *, outbound: bool) -> list[str]:
    """Return each field of *entry* that *flow* does not fit, wanted and got, the one read first in front."""
    pair = entry.selectors if outbound else entry.selectors.mirror()
    found: list[str] = []
    if pair.version != flow.version:
        found.append(f"family: wanted IPv{pair.version}, got IPv{flow.version}")
    else:
        for name, side, address in (
            ("source", pair.local, flow.source),
            ("destination", pair.remote, flow.destination),
        ):
            if not side.addresses.contains(address):
                got = AddressRange(flow.version, address, address)
                found.append(f"{name}: wanted {side.addresses}, got {got}")
    if pair.protocol not in (0, flow.protocol):
        found.append(f"protocol: wanted {protocol_name(pair.protocol)}, got {protocol_name(flow.protocol)}")
    elif is_icmp(flow.protocol) and is_icmp(pair.protocol):
        if not pair.local.ports.contains(flow.source_port):
            wanted = icmp_text(pair.protocol, pair.local.ports)
            found.append(f"message: wanted {wanted}, got {_message_text(flow) or 'none'}")
    else:
        found += _port_mismatch("source port", pair.local, flow.source_port)
        found += _port_mismatch("destination port", pair.remote, flow.destination_port)
    if not entry.is_for(interface):
        found.append(f"interface: the rule is for {entry.interfaces.value}")
    if not (entry.outbound if outbound else entry.inbound):
        found.append(f"direction: the filter is not mirrored and is for packets going {direction_text(entry)}")
    return found


def _message_text(flow: Flow) -> str:
    value = flow.source_port
    return "" if value is None else icmp_text(flow.protocol, PortRange(value, value))


def _port_mismatch(name: str, side: TrafficSelector, port: int | None) -> list[str]:
    if side.ports.contains(port):
        return []
    return [f"{name}: wanted {side.ports}, got {'none' if port is None else port}"]
