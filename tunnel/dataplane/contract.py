"""The border between control plane and packet path: PF_KEY's, with bursts.

Tables go down (policy snapshot, SAs), exceptions come up (acquire, expire, mapping). Any implementation of
``DataPlane`` gives the same octets for the same calls: there is no clock and no randomness behind it. GCM and
ChaCha20 IVs are the sequence number; a CBC IV is the sequence number encrypted under the SA's key.

Buffers handed in are *moved*: the caller must not touch them afterwards.
"""

from __future__ import annotations

from collections.abc import Container
from collections.abc import Mapping as MappingType
from dataclasses import dataclass
from enum import Enum
from typing import Protocol, TypeAlias

from policy.clock import Nanos
from policy.path import Endpoint, Path
from policy.proposals import ProtocolId, Suite
from policy.secret import Secret
from policy.selectors import Flow, SelectorPair
from policy.spd import Mode, Snapshot

Buffer: TypeAlias = bytes | bytearray | memoryview


class DropReason(Enum):
    """Why a packet was dropped; every drop has exactly one name and is counted exactly once."""

    # outbound
    MALFORMED = "malformed"  # too short, bad version, bad length
    NO_POLICY = "no_policy"  # entered the TUN but no SPD entry matches (RFC 4301 section 5)
    DISCARD_POLICY = "discard_policy"  # an SPD entry says DISCARD
    HOLD_FULL = "hold_full"  # the queue of packets that wait for an SA was full; the oldest went
    HOLD_EXPIRED = "hold_expired"  # waited too long for an SA
    ACQUIRE_FAILED = "acquire_failed"  # the negotiation it waited for failed
    SEQUENCE_OVERFLOW = "sequence_overflow"  # RFC 4303 section 3.3.3
    SA_EXPIRED = "sa_expired"  # hard lifetime in bytes reached
    TOO_BIG = "too_big"  # above the PMTU with DF (or IPv6): Packet Too Big was sent to the source
    TTL_EXPIRED = "ttl_expired"  # hop limit reached zero at encapsulation
    FRAGMENT_PORTS = "fragment_ports"  # a later fragment where the entry needs ports (RFC 4301 section 4.4.1.1)
    UNSUPPORTED = "unsupported"  # extension header chain or protocol that cannot be classified
    FRAGMENT_TIMEOUT = "fragment_timeout"  # the rest of its datagram never came (RFC 8200 section 4.5)
    FRAGMENT_OVERLAP = "fragment_overlap"  # fragments that overlap: the datagram is dropped whole (RFC 5722)
    FRAGMENT_LIMIT = "fragment_limit"  # too many fragments waited; the oldest datagram went
    # inbound
    UNKNOWN_SPI = "unknown_spi"
    SHORT_PACKET = "short_packet"  # ESP/AH packet shorter than its algorithms allow
    REPLAYED = "replayed"  # RFC 4303 section 3.4.3
    OUTSIDE_WINDOW = "outside_window"  # older than the replay window
    INTEGRITY = "integrity"  # ICV does not verify
    BAD_PADDING = "bad_padding"  # pad length or next header impossible after decryption
    DUMMY = "dummy"  # next header 59 (RFC 4303 section 2.6); counted, not an error
    SELECTOR_MISMATCH = "selector_mismatch"  # inner packet outside the SA's selectors (RFC 4301 section 5.2)
    INNER_MALFORMED = "inner_malformed"
    ECN_CE_NOT_ECT = "ecn_ce_not_ect"  # RFC 6040 section 4.2: CE outside, not-ECT inside
    OUTER_FRAGMENT = "outer_fragment"  # an IP fragment at ESP input (RFC 4303 section 3.4.1)
    WRONG_ENCAPSULATION = "wrong_encapsulation"
    WRONG_PROTOCOL = "wrong_protocol"  # ESP for an AH SA's SPI, or AH for an ESP SA's
    BUNDLE_INCOMPLETE = "bundle_incomplete"  # AH or ESP alone where both are demanded
    NAT_CLASH = "nat_clash"  # two transport peers behind one NAT use one pair of ports (RFC 3948 section 5.2)
    ICMP_MISMATCH = "icmp_mismatch"  # an ICMP error about a packet that is not the SA's (RFC 4301 section 6.2)
    INTERNAL = "internal"  # a bug of ours: the burst goes on, an event pages someone


@dataclass(frozen=True, slots=True)
class TunFrame:
    """One read of the TUN: a 10-octet ``virtio_net_hdr`` and a packet (up to 64 KiB with TSO/USO).

    Or a run of reads: small ones of *size* octets each, which lie end to end in *data*. 0 means a single read.
    """

    data: Buffer
    size: int = 0

    def reads(self) -> list[Buffer]:
        """Return the data of each read."""
        if not self.size:
            return [self.data]
        return [self.data[at : at + self.size] for at in range(0, len(self.data), self.size)]


