"""Policies in local files: the thin impure reader around ``policy.config``."""

from __future__ import annotations

import os
from pathlib import Path as FilePath

from policy.config import Loaded, load
from policy.problems import ConfigError, ConfigErrors

__all__ = ["ConfigError", "ConfigErrors", "Loaded", "load_file"]

#: A config of 100,000 filters has about 15 MB; more than this is no config file.
_MAX_SIZE = 64 * 1024 * 1024


def load_file(path: FilePath | str) -> Loaded:
    """Return the configuration in the file at *path* with its warnings.

    Raises ConfigErrors with every mistake in it; also for a file that is missing, a directory, or unreadable.
    """
    return load(FilePath(path), read=_read, mode_of=_mode_of, environment=os.environ.get)


def _read(path: FilePath) -> bytes:
    with path.open("rb") as file:
        octets = file.read(_MAX_SIZE + 1)
    if len(octets) > _MAX_SIZE:
        raise OSError(27, "the file is too large")
    return octets


def _mode_of(path: FilePath) -> int:
    return path.stat().st_mode
