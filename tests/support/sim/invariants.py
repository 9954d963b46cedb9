"""What must hold: after every step, at every delivery, and when nothing is under way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from policy.clock import SECOND
from policy.spd import Disposition
from tests.support.sim.packets import flow_of
from tunnel.dataplane.contract import Counters

if TYPE_CHECKING:
    from tests.support.sim.host import Delivery, Host
    from tests.support.sim.world import World

#: Bounds on what a simulated host, with its few rules and peers, may ever hold.
MAX_CHILDREN, MAX_DRAINING, MAX_IKE_SAS, MAX_HELD = 64, 256, 2100, 4096


def step(host: Host, spis: dict[int, int]) -> Iterator[str]:
    """Yield what is wrong with *host* now. *spis* remembers the Child SA of each inbound SPI in this life."""
    gateway = host.gateway
    if gateway is None:
        return
    counters = gateway.dataplane.counters()
    yield from (f"{host.name}: {wrong}" for wrong in accounting(counters, host))
    drops = sum(gateway.dataplane.drops().values())
    if drops != counters.outbound_drops + counters.inbound_drops:
        yield f"{host.name}: {drops} drops by reason, but {counters}"
    if counters.held > MAX_HELD:
        yield f"{host.name}: {counters.held} packets are held"
    if len(gateway.children) > MAX_CHILDREN or len(gateway.children.draining()) > MAX_DRAINING:
        yield f"{host.name}: {len(gateway.children)} Child SAs, {len(gateway.children.draining())} drain"
    for installed in gateway.children:
        sa = installed.sa
        if sa.spi_in < 256:
            yield f"{host.name}: SPI {sa.spi_in} is reserved (RFC 4303 section 2.1)"
        if spis.setdefault(sa.spi_in, sa.child) != sa.child:
            yield f"{host.name}: inbound SPI {sa.spi_in:08x} served Child SAs {spis[sa.spi_in]} and {sa.child}"
        entry = gateway.snapshot.spd.entry(sa.entry)
        if entry is None or entry.protection is None or entry.protection.peer != sa.peer:
            yield f"{host.name}: Child SA {sa.child} with {sa.peer} serves {sa.entry}, which is not that peer's"
        elif not all(entry.selectors.covers(pair) for pair in sa.selectors):
            yield f"{host.name}: Child SA {sa.child} has wider selectors than {sa.entry}"
    deadline = gateway.deadline()
    if deadline is not None and deadline < host.world.now - SECOND:
        yield f"{host.name}: the deadline {deadline} is long past"


def accounting(counters: Counters, host: Host) -> Iterator[str]:
    """Yield where packets vanished or came from nowhere."""
    seen = host.ledger
    if counters.outbound_in != counters.outbound_out + counters.outbound_drops + counters.held:
        yield f"outbound packets do not add up: {counters}"
    if counters.inbound_in != counters.inbound_out + counters.inbound_drops + counters.control_in:
        yield f"inbound packets do not add up: {counters}"
    if counters.outbound_in != seen.into_tun or counters.inbound_in != seen.from_wire:
        yield f"the gateway counted other packets than came: {counters}, {seen}"
    if seen.out_of_tun != counters.inbound_out + counters.errors_out:
        yield f"the gateway counted other packets than it wrote: {counters}, {seen}"
    if seen.esp_out != counters.esp_out:
        yield f"the gateway counted other ESP packets than it sent: {counters}, {seen}"


def delivery(world: World, receiver: Host, got: Delivery, packet: bytes) -> str | None:
    """Return what is wrong with the delivery of a probe to an application, or None."""
    probe = world.probes[got.number]
    expected = world.translated(probe)
    if not receiver.owns(expected.destination):
        return f"probe {got.number} for {expected.destination} came out at {receiver.name}"
    if got.flow != flow_of(expected):
        return f"probe {got.number} was sent as {flow_of(expected)} and delivered as {got.flow}"
    if got.tunnelled:
        if probe.deliveries:
            return f"probe {got.number} was delivered twice"
        entry = receiver.steered.spd.lookup_inbound(got.flow)
        if entry is None or entry.disposition is Disposition.DISCARD:
            return f"probe {got.number} came through an SA to {receiver.name}, whose policy is {entry}"
        if probe.disposition is not Disposition.PROTECT:
            return f"probe {got.number} came through an SA, although its sender had no such policy"
    elif probe.disposition is Disposition.PROTECT and not probe.clear:
        return f"probe {got.number} of a protected flow came in clear"
    return None


def quiescent(hosts: list[Host]) -> Iterator[str]:
    """Yield Child SAs of which only one end knows, once nothing is under way."""
    pairs = [
        (host, installed.sa) for host in hosts if host.gateway is not None for installed in host.gateway.children
    ]
    received, sent = {sa.spi_in for _, sa in pairs}, {sa.spi_out for _, sa in pairs}
    for host, sa in pairs:
        if sa.spi_out not in received:
            yield f"{host.name}: no end receives on SPI {sa.spi_out:08x}"
        if sa.spi_in not in sent:
            yield f"{host.name}: no end sends on SPI {sa.spi_in:08x}"
    for host in hosts:
        if host.gateway is None:
            continue
        for ike_sa in host.gateway.ike.status(host.world.now):
            if ike_sa.state not in ("established", "closed"):
                yield f"{host.name}: IKE SA {ike_sa.spi_i.hex()} is still {ike_sa.state}"
