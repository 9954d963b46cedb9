"""IKE_AUTH: identities, keys, INITIAL_CONTACT, and what a failure says (RFC 7296 sections 2.4, 2.15, 2.21.2)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ike.constants import ExchangeType
from ike.events import FailureKind
from policy.clock import SECOND
from policy.model import PresharedKey
from policy.pad import Identity
from policy.secret import Secret
from policy.spd import Snapshot
from tests.support.ike_pair import (
    ESP_GCM128,
    IKE_ECP256,
    Node,
    Pair,
    entry,
    method,
    peer_entry,
    site_a,
    site_b,
    snapshot_of,
    with_ike,
    with_peer,
)

WRONG = (PresharedKey(secret=Secret(b"another secret altogether")),)


def reason(node: Node) -> str:
    events = node.named("negotiation_failed")
    assert events, node.events
    return str(events[-1].fields["reason"])


def failing(a: Snapshot | None = None, b: Snapshot | None = None) -> Pair:
    pair = Pair(a, b)
    pair.acquire(pair.a)
    pair.wait(35 * SECOND)
    assert pair.a.live == pair.b.live == []
    assert len(pair.a.failures) == 1
    return pair


def test_wrong_key_is_named_on_both_sides() -> None:
    """
    A                                       B
    HDR, SK {IDi, IDr, AUTH, ...}    -->
                                    <--     HDR, SK {N(AUTHENTICATION_FAILED)}
    """
    pair = failing(b=with_peer(site_b(), authentication=WRONG))
    assert "AUTH of gw-a.example does not verify: the preshared key differs (site.toml:14:1)" in reason(pair.b)
    assert "AUTHENTICATION_FAILED" in reason(pair.a)
    assert "preshared key or identity differs" in reason(pair.a)
    assert "site.toml:14:1" in reason(pair.a)
    assert pair.a.failures[0].kind is FailureKind.AUTHENTICATION
    assert pair.a.states() == pair.b.states() == []
    assert "preshared" in pair.a.endpoint.failures()["gw-b"]
    assert "preshared" in pair.b.endpoint.failures()["gw-a"]


def test_unknown_identity_lists_candidates() -> None:
    pair = failing(a=with_peer(site_a(), local_id=Identity.parse("gw-x.example")))
    assert "gw-x.example" in reason(pair.b)
    assert "gw-a wants gw-a.example (site.toml:14:1)" in reason(pair.b)


def test_identity_cannot_forge_a_log_line() -> None:
    evil = Identity.parse("x\nike_established \x1b[31m" + "y" * 500)
    pair = failing(a=with_peer(site_a(), local_id=evil))
    assert "\n" not in reason(pair.b)
    assert "\x1b" not in reason(pair.b)
    assert len(reason(pair.b)) < 400


def test_responder_that_is_someone_else_is_refused() -> None:
    """
    A                                       B
    HDR, SK {IDi, AUTH, ...}         -->
                                    <--     HDR, SK {IDr(other), AUTH, ...}
    HDR, SK {N(AUTHENTICATION_FAILED)} -->                                    B: IKE SA deleted
                                    <--     HDR, SK {}
    """
    pair = Pair(b=with_peer(site_b(), local_id=Identity.parse("someone.example")))
    pair.acquire(pair.a)
    pair.run()
    assert "someone.example" in reason(pair.a)
    assert "gw-b wants gw-b.example" in reason(pair.a)
    assert pair.a.live == pair.b.live == []
    assert pair.a.states() == pair.b.states() == []
    assert pair.a.failures[0].kind is FailureKind.AUTHENTICATION
    assert not any(event.name == "ike_established" for event in pair.a.events)


def test_no_common_ike_proposal_names_the_difference() -> None:
    pair = failing(b=with_ike(site_b(), proposals=(IKE_ECP256,)))
    assert "no common IKE proposal" in reason(pair.b)
    assert "aes256-sha256-ecp256" in reason(pair.b)
    assert "encryption (wanted" in reason(pair.b)
    assert "site.toml:14:1" in reason(pair.b)
    assert "NO_PROPOSAL_CHOSEN" in reason(pair.a)
    assert pair.a.failures[0].kind is FailureKind.REFUSED


def test_no_common_esp_proposal_leaves_the_ike_sa_up() -> None:
    """
    A                                       B
    HDR, SK {IDi, AUTH, SAi2, ...}   -->
                                    <--     HDR, SK {IDr, AUTH, N(NO_PROPOSAL_CHOSEN)}
    """
    pair = failing(b=site_b(methods=(method(ESP_GCM128),)))
    assert pair.a.states() == pair.b.states() == ["established"]
    assert "no common ESP/AH proposal" in reason(pair.b)
    assert "esp:aes128gcm16" in reason(pair.b)
    assert "site.toml:31:1" in reason(pair.b)
    assert "NO_PROPOSAL_CHOSEN" in reason(pair.a)
    assert "site.toml:31:1" in reason(pair.a)
    # The next try reuses the IKE SA, and waits longer before the one after.
    pair.acquire(pair.a)
    assert [d.exchange for d in pair.wire] == [ExchangeType.CREATE_CHILD_SA]
    pair.run()
    waits = [failure.retry_after for failure in pair.a.failures]
    assert all(plain <= wait < plain * 5 // 4 for wait, plain in zip(waits, (SECOND, 2 * SECOND), strict=True))


def test_selectors_that_do_not_meet_name_both() -> None:
    b = replace(
        site_b(), spd=replace(site_b().spd, entries=(entry("lan", "10.7.0.0/24", "10.8.0.0/24", peer="gw-a"),))
    )
    pair = failing(b=b)
    assert "the peer asks for 10.2.0.0/24 <-> 10.1.0.0/24" in reason(pair.b)
    assert "we have 10.7.0.0/24 <-> 10.8.0.0/24 (site.toml:31:1)" in reason(pair.b)
    assert "TS_UNACCEPTABLE" in reason(pair.a)
    assert "10.1.0.0/24 <-> 10.2.0.0/24" in reason(pair.a)


def test_unknown_address_is_told_apart() -> None:
    b = with_peer(site_b())
    b = replace(b, pad=replace(b.pad, peers=(replace(b.pad.peers[0], address=site_a().pad.peers[0].address),)))
    pair = failing(b=b)
    assert "no peer of this policy is at 10.9.0.1" in reason(pair.b)
    assert "no configuration for our address" in reason(pair.a)


def test_default_identities_are_addresses() -> None:
    a = with_peer(site_a(), local_id=None, remote_id=None)
    b = with_peer(site_b(), local_id=None, remote_id=None)
    pair = Pair(a, b)
    pair.connect()
    assert pair.a.endpoint.status(0)[0].remote_id == "10.9.0.2"


def test_the_key_of_the_matching_entry_is_used() -> None:
    """B has several peers that may be anywhere; identity and key find the right one."""
    others = tuple(
        peer_entry(
            f"roadwarrior-{number}",
            None,
            ("lan",),
            remote_id=Identity.parse(f"rw-{number}.example"),
            local_id=Identity.parse("gw-b.example"),
            authentication=(PresharedKey(secret=Secret(f"secret {number}".encode() * 4)),),
        )
        for number in range(4)
    )
    lan = entry("lan", "10.2.0.0/24", "10.1.0.0/24", peer="roadwarrior-2")
    a = with_peer(site_a(), local_id=Identity.parse("rw-2.example"), authentication=others[2].authentication)
    pair = Pair(a, snapshot_of(others, (lan,), "10.9.0.2"))
    pair.connect()
    assert pair.b.live[0].peer == "roadwarrior-2"


def test_initial_contact_clears_what_a_restart_left() -> None:
    pair = Pair()
    pair.connect()
    stale = pair.b.live[0].child
    pair.restart(pair.a, site_a())
    pair.acquire(pair.a)
    pair.run()
    assert pair.agree()
    assert pair.b.removed[0].child == stale
    assert "INITIAL_CONTACT" in pair.b.removed[0].reason
    assert len(pair.b.endpoint.status(0)) == 1


def test_initial_contact_without_authentication_does_nothing() -> None:
    """Another peer that shares the address, or a liar without the key, cannot clear anybody's SAs."""
    pair = Pair()
    pair.connect()
    child = pair.b.live[0]
    pair.restart(pair.a, with_peer(site_a(), authentication=WRONG))
    pair.acquire(pair.a)
    pair.run()
    assert pair.b.live == [child]
    assert pair.b.states() == ["established"]


