"""The virtio header, and the segmentation that the kernel left to us: TSO, USO and unfinished checksums.

A frame from the TUN is classified once, whatever number of packets it stands for, and cut up only when an SA is
there to carry them.
"""

from __future__ import annotations

import struct
from collections.abc import Hashable
from functools import lru_cache

from policy.selectors import TCP, UDP
from tunnel.dataplane.checksum import checksum, ones_sum, piece_sums, pseudo_header
from tunnel.dataplane.contract import Buffer, DropReason
from tunnel.dataplane.esp import Segment
from tunnel.dataplane.flow import FlowError, Parsed, parse

#: struct virtio_net_hdr: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset.
VNET = struct.Struct("<BBHHHH")
VNET_SIZE = VNET.size
#: A packet that is complete as it stands.
PLAIN_VNET = bytes(VNET_SIZE)
NEEDS_CSUM = 1
GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, GSO_ECN = 0, 1, 4, 5, 0x80

CHECKSUM_OFFSET = {TCP: 16, UDP: 6}
FIN, PSH, CWR = 0x01, 0x08, 0x80

_IP_FRONT = struct.Struct("!2sHH4sH")
_UDP_FRONT = struct.Struct("!4sHH")
_U16 = struct.Struct("!H")


class Frame:
    """One frame from the TUN: a packet, or a superpacket that stands for *count* packets of one flow."""

    __slots__ = (
        "checksum_offset", "checksum_start", "count", "gso_size", "header", "hop_limit", "key", "largest",
        "length", "needs_checksum", "packet", "parsed", "protocol", "tos", "transport", "version",
    )  # fmt: skip

    packet: memoryview
    version: int
    protocol: int
    tos: int
    hop_limit: int
    #: Octets of the packet by its IP header, start of the transport header, and of the payload to cut.
    length: int
    transport: int
    header: int
    gso_size: int
    count: int
    #: Octets of the largest packet that it stands for.
    largest: int
    needs_checksum: bool
    checksum_start: int
    checksum_offset: int
    #: What tells its flow from others in the SPD cache.
    key: Hashable
    #: The outline, where it was already needed.
    parsed: Parsed | None

    def __init__(self, data: Buffer) -> None:
        """Classify a frame. FlowError if it does not hold together."""
        view = memoryview(data)
        if len(view) < VNET_SIZE + 20:
            raise FlowError(DropReason.MALFORMED)
        flags, gso_type, _, gso_size, self.checksum_start, self.checksum_offset = VNET.unpack_from(view)
        self.needs_checksum = bool(flags & NEEDS_CSUM)
        self.packet = packet = view[VNET_SIZE:]
        self.version = packet[0] >> 4
        self.parsed = None
        if not (self._plain_v4(packet) if packet[0] == 0x45 else self._plain_v6(packet)):
            self._any(packet)
        self.gso_size, self.header, self.count, self.largest = 0, 0, 1, self.length
        if gso_type != GSO_NONE:
            self._superpacket(gso_type & ~GSO_ECN, gso_size)

    def outline(self) -> Parsed:
        """Return flow and flags; parsed now if the fast paths did not need it."""
        if self.parsed is None:
            self.parsed = parse(self.packet)
        return self.parsed

    def _plain_v4(self, packet: memoryview) -> bool:
        """Take the outline of TCP or UDP in an unfragmented IPv4 packet without options; else return False."""
        protocol = packet[9]
        if protocol not in CHECKSUM_OFFSET or packet[6] & 0x3F or packet[7]:
            return False
        self.length = packet[2] << 8 | packet[3]
        if not 28 <= self.length <= len(packet):
            return False
        self.protocol, self.transport = protocol, 20
        self.tos, self.hop_limit = packet[1], packet[8]
        self.key = (protocol, bytes(packet[12:24]))
        return True

    def _plain_v6(self, packet: memoryview) -> bool:
        """Take the outline of TCP or UDP straight after the IPv6 header; else return False."""
        if len(packet) < 48 or self.version != 6 or packet[6] not in CHECKSUM_OFFSET:
            return False
        self.length = 40 + (packet[4] << 8 | packet[5])
        if not 48 <= self.length <= len(packet):
            return False
        self.protocol, self.transport = packet[6], 40
        self.tos, self.hop_limit = (packet[0] << 4 | packet[1] >> 4) & 0xFF, packet[7]
        self.key = (self.protocol, bytes(packet[8:44]))
        return True

    def _any(self, packet: memoryview) -> None:
        self.parsed = parsed = parse(packet)
        self.length, self.transport, self.protocol = parsed.length, parsed.transport, parsed.flow.protocol
        self.tos, self.hop_limit = parsed.tos, parsed.hop_limit
        self.key = (parsed.flow, parsed.fragment)

    def _superpacket(self, gso_type: int, gso_size: int) -> None:
        """Take sizes and number of the segments. The kernel's hdr_len is not relied on: parse the header."""
        wanted = {GSO_TCPV4: (4, TCP), GSO_TCPV6: (6, TCP), GSO_UDP_L4: (self.version, UDP)}.get(gso_type)
        if wanted is None:
            raise FlowError(DropReason.UNSUPPORTED)
        if wanted != (self.version, self.protocol) or gso_size == 0 or (self.parsed and self.parsed.fragment):
            raise FlowError(DropReason.MALFORMED)
        if self.protocol == TCP:
            if self.transport + 20 > self.length:
                raise FlowError(DropReason.MALFORMED)
            size = (self.packet[self.transport + 12] >> 4) * 4
        else:
            size = 8
        self.header = self.transport + size
        payload = self.length - self.header
        if payload < 0 or size < 8 or (self.protocol == TCP and size < 20):
            raise FlowError(DropReason.MALFORMED)
        if payload > gso_size:
            self.gso_size = gso_size
            self.count = -(-payload // gso_size)
            self.largest = self.header + gso_size


def segments(frame: Frame) -> list[Segment]:
    """Return the packets that *frame* stands for, complete. FlowError for impossible checksum offsets."""
    if frame.gso_size:
        return _cut_tcp(frame) if frame.protocol == TCP else _cut_udp(frame)
    packet = frame.packet[: frame.length]
    if not frame.needs_checksum:
        return [(b"", packet)]
    start, at = frame.checksum_start, frame.checksum_start + frame.checksum_offset
    if start < frame.transport or at + 2 > frame.length:
        raise FlowError(DropReason.MALFORMED)
    finished = bytearray(packet)
    value = checksum(packet[start:])  # the field holds the pseudo-header's sum
    if value == 0 and frame.protocol == UDP:
        value = 0xFFFF  # RFC 768: 0 means no checksum
    _U16.pack_into(finished, at, value)
    return [(b"", finished)]


class _IpTemplate:
    """Makes the IP headers of a superpacket's segments: length, identification and checksum step."""

    __slots__ = ("_before", "_identification", "_rest", "_sum", "_version")

    def __init__(self, head: bytes, frame: Frame) -> None:
        self._version = frame.version
        self._rest = head[12 : frame.transport] if frame.version == 4 else head[6 : frame.transport]
        self._identification = int.from_bytes(head[4:6], "big")
        self._before = (head[:2], head[6:10]) if frame.version == 4 else (head[:4], b"")
        self._sum = ones_sum(head[:2]) + ones_sum(head[6:10]) + ones_sum(self._rest)

    def header(self, index: int, length: int) -> bytes:
        """Return the IP header of segment *index* with *length* octets in all."""
        if self._version == 6:
            return self._before[0] + _U16.pack(length - 40) + self._rest
        identification = (self._identification + index) & 0xFFFF
        value = -(self._sum + length + identification) % 65535
        return _IP_FRONT.pack(self._before[0], length, identification, self._before[1], value) + self._rest


def _cut_tcp(frame: Frame) -> list[Segment]:
    """TSO: sequence and identification step, FIN and PSH are the last segment's, CWR the first's."""
    start, header, mss, version = frame.transport, frame.header, frame.gso_size, frame.version
    packet, head = frame.packet, bytes(frame.packet[:header])
    # The first twelve octets of IPv4 and of IPv6 are cut alike, so that one format serves both.
    front, word_1, word_2, middle, word_5 = _IP_FRONT.unpack_from(head)
    between, ports = head[12:start], head[start : start + 4]
    ack, window, rest = head[start + 8 : start + 13], head[start + 14 : start + 16], head[start + 18 : header]
    ip_sum = ones_sum(front) + ones_sum(middle) + ones_sum(between)
    identification, sequence = word_2, int.from_bytes(head[start + 4 : start + 8], "big")
    flags = first_flags = head[start + 13]
    flags &= ~(FIN | PSH | CWR)
    addresses = head[12:20] if version == 4 else head[8:40]
    fixed = pseudo_header(addresses, TCP, header - start) + ones_sum(ports + ack + b"\0" + window + rest)
    pack = _layout(start - 12, len(rest)).pack
    whole = (frame.length - header) // mss
    sums = piece_sums(packet, header, mss, whole)
    if header + whole * mss < frame.length:
        sums.append(ones_sum(packet[header + whole * mss : frame.length]))
    result: list[Segment] = []
    last = frame.length - mss  # a segment that starts here or later is the last
    bits = first_flags & ~(FIN | PSH)
    for offset, payload_sum in zip(range(header, frame.length, mss), sums, strict=True):
        size = mss
        if offset >= last:
            size, bits = frame.length - offset, (flags | first_flags & (FIN | PSH))
        payload = packet[offset : offset + size]
        value = -(payload_sum + fixed + sequence + bits + size) % 65535
        length = header + size
        if version == 4:
            word_1, word_2, word_5 = length, identification, -(ip_sum + length + identification) % 65535
            identification = (identification + 1) & 0xFFFF
        else:
            word_2 = length - 40
        result.append(
            (
                pack(
                    front, word_1, word_2, middle, word_5, between, ports, sequence, ack, bits, window, value, rest
                ),
                payload,
            )
        )
        sequence = (sequence + mss) & 0xFFFF_FFFF
        bits = flags
    return result


def _cut_udp(frame: Frame) -> list[Segment]:
    """USO: every segment is a datagram of its own."""
    start, header, size = frame.transport, frame.header, frame.gso_size
    head = bytes(frame.packet[:header])
    ip_header = _IpTemplate(head, frame).header
    ports = head[start : start + 4]
    addresses = head[12:20] if frame.version == 4 else head[8:40]
    result: list[Segment] = []
    for index, offset in enumerate(range(header, frame.length, size)):
        payload = frame.packet[offset : min(offset + size, frame.length)]
        length = 8 + len(payload)
        # The length stands in the pseudo-header and in the header.
        value = checksum(payload, pseudo_header(addresses, UDP, length) + ones_sum(ports) + length) or 0xFFFF
        front = ip_header(index, start + length) + _UDP_FRONT.pack(ports, length, value)
        result.append((front, payload))
    return result


@lru_cache(maxsize=64)
def _layout(between: int, rest: int) -> struct.Struct:
    """Return the format of IP and TCP header with so many octets after the twelfth and after the checksum."""
    return struct.Struct(f"!2sHH4sH{between}s4sI5sB2sH{rest}s")
