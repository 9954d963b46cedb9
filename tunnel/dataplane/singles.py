"""The quick way of single packets: TCP and UDP of flows whose SA is known, by an AEAD cipher in tunnel mode.

What ``Outbound`` does to any frame, for the frames that come in thousands: small datagrams, acknowledgments.
Whatever is not plain, or near a limit, is left to it. Same octets, same counters; a test compares them.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from contextlib import suppress
from itertools import islice

from policy.clock import Nanos
from policy.selectors import TCP, UDP
from tunnel.dataplane.checksum import checksum
from tunnel.dataplane.contract import TunFrame
from tunnel.dataplane.esp import HEADER_IV, NEXT_HEADER, trailers_of
from tunnel.dataplane.ledger import Ledger
from tunnel.dataplane.offload import NEEDS_CSUM, VNET_SIZE
from tunnel.dataplane.sad import OutboundSa
from tunnel.dataplane.transforms import Aead
from tunnel.dataplane.transmit import Transmissions

_LOW = 0xFFFF_FFFF
_V4, _V6 = VNET_SIZE + 20, VNET_SIZE + 40
SYN = 0x02


class Singles:
    """The quick way of one data plane; *cache* is the flow cache of the ordinary one."""

    __slots__ = ("_ledger", "_transmissions")

    def __init__(self, ledger: Ledger, transmissions: Transmissions) -> None:
        self._ledger = ledger
        self._transmissions = transmissions

    def seal(
        self, frames: Sequence[TunFrame], start: int, cache: Mapping[Hashable, OutboundSa], now: Nanos
    ) -> int:
        """Seal the frames from *start* on that take one SA with one TOS; return how many, 0 for none."""
        first = frames[start].data
        if not isinstance(first, bytes):
            return 0
        key = plain_key(first)
        sa = None if key is None else cache.get(key)
        if sa is None or not sa.plain or sa.padding or not isinstance(sa.transform, Aead):
            return 0
        version, tos = first[VNET_SIZE] >> 4, tos_of(first)
        room = min(sa.next_limit - sa.octets, 1 << 62)
        most = min(sa.sequence_soft - sa.sequence, len(frames) - start + 1) - 1
        spi, esn, encrypt = sa.params.spi, sa.params.suite.esn, sa.transform.cipher.encrypt
        salt, pack, trailers = sa.transform.salt, HEADER_IV.pack, trailers_of(NEXT_HEADER[version])
        capacity, number, octets = sa.capacity, sa.sequence, 0
        packets: list[bytes] = []
        with suppress(Exception):  # what cannot be sealed is named by the ordinary way
            for item in islice(frames, start, start + most):
                data = item.data
                if not isinstance(data, bytes) or tos_of(data) != tos or data[VNET_SIZE] >> 4 != version:
                    break
                key = plain_key(data)
                if key is None or cache.get(key) is not sa:
                    break
                packet = _finished(data, version)
                size = len(packet)
                if size > capacity or octets + size >= room:
                    break
                front = pack(spi, (number + 1) & _LOW, number + 1)
                iv = front[8:]
                packets.append(
                    front
                    + encrypt(salt + iv, packet + trailers[-(size + 2) & 3], front[:4] + iv if esn else front[:8])
                )
                number += 1
                octets += size
        if packets:
            sa.sequence = number
            sa.packets += len(packets)
            sa.octets += octets
            sa.last_used = now
            self._transmissions.add(id(sa), sa.path, tos, True, packets)
            self._ledger.outbound_in += len(packets)
            self._ledger.outbound_out += len(packets)
            self._ledger.esp_out += len(packets)
        return len(packets)


def tos_of(data: bytes) -> int:
    """Return the DSCP and ECN octet of a packet behind its virtio header."""
    if data[VNET_SIZE] == 0x45:
        return data[VNET_SIZE + 1]
    return (data[VNET_SIZE] << 4 | data[VNET_SIZE + 1] >> 4) & 0xFF


def plain_key(data: bytes) -> Hashable | None:
    """Return the cache's key for a complete TCP or UDP packet without options; None for everything else.

    A SYN goes the ordinary way: its MSS is looked at.
    """
    size = len(data)
    if size < _V4 + 8 or data[1]:
        return None
    if data[10] == 0x45:
        protocol = data[19]
        if data[16] & 0x3F or data[17] or not data[18] or (data[12] << 8 | data[13]) != size - VNET_SIZE:
            return None
        if protocol == UDP or (protocol == TCP and size >= _V4 + 20 and not data[_V4 + 13] & SYN):
            return protocol, data[22:34]
        return None
    if data[10] >> 4 != 6 or size < _V6 + 8:
        return None
    protocol = data[16]
    if not data[17] or (data[14] << 8 | data[15]) != size - _V6:
        return None
    if protocol == UDP or (protocol == TCP and size >= _V6 + 20 and not data[_V6 + 13] & SYN):
        return protocol, data[18:54]
    return None


def _finished(data: bytes, version: int) -> bytes:
    """Return the packet with its checksum, which the kernel may have left to do. ValueError if it is elsewhere."""
    if not data[0] & NEEDS_CSUM:
        return data[VNET_SIZE:]
    start = VNET_SIZE + (20 if version == 4 else 40)
    protocol = data[19] if version == 4 else data[16]
    offset = 6 if protocol == UDP else 16
    if data[6] + VNET_SIZE != start or data[7] or data[8] != offset or data[9]:
        raise ValueError("the checksum is not the transport header's")
    value = checksum(data[start:])  # the field holds the pseudo-header's sum
    if value == 0 and protocol == UDP:
        value = 0xFFFF  # RFC 768: 0 means no checksum
    return data[VNET_SIZE : start + offset] + value.to_bytes(2, "big") + data[start + offset + 2 :]
