"""``mirrorgate monitor``: the IP Security Monitor on a terminal, live.

Quick Mode shows Child SAs, Main Mode the IKE SAs and peers, as Windows' console names them; below stand what was
dropped and why, and what happened. It asks the agent once a second by the control socket, and follows its events.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path as FilePath
from typing import Any, ClassVar, Protocol

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Grid, Horizontal
from textual.events import Resize
from textual.screen import ModalScreen
from textual.widgets import Button, ContentSwitcher, DataTable, Footer, Input, Label, RichLog, Sparkline, Static

from tunnel.cli import monitor_rows
from tunnel.cli.client import AgentError, call
from tunnel.cli.monitor_rows import Column, Row
from tunnel.cli.rates import Rates, bits

_EVERY_S = 1.0
#: The agent answers in the time of packets: of it the monitor takes no more than this part.
_SHARE = 0.1
_MAX_LINES = 1000
#: Events of before that are shown.
_EARLIER = 50
_TABLES = {"quick": monitor_rows.QUICK, "main": monitor_rows.MAIN, "drops": monitor_rows.DROPS}
_TITLES = {"quick": "Quick Mode: Child SAs", "main": "Main Mode: IKE SAs", "drops": "Drops", "log": "Events"}
_LEVELS = {"warning": "yellow", "error": "red", "debug": "dim"}


class Source(Protocol):
    """Where the monitor gets what it shows."""

    async def ask(self, command: str, **arguments: object) -> dict[str, Any]:
        """Carry out a command of the control socket. AgentError."""

    def events(self, last: int) -> AsyncIterator[dict[str, Any]]:
        """Yield the *last* events, and all that follow until the agent is gone. AgentError."""


class Agent:
    """The running agent, by its control socket."""

    def __init__(self, control: FilePath) -> None:
        self._control = control

    async def ask(self, command: str, **arguments: object) -> dict[str, Any]:
        """Carry out a command of the control socket. AgentError."""
        return await asyncio.to_thread(call, self._control, command, arguments)

    async def events(self, last: int) -> AsyncIterator[dict[str, Any]]:
        """Yield the last events and all that follow until the agent is gone."""
        try:
            reader, writer = await asyncio.open_unix_connection(str(self._control))
        except OSError as error:
            raise AgentError(f"{self._control} cannot be reached: {error.strerror}") from error
        try:
            writer.write(json.dumps({"command": "events", "last": last}).encode() + b"\n")
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
            yield Label(self._question, markup=False)
            yield Button("Yes (y)", variant="warning", id="yes")
            yield Button("No (n)", id="no")

    def on_button_pressed(self, pressed: Button.Pressed) -> None:
        """Take an answer by mouse."""
        self.dismiss(pressed.button.id == "yes")

    def action_answer(self, sure: bool) -> None:
        """Take an answer by key."""
        self.dismiss(sure)


class _Rows(DataTable[Text]):
    """A table that shows the columns which fit, and changes only what changed: the cursor stays on its row."""

    def __init__(self, name: str, columns: Sequence[Column]) -> None:
        super().__init__(id=f"{name}-rows", cursor_type="row")
        self._all = columns
        self.shown: list[Row] = []
        self._drawn: list[tuple[str, ...]] = []
        self._wide = 0

    def fit(self, width: int) -> None:
        """Show the columns for a screen of *width*."""
        self._wide = sum(column.screen <= width for column in self._all)
        self.clear(columns=True)
        for column in self._all[: self._wide]:
            self.add_column(column.head, width=column.width)
        rows, self.shown, self._drawn = self.shown, [], []
        self.fill(rows)

    def fill(self, rows: list[Row]) -> None:
        """Show *rows*."""
        if not self._wide:
            return
        cells = [tuple(row.cells[: self._wide]) for row in rows]
        if [row.key for row in rows] == [row.key for row in self.shown]:
            for at, (new, old) in enumerate(zip(cells, self._drawn, strict=True)):
                for place, (cell, before) in enumerate(zip(new, old, strict=True)):
                    if cell != before:
                        self.update_cell_at((at, place), self._cell(place, cell))  # type: ignore[arg-type]
        else:
            chosen = self.chosen
            self.clear()
            for new in cells:
                self.add_row(*(self._cell(place, cell) for place, cell in enumerate(new)))
            keys = [row.key for row in rows]
            if rows:
                at = keys.index(chosen.key) if chosen is not None and chosen.key in keys else 0
                self.move_cursor(row=at)
        self.shown, self._drawn = rows, cells

    @property
    def chosen(self) -> Row | None:
        """The row under the cursor."""
        return self.shown[self.cursor_row] if self.cursor_row < len(self.shown) else None

    def _cell(self, place: int, cell: str) -> Text:
        width = self._all[place].width
        shown = cell if len(cell) <= width else cell[: width - 1] + "…"
        return Text(shown, style=monitor_rows.colour(cell), no_wrap=True)


class Monitor(App[None]):
    """The monitor's screen."""

    TITLE = "IP Security Monitor"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    Screen { overflow: hidden; }
    #head { height: 1; text-style: bold; }
    #head.gone { color: $text-error; height: auto; max-height: 3; }
    .rate { height: 1; }
    .rate .now { width: 17; }
    .rate .peak { width: 21; text-align: right; color: $text-muted; }
    .rate Sparkline { width: 1fr; height: 1; }
    #filter { display: none; height: 1; border: none; padding: 0; }
    #filter.shown { display: block; }
    #views { height: 1fr; border-top: solid $panel; border-title-color: $text-muted; }
    #views > * { height: 1fr; background: $background; }
    #detail { height: 2; color: $text-muted; }
    #below { height: 6; }
    #below Static { height: 6; border-top: solid $panel; border-title-color: $text-muted; }
    #dropped { width: 30; }
    #dropped, #news { text-wrap: nowrap; text-overflow: ellipsis; }
    #news { width: 1fr; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        ("1", "show('quick')", "Quick"),
        ("2", "show('main')", "Main"),
        ("3", "show('drops')", "Drops"),
        ("4", "show('log')", "Events"),
        ("r", "rekey", "Rekey"),
        ("d", "disconnect", "Delete"),
        ("slash", "filter", "Filter"),
        ("q", "quit", "Quit"),
        Binding("ctrl+c", "quit", "Quit", show=False, priority=True),
    ]

    def __init__(self, source: Source, *, every_s: float = _EVERY_S) -> None:
        super().__init__()
        self._source = source
        self._every_s = every_s
        self._rates = Rates()
        self._drops: dict[str, int] = {}
        self._news: list[Text] = []
        self._wanted = ""

    def compose(self) -> ComposeResult:
        """Lay out head, rates, four views, and below what was dropped and what happened."""
        yield Static("asking the agent ...", id="head", markup=False)
        for name, word in (("received", "in"), ("sent", "out")):
            with Horizontal(classes="rate"):
                yield Static(word, id=word, classes="now", markup=False)
                yield Sparkline([0.0], id=name)
                yield Static("", id=f"{word}-peak", classes="peak", markup=False)
        yield Input(placeholder="show rows with ...", id="filter", compact=True)
        with ContentSwitcher(initial="quick-rows", id="views"):
            for name, columns in _TABLES.items():
                yield _Rows(name, columns)
            yield RichLog(id="log-lines", max_lines=_MAX_LINES, wrap=True)
        yield Static("", id="detail", markup=False)
        with Horizontal(id="below"):
            yield Static("", id="dropped", markup=False)
            yield Static("", id="news", markup=False)
        yield Footer()

    def on_mount(self) -> None:
        """Begin to ask and to listen."""
        self.query_one("#dropped", Static).border_title = "Drops"
        self.query_one("#news", Static).border_title = "Events"
        self.action_show("quick")
        self.run_worker(self._ask())
        self.run_worker(self._listen())

    def on_resize(self, resized: Resize) -> None:
        """Show as many columns as fit; a low screen has no room for what stands below."""
        for name in _TABLES:
            self._table(name).fit(resized.size.width)
        self._arrange(resized.size.height)

    def _table(self, name: str) -> _Rows:
        return self.query_one(f"#{name}-rows", _Rows)

    def _arrange(self, height: int) -> None:
        summary = self._view in ("quick", "main")
        self.query_one("#below").display = summary and height >= 20
        self.query_one("#detail").display = summary and height >= 12

    async def _ask(self) -> None:
        head = self.query_one("#head", Static)
        while True:
            began = time.monotonic()
            try:
                status = await self._source.ask("status")
                head.remove_class("gone")
                self._show_status(status)
            except (AgentError, LookupError, TypeError) as error:
                other = "the agent's answer cannot be understood: is it of another version?"
                head.add_class("gone")
                head.update(f"{error if isinstance(error, AgentError) else other}; trying again")
                self._show_nothing()
            took = time.monotonic() - began
            await asyncio.sleep(max(self._every_s, took / _SHARE))

    async def _listen(self) -> None:
        lines = self.query_one("#log-lines", RichLog)
        while True:
            try:
                async for record in self._source.events(_EARLIER):
                    line = _line(record)
                    lines.write(line)
                    self._news = [*self._news[-9:], line]
                    self._show_news()
            except (AgentError, OSError, ValueError):
                pass
            await asyncio.sleep(self._every_s)

    def _show_status(self, status: Mapping[str, Any]) -> None:
        self._rates.look(status, time.monotonic())
        self.query_one("#head", Static).update(monitor_rows.head(status))
        self._show_rates()
        dropped, self._drops = monitor_rows.drops(status, self._drops)
        found = {
            "quick": monitor_rows.quick(status, self._rates), "main": monitor_rows.main(status), "drops": dropped,
        }  # fmt: skip
        for name, rows in found.items():
            self._table(name).fill([row for row in rows if self._wanted in " ".join(row.cells).lower()])
        said = [
            f"{reason:18.18} {count:>6} {more:.4}" for reason, count, more in (row.cells for row in dropped[:5])
        ]
        self.query_one("#dropped", Static).update("\n".join(said) or "none")
        self._show_detail()

    def _show_nothing(self) -> None:
        """Without an agent nothing is known: what was true a second ago is not shown as if it were."""
        self._rates.nothing()
        self._show_rates()
        self._drops = {}
        for name in _TABLES:
            self._table(name).fill([])
        self.query_one("#dropped", Static).update("")
        self._show_detail()

    def _show_rates(self) -> None:
        for name, word, seen in (("received", "in", self._rates.received), ("sent", "out", self._rates.sent)):
            self.query_one(f"#{name}", Sparkline).data = list(seen)
            self.query_one(f"#{word}", Static).update(f"{word:4}{bits(seen[-1])}")
            self.query_one(f"#{word}-peak", Static).update(f"peak {bits(max(seen))}")

    def _show_detail(self) -> None:
        row = self._table(self._view).chosen if self._view in _TABLES else None
        self.query_one("#detail", Static).update(row.detail if row is not None else "")

    def _show_news(self) -> None:
        self.query_one("#news", Static).update(Text("\n").join(self._news[-5:]))

    def on_data_table_row_highlighted(self, _moved: DataTable.RowHighlighted) -> None:
        """Tell more of the row that the cursor came to."""
        self._show_detail()

    @property
    def _view(self) -> str:
        return str(self.query_one("#views", ContentSwitcher).current).partition("-")[0]

    def action_show(self, name: str) -> None:
        """Show one of the four views."""
        views = self.query_one("#views", ContentSwitcher)
        views.current = f"{name}-rows" if name != "log" else "log-lines"
        views.border_title = _TITLES[name]
        self.query_one(f"#{views.current}").focus()
        self._arrange(self.size.height)
        self._show_detail()

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

    def _chosen(self) -> str | None:
        row = self._table("quick").chosen if self._view == "quick" else None
        return None if row is None else row.rule

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
        self.action_show(self._view)


def _line(record: Mapping[str, Any]) -> Text:
    """Return an event as a line that opens with the local time."""
    if "lost" in record:
        return Text(f"({record['lost']} events were lost: this screen was too slow)", style="yellow")
    try:
        at = datetime.fromisoformat(record["time"]).astimezone().strftime("%H:%M:%S")
    except ValueError:
        at = str(record["time"])
    return Text(f"{at} {record['event']}: {record['message']}", style=_LEVELS.get(record["level"], ""))


def run(control: FilePath) -> None:
    """Show the monitor until it is quit. AgentError without a terminal, or when no agent answers at the start."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()) or os.environ.get("TERM", "dumb") == "dumb":
        raise AgentError(
            "the monitor draws on a terminal, and this is none (or TERM says dumb): "
            "use mirrorgate status, or mirrorgate events to follow what happens"
        )
    call(control, "version")
    Monitor(Agent(control)).run()
