"""``mirrorgate monitor``: the IP Security Monitor on a terminal, live.

Quick Mode shows Child SAs, Main Mode the IKE SAs and peers, as Windows' console names them; then what was dropped
and why, and what happened. It asks the agent once a second by the control socket, and follows its events.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path as FilePath
from typing import Any, ClassVar, Protocol

from textual.app import App, ComposeResult
from textual.binding import BindingType
from textual.containers import Grid, Horizontal
from textual.screen import ModalScreen
from textual.widgets import (
    Button,
    DataTable,
    Footer,
    Input,
    Label,
    RichLog,
    Sparkline,
    Static,
    TabbedContent,
    TabPane,
)

from tunnel.cli.client import AgentError, call
from tunnel.cli.rates import Rates, bits
from tunnel.cli.render import duration, event

_EVERY_S = 1.0
_QUICK = ("Rule", "Remote", "State", "Suite", "In", "Out", "Rekey")
_MAIN = ("Peer", "State", "Path", "NAT", "Age", "Rekey")
_DROPS = ("Reason", "Packets", "More")


class Source(Protocol):
    """Where the monitor gets what it shows."""

    async def ask(self, command: str, **arguments: object) -> dict[str, Any]:
        """Carry out a command of the control socket. AgentError."""

    def events(self) -> AsyncIterator[dict[str, Any]]:
        """Yield events until the agent is gone. AgentError."""


class Agent:
    """The running agent, by its control socket."""

    def __init__(self, control: FilePath) -> None:
        self._control = control

    async def ask(self, command: str, **arguments: object) -> dict[str, Any]:
        """Carry out a command of the control socket. AgentError."""
        return await asyncio.to_thread(call, self._control, command, arguments)

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """Yield events until the agent is gone."""
        try:
            reader, writer = await asyncio.open_unix_connection(str(self._control))
        except OSError as error:
            raise AgentError(f"{self._control} cannot be reached: {error.strerror}") from error
        try:
            writer.write(b'{"command": "events"}\n')
            while line := await reader.readline():
                record = json.loads(line)
                if "event" in record:
                    yield record
        finally:
            writer.close()


class _Sure(ModalScreen[bool]):
    """Asks before something is cut off."""

    CSS = """
    _Sure { align: center middle; }
    #sure { grid-size: 2; width: 50; height: 9; border: round $warning; padding: 1; background: $surface; }
    #sure Label { column-span: 2; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [("y", "answer(True)", "Yes"), ("n,escape", "answer(False)", "No")]

    def __init__(self, question: str) -> None:
        super().__init__()
        self._question = question

    def compose(self) -> ComposeResult:
        """Show the question and two answers."""
        with Grid(id="sure"):
            yield Label(self._question)
            yield Button("Yes (y)", variant="warning", id="yes")
            yield Button("No (n)", id="no")

    def on_button_pressed(self, pressed: Button.Pressed) -> None:
        """Take an answer by mouse."""
        self.dismiss(pressed.button.id == "yes")

    def action_answer(self, sure: bool) -> None:
        """Take an answer by key."""
        self.dismiss(sure)


