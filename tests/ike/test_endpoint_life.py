"""Liveness, restarts, hints, policy changes and shutdown."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ike.constants import ExchangeType, NotifyType
from ike.events import FailureKind
from ike.wire.header import Header
from ike.wire.message import encode_message
from ike.wire.payloads import NotifyPayload
from policy.clock import SECOND
from policy.lifetimes import Lifetime
from policy.model import KeyExchange
from policy.pad import Identity, Pad
from policy.path import Endpoint, Path
from policy.proposals import Group
from policy.selectors import Flow
from tests.support.ike_pair import (
    ESP_GCM128,
    ESP_GCM256,
    IKE_X25519,
    A,
    B,
    Datagram,
    Node,
    Pair,
    entry,
    method,
    site_a,
    site_b,
    with_ike,
    with_peer,
)


def watchful() -> Pair:
    pair = Pair(with_ike(site_a(), liveness=30 * SECOND), site_b())
    pair.connect()
    pair.a.sent.clear()
    return pair


def test_an_idle_peer_is_probed() -> None:
    """
    A                                       B
    HDR, SK {}                       -->
                                    <--     HDR, SK {}
    """
    pair = watchful()
    pair.wait(102 * SECOND)  # three times 30 s, and by chance up to an eighth more
    assert [d.exchange for d in pair.a.sent] == [ExchangeType.INFORMATIONAL] * 3
    assert pair.agree()


def test_esp_from_the_peer_makes_probes_needless() -> None:
    pair = watchful()
    for _ in range(10):
        pair.wait(10 * SECOND)
        pair.a.heard[pair.a.live[0].child] = pair.now
    assert pair.a.sent == []


def test_a_dead_peer_is_given_up_and_dialled_again_on_demand() -> None:
    pair = watchful()
    pair.filter = lambda datagram: False
    pair.wait(70 * SECOND)
    assert pair.a.live == []
    [event] = pair.a.named("ike_deleted")
    assert "no answer" in event.message
    pair.wait(60 * SECOND)
    pair.filter = lambda datagram: True
    pair.restart(pair.b, site_b())
    pair.acquire(pair.a)
    pair.run()
    assert pair.agree()


def test_a_peer_that_restarts_mid_dial_is_reached_within_two_seconds() -> None:
    pair = Pair()
    pair.filter = lambda datagram: False
    pair.acquire(pair.a)
    pair.wait(20 * SECOND)
    pair.filter = lambda datagram: True
    pair.wait(2 * SECOND)
    assert pair.agree()
    assert len(pair.a.live) == 1


def test_esp_for_unknown_spis_makes_the_restarted_side_dial() -> None:
    """B restarts; A goes on sending ESP, and B calls A at once instead of waiting for A's patience."""
    pair = Pair()
    pair.connect()
    pair.restart(pair.b, site_b())
    path = Path(Endpoint(B, 0), Endpoint(A, 0))
    for _ in range(10):
        pair.b.endpoint.unknown_spi(path, 0xDEADBEEF, pair.now)
    pair.drain(pair.b)
    assert len(pair.wire) == 1
    pair.run()
    assert pair.agree()
    assert len(pair.a.endpoint.status(0)) == 1


def test_esp_for_unknown_spis_never_tears_down() -> None:
    pair = Pair()
    pair.connect()
    for _ in range(100):
        pair.b.endpoint.unknown_spi(Path(Endpoint(B, 0), Endpoint(A, 0)), 7, pair.now)
        pair.drain(pair.b)
        pair.run()
    assert len([d for d in pair.b.sent if d.exchange == ExchangeType.INFORMATIONAL]) == 1
    assert pair.agree()
    before = len(pair.b.sent)
    pair.b.endpoint.unknown_spi(Path(Endpoint(B, 0), Endpoint(B, 0)), 7, pair.now)
    pair.drain(pair.b)
    assert len(pair.b.sent) == before


def test_unprotected_invalid_ike_spi_is_a_hint_for_a_probe() -> None:
    """Section 2.4: unprotected errors are never acted on, but for a rate-limited liveness check."""
    pair = Pair()
    pair.connect()
    [sa] = pair.a.endpoint._core.sas.values()
    header = Header(spi_i=sa.spi_i, spi_r=sa.spi_r, exchange=37, initiator=False, response=True, message_id=2)
    octets = encode_message(header, [NotifyPayload(NotifyType.INVALID_IKE_SPI)])
    pair.a.sent.clear()
    for _ in range(50):
        pair.a.endpoint.receive(Path(Endpoint(A, 500), Endpoint(B, 500)), octets, pair.now)
        pair.drain(pair.a)
        pair.run()
    assert [d.exchange for d in pair.a.sent] == [ExchangeType.INFORMATIONAL]
    assert pair.agree()


