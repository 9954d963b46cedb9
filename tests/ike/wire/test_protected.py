"""The Encrypted payload (RFC 7296 section 3.14) and fragments (RFC 7383)."""

from __future__ import annotations

from itertools import permutations

import pytest

from ike.constants import Encr, ExchangeType, NotifyType, PayloadType, ProtocolId
from ike.crypto.ciphers import IkeCipher
from ike.errors import IntegrityError, InvalidSyntax, LocalError, UnsupportedCriticalPayload, WireError
from ike.wire.header import HEADER_LENGTH, Header
from ike.wire.message import (
    MAX_FRAGMENTS,
    MAX_PAYLOADS,
    Message,
    Protected,
    encode_payloads,
    generic_header,
    parse_message,
)
from ike.wire.payloads import NotifyPayload, Payload, UnknownPayload, VendorIdPayload
from ike.wire.protected import MAX_REASSEMBLED, MAX_SETS, Reassembler, open_message, seal, seal_fragments
from policy.proposals import Suite
from policy.secret import Secret
from tests.support.ike_messages import CBC, CHACHA, DELETE, EXCHANGES, GCM, NOTIFY, cipher, header
from tests.support.vectors import vectors

SUITES = [GCM, CHACHA, CBC]
HEADER = header(ExchangeType.INFORMATIONAL)
LARGE = VendorIdPayload(bytes(index % 251 for index in range(4000)))


def opened(data: bytes, suite: Suite = GCM, reassembler: Reassembler | None = None) -> Message | None:
    return open_message(cipher(suite), parse_message(data), reassembler or Reassembler())


def inner(data: bytes, suite: Suite = GCM) -> tuple[Payload, ...]:
    message = opened(data, suite)
    assert message is not None
    return message.payloads


def sealed(first: int, plaintext: bytes, head: Header = HEADER, fields: bytes = b"") -> bytes:
    """Seal any octets as what follows an SK (or, with fields, SKF) payload's header."""
    ours = cipher()
    length = 4 + len(fields) + ours.sealed_length(len(plaintext))
    kind = PayloadType.SKF if fields else PayloadType.SK
    aad = head.sized(kind, HEADER_LENGTH + length).encode()
    aad += bytes([first, 0]) + length.to_bytes(2, "big") + fields
    return aad + ours.seal(plaintext, aad)


def fragment(number: int, total: int, plaintext: bytes, first: int | None = None, message_id: int = 1) -> bytes:
    if first is None:
        first = PayloadType.VENDOR if number == 1 else PayloadType.NONE
    head = header(ExchangeType.INFORMATIONAL, message_id=message_id)
    return sealed(first, plaintext, head, number.to_bytes(2, "big") + total.to_bytes(2, "big"))


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("exchange", EXCHANGES)
def test_round_trip(suite: Suite, exchange: tuple[ExchangeType, bool]) -> None:
    sent = EXCHANGES[exchange]
    head = header(exchange[0], response=exchange[1])
    data = seal(cipher(suite), head, sent)
    received = parse_message(data)
    first = sent[0].payload_type if sent else PayloadType.NONE
    assert received.header == head.sized(PayloadType.SK, len(data))
    assert received.payloads == ()
    assert received.protected is not None
    assert (received.protected.kind, received.protected.first) == (PayloadType.SK, first)
    assert (received.protected.number, received.protected.total) == (1, 1)
    assert received.protected.aad + received.protected.body == data
    whole = open_message(cipher(suite), received, Reassembler())
    assert whole is not None
    assert (whole.payloads, whole.opened, whole.octets) == (sent, True, data)
    assert whole.protected is received.protected


