"""What two policies, laid side by side, say about a flow that is not protected: what to change at which end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from policy.pad import PeerEntry
from policy.path import IpAddress
from policy.selectors import Flow
from policy.spd import Disposition, Mode, Snapshot, SpdEntry


@dataclass(frozen=True, slots=True)
class End:
    """One of the two: a name for the report, its policy compiled for its own addresses, and these."""

    name: str
    snapshot: Snapshot
    addresses: tuple[IpAddress, ...]


def entry_of(snapshot: Snapshot, flow: Flow, *, outbound: bool) -> SpdEntry | None:
    """Return the entry that decides."""
    return snapshot.spd.lookup_outbound(flow) if outbound else snapshot.spd.lookup_inbound(flow)


def advice(sender: End, receiver: End, flow: Flow) -> list[str]:
    """Return sentences for who has to mend it, in the order in which he would look."""
    one, other = entry_of(sender.snapshot, flow, outbound=True), entry_of(receiver.snapshot, flow, outbound=False)
    said: list[str] = []
    for end, entry, far, theirs in ((sender, one, receiver, other), (receiver, other, sender, one)):
        if entry is not None and entry.disposition is Disposition.DISCARD:
            said.append(f'{end.name}: rule "{entry.rule}" blocks it ({entry.where})')
        if entry is None or entry.protection is None:
            continue
        said += _endpoint(end, entry, far)
        if theirs is None or theirs.disposition is Disposition.BYPASS:
            said += _one_sided(end, entry, far, theirs, begins=far is sender)
    if one is not None and other is not None and one.protection is not None and other.protection is not None:
        said += _modes(sender, one, receiver, other)
        said += [*_identities(sender, receiver), *_identities(receiver, sender)]
    return said


def _endpoint(end: End, entry: SpdEntry, far: End) -> Iterator[str]:
    remote = None if entry.protection is None else entry.protection.tunnel_remote
    if remote is not None and remote not in far.addresses:
        yield (
            f'{end.name}: rule "{entry.rule}" has the tunnel_endpoint {remote}, and {far.name} is at '
            f"{', '.join(map(str, far.addresses))} ({entry.where})"
        )


def _one_sided(end: End, entry: SpdEntry, far: End, theirs: SpdEntry | None, *, begins: bool) -> Iterator[str]:
    """Say what *far* lacks, whose policy permits what *end* protects; *begins*: the flow comes from *far*."""
    begin = f'{end.name} protects it by rule "{entry.rule}", but at {far.name} '
    if far.snapshot.policy is None:
        yield f"{begin}no policy is in force: set agent.assigned there ({entry.where})"
        return
    same = next((e for e in far.snapshot.spd.entries if e.selectors == entry.selectors and e.protection), None)
    if same is not None and entry.selectors != entry.selectors.mirror():
        yield (
            f"{end.name} and {far.name} have the same filter {entry.selectors}: seen from {far.name}, source and "
            f'destination change places in rule "{same.rule}" ({same.where}); or tell where it stands, by '
            f"--{far.name.lower()}-address with its address in its own network"
        )
        return
    if far.snapshot.response and entry.protection is not None and entry.protection.mode is Mode.TRANSPORT:
        if begins and not entry.protection.inbound_clear:
            yield (
                f"{far.name} only responds: it begins in clear, which {end.name} does not accept. Let {end.name} "
                f"begin, give {far.name} a rule of its own, or allow inbound_clear at {end.name} ({entry.where})"
            )
        return
    clear = f'rule "{theirs.rule}" permits it' if theirs else "no filter matches it"
    yield (
        f"{begin}{clear}: give {far.name} a mirrored filter that covers it, with an action that negotiates "
        f"({entry.where})"
    )


def _modes(sender: End, one: SpdEntry, receiver: End, other: SpdEntry) -> Iterator[str]:
    mine, theirs = one.protection, other.protection
    if mine is None or theirs is None:
        return
    if mine.mode is not theirs.mode:
        yield (
            f"{sender.name} wants {mine.mode.value} mode and {receiver.name} {theirs.mode.value} mode: "
            f"give both rules a tunnel_endpoint, or neither ({one.where}; {other.where})"
        )
    elif mine.mode is Mode.TUNNEL and mine.tunnel_remote is None is theirs.tunnel_remote:
        yield 'both ends wait for the other (tunnel_endpoint = "any"): one of them has to name an address'


def _identities(end: End, far: End) -> Iterator[str]:
    """Say when the peers that *end* knows at *far* have other names than *far* gives itself."""
    wanted, given = _peers(end, far), _peers(far, end)
    names = {str(peer.local_id) for peer in given if peer.local_id is not None}
    expected = {str(peer.remote_id): peer for peer in wanted if peer.remote_id is not None}
    if names and expected and not names & expected.keys() and len(expected) == len(wanted):
        name, peer = next(iter(expected.items()))
        yield (
            f"{end.name} expects {name} ({peer.where}), and {far.name} is {', '.join(sorted(names))}: "
            f"make remote_id at {end.name} and local_id at {far.name} the same"
        )


def _peers(end: End, far: End) -> list[PeerEntry]:
    return [peer for address in far.addresses for peer in end.snapshot.pad.candidates(address)]
