"""Two IKE endpoints, A and B, on a network that a test scripts message by message, in virtual time.

``Pair.run`` moves messages in order until nothing is under way. A test that wants to lose, hold or reorder
messages takes them from ``wire`` by hand, or sets ``filter``.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network

from ike.constants import ExchangeType
from ike.endpoint import IkeEndpoint
from ike.events import (
    AcquireFailed,
    ChildActivated,
    ChildInstalled,
    ChildRemoved,
    ChildSa,
    Event,
    PathChanged,
    SendIke,
)
from ike.v2.settings import IkeSettings
from ike.wire.header import Header, parse_header
from policy.clock import SECOND, Nanos
from policy.lifetimes import Lifetime
from policy.model import Encapsulation, KeyExchange, PresharedKey, SecurityMethod, Where
from policy.pad import Identity, Pad, PeerEntry
from policy.path import NATT_PORT, Endpoint, Path
from policy.proposals import Encr, Group, Integ, Prf, Proposal, ProtocolId, Transform, TransformType
from policy.secret import Secret
from policy.selectors import AddressRange, PortRange, SelectorPair, TrafficSelector
from policy.spd import Disposition, Mode, Protection, Snapshot, Spd, SpdEntry

A, B = ip_address("10.9.0.1"), ip_address("10.9.0.2")

GCM256 = Transform(TransformType.ENCR, Encr.AES_GCM_16, 256)
GCM128 = Transform(TransformType.ENCR, Encr.AES_GCM_16, 128)
CBC256 = Transform(TransformType.ENCR, Encr.AES_CBC, 256)

IKE_X25519 = Proposal(
    ProtocolId.IKE,
    encr=(GCM256,),
    prf=(Prf.HMAC_SHA2_384,),
    groups=(Group.X25519,),
    text="aes256gcm16-prfsha384-x25519",
)
IKE_ECP256 = Proposal(
    ProtocolId.IKE,
    encr=(CBC256,),
    prf=(Prf.HMAC_SHA2_256,),
    integ=(Integ.HMAC_SHA2_256_128,),
    groups=(Group.ECP_256,),
    text="aes256-sha256-ecp256",
)
ESP_GCM256 = Proposal(ProtocolId.ESP, encr=(GCM256,), text="esp:aes256gcm16")
ESP_GCM128 = Proposal(ProtocolId.ESP, encr=(GCM128,), text="esp:aes128gcm16")


def method(proposal: Proposal) -> SecurityMethod:
    return SecurityMethod((proposal,), proposal.text)


def selector(network: str, protocol: int = 0, ports: tuple[int, int] = (0, 65535)) -> TrafficSelector:
    return TrafficSelector(protocol, AddressRange.network(ip_network(network)), PortRange(*ports))


def pair_of(local: str, remote: str, protocol: int = 0) -> SelectorPair:
    return SelectorPair(selector(local, protocol), selector(remote, protocol))


def entry(name: str, local: str, remote: str, *, peer: str, **protection: object) -> SpdEntry:
    values: dict[str, object] = {
        "peer": peer,
        "mode": Mode.TUNNEL,
        "methods": (method(ESP_GCM256),),
        "lifetime": Lifetime(time=3600 * SECOND),
        "encapsulation": Encapsulation.NONE,
    }
    selectors = protection.pop("selectors", None)
    values.update(protection)
    return SpdEntry(
        id=name,
        rule=name,
        filter_list=name,
        filter_action="Require ESP",
        selectors=selectors if isinstance(selectors, SelectorPair) else pair_of(local, remote),
        outbound=True,
        inbound=True,
        disposition=Disposition.PROTECT,
        protection=Protection(**values),  # type: ignore[arg-type]
        where=Where("site.toml", 31, 1),
    )


def peer_entry(name: str, address: str | None, entries: tuple[str, ...], **values: object) -> PeerEntry:
    fields: dict[str, object] = {
        "local_id": None,
        "remote_id": None,
        "authentication": (PresharedKey(secret=Secret(b"correct horse battery staple")),),
        "ike": KeyExchange(proposals=(IKE_X25519,), liveness=None),
        "where": Where("site.toml", 14, 1),
    }
    fields.update(values)
    return PeerEntry(
        name=name,
        address=None if address is None else ip_address(address),
        entries=entries,
        **fields,  # type: ignore[arg-type]
    )


def snapshot_of(
    peers: tuple[PeerEntry, ...], entries: tuple[SpdEntry, ...], address: str, generation: int = 1
) -> Snapshot:
    return Snapshot(
        generation=generation,
        policy="test",
        spd=Spd(entries),
        pad=Pad(peers),
        local_addresses=(ip_address(address),),
    )


def site_a(**protection: object) -> Snapshot:
    ids = {"local_id": Identity.parse("gw-a.example"), "remote_id": Identity.parse("gw-b.example")}
    peer = peer_entry("gw-b", "10.9.0.2", ("lan",), **ids)
    return snapshot_of(
        (peer,), (entry("lan", "10.1.0.0/24", "10.2.0.0/24", peer="gw-b", **protection),), "10.9.0.1"
    )


def site_b(**protection: object) -> Snapshot:
    ids = {"local_id": Identity.parse("gw-b.example"), "remote_id": Identity.parse("gw-a.example")}
    peer = peer_entry("gw-a", "10.9.0.1", ("lan",), **ids)
    return snapshot_of(
        (peer,), (entry("lan", "10.2.0.0/24", "10.1.0.0/24", peer="gw-a", **protection),), "10.9.0.2"
    )


def with_peer(snapshot: Snapshot, **changes: object) -> Snapshot:
    """Return the snapshot with its first peer changed."""
    peers = snapshot.pad.peers
    changed = replace(peers[0], **changes)  # type: ignore[arg-type]
    return replace(snapshot, generation=snapshot.generation + 1, pad=Pad((changed, *peers[1:])))


def with_ike(snapshot: Snapshot, **changes: object) -> Snapshot:
    """Return the snapshot with its first peer's key exchange settings changed."""
    return with_peer(snapshot, ike=replace(snapshot.pad.peers[0].ike, **changes))  # type: ignore[arg-type]


