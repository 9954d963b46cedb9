"""Which policy is in force: reading again, assigning, names of DNS."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

import pytest

from policy.problems import ConfigErrors
from policy.spd import Snapshot
from tests.support.policies import SITE_TO_SITE, changed
from tunnel.agent.policies import AssignedPolicy, NoSuchPolicy
from tunnel.host.addresses import HostAddresses

NAMED = changed(SITE_TO_SITE, ('destination = "10.2.0.0/24"', 'destination = "lan-b.example"'))


def assigned(tmp_path: Path, text: str = SITE_TO_SITE) -> AssignedPolicy:
    path = tmp_path / "a.toml"
    path.touch(mode=0o600)
    path.write_text(text)
    return AssignedPolicy(path)


def test_reading_again(tmp_path: Path) -> None:
    policies = assigned(tmp_path)
    policies.assigned = None  # by "unassign"
    before = policies.configuration
    policies.path.write_text(changed(SITE_TO_SITE, ('action = "negotiate"', 'action = "negociate"')))
    with pytest.raises(ConfigErrors, match="negociate"):
        policies.reread()
    assert policies.configuration is before
    assert policies.assigned is None
    policies.path.unlink()
    with pytest.raises(ConfigErrors):
        policies.reread()
    assert policies.configuration is before
    policies.path.write_text(changed(SITE_TO_SITE, ('name = "LAN to LAN"', 'name = "Another"')))
    policies.reread()
    assert policies.configuration is not before
    assert policies.assigned == "Site A to site B"


def test_policies_by_name(tmp_path: Path) -> None:
    policies = assigned(tmp_path)
    assert policies.policy(None) is None
    found = policies.policy("Site A to site B")
    assert found is not None
    assert found.rules[0].name == "LAN to LAN"
    with pytest.raises(NoSuchPolicy, match=r'there is no policy "Site A to site C": .*"Site A to site B"'):
        policies.policy("Site A to site C")


def test_every_compilation_has_a_new_generation(tmp_path: Path) -> None:
    policies = assigned(tmp_path)
    host = HostAddresses((ip_address("10.1.0.1"),))
    one = policies.compile("Site A to site B", host, {}, Snapshot(generation=0))
    other = policies.compile(None, host, {}, one)
    assert (one.policy, len(one.spd.entries)) == ("Site A to site B", 1)
    assert (other.policy, len(other.spd.entries)) == (None, 0)
    assert other.generation > one.generation > 0


def test_names(tmp_path: Path) -> None:
    policies = assigned(tmp_path, NAMED)
    assert policies.dns_names("Site A to site B") == ["lan-b.example"]
    assert policies.dns_names(None) == []
    found = {"lan-b.example": [ip_address("10.2.0.9"), ip_address("10.2.0.7")]}
    snapshot = policies.compile(
        "Site A to site B", HostAddresses((ip_address("10.1.0.1"),)), found, Snapshot(generation=0)
    )
    assert {str(entry.selectors.remote.addresses) for entry in snapshot.spd.entries} == {"10.2.0.9", "10.2.0.7"}
