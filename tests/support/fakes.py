"""Small stand-ins for the two planes, to test the gateway between them."""

from __future__ import annotations

from collections import deque
from collections.abc import Container
from collections.abc import Mapping as MappingType
from dataclasses import dataclass, field
from ipaddress import ip_address

from ike.events import ChildSa, IkeOutput, IkeSaKeys
from ike.status import IkeSaStatus
from policy.clock import Entropy, Nanos
from policy.path import Endpoint, IpAddress, Path
from policy.proposals import Encr, ProtocolId, Suite
from policy.secret import Secret
from policy.selectors import AddressRange, Flow, SelectorPair, TrafficSelector
from policy.spd import Mode, Snapshot
from tunnel.control import LastHeard
from tunnel.dataplane.contract import (
    Counters,
    DataPlaneOutput,
    DropReason,
    SaParams,
    SaStats,
    TunFrame,
    TunOffload,
    WireDatagrams,
)

LOCAL, REMOTE = ip_address("192.0.2.1"), ip_address("192.0.2.2")
PATH = Path(Endpoint(LOCAL, 4500), Endpoint(REMOTE, 4500))
IKE_PATH = Path(Endpoint(LOCAL, 500), Endpoint(REMOTE, 500))


@dataclass
class FakeDataPlane:
    """Writes down the calls; says what it is told to."""

    calls: list[tuple[object, ...]] = field(default_factory=list)
    said: deque[DataPlaneOutput] = field(default_factory=deque)
    #: What ``outbound`` and ``inbound`` say next.
    answers: list[DataPlaneOutput] = field(default_factory=list)
    known: set[int] = field(default_factory=set)
    refuse_spis: tuple[int, ...] = ()
    mtu: int = 1400
    wanted: Nanos | None = None
    heard: dict[int, Nanos] = field(default_factory=dict)
    last_params: list[SaParams] = field(default_factory=list)

    def load(self, snapshot: Snapshot, now: Nanos) -> None:
        self._called("load", snapshot.generation)

    def add_sa(self, params: SaParams, now: Nanos) -> None:
        if params.spi in self.refuse_spis:
            raise ValueError("no such algorithm")
        self.last_params.append(params)
        self._called("add_sa", params.spi, "in" if params.inbound else "out")

    def activate(self, child: int) -> None:
        self._called("activate", child)

    def delete_sa(self, spi: int, *, inbound: bool, child: int | None = None) -> SaStats | None:
        self._called("delete_sa", spi, "in" if inbound else "out")
        return None

    def update_path(self, child: int, path: Path) -> None:
        self._called("update_path", child, str(path.remote))

    def set_path_mtu(self, remote: Endpoint, mtu: int, now: Nanos) -> None:
        self._called("set_path_mtu", str(remote), mtu)

    def query_sa(self, spi: int, *, inbound: bool, child: int | None = None) -> SaStats | None:
        return SaStats(3, 300, self.heard[spi], 3, {}) if spi in self.heard else None

    def known_spis(self) -> Container[int]:
        return self.known

    def drop_unknown(self, count: int) -> None:
        self._called("drop_unknown", count)

    def send_dummy(self, child: int, octets: int, now: Nanos) -> None:
        self._called("send_dummy", child, octets)

    def release(self, entry: str, now: Nanos) -> None:
        self._called("release", entry)

    def refuse(self, entry: str, now: Nanos, retry_after: Nanos) -> None:
        self._called("refuse", entry, retry_after)

    def pass_clear(self, entry: str, now: Nanos, until: Nanos) -> None:
        self._called("pass_clear", entry, until)

    def outbound(self, frames: list[TunFrame], now: Nanos) -> None:
        self._called("outbound", len(frames))
        self._answer()

    def inbound(self, datagrams: list[WireDatagrams], now: Nanos) -> None:
        self._called("inbound", len(datagrams))
        self._answer()

    def handle_timeout(self, now: Nanos) -> None:
        self._called("handle_timeout")

    def deadline(self) -> Nanos | None:
        return self.wanted

    def poll(self) -> DataPlaneOutput | None:
        return self.said.popleft() if self.said else None

    def drops(self) -> MappingType[DropReason, int]:
        return {DropReason.REPLAYED: 2, DropReason.INTEGRITY: 0}

    def counters(self) -> Counters:
        return Counters(
            outbound_in=5,
            outbound_out=1,
            outbound_drops=0,
            held=4,
            esp_out=1,
            errors_out=0,
            inbound_in=2,
            inbound_out=0,
            inbound_drops=2,
            control_in=0,
        )

    def set_offload(self, offload: TunOffload) -> None:
        self._called("set_offload")

    def tun_mtu(self) -> int:
        return self.mtu

    def _called(self, *call: object) -> None:
        if self.said:
            raise AssertionError(f"{call} before poll gave None")
        self.calls.append(call)

    def _answer(self) -> None:
        self.said.extend(self.answers)
        self.answers = []


