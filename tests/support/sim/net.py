"""Links with every fault that networks have, a router between them, and a wiretap on each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv4Network, IPv6Network
from random import Random
from typing import Protocol

from policy.clock import MILLISECOND, Nanos
from policy.path import Endpoint, IpAddress
from tests.support.sim.clock import Schedule


class Kind(Enum):
    """What a packet on a link is."""

    UDP = "udp"
    ESP = "esp"
    AH = "ah"
    CLEAR = "clear"


@dataclass(frozen=True, slots=True)
class Packet:
    """One IP packet on a link; of a CLEAR one *payload* is the whole packet and the ports are 0."""

    kind: Kind
    source: Endpoint
    destination: Endpoint
    payload: bytes
    tos: int = 0
    df: bool = False
    #: The IP header with options or extension headers, where the sender made it itself.
    header: bytes = b""

    @property
    def size(self) -> int:
        """Octets of the IP packet."""
        if self.kind is Kind.CLEAR:
            return len(self.payload)
        if self.header:
            return len(self.header) + len(self.payload)
        header = 20 if self.source.address.version == 4 else 40
        return header + (8 if self.kind is Kind.UDP else 0) + len(self.payload)

    def __str__(self) -> str:
        return f"{self.kind.value} {self.source} > {self.destination} {len(self.payload)} octets"


class Node(Protocol):
    """What a link ends in."""

    @property
    def name(self) -> str:
        """Name, for the trace."""

    def receive(self, packet: Packet, link: Link) -> None:
        """Take a packet that came over *link*."""

    def too_big(self, packet: Packet, mtu: int, link: Link) -> None:
        """Take the news that *packet*, sent over *link*, met a narrower link."""


@dataclass(slots=True)
class Faults:
    """What a link does to packets; probabilities from 0 to 1."""

    latency: Nanos = 5 * MILLISECOND
    jitter: Nanos = 0
    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    mtu: int = 1500
    #: A partition: nothing passes.
    down: bool = False
    #: The next packets that are lost, whatever *loss* is.
    drop_next: int = 0
    duplicate_next: int = 0
    #: Packets for which this is true are lost.
    drop_if: Callable[[Packet], bool] | None = None


#: Sees each packet as it enters a link: the link's name, the packet, and what became of it.
Wiretap = Callable[[str, Packet, str], None]


@dataclass(slots=True)
class Link:
    """A link between two nodes."""

    name: str
    schedule: Schedule
    wiretap: Wiretap
    faults: Faults = field(default_factory=Faults)
    ends: list[Node] = field(default_factory=list)
    #: Packets that were lost, by why.
    lost: dict[str, int] = field(default_factory=dict)
    _latest: dict[str, Nanos] = field(default_factory=dict)
    _random: Random | None = None

    def send(self, packet: Packet, sender: Node) -> None:
        """Carry *packet* from *sender* to the other end."""
        if self._random is None:
            self._random = self.schedule.random(self.name)
        random, faults = self._random, self.faults
        if faults.down:
            return self._lose(packet, "down")
        if faults.drop_next > 0:
            faults.drop_next -= 1
            return self._lose(packet, "dropped")
        if faults.drop_if is not None and faults.drop_if(packet):
            return self._lose(packet, "dropped")
        if random.random() < faults.loss:
            return self._lose(packet, "lost")
        if packet.size > faults.mtu and packet.df:
            self.schedule.after(faults.latency, lambda: sender.too_big(packet, faults.mtu, self))
            return self._lose(packet, "too big")
        copies = 1
        if faults.duplicate_next > 0:
            faults.duplicate_next -= 1
            copies = 2
        elif random.random() < faults.duplicate:
            copies = 2
        self.wiretap(self.name, packet, "passes" if copies == 1 else "duplicated")
        other = self.ends[1] if sender is self.ends[0] else self.ends[0]
        for _ in range(copies):
            arrival = self.schedule.now + faults.latency + random.randint(0, faults.jitter)
            if random.random() < faults.reorder:
                arrival += 3 * faults.latency + random.randint(0, faults.latency)
            else:
                arrival = max(arrival, self._latest.get(sender.name, 0))
                self._latest[sender.name] = arrival
            self.schedule.at(arrival, lambda: other.receive(packet, self))
        return None

    def _lose(self, packet: Packet, why: str) -> None:
        self.lost[why] = self.lost.get(why, 0) + 1
        self.wiretap(self.name, packet, why)


class Router:
    """The network in the middle: it knows on which link each address and net is."""

    name = "internet"

    def __init__(self) -> None:
        self._routes: list[tuple[IPv4Network | IPv6Network, Link]] = []
        self.unrouted = 0

    def add(self, network: IPv4Network | IPv6Network, link: Link) -> None:
        """Route *network* over *link*; longer prefixes win."""
        self._routes.append((network, link))
        self._routes.sort(key=lambda route: -route[0].prefixlen)

    def route(self, address: IpAddress) -> Link | None:
        """Return the link toward *address*."""
        for network, link in self._routes:
            if network.version == address.version and address in network:
                return link
        return None

    def receive(self, packet: Packet, link: Link) -> None:
        """Forward."""
        onward = self.route(packet.destination.address)
        if onward is None or onward is link:
            self.unrouted += 1
            return
        onward.send(packet, self)

    def too_big(self, packet: Packet, mtu: int, link: Link) -> None:
        """Tell the sender, as ICMP does."""
        back = self.route(packet.source.address)
        if back is not None and back is not link:
            end = back.ends[0] if back.ends[1] is self else back.ends[1]
            end.too_big(packet, mtu, back)
