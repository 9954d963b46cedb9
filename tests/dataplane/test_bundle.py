"""AH around ESP on one packet (RFC 4301 section 4.5's adjacency, in the order of RFC 2401): both, or nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6
from scapy.layers.ipsec import AH, ESP, SecurityAssociation

from policy.path import Path
from policy.proposals import Integ, Suite
from policy.spd import Mode
from tests.support.packets import (
    A4,
    A6,
    AHS,
    B4,
    B6,
    CBC_SHA256,
    GCM,
    SUITES,
    arrivals,
    drain,
    keys,
    mirrored,
    packet_of,
    path,
    sa_params,
    snapshot,
    tcp4,
    tcp6,
    tun,
    udp4,
    udp6,
    written,
)
from tunnel.dataplane.contract import (
    Acquire,
    Activated,
    DropReason,
    Expire,
    Transmit,
    TunFrame,
    WireDatagrams,
)
from tunnel.dataplane.offload import GSO_TCPV4, GSO_TCPV6, NEEDS_CSUM
from tunnel.dataplane.reference import ReferenceDataPlane

OUTER, INNER = 0x2002, 0x2001
SHA1 = next(suite for suite in AHS if suite.integ is Integ.HMAC_SHA1_96)


class Bundle:
    """Two hosts, *left* with the outbound halves of a bundle and *right* with the inbound ones."""

    def __init__(
        self, outer: Suite = SHA1, inner: Suite = GCM, version: int = 4, mode: Mode = Mode.TRANSPORT,
        *, ah: dict[str, Any] | None = None, esp: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.version, self.name = version, f"v{version}"
        self.path = path(*((A4, B4) if version == 4 else (A6, B6)), 0)
        self.halves = {
            OUTER: {"suite": outer, "child": 2, "bundle": 1, "mode": Mode.TRANSPORT, **(ah or {})},
            INNER: {"suite": inner, "child": 1, "bundle": 2, "mode": mode, **(esp or {})},
        }
        self.left, self.right = ReferenceDataPlane(), ReferenceDataPlane()
        for plane in (self.left, self.right):
            plane.load(snapshot(), 0)

    def add(self, *spis: int, inbound: bool = False) -> None:
        along: Path = mirrored(self.path) if inbound else self.path
        for spi in spis:
            plane = self.right if inbound else self.left
            plane.add_sa(sa_params(inbound=inbound, spi=spi, along=along, name=self.name, **self.halves[spi]), 0)

    def send(self, *packets: bytes) -> list[Transmit]:
        self.left.outbound([TunFrame(tun(packet)) for packet in packets], 1)
        counters = self.left.counters()
        assert counters.outbound_in == counters.outbound_out + counters.outbound_drops + counters.held
        return [output for output in drain(self.left) if isinstance(output, Transmit)]

    def receive(self, *items: WireDatagrams) -> list[bytes]:
        self.right.inbound(list(items), 1)
        counters = self.right.counters()
        assert counters.inbound_in == counters.inbound_out + counters.inbound_drops
        return [packet_of(frame) for frame in written(drain(self.right))]

    def packet(self, data: bytes = b"in a bundle") -> bytes:
        return udp4(data) if self.version == 4 else udp6(data)


def ready(**options: Any) -> Bundle:
    bundle = Bundle(**options)
    for inbound in (False, True):
        bundle.add(INNER, OUTER, inbound=inbound)
    return bundle


def drops(plane: ReferenceDataPlane) -> dict[DropReason, int]:
    return {reason: count for reason, count in plane.drops().items() if count}


@pytest.mark.parametrize("first", [INNER, OUTER])
def test_neither_half_sends_without_the_other(first: int) -> None:
    bundle = Bundle()
    bundle.add(first)
    assert bundle.send(bundle.packet()) == []
    assert bundle.left.counters().held == 1
    bundle.add(INNER + OUTER - first)
    bundle.left.release("v4", 1)
    (transmit,) = drain(bundle.left)
    assert isinstance(transmit, Transmit)
    bundle.add(INNER, OUTER, inbound=True)
    assert bundle.receive(*arrivals(transmit)) == [bundle.packet()]


@pytest.mark.parametrize("gone", [INNER, OUTER])
def test_when_one_half_goes_the_other_sends_no_more(gone: int) -> None:
    bundle = ready()
    assert len(bundle.send(bundle.packet())) == 1
    bundle.left.delete_sa(gone, inbound=False)
    bundle.left.outbound([TunFrame(tun(bundle.packet()))], 1)
    assert [type(output) for output in drain(bundle.left)] == [Acquire]
    bundle.add(gone)
    assert len(bundle.send(bundle.packet())) == 1


@pytest.mark.parametrize("gone", [INNER, OUTER])
def test_either_half_alone_receives_nothing(gone: int) -> None:
    bundle = ready()
    (transmit,) = bundle.send(bundle.packet())
    bundle.right.delete_sa(gone, inbound=True)
    assert bundle.receive(*arrivals(transmit)) == []
    assert drops(bundle.right) == {DropReason.UNKNOWN_SPI if gone == OUTER else DropReason.BUNDLE_INCOMPLETE: 1}


def test_esp_alone_and_esp_in_another_ah_are_refused() -> None:
    bundle = ready()
    (transmit,) = bundle.send(bundle.packet())
    (item,) = arrivals(transmit)
    assert bundle.receive(replace(item, data=bytes(item.data)[24:], protocol=50)) == []
    assert bundle.receive(WireDatagrams(mirrored(path()), bytes(item.data)[24:])) == []
    assert drops(bundle.right) == {DropReason.BUNDLE_INCOMPLETE: 2}
    # An AH SA that is a bundle with another ESP SA.
    bundle.right.delete_sa(OUTER, inbound=True)
    bundle.halves[OUTER]["bundle"] = 77
    bundle.add(OUTER, inbound=True)
    assert bundle.receive(item) == []
    assert drops(bundle.right) == {DropReason.BUNDLE_INCOMPLETE: 3}
    stats = bundle.right.query_sa(INNER, inbound=True)
    assert stats is not None
    assert stats.packets == 0


def test_a_forged_inner_packet_is_counted_once() -> None:
    bundle = ready()
    (transmit,) = bundle.send(bundle.packet())
    (item,) = arrivals(transmit)
    # The two halves have different keys; a peer whose ESP is broken still has AH.
    wrong = Bundle(inner=replace(GCM, key_bits=128))
    wrong.add(INNER, OUTER)
    (broken,) = wrong.send(wrong.packet())
    assert bundle.receive(*arrivals(broken)) == []
    assert drops(bundle.right) == {DropReason.INTEGRITY: 1}
    assert bundle.receive(item) == []
    assert drops(bundle.right) == {DropReason.INTEGRITY: 1, DropReason.REPLAYED: 1}


@pytest.mark.parametrize("version", [4, 6])
def test_scapy_opens_both_layers(version: int) -> None:
    bundle = ready(inner=CBC_SHA256, version=version)
    (transmit,) = bundle.send(bundle.packet())
    encryption, _, integrity = keys(CBC_SHA256)
    ah = SecurityAssociation(AH, spi=OUTER, auth_algo="HMAC-SHA1-96", auth_key=keys(SHA1)[2])
    esp = SecurityAssociation(
        ESP, spi=INNER, crypt_algo="AES-CBC", crypt_key=encryption, auth_algo="SHA2-256-128", auth_key=integrity
    )
    header = IP if version == 4 else IPv6
    outer = header(bytes(transmit.buffers[0]))
    assert outer[AH].nh == 50
    assert bytes(esp.decrypt(header(bytes(ah.decrypt(outer))))) == bundle.packet()


@pytest.mark.parametrize("half", ["ah", "esp"])
def test_the_limits_of_both_halves_hold(half: str) -> None:
    bundle = ready(**{half: {"soft_bytes": 40, "hard_bytes": 120}})
    for _ in range(4):
        bundle.left.outbound([TunFrame(tun(bundle.packet()))], 1)
    outputs = drain(bundle.left)
    child = 2 if half == "ah" else 1
    assert [(o.child, o.hard) for o in outputs if isinstance(o, Expire)] == [(child, False), (child, True)]
    assert sum(isinstance(output, Transmit) for output in outputs) == 3
    assert drops(bundle.left) == {DropReason.SA_EXPIRED: 1}


@pytest.mark.parametrize("half", [OUTER, INNER])
def test_the_sequence_numbers_of_both_halves_end(half: int) -> None:
    bundle = ready()
    bundle.left._sad.outbound[half][0].sequence = 2**32 - 3
    packets = [bundle.packet(), bundle.packet(), bundle.packet()]
    assert sum(len(transmit.buffers) for transmit in bundle.send(*packets)) == 2
    assert drops(bundle.left) == {DropReason.SEQUENCE_OVERFLOW: 1}


def test_a_dormant_bundle_wakes_as_a_whole() -> None:
    bundle = Bundle(ah={"dormant": True}, esp={"dormant": True})
    bundle.add(INNER, OUTER)
    assert bundle.send(bundle.packet()) == []
    other = ready()
    (transmit,) = other.send(other.packet())
    bundle.right = bundle.left
    bundle.path = mirrored(bundle.path)
    bundle.add(INNER, OUTER, inbound=True)
    bundle.left.inbound([replace(arrivals(transmit)[0], path=mirrored(bundle.path))], 1)
    outputs = drain(bundle.left)
    assert sorted(output.child for output in outputs if isinstance(output, Activated)) == [1, 2]
    assert sum(isinstance(output, Transmit) for output in outputs) == 1


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("version", [4, 6])
def test_the_largest_packet_fits_exactly(version: int, mode: Mode) -> None:
    for mtu in range(1400, 1410):
        bundle = ready(version=version, mode=mode, inner=CBC_SHA256)
        bundle.left.set_path_mtu(bundle.path.remote, mtu, 0)
        largest = bundle.left.tun_mtu()
        front = 28 if version == 4 else 48
        (transmit,) = bundle.send(bundle.packet(bytes(largest - front)))
        (buffer,) = transmit.buffers
        assert mtu - 16 < len(buffer) <= mtu
        more = bundle.send(bundle.packet(bytes(largest - front + 1)))
        assert all(len(buffer) <= mtu for transmit in more for buffer in transmit.buffers)
        assert sum(len(transmit.buffers) for transmit in more) == (2 if mode is Mode.TRANSPORT else 0)


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(AHS), st.sampled_from(SUITES), st.sampled_from([4, 6]), st.sampled_from(list(Mode)),
    st.booleans(), st.integers(1, 9000), st.integers(500, 1300),
)  # fmt: skip
def test_superpackets_of_all_algorithms(
    outer: Suite, inner: Suite, version: int, mode: Mode, esn: bool, octets: int, size: int
) -> None:
    bundle = ready(outer=outer, inner=replace(inner, esn=esn), version=version, mode=mode)
    data = bytes(index * 7 & 0xFF for index in range(octets))
    packet = tcp4(data) if version == 4 else tcp6(data)
    start, gso = (20, GSO_TCPV4) if version == 4 else (40, GSO_TCPV6)
    frame = tun(packet, gso, size, NEEDS_CSUM, start, 16) if octets > size else tun(packet)
    bundle.left.outbound([TunFrame(frame)], 1)
    items = [item for output in drain(bundle.left) if isinstance(output, Transmit) for item in arrivals(output)]
    opened = bundle.receive(*items)
    assert b"".join(one[start + 20 :] for one in opened) == data
    assert bundle.right.counters().inbound_out == len(items) == -(-octets // size)
