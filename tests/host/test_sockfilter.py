"""The programs of the sockets: a small model of the machine, the words of the RFCs, and the kernel agree."""

from __future__ import annotations

import socket
from random import Random

import pytest

from policy.path import IKE_PORT, NATT_PORT
from tests.host.test_sockets import arrived, in_a_namespace, opened
from tunnel.host import sockfilter
from tunnel.host.sockets import Wire
from tunnel.host.sockfilter import Program

_SPI = bytes(range(1, 9))


def ike(body: int = 0, *, version: int = 0x20, length: int | None = None, spi: bytes = _SPI) -> bytes:
    size = 28 + body if length is None else length
    return spi + bytes(8) + bytes((33, version, 34, 8)) + bytes(4) + size.to_bytes(4, "big") + bytes(body)


def run(program: Program, packet: bytes) -> bool:
    """Whether a machine as in linux/filter.h lets *packet*, UDP header and all, pass."""
    at = a = x = 0
    while True:
        code, true, false, k = program[at]
        at += 1
        match code:
            case sockfilter.LD_WORD | sockfilter.LD_HALF | sockfilter.LD_OCTET:
                size = {sockfilter.LD_WORD: 4, sockfilter.LD_HALF: 2, sockfilter.LD_OCTET: 1}[code]
                if k + size > len(packet):
                    return False
                a = int.from_bytes(packet[k : k + size], "big")
            case sockfilter.LD_LENGTH:
                a = len(packet)
            case sockfilter.SUBTRACT:
                a = (a - k) & 0xFFFF_FFFF
            case sockfilter.SHIFT_RIGHT:
                a >>= k
            case sockfilter.COPY_TO_X:
                x = a
            case sockfilter.JUMP_EQUAL:
                at += true if a == k else false
            case sockfilter.JUMP_EQUAL_X:
                at += true if a == x else false
            case sockfilter.JUMP_AT_LEAST:
                at += true if a >= k else false
            case sockfilter.RETURN:
                return k != 0
            case _:
                raise AssertionError(f"instruction {code:#x}")


def possible(port: int, payload: bytes, source: int = 4500) -> bool:
    """What the programs should let pass, in words."""
    size = len(payload)
    if source == 0:
        return False
    if port == NATT_PORT:
        if size < 24:
            return payload == b"\xff"
        return size >= 32 or payload[:4] != bytes(4)
    if size < 28 or payload[17] >> 4 == 0:
        return False
    if payload[17] >> 4 != 2:
        return True
    return int.from_bytes(payload[24:28], "big") == size and payload[:8] != bytes(8)


CASES: list[bytes] = [
    b"", b"\xff", b"\0", b"\xff\xff", bytes(4), b"\0\0\0\1", bytes(27), bytes(28), bytes(31), bytes(32),
    b"\1" * 7, b"\1" * 8, b"\1" * 23, b"\1" * 24, b"\1" * 27, b"\1" * 28, b"\1" * 1400,
    ike(), ike(200), ike(200, length=227), ike(200, length=229), ike(200, length=2**32 - 1), ike(200, length=0),
    ike(spi=bytes(8)), ike(spi=bytes(7) + b"\1"), ike(spi=b"\1" + bytes(7)), ike(spi=bytes(4) + b"\1" + bytes(3)),
    *(ike(40, version=version) for version in range(256)),
    *(ike(40, version=version, length=5) for version in (0x00, 0x10, 0x20, 0x2F, 0x30, 0xF0)),
    bytes(4) + ike(), bytes(4) + ike(100), (bytes(4) + ike(100))[:31], bytes(4) + ike(100, length=7),
    *(ike(300)[:length] for length in range(0, 329, 7)),
]  # fmt: skip


