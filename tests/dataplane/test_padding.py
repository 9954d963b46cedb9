"""Traffic flow confidentiality (RFC 4303 sections 2.6 and 2.7): padded packets and dummies, opened and counted."""

from __future__ import annotations

import pytest
from scapy.layers.inet import IP
from scapy.layers.ipsec import ESP, SecurityAssociation

from policy.model import FULL_PADDING
from policy.proposals import Suite
from tests.support.packets import CBC_SHA256, CHACHA, GCM, Pair, drain, keys, packet_of, tcp4, tun, udp4, udp6
from tunnel.dataplane.contract import DropReason, Transmit
from tunnel.dataplane.offload import GSO_TCPV4, NEEDS_CSUM


@pytest.mark.parametrize("suite", [GCM, CHACHA, CBC_SHA256])
def test_packets_of_all_sizes_look_alike(suite: Suite) -> None:
    pair = Pair(suite, padding=256)
    packets = [udp4(bytes(size)) for size in (0, 1, 100, 200)] + [udp6(bytes(range(50)))]
    transmits = pair.send(*map(tun, packets))
    sizes = {len(buffer) for transmit in transmits for buffer in transmit.buffers}
    assert len(sizes) == 1
    assert [packet_of(frame) for frame in pair.receive(transmits)] == packets


def test_full_padding_fills_the_path_and_no_more() -> None:
    pair = Pair(GCM, padding=FULL_PADDING)
    (transmit,) = pair.send(tun(udp4(b"small")))
    largest = Pair(GCM)
    (full,) = largest.send(tun(udp4(bytes(largest.left.tun_mtu() - 28))))
    assert len(transmit.buffers[0]) == len(full.buffers[0])
    assert [packet_of(frame) for frame in pair.receive([transmit])] == [udp4(b"small")]


def test_a_superpacket_is_padded_segment_by_segment() -> None:
    pair = Pair(GCM, padding=1000)
    data = bytes(index & 0xFF for index in range(3000))
    transmits = pair.send(tun(tcp4(data), GSO_TCPV4, 700, NEEDS_CSUM, 20, 16))
    assert {len(buffer) for transmit in transmits for buffer in transmit.buffers} == {8 + 8 + 1000 + 4 + 16}
    assert b"".join(packet_of(frame)[40:] for frame in pair.receive(transmits)) == data


def test_a_dummy_is_opened_and_thrown_away() -> None:
    pair = Pair(CBC_SHA256)
    pair.left.send_dummy(0x1004, 300, 1)
    (transmit,) = [output for output in drain(pair.left) if isinstance(output, Transmit)]
    encryption, _, integrity = keys(CBC_SHA256)
    security = SecurityAssociation(
        ESP, spi=0x1004, crypt_algo="AES-CBC", crypt_key=encryption, auth_algo="SHA2-256-128", auth_key=integrity
    )
    packet = IP(src="192.0.2.1", dst="192.0.2.2", proto=50) / bytes(transmit.buffers[0])
    opened = security.decrypt(IP(bytes(packet)))
    assert opened.proto == 59, "no next header (section 2.6)"
    assert pair.receive([transmit]) == []
    assert pair.right.drops()[DropReason.DUMMY] == 1
    assert pair.left.counters().esp_out == 1
    (real,) = pair.send(tun(udp4(b"real")))
    assert [packet_of(frame) for frame in pair.receive([real])] == [udp4(b"real")]


def test_dummies_keep_within_the_path_and_the_limits_of_the_sa() -> None:
    pair = Pair(GCM, padding=FULL_PADDING, hard_bytes=100)
    pair.left.send_dummy(0x1004, 65535, 1)
    (transmit,) = [output for output in drain(pair.left) if isinstance(output, Transmit)]
    assert len(transmit.buffers[0]) <= 1500 - 28
    pair.left._sad.outbound[0x1004][0].sequence = 2**32 - 2
    pair.left.send_dummy(0x1004, 10, 1)
    pair.left.send_dummy(77, 10, 1)
    assert drain(pair.left) == []
