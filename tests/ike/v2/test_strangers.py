"""The flood ladder: what strangers cost, who is asked for a cookie, and whose budget is whose.

Class of CVE-2020-3230: half-open exhaustion, and exhaustion of the processor.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ike import endpoint as endpoint_module
from ike.constants import NotifyType
from ike.events import SendIke
from ike.v2.halfopen import Bucket, HalfOpenTable, Handshakes
from ike.v2.settings import IkeSettings
from ike.wire.glance import glance, nonce_and_cookie
from ike.wire.header import Header
from ike.wire.message import Message, encode_message, parse_message
from ike.wire.payloads import NoncePayload, NotifyPayload
from policy.clock import MILLISECOND, SECOND
from policy.path import Endpoint, IpAddress, Path
from policy.spd import Snapshot
from tests.support.ike_pair import A, B, Pair, site_b

QUIET = IkeSettings(cookie_threshold=10_000, cookie_rate=10_000_000)


def source_of(address: str, port: int = 500) -> Path:
    return Path(Endpoint(B, 500), Endpoint(ip_address(address), port))


@pytest.fixture(scope="module")
def init() -> bytes:
    """A valid IKE_SA_INIT request of A."""
    pair = Pair()
    pair.acquire(pair.a)
    return pair.take().ike


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What was parsed in full."""
    seen: list[bytes] = []

    def parse(data: bytes) -> Message:
        seen.append(data)
        return parse_message(data)

    monkeypatch.setattr(endpoint_module, "parse_message", parse)
    return seen


def anywhere(peers: int = 1) -> Snapshot:
    """B's policy, its peer at any address."""
    base = site_b().pad.peers[0]
    return replace(site_b(), pad=replace(site_b().pad, peers=(replace(base, address=None),)))


def spoofed(init: bytes, count: int) -> Iterator[tuple[Path, bytes]]:
    for number in range(count):
        address = f"203.{number % 200}.{number // 200 % 250}.9"
        yield source_of(address), number.to_bytes(8, "little").replace(b"\0", b"\1") + init[8:]


def flood(pair: Pair, init: bytes, count: int) -> int:
    """Return how many of so many spoofed requests, within a millisecond, were answered."""
    answers = 0
    for path, data in spoofed(init, count):
        pair.b.endpoint.receive(path, data, pair.now)
        while (output := pair.b.endpoint.poll()) is not None:
            if isinstance(output, SendIke):
                answers += 1
                assert len(output.data) <= len(data) + 32
    return answers


def with_cookie(init: bytes, path: Path, pair: Pair) -> bytes:
    """Return the request with the cookie that B demands of *path*: its sender hears what is said to it."""
    pair.b.endpoint.receive(path, init, pair.now)
    demands = []
    while (output := pair.b.endpoint.poll()) is not None:
        if isinstance(output, SendIke):
            demands.append(parse_message(output.data).notify(NotifyType.COOKIE))
    [demand] = demands
    assert demand is not None
    message = parse_message(init)
    return encode_message(message.header, [demand, *message.payloads])


def test_spoofed_requests_are_not_parsed_once_there_is_a_rush(init: bytes, parsed: list[bytes]) -> None:
    pair = Pair(b=anywhere())
    assert flood(pair, init, 5000) == 5000, "each is told to bring a cookie"
    assert len(parsed) <= 20
    assert pair.b.endpoint.counters()["cookie demanded"] >= 4980


def test_requests_that_nobody_at_home_sends_make_a_rush_too(init: bytes, parsed: list[bytes]) -> None:
    """They leave no half-open IKE SA, and yet each takes its time: refused ones for one."""
    pair = Pair()
    flood(pair, init, 1000)
    assert pair.b.states() == []
    assert len(parsed) <= 20
    assert pair.b.endpoint.counters()["cookie demanded"] >= 980


def test_a_few_a_second_need_no_cookie(init: bytes) -> None:
    pair = Pair(b=anywhere())
    for number, (path, data) in enumerate(spoofed(init, 19)):
        pair.b.endpoint.receive(path, data, number * 6 * MILLISECOND)
        while pair.b.endpoint.poll() is not None:
            pass
    assert pair.b.endpoint.counters().get("cookie demanded", 0) == 0


