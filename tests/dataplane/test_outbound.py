"""From the TUN: policy, waiting for an SA, sizes, limits, grouping; and that every packet is accounted for."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6

from policy.clock import SECOND
from policy.path import Endpoint
from policy.selectors import Flow, PortRange
from policy.spd import Disposition, SpdEntry
from tests.support.packets import (
    ANY4,
    ANY6,
    B4,
    CBC_SHA256,
    GCM,
    SUITES,
    Pair,
    datagrams,
    drain,
    entry,
    ip4,
    ip6,
    packet_of,
    path,
    sa_params,
    selector_pair,
    snapshot,
    tcp4,
    tcp6,
    tun,
    udp4,
    udp6,
    written,
)
from tunnel.dataplane.contract import Acquire, DropReason, Expire, Transmit, TunFrame, WriteTun
from tunnel.dataplane.esp import capacity, sealed_size
from tunnel.dataplane.hold import HoldLimits
from tunnel.dataplane.outbound import MAX_CACHED_FLOWS
from tunnel.dataplane.reference import ReferenceDataPlane

PORT_80 = PortRange(80, 80)


def send(plane: ReferenceDataPlane, *packets: bytes, now: int = 1) -> list[object]:
    """Return the outputs for packets from the TUN."""
    plane.outbound([TunFrame(tun(packet)) for packet in packets], now)
    return list(drain(plane))


def drops(plane: ReferenceDataPlane) -> dict[DropReason, int]:
    """Return the counters that are not zero, having checked that nothing is lost."""
    counters = plane.counters()
    assert counters.outbound_in == counters.outbound_out + counters.outbound_drops + counters.held
    assert counters.inbound_in == counters.inbound_out + counters.inbound_drops + counters.control_in
    assert sum(plane.drops().values()) == counters.outbound_drops + counters.inbound_drops
    return {reason: count for reason, count in plane.drops().items() if count}


def plane_with(*sas: object, limits: HoldLimits = HoldLimits()) -> ReferenceDataPlane:  # noqa: B008
    """Return a data plane where everything is to be protected."""
    plane = ReferenceDataPlane(hold=limits)
    plane.load(snapshot(), 0)
    for params in sas:
        plane.add_sa(params, 0)  # type: ignore[arg-type]
    return plane


# Policy


def test_without_policy_nothing_leaves() -> None:
    plane = ReferenceDataPlane()
    assert send(plane, udp4(b"")) == []
    assert drops(plane) == {DropReason.NO_POLICY: 1}


@pytest.mark.parametrize(
    ("disposition", "reason"),
    [(Disposition.DISCARD, DropReason.DISCARD_POLICY), (Disposition.BYPASS, DropReason.NO_POLICY)],
)
def test_what_is_not_to_be_protected_does_not_leave(disposition: Disposition, reason: DropReason) -> None:
    plane = plane_with(sa_params(inbound=False))
    plane.load(snapshot(entry("no", ANY4, disposition), entry("v4", ANY4)), 0)
    assert send(plane, udp4(b"")) == []
    assert drops(plane) == {reason: 1}


def test_the_first_entry_decides_and_each_entry_has_its_sa() -> None:
    web = selector_pair("0.0.0.0/0", "0.0.0.0/0", 6, remote_ports=PORT_80)
    plane = ReferenceDataPlane()
    plane.load(snapshot(entry("web", web), entry("v4", ANY4)), 0)
    plane.add_sa(sa_params(inbound=False, spi=0x2001, name="web", selectors=(web,), child=1), 0)
    plane.add_sa(sa_params(inbound=False, spi=0x2002, name="v4", child=2), 0)
    outputs = send(plane, tcp4(b"", dport=80), tcp4(b"", dport=81), udp4(b"", dport=80))
    spis = [int.from_bytes(p[:4], "big") for p in datagrams(o for o in outputs if isinstance(o, Transmit))]
    assert sorted(spis) == [0x2001, 0x2002, 0x2002]


@pytest.mark.parametrize("family", [4, 6])
def test_a_fragment_without_ports_does_not_slip_past_an_entry_that_wants_ports(family: int) -> None:
    any_pair, network = (ANY4, "0.0.0.0/0") if family == 4 else (ANY6, "::/0")
    web = selector_pair(network, network, 17, remote_ports=PORT_80)
    plane = ReferenceDataPlane()
    plane.load(snapshot(entry("web", web, Disposition.DISCARD), entry("all", any_pair)), 0)
    plane.add_sa(sa_params(inbound=False, name="all"), 0)
    if family == 4:
        first = ip4(17, udp4(bytes(24), dport=81)[20:], flags=0x2000)
        later = ip4(17, bytes(24), flags=4)
        tiny = ip4(17, b"\0\0", flags=0x2000)
        other = ip4(6, bytes(24), flags=4)
    else:
        first = ip6(44, b"\x11\0\0\x01\0\0\0\1" + udp6(bytes(24), dport=81)[40:])
        later = ip6(44, b"\x11\0\0\x20\0\0\0\1" + bytes(24))
        tiny = ip6(44, b"\x11\0\0\x01\0\0\0\1" + b"\0\0")
        other = ip6(44, b"\x06\0\0\x20\0\0\0\1" + bytes(24))
    outputs = send(plane, first, later, tiny, other)
    # The first fragment tells the ports of both halves; a TCP fragment is no business of an entry for UDP.
    assert len(datagrams(o for o in outputs if isinstance(o, Transmit))) == 3
    assert drops(plane) == {DropReason.MALFORMED: 1}
    send(plane, later)
    assert plane.counters().held == 1
    plane.handle_timeout(20 * SECOND)
    assert drops(plane) == {DropReason.MALFORMED: 1, DropReason.FRAGMENT_TIMEOUT: 1}


_NETWORKS = ["0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.2.0.0/24", "10.2.0.7/32", "192.0.2.0/24"]


@st.composite
def _policies(draw: st.DrawFn) -> list[SpdEntry]:
    entries = []
    for index in range(draw(st.integers(0, 6))):
        protocol = draw(st.sampled_from([0, 6, 17]))
        ports = draw(st.sampled_from([(0, 65535), (80, 80), (1, 1024)])) if protocol else (0, 65535)
        pair = selector_pair(
            draw(st.sampled_from(_NETWORKS)),
            draw(st.sampled_from(_NETWORKS)),
            protocol,
            remote_ports=PortRange(*ports),
        )
        entries.append(entry(f"e{index}", pair, draw(st.sampled_from(list(Disposition)))))
    return entries


@settings(max_examples=60)
@given(
    policies=st.lists(_policies(), min_size=1, max_size=3),
    flows=st.lists(
        st.tuples(
            st.sampled_from(["10.1.0.5", "10.9.0.1", "192.0.2.9"]),
            st.sampled_from(["10.2.0.7", "10.2.0.8", "10.1.0.5"]),
            st.sampled_from([6, 17]),
            st.sampled_from([80, 443, 5000]),
        ),
        max_size=12,
    ),
)
def test_the_cache_agrees_with_a_linear_search(
    policies: list[list[SpdEntry]], flows: list[tuple[str, str, int, int]]
) -> None:
    plane = ReferenceDataPlane()
    spi = 0x1000
    for generation, entries in enumerate(policies):
        now_in_force = snapshot(*entries, generation=generation) if entries else snapshot(entry("v6", ANY6))
        plane.load(now_in_force, 0)
        for one in now_in_force.spd.entries:
            spi += 1
            plane.add_sa(sa_params(inbound=False, spi=spi, name=one.id, child=spi), 0)
        for source, destination, protocol, port in flows * 2:
            make: dict[str, Any] = {"source": source, "destination": destination}
            packet = udp4(b"", dport=port, **make) if protocol == 17 else tcp4(b"", dport=port, ip=dict(make))
            flow = Flow(4, protocol, int(ip_address(source)), int(ip_address(destination)), 1000, port)
            expected = next((e for e in now_in_force.spd.entries if e.selectors.matches_outbound(flow)), None)
            outputs = send(plane, packet)
            if expected is None or expected.disposition is not Disposition.PROTECT:
                assert outputs == []
                continue
            ((sent,),) = ([*datagrams(o for o in outputs if isinstance(o, Transmit))],)
            newest = max(
                (sa for sas in plane._sad.outbound.values() for sa in sas if sa.params.entry == expected.id),
                key=lambda sa: sa.params.child,
            )
            assert int.from_bytes(sent[:4], "big") == newest.params.spi
    drops(plane)


def test_the_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_CACHED_FLOWS == 65536
    monkeypatch.setattr("tunnel.dataplane.outbound.MAX_CACHED_FLOWS", 8)
    plane = plane_with(sa_params(inbound=False))
    send(plane, *(udp4(b"", dport=port) for port in range(50)))
    assert len(plane._outbound._cache) == 8
    assert len(plane._outbound._verdicts) == 8


# Waiting for an SA


def test_hold_acquire_release() -> None:
    plane = plane_with()
    packets = [udp4(bytes((i,))) for i in range(5)]
    (acquire,) = send(plane, *packets)
    assert acquire == Acquire("v4", Flow(4, 17, int(ip_address("10.1.0.5")), int(ip_address(B4)), 1000, 2000))
    assert plane.counters().held == 5
    assert send(plane, udp4(b"\5")) == []  # no second Acquire
    plane.add_sa(sa_params(inbound=False), 0)
    plane.release("v4", 2)
    right = Pair().right
    right.add_sa(sa_params(inbound=True), 0)
    sent = [o for o in drain(plane) if isinstance(o, Transmit)]
    assert [int.from_bytes(p[4:8], "big") for p in datagrams(sent)] == [1, 2, 3, 4, 5, 6]
    assert plane.counters().held == 0
    assert drops(plane) == {}


def test_held_packets_are_copies() -> None:
    plane = plane_with()
    buffer = bytearray(tun(udp4(b"original")))
    plane.outbound([TunFrame(memoryview(buffer))], 1)
    drain(plane)
    buffer[:] = bytes(len(buffer))
    plane.add_sa(sa_params(inbound=False), 0)
    plane.release("v4", 2)
    assert len(datagrams(o for o in drain(plane) if isinstance(o, Transmit))) == 1
    assert drops(plane) == {}


def test_the_hold_queue_drops_the_oldest_and_counts_segments() -> None:
    plane = plane_with(limits=HoldLimits(entry_packets=10))
    superpacket = tun(tcp4(bytes(700)), 1, 100, 1, 20, 16)
    plane.outbound([TunFrame(superpacket)], 1)
    assert plane.counters().held == 7
    send(plane, *(udp4(bytes((i,))) for i in range(3)))
    assert plane.counters().held == 10
    send(plane, udp4(b"last"))
    assert plane.counters().held == 4
    assert drops(plane) == {DropReason.HOLD_FULL: 7}


@pytest.mark.parametrize(
    "limits",
    [HoldLimits(entry_octets=400), HoldLimits(total_packets=8), HoldLimits(total_octets=400)],
)
def test_every_bound_of_the_hold_queue(limits: HoldLimits) -> None:
    plane = plane_with(limits=limits)
    send(plane, *(udp4(bytes((i, 0))) for i in range(20)))
    send(plane, *(udp6(bytes((i, 0))) for i in range(20)))
    assert plane.counters().held <= 20
    assert drops(plane).keys() == {DropReason.HOLD_FULL}


def test_a_frame_larger_than_the_queue_is_dropped_alone() -> None:
    plane = plane_with(limits=HoldLimits(entry_octets=100))
    send(plane, udp4(bytes(500)), udp4(b""))
    assert plane.counters().held == 1
    assert drops(plane) == {DropReason.HOLD_FULL: 1}


def test_held_packets_expire() -> None:
    plane = plane_with()
    assert plane.deadline() is None
    send(plane, udp4(b"a"), now=5 * SECOND)
    send(plane, udp4(b"b"), now=6 * SECOND)
    assert plane.deadline() == 15 * SECOND
    plane.handle_timeout(15 * SECOND - 1)
    assert plane.counters().held == 2
    plane.handle_timeout(15 * SECOND)
    assert plane.counters().held == 1
    assert plane.deadline() == 16 * SECOND
    plane.handle_timeout(100 * SECOND)
    assert drops(plane) == {DropReason.HOLD_EXPIRED: 2}
    assert plane.deadline() is None


def test_refused_entries_are_dropped_for_a_while() -> None:
    plane = plane_with()
    assert len(send(plane, udp4(b"a"))) == 1
    plane.refuse("v4", 10, 100)
    assert drops(plane) == {DropReason.ACQUIRE_FAILED: 1}
    assert send(plane, udp4(b"b"), now=109) == []
    assert drops(plane) == {DropReason.ACQUIRE_FAILED: 2}
    (acquire,) = send(plane, udp4(b"c"), now=110)
    assert isinstance(acquire, Acquire)


def test_release_without_a_fitting_sa_does_not_negotiate_in_a_circle() -> None:
    narrow = selector_pair("0.0.0.0/0", "192.0.2.0/24")
    plane = plane_with()
    assert len(send(plane, udp4(b"a"))) == 1
    plane.add_sa(sa_params(inbound=False, selectors=(narrow,)), 0)
    plane.release("v4", 5)
    assert drain(plane) == []
    assert drops(plane) == {DropReason.ACQUIRE_FAILED: 1}
    assert send(plane, udp4(b"b"), now=6) == []
    assert len(send(plane, udp4(b"c"), now=5 + SECOND)) == 1  # asked again after a second


def test_entries_that_vanish_take_their_packets_along() -> None:
    plane = plane_with()
    send(plane, udp4(b"a"), udp6(b"b"))
    plane.load(snapshot(entry("v6", ANY6), generation=2), 3)
    assert plane.counters().held == 1
    assert drops(plane) == {DropReason.NO_POLICY: 1}


def test_a_dormant_sa_is_not_chosen_until_activated() -> None:
    plane = plane_with(sa_params(inbound=False, spi=0x2001, child=1))
    plane.add_sa(sa_params(inbound=False, spi=0x2002, child=2, dormant=True), 0)

    def spi() -> int:
        (packet,) = datagrams(o for o in send(plane, udp4(b"")) if isinstance(o, Transmit))
        return int.from_bytes(packet[:4], "big")

    assert spi() == 0x2001
    plane.activate(2)
    assert spi() == 0x2002
    assert plane.delete_sa(0x2002, inbound=False) is not None
    assert spi() == 0x2001


def test_with_only_a_dormant_sa_packets_wait_without_an_acquire() -> None:
    plane = plane_with(sa_params(inbound=False, dormant=True))
    assert send(plane, udp4(b"")) == []
    assert plane.counters().held == 1


def test_peers_may_choose_the_same_spi() -> None:
    plane = plane_with(sa_params(inbound=False, child=1), sa_params(inbound=False, child=2, name="v6"))
    with pytest.raises(ValueError, match="in use"):
        plane.add_sa(sa_params(inbound=False, child=2), 0)
    send(plane, udp6(b""))
    two = plane.query_sa(0x1001, inbound=False, child=2)
    assert two is not None
    assert two.packets == 1
    assert plane.delete_sa(0x1001, inbound=False, child=2) == two
    assert plane.delete_sa(0x1001, inbound=False, child=2) is None
    one = plane.delete_sa(0x1001, inbound=False)
    assert one is not None
    assert one.packets == 0


def test_deleting_an_sa_wipes_its_keys() -> None:
    params = sa_params(inbound=False)
    plane = plane_with(params)
    plane.delete_sa(params.spi, inbound=False)
    assert params.encryption_key.reveal() == bytes(32)
    assert params.salt.reveal() == bytes(4)
    assert len(send(plane, udp4(b""))) == 1  # Acquire


# Sizes


@pytest.mark.parametrize("suite", SUITES, ids=str)
@pytest.mark.parametrize("port", [0, 4500])
@pytest.mark.parametrize("outer", ["192.0.2.2", "2001:db8::2"])
def test_capacity_is_exact(suite: object, port: int, outer: str) -> None:
    along = path("192.0.2.1" if "." in outer else "2001:db8::1", outer, port)
    pair = Pair(suite, along)  # type: ignore[arg-type]
    overhead = (20 if along.version == 4 else 40) + (8 if port else 0)
    largest = pair.left.tun_mtu()
    for size, fits in ((largest, True), (largest + 1, False)):
        transmits = pair.send(tun(udp4(bytes(size - 28), flags=0)))
        lengths = [len(packet) for packet in datagrams(transmits)]
        assert (len(lengths) == 1) is fits
        assert max(lengths) + overhead <= 1500
        assert sealed_size(pair.left._sad.outbound[0x1004][0].transform, size) + overhead > 1500 or fits


@pytest.mark.parametrize(
    ("remote", "port", "expected"),
    [("192.0.2.2", 0, 1446), ("192.0.2.2", 4500, 1438), ("2001:db8::2", 0, 1426), ("2001:db8::2", 4500, 1418)],
)
def test_the_known_capacities_of_gcm(remote: str, port: int, expected: int) -> None:
    plane = ReferenceDataPlane()
    assert plane.tun_mtu() == 1400
    local = "192.0.2.1" if "." in remote else "2001:db8::1"
    plane.add_sa(sa_params(GCM, inbound=False, along=path(local, remote, port)), 0)
    assert plane.tun_mtu() == expected


def test_the_tun_mtu_is_the_least_and_never_below_ipv6s() -> None:
    plane = plane_with(sa_params(inbound=False), sa_params(CBC_SHA256, inbound=False, spi=0x1002, child=2))
    transform = plane._sad.outbound[0x1002][0].transform
    assert plane.tun_mtu() == capacity(transform, path(), 1500) < 1438
    plane.set_path_mtu(path().remote, 600, 0)
    assert plane.tun_mtu() == 1280


def test_a_learned_path_mtu_ages() -> None:
    plane = plane_with(sa_params(inbound=False))
    plane.set_path_mtu(path().remote, 1400, 10)
    assert plane.tun_mtu() == 1338
    assert plane.deadline() == 10 + 600 * SECOND
    plane.handle_timeout(10 + 600 * SECOND - 1)
    assert plane.tun_mtu() == 1338
    plane.handle_timeout(10 + 600 * SECOND)
    assert plane.tun_mtu() == 1438
    assert plane.deadline() is None


@pytest.mark.parametrize(("remote", "floor"), [("192.0.2.2", 576), ("2001:db8::2", 1280)])
@pytest.mark.parametrize("told", [0, 68, 500])
def test_absurd_path_mtus_are_not_believed(remote: str, floor: int, told: int) -> None:
    plane = plane_with(
        sa_params(inbound=False, along=path("192.0.2.1" if "." in remote else "2001:db8::1", remote))
    )
    plane.set_path_mtu(Endpoint(ip_address(remote), 0), told, 0)
    sa = plane._sad.outbound[0x1001][0]
    assert sa.capacity == capacity(sa.transform, sa.path, floor)


def test_moving_the_path_changes_the_capacity() -> None:
    plane = plane_with(sa_params(inbound=False, child=3))
    plane.update_path(3, path("2001:db8::1", "2001:db8::2"))
    assert plane.tun_mtu() == 1418
    (transmit,) = send(plane, udp4(b""))
    assert isinstance(transmit, Transmit)
    assert transmit.path.version == 6


def test_too_big_with_df_is_answered_with_frag_needed() -> None:
    plane = plane_with(sa_params(inbound=False))
    packet = udp4(bytes(1411))  # 1439 octets, one too many
    (output,) = send(plane, packet)
    assert isinstance(output, WriteTun)
    answer = IP(packet_of(output.frames[0]))
    assert (answer.src, answer.dst) == (B4, "10.1.0.5")
    assert (answer[ICMP].type, answer[ICMP].code, answer[ICMP].nexthopmtu) == (3, 4, 1438)
    assert packet_of(output.frames[0])[28:] == packet[:548]
    rebuilt = answer.copy()
    del rebuilt.chksum, rebuilt[ICMP].chksum
    assert bytes(rebuilt) == bytes(answer)
    assert drops(plane) == {DropReason.TOO_BIG: 1}
    assert plane.counters().errors_out == 1
    assert isinstance(send(plane, udp4(bytes(1410)))[0], Transmit)


def test_too_big_in_ipv6_is_answered_with_packet_too_big() -> None:
    plane = plane_with(sa_params(inbound=False, name="v6"))
    packet = udp6(bytes(1391))
    (output,) = send(plane, packet)
    assert isinstance(output, WriteTun)
    answer = IPv6(packet_of(output.frames[0]))
    error = answer[ICMPv6PacketTooBig]
    assert (answer.src, answer.dst, error.mtu) == ("2001:db8:2::7", "2001:db8:1::5", 1438)
    assert bytes(error.payload) == packet[:1232]
    rebuilt = answer.copy()
    del rebuilt[ICMPv6PacketTooBig].cksum
    assert bytes(rebuilt) == bytes(answer)
    assert drops(plane) == {DropReason.TOO_BIG: 1}


def test_a_superpacket_is_judged_by_its_segment_size() -> None:
    plane = plane_with(sa_params(inbound=False))
    fits = tun(tcp4(bytes(5000)), 1, 1398, 1, 20, 16)
    plane.outbound([TunFrame(fits)], 1)
    (sent,) = drain(plane)
    assert isinstance(sent, Transmit)
    assert [len(buffer) for buffer in sent.buffers[:3]] == [1472 - 0, 1472, 1472]
    plane.outbound([TunFrame(tun(tcp4(bytes(5000)), 1, 1399, 1, 20, 16))], 1)
    (output,) = drain(plane)
    assert isinstance(output, WriteTun)
    assert drops(plane) == {DropReason.TOO_BIG: 4}


def test_ipv6_up_to_its_minimum_mtu_leaves_without_df() -> None:
    plane = plane_with(sa_params(inbound=False, name="v6"))
    plane.set_path_mtu(path().remote, 800, 0)
    (sent,) = send(plane, udp6(bytes(1232)))
    assert isinstance(sent, Transmit)
    assert sent.df is False
    (output,) = send(plane, udp6(bytes(1233)))
    assert isinstance(output, WriteTun)
    assert IPv6(packet_of(output.frames[0]))[ICMPv6PacketTooBig].mtu == 1280
    (small,) = send(plane, udp6(b""))
    assert isinstance(small, Transmit)
    assert small.df is True


NO_ANSWER = {
    "ICMP error": ip4(1, b"\x03\x04" + bytes(1500)),
    "later fragment": ip4(17, bytes(1500), flags=0x4001),
    "multicast destination": udp4(bytes(1500), destination="224.0.0.5"),
    "multicast source": udp4(bytes(1500), source="224.0.0.5"),
    "no source": udp4(bytes(1500), source="0.0.0.0"),
    "ICMPv6 error": ip6(58, b"\x01\x00" + bytes(1500)),
    "IPv6 later fragment": ip6(44, b"\x11\0\0\x08\0\0\0\0" + bytes(1500)),
    "IPv6 no source": udp6(bytes(1500), source="::"),
    "IPv6 multicast source": udp6(bytes(1500), source="ff02::1"),
}


@pytest.mark.parametrize("name", NO_ANSWER)
def test_no_error_answers_these(name: str) -> None:
    plane = plane_with(sa_params(inbound=False), sa_params(inbound=False, spi=0x1002, name="v6", child=2))
    assert send(plane, NO_ANSWER[name]) == []
    assert drops(plane) == {DropReason.TOO_BIG: 1}


@pytest.mark.parametrize("options", [b"", b"\x94\x04\x00\x00", b"\x07\x07\x04\x00\x00\x00\x00\x00"])
@pytest.mark.parametrize("flags", [0, 0x2000, 0x2010, 0x10])
def test_ipv4_without_df_is_fragmented_first(flags: int, options: bytes) -> None:
    pair = Pair()
    data = bytes(range(256)) * 16
    packet = ip4(99, data, flags=flags, options=options, identification=77)
    transmits = pair.send(tun(packet))
    frames = [packet_of(frame) for frame in pair.receive(transmits)]
    offset = (flags & 0x1FFF) * 8
    collected = b""
    for index, frame in enumerate(frames):
        layer = IP(frame)
        check = layer.copy()
        del check.chksum
        assert bytes(check) == frame
        assert len(frame) <= 1438
        assert (layer.id, layer.ttl, layer.proto, layer.frag * 8) == (77, 64, 99, offset + len(collected))
        last = index == len(frames) - 1
        assert bool(layer.flags.MF) is (not last or bool(flags & 0x2000))
        size = layer.ihl * 4
        copied = options if index == 0 or options[:1] == b"\x94" else b""
        assert frame[20:size] == copied
        collected += frame[size:]
    assert len(frames) > 1
    assert collected == data
    counters = pair.left.counters()
    assert (counters.outbound_in, counters.outbound_out, counters.esp_out) == (1, 1, len(frames))


def test_a_superpacket_without_df_is_cut_then_fragmented() -> None:
    pair = Pair()
    pair.left.set_path_mtu(pair.path.remote, 700, 0)
    frame = tun(tcp4(bytes(2800), ip={"flags": 0}), 1, 1400, 1, 20, 16)
    transmits = pair.send(frame)
    assert len(datagrams(transmits)) == 6
    assert drops(pair.left) == {}
    assert pair.left.counters().outbound_out == 2


def test_a_spent_hop_limit_goes_no_further() -> None:
    plane = plane_with(sa_params(inbound=False), sa_params(inbound=False, spi=0x1002, name="v6", child=2))
    assert send(plane, udp4(b"", ttl=0), udp6(b"", hop_limit=0), ip4(99, b"", ttl=0)) == []
    assert drops(plane) == {DropReason.TTL_EXPIRED: 3}


def test_the_hop_limit_is_not_decremented() -> None:
    pair = Pair()
    assert [packet_of(f) for f in pair.receive(pair.send(tun(udp4(b"", ttl=1))))] == [udp4(b"", ttl=1)]


# Limits


def test_sequence_numbers_start_at_one_and_rise() -> None:
    pair = Pair()
    sent = datagrams(pair.send(*(tun(udp4(bytes((i,)))) for i in range(3)))) + datagrams(
        pair.send(tun(udp4(b"x")))
    )
    assert [int.from_bytes(packet[4:8], "big") for packet in sent] == [1, 2, 3, 4]
    assert [packet[8:16] for packet in sent] == [n.to_bytes(8, "big") for n in (1, 2, 3, 4)]  # the IV


def test_the_sequence_number_never_wraps() -> None:
    plane = plane_with(sa_params(inbound=False, child=7))
    sa = plane._sad.outbound[0x1001][0]
    sa.sequence = 2**32 - 4
    plane.outbound([TunFrame(tun(tcp4(bytes(500)), 1, 100, 1, 20, 16))], 1)
    outputs = drain(plane)
    assert [o for o in outputs if isinstance(o, Expire)] == [Expire(7, 0x1001, False, True, "sequence")]
    sent = datagrams(o for o in outputs if isinstance(o, Transmit))
    assert [int.from_bytes(packet[4:8], "big") for packet in sent] == [2**32 - 3, 2**32 - 2, 2**32 - 1]
    assert send(plane, udp4(b"")) == []
    assert drops(plane) == {DropReason.SEQUENCE_OVERFLOW: 3}
    stats = plane.query_sa(0x1001, inbound=False)
    assert stats is not None
    assert stats.drops == {DropReason.SEQUENCE_OVERFLOW: 3}


def test_a_successor_is_asked_for_well_before_the_end() -> None:
    plane = plane_with(sa_params(inbound=False, child=7))
    sa = plane._sad.outbound[0x1001][0]
    sa.sequence = sa.sequence_soft - 1
    outputs = send(plane, udp4(b"")) + send(plane, udp4(b""))
    assert [o for o in outputs if isinstance(o, Expire)] == [Expire(7, 0x1001, False, False, "sequence")]
    assert drops(plane) == {}


def test_with_esn_the_number_goes_on() -> None:
    pair = Pair(type(GCM)(GCM.protocol, GCM.encr, 256, esn=True))
    pair.left._sad.outbound[0x1004][0].sequence = 2**32 - 2
    pair.right._sad.inbound[0x1004].window.commit(2**32 - 2)
    transmits = pair.send(*(tun(udp4(bytes((i,)))) for i in range(4)))
    assert [int.from_bytes(p[4:8], "big") for p in datagrams(transmits)] == [2**32 - 1, 0, 1, 2]
    assert len(pair.receive(transmits)) == 4
    stats = pair.right.query_sa(0x1004, inbound=True)
    assert stats is not None
    assert stats.sequence == 2**32 + 2


def test_octet_limits() -> None:
    plane = plane_with(sa_params(inbound=False, child=7, soft_bytes=100, hard_bytes=200))
    outputs = [o for _ in range(10) for o in send(plane, udp4(bytes(12)))]  # 40 octets each
    assert [o for o in outputs if isinstance(o, Expire)] == [
        Expire(7, 0x1001, False, False, "bytes"),
        Expire(7, 0x1001, False, True, "bytes"),
    ]
    assert sum(isinstance(o, Transmit) for o in outputs) == 5
    assert drops(plane) == {DropReason.SA_EXPIRED: 5}


def test_a_superpacket_is_cut_off_at_the_octet_limit() -> None:
    plane = plane_with(sa_params(inbound=False, hard_bytes=500))
    plane.outbound([TunFrame(tun(tcp4(bytes(1000)), 1, 100, 1, 20, 16))], 1)
    assert len(datagrams(o for o in drain(plane) if isinstance(o, Transmit))) == 3  # 140 octets each
    assert drops(plane) == {DropReason.SA_EXPIRED: 7}
    stats = plane.query_sa(0x1001, inbound=False)
    assert stats is not None
    assert (stats.packets, stats.octets, stats.sequence) == (3, 420, 3)


@pytest.mark.parametrize("limit", ["bytes", "sequence"])
def test_of_a_fragmented_packet_all_fragments_leave_or_none(limit: str) -> None:
    plane = plane_with(sa_params(inbound=False, hard_bytes=2000 if limit == "bytes" else None))
    if limit == "sequence":
        plane._sad.outbound[0x1001][0].sequence = 2**32 - 3
    outputs = send(plane, udp4(bytes(4000), flags=0))
    assert not any(isinstance(o, Transmit) for o in outputs)
    reason = DropReason.SA_EXPIRED if limit == "bytes" else DropReason.SEQUENCE_OVERFLOW
    assert drops(plane) == {reason: 1}


# Grouping


def test_groups_follow_size_tos_and_family() -> None:
    pair = Pair()
    transmits = pair.send(
        tun(udp4(bytes(100))),
        tun(udp4(bytes(100))),
        tun(udp4(bytes(50))),  # shorter: joins as the last
        tun(udp4(bytes(50))),
        tun(udp4(bytes(100))),  # longer: cannot join
        tun(udp4(bytes(100), tos=0x10)),  # another TOS
        tun(udp6(bytes(100))),  # another SA
    )
    shapes = [(len(t.buffers), t.segment_size, t.tos) for t in transmits]
    assert sorted(shapes) == sorted([(3, 164, 0), (1, 0, 0), (1, 0, 0), (1, 0, 16), (1, 0, 0)])
    numbers = [int.from_bytes(p[4:8], "big") for p in datagrams(transmits) if p[:4] == b"\0\0\x10\x04"]
    assert numbers == [1, 2, 3, 4, 5, 6]  # in order within the SA
    assert all(t.df for t in transmits)


@settings(max_examples=80)
@given(
    st.lists(
        st.tuples(st.sampled_from([0, 3, 4, 100, 1400]), st.sampled_from([0, 2]), st.integers(1, 90)), max_size=12
    ),
    st.sampled_from([0, 4500]),
)
def test_every_group_may_be_sent_with_udp_segment(groups: list[tuple[int, int, int]], port: int) -> None:
    pair = Pair(along=path(port=port))
    transmits = pair.send(*(tun(udp4(bytes(size), tos=tos)) for size, tos, count in groups for _ in range(count)))
    for transmit in transmits:
        sizes = [len(buffer) for buffer in transmit.buffers]
        assert len(sizes) <= 64
        assert sum(sizes) <= 65507
        assert transmit.segment_size == (sizes[0] if len(sizes) > 1 and port else 0)
        assert set(sizes[:-1]) <= {sizes[0]}
        assert sizes[-1] <= sizes[0]
    numbers = [int.from_bytes(packet[4:8], "big") for packet in datagrams(transmits)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) == sum(count for _, _, count in groups)


def test_a_full_superpacket_is_one_call() -> None:
    pair = Pair()
    (transmit,) = pair.send(tun(tcp4(bytes(60000), options=b"\x01\x01\x08\x0a12345678"), 1, 1386, 1, 20, 16))
    assert (len(transmit.buffers), transmit.segment_size) == (44, 1472)
    pair = Pair()
    transmits = pair.send(tun(tcp4(bytes(64000)), 1, 536, 1, 20, 16))
    assert [len(t.buffers) for t in transmits] == [64, 56]


def test_a_bug_of_ours_costs_one_packet(monkeypatch: pytest.MonkeyPatch) -> None:
    from tunnel.dataplane import esp

    real = esp.seal

    def seal(sa: object, parts: list[object], next_header: int) -> list[bytes]:
        if next_header == 41:
            raise KeyError("secret octets")
        return real(sa, parts, next_header)  # type: ignore[arg-type]

    monkeypatch.setattr(esp, "seal", seal)
    plane = plane_with(sa_params(inbound=False), sa_params(inbound=False, spi=0x1002, name="v6", child=2))
    outputs = send(plane, udp4(b""), udp6(b""), udp4(b""))
    (error,) = [o for o in outputs if type(o).__name__ == "InternalError"]
    assert "KeyError" in repr(error)
    assert "secret" not in repr(error)
    assert len(datagrams(o for o in outputs if isinstance(o, Transmit))) == 2
    assert drops(plane) == {DropReason.INTERNAL: 1}


def test_icmp_is_matched_by_type_and_code() -> None:
    echo = selector_pair("0.0.0.0/0", "0.0.0.0/0", 1, PortRange(0x0800, 0x0800), PortRange(0x0800, 0x0800))
    plane = ReferenceDataPlane()
    plane.load(snapshot(entry("echo", echo)), 0)
    plane.add_sa(sa_params(inbound=False, name="echo", selectors=(echo,)), 0)
    assert len(send(plane, ip4(1, b"\x08\0" + bytes(6)))) == 1
    assert send(plane, ip4(1, b"\x00\0" + bytes(6))) == []
    assert drops(plane) == {DropReason.NO_POLICY: 1}


def test_outputs_of_unused_planes_are_empty() -> None:
    plane = ReferenceDataPlane()
    plane.outbound([], 1)
    plane.inbound([], 1)
    plane.handle_timeout(1)
    assert plane.poll() is None
    assert written(drain(plane)) == []
    assert tcp6(b"")[6] == 6
