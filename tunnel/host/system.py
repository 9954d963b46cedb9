"""Running ``nft`` and ``ip``: one clear sentence when they are missing, refused, or say no."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from typing import Any

_PACKAGES = {"nft": "nftables", "ip": "iproute2"}
_TIMEOUT_S = 60
#: What the programs get of our environment: nothing, for a secret may be in it (``secret_env``).
_ENVIRONMENT = {"PATH": "/usr/sbin:/sbin:/usr/bin:/bin", "LC_ALL": "C"}


class HostError(Exception):
    """Something that the operator has to change on this host. The text is one sentence or two."""


def require(program: str) -> str:
    """Return the path of *program*. HostError if it is not installed."""
    path = shutil.which(program, path="/usr/sbin:/sbin:/usr/bin:/bin:/usr/local/sbin:/usr/local/bin")
    if path is None:
        raise HostError(
            f"the program {program!r} is missing; install the package {_PACKAGES.get(program, program)} "
            f"(Debian: apt-get install {_PACKAGES.get(program, program)})"
        )
    return path


def run(arguments: Sequence[str], *, stdin: str | None = None) -> str:
    """Return the output of a program. HostError if it fails, with what it said."""
    program = require(arguments[0])
    try:
        done = subprocess.run(
            [program, *arguments[1:]],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
            env=_ENVIRONMENT,
        )
    except subprocess.TimeoutExpired as error:
        raise HostError(f"{' '.join(arguments)!r} did not end within {_TIMEOUT_S} s") from error
    if done.returncode != 0:
        said = " ".join(done.stderr.split()) or f"exit status {done.returncode}"
        raise HostError(f"{' '.join(arguments)!r} failed: {said[:500]}")
    return done.stdout


def run_json(arguments: Sequence[str]) -> Any:
    """Return the parsed JSON that a program prints; an empty list for no output."""
    output = run(arguments)
    try:
        return json.loads(output) if output.strip() else []
    except ValueError as error:
        raise HostError(f"{' '.join(arguments)!r} did not print JSON: {error}") from error


def ip_batch(lines: Sequence[str], *, version: int, force: bool = False) -> None:
    """Execute lines of ``ip -batch``; with *force* go on after one that fails and raise nothing."""
    if not lines:
        return
    arguments = ["ip", f"-{version}", *(["-force"] if force else []), "-batch", "-"]
    try:
        run(arguments, stdin="\n".join(lines) + "\n")
    except HostError:
        if not force:
            raise
