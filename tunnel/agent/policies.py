"""Which policy is in force: the config file, what was assigned since, this host's addresses and DNS names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path as FilePath

from policy.compile import compile_policy
from policy.defaults import BUILT_IN_POLICIES, authenticated
from policy.model import AddressSpec, Configuration, DnsName, Policy, Server
from policy.path import IpAddress
from policy.problems import ConfigError, quoted, suggestion
from policy.spd import Snapshot
from policy.store.files import load_file
from tunnel.host import servers
from tunnel.host.addresses import HostAddresses

Names = Mapping[str, Sequence[IpAddress]]


class NoSuchPolicy(Exception):
    """The name to be assigned is in neither the file nor the built-in policies."""


class Policies:
    """The policies that can be named: those of a configuration, and the built-in ones."""

    def __init__(self, configuration: Configuration) -> None:
        self.configuration = configuration

    def policy(self, name: str | None) -> Policy | None:
        """Return the policy called *name*; None is "no policy". NoSuchPolicy tells the nearest name."""
        if name is None:
            return None
        methods = self.configuration.agent.authentication
        built_in = {policy.name: authenticated(policy, methods) for policy in BUILT_IN_POLICIES}
        found = self.configuration.policy(name) or built_in.get(name)
        if found is None:
            known = [policy.name for policy in self.configuration.policies] + list(built_in)
            raise NoSuchPolicy(f"there is no policy {quoted(name)}: {suggestion(name, known, what='policy')}")
        return found

    def dns_names(self, name: str | None) -> list[str]:
        """Return the DNS names that the policy called *name* uses."""
        policy = self.policy(name)
        return [] if policy is None else list(dict.fromkeys(_dns_names(policy)))


class AssignedPolicy(Policies):
    """The policies of one config file and the one assigned. Errors change nothing."""

    def __init__(self, path: FilePath) -> None:
        loaded = load_file(path)
        super().__init__(loaded.configuration)
        self.path = path
        self.warnings: tuple[ConfigError, ...] = loaded.warnings
        self.assigned: str | None = loaded.configuration.agent.assigned
        self._generation = 0

    def reread(self) -> None:
        """Read the file again; what ``assign`` chose gives way to what the file assigns. Raises ConfigErrors."""
        loaded = load_file(self.path)
        self.configuration, self.warnings = loaded.configuration, loaded.warnings
        self.assigned = loaded.configuration.agent.assigned

    def compile(self, name: str | None, host: HostAddresses, names: Names, before: Snapshot) -> Snapshot:
        """Return the policy called *name* compiled for this host. CompileError, NoSuchPolicy."""
        policy = self.policy(name)
        self._generation += 1
        return compile_policy(
            policy,
            generation=self._generation,
            local_addresses=host.addresses,
            local_networks=host.networks,
            resolve=lambda wanted: names.get(wanted, ()),
            previous=before,
            servers=servers_of(policy),
        )


def servers_of(policy: Policy | None) -> Mapping[str, Sequence[IpAddress]]:
    """Return the servers that this host was told of, if *policy* names any by kind. Blocks for a moment then."""
    if policy is None or not any(isinstance(side, Server) for side in _sides(policy)):
        return {}
    told = servers.current()
    return {"dns": told.dns, "dhcp": told.dhcp, "wins": told.wins, "gateway": told.gateway}


def _dns_names(policy: Policy) -> Iterable[str]:
    for rule in policy.rules:
        if isinstance(rule.tunnel_endpoint, DnsName):
            yield rule.tunnel_endpoint.name
    yield from (side.name for side in _sides(policy) if isinstance(side, DnsName))


def _sides(policy: Policy) -> Iterable[AddressSpec]:
    for rule in policy.rules:
        for each in rule.filter_list.filters:
            yield from (each.source, each.destination)
