"""Puts steering and guard in force with ``nft`` and ``ip``, and takes them away again.

Order at start: guard, TUN, routes, rules; at an orderly stop the reverse. After a crash the table, the TUN (it is
persistent) and the prohibit routes behind it stay, and the next start takes them over without a gap.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path as FilePath
from threading import Lock

from policy.model import ConnectionType
from policy.path import IpAddress
from policy.selectors import AddressRange, TrafficSelector
from policy.spd import Disposition, Mode, Snapshot, SpdEntry
from tunnel.host import links, marks, ruleset
from tunnel.host.addresses import route_to
from tunnel.host.heldguard import HeldGuard
from tunnel.host.system import HostError, ip_batch, run, run_json

#: Kernel rules are searched one by one: past this many the loose reverse-path filter of the TUN has to do.
_MAX_SELECTOR_RULES = 256
#: The last resort in our route table; the kernel's largest metric.
_LAST_METRIC = 4294967295
#: Protocols whose ports policy routing can see, by the names that ``ip rule`` prints.
_PORT_PROTOCOLS = {6: "tcp", 17: "udp", 33: "dccp", 132: "sctp", 136: "udplite"}
_RULES = (marks.OWN_RULE, marks.MARK_RULE, marks.SELECTOR_RULE, marks.SOURCE_RULE, marks.PAST_RULE)


class Steering:
    """The host's side of a snapshot: nftables table, policy routing, and the TUN's settings.

    *held* keeps the second guard, which others cannot flush; without it there is the table without owner alone.
    """

    def __init__(self, tun: str, held: HeldGuard | None = None) -> None:
        self.tun = tun
        self._held = held
        #: When the soft SA of each pair ends, in seconds of CLOCK_BOOTTIME.
        self._soft: dict[tuple[IpAddress, IpAddress], float] = {}
        self._links = links.Links()
        self._by_kind = False
        #: Contents of the table that are right now, by ``ruleset.revision``: two while one replaces another.
        self.revisions: tuple[str, ...] = ()
        #: How often the table was replaced, or is just being: counted before the kernel tells of it.
        self.replaced = 0
        self._replacing = Lock()
        self._in_force = Snapshot(generation=0)
        #: The table in force as a script, where no soft SA is in it: those end while it stays.
        self._script: str | None = None
        #: Rules for packets' routes that should be there, by IP version, as ``ip rule`` prints them.
        self._wanted: dict[int, list[str]] = {}

    def guard(self, snapshot: Snapshot) -> None:
        """Replace the nftables table by the one of *snapshot*, in one transaction. HostError if nft refuses it.

        The soft SAs in force stay, for the time that they have left.
        """
        found = links.current(self.tun)
        with self._replacing:
            self._replace(snapshot, found, None)
        self._by_kind = any(entry.interfaces is not ConnectionType.ALL for entry in snapshot.spd.entries)

    def restore(self) -> None:
        """Put the table that should be in force there again, whatever somebody did to it. HostError."""
        with self._replacing:
            self._replace(self._in_force, self._links, None if self._soft else self._script)

    def _replace(self, snapshot: Snapshot, found: links.Links, script: str | None) -> None:
        soft = self._soft_pairs()
        if script is None:
            script = ruleset.render(snapshot, self.tun, soft=soft, links=found)
        before, new = self.revisions, ruleset.revision(script)
        self.revisions = (*before, new)
        self.replaced += 1
        not_held = self._hold(snapshot, found)  # first, so that at no moment less is guarded
        try:
            run(["nft", "-f", "-"], stdin=script)
        except HostError:
            self.revisions = before
            self.replaced -= 1
            if before and not_held is None:
                self._give_up(self._hold(self._in_force, self._links))
            raise
        self._give_up(not_held)
        self.revisions = (new,)
        self._in_force, self._links, self._script = snapshot, found, None if soft else script

    def _hold(self, snapshot: Snapshot, found: links.Links) -> str | None:
        """Put the held guard of *snapshot* in force; return why it is not, in which case it is as before."""
        if self._held is None or self._held.is_useless:
            return None
        try:
            self._held.apply(ruleset.render_held(snapshot, self.tun, links=found))
        except HostError as error:
            return str(error)
        return None

    def _give_up(self, not_held: str | None) -> None:
        """Go on without the held guard where it could not follow: it may drop what the policy now lets pass."""
        if not_held is not None and self._held is not None:
            self._held.give_up(not_held)

    def hold(self) -> None:
        """Put the held guard in force again, after its process ended. HostError when that fails."""
        with self._replacing:
            if (why := self._hold(self._in_force, self._links)) is not None:
                raise HostError(why)

    def not_held(self) -> str | None:
        """Return why there is no guard that others cannot flush; None when there is, or was not to be."""
        return None if self._held is None else self._held.lost()

    @property
    def can_hold(self) -> bool:
        """Whether a guard that others cannot flush may be had on this host."""
        return self._held is not None and not self._held.is_useless

    def stale(self) -> bool:
        """Whether interfaces came or went that the table tells apart: then ``guard`` is due."""
        return self._by_kind and links.current(self.tun) != self._links

    def soft(self, local: IpAddress, remote: IpAddress, seconds: float) -> None:
        """Let two hosts talk in clear for *seconds* where an entry has ``fallback_clear``; 0 ends that."""
        with self._replacing:  # whoever replaces the table reads the pairs
            if seconds > 0:
                self._soft[local, remote] = _now() + seconds
            else:
                self._soft.pop((local, remote), None)
            run(["nft", "-f", "-"], stdin=ruleset.soft_element(local, remote, math.ceil(max(seconds, 0))))

    def _soft_pairs(self) -> list[ruleset.SoftPair]:
        now = _now()
        self._soft = {pair: end for pair, end in self._soft.items() if end > now}
        return [(local, remote, math.ceil(end - now)) for (local, remote), end in self._soft.items()]

    def route(self, snapshot: Snapshot) -> None:
        """Make the rules and routes those of *snapshot*; ones that are right already are not touched."""
        for version in _versions():
            ip_batch(
                [
                    f"route replace default dev {self.tun} metric 1 table {marks.ROUTE_TABLE}",
                    f"route replace prohibit default metric {_LAST_METRIC} table {marks.ROUTE_TABLE}",
                ],
                version=version,
            )
            sources = _sources(snapshot, version)
            stale = [route for route in _routes(marks.SOURCE_TABLE, version) if route not in sources]
            for kind in ("", "prohibit "):
                ip_batch(
                    [f"route del {kind}{route} table {marks.SOURCE_TABLE}" for route in stale],
                    version=version,
                    force=True,
                )
            wanted = []
            for remote, source in sources.items():
                # Without the TUN the host's own packets would go on from another address, which no filter covers.
                wanted += [f"{remote} dev {self.tun} src {source}", f"prohibit {remote} metric {_LAST_METRIC}"]
            ip_batch([f"route replace {line} table {marks.SOURCE_TABLE}" for line in wanted], version=version)
            self._rules(snapshot, version, list(sources))

    def intact(self) -> bool:
        """Whether the routes into the TUN and the rules that lead to them are there."""
        for version in _versions():
            said = run(["ip", f"-{version}", "route", "show", "table", "all"])
            table = [line for line in said.splitlines() if f" table {marks.ROUTE_TABLE} " in line]
            for start in (f"default dev {self.tun} ", "prohibit default "):
                if not any(line.startswith(start) for line in table):
                    return False
            if not set(self._wanted.get(version, ())) <= set(_present(version)):
                return False
        return True

    def remove(self) -> None:
        """Take away table, rules and routes. The TUN's removal is ``Tun.destroy``."""
        for version in _versions():
            ip_batch([f"rule del {rule}" for rule in _present(version)], version=version, force=True)
            for table in (marks.ROUTE_TABLE, marks.SOURCE_TABLE):
                with suppress(HostError):
                    run(["ip", f"-{version}", "route", "flush", "table", str(table)])
        try:
            run(["nft", "-f", "-"], stdin=ruleset.remove())
        finally:
            if self._held is not None:
                self._held.close()

    def _rules(self, snapshot: Snapshot, version: int, remotes: Sequence[str]) -> None:
        rules = [
            f"{marks.OWN_RULE}: from all fwmark {marks.OWN_MARK:#x} lookup main",
            f"{marks.MARK_RULE}: from all fwmark {marks.STEER_MARK:#x} lookup {marks.ROUTE_TABLE}",
            # An opened packet is routed as if we were not there; the reverse-path filter, which looks the way back
            # up with its mark, finds the TUN.
            f"{marks.PAST_RULE}: from all nop",
            f"{marks.OWN_RULE}: from all fwmark {marks.OPENED_MARK:#x} iif {self.tun} goto {marks.PAST_RULE}",
            f"{marks.MARK_RULE}: from all fwmark {marks.OPENED_MARK:#x} lookup {marks.ROUTE_TABLE}",
        ]
        selectors = _selector_rules(snapshot, version)
        rules += [f"{marks.SELECTOR_RULE}: {selector} lookup {marks.ROUTE_TABLE}" for selector in selectors]
        for remote in remotes:
            # An unbound socket looks its route up from 0.0.0.0; in IPv6 only "locally made" can be said.
            unbound = f"from 0.0.0.0 to {remote}" if version == 4 else f"from all to {remote} iif lo"
            rules.append(f"{marks.SOURCE_RULE}: {unbound} lookup {marks.SOURCE_TABLE}")
        have = _present(version)
        self._wanted[version] = wanted = [f"pref {rule.replace(':', '', 1)}" for rule in dict.fromkeys(rules)]
        ip_batch([f"rule add {rule}" for rule in wanted if rule not in have], version=version)
        ip_batch([f"rule del {rule}" for rule in have if rule not in wanted], version=version, force=True)