@dataclass
class FakeControl:
    """Writes down the calls; says what it is told to."""

    entropy: Entropy
    last_heard: LastHeard
    calls: list[tuple[object, ...]] = field(default_factory=list)
    said: deque[IkeOutput] = field(default_factory=deque)
    #: What the next call of that name says.
    answers: dict[str, list[IkeOutput]] = field(default_factory=dict)
    sas: list[IkeSaStatus] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    wanted: Nanos | None = None

    def load(self, snapshot: Snapshot, now: Nanos) -> None:
        self._called("load", snapshot.generation)

    def receive(self, path: Path, data: bytes, now: Nanos) -> None:
        self._called("receive", path.local.port, data)

    def acquire(self, entry: str, flow: Flow | None, now: Nanos) -> None:
        self._called("acquire", entry, flow)

    def expire(self, child: int, hard: bool, now: Nanos) -> None:
        self._called("expire", child, hard)

    def mapping(self, child: int, path: Path, now: Nanos) -> None:
        self._called("mapping", child, str(path.remote))

    def unknown_spi(self, path: Path, spi: int, now: Nanos) -> None:
        self._called("unknown_spi", spi)

    def source(self, remote: IpAddress, local: IpAddress) -> None:
        self._called("source", remote, local)

    def rekey_child(self, child: int, now: Nanos) -> None:
        self._called("rekey_child", child)

    def rekey_ike(self, peer: str, now: Nanos) -> None:
        self._called("rekey_ike", peer)

    def terminate_child(self, child: int, now: Nanos, reason: str = "") -> None:
        self._called("terminate_child", child)

    def terminate_peer(self, peer: str, now: Nanos) -> None:
        self._called("terminate_peer", peer)

    def shutdown(self, now: Nanos) -> None:
        self._called("shutdown")

    def handle_timeout(self, now: Nanos) -> None:
        self._called("handle_timeout")

    def deadline(self) -> Nanos | None:
        return self.wanted

    def poll(self) -> IkeOutput | None:
        return self.said.popleft() if self.said else None

    def status(self, now: Nanos) -> list[IkeSaStatus]:
        return self.sas

    def export_keys(self) -> list[IkeSaKeys]:
        return []

    def counters(self) -> MappingType[str, int]:
        return {"cookie demanded": 3}

    def failures(self) -> MappingType[str, str]:
        return self.failed

    def _called(self, name: str, *arguments: object) -> None:
        if self.said:
            raise AssertionError(f"{name} before poll gave None")
        self.calls.append((name, *arguments))
        self.said.extend(self.answers.pop(name, []))


def child_sa(
    entry: str,
    *,
    child: int = 1,
    peer: str = "192.0.2.2",
    spi_in: int = 0x1001,
    spi_out: int = 0x2001,
    dormant: bool = False,
    replaces: int | None = None,
) -> ChildSa:
    """Return a negotiated pair between 10.1.0.0/24 here and 10.2.0.0/24 there."""
    here, there = (AddressRange(4, base, base + 255) for base in (0x0A010000, 0x0A020000))
    secrets = (Secret(bytes(16)), Secret(bytes(4)), Secret(b""))
    return ChildSa(
        child=child,
        peer=peer,
        entry=entry,
        ike_spi=7,
        protocol=ProtocolId.ESP,
        mode=Mode.TUNNEL,
        suite=Suite(ProtocolId.ESP, Encr.AES_GCM_16, 128),
        spi_in=spi_in,
        spi_out=spi_out,
        keys_in=secrets,
        keys_out=secrets,
        selectors=(SelectorPair(TrafficSelector(0, here), TrafficSelector(0, there)),),
        path=PATH,
        soft_bytes=1000,
        hard_bytes=2000,
        dormant=dormant,
        replaces=replaces,
    )
