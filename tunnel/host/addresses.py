"""This host's addresses and MTUs, and a sign when they change (rtnetlink)."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from ipaddress import ip_address

from policy.path import IpAddress
from tunnel.host.marks import OWN_MARK
from tunnel.host.system import HostError, run_json

#: Multicast groups of rtnetlink: links, IPv4 and IPv6 addresses, IPv4 and IPv6 routes.
_RTMGRP_LINK, _RTMGRP_IPV4_IFADDR, _RTMGRP_IPV6_IFADDR = 0x1, 0x10, 0x100


@dataclass(frozen=True, slots=True)
class HostAddresses:
    """The addresses of all interfaces that are up, the TUN's own apart."""

    addresses: tuple[IpAddress, ...]


def current(tun: str) -> HostAddresses:
    """Return the addresses in use, without loopback, link-local, tentative and the TUN's."""
    found: list[IpAddress] = []
    for link in run_json(["ip", "-j", "addr", "show"]):
        if not isinstance(link, dict) or link.get("ifname") == tun:
            continue
        for info in link.get("addr_info", ()):
            address = ip_address(info["local"])
            if not (address.is_loopback or address.is_link_local or info.get("tentative")):
                found.append(address)
    return HostAddresses(tuple(dict.fromkeys(found)))


@dataclass(frozen=True, slots=True)
class Route:
    """How a remote address is reached: from which own address, and with which MTU."""

    source: IpAddress
    mtu: int


def route_to(remote: IpAddress) -> Route | None:
    """Return the kernel's route of the agent's own packets to *remote*; None when there is none."""
    try:
        routes = run_json(["ip", "-j", "route", "get", str(remote), "mark", hex(OWN_MARK)])
        found = routes[0]
        mtu = next((item["mtu"] for item in found.get("metrics", ()) if "mtu" in item), None)
        if mtu is None:
            mtu = run_json(["ip", "-j", "link", "show", "dev", found["dev"]])[0]["mtu"]
        return Route(ip_address(found["prefsrc"]), int(mtu))
    except (HostError, KeyError, IndexError):
        return None


class Watcher:
    """A netlink socket that becomes readable when a link or an address changes."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
        self._socket.bind((0, _RTMGRP_LINK | _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV6_IFADDR))
        self.fd = self._socket.fileno()

    def drain(self) -> None:
        """Throw the notifications away: they only say that it is time to look."""
        while True:
            try:
                self._socket.recv(65536)
            except BlockingIOError:
                return
            except OSError:
                continue  # ENOBUFS: some were lost, which says the same

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
