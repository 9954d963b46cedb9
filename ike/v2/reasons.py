"""Sentences that tell an operator which side refused what, and where to change it."""

from __future__ import annotations

from ike.constants import NotifyType, name_of
from ike.wire.payloads import NotifyPayload
from policy.model import Where
from policy.pad import Identity, PeerEntry
from policy.path import Endpoint, Path

#: Peer-supplied identities are shown up to this many characters.
_MAX_IDENTITY = 80


def identity_text(identity: Identity) -> str:
    """Return an identity for a message: escaped and of bounded length."""
    text = str(identity)
    return text if len(text) <= _MAX_IDENTITY else text[:_MAX_IDENTITY] + "..."


def no_answer(remote: Endpoint, probable: str) -> str:
    """Nobody answered an attempt."""
    text = f"no answer from {remote.address}: UDP 500/4500 is blocked on the way, or the peer is down"
    return f"{text}; an unauthenticated answer said: {probable}" if probable else text


def refused_init(notify: NotifyPayload, offered: str, where: Where) -> str:
    """The peer refused our IKE_SA_INIT."""
    name = name_of(NotifyType, notify.type)
    if notify.type == NotifyType.NO_PROPOSAL_CHOSEN:
        return (
            f"the peer refused every IKE proposal (NO_PROPOSAL_CHOSEN; we offered {offered}): give both ends a "
            f"common one ({where}), or the peer has no configuration for our address"
        )
    return f"the peer refused IKE_SA_INIT with {name} (we offered {offered}; {where})"


def refused_auth(notify: NotifyPayload | None, local: Identity, peer: PeerEntry) -> str:
    """The peer refused our IKE_AUTH."""
    if notify is None:
        return "the peer's IKE_AUTH response has neither AUTH nor an error"
    if notify.type == NotifyType.AUTHENTICATION_FAILED:
        return (
            "the peer refused our IKE_AUTH (AUTHENTICATION_FAILED): preshared key or identity differs; our "
            f"identity is {local} ({peer.where})"
        )
    return f"the peer refused our IKE_AUTH with {name_of(NotifyType, notify.type)} ({peer.where})"


def refused_child(notify: NotifyPayload | None, asked: str, offered: str, where: Where) -> str:
    """The peer refused our Child SA."""
    if notify is None:
        return "the peer's response has neither a Child SA nor an error"
    match notify.type:
        case NotifyType.NO_PROPOSAL_CHOSEN:
            return (
                f"the peer refused every ESP/AH proposal (NO_PROPOSAL_CHOSEN; we offered {offered}): give both "
                f"ends a common method and the same PFS group ({where})"
            )
        case NotifyType.TS_UNACCEPTABLE:
            return f"the peer's policy has nothing for {asked} (TS_UNACCEPTABLE): the filters differ ({where})"
        case _:
            return f"the peer refused the Child SA with {name_of(NotifyType, notify.type)} ({where})"


def unknown_identity(got: Identity, path: Path, candidates: tuple[PeerEntry, ...]) -> str:
    """No PAD entry fits the peer's identity."""
    wanted = "; ".join(
        f"{entry.name} wants {expected_identity(entry, path)} ({entry.where})" for entry in candidates[:4]
    )
    return f"the peer at {path.remote.address} says it is {identity_text(got)}; {wanted or 'no peer may be there'}"


def wrong_key(got: Identity, entry: PeerEntry) -> str:
    """The peer's AUTH does not verify."""
    return f"AUTH of {identity_text(got)} does not verify: the preshared key differs ({entry.where})"


def expected_identity(entry: PeerEntry, path: Path) -> Identity:
    """Return who *entry* says is at the other end: its identity, or without one the address itself."""
    if entry.remote_id is not None:
        return entry.remote_id
    return Identity.parse(str(entry.address or path.remote.address))


def own_identity(entry: PeerEntry, path: Path) -> Identity:
    """Return who we are toward *entry*: its local identity, or without one our address."""
    return entry.local_id if entry.local_id is not None else Identity.parse(str(path.local.address))