def test_known_message() -> None:
    """The IKE example of RFC 7634 appendix B, both ways."""
    vector = vectors("ike_chacha20poly1305")
    data = bytes.fromhex(vector["message"])
    suite = Suite(ProtocolId.IKE, Encr.CHACHA20_POLY1305)

    def theirs() -> IkeCipher:
        return IkeCipher(
            suite, Secret(bytes.fromhex(vector["key"])), Secret(bytes.fromhex(vector["salt"])), Secret(b"")
        )

    message = open_message(theirs(), parse_message(data), Reassembler())
    assert message is not None
    window = NotifyPayload(NotifyType.SET_WINDOW_SIZE, data=b"\0\0\0\x0a")
    assert message.payloads == (window,)
    assert (message.header.message_id, message.header.exchange) == (9, ExchangeType.INFORMATIONAL)
    ours = theirs()
    ours._counter = int(vector["iv"], 16) - 1
    assert seal(ours, message.header, [window]) == data


@pytest.mark.parametrize("suite", SUITES)
def test_one_changed_octet_anywhere_costs_the_message_only(suite: Suite) -> None:
    """Header, next payload and reserved octets too: all of it is authenticated."""
    data = seal(cipher(suite), HEADER, [DELETE, NOTIFY])
    for index in range(len(data)):
        changed = data[:index] + bytes([data[index] ^ 0x01]) + data[index + 1 :]
        with pytest.raises((WireError, IntegrityError)) as caught:
            opened(changed, suite)
        assert not isinstance(caught.value, InvalidSyntax)


@pytest.mark.parametrize("suite", SUITES)
def test_every_prefix_is_refused(suite: Suite) -> None:
    data = seal(cipher(suite), HEADER, [DELETE])
    for length in range(HEADER_LENGTH, len(data)):
        with pytest.raises(WireError):
            parse_message(data[:length])
        shorter = bytearray(data[:length])
        shorter[24:28] = length.to_bytes(4, "big")
        if length >= HEADER_LENGTH + 4:
            shorter[30:32] = (length - HEADER_LENGTH).to_bytes(2, "big")
            with pytest.raises(IntegrityError):
                opened(bytes(shorter), suite)


def test_the_encrypted_payload_is_the_last() -> None:
    """Section 3.14."""
    data = bytearray(seal(cipher(), HEADER, [DELETE]))
    data[24:28] = (len(data) + 4).to_bytes(4, "big")
    with pytest.raises(WireError):
        parse_message(bytes(data) + b"\0\0\0\x04")


def test_payloads_before_the_encrypted_one_are_kept_apart() -> None:
    ours, plaintext = cipher(), encode_payloads([DELETE])[1]
    outer = generic_header(PayloadType.SK, b"what")
    length = 4 + ours.sealed_length(len(plaintext))
    aad = HEADER.sized(200, HEADER_LENGTH + len(outer) + length).encode()
    aad += outer + bytes([PayloadType.DELETE, 0]) + length.to_bytes(2, "big")
    message = opened(aad + ours.seal(plaintext, aad))
    assert message is not None
    assert message.outer == (UnknownPayload(200, False, b"what"),)
    assert message.payloads == (DELETE,)


def test_authenticated_rubbish_costs_the_ike_sa() -> None:
    for first, plaintext in (
        (PayloadType.NONCE, b"\0\0\0\x08nonce"),
        (PayloadType.NONCE, b""),
        (PayloadType.NONE, b"\0"),
        (PayloadType.SK, generic_header(0, bytes(40))),
        (PayloadType.SKF, generic_header(0, bytes(40))),
    ):
        with pytest.raises(InvalidSyntax):
            opened(sealed(first, plaintext))
    with pytest.raises(UnsupportedCriticalPayload):
        opened(sealed(200, generic_header(0, b"", critical=True)))


@pytest.mark.parametrize("count", [MAX_PAYLOADS - 1, MAX_PAYLOADS, MAX_PAYLOADS + 1])
def test_number_of_inner_payloads(count: int) -> None:
    """Class of CVE-2026-12413: N-1, N, N+1."""
    plaintext = b"".join(generic_header(43 if left else 0, b"") for left in range(count - 1, -1, -1))
    if count <= MAX_PAYLOADS:
        assert len(inner(sealed(43, plaintext))) == count
    else:
        with pytest.raises(InvalidSyntax):
            opened(sealed(43, plaintext))


