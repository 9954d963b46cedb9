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
* ``cast_in``, ``cast_out``: multicast and broadcast, which no negotiation can secure. On the way in they are
  exempt from entries that protect, and stopped only by ones that block (as in Windows Server 2003). On the way out
  they are permitted or blocked, never steered: what an entry protects does not leave, unless it may in clear.

Soft SAs are pairs of hosts in the sets ``soft4`` and ``soft6``, with timeouts: where an entry has
``fallback_clear`` they pass in clear, at that entry's place in the order, and at the kernel's speed.

The agent's replacement of the table is one transaction: there is no moment without it. The table has no owner, so
that it outlives the process.

What has no owner anybody can flush. ``render_held`` makes a second table for the moments after that: it has one
(``heldguard.py``), only guards, and comes after the first, so that it drops, and counts, what that one let pass.
It knows no soft SAs: it leaves alone what may leave in clear while they last.

A later fragment shows no ports. Where an entry looks at ports, its later fragments go the entry's way when it
blocks or protects: they never leave in clear, and the data plane drops them by name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias

from policy.model import ConnectionType
from policy.path import IKE_PORT, NATT_PORT, IpAddress
from policy.spd import Disposition, Mode, Snapshot, SpdEntry
from tunnel.host.links import Links
from tunnel.host.marks import HELD_TABLE, OPENED_MARK, OWN_MARK, STEER_MARK, TABLE
from tunnel.host.rows import Maps, Row, rules

#: Two hosts that may talk in clear, local first, and for how many seconds more.
SoftPair: TypeAlias = tuple[IpAddress, IpAddress, int]
_Rows: TypeAlias = Iterable[Sequence[Row]]


def _soft(local: str, remote: str) -> list[str]:
    words = ((4, "ip"), (6, "ip6"))
    return [f"{word} {local} . {word} {remote} @soft{version} accept" for version, word in words]


#: Named counters: what the guard stopped, readable while no agent runs.
COUNTERS = {
    "clear_in": "clear packets dropped on the way in: the policy protects them",
    "clear_out": "clear packets dropped on the way out: the policy protects them and they missed the TUN",
    "blocked": "packets that a block action dropped",
}
#: Where rows lead: chains, because the elements of a map can hold no more than "goto".
_ENDS = {
    "steer": [f"meta mark set {STEER_MARK:#x} accept"],
    "steer_soft": [*_soft("saddr", "daddr"), "goto steer"],
    "clear_in_soft": [*_soft("daddr", "saddr"), "goto clear_in"],
    "clear_out_soft": [*_soft("saddr", "daddr"), "goto clear_out"],
}
_HELD_ENDS = {end: ["accept"] for end in _ENDS}
#: Soft SAs at one time; the kernel's memory is not the network's to fill.
_MAX_SOFT = 65536
_REVISION = "Mirrorgate's, revision "
#: Neighbour discovery never is IPsec's: without it there is no link to send on (RFC 4861; hop limit 255). Nor is
#: listener discovery, by which switches learn who hears neighbour discovery (RFC 3810; hop limit 1).
_ND = (
    "icmpv6 type { nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert, nd-redirect } "
    "ip6 hoplimit 255 accept"
)
_MLD = (
    "icmpv6 type { mld-listener-query, mld-listener-report, mld-listener-done, mld2-listener-report } "
    "ip6 hoplimit 1 accept"
)


def render(snapshot: Snapshot, tun: str, *, soft: Sequence[SoftPair] = (), links: Links | None = None) -> str:
    """Return the script that replaces the table: add (if absent), delete, add anew, in one transaction.

    *soft* are the soft SAs in force, *links* the host's interfaces by kind; without them an entry for one kind of
    interface is one for all of them.
    """
    return _script(TABLE, _Table(snapshot, tun, links), _ENDS, _soft_sets(soft))


def render_held(snapshot: Snapshot, tun: str, *, links: Links | None = None) -> str:
    """Return the script that makes or replaces the table that its owner alone can change, in one transaction."""
    return _script(HELD_TABLE, _Table(snapshot, tun, links, held=True), _HELD_ENDS, [], "flags owner")


def _script(
    name: str, table: _Table, ends: Mapping[str, Sequence[str]], soft_sets: Sequence[str], flags: str = ""
) -> str:
    chains = table.chains()
    lines = [f'  counter {name} {{ comment "{text}"; }}' for name, text in COUNTERS.items()]
    for counter in COUNTERS:
        lines += _chain(counter, [f"counter name {counter} drop"])
    for end, body in ends.items():
        lines += _chain(end, body)
    lines += [*table.maps.render(), *chains]
    content = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    head = [
        f"add table inet {name}" + (f" {{ {flags}; }}" if flags else ""),
        f"delete table inet {name}",
        f"table inet {name} {{",
        *([f"  {flags};"] if flags else []),
        f'  comment "{_REVISION}{content[:16]}"',
    ]
    return "\n".join([*head, *soft_sets, *lines, "}", ""])


