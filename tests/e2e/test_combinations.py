"""Who talks with whom under the three default policies, on real packets: equal to the published descriptions."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.agent_process import CONFIGS as SHIPPED
from tests.support.agent_process import Agent, Directory
from tests.support.capture import Capture
from tests.support.combinations import CLEAR, EXPECTED, KINDS, NONE, NOTHING, PROTECTED, table
from tests.support.host_net import ask, hosts

pytestmark = pytest.mark.e2e

CONFIGS = {
    "respond": "respond-only.toml",
    "request": "request-security.toml",
    "require": "require-security.toml",
}
PORT, ADDRESSES = 8080, ("10.9.0.1", "10.9.0.2")


def talk(pair: tuple[str, str]) -> str:
    """Let a client talk to a server a few times; return how the last time went, as seen between them."""
    with hosts("begins", "answers") as built, Directory() as directory, contextlib.ExitStack() as agents:
        built.serve("answers", PORT)
        for name, kind in zip(("begins", "answers"), pair, strict=True):
            if kind == NONE:
                continue
            config = directory.config(f"{name}.toml", text=(SHIPPED / CONFIGS[kind]).read_text())
            agents.enter_context(Agent(built[name], config))
        for _ in range(4):
            ask(built["begins"], ADDRESSES[1], PORT, wait=2)
        with Capture(built.link, "wan", f"tcp port {PORT}") as clear:
            answered = ask(built["begins"], ADDRESSES[1], PORT, wait=3)
        in_clear = bool(clear.packets())
    if not answered:
        return NOTHING
    return CLEAR if in_clear else PROTECTED


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    pairs = [(one, other) for one in KINDS for other in KINDS]
    with ThreadPoolExecutor(4) as pool:
        seen = dict(zip(pairs, pool.map(talk, pairs), strict=True))
    with capsys.disabled():
        print(f"\n{table(seen)}")
    assert seen == EXPECTED