def test_inner_and_outer_payloads_count_together() -> None:
    message = parse_message(seal(cipher(), HEADER, [DELETE]))
    unknown = (UnknownPayload(200, False, b""),)
    assert len(message.with_inner(unknown * MAX_PAYLOADS).payloads) == MAX_PAYLOADS
    with pytest.raises(WireError):
        message.with_inner(unknown * (MAX_PAYLOADS + 1))


def test_what_we_cannot_send_is_ours() -> None:
    with pytest.raises(LocalError):
        seal(cipher(), HEADER, [VendorIdPayload(bytes(65500))])
    with pytest.raises(LocalError):
        open_message(cipher(), parse_message(HEADER.encode()), Reassembler())


# Fragments.


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("size", [400, 548, 1232, 1452])
def test_fragments(suite: Suite, size: int) -> None:
    fragments = seal_fragments(cipher(suite), HEADER, [LARGE, DELETE], size)
    assert len(fragments) > 1
    assert max(map(len, fragments)) <= size
    reassembler = Reassembler()
    for number, data in enumerate(fragments, 1):
        protected = parse_message(data).protected
        assert protected is not None
        assert (protected.kind, protected.number, protected.total) == (PayloadType.SKF, number, len(fragments))
        assert protected.first == (PayloadType.VENDOR if number == 1 else PayloadType.NONE)
        message = opened(data, suite, reassembler)
        assert (message is None) == (number < len(fragments))
    assert message is not None
    assert message.payloads == (LARGE, DELETE)
    assert (message.opened, reassembler.pending(), reassembler.octets()) == (True, 0, 0)


@pytest.mark.parametrize("suite", SUITES)
def test_only_what_is_too_long_is_fragmented(suite: Suite) -> None:
    whole = seal(cipher(suite), HEADER, [LARGE])
    for size, count in ((len(whole) + 1, 1), (len(whole), 1), (len(whole) - 1, 2)):
        fragments = seal_fragments(cipher(suite), HEADER, [LARGE], size)
        assert len(fragments) == count
        assert (fragments[0] == whole) is (count == 1)


