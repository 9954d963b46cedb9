"""NAT traversal, encapsulation, fragmentation and keepalives (RFC 7296 section 2.23, RFC 3948, RFC 7383)."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from ike.constants import ExchangeType, NotifyType, PayloadType
from ike.wire.message import parse_message
from ike.wire.payloads import VendorIdPayload
from policy.clock import SECOND
from policy.model import Encapsulation
from policy.path import Endpoint, Path
from tests.support.ike_pair import A, B, Datagram, Pair, site_a, site_b, with_ike

AUTO = {"encapsulation": Encapsulation.AUTO}
OUTSIDE = ip_address("203.0.113.9")


def behind_nat(**protection: object) -> Pair:
    """A sits behind a NAT that maps its ports to others; B knows A as the NAT's address."""
    a, b = site_a(**protection), site_b(**protection)
    peer = replace(b.pad.peers[0], address=OUTSIDE)
    pair = Pair(a, replace(b, pad=replace(b.pad, peers=(peer,))))
    pair.nat = {Endpoint(A, 500): Endpoint(OUTSIDE, 30500), Endpoint(A, 4500): Endpoint(OUTSIDE, 34500)}
    return pair


def test_no_nat_no_vendor_id_no_encapsulation(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer of another make without a NAT: raw ESP, IKE stays on port 500."""
    monkeypatch.setattr("ike.v2.tasks.ike_init.VENDOR_ID", b"something else")
    pair = Pair(site_a(**AUTO), site_b(**AUTO))
    monkeypatch.setattr("ike.v2.tasks.ike_init.learn", forgetful(monkeypatch))
    pair.connect()
    assert pair.a.live[0].path == Path(Endpoint(A, 0), Endpoint(B, 0))
    assert {d.path.local.port for d in pair.a.sent} == {500}


def forgetful(monkeypatch: pytest.MonkeyPatch) -> object:
    from ike.v2.tasks import ike_init

    original = ike_init.learn

    def learn(sa: object, message: object, path: object) -> None:
        original(sa, message, path)  # type: ignore[arg-type]
        sa.mirrorgate = False  # type: ignore[attr-defined]

    return learn


def test_auto_between_two_of_us_is_udp() -> None:
    pair = Pair(site_a(**AUTO), site_b(**AUTO))
    pair.connect()
    for node in (pair.a, pair.b):
        assert node.live[0].path.encapsulated
        assert node.live[0].path.local.port == node.live[0].path.remote.port == 4500
        assert not node.live[0].follow_nat
    auth = next(d for d in pair.a.sent if d.exchange == ExchangeType.IKE_AUTH)
    assert auth.path == Path(Endpoint(A, 4500), Endpoint(B, 4500))
    assert auth.data.startswith(bytes(4))


def test_udp_starts_on_4500_and_makes_the_peer_see_a_nat() -> None:
    udp = {"encapsulation": Encapsulation.UDP}
    pair = Pair(site_a(**udp), site_b(**udp))
    pair.connect()
    assert pair.a.sent[0].path == Path(Endpoint(A, 4500), Endpoint(B, 4500))
    assert pair.b.live[0].path.encapsulated
    assert pair.b.endpoint.status(0)[0].nat_remote


def test_a_nat_is_found_and_traversed() -> None:
    """
    A (NAT 203.0.113.9)                     B
    500 -> 30500  IKE_SA_INIT        -->            B sees a source that does not fit the hash
                                    <--             A sees a destination that does not fit
    4500 -> 34500 IKE_AUTH           -->
                                    <--  to 34500
    """
    pair = behind_nat(**AUTO)
    pair.connect()
    [a], [b] = pair.a.endpoint.status(0), pair.b.endpoint.status(0)
    assert (a.nat_local, a.nat_remote) == (True, False)
    assert (b.nat_local, b.nat_remote) == (False, True)
    assert b.path == Path(Endpoint(B, 4500), Endpoint(OUTSIDE, 34500))
    assert pair.b.live[0].path == b.path
    assert pair.b.live[0].follow_nat
    assert not pair.a.live[0].follow_nat


def test_keepalives_go_from_behind_the_nat_only() -> None:
    pair = behind_nat(**AUTO)
    pair.connect()
    pair.a.sent.clear()
    pair.b.sent.clear()
    pair.wait(61 * SECOND)
    assert [d.data for d in pair.a.sent] == [b"\xff"] * 3
    assert pair.a.sent[0].path.local.port == 4500
    assert pair.b.sent == []


def test_a_moved_nat_is_followed_by_authenticated_messages_only() -> None:
    pair = behind_nat(**AUTO)
    pair.connect()
    moved = Endpoint(OUTSIDE, 40000)
    pair.nat[Endpoint(A, 4500)] = moved
    # An old message from the new place: nothing moves.
    old = next(d for d in reversed(pair.a.sent) if d.exchange == ExchangeType.IKE_AUTH)
    pair.deliver(old)
    pair.wire.clear()
    assert pair.b.moved == []
    assert pair.b.endpoint.status(0)[0].path.remote.port == 34500
    # A new one: IKE and ESP follow.
    pair.a.endpoint.rekey_child(pair.a.live[0].child, pair.now)
    pair.drain(pair.a)
    pair.run()
    assert pair.b.moved[0].path.remote == moved
    assert pair.b.endpoint.status(0)[0].path.remote == moved
    assert pair.agree()


def test_esp_that_moves_takes_ike_along() -> None:
    pair = behind_nat(**AUTO)
    pair.connect()
    moved = Path(Endpoint(B, 4500), Endpoint(OUTSIDE, 41000))
    pair.b.endpoint.mapping(pair.b.live[0].child, moved, pair.now)
    pair.drain(pair.b)
    assert pair.b.moved[0].children == (pair.b.live[0].child,)
    assert pair.b.endpoint.status(0)[0].path == moved


def test_nobody_moves_without_a_nat() -> None:
    """A message that is authentic but comes from elsewhere is answered there, and moves nothing."""
    pair = Pair()
    pair.connect()
    pair.a.endpoint.rekey_ike("gw-b", pair.now)
    pair.drain(pair.a)
    request = pair.take()
    elsewhere = Path(Endpoint(B, 500), Endpoint(A, 9999))
    pair.b.endpoint.receive(elsewhere, request.ike, pair.now)
    pair.drain(pair.b)
    answer = pair.take()
    assert answer.path == elsewhere
    assert pair.b.endpoint.status(0)[0].path.remote == Endpoint(A, 500)
    assert pair.b.moved == []


def small(size: int) -> Pair:
    return Pair(with_ike(site_a(), fragment_size=size), with_ike(site_b(), fragment_size=size))


def fragments(pair: Pair) -> list[Datagram]:
    kinds = [(d, parse_message(d.ike).protected) for d in [*pair.a.sent, *pair.b.sent]]
    return [d for d, protected in kinds if protected is not None and protected.kind == PayloadType.SKF]


def test_large_messages_are_fragmented_and_small_ones_not() -> None:
    pair = small(200)
    pair.connect()
    assert pair.agree()
    assert fragments(pair)
    assert all(len(d.data) + 28 <= 200 for d in fragments(pair))
    whole = Pair()
    whole.connect()
    assert not fragments(whole)


def test_fragments_in_any_order_and_twice() -> None:
    pair = small(160)
    pair.acquire(pair.a)
    pair.step()
    pair.step()
    parts = [pair.take() for _ in range(len(pair.wire))]
    assert len(parts) >= 2
    for part in [*reversed(parts), *parts]:
        pair.deliver(part)
    pair.run()
    assert pair.agree()
    assert len(pair.a.live) == 1


def test_lost_fragment_is_made_good_by_retransmission() -> None:
    pair = small(160)
    lost = False

    def lose_second(datagram: Datagram) -> bool:
        nonlocal lost
        protected = parse_message(datagram.ike).protected
        if not lost and protected is not None and protected.number == 2:
            lost = True
            return False
        return True

    pair.filter = lose_second
    pair.acquire(pair.a)
    pair.wait(2 * SECOND)
    assert lost
    assert pair.agree()


def test_response_is_repeated_on_the_first_fragment_only() -> None:
    """RFC 7383 section 2.6.1: one retransmitted request leads to one retransmitted response."""
    pair = small(160)
    pair.acquire(pair.a)
    pair.step()
    pair.step()
    parts = [pair.take() for _ in range(len(pair.wire))]
    for part in parts:
        pair.deliver(part)
    answers = len(pair.wire)
    pair.wire.clear()
    for part in parts:
        pair.deliver(part)
    assert len(pair.wire) == answers


def test_no_fragments_for_a_peer_that_does_not_know_them(monkeypatch: pytest.MonkeyPatch) -> None:
    from ike.v2.tasks import ike_init

    original = ike_init.learn

    def learn(sa: object, message: object, path: object) -> None:
        original(sa, message, path)  # type: ignore[arg-type]
        sa.fragmentation = False  # type: ignore[attr-defined]

    monkeypatch.setattr(ike_init, "learn", learn)
    pair = small(200)
    pair.connect()
    assert not fragments(pair)


def test_what_ike_sa_init_announces() -> None:
    pair = Pair()
    pair.acquire(pair.a)
    message = parse_message(pair.a.sent[0].ike)
    for kind in (
        NotifyType.NAT_DETECTION_SOURCE_IP,
        NotifyType.NAT_DETECTION_DESTINATION_IP,
        NotifyType.IKEV2_FRAGMENTATION_SUPPORTED,
    ):
        assert message.notify(kind) is not None
    assert len(message.all(VendorIdPayload)) == 1
