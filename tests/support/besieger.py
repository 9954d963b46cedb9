"""Garbage for a daemon's ports, as fast as is asked for: a program of its own, run in a namespace.

    python -m tests.support.besieger ADDRESS SECONDS MBIT_PER_S CAPTURE

Random octets, truncations and single wrong bits of the datagrams in CAPTURE (their payloads, hex, a line each),
whole replays of them, and datagrams too large for the link; to UDP ports 500 and 4500. Prints how many were sent.
"""

from __future__ import annotations

import random
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path


def _random_octets(dice: random.Random, known: Sequence[bytes]) -> bytes:
    return dice.randbytes(dice.choice((0, 1, 3, 4, 5, 27, 28, 29, dice.randrange(1400))))


def _headed(dice: random.Random, known: Sequence[bytes]) -> bytes:
    """A header that makes sense, and nonsense after it."""
    return dice.choice(known)[:28] + dice.randbytes(dice.randrange(300))


def _truncated(dice: random.Random, known: Sequence[bytes]) -> bytes:
    whole = dice.choice(known)
    return whole[: dice.randrange(len(whole) + 1)]


def _wrong_bit(dice: random.Random, known: Sequence[bytes]) -> bytes:
    whole = bytearray(dice.choice(known))
    whole[dice.randrange(len(whole))] ^= 1 << dice.randrange(8)
    return bytes(whole)


def _replayed(dice: random.Random, known: Sequence[bytes]) -> bytes:
    return dice.choice(known)


def _oversized(dice: random.Random, known: Sequence[bytes]) -> bytes:
    return dice.choice(known)[:40] + dice.randbytes(dice.choice((1500, 9000)))


KINDS: tuple[Callable[[random.Random, Sequence[bytes]], bytes], ...] = (
    _random_octets, _headed, _truncated, _wrong_bit, _replayed, _oversized,
)  # fmt: skip


def besiege(address: str, seconds: float, rate: float, known: Sequence[bytes]) -> int:
    """Send for *seconds* at *rate* bits a second; return the number of datagrams."""
    dice = random.Random(2)
    sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(8)]
    prepared = [dice.choice(KINDS)(dice, known) for _ in range(20_000)]
    begun = time.monotonic()
    sent = octets = 0
    while (passed := time.monotonic() - begun) < seconds:
        if octets * 8 > rate * passed:
            time.sleep(0.002)
            continue
        for _ in range(16):
            data = prepared[sent % len(prepared)]
            try:
                sockets[sent % len(sockets)].sendto(data, (address, (500, 4500)[sent // 3 % 2]))
            except OSError:  # an ICMP error for one before
                continue
            finally:
                sent += 1
                octets += len(data) + 28
    return sent


if __name__ == "__main__":
    _, where, for_how_long, megabits, capture = sys.argv
    lines = Path(capture).read_text().split()
    print(besiege(where, float(for_how_long), float(megabits) * 1e6, [bytes.fromhex(line) for line in lines]))
