"""The host's interfaces by kind: those of a local network, and those of remote access (dial-up, VPN)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tunnel.host.system import run_json

#: Names that mean themselves in a ruleset: no quotes, and no star, which would stand for others.
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.:@+-]{1,15}")
#: Link types (ARPHRD_ names, as ``ip`` prints them) without a network behind: point to point, and tunnels.
_REMOTE_ACCESS = frozenset(
    {"ppp", "none", "slip", "cslip", "slip6", "cslip6", "tunnel", "tunnel6", "ipip", "sit", "gre", "ip6gre"}
    | {"gre6", "rawip", "netrom", "x25", "hdlc", "cisco", "lapb"}
)


@dataclass(frozen=True, slots=True)
class Links:
    """Interface names by kind, sorted. Loopback and the TUN are of neither."""

    lan: tuple[str, ...] = ()
    remote_access: tuple[str, ...] = ()


def current(tun: str) -> Links:
    """Return the interfaces that there are now. HostError when ``ip`` fails."""
    return parse(run_json(["ip", "-j", "link", "show"]), tun)


def parse(links: Iterable[Any], tun: str) -> Links:
    """Return the interfaces of what ``ip -j link`` printed, by kind.

    Ethernet, Wi-Fi, bridges, bonds and VLANs are local networks; PPP, WireGuard, TUN devices and whatever else is
    point-to-point is remote access.
    """
    lan: list[str] = []
    remote: list[str] = []
    for link in links:
        name = link.get("ifname") if isinstance(link, dict) else None
        if not isinstance(name, str) or name == tun or _PLAIN_NAME.fullmatch(name) is None:
            continue
        flags, kind = link.get("flags"), str(link.get("link_type"))
        flags = flags if isinstance(flags, list) else ()
        if kind == "loopback" or "LOOPBACK" in flags:
            continue
        (remote if kind in _REMOTE_ACCESS or "POINTOPOINT" in flags else lan).append(name)
    return Links(tuple(sorted(lan)), tuple(sorted(remote)))
