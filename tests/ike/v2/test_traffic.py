"""Traffic selectors: narrowing, never widening (RFC 7296 section 2.9), and transport mode (section 1.3.1)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ike.constants import NotifyType
from ike.v2 import negotiation
from ike.v2.traffic import accepted_pairs, grant, offered_sides
from ike.wire.payloads import NotifyPayload
from policy.clock import SECOND
from policy.selectors import AddressRange, Flow, PortRange, SelectorPair, TrafficSelector
from policy.spd import Mode, Snapshot
from tests.support.ike_pair import Pair, entry, pair_of, selector, site_a, site_b

TCP = 6


def flow(source: str = "10.1.0.7", destination: str = "10.2.0.9", port: int = 80) -> Flow:
    one, two = selector(f"{source}/32"), selector(f"{destination}/32")
    return Flow(4, TCP, one.addresses.start, two.addresses.start, 40000, port)


def with_entries(snapshot: Snapshot, *entries: object) -> Snapshot:
    peer = replace(snapshot.pad.peers[0], entries=tuple(e.id for e in entries))  # type: ignore[attr-defined]
    return replace(
        snapshot,
        generation=snapshot.generation + 1,
        spd=replace(snapshot.spd, entries=entries),  # type: ignore[arg-type]
        pad=replace(snapshot.pad, peers=(peer,)),
    )


def test_packet_selectors_come_first() -> None:
    lan = entry("lan", "10.1.0.0/24", "10.2.0.0/24", peer="gw-b")
    local, remote = offered_sides(lan, flow())
    assert [str(one) for one in local] == ["10.1.0.7:40000[6]", "10.1.0.0/24"]
    assert [str(one) for one in remote] == ["10.2.0.9:80[6]", "10.2.0.0/24"]
    assert len(offered_sides(lan, None)[0]) == 1


def test_responder_narrows_to_its_policy() -> None:
    """A asks for 10.1.0.0/16 <-> 10.2.0.0/16, B has a /24 of it."""
    wide = entry("lan", "10.1.0.0/16", "10.2.0.0/16", peer="gw-b")
    pair = Pair(with_entries(site_a(), wide))
    pair.connect()
    assert str(pair.a.live[0].selectors[0]) == "10.1.0.0/24 <-> 10.2.0.0/24"
    assert pair.agree()


def test_a_packet_that_was_narrowed_away_is_told() -> None:
    wide = entry("lan", "10.1.0.0/16", "10.2.0.0/16", peer="gw-b")
    pair = Pair(with_entries(site_a(), wide))
    pair.acquire(pair.a, flow=flow("10.1.9.9"))
    pair.run()
    assert len(pair.a.live) == 1
    [failure] = pair.a.failures
    assert "narrowed" in failure.reason


def test_entry_of_the_packet_is_preferred() -> None:
    """B has a specific entry for port 443 and a general one; the packet to port 80 decides."""
    web = entry("web", "", "", peer="gw-a", selectors=SelectorPair(
        selector("10.2.0.0/24", TCP, (443, 443)), selector("10.1.0.0/24", TCP)))  # fmt: skip
    lan = entry("lan", "10.2.0.0/24", "10.1.0.0/24", peer="gw-a")
    pair = Pair(b=with_entries(site_b(), web, lan))
    pair.acquire(pair.a, flow=flow(port=80))
    pair.run()
    assert pair.b.live[0].entry == "lan"
    assert pair.agree()


def test_whole_range_is_preferred_over_the_first_that_meets() -> None:
    web = entry("web", "", "", peer="gw-a", selectors=SelectorPair(
        selector("10.2.0.0/24", TCP, (443, 443)), selector("10.1.0.0/24", TCP)))  # fmt: skip
    lan = entry("lan", "10.2.0.0/24", "10.1.0.0/24", peer="gw-a")
    pair = Pair(b=with_entries(site_b(), web, lan))
    pair.connect()
    assert pair.b.live[0].entry == "lan"


def test_further_children_reuse_the_ike_sa() -> None:
    ours = [entry(f"lan{n}", f"10.1.{n}.0/24", f"10.2.{n}.0/24", peer="gw-b") for n in range(4)]
    theirs = [entry(f"lan{n}", f"10.2.{n}.0/24", f"10.1.{n}.0/24", peer="gw-a") for n in range(4)]
    pair = Pair(with_entries(site_a(), *ours), with_entries(site_b(), *theirs))
    for number in range(4):
        pair.acquire(pair.a, f"lan{number}")
    pair.run()
    assert len(pair.a.live) == 4
    assert pair.agree()
    assert len(pair.a.endpoint.status(0)) == 1
    assert pair.a.failures == []


def test_answer_wider_than_asked_is_refused() -> None:
    """Class of CVE-2023-23009: selectors that are not what was asked for."""
    asked = ((selector("10.1.0.0/24"),), (selector("10.2.0.0/24"),))
    assert accepted_pairs(asked, asked) == (pair_of("10.1.0.0/24", "10.2.0.0/24"),)
    assert accepted_pairs(asked, ((selector("10.1.0.0/23"),), asked[1])) is None
    assert accepted_pairs(asked, ((), asked[1])) is None
    assert accepted_pairs(asked, (asked[0], (selector("10.3.0.0/24"),))) is None


def test_responder_that_widens_gets_a_delete(monkeypatch: pytest.MonkeyPatch) -> None:
    """B answers with more than A asked for: A takes nothing, and tells B to delete its half."""
    pair = Pair()

    def widening(*args: object, **kwargs: object) -> object:
        granted = grant(*args, **kwargs)  # type: ignore[arg-type]
        assert granted is not None
        return replace(granted, remote=(selector("0.0.0.0/0"),))

    monkeypatch.setattr("ike.v2.negotiation.grant", widening)
    pair.acquire(pair.a)
    pair.run()
    assert pair.a.live == pair.b.live == []
    assert "not part of what we asked for" in pair.a.failures[0].reason
    assert pair.a.states() == ["established"]


def test_transport_mode_is_negotiated_by_both() -> None:
    hosts = {"mode": Mode.TRANSPORT}
    a = with_entries(site_a(), entry("lan", "10.9.0.1/32", "10.9.0.2/32", peer="gw-b", **hosts))
    b = with_entries(site_b(), entry("lan", "10.9.0.2/32", "10.9.0.1/32", peer="gw-a", **hosts))
    pair = Pair(a, b)
    pair.connect()
    assert pair.a.live[0].mode is pair.b.live[0].mode is Mode.TRANSPORT


def test_transport_mode_is_not_echoed_for_tunnel_entries_nor_the_reverse() -> None:
    a = with_entries(site_a(), entry("lan", "10.1.0.0/24", "10.2.0.0/24", peer="gw-b", mode=Mode.TRANSPORT))
    pair = Pair(a)
    pair.acquire(pair.a)
    pair.wait(SECOND)
    assert pair.a.live == pair.b.live == []
    assert "transport mode" in pair.a.failures[0].reason
    b = with_entries(site_b(), entry("lan", "10.2.0.0/24", "10.1.0.0/24", peer="gw-a", mode=Mode.TRANSPORT))
    pair = Pair(b=b)
    pair.acquire(pair.a)
    pair.wait(SECOND)
    assert pair.a.live == pair.b.live == []
    assert "TS_UNACCEPTABLE" in pair.a.failures[0].reason


def test_status_notifies_that_we_do_not_know_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    extra = [NotifyPayload(50_000, data=b"?"), NotifyPayload(NotifyType.ADDITIONAL_TS_POSSIBLE)]
    monkeypatch.setattr("ike.v2.negotiation._mode_notifies", lambda transport, *, fragments: extra)
    pair = Pair()
    pair.connect()


@pytest.mark.parametrize(("ours", "theirs"), [(True, True), (True, False), (False, True)])
def test_later_fragments_pass_where_both_ends_say_so(
    monkeypatch: pytest.MonkeyPatch, ours: bool, theirs: bool
) -> None:
    """RFC 7296 section 1.3.1, NON_FIRST_FRAGMENTS_ALSO: only where selectors have ports is it a question."""
    known = negotiation._mode_notifies
    speaking = iter([ours, theirs])
    monkeypatch.setattr(
        negotiation,
        "_mode_notifies",
        lambda transport, *, fragments: known(transport, fragments=fragments and next(speaking)),
    )
    narrow = {"selectors": SelectorPair(selector("10.1.0.0/24", 17), selector("10.2.0.0/24", 17, (53, 53)))}
    mirrored = {"selectors": narrow["selectors"].mirror()}
    pair = Pair(site_a(**narrow), site_b(**mirrored))
    pair.connect()
    assert pair.a.live[0].later_fragments == (ours and theirs)
    # What only the responder would want was never asked for.
    assert pair.b.live[0].later_fragments == ours
    plain = Pair()
    plain.connect()
    assert not plain.a.live[0].later_fragments


@pytest.mark.parametrize("refuses", [False, True])
def test_padding_only_for_peers_that_take_it(monkeypatch: pytest.MonkeyPatch, refuses: bool) -> None:
    """RFC 7296 section 1.3.1: ESP_TFC_PADDING_NOT_SUPPORTED."""
    if refuses:
        notify = NotifyPayload(NotifyType.ESP_TFC_PADDING_NOT_SUPPORTED)
        monkeypatch.setattr(negotiation, "_mode_notifies", lambda transport, *, fragments: [notify])
    pair = Pair(site_a(padding=256, dummies=3), site_b())
    pair.connect()
    assert (pair.a.live[0].padding, pair.a.live[0].dummies) == ((0, 0) if refuses else (256, 3))
    assert (pair.b.live[0].padding, pair.b.live[0].dummies) == (0, 0)


@st.composite
def selectors(draw: st.DrawFn) -> TrafficSelector:
    first = draw(st.integers(0, 60))
    start = draw(st.integers(0, 60))
    ports = draw(st.sampled_from([PortRange(0, 65535), PortRange(start, start + draw(st.integers(0, 9)))]))
    protocol = draw(st.sampled_from([0, 6, 17]))
    return TrafficSelector(protocol, AddressRange(4, first, first + draw(st.integers(0, 20))), ports)


@given(st.lists(selectors(), min_size=1, max_size=4), st.lists(selectors(), min_size=1, max_size=4), selectors(), selectors())  # fmt: skip  # noqa: E501
def test_what_is_granted_lies_in_policy_and_in_what_was_asked(
    local: list[TrafficSelector], remote: list[TrafficSelector], ours: TrafficSelector, theirs: TrafficSelector
) -> None:
    own = entry("lan", "", "", peer="gw-b", selectors=SelectorPair(ours, theirs))
    granted = grant([own], local, remote, transport=False)
    if granted is None:
        return
    assert granted.pairs
    for pair in granted.pairs:
        assert own.selectors.covers(pair)
        assert any(asked.covers(pair.local) for asked in local)
        assert any(asked.covers(pair.remote) for asked in remote)
    # The initiator computes the same pairs from the answer.
    assert accepted_pairs((local, remote), (granted.local, granted.remote)) is not None