def test_spurious_timeouts_do_nothing() -> None:
    pair = watchful()
    history = len(pair.a.history)
    for _ in range(100):
        pair.a.endpoint.handle_timeout(pair.now)
    pair.drain(pair.a)
    assert len(pair.a.history) == history


def gone(pair: Pair, node: Node) -> str:
    pair.run()
    assert pair.a.live == pair.b.live == []
    return node.removed[0].reason


def test_load_of_the_same_policy_touches_nothing() -> None:
    pair = Pair()
    pair.connect()
    history = len(pair.a.history)
    pair.load(pair.a, replace(site_a(), generation=2))
    assert len(pair.a.history) == history


def test_load_that_only_changes_lifetimes_touches_nothing() -> None:
    pair = Pair()
    pair.connect()
    pair.load(pair.a, with_ike(site_a(lifetime=Lifetime(time=60 * SECOND)), lifetime=Lifetime(time=99 * SECOND)))
    pair.run()
    assert pair.agree()
    assert pair.a.removed == []


def test_load_without_the_peer_deletes_its_ike_sa() -> None:
    pair = Pair()
    pair.connect()
    pair.load(pair.a, replace(site_a(), generation=2, pad=Pad(), spd=replace(site_a().spd, entries=())))
    assert "vanished" in gone(pair, pair.a)
    assert pair.a.states() == pair.b.states() == []
    assert pair.a.removed[0].drain == 0


def test_load_with_a_changed_key_deletes_its_ike_sa() -> None:
    pair = Pair()
    pair.connect()
    pair.load(pair.a, with_peer(site_a(), local_id=Identity.parse("new.example")))
    assert "changed" in gone(pair, pair.a)


def test_load_of_a_narrower_entry_deletes_the_child_only() -> None:
    pair = Pair()
    pair.connect()
    narrow = replace(site_a().spd, entries=(entry("lan", "10.1.0.0/25", "10.2.0.0/24", peer="gw-b"),))
    pair.load(pair.a, replace(site_a(), generation=2, spd=narrow))
    assert "no longer covers" in gone(pair, pair.a)
    assert pair.a.states() == ["established"]


def test_load_of_other_methods_rekeys_the_child() -> None:
    both = (method(ESP_GCM256), method(ESP_GCM128))
    pair = Pair(b=site_b(methods=both))
    pair.connect()
    pair.load(pair.a, site_a(methods=(method(ESP_GCM128),)))
    pair.run()
    assert pair.agree()
    assert pair.a.live[0].suite.key_bits == 128


def test_load_while_dialling_ends_the_attempt() -> None:
    pair = Pair()
    pair.acquire(pair.a)
    pair.load(pair.a, with_peer(site_a(), local_id=Identity.parse("new.example")))
    assert [failure.kind for failure in pair.a.failures] == [FailureKind.LOCAL]
    assert pair.a.states() == []


def test_shutdown_says_goodbye() -> None:
    """
    A                                       B
    HDR, SK {D}                      -->
                                    <--     HDR, SK {}
    """
    pair = Pair()
    pair.connect()
    pair.a.endpoint.shutdown(pair.now)
    pair.drain(pair.a)
    assert len(pair.wire) == 1
    pair.run()
    assert pair.a.live == pair.b.live == []
    assert "the peer deleted it" in pair.b.removed[0].reason
    pair.acquire(pair.a)
    assert pair.a.failures[0].kind is FailureKind.LOCAL


def test_terminate_peer_when_nobody_answers() -> None:
    pair = Pair()
    pair.connect()
    pair.filter = lambda datagram: False
    pair.a.endpoint.terminate_peer("gw-b", pair.now)
    pair.drain(pair.a)
    assert pair.a.live == []
    pair.wait(30 * SECOND)
    assert pair.a.states() == []


@pytest.mark.parametrize("what", ["no entry", "anywhere", "no key", "ikev1"])
def test_what_cannot_be_dialled_is_said_at_once(what: str) -> None:
    match what:
        case "anywhere":
            snapshot = with_peer(site_a(), address=None)
        case "no key":
            snapshot = with_peer(site_a(), authentication=())
        case "ikev1":
            snapshot = with_peer(site_a(), ike=KeyExchange(version=1, proposals=(IKE_X25519,)))
        case _:
            snapshot = site_a()
    pair = Pair(snapshot)
    pair.acquire(pair.a, "other" if what == "no entry" else "lan")
    [failure] = pair.a.failures
    assert failure.kind is FailureKind.LOCAL
    assert failure.reason
    assert not pair.wire