def revision(script: str) -> str:
    """Return the comment of the table that ``render`` made: a digest of its rules, whatever soft SAs there are."""
    start = script.index(_REVISION)
    return script[start : start + len(_REVISION) + 16]


def _soft_sets(soft: Sequence[SoftPair]) -> list[str]:
    lines = []
    for version, word in ((4, "ip"), (6, "ip6")):
        pairs = [f"{one} . {other} timeout {left}s" for one, other, left in soft if one.version == version]
        head = f"typeof {word} saddr . {word} daddr; flags timeout; size {_MAX_SOFT};"
        elements = f" elements = {{ {', '.join(pairs[:_MAX_SOFT])} }};" if pairs else ""
        lines.append(f"  set soft{version} {{ {head}{elements} }}")
    return lines


def soft_element(local: IpAddress, remote: IpAddress, seconds: int) -> str:
    """Return the script that puts a pair into its set for *seconds* more, or takes it out (0)."""
    name = f"element inet {TABLE} soft{local.version}"
    pair = f"{local} . {remote}"
    # An element that is there keeps its timeout: it goes first.
    script = f"add {name} {{ {pair} timeout 1s }}\ndelete {name} {{ {pair} }}\n"
    return script + (f"add {name} {{ {pair} timeout {seconds}s }}\n" if seconds > 0 else "")


def remove() -> str:
    """Return the script that removes the table, whether it is there or not."""
    return f"add table inet {TABLE}\ndelete table inet {TABLE}\n"


def _chain(name: str, body: Sequence[str], hook: str = "") -> list[str]:
    head = [f"    {hook}; policy accept;"] if hook else []
    return [f"  chain {name} {{", *head, *(f"    {rule}" for rule in body), "  }"]


