"""Invariant: octets from the network become a complete, bounded value, or a WireError; never anything else.

What parses can be encoded, and what was encoded parses to the same value. Nothing is opened that its peer did
not seal. No work is out of proportion to the octets.
"""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from ike.constants import PayloadType
from ike.errors import IntegrityError, WireError
from ike.wire.cursor import Cursor
from ike.wire.header import HEADER_LENGTH
from ike.wire.message import MAX_FRAGMENTS, MAX_PAYLOADS, Message, encode_message, parse_message, parse_payloads
from ike.wire.payloads import Payload, SaPayload, TsPayload, parse_payload
from ike.wire.proposals import MAX_PROPOSALS, MAX_TRANSFORMS
from ike.wire.protected import Reassembler, open_message, seal, seal_fragments
from ike.wire.rules import check
from ike.wire.selectors import MAX_SELECTORS
from tests.support.ike_messages import CBC, CHACHA, EVERY_PAYLOAD, EXCHANGES, GCM, cipher, header, payloads

CORPUS: list[bytes] = [
    *(encode_message(header(*key[:1], response=key[1]), sent) for key, sent in EXCHANGES.items()),
    encode_message(header(), EVERY_PAYLOAD),
    *(seal(cipher(suite), header(35), EVERY_PAYLOAD) for suite in (GCM, CBC, CHACHA)),
    *seal_fragments(cipher(), header(35), EVERY_PAYLOAD, 300),
]


def bounded(payload: Payload) -> None:
    if isinstance(payload, SaPayload):
        assert 1 <= len(payload.proposals) <= MAX_PROPOSALS
        for proposal in payload.proposals:
            assert 1 <= len(proposal.transforms) + len(proposal.opaque) <= MAX_TRANSFORMS
    if isinstance(payload, TsPayload):
        assert 1 <= len(payload.selectors) + payload.skipped <= MAX_SELECTORS


def survive(data: bytes) -> None:
    """Hold the invariant for one datagram."""
    try:
        message = parse_message(data)
    except WireError as error:
        printable(error)
        return
    assert len(message.payloads) <= MAX_PAYLOADS
    for payload in message.payloads:
        bounded(payload)
    if message.protected is None:
        # What was skipped in a TS payload is not sent again.
        if not any(isinstance(payload, TsPayload) and payload.skipped for payload in message.payloads):
            again = parse_message(encode_message(message.header, message.payloads))
            assert again.payloads == message.payloads
    else:
        assert 1 <= message.protected.number <= message.protected.total <= MAX_FRAGMENTS
        assert message.protected.aad + message.protected.body == data
    legal(message)


def legal(message: Message) -> None:
    try:
        check(message)
    except WireError as error:
        printable(error)


def printable(error: WireError) -> None:
    assert str(error).isprintable()


def with_length(data: bytes) -> bytes:
    """Make the header's length right, so that the parser gets past it."""
    return data[:24] + len(data).to_bytes(4, "big") + data[HEADER_LENGTH:]


@settings(deadline=None)
@given(st.binary(max_size=400))
@example(b"")
def test_any_octets(data: bytes) -> None:
    survive(data)


@settings(deadline=None)
@given(st.integers(0, 255), st.integers(0, 255), st.binary(max_size=400))
def test_any_octets_behind_a_good_header(first: int, exchange: int, body: bytes) -> None:
    survive(header(exchange).sized(first, HEADER_LENGTH + len(body)).encode() + body)


@settings(deadline=None)
@given(st.integers(0, 255), st.booleans(), st.binary(max_size=300))
def test_any_octets_as_a_payload(kind: int, critical: bool, body: bytes) -> None:
    if kind in (PayloadType.NONE, PayloadType.SK, PayloadType.SKF):
        return
    try:
        payload = parse_payload(kind, critical, Cursor(body))
    except WireError:
        return
    bounded(payload)
    assert payload.payload_type == kind
    if not (isinstance(payload, TsPayload) and payload.skipped):
        assert parse_payload(kind, False, Cursor(payload.encode_body())) == payload


mutations = st.lists(
    st.tuples(
        st.sampled_from(("flip", "set", "cut", "insert", "repeat")), st.integers(0, 2**16), st.integers(0, 255)
    ),
    min_size=1,
    max_size=6,
)


def mutate(data: bytes, changes: list[tuple[str, int, int]]) -> bytes:
    for kind, where, value in changes:
        index = where % (len(data) + 1)
        match kind:
            case "flip":
                data = (
                    data[:index]
                    + bytes(octet ^ 1 << value % 8 for octet in data[index : index + 1])
                    + data[index + 1 :]
                )
            case "set":
                data = data[:index] + bytes([value]) + data[index + 1 :]
            case "cut":
                data = data[:index] + data[index + value :]
            case "insert":
                data = data[:index] + bytes([value]) * (value % 16) + data[index:]
            case _:
                data = data[:index] + data[index : index + value] * 2 + data[index + value :]
    return data


@settings(deadline=None, max_examples=400)
@given(st.sampled_from(CORPUS), mutations)
def test_garbled_messages(data: bytes, changes: list[tuple[str, int, int]]) -> None:
    survive(mutate(data, changes))
    survive(with_length(mutate(data, changes)))


def test_every_octet_of_every_message_set_to_every_edge() -> None:
    for data in CORPUS:
        for index in range(HEADER_LENGTH, len(data)):
            for value in (0x00, 0x01, 0x7F, 0x80, 0xFF, data[index] ^ 0x01):
                survive(data[:index] + bytes([value]) + data[index + 1 :])


@settings(deadline=None, max_examples=200)
@given(st.sampled_from((GCM, CBC, CHACHA)), mutations)
def test_nothing_garbled_is_opened(suite: object, changes: list[tuple[str, int, int]]) -> None:
    data = seal(cipher(suite), header(37), EVERY_PAYLOAD)  # type: ignore[arg-type]
    garbled = with_length(mutate(data, changes))
    if garbled == data:
        return
    reassembler = Reassembler()
    try:
        message = parse_message(garbled)
        if message.protected is not None:
            open_message(cipher(suite), message, reassembler)  # type: ignore[arg-type]
            raise AssertionError("opened what was not sealed")
    except (WireError, IntegrityError):
        pass
    assert reassembler.pending() == 0


@settings(deadline=None)
@given(st.integers(0, 255), st.binary(max_size=300))
def test_any_authenticated_octets(first: int, plaintext: bytes) -> None:
    try:
        inner = parse_payloads(first, plaintext)
    except WireError:
        return
    for payload in inner:
        bounded(payload)


@settings(deadline=None, max_examples=150)
@given(st.lists(payloads, max_size=10), st.integers(200, 1500), st.randoms(use_true_random=False))
def test_fragments_in_any_order(sent: list[Payload], size: int, random: object) -> None:
    fragments = list(seal_fragments(cipher(), header(37), sent, size))
    random.shuffle(fragments)  # type: ignore[attr-defined]
    reassembler = Reassembler()
    results = [open_message(cipher(), parse_message(data), reassembler) for data in fragments * 2]
    whole = [message for message in results if message is not None]
    assert whole
    assert all(message.payloads == tuple(sent) for message in whole)
