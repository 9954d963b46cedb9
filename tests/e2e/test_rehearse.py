"""What ``rehearse`` says of two configs is what the agents then do with them, on real packets."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

import pytest

from policy.texts import parse_flow
from tests.support.agent_process import Agent, Directory
from tests.support.capture import Capture
from tests.support.host_net import SERVER_CODE, ask, hosts
from tests.support.netns import Namespace, sites, wait_for
from tests.support.sim.clock import Entropy
from tunnel.cli.rehearse import rehearsed

pytestmark = pytest.mark.e2e

HOSTS = (("10.9.0.1", "fd00:9::1"), ("10.9.0.2", "fd00:9::2"))
SITES = (("10.1.0.1", "10.9.0.1", "fd00:1::1", "fd00:9::1"), ("10.2.0.1", "10.9.0.2", "fd00:2::1", "fd00:9::2"))
Change = tuple[str, str]


@dataclass(frozen=True)
class Case:
    """Two configs with changes to the second, and a conversation that a client begins behind the first."""

    one: str
    other: str
    port: int
    outcome: str
    target: str = "10.9.0.2"
    changes: tuple[Change, ...] = ()
    first_changes: tuple[Change, ...] = ()
    behind: bool = field(default=False)
    #: Rekey once it is protected: the outcome is "protected at first" when no end can.
    renew: bool = False


KEY = ('secret_file = "', 'secret_file = "other-')
CASES = {
    "ah": Case("web-client.toml", "web-server.toml", 80, "protected"),
    "key": Case("web-client.toml", "web-server.toml", 80, "blocked", changes=(KEY,)),
    "port": Case("database-port-client.toml", "database-port-server.toml", 5432, "protected"),
    "suite": Case(
        "database-port-client.toml", "database-port-server.toml", 5432, "blocked",
        changes=(('"esp:aes256gcm16"', '"esp:chacha20poly1305"'),),
    ),
    "mode": Case(
        "ipv6-transport-a.toml", "ipv6-transport-b.toml", 80, "blocked", "fd00:9::2",
        first_changes=(('name = "The other host"', 'name = "T"\ntunnel_endpoint = "fd00:9::2"'),),
    ),
    "responds": Case("respond-only.toml", "require-security.toml", 80, "protected"),
    "neither": Case("respond-only.toml", "respond-only.toml", 80, "clear"),
    "refused": Case("request-security.toml", "block-and-permit.toml", 80, "blocked"),
    "permitted": Case("respond-only.toml", "block-and-permit.toml", 22, "clear"),
    "one-sided": Case("respond-only.toml", "database-port-server.toml", 5432, "blocked"),
    "tunnel": Case("site-a.toml", "site-b.toml", 80, "protected", "10.2.0.5", behind=True),
    "pfs": Case(
        "site-a.toml", "site-b.toml", 80, "protected at first", "10.2.0.5", behind=True, renew=True,
        changes=(('pfs = "x25519"', 'pfs = "ecp256"'),),
    ),
    "one pfs": Case(
        "site-a.toml", "site-b.toml", 80, "protected", "10.2.0.5", behind=True, renew=True,
        changes=(('pfs = "x25519"', ""),),
    ),
    "identity": Case(
        "site-a.toml", "site-b.toml", 80, "blocked", "10.2.0.5", behind=True,
        changes=(('remote_id = "gw-a.example"', 'remote_id = "gw-x.example"'),),
    ),
    # A gateway that has an address in the network behind it knows which side of a mirrored filter is its own.
    "swapped": Case(
        "site-a.toml", "site-b.toml", 80, "protected", "10.2.0.5", behind=True,
        changes=(
            ('source = "10.2.0.0/24"', 'source = "x"'),
            ('destination = "10.1.0.0/24"', 'destination = "10.2.0.0/24"'),
            ('source = "x"', 'source = "10.1.0.0/24"'),
        ),
    ),
    "selectors": Case(
        "site-a.toml", "site-b.toml", 80, "blocked", "10.2.0.5", behind=True,
        changes=(('source = "10.2.0.0/24"', 'source = "10.2.0.128/25"'),),
    ),
}  # fmt: skip


@dataclass
class Ground:
    client: Namespace
    server: Namespace
    first: Namespace
    second: Namespace
    link: Namespace


@contextlib.contextmanager
def ground(case: Case) -> Iterator[Ground]:
    """Two hosts, or two sites with a host behind each, and a server."""
    if case.behind:
        with sites() as built:
            yield Ground(built.lan_a, built.lan_b, built.gateway_a, built.gateway_b, built.internet)
    else:
        with hosts("client", "server") as pair:
            yield Ground(pair["client"], pair["server"], pair["client"], pair["server"], pair.link)


def talk(case: Case, directory: Directory) -> str:
    """Return how the last of a few connections went, as seen between the ends."""
    with contextlib.ExitStack() as ended, ground(case) as built, contextlib.ExitStack() as agents:
        serving = built.server.start(sys.executable, "-c", SERVER_CODE, str(case.port))
        ended.callback(serving.wait, 10)
        wait_for(lambda: built.server.run("ss", "-Hltn").stdout.count(f":{case.port}") >= 2, "the server listens")
        both = [
            agents.enter_context(Agent(place, config))
            for place, config in zip((built.first, built.second), configs(case, directory), strict=True)
        ]
        for _ in range(3):
            if ask(built.client, case.target, case.port, wait=1.2):
                break
        with Capture(built.link, "wan", f"tcp port {case.port}") as clear:
            answered = ask(built.client, case.target, case.port, wait=2)
        in_clear = bool(clear.packets())
        lasts = not case.renew or renews(*both)
    if not answered:
        return "blocked"
    return "clear" if in_clear else "protected" if lasts else "protected at first"


def renews(*agents: Agent) -> bool:
    """Whether a Child SA is replaced when one end or the other rekeys."""
    for agent in agents:
        before = {child["child"] for child in agent.children()}
        agent.run("rekey")
        with contextlib.suppress(AssertionError):
            wait_for(lambda: {c["child"] for c in agent.children()} - before, "a new Child SA", 2, every=0.3)  # noqa: B023
            return True
    return False


def configs(case: Case, directory: Directory) -> tuple[Path, Path]:
    """Return both configs, each with a socket of its own, though they may be of one name."""
    one, other = f"a-{case.one}", f"b-{case.other}"
    shipped = (
        directory.config(case.one, *case.first_changes).read_text(),
        directory.config(case.other, *case.changes).read_text(),
    )
    paths = directory.path / one, directory.path / other
    for path, text, name in zip(paths, shipped, (case.one, case.other), strict=True):
        path.write_text(text.replace(name.replace(".toml", ".sock"), path.with_suffix(".sock").name))
    return paths


def rehearsal(case: Case, directory: Directory) -> str:
    own, far = SITES if case.behind else HOSTS
    source = "10.1.0.5" if case.behind else next(a for a in own if (":" in a) == (":" in case.target))
    target = f"[{case.target}]:{case.port}" if ":" in case.target else f"{case.target}:{case.port}"
    from_ = f"[{source}]:40000" if ":" in source else f"{source}:40000"
    report = rehearsed(
        configs(case, directory),
        (tuple(map(ip_address, own)), tuple(map(ip_address, far))),
        [parse_flow("tcp", from_, target)],
        entropy=Entropy(1, "rehearsal"),
    )
    flow = report["flows"][0]
    return str(flow["outcome"]) + ("" if flow["lasting"] else " at first")


def both(case: Case) -> tuple[str, str]:
    with Directory() as directory:
        return rehearsal(case, directory), talk(case, directory)


def test_rehearsed_is_what_happens() -> None:
    with ThreadPoolExecutor(4) as pool:
        seen = dict(zip(CASES, pool.map(both, CASES.values()), strict=True))
    assert seen == {name: (case.outcome, case.outcome) for name, case in CASES.items()}
