"""Transport mode and AH: what leaves, as scapy sees it; what comes in again; and what does not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrHopByHop, PadN
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
    Pair,
    arrivals,
    drain,
    ip4,
    ip6,
    join,
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
from tunnel.dataplane.contract import DropReason, Transmit, TunFrame, WireDatagrams
from tunnel.dataplane.offload import GSO_TCPV4, GSO_TCPV6, NEEDS_CSUM
from tunnel.dataplane.reference import ReferenceDataPlane

_SCAPY_INTEG = {
    Integ.HMAC_SHA2_256_128: "SHA2-256-128",
    Integ.HMAC_SHA2_384_192: "SHA2-384-192",
    Integ.HMAC_SHA2_512_256: "SHA2-512-256",
    Integ.HMAC_SHA1_96: "HMAC-SHA1-96",
    Integ.HMAC_MD5_96: "HMAC-MD5-96",
}


def along(version: int, port: int = 0) -> Path:
    return path(*((A4, B4) if version == 4 else (A6, B6)), port)


def pair_of(suite: Suite, version: int = 4, port: int = 0, mode: Mode = Mode.TRANSPORT, **sa: Any) -> Pair:
    return Pair(suite, along(version, port), mode=mode, **sa)


def through(pair: Pair, *packets: bytes) -> list[bytes]:
    """Return what comes out of the other TUN; the books balance."""
    frames = pair.receive(pair.send(*map(tun, packets)))
    counters = pair.right.counters()
    assert counters.inbound_in == counters.inbound_out + counters.inbound_drops
    counters = pair.left.counters()
    assert counters.outbound_in == counters.outbound_out + counters.outbound_drops
    return [packet_of(frame) for frame in frames]


@pytest.mark.parametrize("port", [0, 4500])
@pytest.mark.parametrize("suite", SUITES)
def test_transport_mode_gives_back_what_it_took(suite: Suite, port: int) -> None:
    # In UDP the IP header is the host's own on the way, so that its identification is lost.
    known = {"identification": 0 if port else 77}
    echo = ip4(1, b"\x08\0\xf7\xff\0\0\0\0", identification=known["identification"])
    sent = [udp4(b"hello", **known), tcp4(b"x" * 1300, ip=known), echo]
    assert through(pair_of(suite, 4, port), *sent) == sent
    sent = [udp6(b"hello"), tcp6(b"x" * 1300), ip6(58, b"\x80" + bytes(7))]
    assert through(pair_of(suite, 6, port), *sent) == sent


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("suite", AHS, ids=str)
def test_ah_gives_back_what_it_took(suite: Suite, mode: Mode) -> None:
    for version in (4, 6):
        pair = pair_of(suite, version, mode=mode)
        sent = [udp4(b"hello"), tcp4(b"x" * 1200)] if version == 4 or mode is Mode.TUNNEL else []
        sent += [udp6(b"hello"), tcp6(b"x" * 1200)] if version == 6 or mode is Mode.TUNNEL else []
        assert through(pair, *sent) == sent


@pytest.mark.parametrize("version", [4, 6])
def test_scapy_opens_transport_mode(version: int) -> None:
    pair = pair_of(CBC_SHA256, version)
    packet = udp4(b"for scapy", tos=0x28, ttl=9) if version == 4 else udp6(b"for scapy", hop_limit=9)
    (transmit,) = pair.send(tun(packet))
    assert transmit.whole
    encryption, _, integrity = keys(CBC_SHA256)
    sa = SecurityAssociation(
        ESP, spi=0x1004 if version == 4 else 0x1006, crypt_algo="AES-CBC", crypt_key=encryption,
        auth_algo="SHA2-256-128", auth_key=integrity,
    )  # fmt: skip
    outer = (IP if version == 4 else IPv6)(bytes(transmit.buffers[0]))
    assert bytes(sa.decrypt(outer)) == packet


@pytest.mark.parametrize("integ", _SCAPY_INTEG)
@pytest.mark.parametrize("version", [4, 6])
def test_scapy_verifies_ah(version: int, integ: Integ) -> None:
    suite = next(suite for suite in AHS if suite.integ is integ and not suite.esn)
    pair = pair_of(suite, version)
    packet = tcp4(b"for scapy", ip={"tos": 0x28, "ttl": 9}) if version == 4 else tcp6(b"for scapy")
    (transmit,) = pair.send(tun(packet))
    sa = SecurityAssociation(
        AH, spi=0x1004 if version == 4 else 0x1006, auth_algo=_SCAPY_INTEG[integ], auth_key=keys(suite)[2]
    )
    outer = (IP if version == 4 else IPv6)(bytes(transmit.buffers[0]))
    assert outer[AH].spi == sa.spi
    assert bytes(sa.decrypt(outer)).endswith(b"for scapy")


@pytest.mark.parametrize("integ", [*_SCAPY_INTEG])
def test_scapys_ah_is_opened(integ: Integ) -> None:
    suite = next(suite for suite in AHS if suite.integ is integ and not suite.esn)
    sa = SecurityAssociation(AH, spi=0x1004, auth_algo=_SCAPY_INTEG[integ], auth_key=keys(suite)[2])
    made = bytes(sa.encrypt(IP(src=A4, dst=B4, ttl=7, tos=3, id=99) / UDP(sport=1, dport=2) / b"scapy's"))
    plane = pair_of(suite).right
    plane.inbound([WireDatagrams(mirrored(along(4)), made[20:], 0, 3, 51, made[:20])], 1)
    (frame,) = written(drain(plane))
    assert bytes(IP(packet_of(frame))[UDP].payload) == b"scapy's"


@pytest.mark.parametrize("port", [0, 4500])
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("suite", [GCM, CBC_SHA256, AHS[0]])
def test_superpackets(suite: Suite, version: int, port: int) -> None:
    if suite in AHS and port:
        return
    data = bytes(range(256)) * 40
    packet = tcp4(data, seq=5) if version == 4 else tcp6(data, seq=5)
    start = 20 if version == 4 else 40
    gso = GSO_TCPV4 if version == 4 else GSO_TCPV6
    pair = pair_of(suite, version, port)
    transmits = pair.send(tun(packet, gso, 1000, NEEDS_CSUM, start, 16))
    count = sum(len(transmit.buffers) for transmit in transmits)
    assert count == -(-len(data) // 1000)
    frames = pair.receive(transmits)
    assert b"".join(join(frame)[1][start + 20 :] for frame in frames) == data
    assert pair.right.counters().inbound_out == count


def test_options_and_extension_headers() -> None:
    router_alert, padded = b"\x94\x04\0\0", b"\x94\x04\0\0\x01\x01\x01\0"
    for suite in (GCM, CBC_SHA256, *AHS[:3]):
        sent = [udp4(b"with options", options=router_alert), udp4(b"padded", options=padded)]
        pair = pair_of(suite)
        (transmit,) = pair.send(*map(tun, sent))
        assert bytes(transmit.buffers[0])[20:24] == router_alert
        assert through(pair_of(suite), *sent) == sent
        chain = bytes(
            IPv6(src=A6, dst=B6)
            / IPv6ExtHdrHopByHop(options=[PadN(optdata=b"\0\0\0\0")])
            / IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0\0\0\0")])
            / UDP(sport=1, dport=2)
            / b"after a chain"
        )
        (whole,) = pair_of(suite, 6).send(tun(chain))
        octets = bytes(whole.buffers[0])
        # Hop-by-hop stays outside; destination options without a routing header behind them go inside.
        assert (octets[6], octets[40]) == (0, 51 if suite in AHS else 50)
        assert through(pair_of(suite, 6), chain) == [chain]


def _one(suite: Suite, packet: bytes, version: int = 4, **sa: Any) -> tuple[Pair, WireDatagrams]:
    pair = pair_of(suite, version, **sa)
    (transmit,) = pair.send(tun(packet))
    (item,) = arrivals(transmit)
    return pair, item


def _drops(plane: ReferenceDataPlane) -> dict[DropReason, int]:
    return {reason: count for reason, count in plane.drops().items() if count}


@pytest.mark.parametrize("at", [0, 2, 4, 9, 12, 16, 20, 23])
def test_ah_covers_what_does_not_change_on_the_way(at: int) -> None:
    pair, item = _one(AHS[0], udp4(b"covered", options=b"\x94\x04\0\0"))
    header = bytearray(item.header)
    header[at] ^= 1
    pair.right.inbound([WireDatagrams(item.path, item.data, 0, 0, 51, bytes(header))], 1)
    drain(pair.right)
    assert set(_drops(pair.right)) <= {DropReason.INTEGRITY, DropReason.INNER_MALFORMED, DropReason.MALFORMED}
    assert _drops(pair.right)


@pytest.mark.parametrize("at", [1, 8, 10])
def test_ah_leaves_out_what_changes_on_the_way(at: int) -> None:
    pair, item = _one(AHS[0], udp4(b"covered"))
    header = bytearray(item.header)
    header[at] ^= 1
    pair.right.inbound([WireDatagrams(item.path, item.data, 0, 0, 51, bytes(header))], 1)
    assert len(written(drain(pair.right))) == 1


@settings(deadline=None)
@given(st.data())
def test_no_octet_of_ah_or_payload_may_change(data: st.DataObject) -> None:
    suite = data.draw(st.sampled_from(AHS))
    version = data.draw(st.sampled_from([4, 6]))
    pair, item = _one(suite, udp4(b"payload") if version == 4 else udp6(b"payload"), version)
    changed = bytearray(item.data)
    changed[data.draw(st.integers(0, len(changed) - 1))] ^= data.draw(st.integers(1, 255))
    pair.right.inbound([WireDatagrams(item.path, bytes(changed), 0, 0, 51, item.header)], 1)
    assert written(drain(pair.right)) == []
    assert sum(_drops(pair.right).values()) == 1


def test_drops_by_name() -> None:
    pair, item = _one(AHS[0], udp4(b"twice"))
    pair.right.inbound([item, item], 1)
    pair.right.inbound(
        [WireDatagrams(item.path, item.data, 0, 0, 50, item.header)], 1
    )  # AH's SPI where ESP's stands
    pair.right.inbound([WireDatagrams(item.path, bytes(item.data)[:11], 0, 0, 51, item.header)], 1)
    pair.right.inbound([WireDatagrams(item.path, bytes(item.data)[:20], 0, 0, 51, item.header)], 1)
    fragment = bytearray(item.header)
    fragment[6] |= 0x20
    pair.right.inbound([WireDatagrams(item.path, item.data, 0, 0, 51, bytes(fragment))], 1)
    assert len(written(drain(pair.right))) == 1
    drops = _drops(pair.right)
    assert drops[DropReason.REPLAYED] == 1
    assert drops[DropReason.SHORT_PACKET] == 2
    assert drops[DropReason.OUTER_FRAGMENT] == 1
    assert drops[DropReason.UNKNOWN_SPI] == 1
    esp, item = _one(GCM, udp4(b"esp"))
    forged = b"\x11\x05\0\0" + bytes(item.data)[:8] + bytes(24)
    esp.right.inbound([WireDatagrams(item.path, forged, 0, 0, 51, item.header)], 1)
    assert _drops(esp.right) == {DropReason.WRONG_PROTOCOL: 1}


@pytest.mark.parametrize("port", [0, 4500])
@pytest.mark.parametrize("suite", [GCM, CBC_SHA256, AHS[0]])
@pytest.mark.parametrize("version", [4, 6])
def test_the_largest_packet_fits_the_path_exactly(suite: Suite, version: int, port: int) -> None:
    if suite in AHS and port:
        return
    for mtu in range(1400, 1420):
        pair = pair_of(suite, version, port)
        pair.left.set_path_mtu(along(version, port).remote, mtu, 0)
        largest = pair.left.tun_mtu()
        for size, fits in ((largest, True), (largest + 1, False)):
            (sent,) = pair.send(tun(udp4(bytes(size - 28)) if version == 4 else udp6(bytes(size - 48))))
            if sent.whole:
                assert len(sent.buffers) == (1 if fits else 2)
                assert all(len(buffer) <= mtu for buffer in sent.buffers)
                assert len(sent.buffers[0]) > mtu - 24
            else:
                outer = len(sent.buffers[0]) + (28 if version == 4 else 48)
                assert (outer <= mtu) == fits
                assert sent.df == fits
                assert outer > mtu - 24


@pytest.mark.parametrize("suite", [GCM, AHS[0]])
def test_a_datagram_without_df_is_protected_whole_and_fragmented_after(suite: Suite) -> None:
    pair = pair_of(suite)
    packet = udp4(bytes(4000), flags=0)
    (transmit,) = pair.send(tun(packet))
    pieces = [IP(bytes(buffer)) for buffer in transmit.buffers]
    assert len(pieces) == 3
    assert all(len(piece) <= 1500 for piece in pieces)
    joined = b"".join(bytes(piece.payload) for piece in pieces)
    front = IP(bytes(pieces[0])[:20])
    front.flags, front.frag, front.len, front.chksum = 0, 0, 20 + len(joined), None
    header = bytes(front)[:20]
    pair.right.inbound([WireDatagrams(mirrored(along(4)), joined, 0, 0, pieces[0].proto, header)], 1)
    (frame,) = written(drain(pair.right))
    assert packet_of(frame)[20:] == packet[20:]


def test_a_nat_between_the_ends() -> None:
    # The peer is 10.1.0.5 behind 192.0.2.1; its checksums cover 10.1.0.5, and we see 192.0.2.1.
    pair = pair_of(GCM, 4, 4500)
    (transmit,) = pair.send(tun(tcp4(b"covered by the old address")))
    seen = path(B4, "192.0.2.1", 4500)
    plane = ReferenceDataPlane()
    plane.load(snapshot(), 0)
    plane.add_sa(sa_params(GCM, inbound=True, along=seen, spi=0x1004, mode=Mode.TRANSPORT, nat=True), 0)
    plane.inbound([WireDatagrams(seen, transmit.buffers[0])], 1)
    (frame,) = written(drain(plane))
    packet = IP(packet_of(frame))
    assert packet.src == "192.0.2.1"
    sum_ = packet[TCP].chksum
    del packet[TCP].chksum
    assert IP(bytes(packet))[TCP].chksum == sum_


def _bundle(outer: Suite, inner: Suite, version: int, mode: Mode) -> tuple[ReferenceDataPlane, ReferenceDataPlane]:
    left, right = ReferenceDataPlane(), ReferenceDataPlane()
    for plane, inbound, way in ((left, False, along(version)), (right, True, mirrored(along(version)))):
        plane.load(snapshot(), 0)
        name = f"v{version}"
        plane.add_sa(
            sa_params(inner, inbound=inbound, spi=0x2001, child=1, bundle=2, along=way, mode=mode, name=name), 0
        )
        if not inbound:
            assert _sends(plane, version) == []
        plane.add_sa(
            sa_params(
                outer, inbound=inbound, spi=0x2002, child=2, bundle=1, along=way, mode=Mode.TRANSPORT, name=name
            ),
            0,
        )
    return left, right


def _sends(plane: ReferenceDataPlane, version: int) -> list[Transmit]:
    packet = udp4(b"in a bundle") if version == 4 else udp6(b"in a bundle")
    plane.outbound([TunFrame(tun(packet))], 1)
    return [output for output in drain(plane) if isinstance(output, Transmit)]


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("version", [4, 6])
def test_ah_around_esp(version: int, mode: Mode) -> None:
    left, right = _bundle(AHS[0], GCM, version, mode)
    left.release(f"v{version}", 1)
    drain(left)
    (transmit,) = _sends(left, version)
    octets = bytes(transmit.buffers[0])
    outer = (IP if version == 4 else IPv6)(octets)
    assert outer[AH].nh == 50
    (item,) = arrivals(transmit)
    right.inbound([item], 1)
    (frame,) = written(drain(right))
    assert packet_of(frame) == (udp4(b"in a bundle") if version == 4 else udp6(b"in a bundle"))
    # Either half alone is refused.
    esp_only = bytes(item.data)[28 if version == 4 else 32 :]
    right.inbound([WireDatagrams(item.path, esp_only, 0, 0, 50, item.header)], 1)
    assert _drops(right) == {DropReason.BUNDLE_INCOMPLETE: 1}


def test_ah_alone_where_a_bundle_is_demanded() -> None:
    _, right = _bundle(AHS[0], GCM, 4, Mode.TRANSPORT)
    alone = ReferenceDataPlane()
    alone.load(snapshot(), 0)
    alone.add_sa(sa_params(AHS[0], inbound=False, spi=0x2002, along=along(4), mode=Mode.TRANSPORT), 0)
    (transmit,) = _sends(alone, 4)
    right.inbound(arrivals(transmit), 1)
    assert written(drain(right)) == []
    assert _drops(right) == {DropReason.BUNDLE_INCOMPLETE: 1}