@pytest.mark.parametrize("what", ["unknown SPI", "unprotected", "version 3"])
def test_other_messages_of_strangers_are_parsed_seldom(init: bytes, parsed: list[bytes], what: str) -> None:
    pair = Pair()
    head = Header(
        spi_i=b"\1" * 8, spi_r=b"\2" * 8, exchange=37, initiator=True, response=False, message_id=7,
        major=3 if what == "version 3" else 2,
    )  # fmt: skip
    first = 41 if what == "unprotected" else 46
    body = bytes((0, 0, 0, 60)) + bytes(56)
    data = head.sized(first, 28 + len(body)).encode() + body
    for second in range(3):
        for _ in range(400):
            pair.b.endpoint.receive(source_of("203.0.113.9"), data, second * SECOND)
    assert len(parsed) == 150
    assert pair.b.endpoint.counters()["not looked at"] == 1050


def test_unprotected_messages_for_an_sa_are_parsed_seldom(parsed: list[bytes]) -> None:
    pair = Pair()
    pair.connect()
    [sa] = pair.b.endpoint.status(pair.now)
    head = Header(
        spi_i=sa.spi_i, spi_r=sa.spi_r, exchange=37, initiator=True, response=False, message_id=2
    )  # fmt: skip
    data = encode_message(head, [NotifyPayload(16384)] * 60)
    parsed.clear()
    for _ in range(500):
        pair.b.endpoint.receive(Path(Endpoint(B, 500), Endpoint(A, 500)), data, pair.now)
    assert len(parsed) == 50
    assert pair.agree()


def test_a_flood_of_strangers_with_cookies_leaves_the_peer_its_budget(init: bytes) -> None:
    """Real addresses in many prefixes bring their cookies and spend all that strangers have; A is served still."""
    base = site_b()
    stranger = replace(base.pad.peers[0], name="anybody", address=None)
    snapshot = replace(base, pad=replace(base.pad, peers=(*base.pad.peers, stranger)))
    settings = replace(QUIET, cookie_threshold=0, half_open_limit=100_000, handshake_rate=40)
    pair = Pair(b=snapshot, settings_b=settings)
    for path, data in spoofed(init, 60):
        pair.b.endpoint.receive(path, with_cookie(data, path, pair), pair.now)
        while pair.b.endpoint.poll() is not None:
            pass
    assert len(pair.b.states()) == 10, "a quarter of a second's worth"
    assert pair.b.endpoint.counters()["handshake rate"] == 50
    pair.acquire(pair.a)
    pair.run()
    assert pair.agree()


def test_forged_addresses_of_a_peer_do_not_spend_its_budget(init: bytes) -> None:
    settings = replace(QUIET, cookie_threshold=0, handshake_rate=4)
    pair = Pair(settings_b=settings)
    for number in range(2000):
        pair.b.endpoint.receive(source_of(str(A), number + 1), number.to_bytes(8, "big") + init[8:], pair.now)
        while pair.b.endpoint.poll() is not None:
            pass
    pair.acquire(pair.a)
    pair.run()
    assert pair.agree()


def test_an_address_where_a_peer_was_authenticated_has_the_peers_budget(init: bytes) -> None:
    settings = replace(QUIET, handshake_rate=4)
    pair = Pair(b=anywhere(), settings_b=settings)
    pair.connect()
    spent = 0
    for path, data in spoofed(init, 10):
        pair.b.endpoint.receive(path, data, pair.now)
        while pair.b.endpoint.poll() is not None:
            pass
    spent = pair.b.endpoint.counters()["handshake rate"]
    assert spent >= 9, "strangers have nothing left"
    pair.a.endpoint.terminate_peer("gw-b", pair.now)
    pair.drain(pair.a)
    pair.run()
    pair.acquire(pair.a)
    pair.run()
    assert pair.agree()


