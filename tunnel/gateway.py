"""The gateway: SPD, SAD and IKE composed into one pure object.

Law: after any one mutation, ``poll`` until it returns None, then read ``deadline``, before the next mutation.
``tunnel.pump.drain`` is the code that knows this; host and simulator both call it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping as MappingType
from typing import TypeAlias, assert_never

from ike.endpoint import IkeEndpoint
from ike.events import (
    AcquireFailed,
    ChildActivated,
    ChildInstalled,
    ChildRemoved,
    ChildSa,
    Event,
    FailureKind,
    IkeOutput,
    Level,
    PathChanged,
    SendIke,
)
from policy.clock import SECOND, Entropy, Nanos
from policy.diff import diff
from policy.path import IKE_PORT, NATT_PORT, Endpoint, IpAddress
from policy.selectors import Flow
from policy.spd import Snapshot, SpdEntry
from tunnel.children import Children, EntryState
from tunnel.commands import execute
from tunnel.control import ControlFactory, IkeControl
from tunnel.cover import Cover
from tunnel.dataplane.contract import (
    Acquire,
    Activated,
    DataPlane,
    DataPlaneOutput,
    Expire,
    IkeDatagram,
    InternalError,
    Mapping,
    SaParams,
    Transmit,
    TunFrame,
    UnknownSpi,
    WireDatagrams,
    WriteTun,
)
from tunnel.dataplane.reference import ReferenceDataPlane
from tunnel.outputs import Command, Output, SoftSa, Steer, TunMtu
from tunnel.soft import Pair, SoftSas, pair_of
from tunnel.traffic import Traffic

#: After the data plane refused a Child SA that was negotiated properly, a bug or a lack: no hurry to try again.
_RETRY_REFUSED = 30 * SECOND
_MARKER = bytes(4)

_Pending: TypeAlias = DataPlaneOutput | IkeOutput


class Gateway:
    """One security gateway or host: packets, datagrams, time, policy and commands in, ``Output``s out.

    *entropy* is the only source of chance, ``now`` the only clock (monotonic nanoseconds that never go back).
    """

    def __init__(
        self,
        *,
        entropy: Entropy,
        dataplane: DataPlane | None = None,
        control: ControlFactory = IkeEndpoint,
    ) -> None:
        self.dataplane: DataPlane = ReferenceDataPlane() if dataplane is None else dataplane
        self.ike: IkeControl = control(entropy=entropy, last_heard=self._last_heard)
        #: The policy in force, with the dynamic entries of the default response rule.
        self.snapshot = Snapshot(generation=0)
        self._compiled = self.snapshot
        self.children = Children()
        self.soft = SoftSas()
        self.traffic = Traffic()
        self._cover = Cover(entropy)
        self._outputs: deque[Output] = deque()
        self._pending: deque[_Pending] = deque()
        self._tun_mtu: int | None = None
        self._tables_changed = True
        #: Failed acquires of the mutation under way, for the answer to the operator's ``initiate``.
        self._failed: dict[str, str] = {}

    # Inputs

    def load(self, snapshot: Snapshot, now: Nanos) -> None:
        """Put *snapshot* in force.

        The data plane has it before IKE does: new DISCARDs take effect before SAs are torn down, and at no
        moment does a packet meet neither its old SA nor its new policy.
        """
        self._begin()
        delta = diff(self._compiled, snapshot)
        before, self._compiled = self._compiled, snapshot
        self.snapshot = snapshot.with_dynamic(self.children.dynamic.values())
        self.children.load(self.snapshot)
        self.traffic.keep(entry.rule for entry in self.snapshot.spd.entries)
        self.dataplane.load(self.snapshot, now)
        self._collect()
        self._end_soft_of_old_entries()
        self.ike.load(snapshot, now)
        self._tables_changed = True
        name = "no policy" if snapshot.policy is None else f'policy "{snapshot.policy}"'
        self._outputs.append(
            Event(
                "policy_loaded",
                Level.INFO,
                f"{name} is in force: {delta}",
                {
                    "policy": snapshot.policy,
                    "previous": before.policy,
                    "generation": snapshot.generation,
                    "entries": len(snapshot.spd.entries),
                    "peers": len(snapshot.pad.peers),
                },
            )
        )
        self._settle(now)

    def handle_tun(self, frames: list[TunFrame], now: Nanos) -> None:
        """Take packets from the TUN."""
        self._begin()
        self.dataplane.outbound(frames, now)
        self._settle(now)

    def handle_wire(self, datagrams: list[WireDatagrams], now: Nanos) -> None:
        """Take datagrams from the sockets, in their order: an IKE message may bring the SA of the next packet."""
        self._begin()
        burst: list[WireDatagrams] = []
        for datagram in datagrams:
            port = datagram.path.local.port
            if port != IKE_PORT:
                burst.append(datagram)
            if port == IKE_PORT or (port == NATT_PORT and bytes(datagram.data[:4]) == _MARKER):
                self._inbound(burst, now)
                burst = []
            if port == IKE_PORT:
                for message in _segments(datagram):
                    self.ike.receive(datagram.path, message, now)
                    self._settle(now)
        self._inbound(burst, now)
        self._settle(now)

    def handle_timeout(self, now: Nanos) -> None:
        """Do what is due. Spurious calls are harmless."""
        self._begin()
        for draining in self.children.drained(now):
            self._delete(draining.spi_in, inbound=True, child=draining.child)
        for dummy, octets in self._cover.due(now):
            self.dataplane.send_dummy(dummy, octets, now)
        for pair in self.soft.expired(now):
            self._end_soft(pair, "its time is up", told=False)
        self._end_unused(now)
        self.dataplane.handle_timeout(now)
        self._collect()
        self.ike.handle_timeout(now)
        self._tables_changed = True
        self._settle(now)

    def path_mtu(self, remote: Endpoint, mtu: int, now: Nanos) -> None:
        """Take the path MTU toward *remote*, in octets of outer IP packet."""
        self._begin()
        self.dataplane.set_path_mtu(remote, mtu, now)
        self._tables_changed = True
        self._settle(now)

    def source(self, remote: IpAddress, local: IpAddress, now: Nanos) -> None:
        """Speak IKE to *remote* from *local*: so the host's routing says."""
        self._begin()
        self.ike.source(remote, local)
        self._settle(now)

    def command(self, command: Command, now: Nanos) -> dict[str, object]:
        """Execute an operator's command and return its answer, ready for JSON. A mutation like any other."""
        self._begin()
        self._failed = {}
        answer = execute(self, command, now, lambda: self._settle(now))
        self._settle(now)
        return answer

    # Outputs

    def poll(self) -> Output | None:
        """Return the next output, or None."""
        return self._outputs.popleft() if self._outputs else None

    def deadline(self) -> Nanos | None:
        """Return when ``handle_timeout`` is next wanted, None if never. Valid after ``poll`` returned None."""
        candidates = (
            self.children.deadline(), self.soft.deadline(), self._cover.deadline(), self.dataplane.deadline(),
            self.ike.deadline(),
        )  # fmt: skip
        return min((at for at in candidates if at is not None), default=None)

    # For the commands

    def start(self, entry: str, flow: Flow | None, now: Nanos) -> None:
        """Negotiate for *entry*."""
        self.children.negotiating(entry, self._peer(entry))
        self.ike.acquire(entry, flow, now)

    @property
    def failed(self) -> dict[str, str]:
        """Why entries failed during the command under way."""
        return self._failed

    # Inside

    def _begin(self) -> None:
        if self._outputs:
            raise RuntimeError("poll until None before the next mutation")

    def _inbound(self, burst: list[WireDatagrams], now: Nanos) -> None:
        if burst:
            self.dataplane.inbound(burst, now)
            self._settle(now)

    def _collect(self) -> None:
        """Take what both planes have to say, after any call to either."""
        while (said := self.dataplane.poll()) is not None:
            self._pending.append(said)
        while (news := self.ike.poll()) is not None:
            self._pending.append(news)

    def _settle(self, now: Nanos) -> None:
        """Carry the planes' outputs to each other or out, until both are silent."""
        self._collect()
        while self._pending:
            output = self._pending.popleft()
            match output:
                case Transmit() | WriteTun() | Event():
                    self._outputs.append(output)
                case SendIke():
                    self._outputs.append(Transmit(output.path, (output.data,)))
                case ChildInstalled() | ChildActivated() | ChildRemoved() | PathChanged() | AcquireFailed():
                    self._from_ike(output, now)
                case _:
                    self._punted(output, now)
            self._collect()
        for change in self.children.changes:
            self._outputs.append(change.event())
        self.children.changes.clear()
        if self._tables_changed:
            self._tables_changed = False
            mtu = self.dataplane.tun_mtu()
            if mtu != self._tun_mtu:
                self._tun_mtu = mtu
                self._outputs.append(TunMtu(mtu))

    def _from_ike(
        self, output: ChildInstalled | ChildActivated | ChildRemoved | PathChanged | AcquireFailed, now: Nanos
    ) -> None:
        match output:
            case ChildInstalled(sa):
                self._install(sa, now)
            case ChildActivated(child):
                self.dataplane.activate(child)
                self.children.activate(child)
            case ChildRemoved():
                self._remove(output, now)
            case PathChanged(children, path):
                for child in children:
                    self.dataplane.update_path(child, path)
                    self.children.move(child, path)
                self._tables_changed = True
            case AcquireFailed():
                self._acquire_failed(output, now)
            case _:
                assert_never(output)

    def _punted(
        self,
        punt: Acquire | Expire | Mapping | Activated | UnknownSpi | IkeDatagram | InternalError,
        now: Nanos,
    ) -> None:
        match punt:
            case Acquire(entry, flow):
                self.start(entry, flow, now)
            case Expire(child=child, hard=hard):
                self.ike.expire(child, hard, now)
            case Mapping(child=child, path=path):
                self.ike.mapping(child, path, now)
            case Activated(child):
                self.children.activate(child)
            case UnknownSpi(path, spi):
                self.ike.unknown_spi(path, spi, now)
            case IkeDatagram(path, data):
                self.ike.receive(path, data, now)
            case InternalError(where, trace):
                message = f"internal error in the data plane ({where})"
                self._outputs.append(
                    Event("internal_error", Level.ERROR, message, {"where": where, "trace": trace})
                )
            case _:
                assert_never(punt)

    def _install(self, sa: ChildSa, now: Nanos) -> None:
        """Inbound before outbound (RFC 7296 section 2.8), then what waited for it."""
        if sa.dynamic is not None and sa.entry not in self.children.dynamic:
            self._dynamic({**self.children.dynamic, sa.entry: sa.dynamic}, now)
        try:
            self.dataplane.add_sa(_params(sa, inbound=True), now)
        except ValueError as error:
            self._refuse(sa, str(error), now)
            return
        try:
            self.dataplane.add_sa(_params(sa, inbound=False), now)
        except ValueError as error:
            self._delete(sa.spi_in, inbound=True, child=sa.child)
            self._refuse(sa, str(error), now)
            return
        entry = self.snapshot.spd.entry(sa.entry)
        idle = None if entry is None or entry.protection is None else entry.protection.idle
        self.children.install(sa, now, idle)
        if entry is not None:
            self.traffic.begin(sa, entry.rule)
        self._cover.begin(sa.child, sa.dummies, now)
        pair = None if entry is None else pair_of(entry)
        if pair is not None and self.soft.has(pair):
            self._end_soft(pair, "the peer speaks IPsec now", told=True)
        self._tables_changed = True
        self._collect()
        if sa.bundle is None or self.children.get(sa.bundle) is not None:  # what waits, waits for both halves
            self.dataplane.release(sa.entry, now)

    def _refuse(self, sa: ChildSa, reason: str, now: Nanos) -> None:
        """The data plane cannot do it: better no SA than one that drops its packets."""
        text = f"the data plane refused it: {reason}"
        fields = {"child": sa.child, "entry": sa.entry, "peer": sa.peer, "reason": reason}
        self._outputs.append(Event("child_refused", Level.WARNING, f"child {sa.spi_in:08x}: {text}", fields))
        self.children.failed(sa.entry, sa.peer, text)
        self._failed[sa.entry] = text
        self._drop_stale_dynamic(now)
        self.ike.terminate_child(sa.child, now)
        if not self.children.of_entry(sa.entry):
            self.dataplane.refuse(sa.entry, now, _RETRY_REFUSED)

    def _remove(self, removed: ChildRemoved, now: Nanos) -> None:
        """Outbound goes at once; the inbound half still receives what is in flight."""
        self._cover.end(removed.child)
        installed = self.children.remove(removed.child, removed.reason)
        if installed is None:
            return  # refused when it was to be installed
        self._delete(removed.spi_out, inbound=False, child=removed.child)
        if removed.drain > 0:
            self.children.drain(removed.child, removed.spi_in, now + removed.drain)
        else:
            self._delete(removed.spi_in, inbound=True, child=removed.child)
        self._drop_stale_dynamic(now)

    def _acquire_failed(self, failure: AcquireFailed, now: Nanos) -> None:
        """Nobody answered and policy allows clear: a soft SA. Else what waits is dropped."""
        entry = self.snapshot.spd.entry(failure.entry)
        begun = None
        if failure.kind is FailureKind.NO_ANSWER and entry is not None:
            begun = self.soft.begin(entry, now)
        peer = self._peer(failure.entry)
        if begun is None:
            if entry is not None:  # one that the policy has no more may come back, and begins anew then
                self.children.failed(failure.entry, peer, failure.reason)
            self._failed[failure.entry] = failure.reason
            self.dataplane.refuse(failure.entry, now, failure.retry_after)
            return
        soft, gone = begun
        for pair in gone:
            self._end_soft(pair, "too many soft SAs", told=True)
        self.children.soft(failure.entry, peer, failure.reason)
        self._outputs.append(SoftSa(*soft.pair, soft.until - now))
        self.dataplane.pass_clear(failure.entry, now, soft.until)

    def _end_soft(self, pair: Pair, why: str, *, told: bool) -> None:
        """End the soft SA of *pair*; *told*: the host has to be told, for it has not expired there by itself."""
        for entry in self.soft.end(pair):
            if self.children.state(entry)[0] is EntryState.SOFT:
                self.children.down(entry, self._peer(entry), why)
        if told:
            self._outputs.append(SoftSa(*pair, 0))

    def _end_soft_of_old_entries(self) -> None:
        """A new policy may allow less: soft SAs whose entries do not fall back any more end."""
        for entry_id in self.soft.entries():
            entry, had = self.snapshot.spd.entry(entry_id), self.soft.pair(entry_id)
            if had is not None and (entry is None or pair_of(entry) != had):
                self._end_soft(had, "the policy does not allow it any more", told=True)

    def _end_unused(self, now: Nanos) -> None:
        """Delete Child SAs that carried nothing in either direction for their idle time."""
        for child in self.children.idle(now):
            installed = self.children.get(child)
            entry = None if installed is None else self.snapshot.spd.entry(installed.sa.entry)
            idle = None if entry is None or entry.protection is None else entry.protection.idle
            if installed is None or idle is None:
                self.children.used(child, None)
                continue
            sa = installed.sa
            sent = self.dataplane.query_sa(sa.spi_out, inbound=False, child=child)
            received = self.dataplane.query_sa(sa.spi_in, inbound=True, child=child)
            last = max(installed.since, *(stats.last_used for stats in (sent, received) if stats is not None))
            if now - last >= idle:
                self.children.used(child, None)
                self.ike.terminate_child(child, now, f"unused for {idle // SECOND} s")
            else:
                self.children.used(child, last + idle)

    def _dynamic(self, entries: MappingType[str, SpdEntry], now: Nanos) -> None:
        """Put the entries of the default response rule in force: for the packets here, and for the host's."""
        self.snapshot = self._compiled.with_dynamic(entries.values())
        self.dataplane.load(self.snapshot, now)
        self._outputs.append(Steer(self.snapshot))

    def _drop_stale_dynamic(self, now: Nanos) -> None:
        present = len(self.snapshot.spd.entries) - len(self._compiled.spd.entries)
        if present != len(self.children.dynamic):
            self._dynamic(self.children.dynamic, now)

    def _peer(self, entry_id: str) -> str:
        entry = self.snapshot.spd.entry(entry_id)
        return "" if entry is None or entry.protection is None else entry.protection.peer

    def _delete(self, spi: int, *, inbound: bool, child: int) -> None:
        self.traffic.end(child, self.dataplane.delete_sa(spi, inbound=inbound, child=child), inbound=inbound)
        self._tables_changed = True
        self._collect()

    def _last_heard(self, child: int) -> Nanos:
        spi = self.children.inbound_spi(child)
        stats = None if spi is None else self.dataplane.query_sa(spi, inbound=True, child=child)
        return 0 if stats is None else stats.last_used


def _segments(datagram: WireDatagrams) -> list[bytes]:
    """Return the messages that UDP_GRO merged."""
    data, size = bytes(datagram.data), datagram.segment_size
    if not 0 < size < len(data):
        return [data]
    return [data[at : at + size] for at in range(0, len(data), size)]


def _params(sa: ChildSa, *, inbound: bool) -> SaParams:
    encryption_key, salt, integrity_key = sa.keys_in if inbound else sa.keys_out
    return SaParams(
        spi=sa.spi_in if inbound else sa.spi_out,
        inbound=inbound,
        protocol=sa.protocol,
        mode=sa.mode,
        suite=sa.suite,
        encryption_key=encryption_key,
        salt=salt,
        integrity_key=integrity_key,
        path=sa.path,
        selectors=sa.selectors,
        entry=sa.entry,
        child=sa.child,
        replay_window=sa.replay_window,
        soft_bytes=None if inbound else sa.soft_bytes,
        hard_bytes=None if inbound else sa.hard_bytes,
        dormant=not inbound and sa.dormant,
        follow_nat=sa.follow_nat,
        nat=sa.nat,
        bundle=sa.bundle,
        padding=sa.padding,
        later_fragments=sa.later_fragments,
    )
