"""The monitor, driven by keys on a screen of 80 by 24, against an agent that a test makes up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import DataTable, RichLog, Static

from tests.support.agent_process import cli
from tunnel.cli.client import AgentError
from tunnel.cli.monitor import Monitor
from tunnel.cli.rates import SHOWN, Rates, bits

SIZE = (80, 24)
#: Seldom enough that the screen comes to rest between two looks, which is what keys wait for.
EVERY_S = 0.3


def child(number: int, rule: str = "LAN to LAN", octets: int = 0) -> dict[str, Any]:
    return {
        "child": number, "rule": rule, "remote": "10.2.0.0/24", "suite": "ESP AES-GCM-16-256/ESN",
        "bytes_in": octets, "bytes_out": 2 * octets, "rekey_in_s": 3000.0,
    }  # fmt: skip


def status(*children: dict[str, Any], drops: dict[str, int] | None = None, down: str = "") -> dict[str, Any]:
    carried = {way: sum(child[way] for child in children) for way in ("bytes_in", "bytes_out")}
    entries = [{"remote": "10.2.0.0/24", "state": "up", "reason": None}]
    if down:
        entries.append({"remote": "10.3.0.0/24", "state": "failed", "reason": down})
    return {
        "rules": [{"rule": "LAN to LAN", "entries": entries, "carried": carried}],
        "policy": "Site A to site B", "held": 0, "tun_mtu": 1400, "uptime_s": 3700, "children": list(children),
        "drops": drops or {}, "guard": {"clear_in": 2},
        "peers": [
            {"peer": "gw-b.example", "state": "up", "reason": None, "ike_sas": [
                {"state": "established", "path": "10.9.0.1:4500-10.9.0.2:4500", "nat": "remote", "age_s": 60,
                 "rekey_in_s": 8000},
            ]},
            {"peer": "gw-c.example", "state": "down", "reason": "nobody answers", "ike_sas": []},
        ],
    }  # fmt: skip


class Fake:
    """An agent whose answers are ``now``; what it is asked to do is in ``done``."""

    def __init__(self, now: dict[str, Any] | None) -> None:
        self.now = now
        self.done: list[tuple[str, object]] = []
        self.told: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def ask(self, command: str, **arguments: object) -> dict[str, Any]:
        if self.now is None:
            raise AgentError("no agent answers: it was killed")
        if command != "status":
            self.done.append((command, arguments.get("target")))
        return self.now

    async def events(self, last: int) -> AsyncIterator[dict[str, Any]]:
        assert last > 0, "what happened before somebody looked is what he looks for"
        while True:
            yield await self.told.get()


def text(pilot: Pilot[None]) -> str:
    """Return what stands on the screen."""
    lines: Iterable[Any] = pilot.app.screen._compositor.render_strips()
    return "\n".join("".join(segment.text for segment in strip) for strip in lines)


def rows(pilot: Pilot[None], name: str) -> list[list[str]]:
    table = pilot.app.query_one(f"#{name}-rows", DataTable)
    return [list(map(str, table.get_row_at(at))) for at in range(table.row_count)]


async def test_quick_mode_main_mode_drops_and_events() -> None:
    fake = Fake(status(child(1, octets=100), drops={"replayed": 5}, down="the preshared key differs"))
    monitor = Monitor(fake, every_s=EVERY_S)
    async with monitor.run_test(size=SIZE) as pilot:
        await pilot.pause(2 * EVERY_S)
        head = str(monitor.query_one("#head", Static).render())
        assert "Site A to site B: 1 of 2 up, 1 failed" in head
        screen = text(pilot)
        for shown in (
            head,
            "in  0 bit/s",
            "out 0 bit/s",
            "the preshared key differs",
            "replayed",
            "guard: clear_in",
        ):
            assert shown in screen, f"{shown} is not on a screen of 80 by 24"
        assert all(len(line.rstrip()) <= SIZE[0] for line in screen.splitlines())
        assert [row[:3] for row in rows(pilot, "quick")] == [
            ["LAN to LAN", "10.3.0.0/24", "failed"], ["LAN to LAN", "10.2.0.0/24", "up"],
        ]  # fmt: skip
        assert "LAN to LAN" in text(pilot)
        assert "Quit" in text(pilot), "the keys are on the screen"
        await pilot.press("2")
        assert [row[:2] for row in rows(pilot, "main")] == [
            ["gw-b.example", "established"], ["gw-c.example", "down"],
        ]  # fmt: skip
        assert "NAT" in rows(pilot, "main")[0]
        await pilot.press("3")
        assert [row[:2] for row in rows(pilot, "drops")] == [["replayed", "5"], ["guard: clear_in", "2"]]
        fake.now = status(child(1, octets=100), drops={"replayed": 9})
        for _ in range(50):
            await pilot.pause(0.01)
            if rows(pilot, "drops")[0][:2] == ["replayed", "9"]:
                break
        else:
            pytest.fail("the drops stay as they were")
        await pilot.press("4")
        await fake.told.put({"time": "t", "level": "info", "event": "child_rekeyed", "message": "a [b]"})
        await pilot.pause(2 * EVERY_S)
        assert "child_rekeyed: a [b]" in "\n".join(line.text for line in monitor.query_one(RichLog).lines)


async def test_rekey_and_disconnect_with_a_question() -> None:
    fake = Fake(status(child(1), child(2, rule="Printers")))
    monitor = Monitor(fake, every_s=EVERY_S)
    async with monitor.run_test(size=SIZE) as pilot:
        await pilot.pause(2 * EVERY_S)
        await pilot.press("r")
        await pilot.press("down", "d")
        await pilot.pause()
        assert "Printers" in text(pilot)
        await pilot.press("n")
        await pilot.pause(EVERY_S)
        assert fake.done == [("rekey", "LAN to LAN")]
        await pilot.press("d", "y")
        await pilot.pause(2 * EVERY_S)
        assert fake.done[-1] == ("terminate", "Printers")
        await pilot.press("q")


async def test_the_filter() -> None:
    fake = Fake(status(child(1), child(2, rule="Printers")))
    monitor = Monitor(fake, every_s=EVERY_S)
    async with monitor.run_test(size=SIZE) as pilot:
        await pilot.pause(2 * EVERY_S)
        await pilot.press("slash", *"print")
        await pilot.press("enter")
        await pilot.pause(2 * EVERY_S)
        assert [row[0] for row in rows(pilot, "quick")] == ["Printers"]


async def test_an_agent_that_is_gone_and_comes_back() -> None:
    fake = Fake(None)
    monitor = Monitor(fake, every_s=EVERY_S)
    async with monitor.run_test(size=SIZE) as pilot:
        await pilot.pause(EVERY_S)
        assert "it was killed" in str(monitor.query_one("#head", Static).render())
        await pilot.press("r", "d")
        fake.now = status(child(1))
        await pilot.pause(2 * EVERY_S)
        assert len(rows(pilot, "quick")) == 1
        fake.now = {"policy": "of an agent that is older or newer"}
        await pilot.pause(2 * EVERY_S)
        assert "another version" in text(pilot)
        fake.now = None
        await pilot.pause(2 * EVERY_S)
        assert rows(pilot, "quick") == [], "what was true before is not shown as if it still were"


async def test_columns_come_and_go_with_the_width() -> None:
    monitor = Monitor(Fake(status(child(1))), every_s=EVERY_S)
    async with monitor.run_test(size=SIZE) as pilot:
        await pilot.pause(2 * EVERY_S)
        narrow = len(rows(pilot, "quick")[0])
        await pilot.resize_terminal(150, 40)
        await pilot.pause(2 * EVERY_S)
        assert len(rows(pilot, "quick")[0]) > narrow
        assert "AES-GCM-16-256" in text(pilot)
        await pilot.resize_terminal(60, 12)
        await pilot.pause(2 * EVERY_S)
        assert "LAN to LAN" in text(pilot), "on a low screen the table comes first"


async def test_a_thousand_tunnels_keep_the_cursor_and_put_troubles_first() -> None:
    fake = Fake(status(*(child(n, rule=f"Branch {n}") for n in range(1000)), down="nobody answers"))
    monitor = Monitor(fake, every_s=EVERY_S)
    async with monitor.run_test(size=SIZE) as pilot:
        await pilot.pause(4 * EVERY_S)
        assert rows(pilot, "quick")[0][2] == "failed"
        await pilot.press("down", "down", "down")
        table = monitor.query_one("#quick-rows", DataTable)
        assert table.get_row_at(table.cursor_row)[0].plain == "Branch 2"
        fake.now = status(*(child(n, rule=f"Branch {n}") for n in range(2, 1000)))
        await pilot.pause(4 * EVERY_S)
        assert table.get_row_at(table.cursor_row)[0].plain == "Branch 2"


@pytest.mark.parametrize("terminal", ["dumb", "xterm"])
def test_without_a_terminal_it_says_what_to_use(tmp_path: Path, terminal: str) -> None:
    done = cli("monitor", "--control", str(tmp_path / "none"), environment={"TERM": terminal})
    assert done.returncode == 1
    assert "use mirrorgate status" in done.stderr
    assert done.stdout == ""


def test_rates() -> None:
    rates = Rates()
    rates.look(status(child(1, octets=1000)), 10.0)
    assert rates.children == {}
    assert list(rates.received) == [0.0] * SHOWN
    rates.look(status(child(1, octets=3000), child(2, octets=500)), 12.0)
    assert rates.children == {1: (1000.0, 2000.0), 2: (0.0, 0.0)}
    assert (rates.received[-1], rates.sent[-1]) == (1250.0, 2500.0)
    assert rates.sparkline(1) == "▁" * 11 + "█"
    rates.look(status(child(3, octets=5000)), 13.0)
    assert rates.children == {3: (0.0, 0.0)}
    assert rates.received[-1] == 1500.0, "what replaced SAs carried counts by the totals of their rules"
    rates.nothing()
    rates.look(status(child(1, octets=900_000)), 20.0)
    assert list(rates.received)[-2:] == [1500.0, 0.0], "an agent that comes back begins anew"


@pytest.mark.parametrize(
    ("rate", "said"),
    [(0, "0 bit/s"), (100, "800 bit/s"), (1250, "10.0 kbit/s"), (125_000, "1.0 Mbit/s"),
     (25_000_000, "200 Mbit/s"), (1.5e8, "1.20 Gbit/s")],
)  # fmt: skip
def test_bits(rate: float, said: str) -> None:
    assert bits(rate) == said
