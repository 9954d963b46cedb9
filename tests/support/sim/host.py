"""A host: a real gateway behind the guard that the host part would set up, applications, and one link."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import TYPE_CHECKING

from ike.endpoint import IkeEndpoint
from ike.events import Event, Level
from policy.clock import SECOND, Nanos
from policy.compile import compile_policy
from policy.model import Policy
from policy.path import RAW_PORT, Endpoint, IpAddress, Path
from policy.selectors import AddressRange, Flow
from policy.spd import Disposition, Snapshot, SpdEntry
from tests.support.sim import packets
from tests.support.sim.net import Kind, Link, Packet
from tests.support.sim.packets import Traffic, flow_of
from tunnel import pump
from tunnel.control import ControlFactory
from tunnel.dataplane.contract import Transmit, TunFrame, TunOffload, WireDatagrams, WriteTun
from tunnel.dataplane.reference import ReferenceDataPlane
from tunnel.gateway import Gateway
from tunnel.outputs import Command, Output, SoftSa, Status, Steer, TunMtu

if TYPE_CHECKING:
    from tests.support.sim.world import World

#: Timeouts at one instant after which the deadline is not believed any more.
_STUCK = 100


@dataclass(frozen=True, slots=True)
class Delivery:
    """A packet that an application got."""

    time: Nanos
    host: str
    number: int
    flow: Flow
    tunnelled: bool


@dataclass(slots=True)
class Ledger:
    """What the harness itself counted of one life of a gateway, to compare with what the gateway says."""

    into_tun: int = 0
    out_of_tun: int = 0
    from_wire: int = 0
    esp_out: int = 0


class Host:
    """One host or gateway. *networks* are behind it; the first of *addresses* is where its link is."""

    def __init__(
        self,
        world: World,
        name: str,
        *,
        addresses: tuple[IpAddress, ...],
        networks: tuple[IPv4Network | IPv6Network, ...] = (),
        link: Link,
        coalesce: bool = False,
        control: ControlFactory = IkeEndpoint,
    ) -> None:
        self.world = world
        self.name = name
        self.addresses = addresses
        self.networks = networks
        self.link = link
        self.coalesce = coalesce
        self.control = control
        self.entropy = world.entropy(name)
        self.snapshot = Snapshot(generation=0)
        self.gateway: Gateway | None = None
        self.events: list[Event] = []
        self.deliveries: list[Delivery] = []
        self.guard_drops: dict[str, int] = {}
        #: What guard and steering go by: the snapshot, with dynamic entries while the daemon says so.
        self.steered = self.snapshot
        #: Pairs (local, remote) that may talk in clear where an entry has fallback_clear, and until when.
        self.soft: dict[tuple[IpAddress, IpAddress], Nanos] = {}
        self.tun_mtu = 0
        self.boots = 0
        self.ledger = Ledger()
        self._timer = 0
        self._stuck: tuple[Nanos, int] = (0, 0)

    # The daemon's life

    def assign(self, policy: Policy | None) -> None:
        """Put *policy* in force: guard first, then the gateway, as the host part does."""
        self.snapshot = compile_policy(
            policy,
            generation=self.snapshot.generation + 1,
            local_addresses=[*self.addresses, *(net[1] for net in self.networks)],
            local_networks=[AddressRange.network(net) for net in self.networks],
            previous=self.snapshot,
        )
        self.world.note(self.name, f"assign {policy.name if policy else None}")
        self.steered = self.snapshot
        if self.gateway is not None:
            self.steered = self.snapshot.with_dynamic(self.gateway.children.dynamic.values())
            self._load(self.gateway)

    def boot(self) -> None:
        """Start a daemon without any memory."""
        self.boots += 1
        self.ledger = Ledger()
        self.steered, self.soft = self.snapshot, {}
        offload = TunOffload(tso4=self.coalesce, tso6=self.coalesce)
        dataplane = ReferenceDataPlane(tun_features=offload)
        self.gateway = Gateway(entropy=self.entropy, dataplane=dataplane, control=self.control)
        self.world.note(self.name, f"boot {self.boots}")
        self._load(self.gateway)

    def crash(self) -> None:
        """End the daemon without a word; the guard stays."""
        self.gateway = None
        self._timer += 1
        self.world.note(self.name, "crash")

    def reboot(self) -> None:
        """Crash and boot."""
        self.crash()
        self.boot()

    def command(self, command: Command) -> dict[str, object]:
        """Give the gateway a command."""
        if self.gateway is None:
            raise RuntimeError(f"{self.name} is down")
        self.world.note(self.name, f"command {command}")
        answer = self.gateway.command(command, self.world.now)
        self._drain()
        return answer

    def status(self) -> dict[str, object]:
        """Return the status object."""
        return self.command(Status())

    # Applications

    def send(self, flow: Traffic, frame: bytes, numbers: list[int]) -> None:
        """Let an application (or the net behind) send: through the guard, in clear or into the TUN.

        *frame* opens with a virtio header and carries the probes *numbers*.
        """
        entry = self.steered.spd.lookup_outbound(flow_of(flow))
        disposition = entry.disposition if entry is not None else Disposition.BYPASS
        self.world.expect(self, flow, numbers, disposition)
        if disposition is Disposition.DISCARD:
            self._guard("block", len(numbers))
        elif disposition is Disposition.PROTECT and self._is_soft(entry, flow.source, flow.destination):
            for packet in packets.segments(frame):
                self.world.clear(packet)
                self._send_clear(flow, packet)
        elif disposition is Disposition.BYPASS:
            for packet in packets.segments(frame):
                self._send_clear(flow, packet)
        elif self.gateway is None:
            self._guard("no daemon", len(numbers))
        else:
            self.ledger.into_tun += len(numbers)
            self.gateway.handle_tun([TunFrame(frame)], self.world.now)
            self._drain()

    def owns(self, address: IpAddress) -> bool:
        """Whether packets to *address* end here or behind."""
        return address in self.addresses or any(
            address.version == network.version and address in network for network in self.networks
        )

    # The link

    def receive(self, packet: Packet, link: Link) -> None:
        """Take a packet from the link."""
        if packet.kind is Kind.CLEAR:
            self._receive_clear(packet)
        elif packet.destination.address not in self.addresses:
            self._guard("not ours", 1)
        elif self.gateway is None:
            self._guard("no daemon", 1)
        else:
            path = Path(packet.destination, packet.source)
            if path.local.port != 500:
                self.ledger.from_wire += 1
            protocol = 51 if packet.kind is Kind.AH else 50
            datagram = WireDatagrams(path, packet.payload, 0, packet.tos, protocol, packet.header)
            self.gateway.handle_wire([datagram], self.world.now)
            self._drain()

    def too_big(self, packet: Packet, mtu: int, link: Link) -> None:
        """Take the news that a packet of ours was too big."""
        if self.gateway is not None and packet.kind is not Kind.CLEAR:
            self.gateway.path_mtu(packet.destination, mtu, self.world.now)
            self._drain()

    def inject(self, path: Path, payload: bytes) -> None:
        """Let a datagram arrive from nowhere: junk, or a recording."""
        if self.gateway is not None:
            if path.local.port != 500:
                self.ledger.from_wire += 1
            self.gateway.handle_wire([WireDatagrams(path, payload)], self.world.now)
            self._drain()

    # Inside

    def _load(self, gateway: Gateway) -> None:
        for peer in self.snapshot.pad.peers:
            if peer.address is not None:
                own = next(a for a in self.addresses if a.version == peer.address.version)
                gateway.source(peer.address, own, self.world.now)
                self._drain()
        gateway.load(self.snapshot, self.world.now)
        self._drain()

    def _drain(self) -> None:
        if self.gateway is None:
            return
        deadline = pump.drain(self.gateway, self._sink)
        self._timer += 1
        self.world.check(self)
        if deadline is None:
            return
        if deadline <= self.world.now:
            time, count = self._stuck
            self._stuck = (self.world.now, count + 1 if time == self.world.now else 1)
            if self._stuck[1] > _STUCK:
                self.world.violate(f"{self.name}: handle_timeout does not move the deadline")
        ticket = self._timer
        self.world.schedule.at(deadline, lambda: self._timeout(ticket))

    def _timeout(self, ticket: int) -> None:
        if ticket == self._timer and self.gateway is not None:
            self.gateway.handle_timeout(self.world.now)
            self._drain()

    def _sink(self, output: Output) -> None:
        match output:
            case Transmit(path, buffers, whole=True):
                for buffer in buffers:
                    self._send_whole(path, bytes(buffer))
            case Transmit(path, buffers, _, tos, df):
                kind = Kind.ESP if path.remote.port == RAW_PORT else Kind.UDP
                for buffer in buffers:
                    self._send_sealed(Packet(kind, path.local, path.remote, bytes(buffer), tos, df))
            case WriteTun(frames):
                for frame in frames:
                    for packet_octets in packets.segments(b"".join(bytes(buffer) for buffer in frame)):
                        self.ledger.out_of_tun += 1
                        self._deliver(packet_octets, tunnelled=True)
            case TunMtu(mtu):
                self.tun_mtu = mtu
                self.world.note(self.name, f"tun mtu {mtu}")
            case Steer(snapshot):
                self.steered = snapshot
                self.world.note(self.name, f"steers {len(snapshot.spd.entries)} entries")
            case SoftSa(local, remote, lifetime):
                self.soft[local, remote] = self.world.now + lifetime
                self.world.note(self.name, f"soft SA {local} {remote} for {lifetime / SECOND:g} s")
            case Event():
                self.events.append(output)
                self.world.note(self.name, f"{output.level.name} {output.name}: {output.message}")
                if output.level >= Level.ERROR:
                    self.world.violate(f"{self.name}: {output.name}: {output.message} {dict(output.fields)}")

    def _send_sealed(self, packet: Packet) -> None:
        if _is_sealed(packet):
            self.ledger.esp_out += 1
            self.world.sealed(self, packet)
        self.link.send(packet, self)

    def _send_whole(self, path: Path, packet: bytes) -> None:
        """Send an IP packet as it is: transport mode, AH, or in clear under a soft SA."""
        protocol, start, df = packets.outer(packet)
        kind = {50: Kind.ESP, 51: Kind.AH}.get(protocol)
        if kind is not None:
            tos = packet[1] if packet[0] >> 4 == 4 else (packet[0] << 4 | packet[1] >> 4) & 0xFF
            sealed = Packet(kind, path.local, path.remote, packet[start:], tos, df, packet[:start])
            self._send_sealed(sealed)
            return
        flow = packets.parse(packet).flow
        entry = self.steered.spd.lookup_outbound(flow)
        if not self._is_soft(entry, flow.source_address, flow.destination_address):
            self.world.violate(f"{self.name}: sends {flow} in clear without a soft SA")
        self.world.clear(packet)
        self.link.send(Packet(Kind.CLEAR, path.local, path.remote, packet), self)

    def _is_soft(self, entry: SpdEntry | None, local: IpAddress, remote: IpAddress) -> bool:
        if entry is None or entry.protection is None or not entry.protection.fallback_clear:
            return False
        return self.soft.get((local, remote), 0) > self.world.now

    def _send_clear(self, flow: Traffic, packet: bytes) -> None:
        if self.owns(flow.destination):
            self._deliver(packet, tunnelled=False)
            return
        source, destination = Endpoint(flow.source, 0), Endpoint(flow.destination, 0)
        self.link.send(Packet(Kind.CLEAR, source, destination, packet), self)

    def _receive_clear(self, packet: Packet) -> None:
        if not self.owns(packet.destination.address):
            self._guard("not ours", 1)
            return
        flow = packets.parse(packet.payload).flow
        entry = self.steered.spd.lookup_inbound(flow)
        accepted = (
            entry is None
            or entry.disposition is Disposition.BYPASS
            or (entry.protection is not None and entry.protection.inbound_clear)
            or self._is_soft(entry, flow.destination_address, flow.source_address)
        )
        if accepted:
            self._deliver(packet.payload, tunnelled=False)
        else:
            self._guard("clear in", 1)

    def _deliver(self, packet: bytes, *, tunnelled: bool) -> None:
        if _is_icmp_error(packet):
            self.world.note(self.name, "icmp error to the application")
            return
        parsed = packets.parse(packet)
        if not parsed.checksums_fit:
            self.world.violate(f"{self.name}: a packet was delivered with a wrong checksum: {packet.hex()}")
        for number in packets.find_markers(packet):
            delivery = Delivery(self.world.now, self.name, number, parsed.flow, tunnelled)
            self.deliveries.append(delivery)
            self.world.delivered(self, delivery, packet)

    def _guard(self, why: str, count: int) -> None:
        self.guard_drops[why] = self.guard_drops.get(why, 0) + count


def _is_sealed(packet: Packet) -> bool:
    """Whether *packet* is ESP or AH: raw, or on port 4500 neither IKE (marker) nor a keepalive."""
    if packet.kind in (Kind.ESP, Kind.AH):
        return True
    return packet.source.port == 4500 and len(packet.payload) > 4 and packet.payload[:4] != bytes(4)


def _is_icmp_error(packet: bytes) -> bool:
    if packet[0] >> 4 == 4:
        return packet[9] == 1 and packet[20] in (3, 11)
    return packet[6] == 58 and packet[40] < 128
