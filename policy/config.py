"""TOML text -> Configuration. All mistakes of a file are reported at once, one line each.

The text is read in three steps: ``tomllib`` gives the data, ``policy.positions`` the places, and
``policy.schema`` the meaning of each table; here the tables are joined by their names. Files and environment are
reached through arguments only.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any, TypeVar

from policy import windows2003
from policy.advice import advice
from policy.authentication import Sources, read_authentication
from policy.availability import unavailable
from policy.clock import SECOND
from policy.defaults import (
    BUILT_IN_FILTER_ACTIONS,
    BUILT_IN_FILTER_LISTS,
    BUILT_IN_POLICIES,
    DEFAULT_IKE_PROPOSALS,
    DEFAULT_METHODS,
    authenticated,
)
from policy.filters import read_filter
from policy.lifetimes import Lifetime
from policy.lint import conflicts, lint
from policy.model import (
    ActionKind,
    AgentSettings,
    AuthenticationMethod,
    Configuration,
    ConnectionType,
    Encapsulation,
    FilterAction,
    FilterList,
    KeyExchange,
    Policy,
    Rule,
    Where,
)
from policy.positions import KeyPath, Positions
from policy.problems import ConfigError, ConfigErrors, quoted, suggestion
from policy.schema import (
    AgentTable,
    FilterActionTable,
    FilterListTable,
    IkeTable,
    LifetimeTable,
    PolicyTable,
    RuleTable,
    TopTable,
)
from policy.tables import TableReader

_T = TypeVar("_T")
_SYNTAX = re.compile(r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)\Z", re.DOTALL)


_PSK = 'authentication = [{ method = "psk", secret_file = "..." }]'
_AGENT_AUTHENTICATION = f"add {_PSK} under [agent]"
_POLICY_AUTHENTICATION = f"add {_PSK} to the policy, or under [agent]"


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration that can be put in force, and what is odd about it."""

    configuration: Configuration
    warnings: tuple[ConfigError, ...] = ()


def load(
    path: FilePath,
    *,
    read: Callable[[FilePath], bytes],
    mode_of: Callable[[FilePath], int],
    environment: Callable[[str], str | None] = lambda _name: None,
) -> Loaded:
    """Return the configuration in the file at *path*; raises ConfigErrors.

    *read* returns a file's octets, *mode_of* its ``st_mode``; both raise OSError or ValueError when they cannot.
    *environment* returns an environment variable.
    """
    file = Where(str(path), 1, 1)
    try:
        octets = read(path)
    except OSError as error:
        raise ConfigErrors([_unreadable(path, error)]) from None
    except ValueError:
        raise ConfigErrors([ConfigError(Where("<config>"), f"{quoted(str(path))} is not a path")]) from None
    try:
        text = octets.decode("utf-8")
    except UnicodeDecodeError as error:
        line = octets.count(b"\n", 0, error.start) + 1
        column = error.start - octets.rfind(b"\n", 0, error.start)
        where = Where(str(path), line, column)
        raise ConfigErrors([ConfigError(where, "the file is not UTF-8 text", "save it as UTF-8")]) from None
    if text.startswith("\ufeff"):
        raise ConfigErrors(
            [ConfigError(file, "the file begins with a byte order mark", "save it as UTF-8 without BOM")]
        )
    return parse(text, path, Sources(read, mode_of, environment))


def parse(text: str, path: FilePath, sources: Sources) -> Loaded:
    """Return the configuration that *text* means; *path* is its name in messages and anchors relative paths."""
    try:
        data = tomllib.loads(text)
        positions = Positions(text)
    except RecursionError:
        raise ConfigErrors([ConfigError(Where(str(path), 1, 1), "values are nested too deeply")]) from None
    except ValueError as error:
        raise ConfigErrors([_syntax_error(text, path, str(error))]) from None
    reader = TableReader(path, positions)
    configuration = _Builder(reader, sources).build(data)
    if reader.errors:
        in_order = sorted(dict.fromkeys(reader.errors), key=lambda e: (e.where.line, e.where.column))
        raise ConfigErrors(in_order)
    warnings = [
        *reader.warnings,
        *(warning for policy in configuration.policies for warning in (*lint(policy), *advice(policy))),
    ]
    for policy in configuration.policies:
        if policy.name != configuration.agent.assigned:
            warnings += unavailable(policy)
    in_order = sorted(dict.fromkeys(warnings), key=lambda e: (e.where.line, e.where.column))
    return Loaded(configuration, tuple(in_order))