class _Table:
    """The chains of one snapshot."""

    def __init__(self, snapshot: Snapshot, tun: str, links: Links | None, *, held: bool = False) -> None:
        self.maps = Maps()
        self._held = held
        self._entries = snapshot.spd.entries
        self._tun, self._links = tun, links
        self._own = {(address.version, int(address)) for address in snapshot.local_addresses}
        peers = {
            entry.protection.peer
            for entry in self._entries
            if entry.protection is not None and entry.protection.mode is Mode.TUNNEL
        }
        self._is_hub = len(peers) > 1

    def chains(self) -> list[str]:
        lines = _chain("arrived", self._of(lambda entry: [*self._inbound(entry, _inbound_verdict(entry))]))
        lines += _chain("cast_in", self._of(lambda entry: [*self._inbound(entry, _cast_in_verdict(entry))]))
        lines += _chain(
            "cast_out", self._of(lambda entry: [*self._outbound(entry, _cast_out_verdict(entry), "oif")])
        )
        if self._is_hub:
            lines += _chain("opened", self._opened())
        hook = "type {} hook {} priority mangle" + (" + 1" if self._held else "")
        lines += _chain("prerouting", self._prerouting(), hook.format("filter", "prerouting"))
        if not self._held:
            lines += _chain("output", self._output(), hook.format("route", "output"))
        return lines + _chain("postrouting", self._postrouting(), hook.format("filter", "postrouting"))

    def _of(self, rows: Callable[[SpdEntry], list[Row]]) -> list[str]:
        return rules(map(rows, self._entries), self.maps)

    def _prerouting(self) -> list[str]:
        ports = f"{{ {IKE_PORT}, {NATT_PORT} }}"
        return [
            'iifname "lo" accept',
            *([] if self._held else [f'iifname "{self._tun}" meta mark set {OPENED_MARK:#x}']),
            f'iifname "{self._tun}" {"goto opened" if self._is_hub else "accept"}',
            # RFC 4301 section 4.4.1: IKE has its explicit bypass, and ESP and AH to this host are the agent's.
            f"fib daddr type local udp dport {ports} accept",
            "fib daddr type local meta l4proto { esp, ah } accept",
            # Later fragments of those: without the first, which is checked by its ports, they complete nothing.
            "fib daddr type local meta l4proto { udp, esp, ah } ip frag-off & 0x1fff != 0 accept",
            # In IPv6 only the fragment header says so: AH counts as an extension header there.
            "fib daddr type local frag nexthdr { udp, esp, ah } frag frag-off != 0 accept",
            _ND,
            _MLD,
            "fib daddr type { broadcast, multicast } goto cast_in",
            "fib daddr type local goto arrived",
            *self._of(self._transit),
        ]

    def _transit(self, entry: SpdEntry) -> list[Row]:
        if self._is_own(entry):
            return []  # what has an address of this host comes from it or is for it
        return [
            *self._outbound(entry, _steer_verdict(entry), "fib daddr oif"),
            *self._inbound(entry, _inbound_verdict(entry)),
        ]

    def _opened(self) -> list[str]:
        def rows(entry: SpdEntry) -> list[Row]:
            found = []
            dropped = entry.disposition is Disposition.DISCARD
            if dropped or self._overlaps(entry):
                found += self._inbound(entry, "goto blocked" if dropped else "accept", anywhere=True)
            return [*found, *self._outbound(entry, _steer_verdict(entry), "fib daddr oif")]

        return ["fib daddr type local accept", *self._of(rows)]

    def _output(self) -> list[str]:
        return [
            # The kernel's own, on the TUN as on any interface: listener reports, router solicitations.
            f'oifname "{self._tun}" fib daddr type multicast drop',
            f"meta mark {OWN_MARK:#x} accept",
            'oifname "lo" accept',
            _ND,
            _MLD,
            "fib daddr type { broadcast, multicast } goto cast_out",
            *self._of(lambda entry: [*self._outbound(entry, _steer_verdict(entry), "oif")]),
        ]

    def _postrouting(self) -> list[str]:
        def rows(entry: SpdEntry) -> list[Row]:
            found = []
            if entry.disposition is not Disposition.DISCARD and self._overlaps(entry):
                front = f'iifname "{self._tun}"'
                found += [Row(r.source, r.destination, r.verdict, front, r.fragments)
                          for r in self._inbound(entry, "accept", anywhere=True)]  # fmt: skip
            return [*found, *self._outbound(entry, _guard_verdict(entry), "oif")]

        return [
            f'oifname {{ "{self._tun}", "lo" }} accept',
            f"meta mark {OWN_MARK:#x} accept",
            _ND,
            _MLD,
            "fib daddr type { broadcast, multicast } goto cast_out",
            *self._of(rows),
        ]

    def _outbound(self, entry: SpdEntry, verdict: str, where: str) -> list[Row]:
        front = self._interfaces(entry, where)
        if front is None or not entry.outbound:
            return []
        fragments = entry.disposition is not Disposition.BYPASS
        return [Row(entry.selectors.local, entry.selectors.remote, verdict, front, fragments)]

    def _inbound(self, entry: SpdEntry, verdict: str, *, anywhere: bool = False) -> list[Row]:
        front = "" if anywhere else self._interfaces(entry, "iif")
        if front is None or not entry.inbound:
            return []
        fragments = entry.disposition is not Disposition.BYPASS
        return [Row(entry.selectors.remote, entry.selectors.local, verdict, front, fragments)]

    def _interfaces(self, entry: SpdEntry, where: str) -> str | None:
        """Return the match on the interfaces of the entry's kind; None when there is no such interface."""
        kind = entry.interfaces
        if kind is ConnectionType.ALL or self._links is None:
            return ""
        names = self._links.lan if kind is ConnectionType.LAN else self._links.remote_access
        quoted = ", ".join(f'"{name}"' for name in names)
        return f"{where}name {{ {quoted} }}" if names else None

    def _is_own(self, entry: SpdEntry) -> bool:
        local = entry.selectors.local.addresses
        return local.is_host and (local.version, local.start) in self._own

    def _overlaps(self, entry: SpdEntry) -> bool:
        """Whether a packet to go on can have both forms, as with "any to any": what was opened has come in."""
        if self._is_own(entry) or (entry.protection is not None and entry.protection.mode is Mode.TRANSPORT):
            return False
        return entry.selectors.local.addresses.intersect(entry.selectors.remote.addresses) is not None


def _steer_verdict(entry: SpdEntry) -> str:
    return _verdict(entry, "goto steer_soft" if _may_fall_back(entry) else "goto steer")


def _guard_verdict(entry: SpdEntry) -> str:
    return _verdict(entry, "goto clear_out_soft" if _may_fall_back(entry) else "goto clear_out")


def _inbound_verdict(entry: SpdEntry) -> str:
    if entry.protection is not None and entry.protection.inbound_clear:
        return _verdict(entry, "accept")
    return _verdict(entry, "goto clear_in_soft" if _may_fall_back(entry) else "goto clear_in")


def _cast_in_verdict(entry: SpdEntry) -> str:
    return _verdict(entry, "accept")


def _cast_out_verdict(entry: SpdEntry) -> str:
    return _verdict(entry, "accept" if _may_fall_back(entry) else "goto clear_out")


def _verdict(entry: SpdEntry, protect: str) -> str:
    match entry.disposition:
        case Disposition.BYPASS:
            return "accept"
        case Disposition.DISCARD:
            return "goto blocked"
        case Disposition.PROTECT:
            return protect


def _may_fall_back(entry: SpdEntry) -> bool:
    return entry.protection is not None and entry.protection.fallback_clear
