"""IKE_SA_INIT: cookies, groups, loss, bounds and forged answers (RFC 7296 sections 1.2, 2.1, 2.4, 2.6)."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from random import Random

import pytest

from ike.constants import ExchangeType, NotifyType
from ike.events import FailureKind, SendIke
from ike.v2.settings import IkeSettings
from ike.wire.header import Header
from ike.wire.message import encode_message, parse_message
from ike.wire.payloads import KePayload, NotifyPayload, SaPayload
from policy.clock import MILLISECOND, SECOND
from policy.path import Endpoint, Path
from policy.proposals import Group
from policy.spd import Snapshot
from tests.support.ike_pair import IKE_X25519, A, B, Datagram, Pair, site_a, site_b, with_ike

COOKIES_ALWAYS = IkeSettings(cookie_threshold=0)
ECP_FIRST = replace(IKE_X25519, groups=(Group.ECP_256, Group.X25519))


def notify_of(datagram: Datagram) -> NotifyPayload | None:
    return parse_message(datagram.ike).first(NotifyPayload)


def other_groups() -> tuple[Snapshot, Snapshot]:
    """A prefers ECP-256 but offers X25519, B takes X25519 only."""
    return with_ike(site_a(), proposals=(ECP_FIRST,)), with_ike(site_b(), proposals=(IKE_X25519,))


def test_cookie_is_demanded_and_brought() -> None:
    """
    A                                       B
    HDR(A,0), SAi1, KEi, Ni          -->
                                    <--     HDR(A,0), N(COOKIE)
    HDR(A,0), N(COOKIE), SAi1, KEi, Ni -->
                                    <--     HDR(A,B), SAr1, KEr, Nr
    """
    pair = Pair(settings_b=COOKIES_ALWAYS)
    pair.acquire(pair.a)
    first = pair.step()
    demand = pair.step()
    notify = notify_of(demand)
    assert notify is not None
    assert notify.type == NotifyType.COOKIE
    assert demand.header.spi_r == bytes(8)
    assert len(demand.ike) <= len(first.ike)
    assert pair.b.endpoint.status(0) == []
    again = pair.step()
    # Everything else is as it was (section 2.6).
    assert parse_message(again.ike).payloads[0] == notify
    assert parse_message(again.ike).payloads[1:] == parse_message(first.ike).payloads
    pair.run()
    assert pair.agree()


def test_cookie_survives_a_change_of_secret_and_no_longer() -> None:
    pair = Pair(settings_b=COOKIES_ALWAYS)
    pair.acquire(pair.a)
    pair.step()
    pair.step()
    [retry] = pair.wire
    pair.now += 90 * SECOND
    pair.deliver(retry)
    assert pair.b.states() == ["half open"]
    late = Pair(settings_b=COOKIES_ALWAYS)
    late.acquire(late.a)
    late.step()
    late.step()
    [retry] = late.wire
    late.now += 200 * SECOND
    late.deliver(retry)
    assert late.b.states() == []


def test_cookie_of_another_address_is_no_cookie() -> None:
    pair = Pair(settings_b=COOKIES_ALWAYS)
    pair.acquire(pair.a)
    pair.step()
    pair.step()
    [retry] = pair.wire
    elsewhere = Path(Endpoint(B, 500), Endpoint(A, 501))
    pair.b.endpoint.receive(elsewhere, retry.ike, pair.now)
    pair.drain(pair.b)
    assert pair.b.states() == []
    assert pair.b.endpoint.counters()["cookie demanded"] == 2


def test_invalid_ke_then_the_right_group() -> None:
    """
    A                                       B
    HDR(A,0), SAi1, KEi(19), Ni      -->
                                    <--     HDR(A,0), N(INVALID_KE_PAYLOAD, 31)
    HDR(A,0), SAi1, KEi(31), Ni      -->
                                    <--     HDR(A,B), SAr1, KEr, Nr
    """
    pair = Pair(*other_groups())
    pair.acquire(pair.a)
    first, refusal = pair.step(), pair.step()
    notify = notify_of(refusal)
    assert notify is not None
    assert (notify.type, notify.data) == (NotifyType.INVALID_KE_PAYLOAD, b"\x00\x1f")
    second = pair.step()
    before, after = parse_message(first.ike), parse_message(second.ike)
    assert before.first(SaPayload) == after.first(SaPayload)
    ke = after.first(KePayload)
    assert ke is not None
    assert ke.group == Group.X25519
    pair.run()
    assert pair.agree()


def test_cookie_and_invalid_ke_together() -> None:
    """Section 2.6.1: a cookie first, then another group; the cookie holds, so three requests are enough."""
    pair = Pair(*other_groups(), settings_b=COOKIES_ALWAYS)
    pair.acquire(pair.a)
    requests = []
    while pair.wire:
        datagram = pair.step()
        if datagram.sender is pair.a and datagram.exchange == ExchangeType.IKE_SA_INIT:
            requests.append(parse_message(datagram.ike))
    assert pair.agree()
    assert len(requests) == 3
    assert requests[2].notify(NotifyType.COOKIE) is not None


def test_invalid_ke_then_cookie() -> None:
    """Section 2.6.1, the other order: B comes under load between the two."""
    pair = Pair(*other_groups(), settings_b=IkeSettings(cookie_threshold=1))
    pair.acquire(pair.a)
    pair.step()
    pair.step()
    # A stranger at a configured address fills B's table.
    stranger = Pair()
    stranger.acquire(stranger.a)
    pair.b.endpoint.receive(Path(Endpoint(B, 500), Endpoint(A, 7777)), stranger.take().ike, pair.now)
    while pair.b.endpoint.poll() is not None:
        pass
    pair.run()
    assert pair.agree()
    assert pair.b.endpoint.counters()["cookie demanded"] == 1


def test_a_request_repeated_after_the_rush_still_needs_its_cookie() -> None:
    # Had the repeated one made an IKE SA, A would sign the request that has the cookie, and its AUTH not verify.
    pair = Pair(settings_b=IkeSettings(cookie_threshold=1, half_open_time=SECOND // 10))
    stranger = Pair()
    stranger.acquire(stranger.a)
    pair.b.endpoint.receive(Path(Endpoint(B, 500), Endpoint(A, 7777)), stranger.take().ike, pair.now)
    while pair.b.endpoint.poll() is not None:
        pass
    pair.acquire(pair.a)
    request = pair.take()
    pair.deliver(request)
    pair.tick(SECOND // 5)
    assert pair.b.states(pair.now) == [], "the rush is over"
    pair.deliver(request)
    pair.run()
    assert pair.agree()
    assert len(pair.a.live) == 1
    assert pair.b.endpoint.counters()["cookie demanded"] == 2


def test_a_group_that_was_not_offered_is_not_taken() -> None:
    pair = Pair()
    pair.acquire(pair.a)
    request = pair.take()
    pair.deliver(forged(pair, request, NotifyPayload(NotifyType.INVALID_KE_PAYLOAD, data=b"\x00\x01")))
    assert not pair.wire
    pair.deliver(request)
    pair.run()
    assert pair.agree()


def forged(pair: Pair, request: Datagram, notify: NotifyPayload) -> Datagram:
    """Return an answer to A's request that anyone could send."""
    header = Header(
        spi_i=request.header.spi_i,
        spi_r=bytes(8),
        exchange=ExchangeType.IKE_SA_INIT,
        initiator=False,
        response=True,
        message_id=0,
    )
    path = Path(request.path.remote, request.path.local)
    return Datagram(pair.b, path, encode_message(header, [notify]))


