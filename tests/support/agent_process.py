"""Mirrorgate's agent as a process in a namespace, and its commands as a person types them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.support.netns import Namespace, Sites, wait_for

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
COMMAND = (sys.executable, "-bb", "-m", "tunnel.cli.main")


class Directory:
    """A temporary directory with configs and their secrets. A context manager."""

    def __init__(self) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="mirrorgate-agent-"))
        self._secrets: dict[str, str] = {}

    def __enter__(self) -> Directory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self._directory, ignore_errors=True)

    @property
    def path(self) -> Path:
        """Where the files are."""
        return self._directory

    def secret(self, name: str = "site.psk") -> str:
        """Return the secret in the file *name*, making the file when it is not there."""
        if name not in self._secrets:
            self.write_secret(name, secrets.token_urlsafe(33))
        return self._secrets[name]

    def write_secret(self, name: str, secret: str) -> None:
        """Write the secret file *name*, readable by its owner alone."""
        path = self._directory / name
        path.touch(mode=0o600)
        path.write_text(secret + "\n")
        self._secrets[name] = secret

    def config(self, name: str, *changes: tuple[str, str], text: str | None = None) -> Path:
        """Write a shipped config (or *text*) with *changes*, a control socket of its own, and its secrets.

        A change that finds nothing is a mistake of the test.
        """
        if text is None:
            text = (CONFIGS / name).read_text()
        for old, new in (*changes, ("[agent]", f'[agent]\ncontrol = "{Path(name).stem}.sock"')):
            if old not in text:
                raise ValueError(f"{old!r} is not in {name}")
            text = text.replace(old, new)
        for secret in re.findall(r'secret_file = "([^"]+)"', text):
            self.secret(secret)
        path = self._directory / name
        path.write_text(text)
        return path


class Agent:
    """``mirrorgate run CONFIG`` in *namespace*. A context manager: started and ready inside, stopped after."""

    def __init__(self, namespace: Namespace, config: Path, command: Sequence[str] = COMMAND) -> None:
        self.namespace = namespace
        self._command = command
        self.config = config
        self.control = config.with_suffix(".sock")
        self._log = config.with_suffix(".log")
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Agent:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception):
            print(f"--- log of {self.config.name} in {self.namespace.name}\n{self.log()}")
        self.close()

    def start(self, *, wait: bool = True) -> Agent:
        """Start the agent and wait until it answers ``status``."""
        self._process = self.namespace.start(
            *self._command, "run", str(self.config), log=self._log, environment={"PYTHONPATH": str(ROOT)}
        )
        if wait:
            self.wait_ready()
        return self

    def wait_ready(self, timeout: float = 20) -> None:
        """Wait until the agent answers ``status``. AssertionError with its log when it ends before."""

        def ready() -> bool:
            if self._process is None or self._process.poll() is not None:
                raise AssertionError(f"{self.config.name}: the agent ended\n{self.log()}")
            return self.control.exists() and self.run("status", "--json", check=False).returncode == 0

        wait_for(ready, f"{self.config.name} answers status\n{self.log()}", timeout)

    @property
    def pid(self) -> int:
        """The process id of the agent."""
        if self._process is None:
            raise AssertionError("the agent does not run")
        return self._process.pid

    def stop(self, timeout: float = 15) -> int:
        """Ask the agent to stop (SIGTERM) and return its exit code."""
        process, self._process = self._process, None
        if process is None:
            raise AssertionError("the agent does not run")
        process.terminate()
        return process.wait(timeout)

    def ended(self, timeout: float = 5) -> int:
        """Wait until the agent ended by itself and return its exit code: -N when signal N ended it."""
        process, self._process = self._process, None
        if process is None:
            raise AssertionError("the agent does not run")
        return process.wait(timeout)

    def kill(self) -> None:
        """Kill the agent (SIGKILL)."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def signal(self, number: int) -> None:
        """Send a signal to the agent."""
        os.kill(self.pid, number)

    def close(self) -> None:
        """Stop the agent, or kill it when it does not stop. May be called again."""
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def log(self) -> str:
        """Return what the agent wrote so far, over all its runs."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def run(self, *words: str, check: bool = True, timeout: float = 30) -> subprocess.CompletedProcess[str]:
        """Run a command of the CLI against this agent."""
        return cli(*words, "--control", str(self.control), check=check, timeout=timeout)

    def json(self, *words: str) -> Any:
        """Run a command of the CLI with ``--json`` and return what it says."""
        return json.loads(self.run(*words, "--json").stdout)

    def status(self) -> dict[str, Any]:
        """Return the status object."""
        found = self.json("status")
        assert isinstance(found, dict)
        return found

    def children(self) -> list[dict[str, Any]]:
        """Return the Child SAs."""
        found = self.status()["children"]
        assert isinstance(found, list)
        return found

    def entry_states(self) -> list[str]:
        """Return the state of every entry, in SPD order."""
        return [entry["state"] for rule in self.status()["rules"] for entry in rule["entries"]]

    def wait_up(self, timeout: float = 10) -> None:
        """Wait until every entry is up."""
        wait_for(
            lambda: set(self.entry_states()) == {"up"}, f"{self.config.name}: all entries up", timeout, every=0.1
        )

    def wait_log(self, sentence: str, timeout: float = 10) -> None:
        """Wait until the log says *sentence*."""
        try:
            wait_for(lambda: sentence in self.log(), sentence, timeout)
        except AssertionError:
            raise AssertionError(f"{self.config.name} never says {sentence!r}:\n{self.log()}") from None


@contextlib.contextmanager
def tunnel(
    sites: Sites, directory: Directory, pair: tuple[str, str] = ("site-a.toml", "site-b.toml")
) -> Iterator[tuple[Agent, Agent]]:
    """Run the two halves of a shipped tunnel on the two gateways for the length of a block."""
    with (
        Agent(sites.gateway_a, directory.config(pair[0])) as one,
        Agent(sites.gateway_b, directory.config(pair[1])) as other,
    ):
        yield one, other


def cli(
    *words: str, check: bool = False, timeout: float = 30, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command of the CLI. AssertionError with its output when *check* and it fails."""
    done = subprocess.run(
        [*COMMAND, *words],
        capture_output=True, text=True, timeout=timeout, check=False, stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
    )  # fmt: skip
    if check and done.returncode != 0:
        raise AssertionError(
            f"mirrorgate {' '.join(words)} ended with {done.returncode}\n{done.stdout}{done.stderr}"
        )
    return done
