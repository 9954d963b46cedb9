"""Transport mode across a NAT: checksums made anew, and several peers behind one address kept apart."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
from scapy.packet import Packet, Raw

from policy.clock import SECOND, Nanos
from policy.path import Endpoint, Path
from policy.selectors import TCP as TCP_NUMBER
from policy.selectors import Flow
from policy.spd import Mode
from tests.support.packets import (
    ANY4,
    GCM,
    Pair,
    arrivals,
    drain,
    entry,
    packet_of,
    path,
    sa_params,
    snapshot,
    tun,
    written,
)
from tunnel.dataplane import natflows
from tunnel.dataplane.contract import Acquire, DropReason, Transmit, TunFrame, WireDatagrams
from tunnel.dataplane.natflows import FRESH, NatFlows
from tunnel.dataplane.reference import ReferenceDataPlane

HERE, NAT = "192.0.2.9", "198.51.100.1"
INSIDE = ("10.0.0.11", "10.0.0.12")
ENTRY = "v4"


class World:
    """One server, and two peers behind one NAT, with ports 40001 and 40002 there."""

    def __init__(self) -> None:
        self.plane = ReferenceDataPlane()
        self.plane.load(snapshot(), 0)
        self.peers: list[Pair] = []
        for number, inside in enumerate(INSIDE, 1):
            seen = self.path(number)
            for inbound in (False, True):
                self.plane.add_sa(
                    sa_params(
                        GCM, inbound=inbound, spi=0x1000 + number, child=number, along=seen,
                        mode=Mode.TRANSPORT, nat=True, name=ENTRY,
                    ),
                    0,
                )  # fmt: skip
            peer = Pair(GCM, path(inside, HERE), mode=Mode.TRANSPORT)
            peer.left = ReferenceDataPlane()
            peer.left.load(snapshot(), 0)
            peer.left.add_sa(
                sa_params(GCM, inbound=False, spi=0x1000 + number, along=path(inside, HERE), mode=Mode.TRANSPORT),
                0,
            )
            self.peers.append(peer)

    @staticmethod
    def path(number: int, port: int = 0) -> Path:
        return Path(Endpoint(ip_address(HERE), 4500), Endpoint(ip_address(NAT), port or 40000 + number))

    def speak(self, number: int, layer: Packet, now: Nanos = 1) -> list[Packet]:
        """Return what the server's TUN is given when peer *number* sends *layer*."""
        packet = bytes(IP(src=INSIDE[number - 1], dst=HERE, id=0, flags="DF") / layer)
        for transmit in self.peers[number - 1].send(tun(packet)):
            data = b"".join(bytes(buffer) for buffer in transmit.buffers)
            self.plane.inbound([WireDatagrams(self.path(number), data)], now)
        outputs = drain(self.plane)
        counters = self.plane.counters()
        assert counters.inbound_in == counters.inbound_out + counters.inbound_drops
        return [IP(packet_of(frame)) for frame in written(outputs)]

    def answer(self, layer: Packet, now: Nanos = 2) -> int | None:
        """Return the port of the NAT that the server's packet goes to, if it leaves."""
        self.plane.outbound([TunFrame(tun(bytes(IP(src=HERE, dst=NAT, flags="DF") / layer)))], now)
        sent = [output for output in drain(self.plane) if isinstance(output, Transmit)]
        return sent[0].path.remote.port if sent else None

    def drops(self) -> dict[DropReason, int]:
        return {reason: count for reason, count in self.plane.drops().items() if count}


def checksum_holds(packet: Packet) -> bool:
    layer = packet[TCP] if TCP in packet else packet[UDP]
    given = layer.chksum
    again = packet.copy()
    del (again[TCP] if TCP in again else again[UDP]).chksum
    again = type(packet)(bytes(again))
    return bool(given == (again[TCP] if TCP in again else again[UDP]).chksum)