@pytest.mark.parametrize(
    "kind", [NotifyType.NO_PROPOSAL_CHOSEN, NotifyType.AUTHENTICATION_FAILED, NotifyType.INVALID_SYNTAX]
)
def test_forged_error_does_not_end_an_attempt(kind: NotifyType) -> None:
    """What is not authenticated is remembered as a probable reason; a proper answer still counts."""
    pair = Pair()
    pair.acquire(pair.a)
    request = pair.take()
    pair.deliver(forged(pair, request, NotifyPayload(kind)))
    assert pair.a.states() == ["initiating"]
    pair.deliver(request)
    pair.run()
    assert pair.agree()
    pair.wait(10 * SECOND)
    assert pair.agree()


def test_refusal_stands_after_the_grace() -> None:
    pair = Pair()
    pair.acquire(pair.a)
    request = pair.take()
    pair.filter = lambda datagram: False
    pair.deliver(forged(pair, request, NotifyPayload(NotifyType.NO_PROPOSAL_CHOSEN)))
    pair.wait(3 * SECOND)
    [failure] = pair.a.failures
    assert failure.kind is FailureKind.REFUSED
    assert "NO_PROPOSAL_CHOSEN" in failure.reason
    assert "aes256gcm16" in failure.reason.lower() or "AES-GCM-16-256" in failure.reason
    assert "site.toml:14:1" in failure.reason


def test_endless_cookies_do_not_keep_us_busy() -> None:
    pair = Pair()
    pair.acquire(pair.a)
    for number in range(50):
        request = pair.wire[-1]
        pair.deliver(forged(pair, request, NotifyPayload(NotifyType.COOKIE, data=bytes([number]) * 8)))
    assert len(pair.wire) <= 10


