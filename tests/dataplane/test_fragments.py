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
    drain,
    entry,
    packet_of,
    path,
    sa_params,
    selector_pair,
    snapshot,
    tun,
)
from tunnel.dataplane.contract import DropReason, Transmit, TunFrame
from tunnel.dataplane.flow import FlowError
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
    plane.add_sa(sa_params(GCM, inbound=False, name="dns", selectors=(selected.selectors,)), 2)
    plane.release("dns", 2)
    assert sum(len(o.buffers) for o in drain(plane) if isinstance(o, Transmit)) == len(parts)
    plane.outbound([TunFrame(tun(part)) for part in reversed(parts)], 3)
    assert sum(len(o.buffers) for o in drain(plane) if isinstance(o, Transmit)) == len(parts)
    counters = plane.counters()
    assert (counters.outbound_in, counters.outbound_out, counters.held) == (2 * len(parts), 2 * len(parts), 0)


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
