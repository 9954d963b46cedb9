"""Tunnels that hide how much is said: every packet of one size, and dummies while nothing is said."""

from __future__ import annotations

from dataclasses import replace

from policy.model import FULL_PADDING
from tests.support.sim.net import Kind
from tests.support.sim.policies import action
from tests.support.sim.scenes import A_TO_B, B_TO_A, policies, sites
from tunnel.dataplane.contract import DropReason


def test_packets_of_one_size_and_dummies_in_silence() -> None:
    cover = replace(action(), traffic_padding=FULL_PADDING, dummy_packets=10)
    scene = sites(1, policies(cover), keep_packets=True)
    scene.establish()
    world = scene.world
    silent = _sizes(scene, 10)
    assert 240 < len(silent) < 560, "ten a second from each end, seen on two links, more or less"
    assert len(set(silent)) == 1, "dummies look like packets"
    streams = [world.stream(flow, every_s=0.05, duration_s=10) for flow in (A_TO_B, B_TO_A)]
    busy = _sizes(scene, 11)
    assert len(busy) > 400
    assert set(busy) == set(silent)
    assert [number for stream in streams for number in world.missing(stream)] == []
    assert scene.a.gateway is not None
    assert scene.a.gateway.dataplane.drops()[DropReason.DUMMY] > 100
    scene.a.crash()  # who stops, stops with its SAs
    assert scene.b.gateway is not None
    for child in [installed.sa.child for installed in scene.b.gateway.children]:
        scene.b.gateway.ike.terminate_child(child, world.now)
    world.run(1)
    assert _sizes(scene, 5) == []


def _sizes(scene, seconds: float) -> list[int]:  # type: ignore[no-untyped-def]
    world = scene.world
    begun = len(world.recording)
    world.run(seconds)
    packets = [packet for _, _, packet in world.recording[begun:]]
    sealed = [packet for packet in packets if packet.kind in (Kind.ESP, Kind.UDP) and len(packet.payload) > 1]
    return [packet.size for packet in sealed if packet.payload[:4] != bytes(4)]  # IKE opens with the marker