def test_fragments_are_bounded_when_sent() -> None:
    ours, plaintext = cipher(), 4 + len(LARGE.data)
    size = HEADER_LENGTH + 8 + ours.sealed_length(plaintext // MAX_FRAGMENTS + 1)
    assert len(seal_fragments(cipher(), HEADER, [LARGE], size)) == MAX_FRAGMENTS
    with pytest.raises(LocalError):
        seal_fragments(cipher(), HEADER, [LARGE], size - 1)
    for size in (0, HEADER_LENGTH, HEADER_LENGTH + 8 + ours.overhead() + 1):
        with pytest.raises(LocalError):
            seal_fragments(cipher(), HEADER, [LARGE], size)


def test_any_order_and_duplicates() -> None:
    """CVE-2013-6076, CVE-2016-10396."""
    fragments = seal_fragments(cipher(), HEADER, [LARGE], 1232)
    assert len(fragments) == 4
    for order in permutations(range(4)):
        reassembler = Reassembler()
        for index in order[:-1]:
            for _ in range(3):
                assert opened(fragments[index], GCM, reassembler) is None
        held = reassembler.octets()
        message = opened(fragments[order[-1]], GCM, reassembler)
        assert message is not None
        assert message.payloads == (LARGE,)
        assert held < len(LARGE.data)


def test_a_fragment_is_authenticated_before_it_counts() -> None:
    """CVE-2016-1287: nothing is stored that the peer did not seal."""
    fragments = seal_fragments(cipher(), HEADER, [LARGE], 1232)
    reassembler = Reassembler()
    for data in fragments:
        for index in (33, 35, len(data) - 1):  # fragment number, total, integrity check value
            with pytest.raises((WireError, IntegrityError)):
                opened(data[:index] + bytes([data[index] ^ 0x01]) + data[index + 1 :], GCM, reassembler)
    assert (reassembler.pending(), reassembler.octets()) == (0, 0)


@pytest.mark.parametrize(
    ("number", "total", "first"),
    [
        *((0, 1, 43), (0, 0, 43), (1, 0, 43), (2, 1, 0), (1, 17, 43), (17, 17, 0), (65535, 65535, 0)),
        *((1, 2, 0), (2, 2, 43), (16, 16, 43)),
    ],
)
def test_impossible_fragments(number: int, total: int, first: int) -> None:
    """RFC 7383 section 2.5: numbers from 1, type of the first payload in the first fragment alone."""
    with pytest.raises(WireError):
        parse_message(fragment(number, total, b"x", first))


@pytest.mark.parametrize("total", [1, 2, MAX_FRAGMENTS - 1, MAX_FRAGMENTS])
def test_number_of_fragments(total: int) -> None:
    plaintext = encode_payloads([LARGE])[1]
    step = -(-len(plaintext) // total)
    reassembler = Reassembler()
    for number in range(1, total + 1):
        part = plaintext[(number - 1) * step : number * step]
        message = opened(fragment(number, total, part), GCM, reassembler)
    assert message is not None
    assert message.payloads == (LARGE,)


def test_a_higher_total_discards_the_older_set() -> None:
    """RFC 7383 section 2.6.1: the sender went on with smaller fragments."""
    large = seal_fragments(cipher(), HEADER, [LARGE], 1452)
    small = seal_fragments(cipher(), HEADER, [LARGE], 576)
    assert len(large) == 3
    reassembler = Reassembler()
    assert [opened(data, GCM, reassembler) for data in large[:2]] == [None, None]
    assert opened(small[0], GCM, reassembler) is None
    assert reassembler.pending() == 1
    # The last large one comes late: a lower total is ignored.
    assert opened(large[2], GCM, reassembler) is None
    results = [opened(data, GCM, reassembler) for data in small[1:]]
    assert results[:-1] == [None] * (len(small) - 2)
    assert results[-1] is not None
    assert results[-1].payloads == (LARGE,)


def test_messages_are_told_apart() -> None:
    """By direction and message ID; and only a few are held."""
    reassembler = Reassembler()
    request = seal_fragments(cipher(), HEADER, [LARGE], 2200)
    response = seal_fragments(cipher(), header(37, response=True), [LARGE, DELETE], 2200)
    assert opened(request[0], GCM, reassembler) is None
    assert opened(response[0], GCM, reassembler) is None
    assert reassembler.pending() == 2
    first, second = opened(request[1], GCM, reassembler), opened(response[1], GCM, reassembler)
    assert first is not None
    assert second is not None
    assert (first.payloads, second.payloads) == ((LARGE,), (LARGE, DELETE))
    for message_id in range(100):
        assert opened(fragment(1, 2, b"x", message_id=message_id), GCM, reassembler) is None
        assert reassembler.pending() == min(message_id + 1, MAX_SETS)
    # The oldest went.
    assert [key[1] for key in reassembler._sets] == [98, 99]


def test_discard() -> None:
    reassembler = Reassembler()
    for message_id in (1, 2):
        opened(fragment(1, 2, b"xyz", message_id=message_id), GCM, reassembler)
    reassembler.discard(HEADER)
    assert (reassembler.pending(), reassembler.octets()) == (1, 3)
    reassembler.discard(HEADER)
    reassembler.discard()
    assert reassembler.pending() == 0


@pytest.mark.parametrize("excess", [-1, 0, 1])
def test_reassembly_is_bounded(excess: int) -> None:
    """CVE-2016-1287, class of CVE-2026-12413: the whole has 64 kB at most, N-1, N, N+1."""
    reassembler = Reassembler()
    half = MAX_REASSEMBLED // 2

    def add(number: int, length: int) -> tuple[int, bytes] | None:
        first = PayloadType.VENDOR if number == 1 else PayloadType.NONE
        protected = Protected(PayloadType.SKF, first, number, 2, b"", b"")
        return reassembler.add(HEADER, protected, bytes(length))

    assert add(2, half) is None
    assert add(2, half + 10) is None  # a duplicate is not counted
    assert reassembler.octets() == half
    if excess <= 0:
        assert add(1, half + excess) == (PayloadType.VENDOR, bytes(2 * half + excess))
    else:
        with pytest.raises(InvalidSyntax):
            add(1, half + excess)
    assert (reassembler.pending(), reassembler.octets()) == (0, 0)
