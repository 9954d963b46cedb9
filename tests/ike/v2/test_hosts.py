"""Transport mode, AH, the default response rule, and how long silence counts, message by message."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from ike.constants import ExchangeType, ProtocolId
from ike.events import FailureKind
from ike.wire.payloads import DeletePayload
from policy.clock import SECOND
from policy.compile import compile_policy
from policy.model import FilterAction, Policy
from policy.spd import Mode, Snapshot
from tests.sim.test_combinations import built_in
from tests.support.combinations import REQUEST, RESPOND
from tests.support.ike_pair import A, B, Pair
from tests.support.sim.policies import action, filter_of, policy, rule

TCP = 6


def hosts(
    ours: Policy | FilterAction | None = None, theirs: Policy | FilterAction | None = None, *, port: int = 80
) -> Pair:
    """A secures its way to B's *port*, and B what comes to it."""
    filters = (filter_of("me", str(B), TCP, port), filter_of("any", "me", TCP, port))
    made = [
        chosen if isinstance(chosen, Policy) else policy(rule("R", asked, then=chosen or action()))
        for chosen, asked in zip((ours, theirs), filters, strict=True)
    ]
    return Pair(*(snapshot(each, address) for each, address in zip(made, (A, B), strict=True)))


def snapshot(assigned: Policy, address: object, generation: int = 1) -> Snapshot:
    return compile_policy(assigned, generation=generation, local_addresses=(ip_address(str(address)),))


def dial(pair: Pair, host: object = B) -> None:
    [template] = [entry for entry in pair.a.endpoint._core.snapshot.spd.entries if entry.outbound]
    pair.acquire(pair.a, template.for_host(ip_address(str(host))).id)


@pytest.mark.parametrize("method", ["esp:aes128gcm16", "esp:null-sha256", "ah:sha256", "ah:aes128gmac"])
def test_transport_mode_between_the_two(method: str) -> None:
    pair = hosts(action(method), action(method))
    dial(pair)
    pair.run()
    assert pair.agree()
    for node, here, there in ((pair.a, A, B), (pair.b, B, A)):
        [sa] = node.live
        assert (sa.mode, sa.protocol.name) == (Mode.TRANSPORT, method[: method.index(":")].upper())
        [selectors] = sa.selectors
        assert (str(selectors.local.addresses), str(selectors.remote.addresses)) == (str(here), str(there))
        assert selectors.local.protocol == TCP
    assert pair.b.live[0].peer.startswith(f"{A}="), "the server's rule is for anybody: one peer a host"
    assert pair.a.live[0].path.encapsulated == method.startswith(
        "esp"
    )  # two Mirrorgates like it in UDP; AH cannot


def test_ah_is_deleted_by_its_own_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = hosts(action("ah:sha256"), action("ah:sha256"))
    dial(pair)
    pair.run()
    told: list[DeletePayload] = []
    created = DeletePayload.__init__

    def spy(self: DeletePayload, protocol: int, *rest: object) -> None:
        created(self, protocol, *rest)  # type: ignore[arg-type]
        told.append(self)

    monkeypatch.setattr(DeletePayload, "__init__", spy)
    pair.a.endpoint.terminate_child(pair.a.live[0].child, pair.now)
    pair.drain(pair.a)
    pair.run()
    assert pair.a.live == pair.b.live == []
    assert {payload.protocol for payload in told} == {ProtocolId.AH}


def test_a_tunnel_in_place_of_transport_mode_is_given_back() -> None:
    # RFC 7296 section 1.3.1: a responder may decline transport mode; who cannot accept that deletes the Child SA.
    tunnelled = policy(rule("R", filter_of("any", "me", TCP, 80), endpoint=str(A)))
    pair = hosts(None, tunnelled)
    dial(pair)
    pair.run()
    assert pair.a.live == pair.b.live == []
    [failure] = pair.a.failures
    assert failure.kind is FailureKind.REFUSED
    assert "does not agree on transport mode" in failure.reason
    assert pair.b.removed, "it was made, and deleted again"


def responding() -> Policy:
    made = built_in(RESPOND)
    assert made is not None
    return made


