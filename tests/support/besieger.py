"""Garbage for a daemon's ports, as fast as is asked for: a program of its own, run in a namespace.

    python -m tests.support.besieger ADDRESS SECONDS MBIT_PER_S SEEDS KIND,KIND...

SEEDS has payloads of datagrams that the daemon was sent before, hex, a line each; an IKE_SA_INIT request is among
them. Every kind has the same share of the octets. Prints as JSON how many datagrams of each were sent, how many
octets, IP headers and all, and in how many seconds.
"""

from __future__ import annotations

import json
import random
import socket
import struct
import sys
import time
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

IKE, NATT = 500, 4500
_IKE_SA_INIT = 34
_PREPARED = 4000


class Shot(NamedTuple):
    """One datagram. *source* None: from a socket of ours, the kernel fragments; *more*: a first fragment."""

    payload: bytes
    port: int
    source: tuple[str, int] | None = None
    more: bool = False


Seeds = Sequence[bytes]
Kind = Callable[[random.Random, Seeds, int], Shot]


def _port(dice: random.Random) -> int:
    return dice.choice((IKE, NATT))


def _home(payload: bytes) -> tuple[bytes, int]:
    """Return the payload and the port that it was seen on: IKE without a marker is of port 500."""
    return payload, IKE if payload[17:18] == b"\x20" and payload[:4] != bytes(4) else NATT


def _stranger(dice: random.Random) -> tuple[str, int]:
    """Any address, and one in ten times one of the peer's: 10.9.0.2."""
    if dice.random() < 0.1:
        return "10.9.0.2", dice.choice((500, 4500, dice.randrange(1, 65536)))
    address = ip_address(dice.randrange(0x0B00_0000, 0x6400_0000))
    return str(address), dice.choice((500, 4500, dice.randrange(1, 65536)))


def _random_octets(dice: random.Random, known: Seeds, number: int) -> Shot:
    return Shot(dice.randbytes(dice.choice((0, 1, 3, 4, 5, 27, 28, 29, dice.randrange(1400)))), _port(dice))


def _headed(dice: random.Random, known: Seeds, number: int) -> Shot:
    """A header that makes sense, and nonsense after it; the length is right half of the time."""
    front, port = _home(dice.choice(known))
    at = 4 if port == NATT and front[:4] == bytes(4) else 0
    body = dice.randbytes(dice.randrange(300))
    front = front[: at + 28]
    if dice.random() < 0.5:
        front = front[: at + 24] + (28 + len(body)).to_bytes(4, "big")
    return Shot(front + body, port)


def _truncated(dice: random.Random, known: Seeds, number: int) -> Shot:
    """Each message is cut everywhere, one after the other; then the rest at chance."""
    lengths = [len(seed) for seed in known]
    number %= sum(lengths)
    for seed in known:
        if number < len(seed):
            whole, port = _home(seed)
            return Shot(whole[:number], port)
        number -= len(seed)
    raise AssertionError


def _mended(dice: random.Random, known: Seeds, number: int) -> Shot:
    """The same, but the IKE header says the length that there is."""
    shot = _truncated(dice, known, dice.randrange(1 << 30))
    at = 4 if shot.port == NATT and shot.payload[:4] == bytes(4) else 0
    if len(shot.payload) < at + 28:
        return shot
    length = (len(shot.payload) - at).to_bytes(4, "big")
    return shot._replace(payload=shot.payload[: at + 24] + length + shot.payload[at + 28 :])


def _wrong_bit(dice: random.Random, known: Seeds, number: int) -> Shot:
    whole, port = _home(dice.choice(known))
    octets = bytearray(whole)
    octets[dice.randrange(len(octets))] ^= 1 << dice.randrange(8)
    return Shot(bytes(octets), port)


def _replayed(dice: random.Random, known: Seeds, number: int) -> Shot:
    """From elsewhere, or as if from the peer itself."""
    whole, port = _home(known[number % len(known)])
    return Shot(whole, port, dice.choice((None, ("10.9.0.2", port), _stranger(dice))))


def _oversized(dice: random.Random, known: Seeds, number: int) -> Shot:
    front, port = _home(dice.choice(known))
    return Shot(front[:40] + dice.randbytes(dice.choice((1500, 9000, 65000))), port)


def _fragment(dice: random.Random, known: Seeds, number: int) -> Shot:
    """The first fragment of a datagram whose rest never comes."""
    front, port = _home(dice.choice(known))
    return Shot((front + bytes(400))[:400], port, _stranger(dice), more=True)


