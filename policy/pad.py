"""The Peer Authorization Database (RFC 4301 section 4.4.3): who may authenticate how, for which selectors."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import IntEnum
from ipaddress import ip_address
from itertools import zip_longest

from policy.model import AuthenticationMethod, KeyExchange, Where
from policy.path import IpAddress
from policy.selectors import AddressRange


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
    *address* None means any address: such a peer is never dialled, it is known by its identity. If it has *hosts*
    it stands for each host of these ranges, a peer of its own at that address (``at``), which may be dialled.
    """

    name: str
    address: IpAddress | None
    local_id: Identity | None
    remote_id: Identity | None
    authentication: tuple[AuthenticationMethod, ...]
    ike: KeyExchange
    #: Ids of the SPD entries whose selectors this peer may obtain (RFC 4301 section 4.4.3.3), in SPD order.
    entries: tuple[str, ...]
    hosts: tuple[AddressRange, ...] = ()
    #: If it has *hosts*, those that each of the entries is for; empty: each for all of them. What is for one host
    #: is no template.
    reach: tuple[AddressRange, ...] = ()
    #: Whether it is known by the default response rule alone: never dialled.
    responds_only: bool = False
    where: Where = field(default=Where(), compare=False)

    def at(self, address: IpAddress) -> PeerEntry | None:
        """Return the peer that this template stands for at *address*; None if it is none, or not there."""
        if not any(hosts.version == address.version and hosts.contains(int(address)) for hosts in self.hosts):
            return None
        number, version = int(address), address.version
        entries = tuple(
            entry if reach is not None and reach.start == reach.end else f"{entry}@{address}"
            for entry, reach in zip_longest(self.entries, self.reach)
            if reach is None or (reach.start <= number <= reach.end and reach.version == version)
        )
        return replace(
            self, name=peer_at(self.name, address), address=address, entries=entries, hosts=(), reach=()
        )


def is_one_of_many(name: str) -> bool:
    """Whether *name* is that of a template's peer at one address (``peer_at``)."""
    return "=" in name


def peer_at(template: str, address: IpAddress) -> str:
    """Return the name of the peer at *address* that a PAD entry with ``hosts`` stands for."""
    return f"{address}={template}"


@dataclass(frozen=True, slots=True)
class Pad:
    """All peers, ordered: those with an address before those without."""

    peers: tuple[PeerEntry, ...] = ()
    _by_name: dict[str, PeerEntry] = field(default_factory=dict, init=False, repr=False, compare=False)
    _by_address: dict[IpAddress | None, list[PeerEntry]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _templates: list[PeerEntry] = field(default_factory=list, init=False, repr=False, compare=False)
    _anywhere: list[PeerEntry] = field(default_factory=list, init=False, repr=False, compare=False)

    def by_name(self, name: str) -> PeerEntry | None:
        """Return the peer called *name*, which may be a template's at one address."""
        self._index()
        found = self._by_name.get(name)
        if found is not None:
            return found
        host, _, template = name.partition("=")
        stands = self._by_name.get(template)
        try:
            return None if stands is None else stands.at(ip_address(host))
        except ValueError:
            return None

    def names(self, address: IpAddress) -> bool:
        """Whether a peer is at this very *address*."""
        self._index()
        return address in self._by_address

    def settled(self, address: IpAddress) -> list[PeerEntry]:
        """Return the ``candidates`` at *address* that are not just anywhere: a few, whatever the policy."""
        self._index()
        stands = [at for peer in self._templates if (at := peer.at(address)) is not None]
        return self._by_address.get(address, []) + stands

    def anywhere(self) -> list[PeerEntry]:
        """Return the peers that may speak from any address, known by their identity alone."""
        self._index()
        return self._anywhere

    def candidates(self, address: IpAddress) -> tuple[PeerEntry, ...]:
        """Return the peers that may speak from *address*.

        Those at it, then those that stand for it, then those at any address, the default response rule's last.
        """
        self._index()
        stands = [at for peer in self._templates if (at := peer.at(address)) is not None]
        named = self._by_address.get(address, []) + [peer for peer in stands if not peer.responds_only]
        named = named + self._anywhere
        return tuple(named + [peer for peer in stands if peer.responds_only])

    def _index(self) -> None:
        if self._by_name:
            return
        for peer in self.peers:
            self._by_name.setdefault(peer.name, peer)
            self._by_address.setdefault(peer.address, []).append(peer)
            if peer.address is None:
                (self._templates if peer.hosts else self._anywhere).append(peer)
