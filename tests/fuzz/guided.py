"""Guided fuzzing: a program that looks for octets which take a parser where no octets took it before.

    python -m tests.fuzz.guided TARGET CORPUS [ARGUMENTS OF LIBFUZZER]      scripts/fuzz --guided runs it for each

Needs atheris, which scripts/fuzz installs. Each target (``targets``) holds the invariant of the tests here: a
value or the parser's own error, and the books of the data plane balance. What breaks it is in a file, crash-...,
to be made a test.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


def main(arguments: list[str]) -> None:
    """Fuzz one target, from its seeds and what earlier runs found in the corpus."""
    program, name, corpus, *rest = arguments
    atheris: Any = __import__("atheris")
    with atheris.instrument_imports(include=["ike", "policy", "tunnel"]):
        from tests.fuzz import targets
    directory = Path(corpus)
    directory.mkdir(parents=True, exist_ok=True)
    for file, data in targets.seeds(name):
        (directory / file).write_bytes(data)
    atheris.Setup([program, corpus, *rest], targets.TARGETS[name][0]())
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv)
