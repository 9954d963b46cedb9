"""What the monitor shows, as rows and sentences made of a status object."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tunnel.cli.rates import Rates, short_bits
from tunnel.cli.render import child_text, duration

Status = Mapping[str, Any]

#: What needs a look stands above what is well.
_ORDER = ("failed", "soft", "negotiating", "down", "up")
_WORDS = {"soft": "in clear"}
_COLOURS = {"up": "green", "failed": "red", "in clear": "yellow", "negotiating": "yellow", "down": "dim"}


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: its head, its width, and the width that a screen must have to show it."""

    head: str
    width: int
    screen: int = 0


QUICK = (
    Column("Tunnel", 16), Column("Remote", 18), Column("State", 11), Column("Path", 6), Column("In bit/s", 8),
    Column("Out", 7), Column("Lately", 12, 96), Column("Rekey", 8, 108), Column("Suite", 34, 146),
)  # fmt: skip
MAIN = (
    Column("Peer", 26), Column("State", 12), Column("NAT", 6), Column("Age", 8), Column("Rekey", 8),
    Column("Path", 52, 126),
)  # fmt: skip
DROPS = (Column("Reason", 28), Column("Packets", 14), Column("More", 12))


@dataclass(frozen=True, slots=True)
class Row:
    """One row: what tells it from others, its cells, the rule that keys act on, and a sentence about it."""

    key: str
    cells: tuple[str, ...]
    rule: str | None = None
    detail: str = ""


def head(status: Status) -> str:
    """Return the first line of the screen."""
    states = [e["state"] for rule in status["rules"] for e in rule["entries"] if e["state"] != "n/a"]
    name = status["policy"] or "no policy assigned"
    said = f"{name}: {states.count('up')} of {len(states)} up"
    others = {state: states.count(state) for state in _ORDER[:-1]}
    said += "".join(f", {count} {_WORDS.get(state, state)}" for state, count in others.items() if count)
    return (
        f"{said}; {status['held']} held, TUN MTU {status['tun_mtu']}, agent up {duration(status.get('uptime_s'))}"
    )


def quick(status: Status, rates: Rates) -> list[Row]:
    """Return each Child SA, and each entry or host that should have one and has none, troubles first."""
    found: list[Row] = []
    nats = {(peer["peer"], sa["path"]): path(sa) for peer in status["peers"] for sa in peer["ike_sas"]}
    for child in status["children"]:
        number, rule = child["child"], str(child["rule"])
        received, sent = rates.children.get(number, (0.0, 0.0))
        way = nats.get((child.get("peer"), child.get("path")), "direct")
        cells = (rule, child["remote"], "up", way, short_bits(received), short_bits(sent),
                 rates.sparkline(number), duration(child["rekey_in_s"]), child["suite"])  # fmt: skip
        found.append(Row(f"child {number}", cells, rule, child_text(child)))
    for rule in status["rules"]:
        for entry in rule["entries"]:
            found += _without(rule["rule"], entry)
    return sorted(found, key=lambda row: _ORDER.index(_plain(row.cells[2])))


def _without(rule: str, entry: Mapping[str, Any]) -> Iterable[Row]:
    """Yield a row for an entry that has no SA, of one for many hosts a row a host."""
    if entry["state"] == "n/a":
        return
    hosts = entry.get("hosts") or ()
    for each in hosts or (entry,):
        if each["state"] != "up":
            remote = each.get("host") or entry["remote"]
            state = _WORDS.get(each["state"], each["state"])
            detail = each.get("reason") or ("the next packet starts a negotiation" if state == "down" else "")
            cells = (rule, remote, state, "-", "-", "-", "", "-", "-")
            yield Row(f"entry {each.get('id', remote)} {rule}", cells, rule, detail)


def main(status: Status) -> list[Row]:
    """Return each IKE SA, and each peer that has none and why. Strangers who are half open are counted."""
    found: list[Row] = []
    for peer in status["peers"]:
        name = peer["peer"]
        if not name:
            count = len(peer["ike_sas"])
            found.append(Row("half open", (f"({count} not yet known)", "half open", "-", "-", "-", "-")))
            continue
        for sa in peer["ike_sas"]:
            cells = (name, sa["state"], path(sa), duration(sa["age_s"]), duration(sa["rekey_in_s"]), sa["path"])
            detail = " ".join(filter(None, (sa["path"], sa.get("suite"), f"peer is {sa.get('remote_id') or '?'}")))
            found.append(
                Row(f"ike {sa.get('spi_i')} {sa.get('spi_r')}", cells, None, peer.get("reason") or detail)
            )
        if not peer["ike_sas"]:
            reason = peer.get("reason") or "-"
            found.append(Row(f"peer {name}", (name, peer["state"], "-", "-", "-", reason), None, reason))
    return found


def drops(status: Status, before: Mapping[str, int]) -> tuple[list[Row], dict[str, int]]:
    """Return what was dropped by data plane and guard, what grew since *before* first; and the counts now."""
    guard = {f"guard: {name}": count for name, count in status.get("guard", {}).items() if count}
    now = {**status["drops"], **guard}
    more = {reason: count - before.get(reason, count if not before else 0) for reason, count in now.items()}
    order = sorted(now, key=lambda reason: (-max(more[reason], 0), -now[reason], reason))
    rows = [
        Row(reason, (reason, str(now[reason]), f"+{more[reason]}" if more[reason] > 0 else "")) for reason in order
    ]
    return rows, now


def path(sa: Mapping[str, Any]) -> str:
    """Return whether an IKE SA's packets pass a NAT."""
    return "direct" if sa["nat"] in (None, "none") else "NAT"


def colour(cell: str) -> str:
    """Return the colour of a state, none for other cells."""
    return _COLOURS.get(cell, "")


def _plain(state: str) -> str:
    return "soft" if state == "in clear" else state
