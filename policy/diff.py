"""What changes when one snapshot takes another's place: reload is a diff."""

from __future__ import annotations

from dataclasses import dataclass

from policy.pad import PeerEntry
from policy.spd import Snapshot, SpdEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """Entries and peers by name: those only in the new snapshot, only in the old one, and different (old, new)."""

    added: tuple[SpdEntry, ...] = ()
    removed: tuple[SpdEntry, ...] = ()
    changed: tuple[tuple[SpdEntry, SpdEntry], ...] = ()
    added_peers: tuple[PeerEntry, ...] = ()
    removed_peers: tuple[PeerEntry, ...] = ()
    changed_peers: tuple[tuple[PeerEntry, PeerEntry], ...] = ()
    #: Whether entries that are in both match in another order.
    reordered: bool = False

    @property
    def same(self) -> bool:
        """Whether both snapshots say the same."""
        return not (
            self.added
            or self.removed
            or self.changed
            or self.added_peers
            or self.removed_peers
            or self.changed_peers
            or self.reordered
        )

    def __str__(self) -> str:
        if self.same:
            return "nothing changed"
        counts = (
            (len(self.added), "entry", "entries", "added"),
            (len(self.removed), "entry", "entries", "removed"),
            (len(self.changed), "entry", "entries", "changed"),
            (len(self.added_peers), "peer", "peers", "added"),
            (len(self.removed_peers), "peer", "peers", "removed"),
            (len(self.changed_peers), "peer", "peers", "changed"),
        )
        parts = [f"{count} {one if count == 1 else more} {how}" for count, one, more, how in counts if count]
        return ", ".join([*parts, "order changed"] if self.reordered else parts)


def diff(old: Snapshot, new: Snapshot) -> Delta:
    """Return how *new* differs from *old*. Generation, warnings and places in files do not count."""
    before = {entry.id: entry for entry in (*old.spd.entries, *old.response)}
    after = {entry.id: entry for entry in (*new.spd.entries, *new.response)}
    peers_before = {peer.name: peer for peer in old.pad.peers}
    peers_after = {peer.name: peer for peer in new.pad.peers}
    return Delta(
        added=tuple(entry for id_, entry in after.items() if id_ not in before),
        removed=tuple(entry for id_, entry in before.items() if id_ not in after),
        changed=tuple((before[id_], entry) for id_, entry in after.items() if before.get(id_, entry) != entry),
        added_peers=tuple(peer for name, peer in peers_after.items() if name not in peers_before),
        removed_peers=tuple(peer for name, peer in peers_before.items() if name not in peers_after),
        changed_peers=tuple(
            (peers_before[name], peer)
            for name, peer in peers_after.items()
            if peers_before.get(name, peer) != peer
        ),
        reordered=[id_ for id_ in before if id_ in after] != [id_ for id_ in after if id_ in before],
    )
