"""A NAT before one end: port 4500, keepalives, and bindings that move (RFC 3948, RFC 7296 section 2.23)."""

from __future__ import annotations

import pytest

from policy.model import Encapsulation
from tests.support.sim.net import Kind, Packet
from tests.support.sim.packets import traffic
from tests.support.sim.policies import action, filter_of, policy, rule
from tests.support.sim.scenes import A_TO_B, B_TO_A, GATEWAY_B, NAT_A, policies, sites
from tests.support.sim.world import World


@pytest.mark.parametrize("encapsulation", list(Encapsulation))
def test_behind_a_nat_everything_goes_over_port_4500(encapsulation: Encapsulation) -> None:
    scene = sites(both=policies(action(encapsulation=encapsulation), any_peer=True), nat=True, keep_packets=True)
    if encapsulation is Encapsulation.NONE:
        # ESP itself does not pass a NAT: there may be an SA or not, but nothing goes in clear.
        scene.world.probe(A_TO_B)
        scene.world.run(5)
        return
    scene.establish()
    mark = len(scene.world.recording)
    numbers = [scene.world.probe(B_TO_A), scene.world.probe(A_TO_B)]
    scene.world.run(1)
    assert scene.world.missing(numbers) == []
    after = [packet for _, link, packet in scene.world.recording[mark:] if link == "a"]
    assert {(packet.kind, packet.source.port) for packet in after if packet.source.port < 20000} == {
        (Kind.UDP, 4500)
    }
    peer = scene.b.status()["peers"][0]["ike_sas"][0]  # type: ignore[index]
    assert (peer["nat"], NAT_A in peer["path"]) == ("remote", True)


def test_keepalives_keep_the_binding_of_an_idle_tunnel() -> None:
    scene = sites(nat=True, nat_expiry_s=60, keep_packets=True)
    scene.establish()
    scene.world.run(300)
    # Nothing was said for five minutes; B can still reach A.
    number = scene.world.probe(B_TO_A)
    scene.world.run(1)
    assert scene.world.arrived(number)
    keepalives = [packet for _, link, packet in scene.world.recording if link == "a" and packet.payload == b"\xff"]
    assert len(keepalives) >= 5
    assert {packet.source.port for packet in keepalives} == {4500}


def test_the_path_follows_a_binding_that_moves() -> None:
    scene = sites(nat=True)
    scene.establish()
    scene.world.nats["a"].rebind()
    # A speaks first: B learns the new port from an authenticated packet, and answers there.
    forward = scene.world.probe(A_TO_B)
    scene.world.run(0.5)
    back = scene.world.probe(B_TO_A)
    scene.world.run(0.5)
    assert scene.world.missing([forward, back]) == []
    numbers = scene.world.stream(A_TO_B, every_s=0.1, duration_s=20)
    numbers += scene.world.stream(B_TO_A, every_s=0.1, duration_s=20)
    for at in (3, 6, 9):
        scene.world.schedule.after(at * 10**9, scene.world.nats["a"].rebind)
    scene.world.run(22)
    # What was on its way to a port that is gone is lost, no more.
    assert len(scene.world.missing(numbers)) <= 6
    scene.settle()


def test_a_rebinding_while_idle_is_found_by_the_keepalive_or_liveness_check() -> None:
    scene = sites(nat=True)
    scene.establish()
    scene.world.nats["a"].rebind()
    scene.world.run(60)
    number = scene.world.probe(B_TO_A)
    scene.world.run(10)
    assert scene.world.arrived(number)


def test_a_stranger_cannot_move_the_path() -> None:
    scene = sites(nat=True, keep_packets=True)
    scene.establish()
    world = scene.world
    mallory = world.host("m", "203.0.113.66")
    mallory.assign(None)
    esp = [p for _, link, p in world.recording if link == "b" and p.destination.port == 4500][-1]
    for payload in (esp.payload, esp.payload[:-1] + b"?", b"\xff", bytes(60)):
        source = mallory.addresses[0]
        world.router.receive(
            Packet(Kind.UDP, type(esp.source)(source, 4500), esp.destination, payload), mallory.link
        )
    world.run(1)
    assert scene.b.gateway is not None
    (installed,) = scene.b.gateway.children
    assert str(installed.sa.path.remote.address) == NAT_A


def test_two_sites_behind_nats_and_one_gateway() -> None:
    world = World(3)
    gateway = world.host("gw", GATEWAY_B, networks=("10.9.0.0/24",))
    clients = [
        world.host(f"c{n}", f"192.168.{n}.2", networks=(f"10.{n}.0.0/24",), nat=f"203.0.113.{n}") for n in (1, 2)
    ]
    rules = []
    for number, client in enumerate(clients, 1):
        identity = f"c{number}.example"
        pair = filter_of(f"10.{number}.0.0/24", "10.9.0.0/24")
        client.assign(policy(rule("Home", pair, endpoint=GATEWAY_B), local_id=identity))
        rules.append(rule(f"Client {number}", pair, endpoint="any", remote_id=identity))
    gateway.assign(policy(*rules))
    for host in (gateway, *clients):
        host.boot()
    flows = [traffic(f"10.{number}.0.5", "10.9.0.9") for number in (1, 2)]
    numbers = [world.probe(flow) for flow in flows]
    world.run(2)
    numbers += [world.probe(flow.reply()) for flow in flows]
    world.run(2)
    assert world.missing(numbers) == []
    world.check_quiet()
