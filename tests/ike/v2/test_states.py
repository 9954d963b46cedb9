"""The tables of legality, walked exhaustively, and what they mean for real IKE SAs (CVE classes 8, 9 and 10)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

import pytest

from ike.constants import ExchangeType, NotifyType, ProtocolId
from ike.errors import LocalError
from ike.v2.sa import IkeSa
from ike.v2.states import AUTHENTICATED, Direction, State, legal, may_become
from ike.wire.header import Header
from ike.wire.message import encode_message
from ike.wire.payloads import DeletePayload, NoncePayload, NotifyPayload, Payload, SaPayload, TsPayload
from ike.wire.proposals import offer
from ike.wire.protected import seal
from policy.clock import SECOND
from policy.path import Endpoint, Path
from tests.support.ike_pair import ESP_GCM256, A, B, Node, Pair, selector

X = ExchangeType

#: The table written a second time, by hand, from RFC 7296 section 1: state -> (requests, responses).
EXPECTED: dict[State, tuple[set[ExchangeType], set[ExchangeType]]] = {
    State.INITIATING: (set(), {X.IKE_SA_INIT}),
    State.AUTHENTICATING: (set(), {X.IKE_AUTH}),
    State.HALF_OPEN: ({X.IKE_AUTH}, set()),
    State.ESTABLISHED: ({X.CREATE_CHILD_SA, X.INFORMATIONAL}, {X.CREATE_CHILD_SA, X.INFORMATIONAL}),
    State.REKEYED: ({X.CREATE_CHILD_SA, X.INFORMATIONAL}, {X.CREATE_CHILD_SA, X.INFORMATIONAL}),
    State.DELETING: ({X.CREATE_CHILD_SA, X.INFORMATIONAL}, {X.INFORMATIONAL}),
    State.CLOSED: (set(), set()),
}


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("exchange", [*ExchangeType, 0, 99, 255])
@pytest.mark.parametrize("direction", Direction)
def test_every_cell(state: State, exchange: int, direction: Direction) -> None:
    requests, responses = EXPECTED[state]
    assert legal(state, exchange, direction) == (
        exchange in (requests if direction is Direction.REQUEST else responses)
    )


def test_nothing_comes_back_from_closed_and_nothing_skips_auth() -> None:
    assert not any(may_become(State.CLOSED, state) for state in State)
    for state in (State.INITIATING, State.HALF_OPEN):
        assert not may_become(state, State.REKEYED)
    assert not may_become(State.INITIATING, State.ESTABLISHED)
    assert State.HALF_OPEN not in AUTHENTICATED
    assert State.AUTHENTICATING not in AUTHENTICATED


def initiating() -> tuple[Pair, Node]:
    pair = Pair()
    pair.acquire(pair.a)
    pair.wire.clear()
    return pair, pair.a


def authenticating() -> tuple[Pair, Node]:
    pair = Pair()
    pair.acquire(pair.a)
    pair.step()
    pair.step()
    pair.wire.clear()
    return pair, pair.a


def half_open() -> tuple[Pair, Node]:
    pair = Pair()
    pair.acquire(pair.a)
    pair.step()
    pair.wire.clear()
    return pair, pair.b


def deleting() -> tuple[Pair, Node]:
    pair = Pair()
    pair.connect()
    pair.a.endpoint.terminate_peer("gw-b", pair.now)
    pair.drain(pair.a)
    pair.wire.clear()
    return pair, pair.a


def closed() -> tuple[Pair, Node]:
    pair = Pair()
    pair.connect()
    pair.a.endpoint.terminate_peer("gw-b", pair.now)
    pair.drain(pair.a)
    pair.run()
    return pair, pair.b


MAKERS = [initiating, authenticating, half_open, deleting, closed]


def forged_payloads() -> Iterator[tuple[str, list[Payload]]]:
    wire = offer((ESP_GCM256,), b"\x01\x02\x03\x04")
    child: list[Payload] = [
        SaPayload(wire),
        NoncePayload(bytes(32)),
        TsPayload(True, (selector("10.1.0.0/24"),)),
        TsPayload(False, (selector("10.2.0.0/24"),)),
    ]
    yield "empty", []
    yield "delete", [DeletePayload(ProtocolId.IKE)]
    yield "delete child", [DeletePayload(ProtocolId.ESP, (b"\x01\x02\x03\x04",))]
    yield "child", child
    yield "rekey", [NotifyPayload(NotifyType.REKEY_SA, ProtocolId.ESP, b"\x01\x02\x03\x04"), *child]


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("exchange", [X.IKE_SA_INIT, X.IKE_AUTH, X.CREATE_CHILD_SA, X.INFORMATIONAL, 43, 99])
@pytest.mark.parametrize("response", [False, True])
@pytest.mark.parametrize("protected", [False, True])
def test_every_exchange_in_every_unestablished_state(
    make: Callable[[], tuple[Pair, Node]], exchange: int, response: bool, protected: bool
) -> None:
    """No Child SA comes of anything but AUTH verified both ways.

    CVE-2014-2338, CVE-2019-12312, CVE-2020-1763, CVE-2009-0790.
    """
    pair, node = make()
    [sa] = list(node.endpoint._core.sas.values())[:1]
    states = node.states()
    for _, payloads in forged_payloads():
        for message_id in range(4):
            octets = message(sa, exchange, response, message_id, payloads, protected=protected)
            if octets is None:
                continue
            here, there = (A, B) if node is pair.a else (B, A)
            node.endpoint.receive(Path(Endpoint(here, 500), Endpoint(there, 500)), octets, pair.now)
            pair.drain(node)
    assert node.live == []
    if not protected:
        assert node.states() == states
    # An INFORMATIONAL of a half-open peer with the right keys, but no AUTH, may at most end the attempt.
    assert "established" not in node.states()


def established() -> tuple[Pair, Node]:
    pair = Pair()
    pair.connect()
    return pair, pair.b


@pytest.mark.parametrize("make", [*MAKERS, established])
@pytest.mark.parametrize("protected", [False, True])
def test_all_256_exchanges_in_every_state(make: Callable[[], tuple[Pair, Node]], protected: bool) -> None:
    """CVE-2022-23094, CVE-2019-12312: what the table does not allow is not even looked at, and told safely."""
    pair, node = make()
    [sa] = list(node.endpoint._core.sas.values())[:1]
    state, live, here = sa.state, list(node.live), B if node is pair.b else A
    path = Path(Endpoint(here, 500), Endpoint(A if here == B else B, 500))
    for exchange, response in product(range(256), (False, True)):
        direction = Direction.RESPONSE if response else Direction.REQUEST
        if legal(state, exchange, direction):
            continue
        for message_id in (sa.window.expected, 0):
            octets = message(sa, exchange, response, message_id, [], protected=protected)
            if octets is not None:
                node.endpoint.receive(path, octets, pair.now)
                pair.drain(node)
        assert sa.state is state, (exchange, response)
    assert node.live == live
    assert node.named("internal_error") == []


def test_the_table_of_states_is_the_rfcs() -> None:
    """Every exchange type in every state, either way: nothing is legal that is not written down here."""
    late = (State.REKEYED, State.DELETING)
    allowed = {
        *(
            (State.INITIATING, X.IKE_SA_INIT, Direction.RESPONSE),
            (State.AUTHENTICATING, X.IKE_AUTH, Direction.RESPONSE),
        ),
        (State.HALF_OPEN, X.IKE_AUTH, Direction.REQUEST),
        *product((State.ESTABLISHED, *late), (X.CREATE_CHILD_SA, X.INFORMATIONAL), Direction),
    } - {(State.DELETING, X.CREATE_CHILD_SA, Direction.RESPONSE)}
    for state, exchange, direction in product(State, range(256), Direction):
        assert legal(state, exchange, direction) == ((state, exchange, direction) in allowed)


def message(
    sa: IkeSa, exchange: int, response: bool, message_id: int, payloads: list[Payload], *, protected: bool
) -> bytes | None:
    header = Header(
        spi_i=sa.spi_i,
        spi_r=sa.spi_r,
        exchange=exchange,
        initiator=not sa.initiator,
        response=response,
        message_id=message_id,
    )
    if not protected:
        return encode_message(header, payloads)
    if sa.channel is None or sa.state is State.CLOSED:
        return None
    return seal(sa.channel._inbound, header, payloads)


def test_a_child_sa_cannot_be_installed_on_an_unauthenticated_ike_sa() -> None:
    from ike.v2.child import install

    pair = Pair()
    pair.connect()
    [established] = pair.b.endpoint._core.sas.values()
    _, node = half_open()
    [sa] = node.endpoint._core.sas.values()
    sa.peer = established.peer
    agreed = _agreed(pair)
    with pytest.raises(LocalError):
        install(sa, agreed, pair.now)


def _agreed(pair: Pair):  # type: ignore[no-untyped-def]
    from ike.crypto.keymat import ChildKeys
    from ike.v2.child import Agreed

    [sa] = pair.a.live
    entry = pair.a.endpoint._core.entry("lan")
    assert entry is not None
    return Agreed(
        entry=entry,
        suite=sa.suite,
        mode=sa.mode,
        spi_in=sa.spi_in,
        spi_out=sa.spi_out,
        pairs=sa.selectors,
        keys_in=ChildKeys(*sa.keys_in),
        keys_out=ChildKeys(*sa.keys_out),
    )


@pytest.mark.parametrize("who", ["A", "B"])
def test_acts_after_delete_change_nothing(who: str) -> None:
    """Whatever is asked of SAs that are gone, nothing happens: CVE-2023-38712."""
    pair = Pair()
    pair.connect()
    node = pair.a if who == "A" else pair.b
    child, peer = node.live[0].child, node.live[0].peer
    path = node.live[0].path
    node.endpoint.terminate_peer(peer, pair.now)
    pair.drain(node)
    pair.run()
    history = len(node.history)
    for endpoint in (pair.a.endpoint, pair.b.endpoint):
        endpoint.expire(child, False, pair.now)
        endpoint.expire(child, True, pair.now)
        endpoint.rekey_child(child, pair.now)
        endpoint.terminate_child(child, pair.now)
        endpoint.mapping(child, Path(Endpoint(A, 4500), Endpoint(B, 4501)), pair.now)
        endpoint.rekey_ike(peer, pair.now)
        endpoint.terminate_peer(peer, pair.now)
    pair.drain(pair.a)
    pair.drain(pair.b)
    assert path.remote.port == 0
    assert len(node.history) == history
    assert not pair.wire
    pair.wait(60 * SECOND)
    assert pair.a.endpoint.deadline() is None
    assert pair.b.endpoint.deadline() is None
    assert not pair.a.endpoint._core.sas
    assert not pair.a.endpoint._core.spis_in


def test_old_messages_replayed_change_nothing() -> None:
    """Every message of a session, replayed at every later time, installs and removes nothing."""
    pair = Pair()
    pair.connect()
    pair.a.endpoint.rekey_child(pair.a.live[0].child, pair.now)
    pair.drain(pair.a)
    pair.run()
    pair.a.endpoint.rekey_ike("gw-b", pair.now)
    pair.drain(pair.a)
    pair.run()
    live = (list(pair.a.installed), list(pair.b.installed))
    for datagram in [*pair.a.sent, *pair.b.sent]:
        pair.deliver(datagram)
    pair.wire.clear()
    assert (list(pair.a.installed), list(pair.b.installed)) == live
    assert pair.agree()


def test_unprotected_delete_is_not_heard() -> None:
    pair = Pair()
    pair.connect()
    for node in (pair.a, pair.b):
        [sa] = node.endpoint._core.sas.values()
        forged: list[Payload] = [
            DeletePayload(ProtocolId.IKE),
            NotifyPayload(NotifyType.AUTHENTICATION_FAILED),
        ]
        for payload in forged:
            for response in (False, True):
                octets = message(sa, X.INFORMATIONAL, response, sa.window.expected, [payload], protected=False)
                assert octets is not None
                node.endpoint.receive(sa.path, octets, pair.now)
                pair.drain(node)
    assert len(pair.a.live) == len(pair.b.live) == 1
    assert not pair.wire


def test_a_bug_costs_one_ike_sa_and_not_the_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair(check=False)
    pair.connect()

    def broken(*_: object) -> list[Payload]:
        raise KeyError("secret peer octets")

    monkeypatch.setattr(pair.b.endpoint._core, "respond", broken)
    pair.a.endpoint.rekey_child(pair.a.live[0].child, pair.now)
    pair.drain(pair.a)
    pair.run()
    [event] = pair.b.named("internal_error")
    assert "secret peer octets" not in repr(event)
    assert "broken" in event.message
    assert pair.b.live == []
    assert pair.b.states() == []
    monkeypatch.undo()
    pair.b.endpoint.acquire("lan", None, pair.now)
    pair.drain(pair.b)
    pair.run()
    assert len(pair.b.live) == 1