@dataclass(frozen=True, slots=True)
class WireDatagrams:
    """One read of a socket: equal-sized UDP payloads merged by UDP_GRO, or one raw ESP payload.

    *segment_size* is the size of each payload but the last, which may be shorter; 0 means a single payload.
    *path* is seen from us: local is where it arrived. For raw ESP or AH both ports are 0, *data* starts at the ESP
    or AH header, and *header* is the outer IP header with its options or extension headers, as received; where the
    host cannot tell it (UDP, IPv6 without extension headers) it is empty. *tos* is the outer DSCP and ECN octet.
    """

    path: Path
    data: Buffer
    segment_size: int = 0
    tos: int = 0
    #: 50 (ESP, also in UDP) or 51 (AH).
    protocol: int = 50
    header: Buffer = b""


@dataclass(frozen=True, slots=True)
class Transmit:
    """Datagrams for one path: UDP payloads (ESP, or IKE with its marker), or raw ESP payloads.

    When *segment_size* is not 0, every buffer but the last has that length and the last is not longer: the
    host may send them in one call with UDP_SEGMENT. *tos* is the outer DSCP and ECN octet. *df* asks for DF.

    With *whole* the buffers are IP packets, header and all, to be sent as they are (transport mode and AH without
    UDP, and the clear packets of a soft SA): each has its own length, and *tos* and *df* are in its header.
    """

    path: Path
    buffers: tuple[Buffer, ...]
    segment_size: int = 0
    tos: int = 0
    df: bool = False
    whole: bool = False