def test_one_prefix_has_half_of_what_strangers_have() -> None:
    budget = Handshakes(400)
    taken = sum(budget.take(ip_address(f"192.0.2.{number % 250}"), SECOND, known=False) for number in range(500))
    assert taken == 50
    other = sum(
        budget.take(ip_address(f"198.51.100.{number % 250}"), SECOND, known=False) for number in range(500)
    )
    assert other == 50
    third = sum(budget.take(ip_address("203.0.113.1"), SECOND, known=False) for number in range(500))
    assert third == 0, "all of them together have a bound"
    assert sum(budget.take(ip_address("192.0.2.1"), SECOND, known=True) for _ in range(500)) == 200


def test_six_counts_by_the_48() -> None:
    budget = Handshakes(400)
    same = [ip_address(f"2001:db8:1:{number:x}::1") for number in range(200)]
    assert sum(budget.take(address, SECOND, known=False) for address in same) == 50
    assert budget.take(ip_address("2001:db8:2::1"), SECOND, known=False)


def test_budgets_of_prefixes_and_proofs_are_bounded() -> None:
    budget = Handshakes(400)
    for number in range(20_000):
        address = ip_address(number << 8)
        budget.take(address, number * SECOND, known=False)
        budget.prove(address)
    assert len(budget._prefixes) == 4096
    assert len(budget._proven) == 16_384
    assert budget.proven(ip_address(19_999 << 8))
    assert not budget.proven(ip_address(0))


@given(st.integers(1, 1000), st.lists(st.integers(0, 3 * SECOND), max_size=200))
def test_a_bucket_never_gives_more_than_its_rate(rate: int, waits: list[int]) -> None:
    bucket, now, taken = Bucket(rate, 0), 0, 0
    for wait in waits:
        now += wait
        taken += bucket.take(now)
    assert taken <= max(rate // 4, 1) + now * rate // SECOND


def test_the_rush_lasts_as_long_as_a_request_may_be_on_its_way() -> None:
    table = HalfOpenTable(IkeSettings())
    for _ in range(21):
        table.asked(SECOND)
    assert table.loaded(SECOND)
    assert table.loaded(30 * SECOND)
    assert not table.loaded(32 * SECOND)


def test_the_policy_says_who_is_known_without_a_walk() -> None:
    base = site_b().pad.peers[0]
    addresses: list[IpAddress] = [ip_address(0x0B00_0000 + number) for number in range(1000)]
    pad = replace(
        site_b().pad, peers=tuple(replace(base, name=f"p{n}", address=a) for n, a in enumerate(addresses))
    )
    assert all(pad.names(address) for address in addresses)
    assert not pad.names(ip_address("10.9.0.1"))
    assert not replace(pad, peers=(replace(base, address=None),)).names(A)


# What a glance sees is what the parser sees.


def test_every_prefix_and_every_wrong_length(init: bytes) -> None:
    for length in range(len(init)):
        look = glance(init[:length])
        assert (look is None) == (length < 28)
        if look is not None:
            assert nonce_and_cookie(look, init[:length]) is None, "the header says another length"


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_a_glance_finds_what_the_parser_finds(init: bytes, data: st.DataObject) -> None:
    message = parse_message(init)
    extra = st.builds(
        NotifyPayload,
        st.sampled_from([16388, 16390, 16406, 40000]),
        st.just(0),
        st.just(b""),
        st.binary(max_size=70),
    )
    before = data.draw(st.lists(extra, max_size=5))
    nonce = NoncePayload(data.draw(st.binary(min_size=16, max_size=256)))
    octets = bytearray(encode_message(message.header, [*before, nonce, *message.payloads[:2]]))
    look = glance(bytes(octets))
    assert look is not None
    cookies = [notify.data for notify in before if notify.type == NotifyType.COOKIE and notify.data]
    assert nonce_and_cookie(look, bytes(octets)) == (nonce.data, cookies[0] if cookies else b"")
    octets[data.draw(st.integers(28, len(octets) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    look = glance(bytes(octets))
    assert look is not None
    found = nonce_and_cookie(look, bytes(octets))
    assert found is None or 16 <= len(found[0]) <= 256
