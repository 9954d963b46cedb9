"""What a person reads: the agent's answers as text."""

from __future__ import annotations

import textwrap
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

from policy.order import OrderRow

Table = Mapping[str, Any]

_KIB = 1024
#: Hosts of one rule on the screen; --json has more.
_HOSTS = 20
#: States, what needs a look first.
_TROUBLES = ("failed", "soft", "negotiating", "down", "up", "n/a")


def status(answer: Table, *, lines: int | None = None, width: int = 100) -> str:
    """Return the status: policy, tunnels, peers, SAs, what was dropped and why.

    With *lines* it is one screen: where all does not fit, a line a tunnel, troubles first, and how many more.
    """
    whole = _status(answer, None, width)
    rows = sum(-(-len(line) // width) or 1 for line in whole)  # a long line takes several of the screen's
    return "\n".join(whole if lines is None or rows <= lines else _status(answer, lines, width))


def _status(answer: Table, lines: int | None, width: int) -> list[str]:
    entries = [(rule["rule"], entry) for rule in answer["rules"] for entry in rule["entries"]]
    asking = [entry for _, entry in entries if entry["state"] != "n/a"]
    up = sum(entry["state"] == "up" for entry in asking)
    policy = answer["policy"] or "none assigned"
    of = f": {up} of {len(asking)} up" if asking else ""
    since = duration(answer.get("uptime_s", 0))
    first = f"Policy  {policy}{of}  (generation {answer['generation']}, agent up {since})"
    last = _counters(answer)
    if lines is None:
        found = [first, *_tunnels(entries, width)]
        told = {entry.get("reason") for _, entry in entries}
        for peer in answer["peers"]:
            found += ["", *_peer(peer, told, width)]
        children = [_child(child) for child in answer["children"]]
        head = ["Child SA", "Rule", "Suite", "Mode", "SPI in/out", "In", "Out", "Rekey in"]
        return [*found, *(["", *columns(head, children)] if children else []), "", *last]
    states = [peer["state"] for peer in answer["peers"] if peer["peer"]]
    peers = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(sorted(states)))
    last = [f"Peers   {peers or 'none'}", *last]
    return [first, *_most(entries, lines - len(last) - 2, width), "", *last]


def _most(entries: Sequence[tuple[str, Table]], lines: int, width: int) -> list[str]:
    """Return as many tunnels as *lines* have room for, troubles first, and what is not shown."""
    order = sorted(entries, key=lambda pair: _TROUBLES.index(pair[1]["state"]))
    shown = len(order)
    while shown > 1 and len(_tunnels(order[:shown], width)) > lines - 1:
        shown -= max(1, (len(_tunnels(order[:shown], width)) - lines) // 3)
    found, left = _tunnels(order[:shown], width), [entry["state"] for _, entry in order[shown:]]
    counts = ", ".join(f"{left.count(state)} {state}" for state in dict.fromkeys(left))
    return (
        found if not left else [*found, f"... and {len(left)} more filters: {counts} (mirrorgate status | less)"]
    )


def _tunnels(entries: Sequence[tuple[str, Table]], width: int) -> list[str]:
    """Return a line a filter with its path and state, and under it why it is not up."""
    if not entries:
        return []
    rows, reasons = [], []
    for rule, entry in entries:
        rows.append(
            [rule, entry["local"], entry["remote"], _action(entry), entry.get("path") or "-", _state(entry)]
        )
        reasons.append(entry.get("reason"))
        for host in entry.get("hosts", ())[:_HOSTS]:
            rows.append(["", "", f"  {host['host']}", "", "-", _state(host)])
            reasons.append(host.get("reason"))
    head, *lines = columns(["Rule", "Local", "Remote", "Action", "Path", "State"], rows)
    found = ["", head]
    for line, reason in zip(lines, reasons, strict=True):
        found += [line, *(_wrapped(reason, width) if reason else [])]
    return found


def _wrapped(reason: str, width: int) -> list[str]:
    return textwrap.wrap(
        reason, max(width, 40), initial_indent="  -> ", subsequent_indent="     ",
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def _counters(answer: Table) -> list[str]:
    drops = {**answer["drops"]}
    guard = {name: count for name, count in answer.get("guard", {}).items() if count}
    errors = {name: count for name, count in answer.get("errors", {}).items() if count}
    return [
        f"Held    {answer['held']} packets wait for an SA; TUN MTU {answer['tun_mtu']}",
        f"Drops   {_counts(drops) if drops else 'none'}",
        f"Guard   {_counts(guard) if guard else 'nothing stopped'}",
        *([f"Errors  {_counts(errors)}"] if errors else []),
        *(["Capture under way: packets in clear and keys are being written"] if answer.get("capturing") else []),
    ]


def event(record: Table) -> str:
    """Return one event of the agent's stream as a line."""
    if "lost" in record:
        return f"({record['lost']} events were lost: this reader was too slow)"
    return f"{record['time']} {record['level']:7} {record['event']}: {record['message']}"


def explanation(answer: Table) -> str:
    """Return why a flow is treated as it is."""
    lines = [
        f"{answer['flow']} ({answer['direction']})",
        f"  verdict   {answer['verdict']}",
        f"  why       {answer['why']}",
    ]
    for name, key in (
        ("rule", "rule"), ("list", "filter_list"), ("filter", "filter"), ("action", "filter_action"),
        ("written", "where"), ("state", "state"),
    ):  # fmt: skip
        if answer.get(key):
            lines.append(f"  {name:9} {answer[key]}")
    if answer.get("sa"):
        sa = answer["sa"]
        lines.append(f"  SA        {sa.get('spi_in')}/{sa.get('spi_out')} {sa.get('suite')} over {sa.get('path')}")
    if answer.get("considered"):
        lines.append("  nearest others:")
        lines += [f"    {other['rule']} ({other['entry']}): {other['why_not']}" for other in answer["considered"]]
    return "\n".join(lines)


def order(rows: Sequence[OrderRow]) -> str:
    """Return the effective order of filters, as ``check`` prints it."""
    head = ["#", "Action", "Dir", "Protocol", "Local", "Remote", "Rule", "Peer", "Written"]
    body = [
        [str(r.number), r.action, r.direction, r.protocol, r.local, r.remote, r.rule, r.peer or "-", r.where]
        for r in rows
    ]
    if any(row.interfaces != "all" for row in rows):
        head.insert(-1, "Interfaces")
        for row, cells in zip(rows, body, strict=True):
            cells.insert(-1, row.interfaces)
    return "\n".join(columns(head, body))


def columns(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return rows under a head, in columns as wide as their widest cell."""
    table = [list(head), *[list(row) for row in rows]]
    widths = [max(len(row[index]) for row in table) for index in range(len(head))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table
    ]


def duration(seconds: float | None) -> str:
    """Return a time in its two largest units: "2h 5m"."""
    if seconds is None:
        return "-"
    left = max(0, int(seconds))
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        if left >= size or (unit == "s" and not parts):
            parts.append(f"{left // size}{unit}")
            left %= size
    return " ".join(parts[:2])


def octets(count: int) -> str:
    """Return a number of octets in binary units."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < _KIB:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= _KIB
    return f"{value:.1f} TiB"


def _action(entry: Table) -> str:
    return {"bypass": "permit", "discard": "block", "protect": "negotiate"}.get(entry["disposition"], "?")


def _state(entry: Table) -> str:
    if entry["state"] == "n/a":
        return "-"
    if entry.get("per_host"):
        return f"each host by itself ({len(entry['hosts'])} known)"
    if entry["state"] == "soft":
        return f"in clear for {duration(entry.get('clear_for_s'))}"
    return str(entry["state"])


def _peer(peer: Table, told: Container[str | None], width: int) -> list[str]:
    """Return a peer and its IKE SAs; a reason that a tunnel of it was *told* already is not repeated."""
    if not peer["peer"]:
        return [f"Peers   {len(peer['ike_sas'])} half-open IKE SAs of whom is not known yet"]
    where, reason = peer["address"] or "any address", peer.get("reason")
    lines = [f"Peer    {peer['peer']} at {where}: {peer['state']}"]
    if reason and peer["state"] != "up" and reason not in told:
        lines += _wrapped(reason, width)
    for sa in peer["ike_sas"]:
        nat = "direct" if sa["nat"] in (None, "none") else f"NAT {sa['nat']}"
        lines.append(f"  IKE   {sa['spi_i']}/{sa['spi_r']} {sa['state']} as {sa['role']}, {nat}")
        lines.append("        " + ", ".join(filter(None, (sa["path"], sa["suite"]))))
        if sa["age_s"] is not None:
            lines.append(
                f"        peer is {sa['remote_id'] or 'not known yet'}, age {duration(sa['age_s'])}, "
                f"rekey in {duration(sa['rekey_in_s'])}"
            )
    return lines


def _child(child: Table) -> list[str]:
    carried = "in UDP" if child["encapsulation"] == "udp" else "raw"
    return [
        str(child["child"]),
        child["rule"],
        child["suite"],
        f"{child['mode']} {carried}",
        f"{child['spi_in']}/{child['spi_out']}",
        f"{child['packets_in']} ({octets(child['bytes_in'])})",
        f"{child['packets_out']} ({octets(child['bytes_out'])})",
        duration(child["rekey_in_s"]),
    ]


def child_text(child: Table) -> str:
    """Return a Child SA in a sentence."""
    carried = "in UDP" if child.get("encapsulation") == "udp" else "raw"
    return (
        f"{child['suite']}, {child.get('mode')} {carried}, {child.get('path')}, SPI in {child.get('spi_in')} out "
        f"{child.get('spi_out')}, rekey in {duration(child['rekey_in_s'])}"
    )


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
