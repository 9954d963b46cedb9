"""The documents are true: README's configs are accepted, its commands exist, and what it names is there."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from policy.store.files import load_file

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


WHOLE = [block for block in blocks("toml") if "[agent]" in block]
EXCERPTS = [block for block in blocks("toml") if "[agent]" not in block]
COMMANDS = sorted(
    {
        line.partition("#")[0].strip()
        for block in blocks("sh")
        for line in block.splitlines()
        if line.startswith("mirrorgate ")
    }
)


def contains(whole: Any, part: Any) -> bool:
    """Tell whether *part* stands in *whole*: keys in a table, tables in an array, or an equal value."""
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(key in whole and contains(whole[key], part[key]) for key in part)
    if isinstance(part, list) and isinstance(whole, list):
        return all(any(contains(candidate, wanted) for candidate in whole) for wanted in part)
    return bool(whole == part)


def command_line(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tunnel.cli.main", *words],
        capture_output=True, text=True, cwd=ROOT, timeout=60, check=False,
    )  # fmt: skip


def test_there_is_something_to_try() -> None:
    assert len(WHOLE) >= 1
    assert len(EXCERPTS) >= 1
    assert len(COMMANDS) >= 10


@pytest.mark.parametrize("number", range(len(WHOLE)))
def test_config_in_readme_is_accepted_without_a_warning(tmp_path: Path, number: int) -> None:
    for secret in re.findall(r'secret_file = "([^"]+)"', WHOLE[number]):
        (tmp_path / secret).touch(mode=0o600)
        (tmp_path / secret).write_text("dJ5fI1mEGSh0yq2vRk9wCz7uLx3NbTa8\n")
    (tmp_path / "readme.toml").write_text(WHOLE[number])
    assert load_file(tmp_path / "readme.toml").warnings == ()
    done = command_line("check", str(tmp_path / "readme.toml"))
    assert done.returncode == 0, done.stderr


def test_exception_in_readme_comes_before_the_tunnel(tmp_path: Path) -> None:
    (tmp_path / "site.psk").touch(mode=0o600)
    (tmp_path / "site.psk").write_text("dJ5fI1mEGSh0yq2vRk9wCz7uLx3NbTa8\n")
    (tmp_path / "readme.toml").write_text(next(block for block in WHOLE if "Monitoring" in block))
    order = command_line("check", str(tmp_path / "readme.toml")).stdout
    assert 0 < order.index("Monitoring in clear") < order.index("LAN to LAN")


@pytest.mark.parametrize("number", range(len(EXCERPTS)))
def test_excerpt_in_readme_stands_in_the_shipped_config(number: int) -> None:
    shipped = tomllib.loads((ROOT / "configs" / "site-a.toml").read_text())
    # The excerpt begins within a policy: its rules are those of the first one.
    excerpt = tomllib.loads(re.sub(r"^\[\[policy\.rule\]\]", "[[policy]]\n[[policy.rule]]", EXCERPTS[number]))
    assert contains(shipped, excerpt)


@pytest.mark.parametrize("line", COMMANDS)
def test_command_in_readme_exists(line: str) -> None:
    name, *arguments = shlex.split(line)[1:]
    known = command_line("--help").stdout
    assert re.search(rf"^    {name}\b", known, re.MULTILINE), name
    # As many words as its usage has places for, and no more: options and their values aside.
    usage = " ".join(command_line(name, "--help").stdout.partition("\n\n")[0].split())
    options = r"\[-[^ \]]+(?: [A-Z]+)?\]"
    places = re.sub(options, "", usage).split()[3:]
    for option in [word for word in arguments if word.startswith("--")]:
        said = re.search(rf"\[{option}(?P<value> [A-Z]+)?\]", usage)
        assert said, option
        at = arguments.index(option)
        del arguments[at : at + (2 if said["value"] else 1)]
    required = [place for place in places if not place.startswith("[") and not place.endswith("]")]
    assert len(required) <= len(arguments) <= len(places)


@pytest.mark.parametrize("document", ["README.md", "ARCHITECTURE.md"])
def test_what_is_named_is_there(document: str) -> None:
    text = (ROOT / document).read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (ROOT / target).exists(), target
    for path in re.findall(r"`((?:policy|ike|tunnel|tests|scripts|configs|\.ci)/[\w./-]+?)`", text):
        assert (ROOT / path).exists(), path


def test_changelog_tells_of_this_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"## {version}\n" in (ROOT / "CHANGELOG.md").read_text()


def test_scripts_are_executable() -> None:
    for script in ("setup", "check", "test", "demo", "bench", "fuzz", "../.ci/run"):
        assert (ROOT / "scripts" / script).stat().st_mode & 0o111, script
