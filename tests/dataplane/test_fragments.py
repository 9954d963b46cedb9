"""Fragments gathered: every order, copies, overlaps, bounds; and what leaves then."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP, fragment
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment, fragment6

from policy.clock import SECOND
from policy.selectors import PortRange, SelectorPair
from policy.spd import Mode, SpdEntry
from tests.support.packets import (
    A4,
    A6,
    ANY4,
    ANY6,
    B4,
    B6,
    GCM,
    Pair,
    arrivals,
    drain,
    entry,
    mirrored,
    packet_of,
    path,
    sa_params,
    selector_pair,
    snapshot,
    tun,
    udp4,
    written,
)
from tunnel.dataplane import firsts as firsts_module
from tunnel.dataplane.contract import DataPlaneOutput, DropReason, Transmit, TunFrame, WireDatagrams
from tunnel.dataplane.firsts import Firsts
from tunnel.dataplane.flow import FlowError, parse
from tunnel.dataplane.fragments import LIFETIME, MAX_DATAGRAMS, MAX_FRAGMENTS, Datagram, Fragments
from tunnel.dataplane.reference import ReferenceDataPlane

PORT_53 = PortRange(53, 53)


def pieces(version: int, data: bytes, size: int = 1280, identification: int = 9) -> list[bytes]:
    """Return the fragments of a datagram, as scapy cuts it."""
    if version == 4:
        whole = IP(src=A4, dst=B4, id=identification) / UDP(sport=1000, dport=53) / data
        return [bytes(part) for part in fragment(IP(bytes(whole)), fragsize=size)]
    whole6 = IPv6(src=A6, dst=B6) / IPv6ExtHdrFragment(id=identification) / UDP(sport=1000, dport=53) / data
    return [bytes(part) for part in fragment6(whole6, size)]


def gather(gatherer: Fragments, parts: list[bytes], now: int = 0) -> list[Datagram]:
    return [found for part in parts if (found := gatherer.add(part, now)) is not None]


@settings(deadline=None)
@given(st.sampled_from([4, 6]), st.integers(1300, 20000), st.integers(0, 2**32))
def test_every_order_gives_the_datagram(version: int, size: int, seed: int) -> None:
    data = bytes(index % 251 for index in range(size))
    parts = pieces(version, data)
    shuffled = list(parts)
    Random(seed).shuffle(shuffled)
    gatherer = Fragments()
    (datagram,) = gather(gatherer, shuffled)
    assert [piece.packet for piece in datagram.pieces] == parts
    assert (datagram.flow.source_port, datagram.flow.destination_port) == (1000, 53)
    whole = (IP if version == 4 else IPv6)(datagram.joined())
    assert bytes(whole[UDP].payload) == data
    if version == 4:
        checked = bytes(whole)
        del whole.chksum
        assert bytes(whole) == checked
    assert gatherer.packets == 0


@pytest.mark.parametrize("version", [4, 6])
def test_copies_and_overlaps(version: int) -> None:
    parts = pieces(version, bytes(3000))
    gatherer = Fragments()
    assert gather(gatherer, [parts[0], parts[0], parts[1]]) == []
    assert gatherer.drops == {DropReason.FRAGMENT_OVERLAP: 1}
    assert len(gather(gatherer, parts[2:])) == 1
    # RFC 5722: an overlap costs the whole datagram.
    changed = bytearray(parts[1])
    changed[-1] ^= 1
    assert gather(gatherer, [parts[0], parts[1], bytes(changed), parts[2]]) == []
    assert gatherer.drops == {DropReason.FRAGMENT_OVERLAP: 4}
    assert gatherer.packets == 1


@pytest.mark.parametrize("version", [4, 6])
def test_what_waits_too_long_is_dropped_by_name(version: int) -> None:
    gatherer = Fragments()
    assert gather(gatherer, pieces(version, bytes(3000))[1:2], 5) == []
    assert gatherer.deadline() == 5 + LIFETIME
    gatherer.expire(4 + LIFETIME)
    assert gatherer.packets == 1
    gatherer.expire(5 + LIFETIME)
    assert (gatherer.packets, gatherer.drops, gatherer.deadline()) == (0, {DropReason.FRAGMENT_TIMEOUT: 1}, None)


def test_bounds() -> None:
    gatherer = Fragments()
    for number in range(MAX_DATAGRAMS + 5):
        gather(gatherer, pieces(4, bytes(3000), identification=number + 1)[:1])
    assert gatherer.packets == MAX_DATAGRAMS
    assert gatherer.drops == {DropReason.FRAGMENT_LIMIT: 5}
    gatherer = Fragments()
    gather(gatherer, pieces(4, bytes(8 * 100), 8)[: MAX_FRAGMENTS + 1])
    assert gatherer.drops == {DropReason.FRAGMENT_LIMIT: MAX_FRAGMENTS}
    gatherer = Fragments()
    for number in range(200):
        gather(gatherer, pieces(4, bytes(60000), 30000, identification=number + 1)[:1])
    assert gatherer.drops == {DropReason.FRAGMENT_LIMIT: 200 - gatherer.packets}
    assert gatherer.packets == 4 * 1024 * 1024 // 30020


def test_what_is_no_fragment_or_an_impossible_one() -> None:
    parts = pieces(4, bytes(3000))
    gatherer = Fragments()
    for wrong in (bytes(IP(src=A4, dst=B4, proto=6) / bytes(40)), parts[0][:-1], parts[0][:19]):
        with pytest.raises(FlowError):
            gatherer.add(wrong, 0)
    odd = bytearray(parts[0])
    odd[2:4] = (len(odd) - 3).to_bytes(2, "big")
    with pytest.raises(FlowError):
        gatherer.add(bytes(odd), 0)
    assert gatherer.packets == 0


def port_entry(version: int) -> SpdEntry:
    network = "0.0.0.0/0" if version == 4 else "::/0"
    return entry("dns", selector_pair(network, network, 17, remote_ports=PORT_53))


@pytest.mark.parametrize("version", [4, 6])
def test_a_large_datagram_waits_for_its_sa_and_leaves_fragment_by_fragment(version: int) -> None:
    selected = port_entry(version)
    plane = ReferenceDataPlane()
    plane.load(snapshot(selected), 0)
    parts = pieces(version, bytes(4000))
    plane.outbound([TunFrame(tun(part)) for part in parts], 1)
    drain(plane)
    assert plane.counters().held == len(parts)
    chosen = (selected.selectors,)
    plane.add_sa(sa_params(GCM, inbound=False, name="dns", selectors=chosen, later_fragments=True), 2)
    plane.release("dns", 2)
    assert sum(len(o.buffers) for o in drain(plane) if isinstance(o, Transmit)) == len(parts)
    plane.outbound([TunFrame(tun(part)) for part in reversed(parts)], 3)
    assert sum(len(o.buffers) for o in drain(plane) if isinstance(o, Transmit)) == len(parts)
    counters = plane.counters()
    assert (counters.outbound_in, counters.outbound_out, counters.held) == (2 * len(parts), 2 * len(parts), 0)


def port_pair(version: int, *, agreed: bool = False) -> Pair:
    """Two gateways whose one tunnel is for DNS, at the left the asking ones."""
    selected = port_entry(version)
    mirror = replace(selected, selectors=selected.selectors.mirror())
    pair = Pair(GCM)
    pair.left, pair.right = ReferenceDataPlane(), ReferenceDataPlane()
    for plane, rule, inbound in ((pair.left, selected, False), (pair.right, mirror, True)):
        plane.load(snapshot(rule), 0)
        along = mirrored(pair.path) if inbound else pair.path
        chosen = (rule.selectors,)
        plane.add_sa(
            sa_params(GCM, inbound=inbound, along=along, name="dns", selectors=chosen, later_fragments=agreed), 0
        )
    return pair


@pytest.mark.parametrize("version", [4, 6])
def test_later_fragments_follow_their_first_where_both_ends_agreed(version: int) -> None:
    pair = port_pair(version, agreed=True)
    parts = pieces(version, bytes(range(250)) * 16)
    sent = [item for transmit in pair.send(*map(tun, parts)) for item in arrivals(transmit)]
    got = [packet_of(frame) for frame in written(_inbound(pair.right, sent))]
    assert got == parts
    # One that comes alone, or before its first, or once its first is long ago, shows no ports and is dropped.
    other = pieces(version, bytes(4000), identification=99)
    sent = [item for transmit in pair.send(*map(tun, other)) for item in arrivals(transmit)]
    single = [WireDatagrams(i.path, d) for i in sent for d in _each(i)]
    assert written(_inbound(pair.right, single[1:2])) == []
    assert written(_inbound(pair.right, single[:1])) != []
    assert written(_inbound(pair.right, single[2:3], now=1 + LIFETIME)) == []
    assert pair.right.drops()[DropReason.FRAGMENT_PORTS] == 2


def _each(item: WireDatagrams) -> list[bytes]:
    data, size = bytes(item.data), item.segment_size or len(item.data)
    return [data[at : at + size] for at in range(0, len(data), size)]


def _inbound(plane: ReferenceDataPlane, items: list[WireDatagrams], now: int = 1) -> list[DataPlaneOutput]:
    plane.inbound(items, now)
    return drain(plane)


@pytest.mark.parametrize("version", [4, 6])
def test_where_the_peer_did_not_agree_the_datagram_goes_whole(version: int) -> None:
    pair = port_pair(version)
    parts = pieces(version, b"q" * 4000)
    (transmit,) = pair.send(*map(tun, parts))
    assert not transmit.df, "the outer packet is fragmented"
    assert len(transmit.buffers) == 1
    ((frame,),) = [written(_inbound(pair.right, arrivals(transmit)))]
    assert packet_of(frame).endswith(b"q" * 4000)
    counters = pair.left.counters()
    assert (counters.outbound_in, counters.outbound_out, counters.esp_out) == (len(parts), len(parts), 1)
    assert pair.left.drops()[DropReason.TOO_BIG] == 0


def test_a_large_packet_is_not_cut_inside_where_the_peer_did_not_agree() -> None:
    for agreed, count, df in ((True, 3, True), (False, 1, False)):
        pair = port_pair(4, agreed=agreed)
        large = udp4(bytes(4000), dport=53, flags=0)
        transmits = pair.send(tun(large))
        assert sum(len(transmit.buffers) for transmit in transmits) == count
        assert {transmit.df for transmit in transmits} == {df}


def test_first_fragments_that_are_remembered_are_bounded() -> None:
    firsts = Firsts()
    for number in range(2 * firsts_module.MAX_DATAGRAMS):
        packet = udp4(bytes(24), identification=number & 0xFFFF, source=f"10.{number >> 16}.0.1", flags=0x2000)
        firsts.accepted(1, packet, parse(packet), 0)
    assert len(firsts) == firsts_module.MAX_DATAGRAMS


@pytest.mark.parametrize("port", [0, 4500])
@pytest.mark.parametrize("version", [4, 6])
def test_transport_mode_takes_the_whole_datagram(version: int, port: int) -> None:
    pair = Pair(GCM, path(A4, B4, port) if version == 4 else path(A6, B6, port), mode=Mode.TRANSPORT)
    for plane in (pair.left, pair.right):
        plane.load(snapshot(_in_transport("v4", ANY4), _in_transport("v6", ANY6)), 0)
    parts = pieces(version, b"d" * 4000)
    (transmit,) = pair.send(*map(tun, parts))
    assert len(transmit.buffers) == (1 if port else 3)
    if port:
        (frame,) = pair.receive([transmit])
        assert packet_of(frame).endswith(b"d" * 4000)
    counters = pair.left.counters()
    assert (counters.outbound_in, counters.outbound_out, counters.held) == (len(parts), len(parts), 0)
    pair.left.outbound([TunFrame(tun(parts[1]))], 1)
    pair.left.handle_timeout(1 + 16 * SECOND)
    drain(pair.left)
    assert pair.left.drops()[DropReason.FRAGMENT_TIMEOUT] == 1


def _in_transport(name: str, selectors: SelectorPair) -> SpdEntry:
    made = entry(name, selectors)
    if made.protection is None:
        raise AssertionError
    return replace(made, protection=replace(made.protection, mode=Mode.TRANSPORT))
