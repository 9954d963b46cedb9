"""NAT detection (RFC 7296 section 2.23)."""

from __future__ import annotations

import hashlib
import hmac

from ike.constants import NotifyType
from ike.wire.message import Message
from ike.wire.payloads import NotifyPayload
from policy.path import NATT_PORT, Endpoint, Path

#: Tells a peer that we are the same program: it then agrees on UDP encapsulation without a NAT.
VENDOR_ID = hashlib.sha256(b"Mirrorgate").digest()[:16]
#: Set before IKE messages on port 4500, so that they differ from ESP (RFC 3948 section 2.2).
NON_ESP_MARKER = bytes(4)
KEEPALIVE = b"\xff"


def detection_notifies(spi_i: bytes, spi_r: bytes, path: Path, *, force: bytes = b"") -> list[NotifyPayload]:
    """Return both hashes for a message sent on *path*.

    *force* is data in place of our source hash: the peer then sees a NAT and agrees on UDP encapsulation, which
    is what a policy that asks for it needs.
    """
    return [
        NotifyPayload(NotifyType.NAT_DETECTION_SOURCE_IP, data=force or _hash(spi_i, spi_r, path.local)),
        NotifyPayload(NotifyType.NAT_DETECTION_DESTINATION_IP, data=_hash(spi_i, spi_r, path.remote)),
    ]


def detect(message: Message, path: Path) -> tuple[bool, bool] | None:
    """Return whether a NAT is before us and before the peer; None if the peer does not do NAT traversal.

    The hashes are over the header's SPIs as they stand in *message*, and over the path it came on. A peer with
    several addresses may send several source hashes: one that fits is enough.
    """
    header = message.header
    sources = [n.data for n in _notifies(message, NotifyType.NAT_DETECTION_SOURCE_IP)]
    destinations = [n.data for n in _notifies(message, NotifyType.NAT_DETECTION_DESTINATION_IP)]
    if not sources or not destinations:
        return None
    remote = _hash(header.spi_i, header.spi_r, path.remote)
    local = _hash(header.spi_i, header.spi_r, path.local)
    nat_remote = not any(hmac.compare_digest(remote, data) for data in sources)
    nat_local = not any(hmac.compare_digest(local, data) for data in destinations)
    return nat_local, nat_remote


def floated(path: Path) -> Path:
    """Return *path* moved to port 4500 on both sides."""
    return Path(Endpoint(path.local.address, NATT_PORT), Endpoint(path.remote.address, NATT_PORT))


def with_marker(path: Path, data: bytes) -> bytes:
    """Return the UDP payload of an IKE message on *path*."""
    return NON_ESP_MARKER + data if path.local.port == NATT_PORT else data


def fragment_limit(path: Path, fragment_size: int) -> int:
    """Return the largest IKE message in a datagram of *fragment_size* octets of IP packet."""
    address = 20 if path.version == 4 else 40
    marker = len(NON_ESP_MARKER) if path.local.port == NATT_PORT else 0
    return fragment_size - address - 8 - marker


def _notifies(message: Message, kind: NotifyType) -> list[NotifyPayload]:
    return [notify for notify in message.all(NotifyPayload) if notify.type == kind]


def _hash(spi_i: bytes, spi_r: bytes, endpoint: Endpoint) -> bytes:
    data = spi_i + spi_r + endpoint.address.packed + endpoint.port.to_bytes(2, "big")
    return hashlib.sha1(data, usedforsecurity=False).digest()
