"""A host that one rule names and another rule means by "each host": one IKE SA carries what both rules protect."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from policy.defaults import REQUIRE_SECURITY, SECURE_SERVER, authenticated
from policy.model import Filter, FilterList, Policy, PresharedKey, Rule, Special
from policy.secret import Secret
from policy.selectors import AddressRange, PortRange
from tests.support.sim.host import Host
from tests.support.sim.packets import traffic
from tests.support.sim.world import World

A, B = "192.0.2.1", "198.51.100.1"


def policy_for(other: str) -> Policy:
    """Return Secure Server with a rule of its own for one port of *other*."""
    host = AddressRange.of(ip_address(other))
    filters = (
        Filter(source=Special.ME, destination=host, protocol=6, destination_port=PortRange(8000, 8000)),
        Filter(source=host, destination=Special.ME, protocol=6, destination_port=PortRange(8000, 8000)),
    )
    rule = Rule(
        name="Web", filter_list=FilterList(name="Web", filters=filters),
        filter_action=replace(REQUIRE_SECURITY, name="Web", inbound_clear=False),
    )  # fmt: skip
    policy = replace(SECURE_SERVER, rules=(rule, *SECURE_SERVER.rules))
    policy = authenticated(policy, (PresharedKey(secret=Secret(b"what both hosts know")),))
    return replace(policy, ike=replace(policy.ike, proposals=policy.ike.proposals[1:2]))


def pair(seed: int) -> tuple[World, Host, Host]:
    world = World(seed, keep_packets=True)
    a, b = world.host("a", A), world.host("b", B)
    for host, other in ((a, B), (b, A)):
        host.assign(policy_for(other))
        host.boot()
    return world, a, b


@pytest.mark.parametrize("named_first", [True, False])
def test_both_rules_share_an_ike_sa(named_first: bool) -> None:
    world, a, b = pair(7)
    flows = [traffic(A, B, 6, 40000, 8000), traffic(A, B, 17, 40000, 53)]
    flows = flows if named_first else flows[::-1]
    for flow in (*flows, *(flow.reply() for flow in flows)):
        world.probe(flow)
        world.run(4)
    for flow in (*flows, *(flow.reply() for flow in flows)):
        number = world.probe(flow)
        world.run(4)
        assert world.arrived(number)
        assert {delivery.tunnelled for delivery in world.probes[number].deliveries} == {True}
    for host in (a, b):
        peers = host.status()["peers"]
        assert isinstance(peers, list)
        assert [len(peer["ike_sas"]) for peer in peers if peer["ike_sas"]] == [1]