def _init(dice: random.Random, known: Seeds, number: int) -> Shot:
    """A valid IKE_SA_INIT request of nobody: the dearest that a stranger can send."""
    request = next(seed for seed in known if seed[18:19] == bytes((_IKE_SA_INIT,)) and seed[8:16] == bytes(8))
    return Shot(dice.randbytes(8) + request[8:], IKE, _stranger(dice))


def _init_natt(dice: random.Random, known: Seeds, number: int) -> Shot:
    """The same on the port that ESP comes to."""
    shot = _init(dice, known, number)
    return shot._replace(payload=bytes(4) + shot.payload, port=NATT)


def _esp(dice: random.Random, known: Seeds, number: int) -> Shot:
    """ESP for no SA, of a data packet's size."""
    return Shot(b"\x5a" + dice.randbytes(dice.choice((91, 399, 1399))), NATT, _stranger(dice))


def _sealed(dice: random.Random, known: Seeds, number: int) -> Shot:
    """ESP of an SA that is there, with a new number and a wrong ICV, as if from the peer."""
    packets = [seed for seed in known if seed[:4] != bytes(4) and _home(seed)[1] == NATT]
    return Shot(packets[-1][:4] + dice.randbytes(100), NATT, ("10.9.0.2", NATT))


KINDS: dict[str, Kind] = {
    "random": _random_octets, "headed": _headed, "truncated": _truncated, "mended": _mended, "bit": _wrong_bit,
    "replayed": _replayed, "oversized": _oversized, "fragment": _fragment, "init": _init, "init-natt": _init_natt,
    "esp": _esp, "sealed": _sealed,
}  # fmt: skip
_HEADERS = struct.Struct("!BBHHHBBH4s4sHHHH")


def _raw(shot: Shot, target: bytes, number: int) -> bytes:
    """Return the IPv4 packet of a forged source; the kernel fills in the header's checksum."""
    if shot.source is None:
        raise ValueError("it comes from a socket of ours")
    source, port = ip_address(shot.source[0]).packed, shot.source[1]
    size = 8 + len(shot.payload)
    # No UDP checksum; a fragment's UDP header speaks of more than is there.
    return (
        _HEADERS.pack(
            0x45, 0, 20 + size, number & 0xFFFF or 1, 0x2000 if shot.more else 0, 64, 17, 0, source, target,
            port, shot.port, size + (800 if shot.more else 0), 0,
        )
        + shot.payload
    )  # fmt: skip


def besiege(address: str, seconds: float, rate: float, known: Seeds, kinds: Sequence[str]) -> dict[str, object]:
    """Send for *seconds* at *rate* bits a second, each of *kinds* the same octets; return what was sent."""
    dice, target = random.Random(2), ip_address(address).packed
    plain = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(8)]
    forged = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    prepared = max(_PREPARED, sum(map(len, known)))  # as many as there are truncations
    shots = {kind: [KINDS[kind](dice, known, number) for number in range(prepared)] for kind in kinds}
    ready = {
        kind: [(shot, _raw(shot, target, n) if shot.source else shot.payload) for n, shot in enumerate(made)]
        for kind, made in shots.items()
    }
    sent, octets = dict.fromkeys(kinds, 0), dict.fromkeys(kinds, 0)
    begun = time.monotonic()
    while (passed := time.monotonic() - begun) < seconds:
        behind = [kind for kind in kinds if octets[kind] * 8 * len(kinds) < rate * passed]
        if not behind:
            time.sleep(0.001)
        for kind in behind:
            for _ in range(8):
                shot, data = ready[kind][sent[kind] % prepared]
                sent[kind] += 1
                octets[kind] += len(data) + (0 if shot.source else 28)
                try:
                    if shot.source:
                        forged.sendto(data, (address, 0))
                    else:
                        plain[sent[kind] % len(plain)].sendto(data, (address, shot.port))
                except OSError:  # an ICMP error for one before
                    continue
                if octets[kind] * 8 * len(kinds) >= rate * passed:
                    break
    passed = time.monotonic() - begun
    return {"sent": sent, "octets": sum(octets.values()), "seconds": passed}


if __name__ == "__main__":
    _, where, for_how_long, megabits, capture, names = sys.argv
    lines = Path(capture).read_text().split()
    seeds = [bytes.fromhex(line) for line in lines]
    print(json.dumps(besiege(where, float(for_how_long), float(megabits) * 1e6, seeds, names.split(","))))
