"""The Security Association Database (RFC 4301 section 4.4.2): SAs by SPI, by SPD entry and by Child SA."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TypeVar

from cryptography.exceptions import InvalidTag

from policy.clock import Nanos
from policy.path import Path
from policy.proposals import ProtocolId
from policy.selectors import Flow
from policy.spd import Mode
from tunnel.dataplane import ah
from tunnel.dataplane.contract import Buffer, DropReason, SaParams, SaStats
from tunnel.dataplane.macs import Mac, mac_of
from tunnel.dataplane.natflows import NatFlows
from tunnel.dataplane.replay import ReplayWindow
from tunnel.dataplane.transforms import NO_ESP, Aead, EspTransform, Separate, esp_transform

#: SPIs up to 255 are reserved (RFC 4303 section 2.1).
_FIRST_SPI = 256
_NEVER = 1 << 128
#: Inbound flows remembered as inside the SA's selectors, per SA; more are looked up each time.
MAX_ALLOWED_FLOWS = 16384


_Key = TypeVar("_Key", int, str)
_Sa = TypeVar("_Sa", "InboundSa", "OutboundSa")


class Sa:
    """What both directions share: identity, algorithms, octet limits, counters."""

    __slots__ = (
        "drops", "expired", "hard", "last_used", "mac", "next_limit", "octets", "packets", "params", "path",
        "plain", "transform",
    )  # fmt: skip

    def __init__(self, params: SaParams) -> None:
        if not _FIRST_SPI <= params.spi < 2**32:
            raise ValueError(f"SPI {params.spi:#x} is reserved or not 32 bits")
        self.params = params
        #: ESP's algorithms (NO_ESP for AH), and AH's.
        self.transform = _transform(params)
        self.mac = _mac(params)
        #: Whether it is ESP in tunnel mode by itself: the way through the burst loops that is made for speed.
        self.plain = self.mac is None and params.mode is Mode.TUNNEL and params.bundle is None
        self.path = params.path
        self.packets = 0
        self.octets = 0
        self.last_used: Nanos = 0
        self.drops: dict[DropReason, int] = {}
        self.hard = _NEVER if params.hard_bytes is None else params.hard_bytes
        #: Octet count at which the burst loops must look at the limits.
        self.next_limit = min(self.hard, _NEVER if params.soft_bytes is None else params.soft_bytes)
        #: Whether the hard limit was reported.
        self.expired = False

    def drop(self, reason: DropReason, count: int) -> None:
        """Count dropped packets."""
        self.drops[reason] = self.drops.get(reason, 0) + count

    def wipe(self) -> None:
        """Overwrite the keys as far as Python allows."""
        for secret in (self.params.encryption_key, self.params.salt, self.params.integrity_key):
            secret.wipe()


class OutboundSa(Sa):
    """An SA that sends: the sequence number counter and the largest packet it carries."""

    __slots__ = (
        "capacity", "cuts", "dormant", "inner", "mtu", "padding", "sequence", "sequence_limit", "sequence_soft"
    )  # fmt: skip

    def __init__(self, params: SaParams) -> None:
        super().__init__(params)
        #: The last number used; the first packet carries 1 (RFC 4303 section 2.2).
        self.sequence = 0
        self.sequence_limit = 2**64 - 1 if params.suite.esn else 2**32 - 1
        #: Past this a successor is asked for: the last sixteenth is four minutes at a million packets a second.
        self.sequence_soft = self.sequence_limit - (self.sequence_limit >> 4)
        self.dormant = params.dormant
        self.padding = params.padding
        #: Whether fragments, of which the later show no ports, may go into it.
        self.cuts = params.later_fragments or all(pair.any_ports for pair in params.selectors)
        #: The ESP SA whose packets go into this AH SA, where both are a bundle and there.
        self.inner: OutboundSa | None = None
        #: The largest packet from the TUN that fits the path MTU, and that MTU; kept current by the data plane.
        self.capacity = 0
        self.mtu = 0

    def stats(self) -> SaStats:
        """Return the counters."""
        return SaStats(self.packets, self.octets, self.last_used, self.sequence, dict(self.drops))


class InboundSa(Sa):
    """An SA that receives: the replay window, and the flows found inside its selectors."""

    __slots__ = (
        "allowed", "awaiting", "decrypt", "esn", "front", "front_key", "front_tos", "open", "overhead",
        "reported_path", "salt", "seen_path", "serves", "smallest", "window",
    )  # fmt: skip

    def __init__(self, params: SaParams) -> None:
        super().__init__(params)
        self.window = ReplayWindow(params.replay_window, esn=params.suite.esn)
        self.esn = params.suite.esn
        transform = self.transform
        #: The AEAD's decryption, or None where *open* does all: bound here, because every packet needs them.
        self.decrypt = transform.cipher.decrypt if isinstance(transform, Aead) else None
        self.salt = transform.salt if isinstance(transform, Aead) else b""
        self.open = transform.open if isinstance(transform, Separate) else _no_open
        #: Octets around the plaintext, and of the shortest ESP or AH packet that these algorithms make.
        self.overhead = 8 + transform.iv_size + transform.icv_size
        self.smallest = self.overhead + transform.block
        if self.mac is not None:
            self.overhead = self.smallest = ah.length(self.mac, params.path.version)
        #: Flows that matched the selectors and the SPD, by header octets where that is quick, else by outline.
        self.allowed: set[Hashable] = set()
        #: In transport mode, the IP header made last, what it was made for, and its TOS where others may have it.
        self.front = b""
        self.front_tos = -1
        self.front_key: tuple[Path, int, int, int] | None = None
        #: Whether the outbound twin is dormant until a packet arrives here.
        self.awaiting = False
        #: Whether the SPD entry is still in force.
        self.serves = False
        #: The path of the last authentic packet that was looked at, and the one that a Mapping told of.
        self.seen_path: Path | None = None
        self.reported_path: Path | None = None

    def covers(self, flow: Flow) -> bool:
        """Whether an inner packet lies inside the negotiated selectors (RFC 4301 section 5.2 step 4)."""
        return any(pair.matches_inbound(flow) for pair in self.params.selectors)

    def stats(self) -> SaStats:
        """Return the counters."""
        return SaStats(self.packets, self.octets, self.last_used, self.window.top, dict(self.drops))


class Sad:
    """All SAs. Outbound SPIs are the peers' choice, so two peers may choose the same."""

    __slots__ = ("_inbound_of", "_outbound_of", "by_entry", "inbound", "nat_flows", "outbound")

    def __init__(self) -> None:
        self.inbound: dict[int, InboundSa] = {}
        self.outbound: dict[int, list[OutboundSa]] = {}
        #: Outbound SAs of each SPD entry, newest Child SA first.
        self.by_entry: dict[str, list[OutboundSa]] = {}
        #: The same by Child SA.
        self._outbound_of: dict[int, list[OutboundSa]] = {}
        self._inbound_of: dict[int, list[InboundSa]] = {}
        #: Which of several peers behind one NAT a flow belongs to.
        self.nat_flows = NatFlows()

    def add(self, params: SaParams) -> InboundSa | OutboundSa:
        """Install an SA. ValueError for a duplicate inbound SPI or anything that it cannot do."""
        if params.inbound:
            if params.spi in self.inbound:
                raise ValueError(f"inbound SPI {params.spi:#x} is in use")
            inbound = InboundSa(params)
            inbound.awaiting = any(sa.dormant for sa in self.outbound_of(params.child))
            self.inbound[params.spi] = inbound
            self._inbound_of.setdefault(params.child, []).append(inbound)
            return inbound
        if any(sa.params.child == params.child for sa in self.outbound.get(params.spi, ())):
            raise ValueError(f"outbound SPI {params.spi:#x} of Child SA {params.child} is in use")
        outbound = OutboundSa(params)
        self.outbound.setdefault(params.spi, []).append(outbound)
        self._outbound_of.setdefault(params.child, []).append(outbound)
        siblings = self.by_entry.setdefault(params.entry, [])
        siblings.insert(0, outbound)
        siblings.sort(key=lambda sa: -sa.params.child)
        if params.bundle is not None:
            for other in self.outbound_of(params.bundle):
                if other.params.bundle == params.child and (other.mac is None) != (outbound.mac is None):
                    outer, inner = (outbound, other) if other.mac is None else (other, outbound)
                    outer.inner = inner
        if params.dormant:
            for twin in self.inbound_of(params.child):
                twin.awaiting = True
        return outbound

    def remove(self, spi: int, *, inbound: bool, child: int | None = None) -> InboundSa | OutboundSa | None:
        """Take out and return an SA; *child* tells outbound SAs of equal SPI apart, else the oldest goes."""
        if inbound:
            gone = self.inbound.pop(spi, None)
            if gone is not None:
                _discard(self._inbound_of, gone.params.child, gone)
            return gone
        outbound = self.find_outbound(spi, child)
        if outbound is None:
            return None
        outbound.inner = None
        if outbound.params.bundle is not None:
            for other in self.outbound_of(outbound.params.bundle):
                if other.inner is outbound:
                    other.inner = None
        _discard(self.outbound, spi, outbound)
        _discard(self.by_entry, outbound.params.entry, outbound)
        _discard(self._outbound_of, outbound.params.child, outbound)
        return outbound

    def find_outbound(self, spi: int, child: int | None = None) -> OutboundSa | None:
        """Return the oldest outbound SA of *spi*, or that of *child*."""
        return next((sa for sa in self.outbound.get(spi, ()) if child in (None, sa.params.child)), None)

    def outbound_of(self, child: int) -> list[OutboundSa]:
        """Return the outbound SAs of a Child SA."""
        return list(self._outbound_of.get(child, ()))

    def inbound_of(self, child: int) -> list[InboundSa]:
        """Return the inbound SAs of a Child SA."""
        return list(self._inbound_of.get(child, ()))

    def choose(self, entry: str, flow: Flow) -> OutboundSa | None:
        """Return the newest SA of *entry* whose selectors hold *flow*, a usable one before a dormant one.

        Of several peers behind one NAT only the one that speaks in *flow*, if any did.
        """
        fitting = [
            sa
            for sa in self.by_entry.get(entry, ())
            if any(pair.matches_outbound(flow) for pair in sa.params.selectors) and self._leads(sa)
        ]
        if any(sa.params.nat for sa in fitting):
            peer = self.nat_flows.peer_of(flow)
            fitting = [sa for sa in fitting if peer in (None, sa.path.remote)]
        return next((sa for sa in fitting if not sa.dormant), fitting[0] if fitting else None)

    @staticmethod
    def _leads(sa: OutboundSa) -> bool:
        """Whether packets may be given to *sa*: of a bundle it is AH, once ESP is there too."""
        return sa.params.bundle is None or sa.inner is not None


def _no_open(packet: Buffer, high: bytes) -> bytes:
    raise InvalidTag


def _transform(params: SaParams) -> EspTransform:
    """ESP's algorithms. ValueError for what does not exist here."""
    if params.protocol is not ProtocolId.ESP:
        return NO_ESP
    return esp_transform(params.suite, params.encryption_key, params.salt, params.integrity_key)


def _mac(params: SaParams) -> Mac | None:
    if params.protocol is not ProtocolId.AH:
        return None
    if params.path.encapsulated:
        raise ValueError("AH cannot be carried in UDP")
    return mac_of(params.suite, params.integrity_key, params.salt)


def _discard(table: dict[_Key, list[_Sa]], key: _Key, sa: _Sa) -> None:
    """Take *sa* out of the list under *key*, and the list too when it is empty."""
    table[key].remove(sa)
    if not table[key]:
        del table[key]
