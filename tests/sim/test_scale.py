"""A hub with hundreds of peers: no event costs more because of them, and their storms leave room for packets."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from ipaddress import IPv4Address, ip_address
from random import Random

import pytest

from policy.clock import SECOND, Nanos
from policy.compile import compile_policy
from policy.model import Policy
from policy.path import Endpoint, Path
from policy.spd import Snapshot
from tests.support.sim.policies import action, filter_of, policy, rule
from tunnel import pump
from tunnel.dataplane.contract import Transmit, WireDatagrams
from tunnel.gateway import Gateway
from tunnel.outputs import Output, Rekey

HUB = ip_address("198.51.100.1")
SPOKES = 150


class Node:
    """A gateway, what it spent, and when it wants to be woken."""

    def __init__(self, name: str, own: IPv4Address, rules: Policy, inside: str) -> None:
        random = Random(name)
        self.gateway = Gateway(entropy=random.randbytes)
        self.own = own
        self.inside = ip_address(inside)
        self.snapshot = self.compiled(rules, 1)
        self.deadline: Nanos | None = None
        self.calls = 0
        self.most_sent = 0

    def compiled(self, rules: Policy, generation: int) -> Snapshot:
        return compile_policy(rules, generation=generation, local_addresses=[self.own, self.inside])


class Star:
    """A hub and its spokes in virtual time, without loss or delay."""

    def __init__(self, spokes: int) -> None:
        self.now: Nanos = 10 * SECOND
        self.wire: deque[Transmit] = deque()
        self.nodes: dict[object, Node] = {}
        self.pairs = [filter_of(f"10.{n >> 8}.{n & 255}.0/24", "192.168.0.0/16") for n in range(spokes)]
        self.owns = [IPv4Address("203.0.0.1") + n for n in range(spokes)]
        self.hub = Node("hub", IPv4Address(HUB), self.rules(), "192.168.0.1")
        self.nodes[HUB] = self.hub
        for number, own in enumerate(self.owns):
            inside = f"10.{number >> 8}.{number & 255}.1"
            of_spoke = policy(rule("Hub", self.pairs[number], endpoint=str(HUB), then=action()))
            self.nodes[own] = Node(f"spoke {number}", own, of_spoke, inside)
        for node in self.nodes.values():
            self.do(node, lambda node=node: node.gateway.load(node.snapshot, self.now))  # type: ignore[misc]
            for other in self.owns if node is self.hub else [HUB]:
                self.do(node, lambda node=node, to=other: node.gateway.source(to, node.own, self.now))  # type: ignore[misc]

    def rules(self, **names: str) -> Policy:
        """Return the hub's policy; *names* gives some rules another name."""
        return policy(
            *(
                rule(names.get(f"R{n}", f"R{n}"), pair, endpoint=str(own), then=action())
                for n, (pair, own) in enumerate(zip(self.pairs, self.owns, strict=True))
            )
        )

    def do(self, node: Node, mutation: Callable[[], object]) -> None:
        outputs: list[Output] = []
        mutation()
        node.deadline = pump.drain(node.gateway, outputs.append)
        sent = [output for output in outputs if isinstance(output, Transmit)]
        node.calls += 1
        node.most_sent = max(node.most_sent, len(sent))
        self.wire.extend(sent)

    def dial_all(self) -> None:
        def start() -> None:
            for each in self.hub.snapshot.spd.entries:
                self.hub.gateway.start(each.id, None, self.now)
            self.hub.gateway.path_mtu(Endpoint(HUB, 0), 1500, self.now)  # a mutation, which carries the news

        self.do(self.hub, start)

    def run(self, duration: Nanos) -> None:
        end = self.now + duration
        while True:
            while self.wire:
                output = self.wire.popleft()
                to = self.nodes.get(output.path.remote.address)
                for data in output.buffers if to is not None else ():
                    datagram = WireDatagrams(Path(output.path.remote, output.path.local), bytes(data))
                    self.do(to, lambda to=to, d=datagram: to.gateway.handle_wire([d], self.now))  # type: ignore[misc,arg-type]
            waiting = [node for node in self.nodes.values() if node.deadline is not None]
            node = min(waiting, key=lambda each: each.deadline or 0, default=None)
            if node is None or node.deadline is None or node.deadline > end:
                break
            self.now = max(self.now, node.deadline)
            self.do(node, lambda node=node: node.gateway.handle_timeout(self.now))  # type: ignore[misc]
        self.now = end

    @property
    def up(self) -> int:
        return len(self.hub.gateway.children)


@pytest.fixture(scope="module")
def star() -> Star:
    made = Star(SPOKES)
    made.dial_all()
    made.run(5 * SECOND)
    return made


def test_all_peers_are_dialled_within_seconds(star: Star) -> None:
    assert star.up == SPOKES
    assert all(len(node.gateway.children) == 1 for node in star.nodes.values() if node is not star.hub)
    assert star.hub.most_sent <= 16, "a turn of the loop is bounded"


def test_a_rekey_of_all_loses_no_child_and_is_done_in_bounded_turns(star: Star) -> None:
    before = {pair.sa.child for pair in star.hub.gateway.children}
    star.hub.most_sent = 0
    star.do(star.hub, lambda: star.hub.gateway.command(Rekey(), star.now))
    star.run(2 * SECOND)
    after = {pair.sa.child for pair in star.hub.gateway.children}
    assert len(after) == SPOKES
    assert not before & after
    assert star.hub.most_sent <= 16, "a turn of the loop is bounded"


def test_a_changed_rule_disturbs_no_other(star: Star) -> None:
    before = {pair.sa.entry: pair.sa.spi_in for pair in star.hub.gateway.children}
    snapshot = star.hub.compiled(star.rules(R7="Seven"), 2)
    star.do(star.hub, lambda: star.hub.gateway.load(snapshot, star.now))
    star.run(SECOND)
    after = {pair.sa.entry: pair.sa.spi_in for pair in star.hub.gateway.children}
    assert {entry: spi for entry, spi in before.items() if not entry.startswith("R7/")} == after


def test_the_times_of_rekeys_are_spread(star: Star) -> None:
    times = sorted(sa.rekey_at or 0 for sa in star.hub.gateway.ike.status(star.now))
    lifetime = 8 * 3600 * SECOND
    assert times[-1] - times[0] > lifetime // 10, "80 to 95 % of the lifetime, each by its own chance"
    busiest = max(sum(at <= other < at + 60 * SECOND for other in times) for at in times)
    assert busiest < SPOKES // 10


def test_peers_that_vanish_together_are_asked_apart_and_dialled_gently() -> None:
    star = Star(SPOKES)
    star.dial_all()
    star.run(5 * SECOND)
    for own in star.owns:
        del star.nodes[own]
    star.hub.most_sent = 0
    star.run(100 * SECOND)
    assert star.up == 0, "nobody is there"
    assert star.hub.most_sent <= 16


def test_what_a_peer_costs_does_not_grow_with_their_number() -> None:
    def spent(spokes: int) -> float:
        star = Star(spokes)
        begun = time.process_time()
        star.dial_all()
        star.run(5 * SECOND)
        assert star.up == spokes
        return (time.process_time() - begun) / spokes

    few = min(spent(25) for _ in range(2))
    many = spent(250)
    # The loop above looks through all nodes at every turn, some 10 us each: hence not closer.
    assert many < 4 * few
