"""What guided fuzzing runs: for each parser of octets a function that holds its invariant, and its seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ike.errors import IkeError, WireError
from ike.wire.glance import glance, nonce_and_cookie
from ike.wire.message import parse_message, parse_payloads
from ike.wire.protected import Reassembler, open_message
from policy.path import Endpoint
from policy.path import Path as Way
from tests.fuzz.test_fuzz_config import SEEDS as CONFIGS
from tests.fuzz.test_fuzz_config import holds
from tests.fuzz.test_fuzz_dataplane import SEEDS as FRAMES
from tests.fuzz.test_fuzz_dataplane import _account, _encrypted, _receiver, _sender, _valid
from tests.fuzz.test_fuzz_ike_wire import CORPUS, bounded, survive, with_length
from tests.support.ike_messages import GCM as IKE_GCM
from tests.support.ike_messages import cipher
from tests.support.ike_pair import A, B, Pair
from tests.support.packets import GCM, mirrored, path, udp4
from tests.support.vectors import vectors
from tunnel.dataplane.contract import TunFrame, WireDatagrams
from tunnel.host import toobig

Target = Callable[[bytes], None]


def _recorded() -> list[bytes]:
    """Return the messages of the recorded sessions with strongSwan."""
    return [
        bytes.fromhex(octets)
        for session in vectors("strongswan_ikev2")["sessions"]
        for _, octets in session["datagrams"]
    ]


def _message(data: bytes) -> None:
    survive(data)
    survive(with_length(data.ljust(28, b"\0")))
    look = glance(data)
    if look is not None:
        nonce_and_cookie(look, data)


def _payloads(data: bytes) -> None:
    try:
        inner = parse_payloads(data[0] if data else 0, data[1:])
    except WireError:
        return
    for payload in inner:
        bounded(payload)


def _protected(data: bytes) -> None:
    try:
        message = parse_message(with_length(data.ljust(28, b"\0")))
        if message.protected is not None:
            open_message(cipher(IKE_GCM), message, Reassembler())
    except IkeError:
        return


class _Endpoint:
    """An established pair that lives on: what is sent to B finds it in whatever state it is by then."""

    def __init__(self) -> None:
        self.pair = Pair()
        self.pair.connect()
        self.way = Way(Endpoint(B, 500), Endpoint(A, 500))

    def __call__(self, data: bytes) -> None:
        pair = self.pair
        pair.now += 1_000_000_000
        pair.b.endpoint.receive(self.way, data, pair.now)
        while pair.b.endpoint.poll() is not None:
            pass
        assert pair.b.endpoint.counters().get("internal error", 0) == 0


class _Inbound:
    """Octets as ESP, and as what an authentic packet carries."""

    def __init__(self) -> None:
        self.plane = _receiver(GCM)
        self.number = 1

    def __call__(self, data: bytes) -> None:
        here = mirrored(path())
        self.number += 1
        for octets in (data, _encrypted(GCM, data, self.number)):
            self.plane.inbound([WireDatagrams(here, octets)], 0)
            _account(self.plane)
        if self.number > 500:  # its octets are limited
            self.__init__()  # type: ignore[misc]


class _Outbound:
    """Octets as a frame of the TUN, virtio header and all."""

    def __init__(self) -> None:
        self.plane = _sender(GCM, installed=True)
        self.count = 0

    def __call__(self, data: bytes) -> None:
        self.count += 1
        self.plane.outbound([TunFrame(memoryview(bytearray(data)))], self.count)
        _account(self.plane)
        if self.count > 500:
            self.__init__()  # type: ignore[misc]


def _config(data: bytes) -> None:
    holds(data.decode("utf-8", "replace"))


def _too_big(data: bytes) -> None:
    toobig.parse(data)


#: What is run, and what to begin from.
TARGETS: dict[str, tuple[Callable[[], Target], Callable[[], list[bytes]]]] = {
    "message": (lambda: _message, lambda: CORPUS + _recorded()),
    "payloads": (lambda: _payloads, lambda: [data[16:17] + data[28:] for data in CORPUS]),
    "protected": (lambda: _protected, lambda: CORPUS),
    "endpoint": (_Endpoint, lambda: CORPUS + _recorded()),
    "inbound": (_Inbound, lambda: [*_valid(GCM), udp4(b"data"), *(frame[10:] for frame in FRAMES)]),
    "outbound": (_Outbound, lambda: FRAMES),
    "config": (lambda: _config, lambda: [text.encode() for text in CONFIGS]),
    "too-big": (lambda: _too_big, lambda: [b"\2\0\0\0\0\0\5\0" + b"\x60" + bytes(5) + b"\x32" + bytes(33)]),
}


def seeds(name: str) -> Iterator[tuple[str, bytes]]:
    """Return names and octets of the files to begin from."""
    for number, data in enumerate(TARGETS[name][1]()):
        yield f"seed-{number:03}", bytes(data)
