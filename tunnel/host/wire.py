"""All sockets of the agent together."""

from __future__ import annotations

import socket
from collections.abc import Container

from policy.path import IKE_PORT, NATT_PORT, RAW_PORT
from tunnel.dataplane.contract import Transmit
from tunnel.host.rawsocket import RawSocket
from tunnel.host.sockets import APART, ESP, RAW, UDP, WHOLE, PathMtuReport, WireSocket
from tunnel.host.toobig import TooBigSocket


class Wire:
    """All sockets of the agent; ``send`` picks the one of a path."""

    def __init__(self, *, offload: bool, path_mtu: PathMtuReport) -> None:
        #: By IP version, local port and IP protocol; port 0 is raw, and protocol 255 takes whole packets.
        self.sockets: dict[tuple[int, int, int], WireSocket] = {}
        #: Hears what IPv6 paths say of raw packets, where there is IPv6.
        self.too_big: TooBigSocket | None = None
        kinds = [(port, UDP) for port in (IKE_PORT, NATT_PORT)] + [(RAW_PORT, protocol) for protocol in RAW]
        try:
            for version in (4, 6) if _has_ipv6() else (4,):
                for port, protocol in kinds:
                    self.sockets[version, port, protocol] = (
                        RawSocket(version, protocol, offload=offload, path_mtu=path_mtu)
                        if port == RAW_PORT
                        else WireSocket(version, port, protocol, offload=offload, path_mtu=path_mtu)
                    )
                self._part(version, offload, path_mtu)
                if version == 6:
                    self.too_big = TooBigSocket(path_mtu)
        except BaseException:
            self.close()
            raise

    def _part(self, version: int, offload: bool, path_mtu: PathMtuReport) -> None:
        """Give IKE on port 4500 a queue of its own."""
        apart = WireSocket(version, NATT_PORT, APART, offload=offload, path_mtu=path_mtu)
        if self.sockets[version, NATT_PORT, UDP].part(apart):
            self.sockets[version, NATT_PORT, APART] = apart
        else:
            apart.close()

    def screen(self, known: Container[int]) -> None:
        """Drop ESP in UDP whose SPI is not in *known*, from now on."""
        for (_, port, protocol), sock in self.sockets.items():
            if port == NATT_PORT and protocol == UDP:
                sock.known = known

    def send(self, transmit: Transmit) -> WireSocket | None:
        """Send on the socket of the path's family and local port; return it, or None if there is none."""
        path = transmit.path
        if transmit.whole:
            sock = self.sockets.get((path.version, RAW_PORT, WHOLE))
        else:
            port = path.local.port
            sock = self.sockets.get((path.version, port, ESP if port == RAW_PORT else UDP))
        if sock is not None:
            sock.send(transmit)
        return sock

    @property
    def errors(self) -> dict[str, int]:
        """Return what the sockets could not send or receive, and what the kernel dropped before that."""
        return {
            "kernel": sum(sock.kernel_drops for sock in self.sockets.values()),
            "send": sum(sock.send_errors for sock in self.sockets.values()),
            "receive": sum(sock.receive_errors for sock in self.sockets.values()),
        }

    def close(self) -> None:
        """Close every socket."""
        for sock in self.readable():
            sock.close()

    def readable(self) -> list[WireSocket | TooBigSocket]:
        """Return all that wants to be read."""
        return [*self.sockets.values(), *([self.too_big] if self.too_big is not None else [])]


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind(("::", 0))
    except OSError:
        return False
    return True
