"""Steering and guard as one nftables table, rendered from the SPD (RFC 4301 section 5).

Pure: snapshot in, text for ``nft -f -`` out. The rules stand in SPD order: the first match decides, as there.

* ``prerouting``: what arrives. The outbound form of an entry (local to remote: transit from the LAN) is permitted,
  dropped, or marked for the TUN; the inbound form (remote to local) in clear is permitted, or dropped where the
  policy protects it (unless ``inbound_clear``).
* ``arrived``: what is for this host itself has the inbound form alone. A mark would not keep it out: the kernel's
  table of local addresses comes before any rule of ours.
* ``opened``: what comes from the TUN was opened and checked by the agent. It passes; on a hub with several peers
  it may be on its way into another tunnel.
* ``output``: the host's own packets, outbound form, marked likewise; a ``route`` chain: the mark re-routes them.
* ``postrouting``: the guard. Whatever an entry protects leaves through the TUN or from the agent's own sockets, or
  not at all: also while there is no agent, no TUN, no rule and no route.

The agent's replacement of the table is one transaction: there is no moment without it. The table has no owner, so
that it outlives the process.

A later fragment shows no ports. Where an entry looks at ports, its later fragments go the entry's way when it
blocks or protects: they never leave in clear, and the data plane drops them by name.
"""

from __future__ import annotations

from policy.path import IKE_PORT, NATT_PORT
from policy.selectors import ICMP, ICMPV6, AddressRange, PortRange, TrafficSelector
from policy.spd import Disposition, Snapshot, SpdEntry
from tunnel.host.marks import OPENED_MARK, OWN_MARK, STEER_MARK, TABLE

#: Named counters: what the guard stopped, readable while no agent runs.
COUNTERS = {
    "clear_in": "clear packets dropped on the way in: the policy protects them",
    "clear_out": "clear packets dropped on the way out: the policy protects them and they missed the TUN",
    "blocked": "packets that a block action dropped",
}
#: Neighbour discovery never is IPsec's: without it there is no link to send on (RFC 4861; hop limit 255).
_ND = (
    "icmpv6 type { nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert, nd-redirect } "
    "ip6 hoplimit 255 accept"
)
_LATER_FRAGMENT = {4: "ip frag-off & 0x1fff != 0", 6: "frag frag-off != 0"}


def render(snapshot: Snapshot, tun: str) -> str:
    """Return the script that replaces the table: add (if absent), delete, add anew, in one transaction."""
    lines = [
        f"add table inet {TABLE}",
        f"delete table inet {TABLE}",
        f"table inet {TABLE} {{",
        *(f'  counter {name} {{ comment "{text}"; }}' for name, text in COUNTERS.items()),
    ]
    lines += _chain("arrived", "", _arrived(snapshot))
    if _is_hub(snapshot):
        lines += _chain("opened", "", _opened(snapshot))
    lines += _chain("prerouting", "type filter hook prerouting priority mangle", _prerouting(snapshot, tun))
    lines += _chain("output", "type route hook output priority mangle", _output(snapshot))
    lines += _chain("postrouting", "type filter hook postrouting priority mangle", _postrouting(snapshot, tun))
    return "\n".join([*lines, "}", ""])


def remove() -> str:
    """Return the script that removes the table, whether it is there or not."""
    return f"add table inet {TABLE}\ndelete table inet {TABLE}\n"


def _chain(name: str, hook: str, rules: list[str]) -> list[str]:
    head = [f"    {hook}; policy accept;"] if hook else []
    return [f"  chain {name} {{", *head, *(f"    {rule}" for rule in rules), "  }"]


def _prerouting(snapshot: Snapshot, tun: str) -> list[str]:
    ports = f"{{ {IKE_PORT}, {NATT_PORT} }}"
    rules = [
        'iifname "lo" accept',
        f'iifname "{tun}" meta mark set {OPENED_MARK:#x}',
        f'iifname "{tun}" {"goto opened" if _is_hub(snapshot) else "accept"}',
        # RFC 4301 section 4.4.1: IKE has its explicit bypass, and ESP and AH to this host are the agent's.
        f"fib daddr type local udp dport {ports} accept",
        "fib daddr type local meta l4proto { esp, ah } accept",
        # Later fragments of those: without the first, which is checked by its ports, they complete nothing.
        f"fib daddr type local meta l4proto {{ udp, esp, ah }} {_LATER_FRAGMENT[4]} accept",
        f"fib daddr type local meta l4proto {{ udp, esp, ah }} {_LATER_FRAGMENT[6]} accept",
        _ND,
        "fib daddr type { local, broadcast, multicast } goto arrived",
    ]
    for entry in snapshot.spd.entries:
        if entry.outbound:
            rules += _rules(entry, _outbound(entry), _steer_verdict(entry))
        if entry.inbound:
            rules += _rules(entry, _inbound(entry), _inbound_verdict(entry))
    return rules


