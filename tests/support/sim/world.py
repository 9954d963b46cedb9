"""The simulated world: hosts, links and routers in virtual time, checked after every step.

Everything follows from the seed: the same seed gives the same trace, octet for octet.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network

from policy.clock import SECOND, Nanos, seconds
from policy.path import Endpoint
from policy.spd import Disposition
from tests.support.sim import invariants, packets
from tests.support.sim.clock import Entropy, Schedule
from tests.support.sim.host import Delivery, Host
from tests.support.sim.nat import Nat
from tests.support.sim.net import Faults, Kind, Link, Packet, Router
from tests.support.sim.packets import Traffic


class Violation(AssertionError):
    """An invariant does not hold."""


@dataclass(slots=True)
class Probe:
    """A packet that an application sent, and what the sender's policy said of it then."""

    number: int
    sender: str
    time: Nanos
    flow: Traffic
    disposition: Disposition
    payload: bytes
    #: Whether policy let it go in clear although it wants protection: a soft SA.
    clear: bool = False
    deliveries: list[Delivery] = field(default_factory=list)


class World:
    """Hosts around one router. Every packet on every link is seen by the wiretap."""

    def __init__(self, seed: int = 1, *, keep_packets: bool = False) -> None:
        self.seed = seed
        self.schedule = Schedule(seed)
        self.router = Router()
        self.hosts: dict[str, Host] = {}
        self.links: dict[str, Link] = {}
        #: The NATs, by the host behind.
        self.nats: dict[str, Nat] = {}
        self.trace: list[str] = []
        #: Events that happened: deliveries and timers.
        self.steps = 0
        self.probes: dict[int, Probe] = {}
        #: Everything seen on links that host datagrams, when asked for: to replay, or to write a pcap.
        self.recording: list[tuple[Nanos, str, Packet]] = []
        self._keep = keep_packets
        #: The last sequence number of each SPI on the wire, by host and boot.
        self._sequences: dict[tuple[str, int, str, int], int] = {}
        self._spis: dict[tuple[str, int], dict[int, int]] = {}

    @property
    def now(self) -> Nanos:
        """Virtual time."""
        return self.schedule.now

    # Building

    def entropy(self, name: str) -> Entropy:
        """Return the entropy of *name*."""
        return Entropy(self.seed, name)

    def host(
        self,
        name: str,
        *addresses: str,
        networks: tuple[str, ...] = (),
        nat: str | None = None,
        faults: Faults | None = None,
        nat_expiry_s: float = 120,
        coalesce: bool = False,
    ) -> Host:
        """Add a host at *addresses* with *networks* behind it; with *nat*, that is its public address."""
        own = tuple(ip_address(address) for address in addresses)
        behind = tuple(ip_network(network) for network in networks)
        uplink = self._link(name, faults or Faults())
        host = Host(self, name, addresses=own, networks=behind, link=uplink, coalesce=coalesce)
        if nat is None:
            uplink.ends = [host, self.router]
            for address in own:
                self.router.add(ip_network(address), uplink)
        else:
            public = ip_address(nat)
            box = Nat(f"nat-{name}", self.schedule, public, seconds(nat_expiry_s))
            outside = self._link(f"{name}-outside", Faults(latency=0))
            uplink.ends, outside.ends = [host, box], [box, self.router]
            box.inside, box.outside = uplink, outside
            self.nats[name] = box
            self.router.add(ip_network(public), outside)
        for network in behind:
            self.router.add(network, uplink if nat is None else outside)
        self.hosts[name] = host
        return host

    # Running

    def run(self, duration_s: float) -> None:
        """Let *duration_s* seconds of virtual time pass."""
        end = self.now + seconds(duration_s)
        while (at := self.schedule.next_at()) is not None and at <= end:
            self.steps += 1
            self.schedule.step()
        self.schedule.now = end

    def run_until(self, condition: Callable[[], bool], timeout_s: float = 60) -> bool:
        """Let time pass until *condition* holds; return whether it came to that within *timeout_s*."""
        end = self.now + seconds(timeout_s)
        while not condition():
            at = self.schedule.next_at()
            if at is None or at > end:
                self.schedule.now = end
                return condition()
            self.steps += 1
            self.schedule.step()
        return True

    def probe(self, flow: Traffic, *, size: int = 64, dont_fragment: bool = False) -> int:
        """Let the host that owns the source of *flow* send a probe; return its number."""
        number = len(self.probes) + 1
        frame = packets.NO_OFFLOAD + packets.probe_packet(flow, number, size, dont_fragment=dont_fragment)
        self.sender(flow).send(flow, frame, [number])
        return number

    def superpacket(self, flow: Traffic, count: int, segment_size: int) -> list[int]:
        """Let an application send one TCP superpacket of *count* segments, a probe in each."""
        first = len(self.probes) + 1
        numbers = list(range(first, first + count))
        self.sender(flow).send(flow, packets.tso_frame(flow, numbers, segment_size), numbers)
        return numbers

    def stream(self, flow: Traffic, *, every_s: float, duration_s: float) -> list[int]:
        """Schedule a probe every *every_s* for *duration_s*; return the list that their numbers will be put in."""
        numbers: list[int] = []
        for step in range(int(duration_s / every_s)):
            self.schedule.after(seconds(step * every_s), lambda: numbers.append(self.probe(flow)))
        return numbers

    def sender(self, flow: Traffic) -> Host:
        """Return the host that owns the source of *flow*."""
        return next(host for host in self.hosts.values() if host.owns(flow.source))

    def translated(self, probe: Probe) -> Traffic:
        """Return the traffic of *probe* as its receiver sees it: in transport mode NATs change its addresses."""
        flow = probe.flow
        for name, box in self.nats.items():
            host = self.hosts[name]
            if name == probe.sender and flow.source in host.addresses:
                flow = replace(flow, source=box.public)
            if flow.destination == box.public:
                flow = replace(flow, destination=host.addresses[0])
        return flow

    def arrived(self, number: int) -> bool:
        """Whether probe *number* was delivered."""
        return bool(self.probes[number].deliveries)

    def missing(self, numbers: list[int]) -> list[int]:
        """Return those of *numbers* that were not delivered."""
        return [number for number in numbers if not self.arrived(number)]

    def partition(self, *names: str, down: bool = True) -> None:
        """Take the links of the hosts *names* down, or up again."""
        for name in names or self.links:
            self.links[name].faults.down = down
            self.note(name, "link down" if down else "link up")

    # What hosts report

    def note(self, who: str, what: str) -> None:
        """Add a line to the trace."""
        self.trace.append(f"{self.now / SECOND:14.6f} {who:<10} {what}")

    def violate(self, what: str) -> None:
        """An invariant does not hold: say which, when, and after what."""
        tail = "\n".join(self.trace[-40:])
        raise Violation(f"seed {self.seed} at {self.now / SECOND:.6f} s: {what}\n{tail}")

    def expect(self, sender: Host, flow: Traffic, numbers: list[int], disposition: Disposition) -> None:
        """Remember probes that are about to be sent."""
        for number in numbers:
            self.probes[number] = Probe(number, sender.name, self.now, flow, disposition, packets.marker(number))
        self.note(sender.name, f"sends {numbers} {flow.source} > {flow.destination} [{disposition.value}]")

    def clear(self, packet: bytes) -> None:
        """Take note that a soft SA lets the probes in *packet* go in clear."""
        for number in packets.find_markers(packet):
            self.probes[number].clear = True

    def sealed(self, sender: Host, packet: Packet) -> None:
        """Check an ESP or AH packet that leaves a gateway: sequence numbers strictly rise for each SPI."""
        spi, sequence = struct.unpack_from("!II", packet.payload, 4 if packet.kind is Kind.AH else 0)
        key = (sender.name, sender.boots, str(packet.destination.address), spi)
        before = self._sequences.get(key, 0)
        if sequence <= before:
            self.violate(f"{sender.name}: SPI {spi:08x} sends sequence number {sequence} after {before}")
        self._sequences[key] = sequence

    def delivered(self, receiver: Host, delivery: Delivery, packet: bytes) -> None:
        """Check a packet that an application got."""
        self.note(receiver.name, f"got {delivery.number} {'through SA' if delivery.tunnelled else 'in clear'}")
        wrong = invariants.delivery(self, receiver, delivery, packet)
        if wrong:
            self.violate(wrong)
        self.probes[delivery.number].deliveries.append(delivery)

    def check(self, host: Host) -> None:
        """Check what must hold of *host* after every step."""
        for wrong in invariants.step(host, self._spis.setdefault((host.name, host.boots), {})):
            self.violate(wrong)

    def check_quiet(self) -> None:
        """Check what must hold when nothing is under way: both ends of every Child SA agree."""
        for wrong in invariants.quiescent(list(self.hosts.values())):
            self.violate(wrong)

    def pcap(self) -> bytes:
        """Return what was recorded as a pcap file of raw IP packets."""
        head = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 101)
        return head + b"".join(_pcap_record(time, packet) for time, _, packet in self.recording)

    def _link(self, name: str, faults: Faults) -> Link:
        link = Link(name, self.schedule, self._wiretap, faults)
        self.links[name] = link
        return link

    def _wiretap(self, link: str, packet: Packet, what: str) -> None:
        digest = hashlib.sha256(packet.payload).hexdigest()[:12]
        self.note(link, f"{packet} {digest} {what}")
        if self._keep:
            self.recording.append((self.now, link, packet))
        for number in packets.find_markers(packet.payload):
            probe = self.probes[number]
            in_the_open = packet.kind is Kind.AH or probe.clear
            if probe.disposition is not Disposition.BYPASS and not in_the_open:
                self.violate(f"link {link}: probe {number} of a {probe.disposition.value} flow can be read")


def _pcap_record(time: Nanos, packet: Packet) -> bytes:
    octets = packet.payload
    if packet.header:
        octets = packet.header + packet.payload
    elif packet.kind is not Kind.CLEAR:
        flow = Traffic(
            source=packet.source.address,
            destination=packet.destination.address,
            protocol=17 if packet.kind is Kind.UDP else 50,
            source_port=packet.source.port,
            destination_port=packet.destination.port,
        )
        octets = packets.ip_packet(flow, packets.upper_layer(flow, packet.payload))
    return struct.pack("<IIII", time // SECOND, time % SECOND // 1000, len(octets), len(octets)) + octets


def endpoint(address: str, port: int) -> Endpoint:
    """Return an endpoint from text."""
    return Endpoint(ip_address(address), port)
