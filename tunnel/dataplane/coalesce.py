"""Coalescing on the way in: consecutive segments of one flow become one write with a virtio header.

Two TCP segments are merged only when the kernel could cut the result into exactly them again: same addresses,
ports, TTL, TOS, DF, acknowledgment, window and options, sequence adjacent, none longer than the first, nothing
after a shorter one or PSH, no IP options, no fragments, no flags but ACK and PSH. Both checksums of each segment
are verified, because the merged packet gets a new one; a segment where they do not hold is written as it came.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import TypeAlias

from policy.selectors import TCP, UDP
from tunnel.dataplane.checksum import checksum, ones_sum, piece_sums
from tunnel.dataplane.contract import Buffer, TunOffload
from tunnel.dataplane.offload import (
    CHECKSUM_OFFSET,
    GSO_TCPV4,
    GSO_TCPV6,
    GSO_UDP_L4,
    NEEDS_CSUM,
    PLAIN_VNET,
    PSH,
    VNET,
)
from tunnel.dataplane.sad import InboundSa

WriteFrame: TypeAlias = tuple[Buffer, ...]

#: The kernel takes 128 segments since 6.9 and 64 before; an IP packet has 65535 octets.
MAX_SEGMENTS = 64
MAX_OCTETS = 65535
_ACK = 0x10
_LOW = 0xFFFF_FFFF
_U16 = struct.Struct("!H")


class _Run:
    """Segments of one flow: their headers as integers, and their payloads.

    They match but for their checksums, which are verified together once the run is complete.
    """

    __slots__ = (
        "addresses", "end", "header", "identification", "mask", "match", "next_mask", "next_match",
        "next_sequence", "numbers", "octets", "owner", "payloads", "plain_size", "protocol", "sequence_mask",
        "sequence_shift", "size", "step", "trailer", "transport",
    )  # fmt: skip

    def __init__(self, packet: bytes, transport: int, header: int, protocol: int, number: int) -> None:
        self.transport, self.header, self.protocol = transport, header, protocol
        self.numbers = [number]
        self.payloads = [packet[header:]]
        self.size = len(packet) - header
        self.octets = len(packet)
        self.mask = _mask(transport, header, protocol)
        self.match = number & self.mask
        self.next_sequence = -1
        self.identification = -1
        self.addresses = packet[12:20] if transport == 20 else packet[8:40]
        self.owner: InboundSa | None = None
        self.plain_size = 0

    def expect(self, owner: InboundSa, plain_size: int, trailer: bytes) -> None:
        """Prepare for ``Coalescer.extend``: the next segment has this header but for the fields that step."""
        self.owner, self.plain_size, self.trailer = owner, plain_size, trailer
        self.end = self.header + self.size
        self.next_mask = self.mask | _unmerged(self.transport, self.header, self.protocol)
        self.next_match = self.numbers[0] & self.next_mask
        if self.protocol == TCP:
            self.sequence_shift, self.sequence_mask, self.step = (
                (self.header - self.transport) * 8 - 64, _LOW, self.size
            )  # fmt: skip
        else:  # datagrams are not numbered
            self.sequence_shift = self.sequence_mask = self.step = self.next_sequence = 0

    def frames(self) -> list[WriteFrame]:
        """Return the buffers of writes: one superpacket of good segments, and each bad one as it came."""
        if len(self.payloads) == 1:
            return [self._alone(0)]
        joined = b"".join(self.payloads)
        good = self._good(joined)
        if all(good):
            return [self._merged(0, len(good), joined)]
        frames: list[WriteFrame] = []
        start = 0
        for index, holds in enumerate([*good, False]):
            if holds:
                continue
            if index - start == 1:
                frames.append(self._alone(start))
            elif index > start:
                frames.append(self._merged(start, index, b"".join(self.payloads[start:index])))
            if index < len(good):
                frames.append(self._alone(index))
            start = index + 1
        return frames

    def _good(self, joined: bytes) -> list[bool]:
        """Whether the checksums of each segment hold."""
        whole = len(self.payloads) - (len(self.payloads[-1]) != self.size)
        sums = piece_sums(joined, 0, self.size, whole)
        if whole < len(self.payloads):
            sums.append(ones_sum(self.payloads[-1]))
        bits = (self.header - self.transport) * 8
        low = (1 << bits) - 1
        constant = ones_sum(self.addresses) + self.protocol + self.header - self.transport
        good = []
        for number, total, payload in zip(self.numbers, sums, self.payloads, strict=True):
            holds = (total + (number & low) + constant + len(payload)) % 65535 == 0
            good.append(holds and (self.transport == 40 or (number >> bits) % 65535 == 0))
        return good

    def _alone(self, index: int) -> WriteFrame:
        return (PLAIN_VNET, self.numbers[index].to_bytes(self.header, "big"), self.payloads[index])

    def _merged(self, start: int, end: int, payload: bytes) -> WriteFrame:
        """Return the superpacket of segments *start* to *end*; the kernel completes its checksum."""
        transport, size = self.transport, self.header + len(payload)
        header = bytearray(self.numbers[start].to_bytes(self.header, "big"))
        if transport == 20:
            _U16.pack_into(header, 2, size)
            _U16.pack_into(header, 10, 0)
            _U16.pack_into(header, 10, checksum(header[:20]))
            gso_type = GSO_TCPV4
        else:
            _U16.pack_into(header, 4, size - 40)
            gso_type = GSO_TCPV6
        if self.protocol == UDP:
            gso_type = GSO_UDP_L4
            _U16.pack_into(header, transport + 4, size - transport)
        else:  # PSH is the last one's
            flags = (self.header - transport - 14) * 8
            header[transport + 13] |= self.numbers[end - 1] >> flags & PSH
        offset = CHECKSUM_OFFSET[self.protocol]
        pseudo = ones_sum(self.addresses) + self.protocol + size - transport
        _U16.pack_into(header, transport + offset, pseudo % 65535)
        return (VNET.pack(NEEDS_CSUM, gso_type, self.header, self.size, transport, offset) + header, payload)


class Coalescer:
    """The frames of one burst. Packets of one flow leave in the order in which they came."""

    __slots__ = ("_frames", "_last", "_offload", "_runs")

    def __init__(self, offload: TunOffload) -> None:
        self._offload = offload
        self._frames: list[WriteFrame | _Run] = []
        #: The run that the next packet of each flow may join.
        self._runs: dict[bytes, _Run] = {}
        #: The run that the very next packet most likely joins.
        self._last: _Run | None = None

    def finish(self) -> tuple[WriteFrame, ...]:
        """Return the frames of the burst."""
        frames: list[WriteFrame] = []
        for item in self._frames:
            if isinstance(item, _Run):
                frames += item.frames()
            else:
                frames.append(item)
        return tuple(frames)

    @property
    def owner(self) -> InboundSa | None:
        """The SA whose next packet may continue the last run."""
        return None if self._last is None else self._last.owner

    @property
    def padding(self) -> int:
        """Octets of padding, pad length and next header behind each packet of the last run (RFC 4303)."""
        return 0 if self._last is None else self._last.trailer[-2] + 2

    def extend(self, owner: InboundSa, plain: bytes) -> bool:
        """Take a decrypted payload if it is the very next full segment of the last run of the SA *owner*.

        Whatever else there is to check was checked for the run's first segment, and stands in octets that are
        compared here: header, length and trailer.
        """
        run = self._last
        if (
            run is None
            or run.owner is not owner
            or len(plain) != run.plain_size
            or not plain.endswith(run.trailer)
            or len(run.payloads) >= MAX_SEGMENTS
            or run.octets + run.size > MAX_OCTETS
        ):
            return False
        number = int.from_bytes(plain[: run.header], "big")
        sequence = (number >> run.sequence_shift) & run.sequence_mask
        if number & run.next_mask != run.next_match or sequence != run.next_sequence:
            return False
        if not run.step and not number & 0xFFFF:  # a datagram without a checksum is not merged
            return False
        run.numbers.append(number)
        run.payloads.append(plain[run.header : run.end])
        run.octets += run.size
        run.next_sequence = (run.next_sequence + run.step) & _LOW
        return True

    def add(
        self, packet: bytes, owner: InboundSa | None = None, plain_size: int = 0, trailer: bytes = b""
    ) -> None:
        """Take one authentic inner packet, whole and without anything behind it.

        The SA, the size of the decrypted payload and what followed the packet there are what ``extend`` compares.
        """
        self._last = None
        offload = self._offload
        first = packet[0]
        if first == 0x45:
            protocol, transport = packet[9], 20
            key = packet[9:10] + packet[12:24]
            tcp, udp = offload.tso4, offload.uso4
            plain = not (packet[6] & 0x3F or packet[7])
        elif first >> 4 == 6:
            protocol, transport = packet[6], 40
            key = packet[6:7] + packet[8:44]
            tcp, udp, plain = offload.tso6, offload.uso6, True
        else:
            self._options(packet)
            return
        if plain and protocol == TCP and tcp and len(packet) >= transport + 20:
            run = self._tcp(packet, transport, key)
            if run is not None and run.identification < 0 and owner is not None:
                if run.owner is not owner or run.plain_size != plain_size:
                    run.expect(owner, plain_size, trailer)
                self._last = run
        elif plain and protocol == UDP and udp and len(packet) >= transport + 8:
            run = self._udp(packet, transport, key)
            if run is not None and owner is not None:
                if run.owner is not owner or run.plain_size != plain_size:
                    run.expect(owner, plain_size, trailer)
                self._last = run
        else:
            self._frames.append((PLAIN_VNET, packet))

    def _tcp(self, packet: bytes, transport: int, key: bytes) -> _Run | None:
        """Merge a segment or start a run with it; return the run if it is still open."""
        header = transport + (packet[transport + 12] >> 4) * 4
        size = len(packet) - header
        flags = packet[transport + 13]
        if size <= 0 or flags & ~PSH != _ACK or header < transport + 20:
            self._runs.pop(key, None)  # nothing later may overtake it
            self._frames.append((PLAIN_VNET, packet))
            return None
        number = int.from_bytes(packet[:header], "big")
        sequence = int.from_bytes(packet[transport + 4 : transport + 8], "big")
        run = self._runs.get(key)
        if (
            run is not None
            and sequence == run.next_sequence
            and header == run.header
            and number & run.mask == run.match
            and self._joins(run, packet, number, size)
        ):
            run.next_sequence = (sequence + size) & _LOW
        else:
            run = self._start(_Run(packet, transport, header, TCP, number), key)
            run.next_sequence = (sequence + size) & _LOW
            if transport == 20 and not packet[6] & 0x40:
                run.identification = packet[4] << 8 | packet[5]
        if flags & PSH or size < run.size:
            self._runs.pop(key, None)
            return None
        return run

    def _udp(self, packet: bytes, transport: int, key: bytes) -> _Run | None:
        """Merge a datagram or start a run with it; return the run if it is still open."""
        header = transport + 8
        size = len(packet) - header
        if (
            size <= 0
            or packet[transport + 6 : header] == b"\0\0"
            or size + 8 != _U16.unpack_from(packet, transport + 4)[0]
        ):
            self._runs.pop(key, None)
            self._frames.append((PLAIN_VNET, packet))
            return None
        number = int.from_bytes(packet[:header], "big")
        run = self._runs.get(key)
        if run is None or number & run.mask != run.match or not self._joins(run, packet, number, size):
            run = self._start(_Run(packet, transport, header, UDP, number), key)
        if size < run.size:
            self._runs.pop(key, None)
            return None
        return run

    def _joins(self, run: _Run, packet: bytes, number: int, size: int) -> bool:
        """Append a segment to *run* if sizes and identification allow."""
        if size > run.size or len(run.payloads) >= MAX_SEGMENTS or run.octets + size > MAX_OCTETS:
            return False
        expected = (run.identification + len(run.payloads)) & 0xFFFF
        if run.identification >= 0 and packet[4] << 8 | packet[5] != expected:
            return False  # without DF the identification must step, or cutting again would change it
        run.numbers.append(number)
        run.payloads.append(packet[run.header :])
        run.octets += size
        return True

    def _start(self, run: _Run, key: bytes) -> _Run:
        self._frames.append(run)
        self._runs[key] = run
        return run

    def _options(self, packet: bytes) -> None:
        """An IPv4 packet with options is never merged, and nothing of its flow may overtake it."""
        transport = (packet[0] & 15) * 4
        self._runs.pop(packet[9:10] + packet[12:20] + packet[transport : transport + 4], None)
        self._frames.append((PLAIN_VNET, packet))


@lru_cache(maxsize=64)
def _mask(transport: int, header: int, protocol: int) -> int:
    """Return the header bits that two segments of one run have in common, as an integer mask."""
    mask = bytearray(b"\xff" * header)
    if transport == 20:
        mask[2:6] = bytes(4)  # total length, identification
        mask[10:12] = bytes(2)
    else:
        mask[4:6] = bytes(2)
    if protocol == TCP:
        mask[transport + 4 : transport + 8] = bytes(4)
        mask[transport + 13] = 0xFF & ~PSH
        mask[transport + 16 : transport + 18] = bytes(2)
    else:
        mask[transport + 4 : transport + 8] = bytes(4)  # length, checksum
    return int.from_bytes(mask, "big")


@lru_cache(maxsize=64)
def _unmerged(transport: int, header: int, protocol: int) -> int:
    """Return the bits of the length fields and of PSH: equal in full segments that do not end a run."""
    mask = bytearray(header)
    at = 2 if transport == 20 else 4
    mask[at : at + 2] = b"\xff\xff"
    if protocol == TCP:
        mask[transport + 13] = 0xFF
    else:
        mask[transport + 4 : transport + 6] = b"\xff\xff"
    return int.from_bytes(mask, "big")
