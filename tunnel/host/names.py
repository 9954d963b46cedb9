"""DNS names with the time that their addresses are good for.

The hosts file comes first, then DNS, whose answers tell their time to live; what neither knows is asked of the C
library, which may have other sources and tells no time.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path as FilePath

import dns.exception
import dns.resolver
from dns.rdatatype import RdataType

from policy.path import IpAddress

#: A name is asked for again after its time to live, kept within these seconds.
MIN_TTL, MAX_TTL = 30, 3600
#: For answers that come without one.
_NO_TTL = 60
_HOSTS = FilePath("/etc/hosts")
#: Octets of the hosts file that are read, and addresses of one name that are taken.
_MAX_OCTETS = 1 << 20
_MAX_ADDRESSES = 256
#: Seconds for all the servers together to answer one question.
_PATIENCE = 4.0


@dataclass(frozen=True, slots=True)
class Resolution:
    """The addresses of a name, none when it does not resolve, and after how many seconds to ask again."""

    addresses: tuple[IpAddress, ...]
    ttl: int


def resolve(names: Iterable[str], *, hosts: FilePath = _HOSTS) -> dict[str, Resolution]:
    """Return what each name resolves to now. Blocks for seconds: run it in a thread."""
    known = hosts_file(_read(hosts))
    resolver = _resolver()
    found = {}
    for name in names:
        listed = known.get(name.rstrip(".").lower())
        if listed:
            found[name] = Resolution(tuple(listed[:_MAX_ADDRESSES]), _NO_TTL)
        else:
            found[name] = _from_dns(resolver, name) or _from_library(name)
    return found


def hosts_file(text: str) -> dict[str, list[IpAddress]]:
    """Return the addresses of each name, in lower case, of a hosts file."""
    found: dict[str, list[IpAddress]] = {}
    for line in text.splitlines():
        words = line.split("#")[0].split()
        try:
            address = ip_address(words[0].partition("%")[0]) if words else None
        except ValueError:
            continue
        for name in words[1:] if address is not None else ():
            addresses = found.setdefault(name.rstrip(".").lower(), [])
            if address is not None and address not in addresses:
                addresses.append(address)
    return found


def _resolver() -> dns.resolver.Resolver | None:
    try:
        resolver = dns.resolver.Resolver()
    except (dns.exception.DNSException, OSError):  # no server is configured
        return None
    resolver.lifetime = _PATIENCE
    return resolver


def _from_dns(resolver: dns.resolver.Resolver | None, name: str) -> Resolution | None:
    """Return the A and AAAA records; None when there are none or nobody answered in time."""
    if resolver is None:
        return None
    addresses: list[IpAddress] = []
    ttls: list[int] = []
    for kind in (RdataType.A, RdataType.AAAA):
        try:
            answer = resolver.resolve(name, kind, search=True)
        except dns.resolver.NoAnswer:
            continue  # the name has the other kind alone
        except (dns.exception.DNSException, OSError, ValueError):
            # One kind without the other would be half a policy: the library's answer, or none, is better.
            return None
        addresses += [ip_address(record.address) for record in answer]
        ttls.append(answer.chaining_result.minimum_ttl)
    if not addresses:
        return None
    # Servers turn the order from answer to answer, which should not make a policy another one.
    addresses.sort(key=lambda address: (address.version, int(address)))
    return Resolution(tuple(dict.fromkeys(addresses))[:_MAX_ADDRESSES], max(MIN_TTL, min(MAX_TTL, *ttls)))


def _from_library(name: str) -> Resolution:
    try:
        answers = socket.getaddrinfo(name, None, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError):
        return Resolution((), MIN_TTL)
    addresses = dict.fromkeys(ip_address(str(answer[4][0]).partition("%")[0]) for answer in answers)
    return Resolution(tuple(addresses)[:_MAX_ADDRESSES], _NO_TTL)


def _read(path: FilePath) -> str:
    try:
        with path.open("rb") as stream:
            return stream.read(_MAX_OCTETS).decode("utf-8", "replace")
    except OSError:
        return ""
