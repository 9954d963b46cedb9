"""Packets, SAs and data planes for tests of the packet path."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_address, ip_network

from policy.lifetimes import Lifetime
from policy.model import SecurityMethod
from policy.path import Endpoint, Path
from policy.proposals import Encr, Integ, ProtocolId, Suite
from policy.secret import Secret
from policy.selectors import ANY_PORT, AddressRange, PortRange, SelectorPair, TrafficSelector
from policy.spd import Disposition, Mode, Protection, Snapshot, Spd, SpdEntry
from tests.support.sim.packets import outer
from tunnel.dataplane.contract import (
    Buffer,
    DataPlaneOutput,
    SaParams,
    Transmit,
    TunFrame,
    WireDatagrams,
    WriteTun,
)
from tunnel.dataplane.offload import VNET, VNET_SIZE
from tunnel.dataplane.reference import ReferenceDataPlane

A4, B4 = "10.1.0.5", "10.2.0.7"
A6, B6 = "2001:db8:1::5", "2001:db8:2::7"
GCM = Suite(ProtocolId.ESP, Encr.AES_GCM_16, 256)
CHACHA = Suite(ProtocolId.ESP, Encr.CHACHA20_POLY1305)
CBC_SHA256 = Suite(ProtocolId.ESP, Encr.AES_CBC, 128, Integ.HMAC_SHA2_256_128)
CBC_SHA384 = Suite(ProtocolId.ESP, Encr.AES_CBC, 192, Integ.HMAC_SHA2_384_192)
CBC_SHA512 = Suite(ProtocolId.ESP, Encr.AES_CBC, 256, Integ.HMAC_SHA2_512_256)
NULL_SHA256 = Suite(ProtocolId.ESP, Encr.NULL, 0, Integ.HMAC_SHA2_256_128)
GMAC = Suite(ProtocolId.ESP, Encr.NULL_AUTH_AES_GMAC, 128)
NULL_SHA512 = Suite(ProtocolId.ESP, Encr.NULL, 0, Integ.HMAC_SHA2_512_256)
SUITES = (GCM, CHACHA, CBC_SHA256, CBC_SHA384, CBC_SHA512, NULL_SHA256, NULL_SHA512, GMAC)

_INTEG_KEY = {
    Integ.NONE: 0,
    Integ.HMAC_SHA2_256_128: 32,
    Integ.HMAC_SHA2_384_192: 48,
    Integ.HMAC_SHA2_512_256: 64,
    Integ.HMAC_SHA1_96: 20,
    Integ.HMAC_MD5_96: 16,
    Integ.AES_XCBC_96: 16,
    Integ.AES_128_GMAC: 16,
    Integ.AES_192_GMAC: 24,
    Integ.AES_256_GMAC: 32,
}
_GMAC = (Integ.AES_128_GMAC, Integ.AES_192_GMAC, Integ.AES_256_GMAC)
AHS = tuple(
    Suite(ProtocolId.AH, integ=integ, esn=esn)
    for esn in (False, True)
    for integ in _INTEG_KEY
    if integ is not Integ.NONE
)


def keys(suite: Suite) -> tuple[bytes, bytes, bytes]:
    """Return encryption key, salt and integrity key of the sizes that *suite* takes."""
    size = {Encr.NULL: 0, Encr.CHACHA20_POLY1305: 32}.get(suite.encr or Encr.NULL, suite.key_bits // 8)
    return (
        bytes(range(1, size + 1)),
        b"salt" if suite.aead or GMAC.encr is suite.encr or suite.integ in _GMAC else b"",
        bytes(range(100, 100 + _INTEG_KEY[suite.integ])),
    )


def path(local: str = "192.0.2.1", remote: str = "192.0.2.2", port: int = 4500) -> Path:
    """Return a path; *port* 0 is raw ESP."""
    return Path(Endpoint(ip_address(local), port), Endpoint(ip_address(remote), port))


def mirrored(one: Path) -> Path:
    """Return the path as the other end sees it."""
    return Path(one.remote, one.local)


def selector_pair(
    local: str,
    remote: str,
    protocol: int = 0,
    local_ports: PortRange = ANY_PORT,
    remote_ports: PortRange = ANY_PORT,
) -> SelectorPair:
    """Return selectors between two networks."""
    return SelectorPair(
        TrafficSelector(protocol, AddressRange.network(ip_network(local)), local_ports),
        TrafficSelector(protocol, AddressRange.network(ip_network(remote)), remote_ports),
    )


ANY4 = selector_pair("0.0.0.0/0", "0.0.0.0/0")
ANY6 = selector_pair("::/0", "::/0")


def entry(
    name: str, selectors: SelectorPair, disposition: Disposition = Disposition.PROTECT, *, window: int = 1024
) -> SpdEntry:
    """Return an SPD entry."""
    protection = Protection(
        peer="peer", mode=Mode.TUNNEL, methods=(SecurityMethod(()),), lifetime=Lifetime(), replay_window=window
    )
    return SpdEntry(
        id=name,
        rule=name,
        filter_list=name,
        filter_action=name,
        selectors=selectors,
        outbound=True,
        inbound=True,
        disposition=disposition,
        protection=protection if disposition is Disposition.PROTECT else None,
    )


def snapshot(*entries: SpdEntry, generation: int = 1) -> Snapshot:
    """Return a policy with these entries; by default everything of either family is protected."""
    return Snapshot(
        generation=generation, policy="test", spd=Spd(entries or (entry("v4", ANY4), entry("v6", ANY6)))
    )


def sa_params(
    suite: Suite = GCM,
    *,
    inbound: bool,
    spi: int = 0x1001,
    along: Path | None = None,
    name: str = "v4",
    child: int = 1,
    selectors: tuple[SelectorPair, ...] = (ANY4, ANY6),
    window: int = 1024,
    soft_bytes: int | None = None,
    hard_bytes: int | None = None,
    dormant: bool = False,
    follow_nat: bool = False,
    mode: Mode = Mode.TUNNEL,
    nat: bool = False,
    bundle: int | None = None,
    padding: int = 0,
    later_fragments: bool = False,
) -> SaParams:
    """Return an install request with the test keys."""
    encryption, salt, integrity = keys(suite)
    return SaParams(
        spi=spi,
        inbound=inbound,
        protocol=suite.protocol,
        mode=mode,
        suite=suite,
        encryption_key=Secret(encryption),
        salt=Secret(salt),
        integrity_key=Secret(integrity),
        path=along or path(),
        selectors=selectors,
        entry=name,
        child=child,
        replay_window=window,
        soft_bytes=soft_bytes,
        hard_bytes=hard_bytes,
        dormant=dormant,
        follow_nat=follow_nat,
        nat=nat,
        bundle=bundle,
        padding=padding,
        later_fragments=later_fragments,
    )


class Pair:
    """Two data planes: *left* sends what comes from its TUN to *right* over one SA for each inner family."""

    def __init__(self, suite: Suite = GCM, along: Path | None = None, **sa: object) -> None:
        self.path = along or path()
        self.left, self.right = ReferenceDataPlane(), ReferenceDataPlane()
        for plane in (self.left, self.right):
            plane.load(snapshot(), 0)
        for name, spi in (("v4", 0x1004), ("v6", 0x1006)):
            options = {"name": name, "spi": spi, "child": spi, **sa}
            self.left.add_sa(sa_params(suite, inbound=False, along=self.path, **options), 0)  # type: ignore[arg-type]
            self.right.add_sa(
                sa_params(suite, inbound=True, along=mirrored(self.path), **options),  # type: ignore[arg-type]
                0,
            )

    def send(self, *frames: bytes, now: int = 1) -> list[Transmit]:
        """Return what *left* transmits for frames from its TUN."""
        self.left.outbound([TunFrame(frame) for frame in frames], now)
        return [output for output in drain(self.left) if isinstance(output, Transmit)]

    def receive(self, transmits: Iterable[Transmit], now: int = 1) -> list[tuple[Buffer, ...]]:
        """Return what *right* writes to its TUN when the transmitted datagrams arrive, merged by GRO."""
        self.right.inbound([item for transmit in transmits for item in arrivals(transmit)], now)
        return written(drain(self.right))


def drain(plane: ReferenceDataPlane) -> list[DataPlaneOutput]:
    """Return all outputs."""
    outputs: list[DataPlaneOutput] = []
    while (output := plane.poll()) is not None:
        outputs.append(output)
    return outputs


def written(outputs: Iterable[DataPlaneOutput]) -> list[tuple[Buffer, ...]]:
    """Return the frames written to the TUN."""
    return [frame for output in outputs if isinstance(output, WriteTun) for frame in output.frames]


def arrival(transmit: Transmit, tos: int | None = None) -> WireDatagrams:
    """Return a transmitted group as the other end's socket delivers it; of whole packets the first alone."""
    if transmit.whole:
        return arrivals(transmit)[0]
    return WireDatagrams(
        path=mirrored(transmit.path),
        data=b"".join(bytes(buffer) for buffer in transmit.buffers),
        segment_size=transmit.segment_size or len(transmit.buffers[0]),
        tos=transmit.tos if tos is None else tos,
    )


