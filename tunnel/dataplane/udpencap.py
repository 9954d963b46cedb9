"""What a datagram on port 4500 is (RFC 3948 section 2)."""

from __future__ import annotations

from enum import Enum

#: The non-ESP marker (RFC 3948 section 2.2).
NON_ESP_MARKER = bytes(4)
#: A NAT keepalive (RFC 3948 section 2.3).
KEEPALIVE = b"\xff"


class Kind(Enum):
    """The three kinds of datagram, and what is too short to be any."""

    ESP = "esp"
    IKE = "ike"
    KEEPALIVE = "keepalive"
    SHORT = "short"


def demultiplex(datagram: bytes | memoryview) -> Kind:
    """Return the kind of one UDP payload received on port 4500."""
    if len(datagram) == 1 and datagram == KEEPALIVE:
        return Kind.KEEPALIVE
    if len(datagram) < len(NON_ESP_MARKER):
        return Kind.SHORT
    return Kind.IKE if datagram[:4] == NON_ESP_MARKER else Kind.ESP