def test_initial_contact_of_another_identity_does_nothing() -> None:
    first, second = (
        peer_entry(name, None, ("lan",), remote_id=Identity.parse(name), local_id=Identity.parse("gw-b.example"))
        for name in ("one.example", "two.example")
    )
    lan = entry("lan", "10.2.0.0/24", "10.1.0.0/24", peer="one.example")
    pair = Pair(
        with_peer(site_a(), local_id=Identity.parse("one.example")),
        snapshot_of((first, second), (lan,), "10.9.0.2"),
    )
    pair.connect()
    child = pair.b.live[0]
    pair.restart(pair.a, with_peer(site_a(), local_id=Identity.parse("two.example")))
    pair.acquire(pair.a)
    pair.run()
    assert child in pair.b.live


def test_initial_contact_to_another_of_our_addresses_and_names_does_nothing() -> None:
    # Between two identities, says section 2.4: we are another one at another address, as on a host with many.
    entries = [("e1", "10.2.0.0/24"), ("e2", "10.3.0.0/24")]
    hub = snapshot_of(
        (peer_entry("one", "10.9.0.2", ("e1",)), peer_entry("two", "10.9.0.3", ("e2",))),
        tuple(entry(n, "10.1.0.0/24", net, peer=p) for (n, net), p in zip(entries, ("one", "two"), strict=True)),
        "10.9.0.1",
    )
    spokes = snapshot_of(
        (peer_entry("hub", "10.9.0.1", ("e1", "e2")),),
        tuple(entry(n, net, "10.1.0.0/24", peer="hub") for n, net in entries),
        "10.9.0.2",
    )
    pair = Pair(hub, spokes)
    for name, _ in entries:
        pair.acquire(pair.a, name)
        pair.run()
    assert len(pair.a.live) == len(pair.b.live) == 2
    assert pair.b.removed == []


