"""One [[filter_list.filter]] table -> Filter, with what its fields must agree on."""

from __future__ import annotations

from typing import Any

from policy.model import Filter, Special
from policy.positions import KeyPath
from policy.schema import FilterTable
from policy.selectors import ANY_PROTOCOL, ICMP, ICMPV6, PORT_PROTOCOLS, AddressRange
from policy.tables import TableReader
from policy.texts import protocol_name


def read_filter(reader: TableReader, path: KeyPath, raw: dict[str, Any]) -> Filter | None:
    """Return the filter at *path*, or None after noting what is wrong with it."""
    table = reader.read(FilterTable, raw, path)
    if table is None:
        return None
    before = len(reader.errors)
    for key, ports in (("source_port", table.source_port), ("destination_port", table.destination_port)):
        if not ports.is_any and table.protocol not in PORT_PROTOCOLS:
            _refuse_ports(reader, path, key, table.protocol)
    if table.source is Special.ME and table.destination is Special.ME:
        reader.error(
            reader.at_value(*path, "destination"),
            "source and destination are both this host",
            'write "any" for one',
        )
    _check_families(reader, path, table)
    if len(reader.errors) > before:
        return None
    return Filter(
        source=table.source,
        destination=table.destination,
        protocol=table.protocol,
        source_port=table.source_port,
        destination_port=table.destination_port,
        mirrored=table.mirrored,
        description=table.description,
        where=reader.at_key(*path),
    )


def _refuse_ports(reader: TableReader, path: KeyPath, key: str, protocol: int) -> None:
    reason = (
        "a port needs a protocol that has ports"
        if protocol == ANY_PROTOCOL
        else f"{protocol_name(protocol)} has no ports"
    )
    reader.error(
        reader.at_key(*path, key), f"{key}: {reason}", 'add protocol = "tcp" or "udp", or remove the port'
    )


def _check_families(reader: TableReader, path: KeyPath, table: FilterTable) -> None:
    sides = {"source": table.source, "destination": table.destination}
    versions = {key: side.version for key, side in sides.items() if isinstance(side, AddressRange)}
    if len(set(versions.values())) > 1:
        reader.error(
            reader.at_value(*path, "destination"),
            f"source is IPv{versions['source']} and destination is IPv{versions['destination']}",
            "write one filter for each family",
        )
        return
    for protocol, family, other in ((ICMP, 4, "icmpv6"), (ICMPV6, 6, "icmp")):
        wrong = next((key for key, version in versions.items() if version != family), None)
        if table.protocol == protocol and wrong is not None:
            reader.error(
                reader.at_value(*path, "protocol"),
                f"protocol {protocol_name(protocol)} does not run between IPv{versions[wrong]} addresses",
                f'write "{other}"',
            )
