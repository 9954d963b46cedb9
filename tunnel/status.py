"""The ``status`` and ``explain`` objects: what an operator sees of the gateway, ready for JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ike.names import describe
from ike.status import IkeSaStatus
from policy.clock import SECOND, Nanos
from policy.explain import Direction, explain
from policy.selectors import Flow
from policy.spd import Disposition, SpdEntry
from tunnel.children import EntryState, Installed

if TYPE_CHECKING:
    from tunnel.gateway import Gateway

#: States of an IKE SA (``IkeSaStatus.state``) in which it carries Child SAs.
_ESTABLISHED = ("established", "rekeyed")
#: Hosts of one template that are shown.
_SHOWN_HOSTS = 1000
_NEGOTIATING = ("initiating", "authenticating", "half open")


def status(gateway: Gateway, now: Nanos) -> dict[str, object]:
    """Return the whole state: rules, peers, Child SAs, drops by reason."""
    snapshot = gateway.snapshot
    return {
        "policy": snapshot.policy,
        "generation": snapshot.generation,
        "rules": _rules(gateway, now),
        "peers": _peers(gateway, now),
        "children": [child_object(gateway, installed, now) for installed in gateway.children],
        "drops": {reason.value: count for reason, count in gateway.dataplane.drops().items() if count},
        "ike": {what: count for what, count in sorted(gateway.ike.counters().items()) if count},
        "held": gateway.dataplane.counters().held,
        "tun_mtu": gateway.dataplane.tun_mtu(),
    }


def child_object(gateway: Gateway, installed: Installed, now: Nanos) -> dict[str, object]:
    """Return one Child SA."""
    sa = installed.sa
    entry = gateway.snapshot.spd.entry(sa.entry)
    received = gateway.dataplane.query_sa(sa.spi_in, inbound=True, child=sa.child)
    sent = gateway.dataplane.query_sa(sa.spi_out, inbound=False, child=sa.child)
    return {
        "child": sa.child,
        "rule": entry.rule if entry else None,
        "entry": sa.entry,
        "peer": sa.peer,
        "mode": sa.mode.value,
        "suite": f"{sa.protocol.name} {describe(sa.suite)}",
        "bundle": sa.bundle,
        "encapsulation": "udp" if sa.path.encapsulated else "none",
        "path": str(sa.path),
        "spi_in": f"{sa.spi_in:08x}",
        "spi_out": f"{sa.spi_out:08x}",
        "local": ", ".join(dict.fromkeys(str(pair.local) for pair in sa.selectors)),
        "remote": ", ".join(dict.fromkeys(str(pair.remote) for pair in sa.selectors)),
        "packets_in": received.packets if received else 0,
        "bytes_in": received.octets if received else 0,
        "packets_out": sent.packets if sent else 0,
        "bytes_out": sent.octets if sent else 0,
        "age_s": _seconds(now - installed.since),
        "rekey_in_s": None if sa.rekey_at is None else _seconds(sa.rekey_at - now),
    }


def explain_object(gateway: Gateway, flow: Flow, direction: Direction | None, now: Nanos) -> dict[str, object]:
    """Return what happens to *flow*: the policy's verdict, the SA that carries it, and how its entry fares."""
    explanation = explain(gateway.snapshot, flow, direction)
    outbound = explanation.direction is Direction.OUTBOUND
    entry = explanation.entry
    found: Installed | None = None
    if entry is None or entry.disposition is not Disposition.PROTECT:
        state = "dropped" if entry is not None and entry.disposition is Disposition.DISCARD else "passes in clear"
    else:
        entry = entry.for_host(flow.destination_address if outbound else flow.source_address)
        pairs = gateway.children.of_entry(entry.id)
        fitting = [pair for pair in pairs if _fits(pair, flow, outbound=outbound)]
        found = next((pair for pair in reversed(fitting) if not pair.sa.dormant), None)
        if found is not None:
            spi = found.sa.spi_out if outbound else found.sa.spi_in
            state = f"up: Child SA {found.sa.child} carries it, SPI {spi:08x}, {_age(found, now)} old"
        elif pairs:
            state = "no SA covers it: the peer narrowed the selectors of those that are up"
        else:
            condition, reason = gateway.children.state(entry.id)
            clear_for = _clear_for(gateway, entry.id, now)
            state = _state_text(condition, reason, outbound=outbound, clear_for=clear_for)
    answer = explanation.to_dict()
    answer["sa"] = child_object(gateway, found, now) if found else None
    answer["state"] = state
    return answer


