"""Whole negotiations between two endpoints, without loss."""

from __future__ import annotations

from ike.constants import ExchangeType
from policy.path import Endpoint
from policy.spd import Mode
from tests.support.ike_pair import A, B, Pair


def test_four_messages_make_a_child_sa() -> None:
    """A and B: a preshared key, one Child SA, both ends with the same keys.

    A                                              B
    HDR, SAi1, KEi, Ni, N, V                -->
                                            <--    HDR, SAr1, KEr, Nr, N, V
    HDR, SK {IDi, IDr, AUTH, SAi2, TSi, TSr} -->
                                            <--    HDR, SK {IDr, AUTH, SAr2, TSi, TSr}
    """
    pair = Pair()
    pair.acquire(pair.a)
    seen = []
    while pair.wire:
        datagram = pair.step()
        seen.append((datagram.sender.name, datagram.exchange, datagram.response))
    assert seen == [
        ("A", ExchangeType.IKE_SA_INIT, False),
        ("B", ExchangeType.IKE_SA_INIT, True),
        ("A", ExchangeType.IKE_AUTH, False),
        ("B", ExchangeType.IKE_AUTH, True),
    ]
    assert pair.agree()
    [ours], [theirs] = pair.a.live, pair.b.live
    assert ours.mode is Mode.TUNNEL
    assert str(ours.selectors[0]) == "10.1.0.0/24 <-> 10.2.0.0/24"
    assert theirs.selectors[0] == ours.selectors[0].mirror()
    assert ours.path.local == Endpoint(A, 0)
    assert ours.path.remote == Endpoint(B, 0)
    for node in (pair.a, pair.b):
        assert node.states() == ["established"]
        assert len(node.named("ike_established")) == len(node.named("child_established")) == 1
