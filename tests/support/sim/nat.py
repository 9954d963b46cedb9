"""A NAT with endpoint-independent mapping (RFC 4787)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from policy.clock import SECOND, Nanos
from policy.path import Endpoint, IpAddress
from tests.support.sim.clock import Schedule
from tests.support.sim.net import Kind, Link, Packet


@dataclass(slots=True)
class _Binding:
    inside: Endpoint
    outside: Endpoint
    used: Nanos
    peers: dict[Endpoint, None]


class Nat:
    """Translates UDP between an inside link and an outside link; raw ESP does not pass.

    Mapping is endpoint-independent (REQ-1), filtering address-and-port-dependent (the strictest of section 5), and
    only packets from inside refresh a binding (REQ-6).
    """

    def __init__(self, name: str, schedule: Schedule, public: IpAddress, expiry: Nanos = 120 * SECOND) -> None:
        self.name = name
        self.expiry = expiry
        self.inside: Link | None = None
        self.outside: Link | None = None
        self.refused = 0
        self._schedule = schedule
        self.public = public
        self._next_port = 20000
        self._bindings: list[_Binding] = []

    def receive(self, packet: Packet, link: Link) -> None:
        """Translate and forward."""
        self._forget()
        if packet.kind is not Kind.UDP:
            self.refused += 1
        elif link is self.inside:
            self._out(packet)
        else:
            self._in(packet)

    def too_big(self, packet: Packet, mtu: int, link: Link) -> None:
        """Translate the source in the quoted packet back (RFC 5508) and pass the news on."""
        binding = next((b for b in self._bindings if b.outside == packet.source), None)
        if binding is not None and self.inside is not None and link is self.outside:
            host = next(end for end in self.inside.ends if end is not self)
            host.too_big(replace(packet, source=binding.inside), mtu, self.inside)

    def rebind(self) -> None:
        """Forget every binding, as a restart does: the next packets get new ports."""
        self._bindings.clear()

    def _out(self, packet: Packet) -> None:
        binding = next((b for b in self._bindings if b.inside == packet.source), None)
        if binding is None:
            self._next_port += 1
            outside = Endpoint(self.public, self._next_port)
            binding = _Binding(packet.source, outside, self._schedule.now, {})
            self._bindings.append(binding)
        binding.used = self._schedule.now
        binding.peers[packet.destination] = None
        if self.outside is not None:
            self.outside.send(replace(packet, source=binding.outside), self)

    def _in(self, packet: Packet) -> None:
        binding = next((b for b in self._bindings if b.outside == packet.destination), None)
        if binding is None or packet.source not in binding.peers or self.inside is None:
            self.refused += 1
            return
        self.inside.send(replace(packet, destination=binding.inside), self)

    def _forget(self) -> None:
        limit = self._schedule.now - self.expiry
        self._bindings = [binding for binding in self._bindings if binding.used > limit]