def _arrived(snapshot: Snapshot) -> list[str]:
    rules = []
    for entry in snapshot.spd.entries:
        if entry.inbound:
            rules += _rules(entry, _inbound(entry), _inbound_verdict(entry))
    return rules


def _is_hub(snapshot: Snapshot) -> bool:
    peers = {entry.protection.peer for entry in snapshot.spd.entries if entry.protection is not None}
    return len(peers) > 1


def _overlaps(entry: SpdEntry) -> bool:
    """Whether a packet can have both forms, as with "any to any": then what was opened has come in."""
    return entry.selectors.local.addresses.intersect(entry.selectors.remote.addresses) is not None


def _opened(snapshot: Snapshot) -> list[str]:
    rules = ["fib daddr type local accept"]
    for entry in snapshot.spd.entries:
        dropped = entry.disposition is Disposition.DISCARD
        if entry.inbound and (dropped or _overlaps(entry)):
            rules += _rules(entry, _inbound(entry), "counter name blocked drop" if dropped else "accept")
        if entry.outbound:
            rules += _rules(entry, _outbound(entry), _steer_verdict(entry))
    return rules


def _output(snapshot: Snapshot) -> list[str]:
    rules = [f"meta mark {OWN_MARK:#x} accept", 'oifname "lo" accept', _ND]
    for entry in snapshot.spd.entries:
        if entry.outbound:
            rules += _rules(entry, _outbound(entry), _steer_verdict(entry))
    return rules


def _postrouting(snapshot: Snapshot, tun: str) -> list[str]:
    rules = [f'oifname {{ "{tun}", "lo" }} accept', f"meta mark {OWN_MARK:#x} accept", _ND]
    for entry in snapshot.spd.entries:
        if entry.inbound and entry.disposition is not Disposition.DISCARD and _overlaps(entry):
            rules += [f'iifname "{tun}" {rule}' for rule in _rules(entry, _inbound(entry), "accept")]
        if not entry.outbound:
            continue
        match entry.disposition:
            case Disposition.BYPASS:
                verdict = "accept"
            case Disposition.DISCARD:
                verdict = "counter name blocked drop"
            case Disposition.PROTECT:
                verdict = "counter name clear_out drop"
        rules += _rules(entry, _outbound(entry), verdict)
    return rules


def _steer_verdict(entry: SpdEntry) -> str:
    match entry.disposition:
        case Disposition.BYPASS:
            return "accept"
        case Disposition.DISCARD:
            return "counter name blocked drop"
        case Disposition.PROTECT:
            return f"meta mark set {STEER_MARK:#x} accept"


def _inbound_verdict(entry: SpdEntry) -> str:
    match entry.disposition:
        case Disposition.BYPASS:
            return "accept"
        case Disposition.DISCARD:
            return "counter name blocked drop"
        case Disposition.PROTECT:
            if entry.protection is not None and entry.protection.inbound_clear:
                return "accept"
            return "counter name clear_in drop"


def _rules(entry: SpdEntry, sides: tuple[TrafficSelector, TrafficSelector], verdict: str) -> list[str]:
    """Return the rule of one entry in one direction, and the one of its later fragments where it needs ports."""
    source, destination = sides
    front = _addresses(source.addresses, destination.addresses)
    ports = _ports(source, destination)
    rules = [" ".join([*front, *_protocol(source.protocol), *ports, verdict])]
    if ports and entry.disposition is not Disposition.BYPASS:
        fragment = _LATER_FRAGMENT[source.addresses.version]
        rules.append(" ".join([*front, *_protocol(source.protocol), fragment, verdict]))
    return rules


def _outbound(entry: SpdEntry) -> tuple[TrafficSelector, TrafficSelector]:
    return entry.selectors.local, entry.selectors.remote


def _inbound(entry: SpdEntry) -> tuple[TrafficSelector, TrafficSelector]:
    return entry.selectors.remote, entry.selectors.local


def _addresses(source: AddressRange, destination: AddressRange) -> list[str]:
    family, word = (("ipv4", "ip"), ("ipv6", "ip6"))[source.version == 6]
    parts = [f"meta nfproto {family}"]
    for field, addresses in (("saddr", source), ("daddr", destination)):
        if not addresses.is_any:
            parts.append(f"{word} {field} {addresses}")
    return parts


def _protocol(protocol: int) -> list[str]:
    return [f"meta l4proto {protocol}"] if protocol else []


def _ports(source: TrafficSelector, destination: TrafficSelector) -> list[str]:
    if source.protocol in (ICMP, ICMPV6):
        # Type and code are one number in both selectors (RFC 4301 section 4.4.1.1).
        ranges = [side.ports for side in (source, destination) if not side.ports.is_any]
        return [f"@th,0,16 {_range(ports)}" for ports in ranges[:1]]
    parts = []
    for field, side in (("sport", source), ("dport", destination)):
        if not side.ports.is_any:
            parts.append(f"th {field} {_range(side.ports)}")
    return parts


def _range(ports: PortRange) -> str:
    return str(ports.start) if ports.start == ports.end else f"{ports.start}-{ports.end}"
