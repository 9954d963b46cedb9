"""A new policy: what becomes of the SAs that are there. What is the same is not touched."""

from __future__ import annotations

from dataclasses import replace

from ike.events import FailureKind
from ike.v2.child import unfit
from ike.v2.core import Core
from ike.v2.negotiation import methods_of
from ike.v2.sa import IkeSa
from ike.v2.states import AUTHENTICATED, State
from ike.v2.tasks.child_rekey import ChildRekey
from ike.v2.tasks.delete import delete_children, delete_ike
from ike.v2.tasks.task import Failure
from policy.clock import Nanos
from policy.lifetimes import Lifetime
from policy.pad import PeerEntry
from policy.spd import Snapshot


def load(core: Core, snapshot: Snapshot, now: Nanos) -> None:
    """Swap the policy.

    Peers that vanished or changed lose their IKE SAs, entries that vanished or narrowed their Child SAs; a Child
    SA whose methods changed is rekeyed. Half-open responder SAs stay: they are judged by the policy in force when
    IKE_AUTH comes.
    """
    previous, core.snapshot = core.snapshot, snapshot
    core.demands.stopped = False
    for entry_id in core.demands.entries():
        if core.entry(entry_id) is None:
            core.demands.forget(entry_id, "the policy no longer has this entry", now)
    for sa in list(core.sas.values()):
        if sa.peer is None or sa.state is State.CLOSED:
            continue
        peer = snapshot.pad.by_name(sa.peer.name)
        if peer is None or not _same_peer(peer, sa.peer):
            what = "vanished from" if peer is None else "changed in"
            _end(sa, f"the peer {what} the policy", now)
            continue
        sa.peer = peer
        if sa.state in AUTHENTICATED:
            _check_children(core, sa, previous, now)


def _end(sa: IkeSa, reason: str, now: Nanos) -> None:
    if sa.state in AUTHENTICATED:
        delete_ike(sa, reason, now)
    else:
        sa.close(Failure(FailureKind.LOCAL, reason), now)


def _same_peer(new: PeerEntry, old: PeerEntry) -> bool:
    """Whether all that an IKE SA was negotiated under is the same; lifetimes count from the next rekey."""
    return _essence(new) == _essence(old)


def _essence(peer: PeerEntry) -> PeerEntry:
    ike = replace(peer.ike, lifetime=Lifetime(), liveness=None, fragment_size=1280)
    return replace(peer, entries=(), ike=ike)


def _check_children(core: Core, sa: IkeSa, previous: Snapshot, now: Nanos) -> None:
    for child in list(sa.children.values()):
        entry = core.entry(child.entry)
        reason = unfit(sa, child)
        if reason:
            delete_children(sa, [child], reason, now)
        elif entry is not None:
            before = previous.spd.entry(child.entry)
            if before is not None and methods_of(before) != methods_of(entry):
                sa.start(ChildRekey(child), now)