class Monitor(App[None]):
    """The monitor's screen."""

    TITLE = "IP Security Monitor"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #head { height: 1; }
    #rates { height: 2; }
    #rates Static { width: 20; }
    #rates Sparkline { width: 1fr; }
    #filter { display: none; height: 1; border: none; }
    #filter.shown { display: block; }
    DataTable, RichLog { height: 1fr; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        ("q", "quit", "Quit"),
        ("1", "show('quick')", "Quick Mode"),
        ("2", "show('main')", "Main Mode"),
        ("3", "show('drops')", "Drops"),
        ("4", "show('log')", "Events"),
        ("r", "rekey", "Rekey"),
        ("d", "disconnect", "Disconnect"),
        ("slash", "filter", "Filter"),
    ]

    def __init__(self, source: Source, *, every_s: float = _EVERY_S) -> None:
        super().__init__()
        self._source = source
        self._every_s = every_s
        self._rates = Rates()
        self._drops: dict[str, int] = {}
        self._rules: list[str] = []
        self._wanted = ""

    def compose(self) -> ComposeResult:
        """Lay out the head, two sparklines, four views and the keys."""
        yield Static("asking the agent ...", id="head", markup=False)
        with Horizontal(id="rates"):
            yield Static("", id="in")
            yield Sparkline(list(self._rates.received), id="received")
            yield Static("", id="out")
            yield Sparkline(list(self._rates.sent), id="sent")
        yield Input(placeholder="rule, peer or reason; Enter when done", id="filter")
        with TabbedContent(initial="quick"):
            for name, title, columns in (("quick", "Quick Mode", _QUICK), ("main", "Main Mode", _MAIN),
                                         ("drops", "Drops", _DROPS)):  # fmt: skip
                with TabPane(title, id=name):
                    table: DataTable[str] = DataTable(id=f"{name}-rows", cursor_type="row", zebra_stripes=True)
                    table.add_columns(*columns)
                    yield table
            with TabPane("Events", id="log"):
                yield RichLog(id="log-lines", max_lines=1000, markup=False)
        yield Footer()

    def on_mount(self) -> None:
        """Begin to ask and to listen."""
        self.query_one("#quick-rows").focus()
        self.run_worker(self._ask_again_and_again(), exclusive=False)
        self.run_worker(self._listen(), exclusive=False)

    async def _ask_again_and_again(self) -> None:
        while True:
            try:
                self._show_status(await self._source.ask("status"))
            except AgentError as error:
                self.query_one("#head", Static).update(f"{error}; trying again")
            await asyncio.sleep(self._every_s)

    async def _listen(self) -> None:
        lines = self.query_one("#log-lines", RichLog)
        while True:
            try:
                async for record in self._source.events():
                    lines.write(event(record))
            except (AgentError, OSError, ValueError):
                pass
            await asyncio.sleep(self._every_s)

    def _show_status(self, status: Mapping[str, Any]) -> None:
        self._rates.look(status, time.monotonic())
        up, entries = _up(status)
        self.query_one("#head", Static).update(
            f"{status['policy'] or 'no policy assigned'}: {up} of {entries} up, {status['held']} held, "
            f"TUN MTU {status['tun_mtu']}, agent up {duration(status.get('uptime_s'))}"
        )
        for name, rates in (("received", self._rates.received), ("sent", self._rates.sent)):
            self.query_one(f"#{name}", Sparkline).data = list(rates)
        self.query_one("#in", Static).update(f"in  {bits(self._rates.received[-1])}")
        self.query_one("#out", Static).update(f"out {bits(self._rates.sent[-1])}")
        self._fill("quick", [row for row in self._quick(status) if self._shown(row)])
        self._fill("main", [row for row in _main(status) if self._shown(row)])
        self._fill("drops", [row for row in self._dropped(status) if self._shown(row)])

    def _quick(self, status: Mapping[str, Any]) -> list[tuple[str, ...]]:
        """Return each Child SA, and each entry that should have one and has none."""
        rows: list[tuple[str, ...]] = []
        for child in status["children"]:
            received, sent = self._rates.children.get(child["child"], (0.0, 0.0))
            rows.append((str(child["rule"]), child["remote"], "up", child["suite"], bits(received), bits(sent),
                         duration(child["rekey_in_s"])))  # fmt: skip
        for rule in status["rules"]:
            for entry in rule["entries"]:
                if entry["state"] not in ("up", "n/a"):
                    reason = entry.get("reason") or "-"
                    rows.append((rule["rule"], entry["remote"], entry["state"], reason, "-", "-", "-"))
        return rows

    def _dropped(self, status: Mapping[str, Any]) -> list[tuple[str, ...]]:
        guard = {f"guard: {name}": count for name, count in status.get("guard", {}).items() if count}
        drops = {**status["drops"], **guard}
        rows: list[tuple[str, ...]] = [
            (reason, str(count), f"+{more}" if (more := count - self._drops.get(reason, count)) else "")
            for reason, count in sorted(drops.items(), key=lambda item: -item[1])
        ]
        self._drops = drops
        return rows

    def _shown(self, row: tuple[str, ...]) -> bool:
        return self._wanted in " ".join(row).lower()

    def _fill(self, name: str, rows: list[tuple[str, ...]]) -> None:
        """Replace the rows of a table; the cursor stays where it is."""
        table = self.query_one(f"#{name}-rows", DataTable)
        at = table.cursor_row
        table.clear()
        for row in rows:
            table.add_row(*row)
        if rows:
            table.move_cursor(row=min(at, len(rows) - 1))
        if name == "quick":
            self._rules = [row[0] for row in rows]

    def _chosen(self) -> str | None:
        at = self.query_one("#quick-rows", DataTable).cursor_row
        return self._rules[at] if at < len(self._rules) else None

    def action_show(self, name: str) -> None:
        """Show one of the four views."""
        self.query_one(TabbedContent).active = name
        self.query_one(f"#{name}-rows" if name != "log" else "#log-lines").focus()

    async def action_rekey(self) -> None:
        """Rekey the Child SAs of the rule under the cursor."""
        await self._do("rekey", self._chosen())

    def action_disconnect(self) -> None:
        """Delete the SAs of the rule under the cursor, once it is sure."""
        rule = self._chosen()
        if rule is None:
            return

        def answered(sure: bool | None) -> None:
            if sure:
                self.run_worker(self._do("terminate", rule))

        self.push_screen(_Sure(f'Delete the SAs of "{rule}"? The next packet negotiates anew.'), answered)

    async def _do(self, command: str, rule: str | None) -> None:
        if rule is None:
            return
        try:
            await self._source.ask(command, target=rule)
            self.notify(f"{command}: {rule}", markup=False)
        except AgentError as error:
            self.notify(str(error), severity="error", markup=False)

    def action_filter(self) -> None:
        """Ask for what rows should have in them."""
        field = self.query_one("#filter", Input)
        field.add_class("shown")
        field.focus()

    def on_input_changed(self, changed: Input.Changed) -> None:
        """Show from the next look on what has these letters in it."""
        self._wanted = changed.value.strip().lower()

    def on_input_submitted(self, submitted: Input.Submitted) -> None:
        """Go back to the table; an empty filter goes away."""
        if not submitted.value.strip():
            submitted.input.remove_class("shown")
        self.action_show(self.query_one(TabbedContent).active)


def _up(status: Mapping[str, Any]) -> tuple[int, int]:
    states = [e["state"] for rule in status["rules"] for e in rule["entries"] if e["state"] != "n/a"]
    return states.count("up"), len(states)


def _main(status: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return each IKE SA, and each peer that has none and why."""
    rows: list[tuple[str, ...]] = []
    for peer in status["peers"]:
        for sa in peer["ike_sas"]:
            nat = "direct" if sa["nat"] in (None, "none") else f"NAT {sa['nat']}"
            rows.append((peer["peer"], sa["state"], sa["path"], nat, duration(sa["age_s"]),
                         duration(sa["rekey_in_s"])))  # fmt: skip
        if not peer["ike_sas"]:
            rows.append((peer["peer"], peer["state"], peer.get("reason") or "-", "-", "-", "-"))
    return rows


def run(control: FilePath) -> None:
    """Show the monitor until it is quit. AgentError when no agent answers at the start."""
    call(control, "version")
    Monitor(Agent(control)).run()
