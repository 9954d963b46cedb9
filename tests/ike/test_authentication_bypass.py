"""Authentication bypassed by the flow of messages, or by an AUTH that nobody looks at.

Whoever lacks the key may have finished IKE_SA_INIT, and so can seal what he likes. Invariant: nothing that he
sends in place of a genuine AUTH makes an IKE SA established, or a Child SA, at the end that has the key.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from ike.constants import ExchangeType
from ike.v2.channel import Channel
from ike.wire.header import Header
from ike.wire.payloads import AuthPayload, EapPayload, NotifyPayload, Payload
from policy.model import PresharedKey
from policy.secret import Secret
from tests.support.ike_pair import Pair, site_a, with_peer

LIAR = (PresharedKey(secret=Secret(b"what the liar thinks that it is")),)
EAP_SUCCESS = bytes((3, 1, 0, 4))
Change = Callable[[AuthPayload], list[Payload]]

LIES: dict[str, Change] = {
    "its own AUTH": lambda auth: [auth],
    "no AUTH": lambda auth: [],
    "EAP success": lambda auth: [EapPayload(EAP_SUCCESS)],
    "EAP success and no octets": lambda auth: [EapPayload(EAP_SUCCESS), AuthPayload(auth.method, b"")],
    "EAP of nothing": lambda auth: [EapPayload(b"")],
    "no octets": lambda auth: [AuthPayload(auth.method, b"")],
    "zeros": lambda auth: [AuthPayload(auth.method, bytes(len(auth.data)))],
    "a prefix": lambda auth: [AuthPayload(auth.method, auth.data[:1])],
    "far too long": lambda auth: [AuthPayload(auth.method, auth.data * 100)],
    "two of them": lambda auth: [auth, AuthPayload(auth.method, b"")],
    "a status notify instead": lambda auth: [NotifyPayload(16417)],  # EAP_ONLY_AUTHENTICATION (RFC 5998)
    **{
        f"method {number}": lambda auth, number=number: [AuthPayload(number, auth.data)]  # type: ignore[misc]
        for number in (0, 1, 3, 9, 10, 11, 12, 13, 14, 255)
    },
    **{
        f"method {number} and no octets": lambda auth, number=number: [AuthPayload(number, b"")]  # type: ignore[misc]
        for number in (0, 1, 2, 3, 9, 13, 14, 255)
    },
}  # fmt: skip


def lying(monkeypatch: pytest.MonkeyPatch, change: Change, *, response: bool) -> None:
    """Whoever sends IKE_AUTH in that direction changes its AUTH."""
    original = Channel.seal

    def seal(
        self: Channel, header: Header, payloads: Sequence[Payload], fragment: int | None
    ) -> tuple[bytes, ...]:
        parts: list[Payload] = []
        for payload in payloads:
            lies = header.exchange == ExchangeType.IKE_AUTH and header.response == response
            parts += change(payload) if lies and isinstance(payload, AuthPayload) else [payload]
        return original(self, header, parts, fragment)

    monkeypatch.setattr(Channel, "seal", seal)


@pytest.mark.parametrize("lie", LIES)
def test_an_initiator_without_the_key_gets_nothing(monkeypatch: pytest.MonkeyPatch, lie: str) -> None:
    """CVE-2015-8023, CVE-2020-16088, CVE-2004-0155: an AUTH that is of no method, empty, or not there."""
    lying(monkeypatch, LIES[lie], response=False)
    pair = Pair(a=with_peer(site_a(), authentication=LIAR), check=False)
    pair.acquire(pair.a)
    pair.run()
    assert pair.b.live == []
    assert pair.b.named("ike_established") == []
    assert "established" not in pair.b.states()


@pytest.mark.parametrize("lie", LIES)
def test_a_responder_without_the_key_gets_nothing(monkeypatch: pytest.MonkeyPatch, lie: str) -> None:
    """CVE-2021-45079, CVE-2023-26463: success that is said before it is proven."""
    lying(monkeypatch, LIES[lie], response=True)
    pair = Pair(a=with_peer(site_a(), authentication=LIAR), check=False)
    pair.acquire(pair.b)  # here B, which has the key, is the initiator; A is the liar
    pair.run()
    assert pair.b.live == []
    assert pair.b.named("ike_established") == []
    assert "established" not in pair.b.states()


def test_ones_own_auth_come_back_is_not_the_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Class of CVE-2015-8023: the octets are genuine, and the other end's."""
    seen: list[AuthPayload] = []
    original = Channel.seal

    def seal(
        self: Channel, header: Header, payloads: Sequence[Payload], fragment: int | None
    ) -> tuple[bytes, ...]:
        parts = list(payloads)
        if header.exchange == ExchangeType.IKE_AUTH and not header.response:
            seen.extend(payload for payload in parts if isinstance(payload, AuthPayload))
        elif header.exchange == ExchangeType.IKE_AUTH:
            parts = [seen[0] if isinstance(payload, AuthPayload) else payload for payload in parts]
        return original(self, header, parts, fragment)

    monkeypatch.setattr(Channel, "seal", seal)
    pair = Pair(check=False)
    pair.acquire(pair.a)
    pair.run()
    assert seen
    assert pair.a.live == []
    assert pair.a.named("ike_established") == []