def test_retransmission_is_bit_identical_and_backs_off() -> None:
    pair = Pair()
    pair.filter = lambda datagram: False
    pair.acquire(pair.a)
    sent: list[tuple[int, bytes]] = [(pair.now, pair.a.sent[0].data)]
    start = pair.now
    while pair.a.endpoint.deadline() is not None and not pair.a.failures:
        deadline = pair.a.endpoint.deadline()
        assert deadline is not None
        pair.now = deadline
        count = len(pair.a.sent)
        pair.a.endpoint.handle_timeout(pair.now)
        pair.drain(pair.a)
        sent += [(pair.now, datagram.data) for datagram in pair.a.sent[count:]]
    times = [(at - start) // MILLISECOND for at, _ in sent]
    assert times[:6] == [0, 500, 1500, 3500, 5500, 7500]
    assert len({data for _, data in sent}) == 1
    assert pair.now - start == 30 * SECOND
    [failure] = pair.a.failures
    assert failure.kind is FailureKind.NO_ANSWER
    assert "UDP 500/4500" in failure.reason
    assert SECOND <= failure.retry_after < SECOND * 5 // 4


def test_responder_repeats_its_answer_only_for_the_same_octets() -> None:
    pair = Pair()
    pair.acquire(pair.a)
    request = pair.take()
    pair.deliver(request)
    first = pair.take()
    pair.deliver(request)
    again = pair.take()
    assert again.data == first.data
    assert pair.b.states() == ["half open"]
    pair.deliver(first)
    auth = pair.take()
    pair.deliver(auth)
    answer = pair.take()
    pair.deliver(auth)
    assert pair.take().data == answer.data
    # One bit differs: nothing is said.
    twisted = replace(auth, data=auth.data[:-1] + bytes([auth.data[-1] ^ 1]))
    pair.deliver(twisted)
    assert not pair.wire
    pair.deliver(answer)
    assert pair.agree()


@pytest.mark.parametrize("lost", range(4))
def test_each_message_may_be_lost(lost: int) -> None:
    pair = Pair()
    count = 0

    def lose_one(_: Datagram) -> bool:
        nonlocal count
        count += 1
        return count != lost + 1

    pair.filter = lose_one
    pair.acquire(pair.a)
    pair.wait(SECOND)
    assert pair.agree()
    assert len(pair.a.live) == 1


def test_thirty_percent_loss_still_makes_a_tunnel() -> None:
    """In 15 seconds, of 300 attempts nearly all; each message is lost with a chance of 30 %."""
    late = 0
    for seed in range(300):
        chance = Random(seed)
        pair = Pair()
        pair.filter = lambda datagram, chance=chance: chance.random() >= 0.3  # type: ignore[misc]
        pair.acquire(pair.a)
        pair.wait(15 * SECOND)
        late += not pair.a.live
    assert late <= 6


def test_half_open_is_bounded_by_prefix_and_in_all() -> None:
    settings = IkeSettings(cookie_threshold=10_000, cookie_rate=10_000, half_open_limit=12, half_open_per_prefix=5)
    anywhere = replace(site_b().pad.peers[0], address=None)
    snapshot = replace(site_b(), pad=replace(site_b().pad, peers=(anywhere,)))
    pair = Pair(b=snapshot, settings_b=settings)
    for number in range(40):
        source = Pair()
        source.a.entropy._seed = f"stranger {number}"
        source.acquire(source.a)
        remote = Endpoint(ip_address(f"192.0.{number // 10}.{number}"), 500)
        pair.b.endpoint.receive(Path(Endpoint(B, 500), remote), source.take().ike, pair.now)
        pair.drain(pair.b)
    assert len(pair.b.endpoint.status(0)) == 12
    assert pair.b.endpoint.counters()["half-open limit"] == 28
    pair.wire.clear()
    pair.wait(60 * SECOND)
    assert pair.b.endpoint.status(0) == []
    assert pair.b.endpoint.deadline() is None


def test_strangers_get_little() -> None:
    """No answer is larger than its question, and unknown SPIs are answered at a bounded rate (section 2.21.4)."""
    pair = Pair()
    pair.connect()
    auth = next(d for d in pair.a.sent if d.exchange == ExchangeType.IKE_AUTH)
    replies = 0
    for number in range(200):
        octets = auth.ike[:8] + number.to_bytes(8, "big", signed=False)[:7] + b"\x01" + auth.ike[16:]
        octets = bytes([number]) * 8 + b"\x07" * 8 + octets[16:]
        if number == 0:
            continue
        pair.b.endpoint.receive(Path(Endpoint(B, 500), Endpoint(A, 500)), octets, pair.now)
        while (output := pair.b.endpoint.poll()) is not None:
            if isinstance(output, SendIke):
                replies += 1
                assert len(output.data) <= len(octets)
                notify = parse_message(output.data).first(NotifyPayload)
                assert notify is not None
                assert notify.type == NotifyType.INVALID_IKE_SPI
    assert replies == 50


def test_higher_major_version_is_told_ours() -> None:
    pair = Pair()
    header = Header(
        spi_i=b"\x01" * 8, spi_r=bytes(8), exchange=34, initiator=True, response=False, message_id=0, major=3
    )
    octets = header.sized(0, 60).encode() + bytes(32)
    pair.b.endpoint.receive(Path(Endpoint(B, 500), Endpoint(A, 500)), octets, pair.now)
    output = pair.b.endpoint.poll()
    assert isinstance(output, SendIke)
    notify = parse_message(output.data).first(NotifyPayload)
    assert notify is not None
    assert notify.type == NotifyType.INVALID_MAJOR_VERSION
    assert len(output.data) <= len(octets)


def test_acquires_for_one_entry_are_one_task() -> None:
    pair = Pair()
    for _ in range(5):
        pair.acquire(pair.a)
    assert len(pair.wire) == 1
    pair.run()
    assert len(pair.a.live) == 1
