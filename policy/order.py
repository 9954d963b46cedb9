"""The order in which entries match: most specific first, as in Windows, where nobody can choose it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeAlias

from policy.icmp import icmp_text, is_icmp
from policy.model import ConnectionType
from policy.selectors import AddressRange, PortRange
from policy.spd import Disposition, Snapshot, SpdEntry
from policy.texts import protocol_name

SortKey: TypeAlias = tuple[int | str, ...]

_ACTION_ORDER = {Disposition.DISCARD: 0, Disposition.PROTECT: 1, Disposition.BYPASS: 2}


def sort_key(entry: SpdEntry) -> SortKey:
    """Return the key that sorts entries into matching order, ascending.

    1. Addresses: more fixed leading bits on both sides together, then on the local side, then on the remote side;
       between ranges with as many bits, the smaller local range, then the smaller remote range. ``me`` is a host.
    2. Protocol: a named one before any.
    3. Ports: more sides with ports, then ports on the remote side, then the smaller local range, then the smaller
       remote range.
    4. Interfaces: a rule for one kind of them before one for all.
    5. What Windows leaves open: block before negotiate before permit, then rule name, filter list name, and the
       place of the filter in its list.

    So an entry whose packets are all another entry's too never comes after it. Windows documents the principle of
    1 to 3 (filter weight) and not the exact order.
    """
    local, remote = entry.selectors.local, entry.selectors.remote
    ports = (local.ports, remote.ports)
    return (
        -(local.addresses.specificity + remote.addresses.specificity),
        -local.addresses.specificity,
        -remote.addresses.specificity,
        _size(local.addresses),
        _size(remote.addresses),
        local.protocol == 0,
        -sum(not side.is_any for side in ports),
        remote.ports.is_any,
        _width(local.ports),
        _width(remote.ports),
        entry.interfaces is ConnectionType.ALL,
        _ACTION_ORDER[entry.disposition],
        entry.rule,
        entry.filter_list,
        _number(entry.filter),
        entry.id,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderRow:
    """One line of the effective order; everything but *number* and *where* is text as a person reads it."""

    number: int
    action: str
    direction: str
    protocol: str
    local: str
    remote: str
    rule: str
    filter_list: str
    filter_action: str
    #: The peer; "each host" for a template that stands for each remote host.
    peer: str
    #: The interfaces that it is for: all, lan or remote-access.
    interfaces: str
    where: str
    entry: str


def effective_order(snapshot: Snapshot) -> tuple[OrderRow, ...]:
    """Return the entries of *snapshot* in the order in which they match, numbered from 1.

    Last, with the direction "asked", what the default response rule grants to those who ask.
    """
    rows = [_row(number, entry) for number, entry in enumerate(snapshot.spd.entries, 1)]
    asked = [
        replace(_row(number, entry), direction="asked", peer="each host")
        for number, entry in enumerate(snapshot.response, len(rows) + 1)
    ]
    return (*rows, *asked)


def direction_text(entry: SpdEntry) -> str:
    """Return "both", "out" or "in"."""
    if entry.outbound and entry.inbound:
        return "both"
    return "out" if entry.outbound else "in"


def _row(number: int, entry: SpdEntry) -> OrderRow:
    local, remote = entry.selectors.local, entry.selectors.remote
    message = "" if local.ports.is_any or not is_icmp(local.protocol) else icmp_text(local.protocol, local.ports)

    def side(addresses: AddressRange, ports: PortRange) -> str:
        text = "any" if addresses.is_any else str(addresses)
        return text if ports.is_any or message else f"{text} port {ports}"

    return OrderRow(
        number=number,
        action={"bypass": "permit", "discard": "block", "protect": "negotiate"}[entry.disposition.value],
        direction=direction_text(entry),
        protocol=f"{protocol_name(local.protocol)} {message}".rstrip(),
        local=side(local.addresses, local.ports),
        remote=side(remote.addresses, remote.ports),
        rule=entry.rule,
        filter_list=entry.filter_list,
        filter_action=entry.filter_action,
        peer=entry.protection.peer if entry.protection is not None else "",
        interfaces=entry.interfaces.value,
        where=str(entry.where),
        entry=entry.id,
    )


def _size(addresses: AddressRange) -> int:
    return addresses.end - addresses.start


def _width(ports: PortRange) -> int:
    return max(0, ports.end - ports.start)


def _number(text: str) -> int:
    """Return the place of the filter in its list, which opens its text."""
    number = text.partition(":")[0]
    return int(number) if number.isdigit() else 0
