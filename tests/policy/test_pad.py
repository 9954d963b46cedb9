"""Peers by name and by address: those at it, those that stand for it, those at any, and the default response's."""

from __future__ import annotations

from ipaddress import ip_address

from hypothesis import given, settings
from hypothesis import strategies as st

from policy.model import KeyExchange
from policy.pad import Pad, PeerEntry, peer_at
from policy.selectors import AddressRange

START = int(ip_address("10.0.0.0"))
BASE = PeerEntry(
    name="", address=None, local_id=None, remote_id=None, authentication=(), ike=KeyExchange(), entries=()
)


def peer(name: str, address: str | None = None, **more: object) -> PeerEntry:
    fields = {f: getattr(BASE, f) for f in BASE.__slots__} | more
    return PeerEntry(**(fields | {"name": name, "address": ip_address(address) if address else None}))


def span(first: int, last: int) -> AddressRange:
    return AddressRange(4, START + first, START + last)


def test_who_may_speak_from_an_address() -> None:
    everywhere = (AddressRange.any(4), AddressRange.any(6))
    pad = Pad(
        (
            peer("one", "10.0.0.1", entries=("a",)),
            peer("two", "10.0.0.1", entries=("b",)),
            peer("<Dynamic>", hosts=everywhere, responds_only=True),
            peer("any#road", entries=("c",)),
            peer("each host", hosts=(span(0, 7),), entries=("d", "e"), reach=(span(0, 3), span(1, 7))),
        )
    )
    near = pad.candidates(ip_address("10.0.0.1"))
    assert [p.name for p in near] == ["one", "two", "10.0.0.1=each host", "any#road", "10.0.0.1=<Dynamic>"]
    assert near[2].entries == ("d@10.0.0.1", "e@10.0.0.1")
    assert (near[2].address, near[2].hosts, near[2].reach) == (ip_address("10.0.0.1"), (), ())
    assert near[4].responds_only
    (host, *_) = pad.candidates(ip_address("10.0.0.7"))
    assert host.entries == ("e@10.0.0.7",)
    far = pad.candidates(ip_address("2001:db8::1"))
    assert [p.name for p in far] == ["any#road", "2001:db8::1=<Dynamic>"]
    for known in (*near, *far):
        assert pad.by_name(known.name) == known


def test_names_that_nobody_has() -> None:
    pad = Pad((peer("each host", hosts=(span(0, 7),)), peer("one", "10.0.0.1")))
    for name in ("", "=", "x=each host", "10.0.0.9=each host", "2001:db8::1=each host", "10.0.0.1=one", "each"):
        assert pad.by_name(name) is None
    assert Pad().by_name("one") is None
    assert Pad().candidates(ip_address("10.0.0.1")) == ()


def test_a_peer_that_stands_for_nobody_has_no_hosts() -> None:
    assert peer("one", "10.0.0.1").at(ip_address("10.0.0.1")) is None


def test_an_identity_may_hold_what_separates_names() -> None:
    pad = Pad((peer("each host#10.0.0.1=a@b", hosts=(span(0, 7),), entries=("r",)), peer("any#10.0.0.2=x")))
    name = peer_at("each host#10.0.0.1=a@b", ip_address("10.0.0.3"))
    found = pad.by_name(name)
    assert found is not None
    assert found.address == ip_address("10.0.0.3")
    known = pad.by_name("any#10.0.0.2=x")
    assert known is pad.peers[1]


SPANS = st.tuples(st.integers(0, 15), st.integers(0, 15)).map(lambda p: span(min(p), max(p)))


@settings(deadline=None)
@given(st.lists(SPANS, min_size=1, max_size=6), st.integers(0, 20))
def test_a_host_gets_the_entries_that_reach_it(spans: list[AddressRange], number: int) -> None:
    entries = tuple(str(at) for at in range(len(spans)))
    template = peer("t", hosts=tuple(dict.fromkeys(spans)), entries=entries, reach=tuple(spans))
    address = span(number, number).first
    wanted = tuple(
        str(at) if each.is_host else f"{at}@{address}"
        for at, each in enumerate(spans)
        if each.contains(START + number)
    )
    found = template.at(address)
    assert (() if found is None else found.entries) == wanted


def test_settled_and_anywhere_are_the_candidates() -> None:
    pad = Pad((peer("there", "10.0.0.1"), peer("anywhere"), peer("range", hosts=(span(0, 7),))))
    for address in map(ip_address, ("10.0.0.1", "10.0.0.2", "10.8.0.1")):
        named = {one.name for one in [*pad.settled(address), *pad.anywhere()]}
        assert named == {one.name for one in pad.candidates(address)}
    assert [one.name for one in pad.anywhere()] == ["anywhere"]