def counters() -> dict[str, int]:
    """Return the packets that the guard dropped, by counter name; empty when its table is not there."""
    total: dict[str, int] = {}
    for table in (marks.TABLE, marks.HELD_TABLE):  # each packet is dropped by one of them
        try:
            answer = run_json(["nft", "-j", "list", "counters", "table", "inet", table])
        except HostError:
            break
        for item in answer.get("nftables", ()):
            if counter := item.get("counter"):
                total[counter["name"]] = total.get(counter["name"], 0) + int(counter["packets"])
    return total


def tune(tun: str) -> list[str]:
    """Set the TUN's sysctls; return a warning for each that could not be set."""
    settings = {
        # A reverse route through the TUN is found by the mark of opened packets, however strict the filter is; a
        # loose one would drop all that has another, because the TUN has no address.
        f"net/ipv4/conf/{tun}/src_valid_mark": "1",
        f"net/ipv4/conf/{tun}/rp_filter": "2",
        f"net/ipv4/conf/{tun}/accept_local": "1",
        f"net/ipv4/conf/{tun}/send_redirects": "0",
        f"net/ipv6/conf/{tun}/disable_ipv6": "0",
        f"net/ipv6/conf/{tun}/accept_ra": "0",
        f"net/ipv6/conf/{tun}/autoconf": "0",
    }
    warnings = []
    for name, value in settings.items():
        path = FilePath("/proc/sys") / name
        try:
            if path.read_text().strip() != value:
                path.write_text(value)
        except OSError as error:
            if "ipv6" not in name:  # a kernel without IPv6 has none of these
                warnings.append(f"sysctl {name.replace('/', '.')} could not be set to {value}: {error.strerror}")
    return warnings


