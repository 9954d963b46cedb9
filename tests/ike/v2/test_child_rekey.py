"""Rekeying Child SAs, with every collision of RFC 7296 sections 2.8.1 and 2.25.1."""

from __future__ import annotations

import pytest

from ike.constants import ExchangeType
from policy.clock import SECOND
from policy.lifetimes import Lifetime
from policy.proposals import Group
from tests.support.ike_pair import Node, Pair, site_a, site_b


def connected(**protection: object) -> Pair:
    pair = Pair(site_a(**protection), site_b(**protection))
    pair.connect()
    return pair


def rekey(pair: Pair, node: Node) -> None:
    [child] = [sa for sa in node.live if sa.replaces is None or sa.replaces not in node.installed]
    node.endpoint.rekey_child(child.child, pair.now)
    pair.drain(node)


@pytest.mark.parametrize("pfs", [None, Group.X25519, Group.ECP_256])
def test_make_before_break(pfs: Group | None) -> None:
    """
    A                                             B
    HDR, SK {N(REKEY_SA), SA, Ni, TSi, TSr} -->
                                           <--    HDR, SK {SA, Nr, TSi, TSr}       B: new installed, dormant
    A: new in use, old outbound gone
    HDR, SK {D}                             -->                                    B: new in use, old gone
                                           <--    HDR, SK {D}
    """
    pair = connected(pfs=pfs)
    [old_a], [old_b] = pair.a.live, pair.b.live
    rekey(pair, pair.a)
    pair.step()
    [_, new_b] = pair.b.live
    assert new_b.dormant
    assert new_b.replaces == old_b.child
    assert pair.b.sending == [old_b.spi_out]
    assert pair.a.sending == [old_a.spi_out]
    pair.step()
    [new_a] = pair.a.live
    assert not new_a.dormant
    assert new_a.replaces == old_a.child
    assert pair.a.removed[0].drain > 0
    assert pair.b.sending == [old_b.spi_out]
    pair.step()
    assert pair.b.sending == [new_b.spi_out]
    assert pair.b.removed[0].drain > 0
    pair.run()
    assert pair.agree()
    assert new_a.suite.group == (pfs or Group.NONE)
    assert pair.b.named("child_rekeyed")


@pytest.mark.parametrize("who", ["A", "B"])
@pytest.mark.parametrize("lost", range(4))
def test_each_message_of_a_rekey_may_be_lost(who: str, lost: int) -> None:
    pair = connected()
    node = pair.a if who == "A" else pair.b
    count = 0

    def lose_one(_: object) -> bool:
        nonlocal count
        count += 1
        return count != lost + 1

    pair.filter = lose_one
    rekey(pair, node)
    pair.wait(5 * SECOND)
    assert pair.agree()
    assert len(pair.a.live) == 1
    assert pair.a.live[0].replaces is not None
    assert pair.a.sending == [pair.a.live[0].spi_out]
    assert pair.b.sending == [pair.b.live[0].spi_out]


#: First octets of: A's Ni, B's Nr for it; B's Ni, A's Nr for it. The side whose exchange has the lowest loses.
COLLISIONS = [
    ((0x00, 0xFF), (0x80, 0x81), "B"),
    ((0x80, 0x00), (0x81, 0xFF), "B"),
    ((0x80, 0x81), (0x00, 0xFF), "A"),
    ((0x80, 0x81), (0xFF, 0x00), "A"),
]


@pytest.mark.parametrize(("ours", "theirs", "winner"), COLLISIONS)
def test_both_rekey_at_once(ours: tuple[int, int], theirs: tuple[int, int], winner: str) -> None:
    """
    A                                             B
    N(REKEY_SA), SA, Ni1, ...        -->  <--     N(REKEY_SA), SA, Ni2, ...
                                     X
    SA, Nr2, ...                     -->  <--     SA, Nr1, ...
    The one with the lowest nonce deletes what it made, the other deletes the old one.
    """
    pair = connected()
    pair.a.entropy.nonces.extend([ours[0], theirs[1]])
    pair.b.entropy.nonces.extend([theirs[0], ours[1]])
    rekey(pair, pair.a)
    rekey(pair, pair.b)
    assert [d.sender.name for d in pair.wire] == ["A", "B"]
    pair.run()
    assert pair.agree()
    [a], [b] = pair.a.live, pair.b.live
    assert a.replaces is not None
    made_by_a = not a.dormant
    assert made_by_a == (winner == "A")
    assert b.dormant == made_by_a
    assert pair.a.sending == [a.spi_out]
    assert pair.b.sending == [b.spi_out]
    assert not pair.a.named("negotiation_failed")


