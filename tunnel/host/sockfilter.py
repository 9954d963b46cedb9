"""What the kernel drops before it wakes us: datagrams that can never be IKE or ESP, as classic BPF programs.

A program sees the datagram from its UDP header on. What it drops is in the socket's own count (``dropped``), where
the kernel also counts what a full receive queue lost; it does not tell one from the other.

With UDP_GRO one look is at a whole run of merged datagrams: the first one's octets, and the size of them all. On
port 4500, therefore, only sizes decide that are impossible for a run and for each datagram in it: whoever forges a
peer's address must not be able to take the peer's datagrams with his own.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from typing import TypeAlias

from policy.path import IKE_PORT, NATT_PORT

_SO_ATTACH_FILTER, _SO_ATTACH_REUSEPORT_CBPF, _SO_MEMINFO = 26, 51, 55
#: Place of the drops among the values of SO_MEMINFO.
_DROPS, _MEMINFO_SIZE = 8, 9 * 4

#: Smallest ESP packet: SPI, sequence number, one padded word, and an ICV of 96 bits (RFC 4303 section 2).
MIN_ESP = 8 + 4 + 12
#: An IKE header (RFC 7296 section 3.1), and the non-ESP marker before it (RFC 3948 section 2.2).
IKE_HEADER, MARKER = 28, 4
_KEEPALIVE = 0xFF

#: Instructions (linux/filter.h): loads of a word, a half word, an octet; the length; and so on.
LD_WORD, LD_HALF, LD_OCTET, LD_LENGTH = 0x20, 0x28, 0x30, 0x80
SUBTRACT, SHIFT_RIGHT, COPY_TO_X = 0x14, 0x74, 0x07
JUMP_EQUAL, JUMP_AT_LEAST, JUMP_EQUAL_X, RETURN = 0x15, 0x35, 0x1D, 0x06

Instruction: TypeAlias = tuple[int, int, int, int]
#: Code, where to go if true and if false (instructions to skip), operand.
Program: TypeAlias = tuple[Instruction, ...]

_ACCEPT, _DROP = (RETURN, 0, 0, 0xFFFF_FFFF), (RETURN, 0, 0, 0)
_UDP = 8

#: Port 500: IKE headers whose length is the datagram's, of a version that there is, with an initiator's SPI. A
#: higher version passes with any length: it has to be answered (RFC 7296 section 2.5).
IKE: Program = (
    (LD_HALF, 0, 0, 0),
    (JUMP_EQUAL, 15, 0, 0),  # nobody can answer to source port 0
    (LD_LENGTH, 0, 0, 0),
    (JUMP_AT_LEAST, 0, 13, _UDP + IKE_HEADER),
    (SUBTRACT, 0, 0, _UDP),
    (COPY_TO_X, 0, 0, 0),
    (LD_OCTET, 0, 0, _UDP + 17),
    (SHIFT_RIGHT, 0, 0, 4),
    (JUMP_EQUAL, 8, 0, 0),  # version 0
    (JUMP_EQUAL, 0, 6, 2),  # any but 2 passes
    (LD_WORD, 0, 0, _UDP + 24),
    (JUMP_EQUAL_X, 0, 5, 0),
    (LD_WORD, 0, 0, _UDP),
    (JUMP_EQUAL, 0, 2, 0),
    (LD_WORD, 0, 0, _UDP + 4),
    (JUMP_EQUAL, 1, 0, 0),
    _ACCEPT,
    _DROP,
)

#: Port 4500: a keepalive, IKE behind its marker, or ESP, each of a size that it can have.
ENCAPSULATED: Program = (
    (LD_HALF, 0, 0, 0),
    (JUMP_EQUAL, 10, 0, 0),
    (LD_LENGTH, 0, 0, 0),
    (SUBTRACT, 0, 0, _UDP),
    (JUMP_AT_LEAST, 3, 0, MIN_ESP),
    (JUMP_EQUAL, 0, 6, 1),
    (LD_OCTET, 0, 0, _UDP),
    (JUMP_EQUAL, 3, 4, _KEEPALIVE),
    (JUMP_AT_LEAST, 2, 0, MARKER + IKE_HEADER),
    (LD_WORD, 0, 0, _UDP),
    (JUMP_EQUAL, 1, 0, 0),  # too short for IKE, so it must be ESP
    _ACCEPT,
    _DROP,
)

#: Which of the two sockets of port 4500 a datagram is for, as their order of binding: ESP to the first, IKE to the
#: second. This one sees the payload alone; of a run that was merged, the first datagram decides, and either socket
#: takes both.
WHICH: Program = (
    (LD_LENGTH, 0, 0, 0),
    (JUMP_AT_LEAST, 0, 3, MARKER),
    (LD_WORD, 0, 0, 0),
    (JUMP_EQUAL, 0, 1, 0),
    (RETURN, 0, 0, 1),
    (RETURN, 0, 0, 0),
)

PROGRAMS = {IKE_PORT: IKE, NATT_PORT: ENCAPSULATED}


def attach(sock: socket.socket, program: Program) -> None:
    """Have the kernel drop what *program* refuses before it comes to *sock*."""
    _set(sock, _SO_ATTACH_FILTER, program)


def share(sock: socket.socket, program: Program) -> None:
    """Have *program* say which of the sockets that share *sock*'s port (SO_REUSEPORT) a datagram is for."""
    _set(sock, _SO_ATTACH_REUSEPORT_CBPF, program)


def _set(sock: socket.socket, option: int, program: Program) -> None:
    octets = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
    instructions = ctypes.create_string_buffer(octets, len(octets))
    # struct sock_fprog: the kernel copies the program before this returns.
    sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("HP", len(program), ctypes.addressof(instructions)))


def dropped(sock: socket.socket) -> int:
    """Return how many datagrams the kernel dropped at *sock*: refused by its program, or its queue was full."""
    try:
        values = sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO_SIZE)
    except OSError:  # a kernel before 4.12
        return 0
    return int(struct.unpack_from("=I", values, _DROPS * 4)[0]) if len(values) == _MEMINFO_SIZE else 0
