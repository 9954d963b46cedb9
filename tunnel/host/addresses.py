"""This host's addresses and MTUs, and a sign when they change (rtnetlink)."""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

from policy.path import IKE_PORT, IpAddress
from policy.selectors import AddressRange
from tunnel.host import cmsg
from tunnel.host.marks import OWN_MARK
from tunnel.host.system import run_json

#: Multicast groups of rtnetlink: links, IPv4 and IPv6 addresses, IPv4 and IPv6 routes.
_RTMGRP_LINK, _RTMGRP_IPV4_IFADDR, _RTMGRP_IPV4_ROUTE = 0x1, 0x10, 0x40
_RTMGRP_IPV6_IFADDR, _RTMGRP_IPV6_ROUTE = 0x100, 0x400
_RTMGRP_IPV4_RULE, _RTMGRP_IPV6_RULE = 0x80, 0x40000
_GROUPS = (
    _RTMGRP_LINK | _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV4_ROUTE | _RTMGRP_IPV4_RULE
    | _RTMGRP_IPV6_IFADDR | _RTMGRP_IPV6_ROUTE | _RTMGRP_IPV6_RULE
)  # fmt: skip
_SO_MARK = 36


@dataclass(frozen=True, slots=True)
class HostAddresses:
    """The addresses of all interfaces, the TUN's own apart, and the networks that they lie in."""

    addresses: tuple[IpAddress, ...] = ()
    networks: tuple[AddressRange, ...] = ()


def current(tun: str) -> HostAddresses:
    """Return the addresses in use, without loopback, link-local, tentative and the TUN's."""
    found: dict[IpAddress, None] = {}
    networks: dict[AddressRange, None] = {}
    for link in run_json(["ip", "-j", "addr", "show"]):
        if not isinstance(link, dict) or link.get("ifname") == tun:
            continue
        for info in link.get("addr_info", ()):
            address = ip_address(info["local"])
            if not (address.is_loopback or address.is_link_local or info.get("tentative")):
                found[address] = None
                networks[AddressRange.network(ip_network((address, info["prefixlen"]), strict=False))] = None
    return HostAddresses(tuple(found), tuple(networks))


@dataclass(frozen=True, slots=True)
class Route:
    """How a remote address is reached: from which own address, and with which MTU."""

    source: IpAddress
    mtu: int


def route_to(remote: IpAddress) -> Route | None:
    """Return how the agent's own packets go to *remote*; None when there is no route. Takes microseconds."""
    family = socket.AF_INET if remote.version == 4 else socket.AF_INET6
    level, name = cmsg.PATH_MTU[remote.version]
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, _SO_MARK, OWN_MARK)
            probe.connect((str(remote), IKE_PORT))  # nothing is sent: the kernel looks the route up
            return Route(ip_address(probe.getsockname()[0].partition("%")[0]), probe.getsockopt(level, name))
    except OSError:
        return None


class Watcher:
    """A netlink socket that becomes readable when a link, an address, a route or a rule changes."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
        self._socket.bind((0, _GROUPS))
        self.fd = self._socket.fileno()

    def drain(self) -> None:
        """Throw the notifications away: they only say that it is time to look."""
        while True:
            try:
                self._socket.recv(65536)
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # some were lost, which says the same
                    return

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
