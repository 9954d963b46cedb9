"""The SPD search of the packet path: the first entry that matches, fragments included (RFC 4301 section 4.4.1)."""

from __future__ import annotations

from policy.selectors import ANY_PROTOCOL, Flow
from policy.spd import Spd, SpdEntry
from tunnel.dataplane.contract import DropReason
from tunnel.dataplane.flow import FlowError, Parsed


def find_outbound(spd: Spd, parsed: Parsed) -> SpdEntry | None:
    """Return the entry for a packet that leaves. FlowError for a fragment that would slip past an entry."""
    flow = parsed.flow
    if not _shows_no_ports(parsed):
        return spd.lookup_outbound(flow)
    entry = next(
        (e for e in spd.entries if e.outbound and may_match(e, flow, flow.source, flow.destination)), None
    )
    if entry is not None and not entry.selectors.matches_outbound(flow):
        raise FlowError(DropReason.FRAGMENT_PORTS)
    return entry


def find_inbound(spd: Spd, parsed: Parsed) -> SpdEntry | None:
    """Return the entry for a packet that arrives. FlowError as above."""
    flow = parsed.flow
    if not _shows_no_ports(parsed):
        return spd.lookup_inbound(flow)
    entry = next((e for e in spd.entries if e.inbound and may_match(e, flow, flow.destination, flow.source)), None)
    if entry is not None and not entry.selectors.matches_inbound(flow):
        raise FlowError(DropReason.FRAGMENT_PORTS)
    return entry


def _shows_no_ports(parsed: Parsed) -> bool:
    """Whether it is a fragment without ports: it must not slip past an entry that wants ports."""
    return parsed.fragment and parsed.flow.source_port is None


def may_match(entry: SpdEntry, flow: Flow, local_address: int, remote_address: int) -> bool:
    """Whether *entry* would match a packet of these addresses and protocol for some port, or for none."""
    local, remote = entry.selectors.local, entry.selectors.remote
    return (
        flow.version == local.addresses.version
        and local.protocol in (ANY_PROTOCOL, flow.protocol)
        and local.addresses.contains(local_address)
        and remote.addresses.contains(remote_address)
    )
