"""Validate TOML tables one by one against ``policy.schema``, and say what is wrong in the operator's words."""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping
from datetime import date, datetime, time
from pathlib import Path as FilePath
from types import MappingProxyType
from typing import Any, TypeVar

from pydantic import ValidationError

from policy import schema
from policy.model import Where
from policy.positions import KeyPath, Positions
from policy.problems import ConfigError, nearest, quoted

_TableT = TypeVar("_TableT", bound=schema.Table)

#: How each table is written, for messages.
LABELS: Mapping[type[schema.Table], str] = MappingProxyType(
    {
        schema.TopTable: "the file",
        schema.AgentTable: "[agent]",
        schema.PolicyTable: "[[policy]]",
        schema.IkeTable: "ike of [[policy]]",
        schema.RuleTable: "[[policy.rule]]",
        schema.FilterListTable: "[[filter_list]]",
        schema.FilterTable: "[[filter_list.filter]]",
        schema.FilterActionTable: "[[filter_action]]",
        schema.LifetimeTable: "lifetime of [[filter_action]]",
        schema.PskTable: 'authentication with method = "psk"',
        schema.CertificateTable: 'authentication with method = "certificate"',
        schema.KerberosTable: 'authentication with method = "kerberos"',
    }
)
_TYPES: tuple[tuple[type, str], ...] = (
    (bool, "true or false"),
    (int, "a number"),
    (float, "a number with a point"),
    (str, "a text"),
    (list, "an array"),
    (dict, "a table"),
    (datetime, "a date"),
    (date, "a date"),
    (time, "a time"),
)
#: pydantic's error types for a value of the wrong type, and how to write the right one.
_WRONG_TYPE: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "string_type": ("a text", "put it in quotes"),
        "bool_type": ("true or false", "write it without quotes"),
        "int_type": ("a whole number", "write it without quotes"),
        "list_type": ("an array", "put it in [ ]"),
    }
)


class TableReader:
    """Collects what is wrong with one file while its tables are read."""

    def __init__(self, file: FilePath, positions: Positions) -> None:
        self.file = file
        self.errors: list[ConfigError] = []
        self.warnings: list[ConfigError] = []
        self._positions = positions

    def at_key(self, *path: str | int) -> Where:
        """Return where the key at *path* is written."""
        return Where(str(self.file), *self._positions.key(path))

    def at_value(self, *path: str | int) -> Where:
        """Return where the value at *path* begins."""
        return Where(str(self.file), *self._positions.value(path))

    def error(self, where: Where, message: str, hint: str = "") -> None:
        """Note a mistake."""
        self.errors.append(ConfigError(where, message, hint))

    def warn(self, where: Where, message: str, hint: str = "") -> None:
        """Note something that works, but hardly as meant."""
        self.warnings.append(ConfigError(where, message, hint))

    def read(self, model: type[_TableT], raw: object, path: KeyPath) -> _TableT | None:
        """Return the validated table at *path*, or None after noting all that is wrong with it."""
        if not isinstance(raw, dict):
            self.error(self.at_value(*path), f"{quoted(str(path[-1]))} must be a table, not {type_name(raw)}")
            return None
        try:
            return model.model_validate(raw)
        except ValidationError as error:
            for detail in error.errors(include_url=False, include_context=True):
                self._explain(model, path, detail)
            return None

    def tables(self, raw: object, path: KeyPath, label: str) -> list[tuple[KeyPath, dict[str, Any]]]:
        """Return the tables of the array of tables at *path*, each with its path."""
        if raw is None:
            return []
        if isinstance(raw, dict):
            self.error(self.at_key(*path), f"{label} is an array of tables", f"write {label} with two brackets")
            return []
        if not isinstance(raw, list):
            self.error(self.at_value(*path), f"{quoted(str(path[-1]))} must be tables, not {type_name(raw)}")
            return []
        found: list[tuple[KeyPath, dict[str, Any]]] = []
        for index, item in enumerate(raw):
            if isinstance(item, dict):
                found.append(((*path, index), item))
            else:
                self.error(self.at_value(*path, index), f"{label} must be a table, not {type_name(item)}")
        return found

    def _explain(self, model: type[schema.Table], path: KeyPath, detail: Any) -> None:
        key = str(detail["loc"][0]) if detail["loc"] else ""
        place = (*path, *detail["loc"])
        context: Mapping[str, Any] = detail.get("ctx", {})
        name = quoted(key)
        match detail["type"]:
            case "extra_forbidden":
                self.error(self.at_key(*place), f"unknown key {name}", _key_hint(model, key))
            case "missing":
                self.error(self.at_key(*path), f"{LABELS[model]} has no {name}", f"add {key} = ...")
            case "literal_error":
                self._explain_literal(model, key, place, detail["input"])
            case "meaning":
                self.error(self.at_value(*place), f"{key}: {context['message']}", str(context["hint"]))
            case "too_short":
                self.error(self.at_value(*place), f"{name} is empty", "name at least one, or leave the key out")
            case "too_long":
                self.error(
                    self.at_value(*place), f"{name} has more than {context['max_length']} items", "remove some"
                )
            case "greater_than_equal":
                self.error(self.at_value(*place), f"{name} is too small", f"the least value is {context['ge']}")
            case "less_than_equal":
                self.error(self.at_value(*place), f"{name} is too large", f"the greatest value is {context['le']}")
            case other if other in _WRONG_TYPE:
                wanted, hint = _WRONG_TYPE[other]
                got = type_name(detail["input"])
                self.error(self.at_value(*place), f"{name} must be {wanted}, not {got}", hint)
            case _:
                self.error(self.at_value(*place), f"{name} is not valid", str(detail["msg"]))

    def _explain_literal(self, model: type[schema.Table], key: str, place: KeyPath, value: object) -> None:
        choices = list(_choices(model.model_fields[key].annotation))
        known = f"one of: {', '.join(choices)}"
        if not isinstance(value, str):
            self.error(self.at_value(*place), f"{quoted(key)} cannot be {_shown(value)}", known)
            return
        near = nearest(value, choices)
        self.error(
            self.at_value(*place),
            f"{quoted(key)} cannot be {quoted(value)}",
            f'did you mean "{near}"? ({known})' if near else known,
        )


def _choices(annotation: object) -> Iterator[str]:
    """Yield the words of a Literal, which may be one side of a union with None."""
    for part in typing.get_args(annotation):
        if typing.get_args(part):
            yield from _choices(part)
        elif part is not type(None):
            yield str(part)


def type_name(value: object) -> str:
    """Return TOML's word for the type of *value*."""
    return next((name for type_, name in _TYPES if isinstance(value, type_)), "that")


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int) and abs(value) < 10**9 else type_name(value)


def _key_hint(model: type[schema.Table], key: str) -> str:
    near = nearest(key, model.model_fields)
    if near is not None:
        return f"did you mean {quoted(near)}?"
    for other, label in LABELS.items():
        if key in other.model_fields:
            return f"it belongs in {label}"
    return f"{LABELS[model]} has: {', '.join(model.model_fields)}"