def forwarding_hints(snapshot: Snapshot) -> list[str]:
    """Return a warning per family whose forwarding is off although the policy protects a network behind us."""
    own = {(address.version, int(address)) for address in snapshot.local_addresses}
    hints = []
    for version, name in ((4, "net.ipv4.ip_forward"), (6, "net.ipv6.conf.all.forwarding")):
        transit = any(
            not (addresses.is_host and (version, addresses.start) in own)
            for entry in snapshot.spd.entries
            if entry.disposition is Disposition.PROTECT and entry.selectors.version == version
            for addresses in (entry.selectors.local.addresses,)
        )
        with suppress(OSError):
            value = (FilePath("/proc/sys") / name.replace(".", "/")).read_text().strip()
            if transit and value == "0":
                hints.append(f"{name} is 0: this host forwards nothing for its LAN; run: sysctl -w {name}=1")
    return hints


def _selector_rules(snapshot: Snapshot, version: int) -> list[_SelectorRule]:
    """Return the packets that are protected all of them: they may be routed without a mark.

    So what comes out of the TUN passes a strict reverse-path filter, a socket bound to a local address works, and
    one with a protected port knows the TUN's MTU from the start. A host's own sockets choose their source before,
    without these rules. None when there are too many: the kernel searches them one by one.
    """
    entries = [entry for entry in snapshot.spd.entries if entry.selectors.version == version and entry.outbound]
    others = [entry for entry in entries if not _always_steered(entry)]
    chosen = [entry for entry in entries if _routable(entry, snapshot)]
    if len(chosen) > _MAX_SELECTOR_RULES:
        return []
    rules: dict[_SelectorRule, None] = {}
    for entry in chosen:
        if any(_intersect(other, entry) for other in others):
            continue
        for rule in _rules_of(entry, snapshot):
            rules[rule] = None
            if len(rules) > _MAX_SELECTOR_RULES:
                return []
    return list(rules)