def arrivals(transmit: Transmit) -> list[WireDatagrams]:
    """Return what the other end's sockets deliver, each whole packet by itself."""
    if not transmit.whole:
        return [arrival(transmit)]
    found = []
    for buffer in map(bytes, transmit.buffers):
        protocol, start = outer(buffer)[:2]
        found.append(WireDatagrams(mirrored(transmit.path), buffer[start:], 0, 0, protocol, buffer[:start]))
    return found


def datagrams(transmits: Iterable[Transmit]) -> list[bytes]:
    """Return every ESP packet of *transmits*."""
    return [bytes(buffer) for transmit in transmits for buffer in transmit.buffers]


def tun(
    packet: bytes, gso_type: int = 0, gso_size: int = 0, flags: int = 0, start: int = 0, offset: int = 0
) -> bytes:
    """Return *packet* as the TUN delivers it."""
    return VNET.pack(flags, gso_type, 0, gso_size, start, offset) + packet


def join(frame: Sequence[Buffer]) -> tuple[tuple[int, ...], bytes]:
    """Return virtio header fields and packet of one written frame."""
    whole = b"".join(bytes(part) for part in frame)
    return VNET.unpack_from(whole), whole[VNET_SIZE:]


def stands_for(frame: Sequence[Buffer]) -> int:
    """Return how many packets a frame is cut into by the kernel."""
    (_flags, gso_type, header, size, _start, _offset), packet = join(frame)
    return -(-(len(packet) - header) // size) if gso_type else 1


def packet_of(frame: Sequence[Buffer]) -> bytes:
    """Return the packet of one written frame."""
    return join(frame)[1]


def _sum16(data: bytes) -> int:
    """The one's complement sum by RFC 1071's loop: slow, and not the code under test."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def ip4(
    protocol: int,
    payload: bytes,
    *,
    source: str = A4,
    destination: str = B4,
    tos: int = 0,
    ttl: int = 64,
    identification: int = 7,
    flags: int = 0x4000,
    options: bytes = b"",
) -> bytes:
    """Return an IPv4 packet. *flags* is the word of flags and fragment offset."""
    size = 20 + len(options)
    head = struct.pack(
        "!BBHHHBBH4s4s",
        0x40 | size // 4,
        tos,
        size + len(payload),
        identification,
        flags,
        ttl,
        protocol,
        0,
        ip_address(source).packed,
        ip_address(destination).packed,
    )
    head += options
    return head[:10] + struct.pack("!H", _sum16(head) ^ 0xFFFF) + head[12:] + payload


def ip6(
    protocol: int,
    payload: bytes,
    *,
    source: str = A6,
    destination: str = B6,
    traffic_class: int = 0,
    hop_limit: int = 64,
    flow_label: int = 0,
) -> bytes:
    """Return an IPv6 packet."""
    word = 6 << 28 | traffic_class << 20 | flow_label
    addresses = ip_address(source).packed + ip_address(destination).packed
    return struct.pack("!IHBB", word, len(payload), protocol, hop_limit) + addresses + payload


def udp4(data: bytes, *, sport: int = 1000, dport: int = 2000, **ip: object) -> bytes:
    """Return a UDP datagram in IPv4, with its checksum."""
    ip_packet = ip4(17, b"", **ip)  # type: ignore[arg-type]
    return ip4(17, _udp(data, sport, dport, ip_packet[12:20]), **ip)  # type: ignore[arg-type]


def udp6(data: bytes, *, sport: int = 1000, dport: int = 2000, **ip: object) -> bytes:
    """Return a UDP datagram in IPv6."""
    ip_packet = ip6(17, b"", **ip)  # type: ignore[arg-type]
    return ip6(17, _udp(data, sport, dport, ip_packet[8:40]), **ip)  # type: ignore[arg-type]


def tcp4(data: bytes, *, ip: Mapping[str, object] | None = None, **tcp: object) -> bytes:
    """Return a TCP segment in IPv4, with its checksum."""
    options = ip or {}
    addresses = ip4(6, b"", **options)[12:20]  # type: ignore[arg-type]
    return ip4(6, tcp_segment(data, addresses, **tcp), **options)  # type: ignore[arg-type]


def tcp6(data: bytes, *, ip: Mapping[str, object] | None = None, **tcp: object) -> bytes:
    """Return a TCP segment in IPv6."""
    options = ip or {}
    addresses = ip6(6, b"", **options)[8:40]  # type: ignore[arg-type]
    return ip6(6, tcp_segment(data, addresses, **tcp), **options)  # type: ignore[arg-type]


def tcp_segment(
    data: bytes,
    addresses: bytes,
    *,
    sport: int = 1000,
    dport: int = 2000,
    seq: int = 1,
    ack: int = 9,
    flags: int = 0x10,
    window: int = 500,
    options: bytes = b"",
    urgent: int = 0,
) -> bytes:
    """Return a TCP segment whose pseudo-header has these packed addresses."""
    doff = (20 + len(options)) // 4 << 4
    head = struct.pack("!HHIIBBHHH", sport, dport, seq % 2**32, ack, doff, flags, window, 0, urgent) + options
    pseudo = addresses + struct.pack("!II", len(head) + len(data), 6)
    return head[:16] + struct.pack("!H", _sum16(pseudo + head + data) ^ 0xFFFF) + head[18:] + data


def _udp(data: bytes, sport: int, dport: int, addresses: bytes) -> bytes:
    head = struct.pack("!HHHH", sport, dport, 8 + len(data), 0)
    pseudo = addresses + struct.pack("!II", 8 + len(data), 17)
    return head[:6] + struct.pack("!H", _sum16(pseudo + head + data) ^ 0xFFFF or 0xFFFF) + data
