"""The quick way of runs: single packets of one size in one burst, TCP and UDP of flows whose SA is known.

What ``Singles`` does, to all of them at once. Same octets, same counters; a test compares them.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from operator import add

import numpy

from policy.clock import Nanos
from policy.selectors import TCP, UDP
from policy.spd import Mode
from tunnel.dataplane import esp, whole
from tunnel.dataplane.contract import TunFrame
from tunnel.dataplane.esp import NEXT_HEADER, trailers_of
from tunnel.dataplane.ledger import Ledger
from tunnel.dataplane.offload import CHECKSUM_OFFSET, NEEDS_CSUM, VNET_SIZE
from tunnel.dataplane.outer import ESP
from tunnel.dataplane.rows import Rows, column_sums, put16, rows_of, split
from tunnel.dataplane.sad import OutboundSa
from tunnel.dataplane.singles import SYN, plain_key, tos_of
from tunnel.dataplane.transforms import Aead
from tunnel.dataplane.transmit import Transmissions

#: Fewer packets than this are quicker one by one.
_FEW = 16
#: The bits of virtio header and IP header that the packets of a run have in common, by IP version.
_ALIKE = {
    4: numpy.frombuffer(bytes.fromhex("ffff00000000ffffffffffffffff00003fff00ff"), numpy.uint8),
    6: numpy.frombuffer(bytes.fromhex("ffff00000000fffffffffff00000ffffff000000"), numpy.uint8),
}
_HOP_LIMIT = {4: VNET_SIZE + 8, 6: VNET_SIZE + 7}
#: Where the addresses and ports are.
_FLOW = {4: slice(VNET_SIZE + 12, VNET_SIZE + 24), 6: slice(VNET_SIZE + 8, VNET_SIZE + 44)}
_TRANSPORT = {4: VNET_SIZE + 20, 6: VNET_SIZE + 40}


class Runs:
    """The quick way of runs of one data plane."""

    __slots__ = ("_ledger", "_transmissions")

    def __init__(self, ledger: Ledger, transmissions: Transmissions) -> None:
        self._ledger = ledger
        self._transmissions = transmissions

    def seal(self, frame: TunFrame, cache: Mapping[Hashable, OutboundSa], now: Nanos) -> int:
        """Seal the packets of a run from its first on that take one SA with one TOS; return how many."""
        size, data = frame.size, bytes(frame.data)
        total, first = len(data) // size, data[:size]
        key = plain_key(first) if total >= _FEW else None
        sa = None if key is None else cache.get(key)
        if sa is None or not (sa.plain or _carries(sa)) or sa.padding or not isinstance(sa.transform, Aead):
            return 0
        version, inner = first[VNET_SIZE] >> 4, size - VNET_SIZE
        protocol = first[VNET_SIZE + 9] if version == 4 else first[VNET_SIZE + 6]
        room = min(sa.next_limit - sa.octets, 1 << 62) - 1
        count = min(total, sa.sequence_soft - sa.sequence - 1, room // inner)
        if inner > sa.capacity or count < _FEW or not _can_finish(first, version, protocol):
            return 0
        rows = rows_of(data, size, count)
        count = _of_one_kind(rows, version, protocol)
        count = _of_one_sa(rows[:count], version, protocol, cache, sa)
        if count < _FEW:
            return 0
        self._put(sa, sa.transform, rows[:count], version, protocol)
        sa.packets += count
        sa.octets += count * inner
        sa.last_used = now
        self._ledger.outbound_in += count
        self._ledger.outbound_out += count
        self._ledger.esp_out += count
        return count

    def _put(self, sa: OutboundSa, transform: Aead, rows: Rows, version: int, protocol: int) -> None:
        """Seal all rows and put them out: in transport mode without UDP behind IP headers of ours."""
        number = sa.sequence + 1
        block, length = _plaintexts(rows, version, protocol, tunnel=sa.plain)
        sealed = esp.seal_block(sa, transform, block, length)
        if sa.plain or sa.path.encapsulated:
            self._transmissions.add(id(sa), sa.path, tos_of(rows[0].tobytes()), True, sealed)
        else:
            headers = _outer_headers(rows, version, len(sealed[0]), number)
            self._transmissions.add_whole(id(sa), sa.path, list(map(add, headers, sealed)))


def _carries(sa: OutboundSa) -> bool:
    """Whether it is ESP in transport mode by itself."""
    return sa.mac is None and sa.params.mode is Mode.TRANSPORT and sa.params.bundle is None


def _can_finish(first: bytes, version: int, protocol: int) -> bool:
    """Whether a checksum that the kernel left to do, if any, is the transport header's."""
    if not first[0] & NEEDS_CSUM:
        return True
    start, offset = _TRANSPORT[version] - VNET_SIZE, CHECKSUM_OFFSET[protocol]
    return first[6:10] == bytes((start, 0, offset, 0))


