"""A peer with the right keys and the wrong payloads: missing, doubled, swapped, mangled.

Invariant: no internal error, no Child SA on one side of a refused exchange that stays, and the endpoint goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from ike.events import ChildInstalled
from ike.v2.channel import Channel
from ike.wire.header import Header
from ike.wire.payloads import (
    AuthPayload,
    DeletePayload,
    IdPayload,
    KePayload,
    NoncePayload,
    NotifyPayload,
    Payload,
    SaPayload,
    TsPayload,
    UnknownPayload,
)
from policy.clock import SECOND
from policy.pad import Identity
from policy.proposals import Group
from tests.support.ike_pair import Pair, selector, site_a, site_b, with_peer

Change = Callable[[list[Payload]], list[Payload]]


def mangled(payload: Payload) -> Payload:
    """Return the payload with another meaning of the same type."""
    match payload:
        case SaPayload(proposals):
            return SaPayload(
                tuple(type(p)(p.number, p.protocol, bytes(len(p.spi)), p.transforms) for p in proposals)
            )
        case KePayload(group):
            return KePayload(group, b"\x00")
        case NoncePayload():
            return NoncePayload(bytes(256))
        case IdPayload(initiator):
            return IdPayload(initiator, Identity(250, b"\xff\x00\n"))
        case AuthPayload(method, data):
            return AuthPayload(method, data[:-1])
        case NotifyPayload(kind):
            return NotifyPayload(kind, 77, b"\x00" * 200, b"\x01")
        case DeletePayload():
            return DeletePayload(99, (b"\x01\x02",))
        case TsPayload(initiator):
            return TsPayload(initiator, (selector("::/0"),))
        case _:
            return payload


CHANGES: dict[str, Callable[[int], Change]] = {
    "missing": lambda n: lambda parts: parts[:n] + parts[n + 1 :],
    "doubled": lambda n: lambda parts: [*parts[: n + 1], *parts[n:]],
    "first": lambda n: lambda parts: [*parts[n : n + 1], *parts[:n], *parts[n + 1 :]],
    "mangled": lambda n: lambda parts: [mangled(p) if i == n else p for i, p in enumerate(parts)],
    "critical": lambda n: lambda parts: [*parts[:n], UnknownPayload(200, True, b"?"), *parts[n:]],
    "unknown": lambda n: lambda parts: [*parts[:n], UnknownPayload(201, False, b"?"), *parts[n:]],
    "only": lambda n: lambda parts: parts[n : n + 1],
    "crowd": lambda n: lambda parts: [*parts, *[NotifyPayload(40_000 + n)] * (64 - len(parts))],
}


def rekey_child(pair: Pair) -> None:
    pair.a.endpoint.rekey_child(pair.a.live[0].child, pair.now)


def rekey_ike(pair: Pair) -> None:
    pair.a.endpoint.rekey_ike("gw-b", pair.now)


def delete_child(pair: Pair) -> None:
    pair.a.endpoint.terminate_child(pair.a.live[0].child, pair.now)


def delete_ike(pair: Pair) -> None:
    pair.a.endpoint.terminate_peer("gw-b", pair.now)


@pytest.mark.parametrize("place", [0, 1, 2, 4, 6])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("response", [False, True])
@pytest.mark.parametrize("act", [None, rekey_child, rekey_ike, delete_child, delete_ike])
def test_wrong_payloads(
    monkeypatch: pytest.MonkeyPatch, act: Callable[[Pair], None] | None, response: bool, change: str, place: int
) -> None:
    original = Channel.seal
    armed = act is None

    def seal(
        self: Channel, header: Header, payloads: Sequence[Payload], fragment: int | None
    ) -> tuple[bytes, ...]:
        nonlocal armed
        parts = list(payloads)
        if armed and header.response == response:
            armed = False
            parts = CHANGES[change](place)(parts)
        return original(self, header, parts, fragment)

    monkeypatch.setattr(Channel, "seal", seal)
    protection = {"pfs": Group.X25519}
    pair = Pair(site_a(**protection), site_b(**protection))
    pair.acquire(pair.a)
    pair.run()
    if act is not None:
        armed = True
        act(pair)
        pair.drain(pair.a)
    pair.wait(60 * SECOND)
    # Whatever came of it, both ends can talk again.
    for _ in range(3):
        pair.acquire(pair.a)
        pair.wait(60 * SECOND)
    assert pair.a.live
    assert pair.a.live[-1].spi_out in {sa.spi_in for sa in pair.b.live}


def installed(pair: Pair) -> int:
    return sum(isinstance(each, ChildInstalled) for node in (pair.a, pair.b) for each in node.history)


def test_what_was_deleted_is_not_used_again() -> None:
    """CVE-2023-30570, CVE-2023-38710, CVE-2024-2357: messages for SAs that an error or a Delete ended."""
    pair = Pair()
    pair.connect()
    for node in (pair.a, pair.b):
        node.endpoint.rekey_child(node.live[0].child, pair.now)
        pair.drain(node)
    pair.run()
    pair.a.endpoint.rekey_ike("gw-b", pair.now)
    pair.drain(pair.a)
    pair.run()
    pair.a.endpoint.terminate_peer("gw-b", pair.now)
    pair.drain(pair.a)
    pair.run()
    assert pair.a.live == pair.b.live == []
    before = installed(pair)
    for datagram in [*pair.a.sent, *pair.b.sent]:
        pair.deliver(datagram)
    pair.run()
    assert pair.a.live == pair.b.live == []
    pair.wait(120 * SECOND)
    assert installed(pair) == before
    assert pair.a.endpoint.status(pair.now) == pair.b.endpoint.status(pair.now) == []


def test_what_a_peer_calls_itself_stays_one_printable_line() -> None:
    """CVE-2023-28771: what a peer says goes to the log, and must not be able to say more there than its name."""
    hostile = "gw-b\n2026 info ready: all is well; $(reboot) `id` \x1b[2J\u202e"
    snapshot = with_peer(site_b(), local_id=Identity.parse(hostile))
    pair = Pair(site_a(), snapshot)
    pair.acquire(pair.a)
    pair.run()
    assert pair.a.live == []
    events = [event for node in (pair.a, pair.b) for event in node.events]
    assert any("gw-b\\n2026" in event.message for event in events)
    for event in events:
        for text in (event.message, *map(str, event.fields.values())):
            assert text.isprintable(), text