def test_initial_contact_is_not_sent_beside_another_ike_sa() -> None:
    pair = Pair()
    pair.connect()
    pair.acquire(pair.b)  # there is one already: nothing to do
    pair.run()
    assert len(pair.b.endpoint.status(0)) == 1


def both_dial(pair: Pair) -> None:
    pair.acquire(pair.a)
    pair.acquire(pair.b)


@pytest.mark.parametrize("nonces", [(1, 2), (2, 1)])
def test_both_dial_at_once(nonces: tuple[int, int]) -> None:
    """Two IKE SAs come up; INITIAL_CONTACT spares the twin, and the one with the lowest nonce goes later."""
    pair = Pair()
    pair.a.entropy.nonces.extend([99, nonces[0]])
    pair.b.entropy.nonces.extend([99, nonces[1]])
    both_dial(pair)
    pair.run()
    assert pair.agree()
    assert len(pair.a.live) == 2
    assert len(pair.a.endpoint.status(0)) == 2
    pair.wait(20 * SECOND)
    assert pair.agree()
    assert len(pair.a.live) == 1
    assert len(pair.a.endpoint.status(0)) == len(pair.b.endpoint.status(0)) == 1
    removed = pair.a.removed[0]
    assert "redundant" in removed.reason or "peer deleted" in removed.reason
    assert removed.drain > 0
    pair.wait(120 * SECOND)
    assert len(pair.a.live) == 1


def test_every_key_is_wiped_when_the_ike_sa_goes() -> None:
    pair = Pair()
    pair.connect()
    [sa] = pair.a.endpoint._core.sas.values()
    assert sa.channel is not None
    keys = sa.channel.keys
    assert any(keys.sk_d.reveal())
    pair.a.endpoint.terminate_peer("gw-b", pair.now)
    pair.drain(pair.a)
    pair.run()
    assert not any(keys.sk_d.reveal() + keys.sk_ei.reveal() + keys.sk_pr.reveal())


def test_nothing_secret_in_events_or_status() -> None:
    pair = failing(b=with_peer(site_b(), authentication=WRONG))
    text = repr(pair.a.history) + repr(pair.b.history) + repr(pair.a.endpoint.status(0))
    assert "correct horse" not in text
    assert "another secret" not in text


def test_peer_that_answers_init_only_is_no_reason_to_speak_in_clear() -> None:
    pair = Pair()
    pair.filter = lambda datagram: datagram.exchange == ExchangeType.IKE_SA_INIT
    pair.acquire(pair.a)
    pair.wait(40 * SECOND)
    assert pair.a.failures[0].kind is FailureKind.REFUSED
    assert "answered IKE_SA_INIT but not IKE_AUTH" in pair.a.failures[0].reason
