"""The import law and the house rules that a machine can check, and the proof that the checker notices."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("policy", "ike", "tunnel")
MAX_FILE = 500
MAX_FUNCTION = 60

#: Who may import what of ours: the longest prefix of a module's name decides.
ALLOWED = {
    "policy": ("policy",),
    "ike": ("ike", "policy"),
    "tunnel": ("tunnel", "ike", "policy"),
    "tunnel.dataplane": ("tunnel.dataplane", "policy"),
    "tunnel.host": ("tunnel", "ike", "policy"),
    "tunnel.agent": ("tunnel", "ike", "policy"),
    "tunnel.cli": ("tunnel", "ike", "policy"),
}
#: What a part may not import although ALLOWED lets it: the outer shells know the core, not the other way round.
OUTER = {
    "policy": (),
    "ike": (),
    "tunnel": ("tunnel.host", "tunnel.agent", "tunnel.cli"),
    "tunnel.dataplane": (),
    "tunnel.host": ("tunnel.agent", "tunnel.cli"),
    "tunnel.agent": ("tunnel.cli",),
    "tunnel.cli": (),
}
#: Parts that are pure. The modules directly in ``tunnel`` are the gateway and its helpers.
PURE = ("policy", "ike", "tunnel", "tunnel.dataplane")
#: The one package within a pure part that reaches outside the process.
IMPURE = ("policy.store",)
#: Third-party libraries that each part may import; elsewhere in the pure parts there is the standard library only.
LIBRARIES = {
    "policy.schema": ("pydantic", "pydantic_core"),
    "policy.tables": ("pydantic", "pydantic_core"),
    "policy.store": ("pydantic", "pydantic_core"),
    "policy": (),
    "ike": ("cryptography",),
    "tunnel.dataplane": ("cryptography",),
    "tunnel.dataplane.checksum": ("numpy",),
    "tunnel.dataplane.rows": ("numpy",),
    "tunnel.dataplane.runs": ("numpy",),
    "tunnel": ("cryptography",),
}
FORBIDDEN_MODULES = frozenset({
    "asyncio", "uvloop", "socket", "pytun", "pyroute2", "time", "random", "secrets", "threading", "logging",
    "subprocess", "select", "selectors", "multiprocessing", "concurrent", "signal", "fcntl", "ctypes",
})  # fmt: skip
FORBIDDEN_CALLS = frozenset({
    "open", "os.urandom", "os.getrandom", "os.open", "datetime.now", "datetime.utcnow", "datetime.today",
    "datetime.datetime.now", "date.today", "input", "print",
})  # fmt: skip
MARKERS = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b|NotImplementedError")


def violations(root: Path) -> list[str]:
    """Return every breach of the law below *root*, one line each."""
    found: list[str] = []
    for package in PACKAGES:
        for file in sorted((root / package).rglob("*.py")):
            parts = file.relative_to(root).with_suffix("").parts
            module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            text = file.read_text(encoding="utf-8")
            found += [f"{file.relative_to(root)}:{line}: {what}" for line, what in check(module, text)]
    return found


def check(module: str, text: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the breach of each rule that the source *text* of *module* breaks."""
    tree = ast.parse(text)
    lines = text.splitlines()
    if len(lines) > MAX_FILE:
        yield len(lines), f"{len(lines)} lines; the limit is {MAX_FILE}"
    for number, line in enumerate(lines, 1):
        if match := MARKERS.search(line):
            yield number, f"unfinished work: {match[0]}"
    part = _part(module)
    pure = part in PURE and not _within(module, IMPURE)
    for node in ast.walk(tree):
        match node:
            case ast.Import() | ast.ImportFrom():
                for imported in _imports(module, node):
                    for breach in _check_import(module, part, imported, pure=pure):
                        yield node.lineno, breach
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > MAX_FUNCTION:
                    yield node.lineno, f"{node.name} has {length} lines; the limit is {MAX_FUNCTION}"
            case ast.Assert() if part != "policy":
                yield node.lineno, "assert in code that the network reaches"
            case ast.Call() if pure and ast.unparse(node.func) in FORBIDDEN_CALLS:
                yield node.lineno, f"{ast.unparse(node.func)}() in pure code"


def _check_import(module: str, part: str, imported: str, *, pure: bool) -> Iterator[str]:
    top = imported.partition(".")[0]
    if top in PACKAGES:
        if not _within(imported, ALLOWED[part]) or _within(imported, OUTER[part]):
            yield f"{part} may not import {imported}"
        return
    if top == "scapy" and part != "tunnel.cli":
        yield f"{imported} outside the command line, where a person looks at packets"
        return
    constant = imported.startswith(("socket.AF_", "socket.IPPROTO_"))
    if pure and top in FORBIDDEN_MODULES and not constant:
        yield f"{imported} in pure code"
    elif top not in sys.stdlib_module_names and part in PURE:
        libraries = next(LIBRARIES[name] for name in _prefixes(module) if name in LIBRARIES)
        if top not in libraries:
            yield f"{module} may not import {imported}"


