"""The data plane in Python: the reference that any faster one is compared with, octet for octet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container
from collections.abc import Mapping as MappingType
from dataclasses import replace

from policy.clock import Nanos
from policy.path import Endpoint, Path
from policy.spd import Snapshot
from tunnel.dataplane import esp, whole
from tunnel.dataplane.contract import (
    Activated,
    Counters,
    DataPlaneOutput,
    DropReason,
    SaParams,
    SaStats,
    TunFrame,
    TunOffload,
    WireDatagrams,
)
from tunnel.dataplane.hold import HoldLimits
from tunnel.dataplane.icmp import MIN_IPV6_MTU
from tunnel.dataplane.inbound import Inbound
from tunnel.dataplane.ledger import Ledger
from tunnel.dataplane.mtu import PathMtus
from tunnel.dataplane.outbound import Outbound
from tunnel.dataplane.outer import BASE
from tunnel.dataplane.sad import OutboundSa, Sa, Sad

#: The TUN's MTU while there is no SA to ask.
_DEFAULT_TUN_MTU = 1400
_LIMITS = HoldLimits()
_OFFLOAD = TunOffload()


class ReferenceDataPlane:
    """See ``DataPlane`` for the contract."""

    def __init__(self, *, hold: HoldLimits = _LIMITS, tun_features: TunOffload = _OFFLOAD) -> None:
        self._ledger = Ledger()
        self._sad = Sad()
        self._mtus = PathMtus()
        self._outbound = Outbound(self._ledger, self._sad, hold)
        self._inbound = Inbound(self._ledger, self._sad)
        self._inbound.offload = tun_features
        #: How many outbound SAs have which capacity: a handful of them, however many SAs there are.
        self._capacities: Counter[int] = Counter()

    def load(self, snapshot: Snapshot, now: Nanos) -> None:
        """Swap the policy; held packets of entries that vanished are dropped."""
        self._outbound.load(snapshot)
        self._inbound.admission.load(snapshot)

    def add_sa(self, params: SaParams, now: Nanos) -> None:
        """Install an SA. ValueError for a duplicate inbound SPI or an algorithm it cannot do."""
        sa = self._sad.add(params)
        if isinstance(sa, OutboundSa):
            self._fit(sa)
            if params.bundle is not None:  # the other half was there first
                for other in self._sad.outbound_of(params.bundle):
                    self._fit(other)
            self._outbound.forget_choices()
        else:
            self._inbound.admission.admit(sa)

    def activate(self, child: int) -> None:
        """Let the dormant outbound SA of *child* be chosen."""
        for sa in self._sad.outbound_of(child):
            sa.dormant = False
        for twin in self._sad.inbound_of(child):
            twin.awaiting = False
        self._outbound.forget_choices()

    def delete_sa(self, spi: int, *, inbound: bool, child: int | None = None) -> SaStats | None:
        """Remove an SA and wipe its keys; return its last counters, or None if there was none."""
        sa = self._sad.remove(spi, inbound=inbound, child=child)
        if sa is None:
            return None
        if isinstance(sa, OutboundSa):
            self._capacities[sa.capacity] -= 1
        self._outbound.forget_choices()
        sa.wipe()
        return sa.stats()

    def update_path(self, child: int, path: Path) -> None:
        """Send the packets of *child* along *path* from now on."""
        for sa in self._sad.outbound_of(child):
            if sa.params.nat:
                self._sad.nat_flows.move(sa.path.remote, path.remote)
            sa.path = path
            self._fit(sa)
        for twin in self._sad.inbound_of(child):
            twin.path, twin.seen_path, twin.reported_path = path, None, None

    def set_path_mtu(self, remote: Endpoint, mtu: int, now: Nanos) -> None:
        """Record the path MTU (octets of outer IP packet) toward *remote*, for ten minutes."""
        before = self._mtus.get(remote.address)
        self._mtus.learn(remote.address, mtu, now)
        if self._mtus.get(remote.address) != before:  # a hub is told of each of its peers, time and again
            self._fit_all()

    def query_sa(self, spi: int, *, inbound: bool, child: int | None = None) -> SaStats | None:
        """Return the counters of an SA."""
        sa = self._sad.inbound.get(spi) if inbound else self._sad.find_outbound(spi, child)
        return None if sa is None else sa.stats()

    def known_spis(self) -> Container[int]:
        """Return the SPIs of the inbound SAs, as a view that stays true."""
        return self._sad.inbound.keys()

    def drop_unknown(self, count: int) -> None:
        """Count packets that came for unknown SPIs and were dropped unseen."""
        self._ledger.inbound_in += count
        self._ledger.drop_inbound(DropReason.UNKNOWN_SPI, count)

    def send_dummy(self, child: int, octets: int, now: Nanos) -> None:
        """Send a packet that means nothing on the tunnel-mode ESP SA of *child* (RFC 4303 section 2.6)."""
        self._outbound.send_dummy(child, octets, now)

    def sas(self) -> list[SaParams]:
        """Return every SA, keys and all, with its present path: for the operator's capture."""
        sas: list[Sa] = [*self._sad.inbound.values(), *(sa for sas in self._sad.outbound.values() for sa in sas)]
        return [replace(sa.params, path=sa.path) for sa in sas]

    def release(self, entry: str, now: Nanos) -> None:
        """Send the packets held for *entry*, in arrival order, now that an SA exists."""
        self._outbound.release(entry, now)

    def refuse(self, entry: str, now: Nanos, retry_after: Nanos) -> None:
        """Drop the packets held for *entry* (ACQUIRE_FAILED); punt no Acquire for *retry_after* nanoseconds."""
        self._outbound.refuse(entry, now, retry_after)

    def pass_clear(self, entry: str, now: Nanos, until: Nanos) -> None:
        """Send the packets held for *entry* in clear, and until *until* all that still come for it: a soft SA."""
        self._outbound.pass_clear(entry, now, until)

    def outbound(self, frames: list[TunFrame], now: Nanos) -> None:
        """Protect packets read from the TUN."""
        self._outbound.burst(frames, now)

    def inbound(self, datagrams: list[WireDatagrams], now: Nanos) -> None:
        """Open packets read from port 4500 or from the raw socket; IKE messages are punted."""
        self._inbound.burst(datagrams, now)
        if self._sad.nat_flows.changed:
            self._sad.nat_flows.changed = False
            self._outbound.forget_choices()
        while self._inbound.activated:
            child = self._inbound.activated.pop()
            self.activate(child)
            self._ledger.outputs.append(Activated(child))
            for sa in self._sad.outbound_of(child):
                self._outbound.release(sa.params.entry, now)

    def handle_timeout(self, now: Nanos) -> None:
        """Expire held packets and old path MTUs. Spurious calls are harmless."""
        self._outbound.expire_held(now)
        if self._mtus.expire(now):
            self._fit_all()

    def deadline(self) -> Nanos | None:
        """Return when ``handle_timeout`` is next wanted."""
        return min(
            (
                due
                for due in (
                    self._outbound.hold.deadline(),
                    self._outbound.fragments.deadline(),
                    self._mtus.deadline(),
                )
                if due is not None
            ),
            default=None,
        )

    def poll(self) -> DataPlaneOutput | None:
        """Return the next output, or None."""
        return self._ledger.outputs.popleft() if self._ledger.outputs else None

    def drops(self) -> MappingType[DropReason, int]:
        """Return every drop counter since the start."""
        return dict(self._ledger.drops)

    def counters(self) -> Counters:
        """Return the packet counts since the start."""
        return self._ledger.counters(self._outbound.hold.packets + self._outbound.fragments.packets)

    def set_offload(self, offload: TunOffload) -> None:
        """Say which superpackets the TUN takes from now on."""
        self._inbound.offload = offload

    def tun_mtu(self) -> int:
        """Return the largest inner packet that every present outbound SA carries whole.

        1400 while there is none, and never less than 1280: below, the kernel takes IPv6 off the interface.
        """
        self._capacities = +self._capacities
        return max(MIN_IPV6_MTU, min(self._capacities)) if self._capacities else _DEFAULT_TUN_MTU

    def _fit(self, sa: OutboundSa) -> None:
        sa.mtu = self._mtus.get(sa.path.remote.address)
        if sa.plain:
            capacity = esp.capacity(sa.transform, sa.path, sa.mtu)
        else:
            capacity = whole.capacity(sa, sa.mtu, BASE[sa.path.version])
        if sa.capacity:
            self._capacities[sa.capacity] -= 1
        self._capacities[capacity] += 1
        sa.capacity = capacity

    def _fit_all(self) -> None:
        for sas in self._sad.outbound.values():
            for sa in sas:
                self._fit(sa)
