"""Which of several transport-mode peers behind one NAT a flow belongs to (RFC 3948 section 5.2).

They share an address, so nothing but what came in by an SA tells whose a flow is; the port of the NAT's mapping
names the peer. While a flow is one peer's, another may not speak in it: it would be sent what is not its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from policy.clock import SECOND, Nanos
from policy.path import Endpoint
from policy.selectors import TCP, UDP, Flow

#: A flow without a connection, or whose connection was closed, is its peer's for so long after its last packet.
FRESH = 300 * SECOND
MAX_FLOWS = 16384
_FIN_RST, _SYN = 0x05, 0x02

_Key: TypeAlias = tuple[int, int, int, int | None, int | None]


class _Binding:
    __slots__ = ("connected", "remote", "used")

    def __init__(self, remote: Endpoint) -> None:
        self.remote = remote
        self.used: Nanos = 0
        #: Whether it is a TCP connection that the peer has not closed: such a one may be silent for hours.
        self.connected = False


class NatFlows:
    """The peers of flows, by the flow as it leaves; the one unused for longest goes first."""

    __slots__ = ("_bindings", "changed")

    def __init__(self) -> None:
        self._bindings: dict[_Key, _Binding] = {}
        #: Whether a flow has come to another peer since this was last cleared.
        self.changed = False

    def arrived(
        self, flow: Flow, tcp_flags: int, remote: Endpoint, now: Nanos, alive: Callable[[Endpoint], bool]
    ) -> bool:
        """Record that *flow* came in from the peer at *remote*; return False if it is another peer's.

        *alive* says whether the peer at an endpoint still has SAs. *tcp_flags* is 0 where there are none.
        """
        key = _key(flow.version, flow.protocol, flow.source, flow.source_port, flow.destination_port)
        binding = self._bindings.pop(key, None)
        if binding is None or binding.remote != remote:
            if binding is not None and _held(binding, flow.protocol, now) and alive(binding.remote):
                self._bindings[key] = binding
                return False
            binding = _Binding(remote)
            self.changed = True
            if len(self._bindings) >= MAX_FLOWS:
                del self._bindings[next(iter(self._bindings))]
        self._bindings[key] = binding
        binding.used = now
        if flow.protocol == TCP:
            binding.connected = (binding.connected or bool(tcp_flags)) and not tcp_flags & _FIN_RST
            if tcp_flags & _SYN:
                binding.connected = True
        return True

    def peer_of(self, flow: Flow) -> Endpoint | None:
        """Return where the peer is that *flow*, which leaves, belongs to; None if none ever spoke in it."""
        key = _key(flow.version, flow.protocol, flow.destination, flow.destination_port, flow.source_port)
        binding = self._bindings.get(key)
        return None if binding is None else binding.remote

    def move(self, old: Endpoint, new: Endpoint) -> None:
        """The NAT gave the peer at *old* another mapping."""
        for binding in self._bindings.values():
            if binding.remote == old:
                binding.remote = new


def _key(version: int, protocol: int, remote: int, remote_port: int | None, local_port: int | None) -> _Key:
    """Return what tells flows apart; ICMP's types differ between request and answer, so they do not count."""
    if protocol not in (TCP, UDP):
        remote_port = local_port = None
    return (version, protocol, remote, remote_port, local_port)


def _held(binding: _Binding, protocol: int, now: Nanos) -> bool:
    """Whether a flow is still its peer's. What has no ports is nobody's for long: the last one is answered."""
    return protocol in (TCP, UDP) and (binding.connected or now - binding.used < FRESH)
