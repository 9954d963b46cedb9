"""A control plane without IKE, as with manual keying: both ends derive the same SAs from what their policies say.

It lets the simulator and the data plane be tried without the protocol between them.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Mapping as MappingType

from ike.events import ChildInstalled, ChildRemoved, ChildSa, IkeOutput, IkeSaKeys
from ike.status import IkeSaStatus
from policy.clock import Entropy, Nanos
from policy.model import Encapsulation
from policy.path import NATT_PORT, RAW_PORT, Endpoint, IpAddress, Path
from policy.proposals import Encr, ProtocolId, Suite
from policy.secret import Secret
from policy.selectors import Flow, SelectorPair
from policy.spd import Mode, Snapshot
from tunnel.control import LastHeard


class ManualControl:
    """Installs the SA of each entry as soon as a policy is loaded."""

    def __init__(self, *, entropy: Entropy, last_heard: LastHeard) -> None:
        self._said: deque[IkeOutput] = deque()
        self._installed: list[ChildSa] = []

    def load(self, snapshot: Snapshot, now: Nanos) -> None:
        """Install every entry that protects, toward its tunnel endpoint, in place of what there was."""
        for sa in self._installed:
            self._said.append(ChildRemoved(sa.child, sa.spi_in, sa.spi_out, "policy changed"))
        self._installed = []
        for number, entry in enumerate(snapshot.spd.entries, 1):
            protection = entry.protection
            if protection is None or protection.tunnel_remote is None:
                continue
            remote = protection.tunnel_remote
            local = next(
                address
                for address in snapshot.local_addresses
                if address.version == remote.version and _outer(address)
            )
            port = NATT_PORT if protection.encapsulation is Encapsulation.UDP else RAW_PORT
            received, sent = _keys(entry.selectors), _keys(entry.selectors.mirror())
            sa = ChildSa(
                child=number,
                peer=protection.peer,
                entry=entry.id,
                ike_spi=1,
                protocol=ProtocolId.ESP,
                mode=Mode.TUNNEL,
                suite=Suite(ProtocolId.ESP, Encr.AES_GCM_16, 128),
                spi_in=int.from_bytes(received[:4], "big") | 0x100,
                spi_out=int.from_bytes(sent[:4], "big") | 0x100,
                keys_in=(Secret(received[4:20]), Secret(received[20:24]), Secret(b"")),
                keys_out=(Secret(sent[4:20]), Secret(sent[20:24]), Secret(b"")),
                selectors=(entry.selectors,),
                path=Path(Endpoint(local, port), Endpoint(remote, port)),
                soft_bytes=None,
                hard_bytes=None,
            )
            self._installed.append(sa)
            self._said.append(ChildInstalled(sa))

    def poll(self) -> IkeOutput | None:
        """Return the next output, or None."""
        return self._said.popleft() if self._said else None

    def receive(self, path: Path, data: bytes, now: Nanos) -> None:
        """There is no IKE."""

    def acquire(self, entry: str, flow: Flow | None, now: Nanos) -> None:
        """Everything is up already."""

    def expire(self, child: int, hard: bool, now: Nanos) -> None:
        """Manual SAs have no end."""

    def mapping(self, child: int, path: Path, now: Nanos) -> None:
        """Manual SAs do not move."""

    def unknown_spi(self, path: Path, spi: int, now: Nanos) -> None:
        """Nobody can be asked."""

    def source(self, remote: IpAddress, local: IpAddress) -> None:
        """There is no IKE."""

    def rekey_child(self, child: int, now: Nanos) -> None:
        """There are no other keys."""

    def rekey_ike(self, peer: str, now: Nanos) -> None:
        """There is no IKE SA."""

    def terminate_child(self, child: int, now: Nanos, reason: str = "") -> None:
        """Manual SAs have no end."""

    def terminate_peer(self, peer: str, now: Nanos) -> None:
        """There is no IKE SA."""

    def shutdown(self, now: Nanos) -> None:
        """There is no IKE SA."""

    def handle_timeout(self, now: Nanos) -> None:
        """Nothing is ever due."""

    def deadline(self) -> Nanos | None:
        """Nothing is ever due."""
        return None

    def status(self, now: Nanos) -> list[IkeSaStatus]:
        """There is no IKE SA."""
        return []

    def export_keys(self) -> list[IkeSaKeys]:
        """It has no IKE SAs."""
        return []

    def counters(self) -> MappingType[str, int]:
        """Nothing is ignored here."""
        return {}

    def failures(self) -> MappingType[str, str]:
        """Nothing was tried."""
        return {}


def _keys(selectors: SelectorPair) -> bytes:
    """Return SPI, key and salt for what arrives under *selectors*."""
    return hashlib.sha256(f"{selectors}".encode()).digest()


def _outer(address: IpAddress) -> bool:
    return not str(address).startswith("10.")
