"""Scenes that many scenarios open with: two sites and their gateways."""

from __future__ import annotations

from dataclasses import dataclass

from policy.model import FilterAction, Policy
from tests.support.sim.host import Host
from tests.support.sim.net import Faults
from tests.support.sim.packets import Traffic, traffic
from tests.support.sim.policies import filter_of, policy, rule
from tests.support.sim.world import World

A_TO_B = traffic("10.1.0.5", "10.2.0.9")
B_TO_A = A_TO_B.reply()
GATEWAY_A, GATEWAY_B = "192.0.2.1", "198.51.100.1"
NAT_A = "203.0.113.7"
#: What an idle tunnel may do in 10 s: a liveness check from each end and a rekey, each step and link counted.
IDLE_STEPS = 60


@dataclass(frozen=True, slots=True)
class Sites:
    """Site A (10.1.0.0/24) behind 192.0.2.1 and site B (10.2.0.0/24) behind 198.51.100.1."""

    world: World
    a: Host
    b: Host

    def up(self, host: Host | None = None) -> bool:
        """Whether a Child SA is up, at both ends or at *host*."""
        hosts = (self.a, self.b) if host is None else (host,)
        return all(h.gateway is not None and len(h.gateway.children) > 0 for h in hosts)

    def establish(self, flow: Traffic = A_TO_B) -> int:
        """Send a packet and wait until it arrived; return its number."""
        number = self.world.probe(flow)
        if not self.world.run_until(lambda: self.world.arrived(number) and self.up(), 30):
            self.world.violate("no tunnel came up")
        self.world.run(1)
        return number

    def children(self, host: Host) -> list[int]:
        """Return the Child SAs of *host*."""
        return [] if host.gateway is None else [installed.sa.child for installed in host.gateway.children]

    def settle(self, seconds: float = 60) -> None:
        """Let everything that is under way end; then both ends must agree, and timers must be few."""
        self.world.run(seconds)
        self.world.check_quiet()
        before = self.world.steps
        self.world.run(10)
        if self.world.steps - before > IDLE_STEPS:
            self.world.violate(f"{self.world.steps - before} things happen in 10 s of silence")


def policies(
    then: FilterAction | None = None,
    *,
    ike_lifetime_s: float = 8 * 3600,
    liveness_s: float | None = 30,
    secret_b: str = "a shared secret",
    seen_a: str = GATEWAY_A,
    filters: tuple[tuple[str, str], ...] = (("10.1.0.0/24", "10.2.0.0/24"),),
    any_peer: bool = False,
) -> tuple[Policy, Policy]:
    """Return the policies of A and B; *seen_a* is the address from which B sees A."""
    rules = (
        rule("LAN to LAN", *(filter_of(*pair) for pair in filters), endpoint=GATEWAY_B, then=then),
        rule(
            "LAN to LAN",
            *(filter_of(*pair) for pair in filters),
            endpoint="any" if any_peer else seen_a,
            then=then,
            secret=secret_b,
            remote_id="gw-a.example" if any_peer else None,
        ),
    )
    identity = "gw-a.example" if any_peer else None
    first = policy(
        rules[0], name="Site A", ike_lifetime_s=ike_lifetime_s, liveness_s=liveness_s, local_id=identity
    )
    second = policy(rules[1], name="Site B", ike_lifetime_s=ike_lifetime_s, liveness_s=liveness_s)
    return first, second


def sites(
    seed: int = 1,
    both: tuple[Policy, Policy] | None = None,
    *,
    nat: bool = False,
    nat_expiry_s: float = 120,
    faults: Faults | None = None,
    keep_packets: bool = False,
    coalesce: bool = False,
) -> Sites:
    """Return two booted sites with their policies in force; with *nat* gateway A is behind a NAT."""
    world = World(seed, keep_packets=keep_packets)
    address = "192.168.7.2" if nat else GATEWAY_A
    a = world.host(
        "a",
        address,
        networks=("10.1.0.0/24",),
        nat=NAT_A if nat else None,
        nat_expiry_s=nat_expiry_s,
        faults=faults,
        coalesce=coalesce,
    )
    b = world.host("b", GATEWAY_B, networks=("10.2.0.0/24",), coalesce=coalesce)
    first, second = both or policies(any_peer=nat)
    a.assign(first)
    b.assign(second)
    a.boot()
    b.boot()
    return Sites(world, a, b)