def _state_text(state: EntryState, reason: str | None, *, outbound: bool, clear_for: float | None) -> str:
    why = f": {reason}" if reason else ""
    match state:
        case EntryState.SOFT:
            return f"in clear for {clear_for or 0:.0f} s more{why}"
        case EntryState.NEGOTIATING:
            return "negotiating: packets wait for the SA"
        case EntryState.FAILED:
            return f"failed{why}"
        case _ if outbound:
            return f"down{why}; the next packet starts a negotiation"
        case _:
            return f"down{why}; the peer must negotiate an SA first"


def _fits(installed: Installed, flow: Flow, *, outbound: bool) -> bool:
    pairs = installed.sa.selectors
    return any(pair.matches_outbound(flow) if outbound else pair.matches_inbound(flow) for pair in pairs)


def _rules(gateway: Gateway, now: Nanos) -> list[dict[str, object]]:
    states = gateway.children.states(gateway.snapshot)
    rules: dict[str, dict[str, object]] = {}
    entries: dict[str, list[dict[str, object]]] = {}
    for entry in gateway.snapshot.spd.entries:
        if entry.rule not in rules:
            entries[entry.rule] = []
            rules[entry.rule] = {
                "rule": entry.rule,
                "filter_list": entry.filter_list,
                "filter_action": entry.filter_action,
                "entries": entries[entry.rule],
            }
        state, reason = states[entry.id]
        entries[entry.rule].append(
            {
                "id": entry.id,
                "local": str(entry.selectors.local),
                "remote": str(entry.selectors.remote),
                "disposition": entry.disposition.value,
                "state": state.value,
                "reason": reason,
                "clear_for_s": _clear_for(gateway, entry.id, now),
                "per_host": entry.per_host,
                "hosts": _hosts(gateway, entry, now) if entry.per_host else [],
            }
        )
    return list(rules.values())


def _hosts(gateway: Gateway, entry: SpdEntry, now: Nanos) -> list[dict[str, object]]:
    """Return the hosts of a template that anything is known of, the latest first."""
    found: list[dict[str, object]] = []
    for host in reversed(gateway.children.hosts(entry.id)[-_SHOWN_HOSTS:]):
        state, reason = gateway.children.state(host)
        found.append(
            {
                "host": host.rpartition("@")[2],
                "id": host,
                "state": state.value,
                "reason": reason,
                "clear_for_s": _clear_for(gateway, host, now),
            }
        )
    return found


def _clear_for(gateway: Gateway, entry: str, now: Nanos) -> float | None:
    until = gateway.soft.until(entry)
    return None if until is None else _seconds(until - now)


def _peers(gateway: Gateway, now: Nanos) -> list[dict[str, object]]:
    # A peer that stands for each host of a range is shown host by host, once there is an IKE SA.
    by_peer: dict[str, list[IkeSaStatus]] = {
        peer.name: [] for peer in gateway.snapshot.pad.peers if not peer.hosts
    }
    for sa in gateway.ike.status(now):
        by_peer.setdefault(sa.peer, []).append(sa)
    failures = gateway.ike.failures()
    found: list[dict[str, object]] = []
    for name, sas in by_peer.items():
        peer = gateway.snapshot.pad.by_name(name)
        if any(sa.state in _ESTABLISHED for sa in sas):
            state, reason = "up", None
        elif any(sa.state in _NEGOTIATING for sa in sas):
            state, reason = "negotiating", failures.get(name)
        else:
            state, reason = "down", failures.get(name)
        found.append(
            {
                "peer": name,
                "address": str(peer.address) if peer and peer.address else None,
                "state": state,
                "reason": reason,
                "ike_sas": [_ike_sa(sa, now) for sa in sas],
            }
        )
    return found


def _ike_sa(sa: IkeSaStatus, now: Nanos) -> dict[str, object]:
    nats = [where for where, there in (("local", sa.nat_local), ("remote", sa.nat_remote)) if there]
    return {
        "spi_i": sa.spi_i.hex(),
        "spi_r": sa.spi_r.hex(),
        "role": sa.role,
        "state": sa.state,
        "path": str(sa.path),
        "suite": sa.suite,
        "nat": "both" if len(nats) == 2 else (nats[0] if nats else "none"),
        "remote_id": sa.remote_id,
        "age_s": None if sa.established is None else _seconds(now - sa.established),
        "rekey_in_s": None if sa.rekey_at is None else _seconds(sa.rekey_at - now),
    }


def _age(installed: Installed, now: Nanos) -> str:
    return f"{(now - installed.since) // SECOND} s"


def _seconds(span: Nanos) -> float:
    return round(span / SECOND, 3)
