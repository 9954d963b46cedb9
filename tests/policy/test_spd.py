"""SPD look-ups through the index give what a scan in order gives."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

from hypothesis import given, settings
from hypothesis import strategies as st

from policy.model import ConnectionType
from policy.selectors import ANY_PORT, OPAQUE_PORT, AddressRange, Flow, PortRange, SelectorPair, TrafficSelector
from policy.spd import Disposition, Spd, SpdEntry

BASES = {4: int(ip_address("10.0.0.0")), 6: int(ip_address("2001:db8::"))}
PORT = st.integers(0, 5)
PORTS = st.sampled_from([ANY_PORT, OPAQUE_PORT]) | st.tuples(PORT, PORT).map(lambda p: PortRange(min(p), max(p)))


@st.composite
def ranges(draw: st.DrawFn, version: int) -> AddressRange:
    if draw(st.integers(0, 5)) == 0:
        return AddressRange.any(version)
    first, last = sorted((draw(st.integers(0, 20)), draw(st.integers(0, 20))))
    return AddressRange(version, BASES[version] + first, BASES[version] + last)


@st.composite
def entries(draw: st.DrawFn) -> SpdEntry:
    version, protocol = draw(st.sampled_from([4, 4, 6])), draw(st.sampled_from([0, 6, 17]))
    local, remote = (TrafficSelector(protocol, draw(ranges(version)), draw(PORTS)) for _ in range(2))
    outbound, inbound = draw(st.sampled_from([(True, True), (True, False), (False, True)]))
    return SpdEntry(
        id=str(draw(st.integers())),
        rule="r",
        filter_list="l",
        filter_action="a",
        selectors=SelectorPair(local, remote),
        outbound=outbound,
        inbound=inbound,
        disposition=draw(st.sampled_from(Disposition)),
        interfaces=draw(st.sampled_from(ConnectionType)),
    )


def decides(entry: SpdEntry, interface: ConnectionType) -> bool:
    """ALL is a packet whose interface nobody knows any more: what one kind permits or blocks was done before."""
    if entry.interfaces in (ConnectionType.ALL, interface):
        return True
    return interface is ConnectionType.ALL and entry.disposition is Disposition.PROTECT


@st.composite
def flows(draw: st.DrawFn) -> Flow:
    version = draw(st.sampled_from([4, 4, 6]))
    source, destination = (BASES[version] + draw(st.integers(0, 20)) for _ in range(2))
    ports = st.none() | PORT
    return Flow(version, draw(st.sampled_from([6, 17, 1])), source, destination, draw(ports), draw(ports))


@settings(deadline=None, max_examples=150)
@given(st.lists(entries(), max_size=25), st.lists(flows(), min_size=1, max_size=15))
def test_a_look_up_is_a_scan_in_order(rows: list[SpdEntry], packets: list[Flow]) -> None:
    spd = Spd(tuple(rows))
    for flow in packets:
        for kind in ConnectionType:
            known = [e for e in rows if decides(e, kind)]
            outbound = next((e for e in known if e.outbound and e.selectors.matches_outbound(flow)), None)
            inbound = next((e for e in known if e.inbound and e.selectors.matches_inbound(flow)), None)
            assert spd.lookup_outbound(flow, kind) is outbound
            assert spd.lookup_inbound(flow, kind) is inbound
        assert spd.lookup_outbound(flow) is spd.lookup_outbound(flow, ConnectionType.ALL)


FEW = [
    AddressRange(4, BASES[4] + first, BASES[4] + first + size - 1)
    for first, size in ((0, 4), (4, 4), (0, 8), (1, 1))
]


@st.composite
def crowded(draw: st.DrawFn) -> SpdEntry:
    """Few shapes with many entries each, told apart by ports."""
    protocol, ports = draw(st.sampled_from([0, 6])), draw(PORTS)
    local, remote = (TrafficSelector(protocol, draw(st.sampled_from(FEW)), ANY_PORT) for _ in range(2))
    return replace(
        draw(entries()),
        selectors=SelectorPair(local, replace(remote, ports=ports)),
        outbound=True,
        interfaces=ConnectionType.ALL,
    )


@settings(deadline=None, max_examples=150)
@given(st.lists(crowded(), min_size=5, max_size=30), st.integers(0, 7), st.integers(0, 7))
def test_the_first_of_many_is_found_in_any_shape(rows: list[SpdEntry], source: int, destination: int) -> None:
    spd = Spd(tuple(rows))
    for port in range(6):
        flow = Flow(4, 6, BASES[4] + source, BASES[4] + destination, 1, port)
        assert spd.lookup_outbound(flow) is next((e for e in rows if e.selectors.matches_outbound(flow)), None)


@settings(deadline=None)
@given(st.lists(entries(), max_size=8))
def test_entries_are_found_by_id(rows: list[SpdEntry]) -> None:
    spd = Spd(tuple(rows))
    for row in rows:
        assert spd.entry(row.id) is next(other for other in rows if other.id == row.id)
    assert spd.entry("none") is None


def test_what_was_looked_up_before_does_not_make_tables_different() -> None:
    one, other = Spd(), Spd()
    one.lookup_outbound(Flow(4, 6, 0, 0))
    assert one == other
    assert hash(one) == hash(other)
