"""AH around ESP between two Mirrorgates, negotiated: opened by another decoder, and rekeyed."""

from __future__ import annotations

from typing import Any

import pytest
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6
from scapy.layers.ipsec import AH, ESP, SecurityAssociation

from policy.proposals import ProtocolId
from tests.sim.test_hosts import BUNDLE, everybody, flags, world_of
from tests.support.sim.net import Kind
from tests.support.sim.packets import traffic
from tests.support.sim.policies import action
from tests.support.sim.scenes import A_TO_B, B_TO_A, policies, sites
from tunnel.dataplane.reference import ReferenceDataPlane

HOSTS = [("192.0.2.1", "198.51.100.1"), ("2001:db8::1", "2001:db8:1::1")]


@pytest.mark.parametrize(("a", "b"), HOSTS, ids=["ipv4", "ipv6"])
def test_scapy_opens_it_layer_by_layer(a: str, b: str) -> None:
    world, hosts = world_of(a, b)
    for host in hosts:
        host.assign(everybody(flags(BUNDLE)))
        host.boot()
    sent = [world.probe(traffic(a, b, 17)), world.probe(traffic(b, a, 17))]
    world.run(3)
    sent += [world.probe(traffic(a, b, 17)), world.probe(traffic(b, a, 17))]
    world.run(1)
    assert world.missing(sent) == []
    opened = 0
    for _, _, packet in world.recording:
        assert packet.kind in (Kind.AH, Kind.UDP), "nothing but AH, and IKE"
        if packet.kind is not Kind.AH:
            continue
        sender = next(host for host in hosts if host.owns(packet.source.address))
        header = IP if packet.source.address.version == 4 else IPv6
        outer = header(packet.header + packet.payload)
        ah, esp = _associations(sender.gateway.dataplane, outer[AH].spi)  # type: ignore[union-attr]
        assert outer[AH].nh == 50
        inner = esp.decrypt(header(bytes(ah.decrypt(outer))))
        assert inner.src == str(packet.source.address)
        assert inner.haslayer("UDP")
        opened += 1
    assert opened >= 4


def _associations(plane: Any, spi: int) -> tuple[SecurityAssociation, SecurityAssociation]:
    """Return scapy's AH of *spi* and the ESP within, with the keys that *plane* sends with."""
    assert isinstance(plane, ReferenceDataPlane)
    params = [sa.params for each in plane._sad.outbound.values() for sa in each]
    ah = next(each for each in params if each.spi == spi and each.protocol is ProtocolId.AH)
    esp = next(each for each in params if each.child == ah.bundle)
    assert (ah.bundle, esp.bundle) == (esp.child, ah.child)
    return (
        SecurityAssociation(
            AH, spi=ah.spi, auth_algo="SHA2-256-128", auth_key=ah.integrity_key.reveal(), esn_en=ah.suite.esn
        ),
        SecurityAssociation(
            ESP, spi=esp.spi, crypt_algo="AES-CBC", crypt_key=esp.encryption_key.reveal(),
            auth_algo="SHA2-256-128", auth_key=esp.integrity_key.reveal(), esn_en=esp.suite.esn,
        ),
    )  # fmt: skip


def test_a_tunnel_is_rekeyed_by_octets_and_loses_nothing() -> None:
    scene = sites(1, policies(action(BUNDLE, lifetime_bytes=20_000)))
    scene.establish()
    before = scene.children(scene.a)
    streams = [scene.world.stream(flow, every_s=0.02, duration_s=20) for flow in (A_TO_B, B_TO_A)]
    scene.world.run(21)
    assert [number for stream in streams for number in scene.world.missing(stream)] == []
    scene.settle()
    assert len(scene.children(scene.a)) == 2
    assert min(scene.children(scene.a)) > max(before)
