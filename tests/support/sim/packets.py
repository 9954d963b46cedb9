"""IP packets as applications make them, written without the code under test; and probes that can be told apart."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address

from policy.path import IpAddress
from policy.selectors import ICMP, ICMPV6, TCP, UDP, Flow

#: No offload asked for: ten zero octets.
NO_OFFLOAD = bytes(10)
_MAGIC = b"Probe\xfa\xce\xb0"
#: Magic and number.
MARKER = len(_MAGIC) + 8
_GSO_TCPV4, _GSO_TCPV6, _NEEDS_CSUM = 1, 4, 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """What an application sends: protocol, addresses and ports (ICMP has none)."""

    source: IpAddress
    destination: IpAddress
    protocol: int = UDP
    source_port: int = 40000
    destination_port: int = 7

    def reply(self) -> Traffic:
        """Return what the other side sends back."""
        return Traffic(
            source=self.destination,
            destination=self.source,
            protocol=self.protocol,
            source_port=self.destination_port,
            destination_port=self.source_port,
        )


def traffic(
    source: str, destination: str, protocol: int = UDP, source_port: int = 40000, destination_port: int = 7
) -> Traffic:
    """Return traffic between two addresses in text."""
    return Traffic(
        source=ip_address(source),
        destination=ip_address(destination),
        protocol=protocol,
        source_port=source_port,
        destination_port=destination_port,
    )


def marker(number: int) -> bytes:
    """Return the octets by which probe *number* is found wherever it appears."""
    return _MAGIC + struct.pack("!Q", number)


def find_markers(octets: bytes) -> list[int]:
    """Return the numbers of all the probes that can be read in *octets*."""
    found, at = [], octets.find(_MAGIC)
    while at >= 0 and at + MARKER <= len(octets):
        found.append(struct.unpack_from("!Q", octets, at + len(_MAGIC))[0])
        at = octets.find(_MAGIC, at + MARKER)
    return found


def probe_packet(flow: Traffic, number: int, size: int = 64, *, dont_fragment: bool = False) -> bytes:
    """Return an IP packet of *flow* that carries probe *number* in *size* octets of payload."""
    payload = marker(number).ljust(size, b".")
    return ip_packet(flow, upper_layer(flow, payload), dont_fragment=dont_fragment)


def upper_layer(flow: Traffic, payload: bytes, *, sequence: int = 1, checksum: bool = True) -> bytes:
    """Return the UDP, TCP or ICMP packet with *payload*; any other protocol carries it bare."""
    pseudo = _pseudo_header(flow)
    match flow.protocol:
        case 17:
            head = struct.pack("!HHHH", flow.source_port, flow.destination_port, 8 + len(payload), 0)
            at, length = 6, len(head) + len(payload)
        case 6:
            head = struct.pack(
                "!HHIIHHHH", flow.source_port, flow.destination_port, sequence, 1, 0x5010, 65535, 0, 0
            )
            at, length = 16, len(head) + len(payload)
        case 1 | 58:
            kind = 8 if flow.protocol == ICMP else 128
            head = struct.pack("!BBHHH", kind, 0, 0, flow.source_port, 1)
            at, length = 2, len(head) + len(payload)
            if flow.protocol == ICMP:
                pseudo = b""
        case _:
            return payload
    if pseudo:
        pseudo += struct.pack("!IHBB", length, 0, 0, flow.protocol)
    total = _checksum(pseudo + head + payload) if checksum else 0xFFFF & ~_checksum(pseudo)
    return head[:at] + struct.pack("!H", total) + head[at + 2 :] + payload


def ip_packet(flow: Traffic, upper: bytes, *, dont_fragment: bool = False) -> bytes:
    """Return the IPv4 or IPv6 packet around *upper*."""
    if isinstance(flow.source, IPv4Address):
        flags = 0x4000 if dont_fragment else 0
        head = struct.pack(
            "!BBHHHBBH4s4s", 0x45, 0, 20 + len(upper), 1, flags, 64, flow.protocol, 0,
            flow.source.packed, flow.destination.packed,
        )  # fmt: skip
        return head[:10] + struct.pack("!H", _checksum(head)) + head[12:] + upper
    return (
        struct.pack("!IHBB", 6 << 28, len(upper), flow.protocol, 64)
        + flow.source.packed
        + flow.destination.packed
        + upper
    )


def tso_frame(flow: Traffic, numbers: list[int], segment_size: int, sequence: int = 1) -> bytes:
    """Return a TUN frame with one TCP superpacket: each segment of *segment_size* octets carries a probe."""
    payload = b"".join(marker(number).ljust(segment_size, b".") for number in numbers)
    packet = ip_packet(flow, upper_layer(flow, payload, sequence=sequence, checksum=False))
    offset = 20 if flow.source.version == 4 else 40
    kind = _GSO_TCPV4 if flow.source.version == 4 else _GSO_TCPV6
    return struct.pack("<BBHHHH", _NEEDS_CSUM, kind, offset + 20, segment_size, offset, 16) + packet


def outer(packet: bytes) -> tuple[int, int, bool]:
    """Return protocol, offset of what it carries, and DF of an IP packet (IPv6: past its extension headers)."""
    if packet[0] >> 4 == 4:
        return packet[9], (packet[0] & 15) * 4, bool(packet[6] & 0x40)
    protocol, at = packet[6], 40
    while protocol in (0, 43, 60):
        protocol, at = packet[at], at + 8 + packet[at + 1] * 8
    return protocol, at, True


@dataclass(frozen=True, slots=True)
class Parsed:
    """What the simulator reads of an inner packet that was delivered."""

    flow: Flow
    payload: bytes
    checksums_fit: bool


def parse(packet: bytes) -> Parsed:
    """Read an unfragmented IP packet without options or extension headers. ValueError for anything else."""
    if len(packet) >= 20 and packet[0] == 0x45:
        protocol, source, destination = packet[9], packet[12:16], packet[16:20]
        upper, total = packet[20:], struct.unpack_from("!H", packet, 2)[0]
        good = _checksum(packet[:20]) == 0
        version, one, two = 4, ip_address(source), ip_address(destination)
    elif len(packet) >= 40 and packet[0] >> 4 == 6:
        protocol, source, destination = packet[6], packet[8:24], packet[24:40]
        upper, total = packet[40:], 40 + struct.unpack_from("!H", packet, 4)[0]
        good, version, one, two = True, 6, ip_address(source), ip_address(destination)
    else:
        raise ValueError(f"not a plain IP packet: {packet[:20].hex()}")
    if total != len(packet):
        raise ValueError(f"{len(packet)} octets, the header says {total}")
    ports: tuple[int | None, int | None] = (None, None)
    start = 0
    if protocol in (TCP, UDP):
        ports = struct.unpack_from("!HH", upper)
        start = 8 if protocol == UDP else 20
    elif protocol in (ICMP, ICMPV6):
        ports, start = (struct.unpack_from("!H", upper)[0],) * 2, 8
    if start:
        known = Traffic(source=one, destination=two, protocol=protocol)
        pseudo = _pseudo_header(known) + struct.pack("!IHBB", len(upper), 0, 0, protocol)
        good = good and _checksum((b"" if protocol == ICMP else pseudo) + upper) == 0
    return Parsed(Flow(version, protocol, int(one), int(two), *ports), upper[start:], good)


def segments(frame: bytes) -> list[bytes]:
    """Return the packets of a TUN frame: one, or the TCP segments of a superpacket."""
    _, kind, header_length, size, _, _ = struct.unpack_from("<BBHHHH", frame)
    packet = frame[10:]
    if not kind:
        return [packet]
    head, payload = packet[:header_length], packet[header_length:]
    version = packet[0] >> 4
    found = []
    for number, at in enumerate(range(0, len(payload), size)):
        piece = payload[at : at + size]
        offset = 20 if version == 4 else 40
        addresses = (head[12:16], head[16:20]) if version == 4 else (head[8:24], head[24:40])
        ports = struct.unpack_from("!HH", head, offset)
        sequence = struct.unpack_from("!I", head, offset + 4)[0] + number * size
        flow = Traffic(
            source=ip_address(addresses[0]),
            destination=ip_address(addresses[1]),
            protocol=TCP,
            source_port=ports[0],
            destination_port=ports[1],
        )
        found.append(ip_packet(flow, upper_layer(flow, piece, sequence=sequence)))
    return found


def flow_of(flow: Traffic) -> Flow:
    """Return what the selectors see of *flow*."""
    ports: tuple[int | None, int | None] = (None, None)
    if flow.protocol in (TCP, UDP):
        ports = (flow.source_port, flow.destination_port)
    elif flow.protocol in (ICMP, ICMPV6):
        ports = ((8 if flow.protocol == ICMP else 128) * 256,) * 2
    return Flow(flow.source.version, flow.protocol, int(flow.source), int(flow.destination), *ports)


def _pseudo_header(flow: Traffic) -> bytes:
    return flow.source.packed + flow.destination.packed


def _checksum(octets: bytes) -> int:
    if len(octets) % 2:
        octets += b"\0"
    total: int = sum(struct.unpack(f"!{len(octets) // 2}H", octets))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
