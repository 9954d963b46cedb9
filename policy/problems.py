"""What is wrong with a policy text: one line a mistake, each saying where it is and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from policy.model import NOWHERE, Where

_SHOWN = 80


@dataclass(frozen=True, slots=True)
class ConfigError:
    """One mistake (or one warning): where it is, what is wrong, and what to do about it."""

    where: Where
    message: str
    hint: str = ""

    def __str__(self) -> str:
        hint = f" ({self.hint})" if self.hint else ""
        return escaped(f"{self.where}: {self.message}{hint}")


class ConfigErrors(Exception):
    """All the mistakes of one file, in the order of their lines; ``str`` gives one line each."""

    def __init__(self, errors: Iterable[ConfigError]) -> None:
        self.errors = tuple(errors)
        super().__init__("\n".join(map(str, self.errors)))


class CompileError(ConfigErrors):
    """A policy that cannot be put in force on this host; nothing of it was compiled."""

    @property
    def where(self) -> Where:
        """Where the first mistake is."""
        return self.errors[0].where if self.errors else NOWHERE


class TextError(ValueError):
    """A word or a value that does not mean anything; the caller knows where it stands."""

    def __init__(self, message: str, hint: str = "") -> None:
        self.message, self.hint = message, hint
        super().__init__(f"{message} ({hint})" if hint else message)


def quoted(text: str) -> str:
    """Return *text* in quotes on one line: control characters escaped, overlong text cut."""
    cut = text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
    return f'"{escaped(cut)}"'


def escaped(text: str) -> str:
    """Return *text* on one line: nothing in it can forge a line or move a terminal's cursor."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """Return the choice that *word* most likely meant, or None."""
    by_folded = {choice.casefold(): choice for choice in choices}
    folded = word.casefold()[:_SHOWN]
    match = difflib.get_close_matches(folded, by_folded, n=1, cutoff=0.6)
    return by_folded[match[0]] if match else None


def suggestion(word: str, choices: Iterable[str], *, what: str) -> str:
    """Return a hint: the nearest of *choices*, or all of them when none is near and they are few."""
    known = list(choices)
    near = nearest(word, known)
    if near is not None:
        return f"did you mean {quoted(near)}?"
    if not known:
        return f"there is no {what} yet"
    if len(known) <= 12:
        return f"{what} is one of: {', '.join(quoted(choice) for choice in known)}"
    return f"there is no {what} with a similar name"