class Randomness:
    """Repeatable entropy; ``nonces`` sets the first octets of the next nonces (32-octet draws)."""

    def __init__(self, seed: str) -> None:
        self._seed = seed
        self._count = 0
        self.nonces: deque[int] = deque()

    def __call__(self, count: int) -> bytes:
        self._count += 1
        data = hashlib.shake_256(f"{self._seed} {self._count}".encode()).digest(count)
        if count == 32 and self.nonces:
            return bytes([self.nonces.popleft()]) + data[1:]
        return data


@dataclass(slots=True)
class Datagram:
    """A message on the wire: who sent it, and the path as the sender sees it."""

    sender: Node
    path: Path
    data: bytes

    @property
    def ike(self) -> bytes:
        """The message without its non-ESP marker."""
        return self.data[4:] if self.path.local.port == NATT_PORT else self.data

    @property
    def header(self) -> Header:
        return parse_header(self.ike)

    @property
    def exchange(self) -> ExchangeType:
        return ExchangeType(self.header.exchange)

    @property
    def response(self) -> bool:
        return self.header.response


@dataclass(slots=True)
class Node:
    """One endpoint and everything that came out of it."""

    name: str
    entropy: Randomness
    endpoint: IkeEndpoint
    heard: dict[int, Nanos] = field(default_factory=dict)
    installed: dict[int, ChildSa] = field(default_factory=dict)
    removed: list[ChildRemoved] = field(default_factory=list)
    activated: list[int] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    failures: list[AcquireFailed] = field(default_factory=list)
    moved: list[PathChanged] = field(default_factory=list)
    sent: list[Datagram] = field(default_factory=list)
    history: list[object] = field(default_factory=list)

    @property
    def live(self) -> list[ChildSa]:
        """Child SAs that are installed now."""
        return list(self.installed.values())

    @property
    def sending(self) -> list[int]:
        """Outbound SPIs that may be sent on: not dormant, or activated."""
        return [sa.spi_out for sa in self.live if not sa.dormant or sa.child in self.activated]

    def named(self, name: str) -> list[Event]:
        return [event for event in self.events if event.name == name]

    def states(self, now: Nanos = 0) -> list[str]:
        return [status.state for status in self.endpoint.status(now)]


Filter = Callable[[Datagram], bool]