def _of_one_kind(rows: Rows, version: int, protocol: int) -> int:
    """Return how many rows from the first on are plain packets as it is one."""
    differs = ((rows[:, :20] ^ rows[0, :20]) & _ALIKE[version]).any(axis=1)
    differs |= rows[:, _HOP_LIMIT[version]] == 0
    if protocol == TCP:
        differs |= (rows[:, _TRANSPORT[version] + 13] & SYN) != 0
    return int(differs.argmax()) if differs.any() else len(rows)


def _of_one_sa(
    rows: Rows, version: int, protocol: int, cache: Mapping[Hashable, OutboundSa], sa: OutboundSa
) -> int:
    """Return how many rows from the first on are of flows that take *sa*."""
    flows = rows[:, _FLOW[version]]
    if (flows == flows[0]).all():
        return len(rows)
    for number, flow in enumerate(split(flows.tobytes(), flows.shape[1])):
        if cache.get((protocol, flow)) is not sa:
            return number
    return len(rows)


def _plaintexts(rows: Rows, version: int, protocol: int, *, tunnel: bool) -> tuple[bytes, int]:
    """Return what ESP encrypts, packets or in transport mode their payloads, with complete checksums and trailers.

    And the octets of each.
    """
    count, size = rows.shape
    at = _TRANSPORT[version]
    front = VNET_SIZE if tunnel else at
    inner = size - front
    trailer = trailers_of(NEXT_HEADER[version] if tunnel else protocol)[-(inner + 2) & 3]
    made = numpy.empty((count, inner + len(trailer)), numpy.uint8)
    made[:, :inner] = rows[:, front:]
    made[:, inner:] = numpy.frombuffer(trailer, numpy.uint8)
    if rows[0, 0] & NEEDS_CSUM:
        value = -column_sums(rows, at, size) % 65535  # the field holds the pseudo-header's sum
        if protocol == UDP:
            value[value == 0] = 0xFFFF  # RFC 768: 0 means no checksum
        put16(made, at - front + CHECKSUM_OFFSET[protocol], value)
    return made.tobytes(), inner + len(trailer)


def _outer_headers(rows: Rows, version: int, payload: int, number: int) -> list[bytes]:
    """Return the packets' IP headers saying that *payload* octets of ESP follow (RFC 4303 section 3.1.1).

    *number* is the first one's sequence number: an IPv4 identification of zero, which the host would fill in for
    each fragment, becomes one of ours.
    """
    made = rows[:, VNET_SIZE : _TRANSPORT[version]].copy()
    if version == 6:
        made[:, 6] = ESP
        made[:, 4:6] = divmod(payload, 256)
        return split(made.tobytes(), 40)
    made[:, 9] = ESP
    made[:, 2:4] = divmod(20 + payload, 256)
    unnamed = ~made[:, 4:6].any(axis=1)
    if unnamed.any():
        named = numpy.array([whole.identification(number + index) for index in range(len(made))])
        put16(made, 4, numpy.where(unnamed, named, made[:, 4].astype(numpy.int64) << 8 | made[:, 5]))
    made[:, 10:12] = 0
    put16(made, 10, -column_sums(made, 0, 20) % 65535)
    return split(made.tobytes(), 20)