def _always_steered(entry: SpdEntry) -> bool:
    """Whether what the entry covers goes into the TUN whatever else, and clear packets do not come in for it."""
    protection = entry.protection
    return (
        protection is not None
        and entry.disposition is Disposition.PROTECT
        and entry.interfaces is ConnectionType.ALL
        and not protection.inbound_clear
        and not protection.fallback_clear
    )


def _routable(entry: SpdEntry, snapshot: Snapshot) -> bool:
    local, remote = entry.selectors.local, entry.selectors.remote
    if not _always_steered(entry) or local.addresses.is_any:
        return False
    if local.ports.is_any and remote.ports.is_any:
        # Not the whole traffic of a host with many others: that is looked up without us, and the mark steers it.
        return _whole(entry) and not entry.per_host
    visible = not (local.ports.is_opaque or remote.ports.is_opaque)
    return visible and local.protocol in _PORT_PROTOCOLS and _is_own(local.addresses, snapshot)


def _intersect(one: SpdEntry, other: SpdEntry) -> bool:
    mine, theirs = one.selectors.remote.addresses, other.selectors.remote.addresses
    if mine.end < theirs.start or theirs.end < mine.start:
        return False
    return one.selectors.intersect(other.selectors) is not None


@dataclass(frozen=True, slots=True)
class _SelectorRule:
    """A selector of ``ip rule``, printed as that prints it."""

    local: AddressRange
    remote: AddressRange
    protocol: int
    sport: str
    dport: str

    def __str__(self) -> str:
        words = [f"from {_network(self.local)}"]
        if not self.remote.is_any:
            words.append(f"to {_network(self.remote)}")
        if self.protocol:
            words.append(f"ipproto {_PORT_PROTOCOLS[self.protocol]}")
        for name, ports in (("sport", self.sport), ("dport", self.dport)):
            if ports:
                words.append(f"{name} {ports}")
        return " ".join(words)


