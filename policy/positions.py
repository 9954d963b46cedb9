"""Where each key and value of a TOML text stands, for messages: ``tomllib`` keeps the data, not the places.

The scanner follows TOML 1.0's grammar only as far as places need it, and only over text that ``tomllib`` has
accepted already; so it never complains. A place is a line and a column, both from 1.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right
from typing import TypeAlias

KeyPath: TypeAlias = tuple[str | int, ...]
Place: TypeAlias = tuple[int, int]

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_BLANK = re.compile(r"[ \t]*")
#: White space, line ends and comments, as they stand between the items of an array.
_FILLING = re.compile(r"(?:[ \t\r\n]+|#[^\n]*)*")
_SCALAR = re.compile(r"[^,\]}#\r\n]*")
#: Strings in the order in which they must be tried; a multi-line one may end in up to five quotes.
_STRINGS = (
    re.compile(r'"""(?:[^"\\]|\\.|"{1,2}(?!"))*"{3,5}', re.DOTALL),
    re.compile(r"'''(?:[^']|'{1,2}(?!'))*'{3,5}", re.DOTALL),
    re.compile(r'"(?:[^"\\\n]|\\.)*"'),
    re.compile(r"'[^'\n]*'"),
)


class Positions:
    """The places of the keys and values of one TOML text that ``tomllib`` accepts."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._lines = [0, *(match.end() for match in re.finditer(r"\n", text))]
        self._keys: dict[KeyPath, Place] = {}
        self._values: dict[KeyPath, Place] = {}
        #: How many tables each array of tables has so far.
        self._tables: dict[KeyPath, int] = {}
        self._document()

    def key(self, path: KeyPath) -> Place:
        """Return where the key at *path* is written, or the nearest thing around it."""
        return self._nearest(path, self._keys, self._values)

    def value(self, path: KeyPath) -> Place:
        """Return where the value at *path* begins, or the nearest thing around it."""
        return self._nearest(path, self._values, self._keys)

    @staticmethod
    def _nearest(path: KeyPath, first: dict[KeyPath, Place], second: dict[KeyPath, Place]) -> Place:
        for length in range(len(path), 0, -1):
            place = first.get(path[:length]) or second.get(path[:length])
            if place is not None:
                return place
        return (1, 1)

    def _place(self, at: int) -> Place:
        line = bisect_right(self._lines, at)
        return line, at - self._lines[line - 1] + 1

    def _skip(self, pattern: re.Pattern[str]) -> None:
        match = pattern.match(self._text, self._at)
        self._at = match.end() if match else self._at

    def _document(self) -> None:
        table: KeyPath = ()
        while True:
            self._skip(_FILLING)
            if self._at >= len(self._text):
                return
            before = self._at
            if self._text.startswith("[", before):
                table = self._header(before)
            else:
                self._pair(table)
            if self._at == before:  # cannot happen on text that tomllib accepts; never loop
                return

    def _header(self, start: int) -> KeyPath:
        array = self._text.startswith("[[", start)
        self._at += 2 if array else 1
        path: KeyPath = ()
        names = self._key_names()
        for index, (name, _) in enumerate(names):
            path = (*path, name)
            last = index == len(names) - 1
            if last and array:
                number = self._tables.get(path, 0)
                self._tables[path] = number + 1
                path = (*path, number)
            elif path in self._tables:
                path = (*path, self._tables[path] - 1)
        self._keys.setdefault(path, self._place(start))
        self._keys.setdefault(path[:-1] if array else path, self._place(start))
        self._skip(_BLANK)
        self._at += 2 if array else 1
        return path

    def _key_names(self) -> list[tuple[str, int]]:
        """Read a dotted key; return each name with where it begins."""
        names: list[tuple[str, int]] = []
        while True:
            self._skip(_BLANK)
            start = self._at
            match = _BARE_KEY.match(self._text, start) or _STRINGS[2].match(self._text, start)
            match = match or _STRINGS[3].match(self._text, start)
            if match is None:
                return names
            self._at = match.end()
            names.append((_unquoted(match[0]), start))
            self._skip(_BLANK)
            if not self._text.startswith(".", self._at):
                return names
            self._at += 1

    def _pair(self, table: KeyPath) -> None:
        path = table
        for name, start in self._key_names():
            path = (*path, name)
            self._keys.setdefault(path, self._place(start))
        self._skip(_BLANK)
        if self._text.startswith("=", self._at):
            self._at += 1
            self._skip(_BLANK)
            self._value(path)

    def _value(self, path: KeyPath) -> None:
        self._values.setdefault(path, self._place(self._at))
        opening = self._text[self._at : self._at + 1]
        if opening == "[":
            self._items(path, "]")
        elif opening == "{":
            self._items(path, "}")
        else:
            for pattern in _STRINGS:
                if match := pattern.match(self._text, self._at):
                    self._at = match.end()
                    return
            self._skip(_SCALAR)

    def _items(self, path: KeyPath, closing: str) -> None:
        """Read the items of an array, or the pairs of an inline table."""
        self._at += 1
        number = 0
        while True:
            self._skip(_FILLING)
            before = self._at
            if self._at >= len(self._text) or self._text[self._at] == closing:
                self._at += 1
                return
            if self._text[self._at] == ",":
                self._at += 1
                continue
            if closing == "]":
                self._value((*path, number))
                number += 1
            else:
                self._pair(path)
            if self._at == before:
                return


def _unquoted(key: str) -> str:
    if key[0] == "'":
        return key[1:-1]
    if key[0] == '"' and "\\" in key:
        # An escape in a key is rare enough to let the library undo it.
        try:
            return next(iter(tomllib.loads(f"{key} = 0")))
        except tomllib.TOMLDecodeError:
            return key[1:-1]
    return key[1:-1] if key[0] == '"' else key