def test_collision_that_only_one_end_notices() -> None:
    """Section 2.8.1, second case: A's request is late, and comes when B's rekey is over.

    A                                             B
    N(REKEY_SA), ...                 -->| held
                                          <--     N(REKEY_SA), ...
    SA, Nr, ...                      -->
                                          <--     D
    D                                -->
                                     |--> (late)
                                          <--     N(CHILD_SA_NOT_FOUND)
    """
    pair = connected()
    rekey(pair, pair.a)
    late = pair.take()
    rekey(pair, pair.b)
    pair.run()
    pair.deliver(late)
    pair.run()
    assert pair.agree()
    assert len(pair.a.live) == 1
    assert pair.b.endpoint.counters()["CHILD_SA_NOT_FOUND"] == 1
    assert not pair.a.named("negotiation_failed")
    assert pair.a.sending == [pair.a.live[0].spi_out]


def test_rekey_against_delete() -> None:
    """Section 2.25.1: a request to rekey what we are deleting is TEMPORARY_FAILURE; the Delete is answered.

    A                                             B
    N(REKEY_SA), SA, Ni, ...         -->  <--     D
                                     X
    D                                -->  <--     N(TEMPORARY_FAILURE)
    """
    pair = connected()
    rekey(pair, pair.a)
    pair.b.endpoint.terminate_child(pair.b.live[0].child, pair.now)
    pair.drain(pair.b)
    pair.run()
    assert pair.a.live == pair.b.live == []
    assert pair.b.endpoint.counters()["TEMPORARY_FAILURE"] == 1
    pair.wait(60 * SECOND)
    assert pair.a.live == pair.b.live == []
    assert pair.a.states() == pair.b.states() == ["established"]


def test_both_delete_at_once() -> None:
    """Section 1.4.1: Deletes that cross are answered without Delete payloads, and nothing is deleted twice."""
    pair = connected()
    for node in (pair.a, pair.b):
        node.endpoint.terminate_child(node.live[0].child, pair.now)
        pair.drain(node)
    pair.run()
    assert pair.a.live == pair.b.live == []
    assert len(pair.a.removed) == len(pair.b.removed) == 1


def test_child_that_the_peer_lost_is_made_anew() -> None:
    """CHILD_SA_NOT_FOUND: the Child SA is of no use, and another takes its place."""
    pair = connected()
    pair.b.endpoint.terminate_child(pair.b.live[0].child, pair.now)
    pair.drain(pair.b)
    pair.wire.clear()  # the Delete stays unheard for now
    rekey(pair, pair.a)
    pair.run()
    pair.wait(10 * SECOND)
    assert pair.agree()


def test_soft_lifetime_rekeys_and_hard_lifetime_deletes() -> None:
    pair = connected(lifetime=Lifetime(time=100 * SECOND))
    first = pair.a.live[0].child
    pair.wait(99 * SECOND)
    assert pair.agree()
    assert pair.a.live[0].child != first
    # The peer falls silent: nothing is used beyond its lifetime.
    pair.filter = lambda datagram: False
    pair.wait(100 * SECOND)
    assert pair.a.live == pair.b.live == []


def test_rekeys_for_hours_leave_nothing_behind() -> None:
    pair = connected(lifetime=Lifetime(time=60 * SECOND))
    for _ in range(20):
        pair.wait(60 * SECOND)
        assert pair.agree()
        assert len(pair.a.live) == 1
    installed = [sa for sa in pair.a.history if type(sa).__name__ == "ChildInstalled"]
    assert len(installed) >= 20
    assert len(installed) - 1 == len(pair.a.removed)


def test_expire_by_octets() -> None:
    pair = connected()
    child = pair.a.live[0].child
    pair.a.endpoint.expire(child, False, pair.now)
    pair.a.endpoint.expire(child, False, pair.now)  # told twice, rekeyed once
    pair.drain(pair.a)
    pair.run()
    assert pair.agree()
    assert len(pair.a.removed) == 1
    pair.a.endpoint.expire(pair.a.live[0].child, True, pair.now)
    pair.drain(pair.a)
    pair.run()
    assert pair.a.live == pair.b.live == []


def test_rekey_while_the_ike_sa_is_rekeyed_waits() -> None:
    """Section 2.25.2: TEMPORARY_FAILURE, tried again later on the new IKE SA.

    A                                             B
    SA(IKE), Ni, KEi                 -->  <--     N(REKEY_SA), SA, Ni, ...
                                     X
    N(TEMPORARY_FAILURE)             -->  <--     N(TEMPORARY_FAILURE)
    """
    pair = connected()
    pair.a.endpoint.rekey_ike("gw-b", pair.now)
    pair.drain(pair.a)
    rekey(pair, pair.b)
    old = pair.a.endpoint.status(pair.now)[0].spi_i
    pair.run()
    pair.wait(30 * SECOND)
    assert pair.agree()
    assert pair.a.live[0].replaces is not None
    assert [s.spi_i for s in pair.a.endpoint.status(pair.now)] != [old]
    assert len(pair.a.endpoint.status(pair.now)) == len(pair.b.endpoint.status(pair.now)) == 1


def test_only_create_child_sa_and_informational_are_used() -> None:
    pair = connected()
    pair.a.sent.clear()
    rekey(pair, pair.a)
    pair.run()
    assert [d.exchange for d in pair.a.sent] == [ExchangeType.CREATE_CHILD_SA, ExchangeType.INFORMATIONAL]
