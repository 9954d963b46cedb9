"""ESP (RFC 4303): sealing a burst, and what a sealed packet costs in octets.

A segment is what ESP carries, in two parts, header and payload, so that the payload of a superpacket is copied
once, into the plaintext: in tunnel mode a complete inner packet, in transport mode what follows its IP header.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from operator import add
from typing import TypeAlias

from policy.path import Path
from tunnel.dataplane.contract import Buffer
from tunnel.dataplane.rows import aead, split
from tunnel.dataplane.sad import OutboundSa
from tunnel.dataplane.transforms import Aead, EspTransform

Segment: TypeAlias = tuple[bytes, Buffer]

#: Next header of a tunnel by the inner packet's version, and of a dummy packet (RFC 4303 section 2.6).
NEXT_HEADER = {4: 4, 6: 41}
DUMMY = 59
#: SPI and sequence number.
HEADER_SIZE = 8

_HEADER = struct.Struct("!II")
#: The same with the IV of an AEAD cipher.
HEADER_IV = struct.Struct("!IIQ")
_LOW = 0xFFFF_FFFF


@lru_cache(maxsize=256)
def trailers_of(next_header: int) -> tuple[bytes, ...]:
    """Return padding 1, 2, 3, ..., pad length and next header (RFC 4303 section 2.4), by pad length."""
    return tuple(bytes(range(1, size + 1)) + bytes((size, next_header)) for size in range(256))


def seal(sa: OutboundSa, segments: list[Segment], next_header: int) -> list[bytes]:
    """Return the ESP packets of segments of one protocol; the caller has checked limits and sizes.

    Takes one sequence number a segment.
    """
    transform = sa.transform
    number = sa.sequence
    sa.sequence = number + len(segments)
    if isinstance(transform, Aead):
        return _seal_aead(sa, transform, segments, next_header, number)
    esn = sa.params.suite.esn
    trailers, block = trailers_of(next_header), transform.block
    packets: list[bytes] = []
    for header, payload in segments:
        number += 1
        trailer = trailers[-(len(header) + len(payload) + 2) % block]
        packets.append(
            transform.seal(
                _HEADER.pack(sa.params.spi, number & _LOW),
                number,
                b"".join((header, payload, trailer)),
                (number >> 32).to_bytes(4, "big") if esn else b"",
            )
        )
    return packets


def _seal_aead(
    sa: OutboundSa, transform: Aead, segments: list[Segment], next_header: int, number: int
) -> list[bytes]:
    """RFC 4106 sections 3 to 5, RFC 7634 section 2. The inner loop of the sending side: plain on purpose."""
    spi, esn, salt = sa.params.spi, sa.params.suite.esn, transform.salt
    encrypt, pack, join = transform.cipher.encrypt, HEADER_IV.pack, b"".join
    trailers = trailers_of(next_header)
    packets: list[bytes] = []
    append = packets.append
    for header, payload in segments:
        number += 1
        front = pack(spi, number & _LOW, number)
        iv = front[8:]
        append(
            front
            + encrypt(
                salt + iv,
                join((header, payload, trailers[-(len(header) + len(payload) + 2) & 3])),
                front[:4] + iv if esn else front[:8],
            )
        )
    return packets


def seal_block(sa: OutboundSa, transform: Aead, block: bytes, size: int) -> list[bytes]:
    """Return the ESP packets of plaintexts of *size* octets, trailers included, that lie end to end in *block*.

    What ``seal`` does, to many at once.
    """
    count, number = len(block) // size, sa.sequence + 1
    sa.sequence += count
    esn = sa.params.suite.esn
    fronts, nonces, additional = aead(sa.params.spi, number, count, transform.salt, esn=esn)
    return list(map(add, fronts, map(transform.cipher.encrypt, nonces, split(block, size), additional)))


def padded(segments: list[Segment], multiple: int, largest: int) -> list[Segment]:
    """Return inner packets with zeros behind them (RFC 4303 section 2.7): *multiple* octets, or *largest*.

    Their own headers tell where they end.
    """
    result: list[Segment] = []
    for header, payload in segments:
        size = len(header) + len(payload)
        wanted = min(-(-size // multiple) * multiple, largest)
        result.append((header, b"".join((payload, bytes(wanted - size)))) if wanted > size else (header, payload))
    return result


def outer_overhead(path: Path) -> int:
    """Return the octets of outer IP header and, when encapsulated, UDP header."""
    return (20 if path.version == 4 else 40) + (8 if path.encapsulated else 0)


def capacity(transform: EspTransform, path: Path, mtu: int) -> int:
    """Return the largest inner packet whose outer packet is no longer than *mtu*."""
    room = mtu - outer_overhead(path) - HEADER_SIZE - transform.iv_size - transform.icv_size
    return room - room % transform.block - 2


def sealed_size(transform: EspTransform, inner: int) -> int:
    """Return the octets of the ESP packet that carries an inner packet of *inner* octets."""
    padded = inner + 2 + -(inner + 2) % transform.block
    return HEADER_SIZE + transform.iv_size + padded + transform.icv_size
