"""What the gateway needs of an IKE endpoint, and how it makes one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, TypeAlias

from ike.events import IkeOutput, IkeSaKeys
from ike.status import IkeSaStatus
from policy.clock import Entropy, Nanos
from policy.path import IpAddress, Path
from policy.selectors import Flow
from policy.spd import Snapshot

#: When the last authenticated inbound packet of a Child SA came, 0 if none did.
LastHeard: TypeAlias = Callable[[int], Nanos]


class IkeControl(Protocol):
    """The control plane. Law: after any call, ``poll`` until it returns None."""

    def load(self, snapshot: Snapshot, now: Nanos) -> None:
        """Swap PAD and SPD; SAs that the new policy does not allow are deleted with a reason."""

    def receive(self, path: Path, data: bytes, now: Nanos) -> None:
        """Take one IKE message, its non-ESP marker removed."""

    def acquire(self, entry: str, flow: Flow | None, now: Nanos) -> None:
        """Negotiate a Child SA for *entry*; it always ends in ChildInstalled or AcquireFailed."""

    def expire(self, child: int, hard: bool, now: Nanos) -> None:
        """Take note that *child* reached a limit in octets or sequence numbers."""

    def mapping(self, child: int, path: Path, now: Nanos) -> None:
        """Take note that authenticated ESP of *child* came from a new path."""

    def unknown_spi(self, path: Path, spi: int, now: Nanos) -> None:
        """Take the hint that somebody sends on an SA that we do not have."""

    def source(self, remote: IpAddress, local: IpAddress) -> None:
        """Speak to *remote* from *local*."""

    def rekey_child(self, child: int, now: Nanos) -> None:
        """Rekey a Child SA now."""

    def rekey_ike(self, peer: str, now: Nanos) -> None:
        """Rekey the IKE SAs with *peer* now."""

    def terminate_child(self, child: int, now: Nanos, reason: str = "terminated by the operator") -> None:
        """Delete a Child SA."""

    def terminate_peer(self, peer: str, now: Nanos) -> None:
        """Delete the IKE SAs with *peer*."""

    def shutdown(self, now: Nanos) -> None:
        """Delete everything and dial no more."""

    def handle_timeout(self, now: Nanos) -> None:
        """Do what is due. Spurious calls are harmless."""

    def deadline(self) -> Nanos | None:
        """Return when ``handle_timeout`` is next wanted."""

    def poll(self) -> IkeOutput | None:
        """Return the next output, or None."""

    def status(self, now: Nanos) -> list[IkeSaStatus]:
        """Return every IKE SA."""

    def export_keys(self) -> list[IkeSaKeys]:
        """Return the keys of every IKE SA, for the operator's capture."""

    def counters(self) -> Mapping[str, int]:
        """Return what happened to messages that led nowhere."""

    def failures(self) -> Mapping[str, str]:
        """Return why the last exchange with a peer failed, by peer."""


class ControlFactory(Protocol):
    """Makes the control plane: ``IkeEndpoint`` is one."""

    def __call__(self, *, entropy: Entropy, last_heard: LastHeard) -> IkeControl:
        """Return a control plane."""
