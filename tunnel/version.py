"""The version, from the installed distribution."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("mirrorgate")
except PackageNotFoundError:  # run from a source tree
    VERSION = "0.2.0"