def requesting() -> Policy:
    made = built_in(REQUEST)
    assert made is not None
    return made


def test_the_default_response_grants_what_is_asked_and_no_more() -> None:
    pair = hosts(requesting(), responding())
    [template] = [e for e in pair.a.endpoint._core.snapshot.spd.entries if e.outbound and e.protection]
    pair.acquire(pair.a, template.for_host(B).id)
    pair.run()
    assert pair.agree()
    [sa] = pair.b.live
    assert sa.dynamic is not None
    assert sa.dynamic.rule == "<Dynamic>"
    assert sa.dynamic.selectors.remote.addresses.contains(int(A))
    assert sa.dynamic.selectors.remote.addresses.start == sa.dynamic.selectors.remote.addresses.end
    core = pair.b.endpoint._core
    assert core.entry(sa.entry) is sa.dynamic
    pair.b.endpoint.rekey_child(sa.child, pair.now)  # what it granted it may rekey
    pair.drain(pair.b)
    pair.run()
    assert [each.entry for each in pair.b.live] == [sa.entry]
    pair.a.endpoint.terminate_child(pair.a.live[0].child, pair.now)
    pair.drain(pair.a)
    pair.run()
    assert core.entry(sa.entry) is None, "it lives as long as its SAs"
    assert core.dynamic == {}


def test_the_default_response_dials_nobody() -> None:
    pair = hosts(responding(), requesting())
    core = pair.a.endpoint._core
    assert core.snapshot.response
    pair.acquire(pair.a, core.snapshot.response[0].id)
    pair.run()
    assert not pair.a.sent
    [failure] = pair.a.failures
    assert failure.kind is FailureKind.LOCAL


def test_the_default_response_grants_no_tunnel() -> None:
    tunnel = rule("R", filter_of("10.1.0.0/24", "10.2.0.0/24"), endpoint=str(B), secret="what both hosts know")
    responder = responding()
    ours = replace(policy(tunnel), ike=responder.ike)
    pair = hosts(ours, responder)
    pair.acquire(pair.a, pair.a.endpoint._core.snapshot.spd.entries[0].id)
    pair.run()
    assert pair.a.live == pair.b.live == []
    [failure] = pair.a.failures
    assert failure.kind is FailureKind.REFUSED
    assert "TS_UNACCEPTABLE" in failure.reason


def fallback() -> FilterAction:
    return replace(action(), fallback_clear=True)


def test_silence_for_three_seconds_is_an_answer_too() -> None:
    pair = hosts(fallback())
    pair.filter = lambda datagram: False
    dial(pair)
    pair.run()
    pair.wait(3 * SECOND - 1)
    assert pair.a.failures == []
    pair.wait(1)
    assert [failure.kind for failure in pair.a.failures] == [FailureKind.NO_ANSWER]
    assert pair.a.endpoint.status(pair.now) == []


def test_who_answers_that_it_wants_otherwise_is_not_silent() -> None:
    other = policy(rule("R", filter_of("any", "me", TCP, 80)), proposals=("aes256-sha256-ecp256",))
    pair = hosts(fallback(), other)
    dial(pair)
    pair.run()
    pair.wait(40 * SECOND)
    [failure] = pair.a.failures
    assert failure.kind is FailureKind.REFUSED
    assert "NO_PROPOSAL_CHOSEN" in failure.reason


def test_who_answers_once_and_falls_silent_is_not_silent() -> None:
    pair = hosts(fallback(), action())
    dial(pair)
    pair.step()
    pair.filter = lambda datagram: not datagram.response or datagram.exchange is not ExchangeType.IKE_AUTH
    pair.run()
    pair.wait(60 * SECOND)
    [failure] = pair.a.failures
    assert failure.kind is FailureKind.REFUSED


def test_addresses_that_strangers_come_from_are_not_remembered() -> None:
    """A template makes a peer of any address: what its entries say of UDP is not kept for each of them."""
    core = hosts().b.endpoint._core
    said = {core.encapsulations_at(ip_address(f"198.51.100.{number}")) for number in range(200)}
    assert len(said) == 1
    assert len(core._encapsulations[1]) < 5
