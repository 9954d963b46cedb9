"""The algebra of selectors: intersection, covering, mirroring and prefixes agree with membership."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.selectors import (
    ANY_PORT,
    OPAQUE_PORT,
    AddressRange,
    Flow,
    PortRange,
    SelectorPair,
    TrafficSelector,
)

# A small world, so that ranges meet often.
BASE = int(ip_address("10.0.0.0"))
WORLD = 40
ADDRESS = st.integers(BASE, BASE + WORLD)
PORT = st.integers(0, 12) | st.just(65535)
RANGES = st.tuples(ADDRESS, ADDRESS).map(lambda pair: AddressRange(4, min(pair), max(pair)))
PORTS = st.one_of(
    st.just(ANY_PORT), st.just(OPAQUE_PORT), st.tuples(PORT, PORT).map(lambda p: PortRange(min(p), max(p)))
)
PROTOCOL = st.sampled_from([0, 6, 17])
SELECTORS = st.builds(TrafficSelector, PROTOCOL, RANGES, PORTS)
PAIRS = st.tuples(PROTOCOL, RANGES, PORTS, RANGES, PORTS).map(
    lambda t: SelectorPair(TrafficSelector(t[0], t[1], t[2]), TrafficSelector(t[0], t[3], t[4]))
)
SEEN_PORT = st.none() | PORT
FLOWS = st.builds(Flow, st.just(4), st.sampled_from([6, 17]), ADDRESS, ADDRESS, SEEN_PORT, SEEN_PORT)

fast = settings(deadline=None, max_examples=200)


@fast
@given(RANGES, RANGES, ADDRESS)
def test_an_intersection_of_ranges_has_what_both_have(
    one: AddressRange, other: AddressRange, address: int
) -> None:
    common = one.intersect(other)
    assert (common is not None and common.contains(address)) == (one.contains(address) and other.contains(address))
    assert common == other.intersect(one)
    if common is not None:
        assert one.covers(common)
        assert other.covers(common)


@fast
@given(RANGES, RANGES)
def test_covering_is_containing_every_address(one: AddressRange, other: AddressRange) -> None:
    everything = all(one.contains(address) for address in range(other.start, other.end + 1))
    assert one.covers(other) == everything


@fast
@given(RANGES)
def test_prefixes_are_exactly_the_range(addresses: AddressRange) -> None:
    networks = list(addresses.prefixes())
    members = [int(address) for network in networks for address in network]
    assert members == list(range(addresses.start, addresses.end + 1))


@fast
@given(RANGES, RANGES)
def test_a_smaller_range_is_never_less_specific(one: AddressRange, other: AddressRange) -> None:
    if one.covers(other):
        assert other.specificity >= one.specificity


@pytest.mark.parametrize(
    ("text", "bits"), [("10.0.0.0/24", 24), ("10.0.0.1/32", 32), ("0.0.0.0/0", 0), ("2001:db8::/32", 32)]
)
def test_a_prefix_is_as_specific_as_its_length(text: str, bits: int) -> None:
    assert AddressRange.network(ip_network(text)).specificity == bits


@fast
@given(PORTS, PORTS, SEEN_PORT)
def test_an_intersection_of_ports_has_what_both_have(one: PortRange, other: PortRange, port: int | None) -> None:
    common = one.intersect(other)
    assert (common is not None and common.contains(port)) == (one.contains(port) and other.contains(port))


@fast
@given(PORTS, PORTS, SEEN_PORT)
def test_covered_ports_are_contained(one: PortRange, other: PortRange, port: int | None) -> None:
    if one.covers(other) and other.contains(port):
        assert one.contains(port)


@fast
@given(PAIRS, PAIRS, FLOWS)
def test_an_intersection_of_pairs_matches_what_both_match(
    one: SelectorPair, other: SelectorPair, flow: Flow
) -> None:
    common = one.intersect(other)
    both = one.matches_outbound(flow) and other.matches_outbound(flow)
    assert (common is not None and common.matches_outbound(flow)) == both
    if common is not None:
        assert one.covers(common)
        assert other.covers(common)


@fast
@given(PAIRS, PAIRS, FLOWS)
def test_a_covered_pair_matches_nothing_more(one: SelectorPair, other: SelectorPair, flow: Flow) -> None:
    if one.covers(other) and other.matches_outbound(flow):
        assert one.matches_outbound(flow)


@fast
@given(PAIRS, FLOWS)
def test_mirroring_exchanges_the_directions(pair: SelectorPair, flow: Flow) -> None:
    back = Flow(4, flow.protocol, flow.destination, flow.source, flow.destination_port, flow.source_port)
    assert pair.matches_outbound(flow) == pair.mirror().matches_inbound(flow)
    assert pair.matches_outbound(flow) == pair.matches_inbound(back)
    assert pair.mirror().mirror() == pair


@fast
@given(SELECTORS, SELECTORS)
def test_narrowing_never_widens(one: TrafficSelector, other: TrafficSelector) -> None:
    common = one.intersect(other)
    if common is not None:
        assert one.covers(common)
        assert other.covers(common)
    elif one.covers(other):
        pytest.fail(f"{one} covers {other} and does not meet it")


def test_families_never_meet() -> None:
    assert AddressRange.any(4).intersect(AddressRange.any(6)) is None
    assert not AddressRange.any(6).covers(AddressRange.any(4))


@pytest.mark.parametrize("bad", [(4, 5, 4), (4, 0, 2**32), (5, 0, 0), (6, -1, 0)])
def test_what_is_not_a_range_is_refused(bad: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="not an address range"):
        AddressRange(*bad)


def test_texts() -> None:
    host = AddressRange.of(ip_address("10.0.0.1"))
    net = AddressRange.network(ip_network("10.0.0.0/24"))
    odd = AddressRange.of(ip_address("10.0.0.1"), ip_address("10.0.0.3"))
    assert [str(r) for r in (host, net, odd)] == ["10.0.0.1", "10.0.0.0/24", "10.0.0.1-10.0.0.3"]
    assert [str(p) for p in (ANY_PORT, OPAQUE_PORT, PortRange(1, 1), PortRange(1, 2))] == [
        "any",
        "opaque",
        "1",
        "1-2",
    ]
    assert str(TrafficSelector(6, host, PortRange(80, 80))) == "10.0.0.1:80[6]"
