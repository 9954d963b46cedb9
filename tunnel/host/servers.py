"""The well-known servers that this host was told of: DNS, default gateways, DHCP and WINS.

A filter may name them by what they are instead of by address. What programs keep of them in files is read, within
bounds, by parsers that raise nothing: a line that they cannot read is no server.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path as FilePath
from typing import Any

from policy.path import IpAddress
from tunnel.host.system import HostError, run_json

#: Octets of a file, and files of a directory, that are read.
_MAX_OCTETS = 256 * 1024
_MAX_FILES = 64
#: systemd-resolved's own list comes first: /etc/resolv.conf then names its stub on loopback.
_RESOLV_CONF = ("/run/systemd/resolve/resolv.conf", "/etc/resolv.conf")
#: Leases of systemd-networkd and of NetworkManager's own client, by key and value.
_KEYED_LEASES = (
    ("/run/systemd/netif/leases", "*"),
    ("/run/NetworkManager/devices", "*"),
    ("/var/lib/NetworkManager", "internal-*.lease"),
)
_DHCLIENT_LEASES = (
    ("/var/lib/dhcp", "dhclient*.leases"),
    ("/var/lib/dhclient", "*.leases"),
    ("/var/lib/NetworkManager", "dhclient-*.lease"),
)
_SMB_CONF = "/etc/samba/smb.conf"
_SERVER_KEYS = frozenset({"SERVER_ADDRESS", "dhcp_server_identifier", "dhcp4.dhcp_server_identifier"})
_IDENTIFIER = re.compile(r"option\s+(?:dhcp-server-identifier|dhcp6\.server-address)\s+([0-9a-fA-F.:]+)\s*;")
_LEASE = re.compile(r'interface\s+"([^"]*)"\s*;')


@dataclass(frozen=True, slots=True)
class Servers:
    """Addresses by kind of server, in the order in which they were told; none for what is not known."""

    dns: tuple[IpAddress, ...] = ()
    gateway: tuple[IpAddress, ...] = ()
    dhcp: tuple[IpAddress, ...] = ()
    wins: tuple[IpAddress, ...] = ()


def current(root: FilePath = FilePath("/")) -> Servers:
    """Return the servers known now. Blocks for a moment: run it in a thread. *root* is where the files are."""
    return Servers(dns=_dns(root), gateway=_gateways(), dhcp=_dhcp(root), wins=_wins(root))


def resolv_conf(text: str) -> list[IpAddress]:
    """Return the name servers of a ``resolv.conf``, without stubs on loopback."""
    found = []
    for line in text.splitlines():
        words = line.split("#")[0].split()
        if len(words) >= 2 and words[0] == "nameserver":
            found += _address(words[1])
    return [address for address in found if not address.is_loopback]


def default_gateways(routes: Iterable[Any]) -> list[IpAddress]:
    """Return the gateways of the default routes that ``ip -j route show`` printed, best metric first."""
    found: list[tuple[int, IpAddress]] = []
    for route in routes:
        if not isinstance(route, dict) or route.get("dst") != "default":
            continue
        metric = route.get("metric", 0)
        hops = route.get("nexthops")
        for hop in (route, *(hop for hop in (hops if isinstance(hops, list) else ()) if isinstance(hop, dict))):
            # An IPv4 route by way of an IPv6 neighbour has "via" instead.
            neighbour = hop.get("via")
            via = hop.get("gateway") or (neighbour.get("host") if isinstance(neighbour, dict) else None)
            found += [(metric if isinstance(metric, int) else 0, address) for address in _address(str(via))]
    return list(dict.fromkeys(address for _, address in sorted(found, key=lambda pair: pair[0])))


def keyed_lease(text: str) -> list[IpAddress]:
    """Return the DHCP servers of a lease that is lines of KEY=value."""
    found = []
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        if equals and key.strip() in _SERVER_KEYS:
            found += _address(value.strip().strip("\"'"))
    return found


def dhclient_leases(text: str) -> list[IpAddress]:
    """Return the DHCP servers of a ``dhclient.leases``: of the last lease of each interface, which is in force."""
    last: dict[str, list[IpAddress]] = {}
    for block in re.split(r"^(?:lease6?|default-duid)\b", text, flags=re.MULTILINE)[1:]:
        interface = _LEASE.search(block)
        servers = [address for word in _IDENTIFIER.findall(block) for address in _address(word)]
        if servers:
            last[interface[1] if interface else ""] = servers
    return [address for servers in last.values() for address in servers]


def smb_conf(text: str) -> list[IpAddress]:
    """Return the WINS servers of Samba's configuration (``wins server = 10.0.0.1, tag:10.0.0.2``)."""
    found = []
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        if equals and "".join(key.lower().split()) == "winsserver":
            for word in value.replace(",", " ").split():
                found += _address(word) or _address(word.partition(":")[2])
    return found


def _dns(root: FilePath) -> tuple[IpAddress, ...]:
    for name in _RESOLV_CONF:
        found = resolv_conf(_read(_inside(root, name)))
        if found:
            return tuple(dict.fromkeys(found))
    return ()


def _gateways() -> tuple[IpAddress, ...]:
    found: list[IpAddress] = []
    for version in (4, 6):
        with suppress(HostError):  # a kernel without IPv6
            found += default_gateways(
                run_json(["ip", "-j", f"-{version}", "route", "show", "default", "table", "main"])
            )
    return tuple(dict.fromkeys(found))


def _dhcp(root: FilePath) -> tuple[IpAddress, ...]:
    readers: tuple[tuple[Sequence[tuple[str, str]], Callable[[str], list[IpAddress]]], ...] = (
        (_KEYED_LEASES, keyed_lease),
        (_DHCLIENT_LEASES, dhclient_leases),
    )
    found: dict[IpAddress, None] = {}
    for places, parse in readers:
        for directory, pattern in places:
            for path in _files(_inside(root, directory), pattern):
                found.update(dict.fromkeys(parse(_read(path))))
    return tuple(found)


def _wins(root: FilePath) -> tuple[IpAddress, ...]:
    return tuple(dict.fromkeys(smb_conf(_read(_inside(root, _SMB_CONF)))))


def _inside(root: FilePath, name: str) -> FilePath:
    return root / name.lstrip("/")


def _files(directory: FilePath, pattern: str) -> list[FilePath]:
    try:
        found = []
        for path in directory.glob(pattern):
            found.append(path)
            if len(found) >= _MAX_FILES:
                break
        return sorted(found)
    except OSError:
        return []


def _read(path: FilePath) -> str:
    """Return the beginning of a file; nothing when there is none, or it is no file."""
    try:
        if not path.is_file():
            return ""
        with path.open("rb") as stream:
            return stream.read(_MAX_OCTETS).decode("utf-8", "replace")
    except OSError:
        return ""


def _address(text: str) -> list[IpAddress]:
    """Return the address that *text* is, without its zone; none when it is none or means nobody."""
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return []
    return [] if address.is_unspecified or address.is_multicast else [address]