def _rules_of(entry: SpdEntry, snapshot: Snapshot) -> Iterator[_SelectorRule]:
    local, remote = entry.selectors.local, entry.selectors.remote
    sport, dport = _ports(local), _ports(remote)
    protocol = local.protocol if sport or dport else 0
    if not protocol and _is_own(local.addresses, snapshot):
        # Of what a host protects with a neighbour, TCP alone, which wants to know the MTU; the mark steers the
        # rest. A rule for everything would have a strict reverse-path filter drop the neighbour's ARP.
        protocol = 6
    for here in local.addresses.prefixes():
        for there in remote.addresses.prefixes():
            yield _SelectorRule(AddressRange.network(here), AddressRange.network(there), protocol, sport, dport)


def _ports(side: TrafficSelector) -> str:
    return "" if side.ports.is_any else str(side.ports)


def _is_own(addresses: AddressRange, snapshot: Snapshot) -> bool:
    return addresses.is_host and addresses.first in snapshot.local_addresses


def _sources(snapshot: Snapshot, version: int) -> dict[str, IpAddress]:
    """Return the remote networks that this host itself may speak to, with the address that it should speak from.

    That is the one that the host would choose without us, if the policy protects it; else the first that it does.
    """
    inside: dict[str, tuple[IpAddress, list[IpAddress]]] = {}
    own = [address for address in snapshot.local_addresses if address.version == version]
    for entry in snapshot.spd.entries:
        if entry.selectors.version != version or not entry.outbound or not _whole(entry):
            continue
        if entry.protection is not None and entry.protection.mode is Mode.TRANSPORT:
            continue  # the host's own choice is right: no network lies behind it
        found = [a for a in own if entry.selectors.local.addresses.contains(int(a))]
        for network in entry.selectors.remote.addresses.prefixes() if found else ():
            remote = _network(network)
            if remote in inside or len(inside) < _MAX_SELECTOR_RULES:
                host = network[0] if network.num_addresses == 1 else network[1]
                inside.setdefault(remote, (host, []))[1].extend(found)
    sources = {}
    for remote, (host, candidates) in inside.items():
        natural = route_to(host)
        sources[remote] = natural.source if natural and natural.source in candidates else candidates[0]
    return sources


def _whole(entry: SpdEntry) -> bool:
    """Whether *entry* protects every packet between two sets of addresses, the remote one not everything."""
    local, remote = entry.selectors.local, entry.selectors.remote
    return (
        entry.disposition is Disposition.PROTECT
        and local.protocol == 0
        and local.ports.is_any
        and remote.ports.is_any
        and not local.addresses.is_any
        and not remote.addresses.is_any
    )


def _now() -> float:
    """Return the seconds since the machine's start, its sleep included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _versions() -> tuple[int, ...]:
    """Return the IP versions that the kernel has."""
    return (4, 6) if FilePath("/proc/sys/net/ipv6").exists() else (4,)


def _network(network: object) -> str:
    """Return a network as ``ip`` prints it: a host without its prefix length."""
    text = str(network)
    address, _, length = text.partition("/")
    return address if length == ("128" if ":" in address else "32") else text


def _present(version: int) -> list[str]:
    """Return our rules as arguments of ``ip rule``: "pref 19815 from all ..."."""
    found = []
    for line in run(["ip", f"-{version}", "rule", "show"]).splitlines():
        preference, _, rest = line.partition(":")
        if preference.isdigit() and int(preference) in _RULES:
            # A rule whose interface is gone is shown as "[detached]".
            found.append(f"pref {preference} {' '.join(rest.replace('[detached]', '').split())}")
    return found


def _routes(table: int, version: int) -> list[str]:
    """Return the destinations of a route table of ours; none when the table does not exist yet."""
    try:
        found = run_json(["ip", "-j", f"-{version}", "route", "show", "table", str(table)])
    except HostError:
        return []
    return list(dict.fromkeys(route["dst"] for route in found))
