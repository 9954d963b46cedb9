"""Rekeying the IKE SA, with the collisions of RFC 7296 sections 2.8.2 and 2.25.2."""

from __future__ import annotations

from dataclasses import replace

import pytest

from policy.clock import SECOND
from policy.lifetimes import Lifetime
from tests.support.ike_pair import IKE_ECP256, IKE_X25519, Node, Pair, site_a, site_b, with_ike


def rekey(pair: Pair, node: Node) -> None:
    node.endpoint.rekey_ike("gw-b" if node is pair.a else "gw-a", pair.now)
    pair.drain(node)


def spis(node: Node) -> list[tuple[bytes, bytes]]:
    return [(status.spi_i, status.spi_r) for status in node.endpoint.status(0)]


@pytest.mark.parametrize("who", ["A", "B"])
def test_children_move_to_the_successor(who: str) -> None:
    """
    A                                       B
    HDR, SK {SA, Ni, KEi}            -->
                                    <--     HDR, SK {SA, Nr, KEr}
    HDR(old), SK {D}                 -->
                                    <--     HDR(old), SK {}
    """
    pair = Pair()
    pair.connect()
    before = spis(pair.a)
    children = [sa.child for sa in pair.a.live]
    rekey(pair, pair.a if who == "A" else pair.b)
    pair.run()
    assert spis(pair.a) == spis(pair.b) != before
    assert [sa.child for sa in pair.a.live] == children
    assert pair.a.removed == []
    # The roles of the new IKE SA are those of the exchange, and it works both ways.
    assert pair.a.endpoint.status(0)[0].role == ("initiator" if who == "A" else "responder")
    pair.a.endpoint.rekey_child(pair.a.live[0].child, pair.now)
    pair.drain(pair.a)
    pair.run()
    pair.b.endpoint.rekey_child(pair.b.live[0].child, pair.now)
    pair.drain(pair.b)
    pair.run()
    assert pair.agree()
    pair.wait(40 * SECOND)
    assert len(spis(pair.a)) == len(spis(pair.b)) == 1


@pytest.mark.parametrize("lost", range(4))
def test_each_message_may_be_lost(lost: int) -> None:
    pair = Pair()
    pair.connect()
    count = 0

    def lose_one(_: object) -> bool:
        nonlocal count
        count += 1
        return count != lost + 1

    pair.filter = lose_one
    rekey(pair, pair.a)
    pair.wait(10 * SECOND)
    assert spis(pair.a) == spis(pair.b)
    assert pair.agree()
    assert pair.a.removed == []


@pytest.mark.parametrize(
    ("ours", "theirs", "winner"),
    [
        ((0x00, 0xFF), (0x80, 0x81), "B"),
        ((0x80, 0x00), (0x81, 0xFF), "B"),
        ((0x80, 0x81), (0x00, 0xFF), "A"),
        ((0x80, 0x81), (0xFF, 0x00), "A"),
    ],
)
def test_both_rekey_at_once(ours: tuple[int, int], theirs: tuple[int, int], winner: str) -> None:
    """The IKE SA with the lowest nonce goes, by its creator; the Child SAs move to the other (2.8.2)."""
    pair = Pair()
    pair.connect()
    # The order of 32-octet draws: the nonce, then the X25519 key, for the request; the key, then the nonce,
    # for the response.
    pair.a.entropy.nonces.extend([ours[0], 1, 2, theirs[1]])
    pair.b.entropy.nonces.extend([theirs[0], 1, 2, ours[1]])
    rekey(pair, pair.a)
    rekey(pair, pair.b)
    pair.run()
    pair.wait(40 * SECOND)
    assert spis(pair.a) == spis(pair.b)
    [status] = pair.a.endpoint.status(0)
    assert status.role == ("initiator" if winner == "A" else "responder")
    assert status.children == tuple(sa.child for sa in pair.a.live)
    assert pair.agree()
    assert pair.a.removed == pair.b.removed == []


def test_collision_that_only_one_end_notices() -> None:
    """A's request is late; B's rekey is over when it comes, and the old IKE SA is gone."""
    pair = Pair()
    pair.connect()
    rekey(pair, pair.a)
    late = pair.take()
    rekey(pair, pair.b)
    pair.run()
    pair.deliver(late)
    pair.run()
    pair.wait(40 * SECOND)
    assert spis(pair.a) == spis(pair.b)
    assert len(spis(pair.a)) == 1
    assert pair.agree()
    assert pair.a.removed == []