def test_asking_for_what_is_there_ends_too() -> None:
    pair = Pair()
    pair.connect()
    pair.acquire(pair.a, flow=Flow(4, 6, 0x0A010001, 0x0A020001, 1, 2))
    assert [failure.retry_after for failure in pair.a.failures] == [0]
    assert not pair.wire


def test_duplicated_and_reordered_messages_do_no_harm() -> None:
    pair = Pair()
    pair.acquire(pair.a)
    everything: list[Datagram] = []
    while pair.wire:
        batch = [pair.take() for _ in range(len(pair.wire))]
        everything += batch
        for datagram in [*reversed(everything), *everything]:
            pair.deliver(datagram)
        fresh = {bytes(d.data): d for d in pair.wire if d.data not in {e.data for e in everything}}
        pair.wire.clear()
        pair.wire.extend(fresh.values())
    assert pair.agree()
    assert len(pair.a.live) == 1


def test_random_octets_are_nobody() -> None:
    pair = Pair()
    pair.connect()
    entropy = pair.a.entropy
    for size in [*range(100), 500, 1500, 65535]:
        pair.b.endpoint.receive(Path(Endpoint(B, 500), Endpoint(A, 500)), entropy(size), pair.now)
        pair.drain(pair.b)
    for datagram in [*pair.a.sent, *pair.b.sent]:
        for cut in range(0, len(datagram.ike), 7):
            receiver = pair.other(datagram.sender)
            path = Path(datagram.path.remote, datagram.path.local)
            receiver.endpoint.receive(path, datagram.ike[:cut], pair.now)
            pair.drain(receiver)
    pair.wire.clear()
    assert pair.agree()


def test_loopback_of_our_own_messages_is_ignored() -> None:
    pair = Pair()
    pair.connect()
    for datagram in list(pair.a.sent):
        pair.a.endpoint.receive(Path(Endpoint(A, 500), Endpoint(B, 500)), datagram.ike, pair.now)
        pair.drain(pair.a)
    pair.run()
    assert pair.agree()
    assert len(pair.a.endpoint.status(0)) == 1


def test_a_forgotten_ike_sa_is_replaced_fast() -> None:
    """B restarts and does not dial by itself; its INVALID_IKE_SPI makes A try a new IKE SA beside the old one.

    A                                       B
    HDR, SK {}                       -->
                                    <--     HDR, N(INVALID_IKE_SPI)      (a hint)
    HDR, SK {}   (again)             -->
                                    <--     HDR, N(INVALID_IKE_SPI)
    HDR(A',0), SAi1, KEi, Ni         -->    ... and the old one goes once the new one is authenticated
    """
    pair = Pair(with_ike(site_a(), liveness=30 * SECOND), site_b())
    pair.connect()
    pair.restart(pair.b, site_b())
    pair.wait(32 * SECOND)
    assert pair.agree()
    assert len(pair.a.endpoint.status(0)) == 1
    assert "forgot" in pair.a.removed[0].reason


def test_forged_invalid_ike_spi_replaces_nothing() -> None:
    """B is there and answers: whatever a forger says, the old IKE SA stays."""
    pair = watchful()
    before = pair.a.endpoint.status(0)[0].spi_i
    [sa] = pair.a.endpoint._core.sas.values()
    for number in range(20):
        header = Header(
            spi_i=sa.spi_i, spi_r=sa.spi_r, exchange=37, initiator=False, response=True, message_id=number
        )
        octets = encode_message(header, [NotifyPayload(NotifyType.INVALID_IKE_SPI)])
        pair.a.endpoint.receive(sa.path, octets, pair.now)
        pair.drain(pair.a)
        pair.wait(7 * SECOND)
    assert [status.spi_i for status in pair.a.endpoint.status(0)] == [before]
    assert pair.a.removed == []


def test_an_algorithm_that_we_cannot_do_is_a_plain_failure() -> None:
    odd = replace(IKE_X25519, groups=(Group.NONE,))
    pair = Pair(with_ike(site_a(), proposals=(odd,)))
    pair.acquire(pair.a)
    assert [failure.kind for failure in pair.a.failures] == [FailureKind.LOCAL]
    assert pair.a.states() == []