@pytest.mark.parametrize("size", [0, 1, 2, 777])
@pytest.mark.parametrize("layer", [UDP(sport=5, dport=7), TCP(sport=5, dport=7, options=[("MSS", 1000)])], ids=str)
def test_the_host_sees_checksums_for_the_addresses_it_sees(layer: Packet, size: int) -> None:
    world = World()
    (packet,) = world.speak(1, layer / Raw(bytes(range(size % 256)) * (size // 256 + 1)))
    assert packet.src == NAT
    assert checksum_holds(packet)


def test_a_udp_datagram_without_checksum_keeps_none() -> None:
    (packet,) = World().speak(1, UDP(sport=5, dport=7, chksum=0) / b"none")
    assert packet[UDP].chksum == 0


def test_other_protocols_are_left_as_they_are() -> None:
    (packet,) = World().speak(1, ICMP(type=8, id=3) / b"ping")
    assert bytes(packet[ICMP]) == bytes(ICMP(type=8, id=3) / b"ping")


def test_ipv6_checksums_too() -> None:
    plane = ReferenceDataPlane()
    plane.load(snapshot(), 0)
    seen = path("2001:db8::2", "2001:db8::1")
    plane.add_sa(sa_params(GCM, inbound=True, spi=0x1006, along=seen, mode=Mode.TRANSPORT, nat=True, name="v6"), 0)
    pair = Pair(GCM, path("fd00::1", "2001:db8::2"), mode=Mode.TRANSPORT)
    for layer in (UDP(sport=1, dport=2) / b"six", TCP(sport=1, dport=2) / b"six"):
        (transmit,) = pair.send(tun(bytes(IPv6(src="fd00::1", dst="2001:db8::2") / layer)))
        plane.inbound([WireDatagrams(seen, transmit.buffers[0])], 1)
        (frame,) = written(drain(plane))
        packet = IPv6(packet_of(frame))
        assert packet.src == "2001:db8::1"
        assert checksum_holds(packet)
    (transmit,) = pair.send(tun(bytes(IPv6(src="fd00::1", dst="2001:db8::2") / ICMPv6EchoRequest(data=b"six"))))
    plane.inbound([WireDatagrams(seen, transmit.buffers[0])], 1)
    (frame,) = written(drain(plane))
    expected = bytes(IPv6(src="2001:db8::1", dst="2001:db8::2") / ICMPv6EchoRequest(data=b"six"))
    assert packet_of(frame) == expected


def test_answers_go_to_the_peer_that_asked() -> None:
    world = World()
    for number in (1, 2, 1, 2):
        assert world.speak(number, UDP(sport=1000 + number, dport=53) / b"?")
        for other in (1, 2):
            if other <= number or number == 1:
                world.speak(other, UDP(sport=1000 + other, dport=53) / b"?")
                assert world.answer(UDP(sport=53, dport=1000 + other) / b"!") == 40000 + other
    assert world.drops() == {}


def test_echo_replies_go_to_the_last_that_asked() -> None:
    world = World()
    for number in (1, 2, 1):
        world.speak(number, ICMP(type=8))
        assert world.answer(ICMP(type=0)) == 40000 + number


def test_a_second_peer_with_the_same_ports_is_dropped_while_the_first_speaks() -> None:
    world = World()
    question = UDP(sport=1000, dport=53) / b"?"
    assert world.speak(1, question)
    assert not world.speak(2, question, now=FRESH)
    assert world.drops() == {DropReason.NAT_CLASH: 1}
    assert world.answer(UDP(sport=53, dport=1000) / b"!") == 40001
    assert world.speak(2, question, now=1 + FRESH)
    assert world.answer(UDP(sport=53, dport=1000) / b"!") == 40002
    stats = world.plane.query_sa(0x1002, inbound=True)
    assert stats is not None
    assert stats.drops == {DropReason.NAT_CLASH: 1}


def test_an_open_connection_stays_its_peers_however_silent_it_is() -> None:
    world = World()
    assert world.speak(1, TCP(sport=1000, dport=80, flags="S"))
    hours = 3 * 3600 * SECOND
    assert not world.speak(2, TCP(sport=1000, dport=80, flags="S"), now=hours)
    assert world.answer(TCP(sport=80, dport=1000, flags="A") / b"secret", now=hours) == 40001
    assert world.speak(1, TCP(sport=1000, dport=80, flags="FA"), now=hours)
    assert not world.speak(2, TCP(sport=1000, dport=80, flags="S"), now=hours + FRESH - 1)
    assert world.speak(2, TCP(sport=1000, dport=80, flags="S"), now=hours + FRESH)
    assert world.answer(TCP(sport=80, dport=1000, flags="SA"), now=hours + FRESH) == 40002


def test_a_peer_without_sas_holds_nothing_and_its_answers_go_to_no_other() -> None:
    world = World()
    assert world.speak(1, TCP(sport=1000, dport=80, flags="S"))
    for inbound in (True, False):
        world.plane.delete_sa(0x1001, inbound=inbound, child=1)
    world.plane.outbound([TunFrame(tun(bytes(IP(src=HERE, dst=NAT) / TCP(sport=80, dport=1000))))], 2)
    assert [type(output) for output in drain(world.plane)] == [Acquire]
    assert world.speak(2, TCP(sport=1000, dport=80, flags="S"))
    assert world.answer(TCP(sport=80, dport=1000)) == 40002


def test_a_new_mapping_takes_the_flows_along() -> None:
    world = World()
    assert world.speak(1, UDP(sport=1000, dport=53) / b"?")
    assert world.answer(UDP(sport=53, dport=1000)) == 40001
    world.plane.update_path(1, world.path(1, 50001))
    assert world.answer(UDP(sport=53, dport=1000)) == 50001
    assert world.speak(1, UDP(sport=1000, dport=53) / b"?")
    assert not world.speak(2, UDP(sport=1000, dport=53) / b"?")


def test_a_successor_of_the_childs_sa_carries_its_flows() -> None:
    world = World()
    assert world.speak(1, UDP(sport=1000, dport=53) / b"?")
    for number in (1, 2):
        world.plane.add_sa(
            sa_params(
                GCM, inbound=False, spi=0x2000 + number, child=10 + number, along=world.path(number),
                mode=Mode.TRANSPORT, nat=True,
            ),
            0,
        )  # fmt: skip
    world.plane.delete_sa(0x1001, inbound=False, child=1)
    assert world.answer(UDP(sport=53, dport=1000)) == 40001


def test_flows_nobody_began_go_to_the_newest() -> None:
    assert World().answer(UDP(sport=1, dport=2)) == 40002


def test_the_table_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(natflows, "MAX_FLOWS", 8)
    flows, remote = NatFlows(), Endpoint(ip_address(NAT), 1)
    arriving = [Flow(4, TCP_NUMBER, 1, 2, port, 80) for port in range(20)]
    for flow in arriving:
        assert flows.arrived(flow, 2, remote, 1, lambda _: True)
        flows.arrived(arriving[0], 0, remote, 1, lambda _: True)
    assert len(flows._bindings) == 8
    leaving = [Flow(4, TCP_NUMBER, 2, 1, 80, port) for port in range(20)]
    # Used between all others, the first is still there.
    assert [flows.peer_of(flow) for flow in (leaving[0], leaving[1], leaving[-1])] == [remote, None, remote]


def _template(**changes: Any) -> Any:
    made = entry("all", ANY4)
    assert made.protection is not None
    return replace(made, per_host=True, protection=replace(made.protection, mode=Mode.TRANSPORT), **changes)


def test_an_entry_for_each_host() -> None:
    left, right = "10.1.0.5", "10.2.0.7"
    pair = Pair(GCM, path(left, right, 0), mode=Mode.TRANSPORT)
    packet = bytes(IP(src=left, dst=right) / UDP(sport=1, dport=2) / b"x")
    plane = pair.left = ReferenceDataPlane()
    plane.load(snapshot(_template()), 0)
    plane.outbound([TunFrame(tun(packet))], 1)
    (acquire,) = drain(plane)
    assert isinstance(acquire, Acquire)
    assert acquire.entry == f"all@{right}"
    plane.add_sa(
        sa_params(GCM, inbound=False, spi=0x1004, name=f"all@{right}", along=pair.path, mode=Mode.TRANSPORT), 1
    )
    plane.release(f"all@{right}", 1)
    (transmit,) = drain(plane)
    assert isinstance(transmit, Transmit)
    pair.right = ReferenceDataPlane()
    pair.right.load(snapshot(_template()), 0)
    name = f"all@{left}"
    pair.right.add_sa(
        sa_params(GCM, inbound=True, spi=0x1004, name=name, along=path(right, left, 0), mode=Mode.TRANSPORT), 0
    )
    pair.right.inbound(arrivals(transmit), 1)
    assert [packet_of(frame) for frame in written(drain(pair.right))] == [packet]
    # Another host's packets do not come in by that host's SA.
    strange = bytearray(arrivals(pair.send(tun(packet))[0])[0].header)
    strange[15] ^= 1
    item = arrivals(pair.send(tun(packet))[0])[0]
    pair.right.inbound([replace(item, header=bytes(strange))], 1)
    assert written(drain(pair.right)) == []
    assert pair.right.drops()[DropReason.SELECTOR_MISMATCH] == 1
