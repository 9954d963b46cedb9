"""The ``status`` and ``explain`` objects: what an operator sees of the gateway, ready for JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import TYPE_CHECKING

from ike.names import describe
from ike.status import IkeSaStatus
from policy.clock import SECOND, Nanos
from policy.explain import Direction, explain
from policy.selectors import Flow, TrafficSelector
from policy.spd import Disposition, SpdEntry
from tunnel.children import EntryState, Installed
from tunnel.traffic import Carried

if TYPE_CHECKING:
    from tunnel.gateway import Gateway

#: States of an IKE SA (``IkeSaStatus.state``) in which it carries Child SAs.
_ESTABLISHED = ("established", "rekeyed")
#: Hosts of one template that are shown.
_SHOWN_HOSTS = 1000
#: Messages without an answer that are worth a word; one or two are lost now and then.
_SILENT = 3
_NEGOTIATING = ("initiating", "authenticating", "half open")


@lru_cache(maxsize=16384)
def _text(selector: TrafficSelector) -> str:
    """Return a selector as text: a gateway of a thousand tunnels is asked every second, and packets wait."""
    return str(selector)


def status(gateway: Gateway, now: Nanos) -> dict[str, object]:
    """Return the whole state: rules, peers, Child SAs, drops by reason."""
    snapshot, counters = gateway.snapshot, gateway.dataplane.counters()
    ike = gateway.ike.status(now)
    return {
        "policy": snapshot.policy,
        "generation": snapshot.generation,
        "rules": _rules(gateway, ike, now),
        "peers": _peers(gateway, ike, now),
        "children": [child_object(gateway, installed, now) for installed in gateway.children],
        "drops": {reason.value: count for reason, count in gateway.dataplane.drops().items() if count},
        "held": counters.held,
        "tun_mtu": gateway.dataplane.tun_mtu(),
        "packets": asdict(counters),
        "ike": {"half_open": gateway.ike.half_open(), "counters": dict(gateway.ike.counters())},
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
        "local": ", ".join(dict.fromkeys(_text(pair.local) for pair in sa.selectors)),
        "remote": ", ".join(dict.fromkeys(_text(pair.remote) for pair in sa.selectors)),
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
            if condition is EntryState.NEGOTIATING and entry.protection is not None:
                reason = _silences(gateway.ike.status(now)).get(entry.protection.peer)
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
            return f"negotiating, and packets wait for the SA{why}"
        case EntryState.FAILED:
            return f"failed{why}"
        case _ if outbound:
            return f"down{why}; the next packet starts a negotiation"
        case _:
            return f"down{why}; the peer must negotiate an SA first"


def _fits(installed: Installed, flow: Flow, *, outbound: bool) -> bool:
    pairs = installed.sa.selectors
    return any(pair.matches_outbound(flow) if outbound else pair.matches_inbound(flow) for pair in pairs)


def _rules(gateway: Gateway, ike: Sequence[IkeSaStatus], now: Nanos) -> list[dict[str, object]]:
    states = gateway.children.states(gateway.snapshot)
    rules: dict[str, dict[str, object]] = {}
    carried = gateway.traffic.totals(
        lambda child, spi, inbound: gateway.dataplane.query_sa(spi, inbound=inbound, child=child)
    )
    entries: dict[str, list[dict[str, object]]] = {}
    silences = _silences(ike)
    natted = {child for sa in ike if sa.nat_local or sa.nat_remote for child in sa.children}
    for entry in gateway.snapshot.spd.entries:
        if entry.rule not in rules:
            entries[entry.rule] = []
            rules[entry.rule] = {
                "rule": entry.rule,
                "filter_list": entry.filter_list,
                "filter_action": entry.filter_action,
                "carried": carried.get(entry.rule, Carried()).to_dict(),
                "entries": entries[entry.rule],
            }
        state, reason = states[entry.id]
        installed = gateway.children.of_entry(entry.id)
        if state is EntryState.NEGOTIATING and entry.protection is not None:
            reason = silences.get(entry.protection.peer, reason)
        entries[entry.rule].append(
            {
                "id": entry.id,
                "local": _text(entry.selectors.local),
                "remote": _text(entry.selectors.remote),
                "disposition": entry.disposition.value,
                "state": state.value,
                "reason": reason,
                "path": _path(installed[-1].sa.child in natted) if installed else None,
                "clear_for_s": _clear_for(gateway, entry.id, now),
                "per_host": entry.per_host,
                "hosts": _hosts(gateway, entry, silences, now) if entry.per_host else [],
            }
        )
    return list(rules.values())


def _path(nat: bool) -> str:
    return "NAT" if nat else "direct"


def _silences(ike: Sequence[IkeSaStatus]) -> dict[str, str]:
    """Say which peers do not answer, by name, once a request was sent again."""
    return {
        sa.peer: f"no answer from {sa.path.remote} to {sa.unanswered} messages in {sa.silent_for // SECOND} s: "
        "is the peer up, and are UDP ports 500 and 4500 open on the way?"
        for sa in ike
        if sa.unanswered >= _SILENT and sa.state in _NEGOTIATING
    }


def _hosts(gateway: Gateway, entry: SpdEntry, silences: Mapping[str, str], now: Nanos) -> list[dict[str, object]]:
    """Return the hosts of a template that anything is known of, the latest first."""
    found: list[dict[str, object]] = []
    for host in reversed(gateway.children.hosts(entry.id)[-_SHOWN_HOSTS:]):
        state, reason = gateway.children.state(host)
        one = gateway.snapshot.spd.entry(host)
        if state is EntryState.NEGOTIATING and one is not None and one.protection is not None:
            reason = silences.get(one.protection.peer, reason)
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


def _peers(gateway: Gateway, ike: Sequence[IkeSaStatus], now: Nanos) -> list[dict[str, object]]:
    # A peer that stands for each host of a range is shown host by host, once there is an IKE SA.
    by_peer: dict[str, list[IkeSaStatus]] = {
        peer.name: [] for peer in gateway.snapshot.pad.peers if not peer.hosts
    }
    for sa in ike:
        by_peer.setdefault(sa.peer, []).append(sa)
    failures, silences = gateway.ike.failures(), _silences(ike)
    found: list[dict[str, object]] = []
    for name, sas in by_peer.items():
        peer = gateway.snapshot.pad.by_name(name)
        if any(sa.state in _ESTABLISHED for sa in sas):
            state, reason = "up", None
        elif any(sa.state in _NEGOTIATING for sa in sas):
            state, reason = "negotiating", silences.get(name) or failures.get(name)
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
