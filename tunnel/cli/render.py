"""What a person reads: the agent's answers as text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from policy.order import OrderRow

Table = Mapping[str, Any]

_KIB = 1024
#: Hosts of one rule on the screen; --json has more.
_HOSTS = 20


def status(answer: Table) -> str:
    """Return the status on one screen: policy, peers, SAs, what was dropped and why."""
    policy = answer["policy"] or "none assigned"
    lines = [f"Policy  {policy}  (generation {answer['generation']}, up {duration(answer.get('uptime_s', 0))})"]
    rows = []
    for rule in answer["rules"]:
        for entry in rule["entries"]:
            rows.append([rule["rule"], entry["local"], entry["remote"], _action(entry), _state(entry)])
            rows += [["", "", f"  {host['host']}", "", _state(host)] for host in entry.get("hosts", ())[:_HOSTS]]
    lines += ["", *columns(["Rule", "Local", "Remote", "Action", "State"], rows)] if rows else []
    for peer in answer["peers"]:
        lines += ["", *_peer(peer)]
    children = [_child(child) for child in answer["children"]]
    if children:
        head = ["Child SA", "Rule", "Suite", "Mode", "SPI in/out", "In", "Out", "Rekey in"]
        lines += ["", *columns(head, children)]
    lines += ["", f"Held    {answer['held']} packets wait for an SA; TUN MTU {answer['tun_mtu']}"]
    drops = {**answer["drops"]}
    lines.append(f"Drops   {_counts(drops) if drops else 'none'}")
    if answer.get("ike"):
        lines.append(f"IKE     {_counts(answer['ike'])}")
    guard = {name: count for name, count in answer.get("guard", {}).items() if count}
    lines.append(f"Guard   {_counts(guard) if guard else 'nothing stopped'}")
    errors = {name: count for name, count in answer.get("errors", {}).items() if count}
    if errors:
        lines.append(f"Errors  {_counts(errors)}")
    return "\n".join(lines)


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
    if entry["state"] == "soft":
        return f"in clear for {duration(entry.get('clear_for_s'))}: {entry['reason']}"
    if entry.get("per_host"):
        return f"each host by itself ({len(entry['hosts'])} known)"
    return f"{entry['state']}: {entry['reason']}" if entry.get("reason") else str(entry["state"])


def _peer(peer: Table) -> list[str]:
    where = peer["address"] or "any address"
    line = f"Peer    {peer['peer']} at {where}: {peer['state']}"
    lines = [f"{line} ({peer['reason']})" if peer.get("reason") and peer["state"] != "up" else line]
    for sa in peer["ike_sas"]:
        nat = "direct" if sa["nat"] in (None, "none") else f"NAT {sa['nat']}"
        lines += [
            f"  IKE   {sa['spi_i']}/{sa['spi_r']} {sa['state']} as {sa['role']}, {nat}",
            f"        {sa['path']}, {sa['suite']}",
            f"        peer is {sa['remote_id'] or 'not known yet'}, age {duration(sa['age_s'])}, "
            f"rekey in {duration(sa['rekey_in_s'])}",
        ]
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


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
