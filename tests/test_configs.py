"""Every shipped config is accepted without a warning, and the two halves of each tunnel fit each other."""

from __future__ import annotations

import re
from ipaddress import ip_address
from pathlib import Path

import pytest

from policy.compile import compile_policy
from policy.config import Loaded
from policy.problems import ConfigErrors
from policy.spd import Disposition, Mode, Snapshot
from policy.store.files import load_file
from tunnel.agent.policies import Policies

CONFIGS = Path(__file__).resolve().parents[1] / "configs"

#: The two halves with the addresses of their gateways.
PAIRS = {
    "site": (
        ("site-a.toml", ["10.1.0.1", "10.9.0.1", "fd00:1::1", "fd00:9::1"]),
        ("site-b.toml", ["10.2.0.1", "10.9.0.2", "fd00:2::1", "fd00:9::2"]),
    ),
    "dual-stack": (
        ("dual-stack-a.toml", ["10.1.0.1", "10.9.0.1", "fd00:1::1", "fd00:9::1"]),
        ("dual-stack-b.toml", ["10.2.0.1", "10.9.0.2", "fd00:2::1", "fd00:9::2"]),
    ),
    "nat": (
        ("nat-hq.toml", ["10.1.0.1", "10.9.0.1"]),
        ("nat-branch.toml", ["10.2.0.1", "192.168.77.2"]),
    ),
}
#: Hosts that secure ports of their own, each with its address.
CLIENT, SERVER = ["10.9.0.1", "fd00:9::1"], ["10.9.0.2", "fd00:9::2"]
HOSTS = {
    "respond-only.toml": CLIENT,
    "request-security.toml": SERVER,
    "require-security.toml": SERVER,
    "web-server.toml": SERVER,
    "web-client.toml": CLIENT,
    "database-port-server.toml": SERVER,
    "database-port-client.toml": CLIENT,
    "ipv6-transport-a.toml": CLIENT,
    "ipv6-transport-b.toml": SERVER,
    "block-and-permit.toml": SERVER,
}
NAMES = sorted(path.name for path in CONFIGS.glob("*.toml"))


def load(directory: Path, name: str) -> Loaded:
    """Load a copy of a shipped config beside a fresh secret."""
    text = (CONFIGS / name).read_text()
    for secret in re.findall(r'secret_file = "([^"]+)"', text):
        path = directory / secret
        path.touch(mode=0o600)
        path.write_text("dJ5fI1mEGSh0yq2vRk9wCz7uLx3NbTa8\n")
    (directory / name).write_text(text)
    return load_file(directory / name)


def compiled(directory: Path, name: str, addresses: list[str]) -> Snapshot:
    configuration = load(directory, name).configuration
    assert configuration.agent.assigned is not None
    return compile_policy(
        Policies(configuration).policy(configuration.agent.assigned),
        generation=1,
        local_addresses=[ip_address(address) for address in addresses],
    )


def test_each_config_is_one_half_of_a_pair_or_a_host() -> None:
    assert sorted([*HOSTS, *(name for pair in PAIRS.values() for name, _ in pair)]) == NAMES


@pytest.mark.parametrize("name", HOSTS)
def test_what_a_host_does(tmp_path: Path, name: str) -> None:
    snapshot = compiled(tmp_path, name, HOSTS[name])
    entries = snapshot.spd.entries
    assert snapshot.warnings == ()
    assert bool(snapshot.response) == (
        name in ("respond-only.toml", "request-security.toml", "require-security.toml")
    )
    assert bool(entries) == (name != "respond-only.toml")
    for entry in entries:
        if entry.protection is not None:
            assert entry.protection.mode is Mode.TRANSPORT
            assert entry.protection.fallback_clear == (name == "request-security.toml")
            assert entry.protection.inbound_clear == (name in ("request-security.toml", "require-security.toml"))


@pytest.mark.parametrize("name", NAMES)
def test_config_is_accepted_without_a_warning(tmp_path: Path, name: str) -> None:
    loaded = load(tmp_path, name)
    assert loaded.warnings == ()
    assert loaded.configuration.agent.assigned


@pytest.mark.parametrize("name", NAMES)
def test_config_without_its_secret_says_which_file_it_wants(tmp_path: Path, name: str) -> None:
    text = (CONFIGS / name).read_text()
    if "psk" not in text:
        return
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigErrors, match=r"(site|branch|web|database|hosts)\.psk"):
        load_file(tmp_path / name)


@pytest.mark.parametrize("pair", PAIRS)
def test_halves_fit(tmp_path: Path, pair: str) -> None:
    one, other = (compiled(tmp_path, name, addresses) for name, addresses in PAIRS[pair])
    assert one.spd.entries
    assert len(one.spd.entries) == len(other.spd.entries)
    for mine, theirs in zip(one.spd.entries, other.spd.entries, strict=True):
        assert mine.selectors.local == theirs.selectors.remote
        assert mine.selectors.remote == theirs.selectors.local
        assert mine.disposition is theirs.disposition is Disposition.PROTECT
        assert mine.outbound
        assert mine.inbound
        assert mine.protection is not None
        assert theirs.protection is not None
        assert mine.protection.methods == theirs.protection.methods
        assert mine.protection.pfs == theirs.protection.pfs
        assert not mine.protection.inbound_clear
        assert not mine.protection.fallback_clear


@pytest.mark.parametrize("pair", PAIRS)
def test_each_half_knows_the_other_by_name(pair: str) -> None:
    texts = [(CONFIGS / name).read_text() for name, _ in PAIRS[pair]]
    local, remote = (
        [re.findall(rf'{key} = "([^"]+)"', text) for text in texts] for key in ("local_id", "remote_id")
    )
    assert local == remote[::-1]
    assert all(len(found) == 1 for found in local)
