"""Who talks with whom under the three default policies: the simulator against the published descriptions."""

from __future__ import annotations

from dataclasses import replace

import pytest

from policy.defaults import BUILT_IN_POLICIES, authenticated
from policy.model import Policy, PresharedKey
from policy.secret import Secret
from tests.support.combinations import (
    CLEAR,
    EXPECTED,
    KINDS,
    NONE,
    NOTHING,
    POLICIES,
    PROTECTED,
    table,
)
from tests.support.sim.host import Host
from tests.support.sim.packets import Traffic, traffic
from tests.support.sim.world import World

A, B = "192.0.2.1", "198.51.100.1"
TO_B = traffic(A, B, 6, 40000, 8000)


def built_in(kind: str) -> Policy | None:
    """Return the built-in policy of that short name, with a preshared key; None for no IPsec."""
    if kind == NONE:
        return None
    policy = next(policy for policy in BUILT_IN_POLICIES if policy.name == POLICIES[kind])
    policy = authenticated(policy, (PresharedKey(secret=Secret(b"what both hosts know")),))
    return replace(policy, ike=replace(policy.ike, proposals=policy.ike.proposals[1:2]))


def pair(one: str, other: str, seed: int = 1) -> tuple[World, Host, Host]:
    world = World(seed, keep_packets=True)
    a, b = world.host("a", A), world.host("b", B)
    for host, kind in ((a, one), (b, other)):
        host.assign(built_in(kind))
        if kind == NONE:
            host.crash()  # no daemon at all
        else:
            host.boot()
    return world, a, b


def talk(world: World, flow: Traffic, rounds: int = 4) -> str:
    """Let the two hosts ask and answer a few times; return how the last exchange went."""
    answer = flow.reply()
    how = NOTHING
    for _ in range(rounds):
        asked = world.probe(flow)
        world.run(4)
        if not world.arrived(asked):
            how = NOTHING
            continue
        answered = world.probe(answer)
        world.run(4)
        if not world.arrived(answered):
            how = NOTHING
            continue
        ways = {world.probes[number].deliveries[0].tunnelled for number in (asked, answered)}
        how = PROTECTED if ways == {True} else CLEAR if ways == {False} else "half"
    return how


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    seen = {(one, other): talk(pair(one, other)[0], TO_B) for one in KINDS for other in KINDS}
    with capsys.disabled():
        print(f"\n{table(seen)}")
    assert seen == EXPECTED
