"""``mirrorgate rehearse``: two config files negotiate with each other, in this process alone."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path as FilePath
from typing import Any

from policy.clock import Entropy
from policy.compile import compile_policy
from policy.model import DnsName, Policy, PresharedKey
from policy.pad import PeerEntry
from policy.path import IpAddress
from policy.problems import TextError, quoted
from policy.selectors import Flow
from policy.spd import Snapshot
from policy.store.files import load_file
from policy.texts import parse_flow
from tunnel.agent.policies import Policies
from tunnel.differences import End
from tunnel.host import process
from tunnel.rehearsal import CLEAR, PROTECTED, rehearse
from tunnel.representatives import MAX_FLOWS, representatives, sender
from tunnel.whereabouts import infer

_NAMES = ("A", "B")


def run(options: argparse.Namespace) -> int:
    """Rehearse and report. 1 when a flow that an end requires protected cannot be."""
    report = rehearsed(
        (options.one, options.other),
        (_given(options.a_address), _given(options.b_address)),
        [_flow(text) for text in options.flow],
        entropy=process.entropy,
    )
    print(json.dumps(report, indent=2) if options.json else text(report))
    return 1 if report["failed"] else 0


def rehearsed(
    files: Sequence[FilePath],
    given: tuple[tuple[IpAddress, ...], tuple[IpAddress, ...]],
    flows: Sequence[Flow],
    *,
    entropy: Entropy,
) -> dict[str, Any]:
    """Return the report on two config files. ConfigErrors; TextError when it is not known who is where."""
    policies = [_assigned(file) for file in files]
    addresses = [own or infer(policies[at], policies[1 - at]) for at, own in enumerate(given)]
    for name, file, known in zip(_NAMES, files, addresses, strict=True):
        if not known:
            option = f"--{name.lower()}-address"
            raise TextError(f"neither config says which address {file} is for", f"add {option} ADDRESS")
    first, second = (_end(at, policies[at], addresses[at], addresses[1 - at]) for at in (0, 1))
    ends = (first, second)
    wanted = [(_begins(ends, flow), flow) for flow in flows]
    derived = representatives(ends)
    wanted += [each for each in derived if each not in wanted]
    verdicts = [rehearse(ends, flow, begins=begins, entropy=entropy) for begins, flow in wanted]
    notes = [f"{end.name}: {warning}" for end in ends for warning in end.snapshot.warnings] + _keys(ends)
    if len(derived) >= MAX_FLOWS:
        notes.append(f"only the first {MAX_FLOWS} kinds of flows were rehearsed: ask for others with --flow")
    return {
        "ends": [
            {"name": end.name, "file": str(file), "policy": end.snapshot.policy, "addresses": list(map(str, own))}
            for end, file, own in zip(ends, files, addresses, strict=True)
        ],
        "notes": notes,
        "flows": [verdict.to_dict() for verdict in verdicts],
        "failed": sum(verdict.failed for verdict in verdicts),
    }


def text(report: Mapping[str, Any]) -> str:
    """Return the report for a person."""
    lines = [
        f"{end['name']}  {end['file']}: policy {end['policy'] or 'none'}, at {', '.join(end['addresses'])}"
        for end in report["ends"]
    ]
    lines += [f"note: {note}" for note in report["notes"]]
    for flow in report["flows"]:
        lines += ["", f"{flow['flow']}  ({flow['begins']} begins): {_outcome(flow)}"]
        for name, end in flow["ends"].items():
            lines.append(f"  {name}  {end['why']}" + (f" ({end['where']})" if end["where"] else ""))
        lines += [f"  ->  {reason}" for reason in flow["reasons"]]
    total, failed = len(report["flows"]), report["failed"]
    done = f"{failed} of {total} flows must be protected and cannot be" if failed else "every flow is as required"
    return "\n".join([*lines, "", f"{done}." if total else "The two policies have nothing to do with each other."])


def _outcome(flow: Mapping[str, Any]) -> str:
    said = str(flow["outcome"])
    if said == "mixed":
        said = f"{flow['forward']}, answers {flow['reply']}"
    sas = [end["sa"] for end in flow["ends"].values() if end["sa"]]
    if sas and said == PROTECTED:
        carried = "in UDP" if sas[0]["encapsulation"] == "udp" else "raw"
        said = f"protected, {sas[0]['suite']}, {sas[0]['mode']} mode, {carried}"
        said = said if flow["lasting"] else "protected only until keys must be renewed"
    elif said == CLEAR:
        said = "in clear"
    elif flow["waits"]:
        said = "waits for the other end"
    return said.upper() if flow["failed"] else said


def _assigned(file: FilePath) -> Policy | None:
    configuration = load_file(file).configuration
    return Policies(configuration).policy(configuration.agent.assigned)


def _end(at: int, policy: Policy | None, own: Sequence[IpAddress], other: Sequence[IpAddress]) -> End:
    """Compile *policy*; a name that it has as tunnel endpoint is the other end, as nobody is asked."""
    rules = policy.rules if policy is not None else ()
    names = {rule.tunnel_endpoint.name for rule in rules if isinstance(rule.tunnel_endpoint, DnsName)}
    snapshot: Snapshot = compile_policy(
        policy,
        generation=1,
        local_addresses=own,
        resolve=lambda name: tuple(other) if name in names else (),
    )
    return End(_NAMES[at], snapshot, tuple(own))


def _begins(ends: tuple[End, End], flow: Flow) -> int:
    number = sender(ends, flow)
    if number is None:
        raise TextError(f"{flow} is between neither end", "name it from an address of A to one of B, or back")
    return number


def _keys(ends: tuple[End, End]) -> list[str]:
    """Say which peers would never prove themselves to each other: their preshared keys differ."""
    one, other = ends
    found = []
    for mine in _peers(one, other):
        theirs = _peers(other, one)
        if theirs and not any(_secret(mine) == _secret(peer) for peer in theirs):
            found.append(
                f"the preshared keys differ: A's for {mine.name} ({mine.where}) is none that B has for A "
                f"({theirs[0].where}); copy the same secret to both"
            )
    return found


def _peers(end: End, other: End) -> list[PeerEntry]:
    found = [peer for address in other.addresses for peer in end.snapshot.pad.candidates(address)]
    return [peer for peer in found if _secret(peer) is not None]


def _secret(peer: PeerEntry) -> object:
    return next((method.secret for method in peer.authentication if isinstance(method, PresharedKey)), None)


def _given(texts: Sequence[str]) -> tuple[IpAddress, ...]:
    try:
        return tuple(ip_address(each) for each in texts)
    except ValueError as error:
        raise TextError(str(error), "write an address, without a mask") from error


def _flow(words: str) -> Flow:
    parts = words.split()
    if len(parts) != 3:
        raise TextError(f"{quoted(words)} is no flow", 'write "tcp 10.1.0.5:4000 10.2.0.9:443"')
    return parse_flow(*parts)
