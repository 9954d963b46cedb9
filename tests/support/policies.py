"""Config texts for tests, and a loader over files that exist only in memory."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path

from policy.authentication import Sources
from policy.compile import Resolve, compile_policy, no_names
from policy.config import Loaded, parse
from policy.path import IpAddress
from policy.problems import ConfigErrors
from policy.spd import Snapshot

#: 32 random octets: no warning about its strength.
KEY = "dJ5fI1mEGSh0yq2vRk9wCz7uLx3NbTa8"

SITE_TO_SITE = f"""\
[agent]
assigned = "Site A to site B"

[[policy]]
name = "Site A to site B"
description = "LAN A to LAN B through the two gateways"
ike = {{ version = 2, proposals = ["aes256gcm16-prfsha384-x25519"], lifetime = "8h" }}
default_response = false
local_id = "gw-a.example"

[[policy.rule]]
name = "LAN to LAN"
filter_list = "LAN A and LAN B"
filter_action = "Require ESP"
tunnel_endpoint = "10.9.0.2"
connection_type = "all"
authentication = [{{ method = "psk", secret = "{KEY}", remote_id = "gw-b.example" }}]

[[filter_list]]
name = "LAN A and LAN B"
[[filter_list.filter]]
source = "10.1.0.0/24"
destination = "10.2.0.0/24"

[[filter_action]]
name = "Require ESP"
action = "negotiate"
methods = ["esp:aes256gcm16", "esp:aes128-sha256"]
lifetime = {{ time = "1h", bytes = "100GiB" }}
pfs = "x25519"
inbound_clear = false
fallback_clear = false
encapsulation = "auto"
"""

_PERMIT_AND_BLOCK = """
[[filter_action]]
name = "Pass"
action = "permit"
[[filter_action]]
name = "Drop"
action = "block"
"""


def changed(text: str, *changes: tuple[str, str]) -> str:
    """Return *text* with each change made; a change that finds nothing is a mistake of the test."""
    for old, new in changes:
        if old not in text:
            raise ValueError(f"{old!r} is not in the text")
        text = text.replace(old, new, 1)
    return text


def load_text(
    text: str, files: Mapping[str, tuple[int, bytes]] | None = None, environment: Mapping[str, str] | None = None
) -> Loaded:
    """Return what *text* means as /etc/mg/a.toml; *files* are mode and octets by path. Raises ConfigErrors."""
    known = files or {}

    def find(path: Path) -> tuple[int, bytes]:
        if str(path) not in known:
            raise FileNotFoundError(2, "No such file or directory")
        mode, octets = known[str(path)]
        return (mode if stat.S_IFMT(mode) else stat.S_IFREG | mode), octets

    sources = Sources(lambda path: find(path)[1], lambda path: find(path)[0], dict(environment or {}).get)
    return parse(text, Path("/etc/mg/a.toml"), sources)


def errors_of(
    text: str, files: Mapping[str, tuple[int, bytes]] | None = None, environment: Mapping[str, str] | None = None
) -> list[str]:
    """Return the lines that the operator reads, without the directory; empty when *text* is accepted."""
    try:
        load_text(text, files, environment)
    except ConfigErrors as error:
        return [line.removeprefix("/etc/mg/") for line in str(error).splitlines()]
    return []


def warnings_of(text: str) -> list[str]:
    """Return the warnings about *text*."""
    return [str(warning).removeprefix("/etc/mg/") for warning in load_text(text).warnings]


def policy_text(*rules: tuple[str, str, str], agent: str = "") -> str:
    """Return a config whose policy has a rule for each (name, action, filters).

    *action* is Pass, Drop or an address, the tunnel endpoint; *filters* are inline tables, one a line.
    """
    parts = [f'[agent]\nassigned = "Test"\n{agent}\n[[policy]]\nname = "Test"\nlocal_id = "me.example"\n']
    for name, action, _ in rules:
        plain = action in ("Pass", "Drop")
        parts.append(
            f'[[policy.rule]]\nname = "{name}"\nfilter_list = "{name} list"\n'
            f'filter_action = "{action if plain else "Protect"}"\n'
        )
        if not plain:
            endpoint, _, remote_id = action.partition("#")
            remote = f', remote_id = "{remote_id}"' if remote_id else ""
            parts.append(
                f'tunnel_endpoint = "{endpoint}"\n'
                f'authentication = [{{ method = "psk", secret = "{KEY}"{remote} }}]\n'
            )
    for name, _, filters in rules:
        rows = ",\n".join(f"  {{ {row} }}" for row in filters.strip().splitlines())
        parts.append(f'[[filter_list]]\nname = "{name} list"\nfilter = [\n{rows}\n]\n')
    parts.append('[[filter_action]]\nname = "Protect"\naction = "negotiate"\nmethods = ["esp:aes256gcm16"]\n')
    return "".join(parts) + _PERMIT_AND_BLOCK


def compiled(
    text: str,
    *local: str,
    generation: int = 1,
    names: Mapping[str, list[str]] | None = None,
    previous: Snapshot | None = None,
) -> Snapshot:
    """Return the assigned policy of *text*, compiled for a host with the addresses *local*."""
    configuration = load_text(text).configuration
    resolve: Resolve = no_names
    if names is not None:
        known: dict[str, list[IpAddress]] = {name: [ip_address(a) for a in found] for name, found in names.items()}

        def resolve(name: str) -> list[IpAddress]:
            return known.get(name, [])

    return compile_policy(
        configuration.policy(configuration.agent.assigned or ""),
        generation=generation,
        local_addresses=[ip_address(address) for address in local],
        resolve=resolve,
        previous=previous,
    )
