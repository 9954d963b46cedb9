"""One [[filter_list.filter]] table -> Filter, with what its fields must agree on."""

from __future__ import annotations

from typing import Any

from policy.icmp import icmp_ports, icmp_types, is_icmp
from policy.model import Filter, Server, Special
from policy.positions import KeyPath
from policy.problems import TextError
from policy.schema import FilterTable
from policy.selectors import ANY_PORT, ANY_PROTOCOL, ICMP, ICMPV6, PORT_PROTOCOLS, AddressRange, PortRange
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
    _check_servers(reader, path, table)
    _check_families(reader, path, table)
    message = _message(reader, path, table)
    if len(reader.errors) > before:
        return None
    return Filter(
        source=table.source,
        destination=table.destination,
        protocol=table.protocol,
        source_port=table.source_port if message.is_any else message,
        destination_port=table.destination_port if message.is_any else message,
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


def _message(reader: TableReader, path: KeyPath, table: FilterTable) -> PortRange:
    """Return the ICMP types and codes of a filter as the value of its ports."""
    written = [key for key in ("icmp_type", "icmp_code") if getattr(table, key) is not None]
    if not written:
        return ANY_PORT
    if not is_icmp(table.protocol):
        message = f"{written[0]}: {protocol_name(table.protocol)} is no protocol with ICMP types"
        reader.error(reader.at_key(*path, written[0]), message, 'add protocol = "icmp" or "icmpv6", or remove it')
        return ANY_PORT
    if table.icmp_type is None:
        message = "icmp_code: a code means something only beside its type"
        reader.error(reader.at_key(*path, "icmp_code"), message, "add icmp_type")
        return ANY_PORT
    key = "icmp_type"
    try:
        types = icmp_types(table.protocol, table.icmp_type)
        key = "icmp_code"
        return icmp_ports(types, table.icmp_code)
    except TextError as error:
        reader.error(reader.at_value(*path, key), f"{key}: {error.message}", error.hint)
        return ANY_PORT


def _check_servers(reader: TableReader, path: KeyPath, table: FilterTable) -> None:
    """As in Windows, what is said of a server that this host was told of is between it and this host."""
    for key, side, other in (
        ("source", table.source, table.destination),
        ("destination", table.destination, table.source),
    ):
        if isinstance(side, Server) and other is not Special.ME:
            message = f'{key} = "{side.value}" is a server of this host, so the other side must be this host'
            reader.error(reader.at_value(*path, key), message, 'write "me" for the other side, or an address here')
            return


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