@pytest.mark.parametrize("port", [IKE_PORT, NATT_PORT])
def test_the_model_says_what_the_words_say(port: int) -> None:
    dice = Random(1)
    noise = [dice.randbytes(dice.randrange(60)) for _ in range(5000)]
    half = [bytes(4) + dice.randbytes(dice.randrange(60)) for _ in range(1000)]
    for payload in [*CASES, *noise, *half]:
        for source in (0, 1, 500, 4500, 65535):
            header = source.to_bytes(2, "big") + port.to_bytes(2, "big") + (8 + len(payload)).to_bytes(2, "big")
            packet = header + bytes(2) + payload
            assert run(sockfilter.PROGRAMS[port], packet) == possible(port, payload, source), payload.hex()


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("port", [IKE_PORT, NATT_PORT])
@in_a_namespace
def test_the_kernel_drops_what_the_model_drops_and_counts_it(port: int, version: int) -> None:
    sock = opened(version, port)
    family, home = (socket.AF_INET, "127.0.0.1") if version == 4 else (socket.AF_INET6, "::1")
    with socket.socket(family, socket.SOCK_DGRAM) as sender:
        got: list[bytes] = []
        for payload in CASES:
            sender.sendto(payload, (home, port))
            got += [bytes(item.data) for item in sock.receive(64)]
    assert got == [payload for payload in CASES if possible(port, payload)]
    assert sock.kernel_drops == len(CASES) - len(got)
    sock.close()


@in_a_namespace
def test_a_full_queue_is_counted_too() -> None:
    sock = opened(4, 4500)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for _ in range(20_000):
            sender.sendto(b"\1" * 1000, ("127.0.0.1", 4500))
    received = 0
    while batch := sock.receive(64):
        received += sum(max(1, -(-len(item.data) // (item.segment_size or len(item.data)))) for item in batch)
    assert 0 < received < 20_000
    assert sock.kernel_drops == 20_000 - received
    sock.close()


@in_a_namespace
def test_a_forged_short_datagram_takes_no_merged_one_with_it() -> None:
    """A run whose first datagram is nonsense comes up whole: sizes alone decide on port 4500."""
    sock = opened(4, 4500)
    first, second = bytes(4) + b"\1" * 60, b"\1" * 64
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(17, 103, 64)  # UDP_SEGMENT: the loopback passes it on as one run
        sender.sendto(first + second, ("127.0.0.1", 4500))
    assert b"".join(bytes(item.data) for item in arrived(sock)) == first + second
    sock.close()


@pytest.mark.parametrize("version", [4, 6])
@in_a_namespace
def test_ike_on_port_4500_has_a_queue_of_its_own(version: int) -> None:
    """However full it is, ESP comes through."""
    wire = Wire(offload=True, path_mtu=lambda remote, mtu: None)
    data, apart = wire.sockets[version, 4500, 17], wire.sockets[version, 4500, 254]
    family, home = (socket.AF_INET, "127.0.0.1") if version == 4 else (socket.AF_INET6, "::1")
    message, packet = bytes(4) + ike(200), b"\1" * 200
    with socket.socket(family, socket.SOCK_DGRAM) as sender:
        for _ in range(20_000):
            sender.sendto(message, (home, 4500))
        for payload in (packet, b"\xff", packet):
            sender.sendto(payload, (home, 4500))
    assert apart.kernel_drops > 0
    assert data.kernel_drops == 0
    found = [bytes(item.data) for item in data.receive(16)]
    assert found == [packet, b"\xff", packet]
    assert data.apart is apart
    assert [bytes(item.data) for item in apart.receive(2)] == [message] * 2
    assert wire.errors["kernel"] == apart.kernel_drops
    wire.close()


@in_a_namespace
def test_a_run_that_begins_with_ike_is_taken_whole() -> None:
    wire = Wire(offload=True, path_mtu=lambda remote, mtu: None)
    message = bytes(4) + ike(32)
    run = message + b"\1" * len(message)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(17, 103, len(message))  # UDP_SEGMENT
        sender.sendto(run, ("127.0.0.1", 4500))
    (found,) = wire.sockets[4, 4500, 254].receive(16)
    assert (bytes(found.data), found.segment_size) == (run, len(message))
    wire.close()