class Pair:
    """A and B; ``now`` starts at one second."""

    def __init__(
        self,
        a: Snapshot | None = None,
        b: Snapshot | None = None,
        *,
        settings: IkeSettings | None = None,
        settings_b: IkeSettings | None = None,
        check: bool = True,
    ) -> None:
        self.now: Nanos = SECOND
        self.wire: deque[Datagram] = deque()
        #: Returns False for messages to lose.
        self.filter: Filter = lambda datagram: True
        #: NAT before A: what B sees as A's endpoint.
        self.nat: dict[Endpoint, Endpoint] = {}
        self.check = check
        self.a = self._node("A", settings)
        self.b = self._node("B", settings_b or settings)
        self.load(self.a, site_a() if a is None else a)
        self.load(self.b, site_b() if b is None else b)

    def _node(self, name: str, settings: IkeSettings | None) -> Node:
        entropy = Randomness(name)
        heard: dict[int, Nanos] = {}
        endpoint = IkeEndpoint(
            entropy=entropy, last_heard=lambda child: heard.get(child, 0), settings=settings or IkeSettings()
        )
        return Node(name, entropy, endpoint, heard)

    def restart(self, node: Node, snapshot: Snapshot) -> None:
        """Forget everything, as a reboot does."""
        node.endpoint = IkeEndpoint(entropy=node.entropy, last_heard=lambda child: 0)
        node.installed.clear()
        self.load(node, snapshot)

    def load(self, node: Node, snapshot: Snapshot) -> None:
        node.endpoint.load(snapshot, self.now)
        self.drain(node)

    def acquire(self, node: Node, name: str = "lan", flow: object = None) -> None:
        node.endpoint.acquire(name, flow, self.now)  # type: ignore[arg-type]
        self.drain(node)

    def drain(self, node: Node) -> None:
        """Take every output of *node*; messages go on the wire."""
        while (output := node.endpoint.poll()) is not None:
            node.history.append(output)
            match output:
                case SendIke():
                    datagram = Datagram(node, output.path, output.data)
                    node.sent.append(datagram)
                    self.wire.append(datagram)
                case ChildInstalled():
                    assert output.sa.child not in node.installed
                    node.installed[output.sa.child] = output.sa
                case ChildActivated():
                    assert output.child in node.installed
                    node.activated.append(output.child)
                case ChildRemoved():
                    node.installed.pop(output.child)
                    node.removed.append(output)
                case PathChanged():
                    node.moved.append(output)
                case AcquireFailed():
                    node.failures.append(output)
                case Event():
                    node.events.append(output)
        if self.check:
            assert not node.named("internal_error"), node.named("internal_error")

    def other(self, node: Node) -> Node:
        return self.b if node is self.a else self.a

    def take(self) -> Datagram:
        """Take the oldest message off the wire."""
        return self.wire.popleft()

    def deliver(self, datagram: Datagram) -> None:
        """Hand a message to the other side, through the NAT if there is one."""
        if datagram.data == b"\xff":
            return
        receiver = self.other(datagram.sender)
        local, remote = datagram.path.remote, datagram.path.local
        if datagram.sender is self.a:
            remote = self.nat.get(remote, remote)
        else:
            local = next((inside for inside, outside in self.nat.items() if outside == local), local)
        receiver.endpoint.receive(Path(local, remote), datagram.ike, self.now)
        self.drain(receiver)

    def step(self) -> Datagram:
        """Deliver the oldest message; return it."""
        datagram = self.take()
        if self.filter(datagram):
            self.deliver(datagram)
        return datagram

    def run(self) -> None:
        """Deliver until nothing is under way; no time passes."""
        for _ in range(10_000):
            if not self.wire:
                return
            self.step()
        raise AssertionError("the endpoints never fall silent")

    def lose(self) -> Datagram:
        """Lose the oldest message; return it."""
        return self.take()

    def wait(self, duration: Nanos) -> None:
        """Let time pass, with everything that falls due, delivering at once."""
        end = self.now + duration
        self.run()
        while (due := self._next_deadline()) is not None and due <= end:
            self.now = max(self.now, due)
            for node in (self.a, self.b):
                node.endpoint.handle_timeout(self.now)
                self.drain(node)
            self.run()
        self.now = end

    def tick(self, duration: Nanos) -> None:
        """Let time pass in one leap, and deliver nothing."""
        self.now += duration
        for node in (self.a, self.b):
            node.endpoint.handle_timeout(self.now)
            self.drain(node)

    def _next_deadline(self) -> Nanos | None:
        return min((d for n in (self.a, self.b) if (d := n.endpoint.deadline()) is not None), default=None)

    def connect(self) -> None:
        """Make one IKE SA and one Child SA, initiated by A."""
        self.acquire(self.a)
        self.run()
        assert len(self.a.live) == len(self.b.live) == 1, (self.a.events, self.b.events)

    def agree(self) -> bool:
        """Whether both ends have the same Child SAs with the same keys."""
        ours = sorted((sa.spi_in, sa.spi_out) for sa in self.a.live)
        theirs = sorted((sa.spi_out, sa.spi_in) for sa in self.b.live)
        by_spi = {sa.spi_out: sa for sa in self.b.live}
        return ours == theirs and all(
            sa.keys_in == by_spi[sa.spi_in].keys_out and sa.keys_out == by_spi[sa.spi_in].keys_in
            for sa in self.a.live
        )

    def messages(self) -> Iterator[Datagram]:
        yield from self.wire