def _imports(module: str, node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    base = node.module or ""
    if node.level:
        parents = module.split(".")[: -node.level]
        base = ".".join([*parents, base] if base else parents)
    yield from (f"{base}.{alias.name}" for alias in node.names)


def _prefixes(module: str) -> Iterator[str]:
    parts = module.split(".")
    return (".".join(parts[:length]) for length in range(len(parts), 0, -1))


def _part(module: str) -> str:
    return next(name for name in _prefixes(module) if name in ALLOWED)


def _within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def test_the_source_keeps_the_law() -> None:
    assert violations(ROOT) == []


def test_every_package_is_looked_at() -> None:
    assert all(any((ROOT / package).rglob("*.py")) for package in PACKAGES)


@pytest.mark.parametrize(
    ("module", "text", "breach"),
    [
        ("policy.model", "import ike.events", "policy may not import ike.events"),
        ("policy.model", "from tunnel import outputs", "policy may not import tunnel.outputs"),
        ("policy.model", "import pydantic", "policy.model may not import pydantic"),
        ("policy.spd", "import time", "time in pure code"),
        ("policy.spd", "def f():\n    from random import choice", "random.choice in pure code"),
        ("policy.spd", "import os\nx = os.urandom(4)", "os.urandom() in pure code"),
        ("policy.spd", "from os import urandom\nopen('x')", "open() in pure code"),
        ("policy.spd", "from datetime import datetime\nx = datetime.now()", "datetime.now() in pure code"),
        ("ike.endpoint", "from tunnel.outputs import Output", "ike may not import tunnel.outputs.Output"),
        ("ike.endpoint", "import threading", "threading in pure code"),
        ("ike.endpoint", "import logging.handlers", "logging.handlers in pure code"),
        ("ike.endpoint", "import socket", "socket in pure code"),
        ("ike.endpoint", "from socket import socket", "socket.socket in pure code"),
        (
            "ike.endpoint",
            "import scapy.all",
            "scapy.all outside the command line, where a person looks at packets",
        ),
        ("tunnel.host.tun", "import scapy", "scapy outside the command line, where a person looks at packets"),
        ("ike.endpoint", "def f(x):\n    assert x", "assert in code that the network reaches"),
        ("tunnel.dataplane.sad", "from ike.events import X", "tunnel.dataplane may not import ike.events.X"),
        (
            "tunnel.dataplane.sad",
            "from tunnel.gateway import X",
            "tunnel.dataplane may not import tunnel.gateway.X",
        ),
        ("tunnel.dataplane.sad", "from ..gateway import X", "tunnel.dataplane may not import tunnel.gateway.X"),
        ("tunnel.dataplane.sad", "import pytun", "pytun in pure code"),
        ("tunnel.gateway", "import asyncio", "asyncio in pure code"),
        ("tunnel.gateway", "from tunnel.host import tun", "tunnel may not import tunnel.host.tun"),
        ("tunnel.host.tun", "from tunnel.agent import main", "tunnel.host may not import tunnel.agent.main"),
        ("tunnel.agent.core", "import tunnel.cli.main", "tunnel.agent may not import tunnel.cli.main"),
        ("tunnel.cli.main", "x = 1  # TODO later", "unfinished work: TODO"),
        ("tunnel.cli.main", "def f():\n    raise NotImplementedError", "unfinished work: NotImplementedError"),
        ("policy.spd", "def f():\n" + "    x = 1\n" * 60, "f has 61 lines; the limit is 60"),
        ("policy.spd", "x = 1\n" * 501, "501 lines; the limit is 500"),
    ],
)
def test_the_checker_notices(module: str, text: str, breach: str) -> None:
    assert [what for _, what in check(module, text)] == [breach]


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("policy.schema", "from pydantic import BaseModel"),
        ("policy.store.files", "import os\nopen('x')"),
        ("policy.lint", "def f(x):\n    assert x"),
        ("ike.crypto.kex", "from cryptography.hazmat.primitives import hashes\nfrom policy.secret import Secret"),
        ("ike.endpoint", "from socket import AF_INET"),
        (
            "tunnel.gateway",
            "from ike.endpoint import IkeEndpoint\nfrom tunnel.dataplane.contract import DropReason",
        ),
        ("tunnel.host.tun", "import asyncio, socket, time\nimport pytun\nfrom tunnel.gateway import Gateway"),
        ("tunnel.cli.main", "from tunnel.agent.core import Agent\nprint('x')"),
        ("policy.spd", "def f():\n" + "    x = 1\n" * 59),
    ],
)
def test_the_checker_lets_pass(module: str, text: str) -> None:
    assert list(check(module, text)) == []


def test_a_tree_with_a_breach_is_found(tmp_path: Path) -> None:
    for package in PACKAGES:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("")
    (tmp_path / "policy" / "bad.py").write_text("import time\n")
    assert violations(tmp_path) == ["policy/bad.py:1: time in pure code"]
