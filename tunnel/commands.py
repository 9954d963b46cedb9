"""What the operator's commands do to the gateway."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, assert_never

from policy.clock import Nanos
from policy.path import IpAddress
from policy.problems import quoted, suggestion
from policy.spd import Disposition, SpdEntry
from tunnel.outputs import Command, Explain, Initiate, Rekey, Shutdown, Status, Terminate
from tunnel.status import explain_object, status

if TYPE_CHECKING:
    from tunnel.gateway import Gateway


def execute(gateway: Gateway, command: Command, now: Nanos, settle: Callable[[], None]) -> dict[str, object]:
    """Execute *command* and return its answer; ``{"error": sentence}`` when it names what is not there.

    *settle* lets both planes talk, so that the answer tells what failed at once.
    """
    match command:
        case Status():
            return status(gateway, now)
        case Explain(flow, direction):
            return explain_object(gateway, flow, direction, now)
        case Initiate(rule, host):
            return _initiate(gateway, rule, host, now, settle)
        case Rekey(target, ike):
            return _rekey_ike(gateway, target, now) if ike else _rekey(gateway, target, now)
        case Terminate(target):
            return _terminate(gateway, target, now)
        case Shutdown():
            peers = _peers_with_sas(gateway, now)
            gateway.ike.shutdown(now)
            return {"closing": peers}
        case _:
            assert_never(command)


def _initiate(
    gateway: Gateway, rule: str, host: IpAddress | None, now: Nanos, settle: Callable[[], None]
) -> dict[str, object]:
    entries = _protected(gateway, rule)
    if not entries:
        return {"error": _no_rule(gateway, rule)}
    if host is None and all(entry.per_host for entry in entries):
        return {"error": f"rule {quoted(rule)} secures each host by itself: name one, after the rule"}
    if host is not None:
        entries = [entry.for_host(host) for entry in entries if _covers(entry, host)]
        if not entries:
            return {"error": f"rule {quoted(rule)} has no filter for {host}"}
    entries = [entry for entry in entries if not entry.per_host]
    up = [entry.id for entry in entries if gateway.children.of_entry(entry.id)]
    started = [entry.id for entry in entries if entry.id not in up]
    for entry in started:
        gateway.start(entry, None, now)
        settle()
    return {
        "started": [entry for entry in started if entry not in gateway.failed],
        "up": up,
        "failed": [
            {"entry": entry, "reason": gateway.failed[entry]} for entry in started if entry in gateway.failed
        ],
    }


def _covers(entry: SpdEntry, host: IpAddress) -> bool:
    addresses = entry.selectors.remote.addresses
    return addresses.version == host.version and addresses.contains(int(host))


def _rekey(gateway: Gateway, rule: str | None, now: Nanos) -> dict[str, object]:
    if rule is not None and not _protected(gateway, rule):
        return {"error": _no_rule(gateway, rule)}
    children = _children(gateway, rule)
    for child in children:
        gateway.ike.rekey_child(child, now)
    return {"rekeying": children}


def _rekey_ike(gateway: Gateway, target: str | None, now: Nanos) -> dict[str, object]:
    present = _peers_with_sas(gateway, now)
    if target is None:
        wanted = present
    elif gateway.snapshot.pad.by_name(target) is not None:
        wanted = [target]
    elif _protected(gateway, target):
        wanted = _peers_of(gateway, target)
    else:
        names = [peer.name for peer in gateway.snapshot.pad.peers]
        rules = [entry.rule for entry in gateway.snapshot.spd.entries]
        hint = suggestion(target, dict.fromkeys([*names, *rules]), what="peer or rule")
        return {"error": f"there is no peer or rule {quoted(target)}: {hint}"}
    peers = [peer for peer in wanted if peer in present]
    for peer in peers:
        gateway.ike.rekey_ike(peer, now)
    return {"rekeying": peers}


def _terminate(gateway: Gateway, rule: str | None, now: Nanos) -> dict[str, object]:
    if rule is not None and not _protected(gateway, rule):
        return {"error": _no_rule(gateway, rule)}
    children = _children(gateway, rule)
    present = _peers_with_sas(gateway, now)
    wanted = present if rule is None else [peer for peer in _peers_of(gateway, rule) if peer in present]
    kept = {pair.sa.peer for pair in gateway.children if pair.sa.child not in children}
    leaving = [peer for peer in wanted if peer not in kept]
    peer_of = {pair.sa.child: pair.sa.peer for pair in gateway.children}
    for child in children:
        if peer_of[child] not in leaving:
            gateway.ike.terminate_child(child, now)
    for peer in leaving:
        gateway.ike.terminate_peer(peer, now)
    return {"terminated": children, "peers": leaving}


def _protected(gateway: Gateway, rule: str | None) -> list[SpdEntry]:
    """Return the PROTECT entries of a rule, or of all."""
    return [
        entry
        for entry in gateway.snapshot.spd.entries
        if entry.disposition is Disposition.PROTECT and rule in (None, entry.rule)
    ]


def _children(gateway: Gateway, rule: str | None) -> list[int]:
    if rule is None:
        return [pair.sa.child for pair in gateway.children]
    spd = gateway.snapshot.spd
    served = [(pair.sa.child, spd.entry(pair.sa.entry)) for pair in gateway.children]
    return [child for child, entry in served if entry is not None and entry.rule == rule]


def _peers_of(gateway: Gateway, rule: str) -> list[str]:
    """Return the peers that *rule* names, and those at the hosts that it has SAs with."""
    named = [entry.protection.peer for entry in _protected(gateway, rule) if entry.protection is not None]
    children = _children(gateway, rule)
    return list(dict.fromkeys(named + [pair.sa.peer for pair in gateway.children if pair.sa.child in children]))


def _peers_with_sas(gateway: Gateway, now: Nanos) -> list[str]:
    return list(dict.fromkeys(sa.peer for sa in gateway.ike.status(now) if sa.peer))


def _no_rule(gateway: Gateway, rule: str) -> str:
    """Say why nothing of *rule* can be negotiated, with the nearest name that can."""
    known = list(dict.fromkeys(entry.rule for entry in gateway.snapshot.spd.entries))
    if rule in known:
        return f"rule {quoted(rule)} negotiates nothing: its filter action permits or blocks"
    if gateway.snapshot.policy is None:
        return f"there is no rule {quoted(rule)}: no policy is assigned"
    return f"there is no rule {quoted(rule)}: {suggestion(rule, known, what='rule')}"