def _unreadable(path: FilePath, error: OSError) -> ConfigError:
    where = Where(str(path))
    reason = (error.strerror or str(error)).lower()
    match error:
        case FileNotFoundError():
            return ConfigError(where, "there is no such file", "check the path")
        case IsADirectoryError():
            return ConfigError(where, "is a directory", "name the config file in it")
        case PermissionError():
            return ConfigError(where, "permission denied", "run as the owner of the file")
        case _:
            return ConfigError(where, f"cannot be read: {reason}")


def _syntax_error(text: str, path: FilePath, message: str) -> ConfigError:
    match = _SYNTAX.match(message)
    if match is None:
        return ConfigError(Where(str(path), 1, 1), f"not TOML: {quoted(message)}")
    lines = text.split("\n")
    line = int(match[2]) if match[2] else len(lines)
    column = int(match[3]) if match[3] else len(lines[-1]) + 1
    safe = quoted(match[1])[1:-1]
    return ConfigError(Where(str(path), line, column), f"not TOML: {safe[:1].lower()}{safe[1:]}")


class _Builder:
    """Joins the tables of one file by their names."""

    def __init__(self, reader: TableReader, sources: Sources) -> None:
        self._reader = reader
        self._sources = sources
        #: By name; None where the table is there but has mistakes of its own.
        self._lists: dict[str, FilterList | None] = {}
        self._actions: dict[str, FilterAction | None] = {}
        self._policies: dict[str, Policy | None] = {}
        #: The [agent] table's authentication, for whoever has none of its own.
        self._authentication: tuple[AuthenticationMethod, ...] = ()
        #: Whether that was written, with mistakes: they are told once, not for each who would use it.
        self._broken = False

    def build(self, data: dict[str, Any]) -> Configuration:
        reader = self._reader
        reader.read(TopTable, data, ())
        seen: dict[str, Where] = {}
        for path, raw in reader.tables(data.get("filter_list"), ("filter_list",), "[[filter_list]]"):
            self._claim("filter list", raw, path, seen, self._lists, self._filter_list(path, raw))
        seen = {}
        for path, raw in reader.tables(data.get("filter_action"), ("filter_action",), "[[filter_action]]"):
            self._claim("filter action", raw, path, seen, self._actions, self._filter_action(path, raw))
        for built_in_list in BUILT_IN_FILTER_LISTS:
            self._lists.setdefault(built_in_list.name, built_in_list)
        for built_in_action in BUILT_IN_FILTER_ACTIONS:
            self._actions.setdefault(built_in_action.name, built_in_action)
        agent_table = data.get("agent")
        if isinstance(agent_table, dict):
            self._authentication = self._methods(agent_table, ("agent",)) or ()
            self._broken = "authentication" in agent_table and not self._authentication
        seen = {}
        for path, raw in reader.tables(data.get("policy"), ("policy",), "[[policy]]"):
            self._claim("policy", raw, path, seen, self._policies, self._policy(path, raw))
        agent = self._agent(data)
        policies = tuple(policy for policy in self._policies.values() if policy is not None)
        for policy in policies:
            reader.errors += conflicts(policy)
        return Configuration(agent=agent, policies=policies, file=reader.file)

    def _claim(
        self,
        what: str,
        raw: dict[str, Any],
        path: KeyPath,
        seen: dict[str, Where],
        values: dict[str, _T | None],
        value: _T | None,
    ) -> None:
        """Enter *value* under its name, unless the name is taken."""
        name = raw.get("name")
        if not isinstance(name, str):
            return
        where = self._reader.at_value(*path, "name")
        if name in seen:
            hint = f"the first is at line {seen[name].line}; rename one of them"
            self._reader.error(where, f"duplicate {what} {quoted(name)}", hint)
            return
        seen[name] = where
        values[name] = value

    def _agent(self, data: dict[str, Any]) -> AgentSettings:
        reader = self._reader
        raw = data.get("agent", {})
        assigned = raw.get("assigned") if isinstance(raw, dict) else None
        if isinstance(assigned, str):
            self._check_assigned(assigned)
        table = reader.read(AgentTable, raw, ("agent",))
        if table is None:
            return AgentSettings()
        if table.metrics and not table.metrics.startswith(("127.", "[::1]")):
            where = reader.at_value("agent", "metrics")
            reader.warn(where, "metrics are readable by every host that reaches this address", "use 127.0.0.1")
        return AgentSettings(
            assigned=table.assigned,
            control=reader.file.parent / table.control,
            tun=table.tun,
            log_level=table.log_level,
            log_format=table.log_format,
            metrics=table.metrics,
            offload=table.offload,
            authentication=self._authentication,
        )

    def _methods(self, raw: dict[str, Any], path: KeyPath) -> tuple[AuthenticationMethod, ...] | None:
        if raw.get("authentication") is None:
            return ()
        return read_authentication(self._reader, self._sources, raw["authentication"], (*path, "authentication"))

    def _check_assigned(self, name: str) -> None:
        where = self._reader.at_value("agent", "assigned")
        built_in = {policy.name: policy for policy in BUILT_IN_POLICIES}
        if name in self._policies:
            policy = self._policies[name]
            if policy is not None:
                self._reader.errors += unavailable(policy)
        elif name in built_in:
            if self._broken:
                return
            if not self._authentication:
                message = f"the built-in policy {quoted(name)} needs to know how hosts authenticate"
                self._reader.error(where, message, _AGENT_AUTHENTICATION)
            else:
                policy = authenticated(built_in[name], self._authentication)
                self._reader.errors += unavailable(policy)
        else:
            hint = suggestion(name, [*self._policies, *built_in], what="policy")
            self._reader.error(where, f"there is no policy {quoted(name)} to assign", hint)

    def _filter_list(self, path: KeyPath, raw: dict[str, Any]) -> FilterList | None:
        reader = self._reader
        table = reader.read(FilterListTable, raw, path)
        rows = reader.tables(raw.get("filter"), (*path, "filter"), "[[filter_list.filter]]")
        filters = [read_filter(reader, row_path, row) for row_path, row in rows]
        if raw.get("filter") is None or raw["filter"] == []:
            hint = "add [[filter_list.filter]] with source and destination"
            reader.error(reader.at_key(*path), "the filter list has no filter", hint)
        if table is None or None in filters:
            return None
        return FilterList(
            name=table.name,
            filters=tuple(entry for entry in filters if entry is not None),
            description=table.description,
            where=reader.at_key(*path),
        )

    def _filter_action(self, path: KeyPath, raw: dict[str, Any]) -> FilterAction | None:
        reader = self._reader
        lifetime = LifetimeTable()
        if raw.get("lifetime") is not None:
            read = reader.read(LifetimeTable, raw["lifetime"], (*path, "lifetime"))
            if read is None:
                reader.read(FilterActionTable, raw, path)
                return None
            lifetime = read
        table = reader.read(FilterActionTable, raw, path)
        if table is None:
            return None
        kind = ActionKind(table.action)
        negotiates = kind is ActionKind.NEGOTIATE
        if not negotiates:
            for key in (
                "methods",
                "preset",
                "lifetime",
                "pfs",
                "inbound_clear",
                "fallback_clear",
                "encapsulation",
            ):
                if raw.get(key):
                    hint = f'remove it, or write action = "negotiate" (this one is "{table.action}")'
                    reader.error(
                        reader.at_key(*path, key), f"{quoted(key)} means something only to negotiate", hint
                    )
        if table.lifetime is not None and lifetime.time is not None and lifetime.time < 60 * SECOND:
            where = reader.at_value(*path, "lifetime", "time")
            reader.error(where, "a lifetime below a minute would do nothing but rekey", 'write at least "1m"')
        methods, usual = DEFAULT_METHODS, Lifetime()
        if table.preset is not None:
            self._check_alone(path, "preset", "methods", table.methods)
            methods, usual = windows2003.METHODS[table.preset], windows2003.LIFETIMES[table.preset]
        return FilterAction(
            name=table.name,
            kind=kind,
            methods=(tuple(table.methods) if table.methods else methods) if negotiates else (),
            lifetime=usual
            if raw.get("lifetime") is None
            else Lifetime(lifetime.time or usual.time, lifetime.bytes),
            pfs=table.pfs,
            inbound_clear=table.inbound_clear,
            fallback_clear=table.fallback_clear,
            encapsulation=Encapsulation(table.encapsulation),
            replay_window=table.replay_window,
            traffic_padding=table.traffic_padding,
            dummy_packets=table.dummy_packets,
            description=table.description,
            where=reader.at_key(*path),
        )

    def _policy(self, path: KeyPath, raw: dict[str, Any]) -> Policy | None:
        reader = self._reader
        table = reader.read(PolicyTable, raw, path)
        key_exchange = self._key_exchange(path, raw.get("ike"))
        seen: dict[str, Where] = {}
        rules: dict[str, Rule | None] = {}
        for rule_path, row in reader.tables(raw.get("rule"), (*path, "rule"), "[[policy.rule]]"):
            self._claim("rule", row, rule_path, seen, rules, self._rule(rule_path, row))
        methods = self._methods(raw, path) or self._authentication
        if (
            table is not None
            and table.default_response
            and not methods
            and not self._broken
            and "authentication" not in raw
        ):
            message = "the default response rule needs to know how hosts authenticate"
            reader.error(reader.at_value(*path, "default_response"), message, _POLICY_AUTHENTICATION)
        if table is None or key_exchange is None:
            return None
        return Policy(
            name=table.name,
            rules=tuple(rule for rule in rules.values() if rule is not None),
            ike=key_exchange,
            description=table.description,
            default_response=table.default_response,
            authentication=methods,
            local_id=table.local_id,
            where=reader.at_key(*path),
        )

    def _key_exchange(self, path: KeyPath, raw: object) -> KeyExchange | None:
        table = self._reader.read(IkeTable, {} if raw is None else raw, (*path, "ike"))
        if table is None:
            return None
        if table.lifetime is not None and table.lifetime < 60 * SECOND:
            where = self._reader.at_value(*path, "ike", "lifetime")
            self._reader.error(
                where, "a lifetime below a minute would do nothing but rekey", 'write at least "1m"'
            )
        usual = DEFAULT_IKE_PROPOSALS
        if table.preset is not None:
            self._check_alone((*path, "ike"), "preset", "proposals", table.proposals)
            usual = windows2003.IKE_PROPOSALS
        return KeyExchange(
            version=table.version,
            proposals=tuple(table.proposals) if table.proposals else usual,
            lifetime=Lifetime(table.lifetime or KeyExchange().lifetime.time),
            liveness=table.liveness,
            fragment_size=table.fragment_size,
        )

    def _check_alone(self, path: KeyPath, key: str, other: str, value: object) -> None:
        """Note that *key* and *other* say the same thing twice, if *other* is there too."""
        if value is not None:
            message = f"{quoted(key)} and {quoted(other)} are both there"
            self._reader.error(self._reader.at_key(*path, key), message, "keep one of them")

    def _rule(self, path: KeyPath, raw: dict[str, Any]) -> Rule | None:
        reader = self._reader
        filter_list = self._named("filter list", raw, path, "filter_list", self._lists)
        action = self._named("filter action", raw, path, "filter_action", self._actions)
        before = len(reader.errors)
        negotiates = action is not None and action.kind is ActionKind.NEGOTIATE
        methods = self._methods(raw, path)
        if raw.get("authentication") is None and negotiates:
            methods = self._authentication
        if raw.get("authentication") is None and negotiates and not methods and not self._broken:
            hint = 'add authentication = [{ method = "psk", secret_file = "..." }]'
            reader.error(reader.at_key(*path), "the rule negotiates and has no authentication", hint)
        table = reader.read(RuleTable, raw, path)
        if table is None or filter_list is None or action is None or len(reader.errors) > before:
            return None
        return Rule(
            name=table.name,
            filter_list=filter_list,
            filter_action=action,
            authentication=methods or (),
            tunnel_endpoint=table.tunnel_endpoint,
            connection_type=ConnectionType(table.connection_type),
            active=table.active,
            where=reader.at_key(*path),
        )

    def _named(
        self, what: str, raw: dict[str, Any], path: KeyPath, key: str, known: dict[str, _T | None]
    ) -> _T | None:
        name = raw.get(key)
        if not isinstance(name, str):
            return None
        if name not in known:
            hint = suggestion(name, known, what=what)
            self._reader.error(self._reader.at_value(*path, key), f"there is no {what} {quoted(name)}", hint)
        return known.get(name)