def test_rekey_while_a_child_is_created_is_put_off() -> None:
    """Section 2.25.2: TEMPORARY_FAILURE both ways, and both get their way later."""
    pair = Pair()
    pair.connect()
    before = spis(pair.a)
    pair.b.endpoint.rekey_child(pair.b.live[0].child, pair.now)
    pair.drain(pair.b)
    rekey(pair, pair.a)
    pair.run()
    pair.wait(30 * SECOND)
    assert spis(pair.a) == spis(pair.b) != before
    assert pair.agree()
    assert pair.a.live[0].replaces is not None


def test_rekey_against_delete_of_the_ike_sa() -> None:
    """Section 2.25.2: who is asked to close what it rekeys, closes."""
    pair = Pair()
    pair.connect()
    rekey(pair, pair.a)
    pair.b.endpoint.terminate_peer("gw-a", pair.now)
    pair.drain(pair.b)
    pair.run()
    pair.wait(30 * SECOND)
    assert spis(pair.a) == spis(pair.b) == []
    assert pair.a.live == pair.b.live == []


def test_another_group_is_asked_for_with_invalid_ke() -> None:
    """B came to prefer another group: INVALID_KE_PAYLOAD, then the group that B names."""
    both = (replace(IKE_X25519, groups=(*IKE_X25519.groups, *IKE_ECP256.groups)),)
    pair = Pair(with_ike(site_a(), proposals=both), with_ike(site_b(), proposals=both))
    pair.connect()
    only = (replace(IKE_X25519, groups=IKE_ECP256.groups),)
    [sa] = pair.b.endpoint._core.sas.values()
    assert sa.peer is not None
    sa.peer = replace(sa.peer, ike=replace(sa.peer.ike, proposals=only))
    rekey(pair, pair.a)
    pair.run()
    assert spis(pair.a) == spis(pair.b)
    assert "ECP-256" in pair.a.endpoint.status(0)[0].suite


def test_lifetime_rekeys_the_ike_sa() -> None:
    life = Lifetime(time=100 * SECOND)
    pair = Pair(with_ike(site_a(), lifetime=life), with_ike(site_b(), lifetime=life))
    pair.connect()
    before = spis(pair.a)
    for _ in range(5):
        pair.wait(100 * SECOND)
        assert spis(pair.a) == spis(pair.b) != before
        assert len(spis(pair.a)) == 1
        before = spis(pair.a)
    assert pair.agree()
    assert pair.a.removed == []


def test_the_peer_may_use_its_successor_before_we_know_that_it_stands() -> None:
    """B's rekey is over for B, while A still waits for the answer to its own; Child SAs of both stay.

    A                                       B
    SA, Ni1, KEi               -->| held
                              <--           SA, Ni2, KEi
    SA, Nr, KEr                -->
                              <--(new)      N(REKEY_SA), SA, Ni, TSi, TSr     before the Delete of the old
    """
    pair = Pair()
    pair.connect()
    rekey(pair, pair.a)
    late = pair.take()
    rekey(pair, pair.b)
    pair.step()
    pair.step()
    delete = pair.take()  # D(old) is overtaken
    pair.b.endpoint.rekey_child(pair.b.live[0].child, pair.now)
    pair.drain(pair.b)
    pair.run()
    pair.deliver(delete)
    pair.deliver(late)
    pair.run()
    pair.wait(40 * SECOND)
    assert pair.agree()
    assert pair.a.live[0].replaces is not None
    assert spis(pair.a) == spis(pair.b)
    assert not any("does not have it" in removed.reason for removed in pair.b.removed)


def test_a_successor_that_the_peer_deletes_takes_the_ike_sa_along() -> None:
    """A terminates while both rekey: nothing is left on either side, and nothing lingers."""
    pair = Pair()
    pair.connect()
    rekey(pair, pair.a)
    rekey(pair, pair.b)
    pair.a.endpoint.terminate_peer("gw-b", pair.now)
    pair.drain(pair.a)
    pair.run()
    pair.wait(60 * SECOND)
    assert pair.a.live == pair.b.live == []
    assert spis(pair.a) == spis(pair.b) == []
