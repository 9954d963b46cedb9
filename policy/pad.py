"""The Peer Authorization Database (RFC 4301 section 4.4.3): who may authenticate how, for which selectors."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from ipaddress import ip_address

from policy.model import AuthenticationMethod, KeyExchange, Where
from policy.path import IpAddress


class IdType(IntEnum):
    """Identification types (RFC 7296 section 3.5)."""

    IPV4_ADDR = 1
    FQDN = 2
    RFC822_ADDR = 3
    IPV6_ADDR = 5
    DER_ASN1_DN = 9
    DER_ASN1_GN = 10
    KEY_ID = 11


@dataclass(frozen=True, slots=True)
class Identity:
    """An ID payload's meaning: a type (unknown types survive) and its octets."""

    type: int
    data: bytes

    @classmethod
    def parse(cls, text: str) -> Identity:
        """Return the identity that *text* names: an address, user@domain, ``keyid:...``, else an FQDN."""
        if text.startswith("keyid:"):
            return cls(IdType.KEY_ID, text[6:].encode())
        try:
            address = ip_address(text)
        except ValueError:
            kind = IdType.RFC822_ADDR if "@" in text else IdType.FQDN
            return cls(kind, text.encode())
        return cls(IdType.IPV4_ADDR if address.version == 4 else IdType.IPV6_ADDR, address.packed)

    def __str__(self) -> str:
        # What a peer sends is printed escaped: it must not be able to forge a log line.
        if self.type in (IdType.IPV4_ADDR, IdType.IPV6_ADDR) and len(self.data) in (4, 16):
            return str(ip_address(self.data))
        if self.type in (IdType.FQDN, IdType.RFC822_ADDR):
            return self.data.decode("ascii", "backslashreplace").encode("unicode_escape").decode("ascii")
        return f"{self.type}:{self.data.hex()}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerEntry:
    """One peer: where it is, who it is, how both sides authenticate, and what it may ask for.

    *name* is stable across generations while endpoint, identities and key exchange settings stay.
    *address* None means any address: such a peer is never dialled, it is known by its identity.
    """

    name: str
    address: IpAddress | None
    local_id: Identity | None
    remote_id: Identity | None
    authentication: tuple[AuthenticationMethod, ...]
    ike: KeyExchange
    #: Ids of the SPD entries whose selectors this peer may obtain (RFC 4301 section 4.4.3.3), in SPD order.
    entries: tuple[str, ...]
    where: Where = field(default=Where(), compare=False)


@dataclass(frozen=True, slots=True)
class Pad:
    """All peers, ordered: those with an address before those without."""

    peers: tuple[PeerEntry, ...] = ()

    def by_name(self, name: str) -> PeerEntry | None:
        """Return the peer called *name*."""
        return next((peer for peer in self.peers if peer.name == name), None)

    def candidates(self, address: IpAddress) -> tuple[PeerEntry, ...]:
        """Return the peers that may speak from *address*: those at it, then those at any address."""
        exact = tuple(peer for peer in self.peers if peer.address == address)
        return exact + tuple(peer for peer in self.peers if peer.address is None)