@dataclass(frozen=True, slots=True)
class WriteTun:
    """Packets for the TUN; each frame is the buffers of one ``writev``, opening with a ``virtio_net_hdr``."""

    frames: tuple[tuple[Buffer, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SaParams:
    """An install request for one SA: one direction, one protocol, one SPI (RFC 4301 section 4.4.2.1)."""

    spi: int
    inbound: bool
    protocol: ProtocolId
    mode: Mode
    suite: Suite
    #: Encryption key without salt; empty for NULL.
    encryption_key: Secret
    #: GCM and ChaCha20 salt (RFC 4106 section 4, RFC 7634 section 2); empty otherwise.
    salt: Secret
    #: Integrity key; empty for AEAD.
    integrity_key: Secret
    path: Path
    #: Negotiated selectors, from our side (local/remote).
    selectors: tuple[SelectorPair, ...]
    #: SPD entry that this SA serves.
    entry: str
    #: The Child SA that the SA belongs to: inbound and outbound halves share it; rising with birth.
    child: int
    replay_window: int = 1024
    #: Octet limits: crossing soft punts Expire(hard=False) once; crossing hard punts Expire(hard=True), drops.
    soft_bytes: int | None = None
    hard_bytes: int | None = None
    #: Outbound only: do not choose this SA until ``activate`` or until its inbound twin has received (rekeying
    #: responder: RFC 7296 section 2.8).
    dormant: bool = False
    #: Whether an authenticated packet from elsewhere may move the path (the peer is behind a NAT).
    follow_nat: bool = False
    #: Transport mode across a NAT: checksums above IP are made anew (RFC 3948 section 3.1.2), and what comes in
    #: tells which of several peers at one address a packet out belongs to (section 5.2).
    nat: bool = False
    #: AH and ESP on one packet: the Child SA of the other half. Packets go through ESP first, then AH; inbound the
    #: one is accepted only inside the other.
    bundle: int | None = None
    #: Octets that tunnel-mode packets are padded to a multiple of (RFC 4303 section 2.7), 0 for none; never beyond
    #: what the path carries.
    padding: int = 0
    #: Both ends let later fragments, which show no ports, follow their first through selectors with ports (RFC
    #: 7296 section 1.3.1, NON_FIRST_FRAGMENTS_ALSO).
    later_fragments: bool = False


@dataclass(frozen=True, slots=True)
class SaStats:
    """Counters of one SA. Times are 0 while nothing was seen."""

    packets: int
    octets: int
    last_used: Nanos
    sequence: int
    drops: MappingType[DropReason, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """Packets since the start; a superpacket counts by its segments.

    ``outbound_in == outbound_out + outbound_drops + held`` and
    ``inbound_in == inbound_out + inbound_drops + control_in`` always hold.
    """

    #: Packets from the TUN, those of them that were sealed, that were dropped, and that wait for an SA now.
    outbound_in: int
    outbound_out: int
    outbound_drops: int
    held: int
    #: ESP packets sent: more than ``outbound_out`` where packets were fragmented before encapsulation.
    esp_out: int
    #: ICMP errors written to the TUN.
    errors_out: int
    #: Datagrams from the wire, those of them whose inner packet went to the TUN, and that were dropped.
    inbound_in: int
    inbound_out: int
    inbound_drops: int
    #: IKE messages and NAT keepalives among them.
    control_in: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TunOffload:
    """Which superpackets the TUN takes (TUNSETOFFLOAD); each can be switched off at run time."""

    tso4: bool = True
    tso6: bool = True
    uso4: bool = False
    uso6: bool = False


# Punts: exceptions that come up.


@dataclass(frozen=True, slots=True)
class Acquire:
    """A packet needs an SA of this SPD entry and none exists. Sent once until ``release`` or ``refuse``."""

    entry: str
    flow: Flow


@dataclass(frozen=True, slots=True)
class Expire:
    """An SA crossed its octet limit or ran out of sequence numbers. *hard*: it is unusable."""

    child: int
    spi: int
    inbound: bool
    hard: bool
    cause: str  # "bytes" | "sequence"


@dataclass(frozen=True, slots=True)
class Mapping:
    """Authenticated packets of this inbound SA now come from another path (NAT rebinding)."""

    child: int
    spi: int
    path: Path


@dataclass(frozen=True, slots=True)
class Activated:
    """The first authenticated packet arrived on a Child SA whose outbound half was dormant."""

    child: int


@dataclass(frozen=True, slots=True)
class UnknownSpi:
    """An ESP packet for no SA (rate limited by the data plane: at most ten a second)."""

    path: Path
    spi: int


@dataclass(frozen=True, slots=True)
class IkeDatagram:
    """An IKE message found on port 4500, marker removed."""

    path: Path
    data: bytes


@dataclass(frozen=True, slots=True)
class InternalError:
    """A bug of ours met while handling one packet; *trace* holds no packet octets."""

    where: str
    trace: str


Punt: TypeAlias = Acquire | Expire | Mapping | Activated | UnknownSpi | IkeDatagram | InternalError
DataPlaneOutput: TypeAlias = Transmit | WriteTun | Punt


class DataPlane(Protocol):
    """What every packet path does. Law: after any call, ``poll`` until it returns None."""

    def load(self, snapshot: Snapshot, now: Nanos) -> None:
        """Swap the policy; held packets of entries that vanished are dropped."""

    def add_sa(self, params: SaParams, now: Nanos) -> None:
        """Install an SA. ValueError for a duplicate inbound SPI or an algorithm it cannot do."""

    def activate(self, child: int) -> None:
        """Let the dormant outbound SA of *child* be chosen."""

    def delete_sa(self, spi: int, *, inbound: bool, child: int | None = None) -> SaStats | None:
        """Remove an SA and wipe its keys; return its last counters, or None if there was none.

        Outbound SPIs are the peers' choice and may coincide: *child* tells them apart, else the oldest goes.
        """

    def update_path(self, child: int, path: Path) -> None:
        """Send the packets of *child* along *path* from now on."""

    def set_path_mtu(self, remote: Endpoint, mtu: int, now: Nanos) -> None:
        """Record the path MTU (octets of outer IP packet) toward *remote*, learned from ICMP or the host."""

    def query_sa(self, spi: int, *, inbound: bool, child: int | None = None) -> SaStats | None:
        """Return the counters of an SA."""

    def known_spis(self) -> Container[int]:
        """Return the SPIs of the inbound SAs, as a view that stays true: others may be dropped unseen."""

    def drop_unknown(self, count: int) -> None:
        """Count packets that came for unknown SPIs and were dropped unseen."""

    def send_dummy(self, child: int, octets: int, now: Nanos) -> None:
        """Send a packet that means nothing on the tunnel-mode ESP SA of *child* (RFC 4303 section 2.6)."""

    def release(self, entry: str, now: Nanos) -> None:
        """Send the packets held for *entry*, in arrival order, now that an SA exists."""

    def refuse(self, entry: str, now: Nanos, retry_after: Nanos) -> None:
        """Drop the packets held for *entry* (ACQUIRE_FAILED); punt no Acquire for *retry_after* nanoseconds."""

    def pass_clear(self, entry: str, now: Nanos, until: Nanos) -> None:
        """Send the packets held for *entry* in clear, and until *until* all that still come for it: a soft SA."""

    def outbound(self, frames: list[TunFrame], now: Nanos) -> None:
        """Protect packets read from the TUN."""

    def inbound(self, datagrams: list[WireDatagrams], now: Nanos) -> None:
        """Open packets read from port 4500 or from the raw socket; IKE messages are punted."""

    def handle_timeout(self, now: Nanos) -> None:
        """Expire held packets. Spurious calls are harmless."""

    def deadline(self) -> Nanos | None:
        """Return when ``handle_timeout`` is next wanted."""

    def poll(self) -> DataPlaneOutput | None:
        """Return the next output, or None."""

    def drops(self) -> MappingType[DropReason, int]:
        """Return every drop counter since the start."""

    def counters(self) -> Counters:
        """Return the packet counts since the start."""

    def set_offload(self, offload: TunOffload) -> None:
        """Say which superpackets the TUN takes from now on."""

    def tun_mtu(self) -> int:
        """Return the largest inner packet that every present outbound SA carries whole (default 1400)."""
