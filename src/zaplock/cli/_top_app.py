"""`zaplock top` in a terminal: live tables to sort, search and scroll, and a story of each row.

The screens come from a thread of their own, so that keys are answered while a window is analysed.
It ends between two windows, or in the middle of summing one up, which nobody waits for; never
while it collects, so what it collects from (tracing, buffers) can be let go then.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import threading
from collections.abc import Callable
from typing import ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.events import Resize
from textual.message import Message
from textual.widgets import DataTable, Footer, Input, Static

from zaplock.trace.analysis import Analysis
from zaplock.trace.summary import Summary
from zaplock.untrusted_names import visible
from zaplock.views.console import Said
from zaplock.views.grid import Grid
from zaplock.views.live import holding_now, waiting_now
from zaplock.views.live_tables import (
    ASCII_BLOCKS,
    BLOCKS,
    LiveRow,
    LiveTable,
    about,
    live_tables,
    spark,
    waiting,
)
from zaplock.views.sentences import hold_sentence, wait_sentence

TABLES = ("waits", "holds", "threads", "operations", "processes")
BINS = 60
AROUND = 33
"""What stands beside the spark line, in cells."""

ROOMY = 32
"""From so many lines on there is room for more than one hold above the table."""

PADDING, SCROLL_BAR = 2, 2
"""Cells around each column of a table, and beside its last one."""

MARK = (" ^", " v")
"""Says which column is sorted by: from the least on, or from the greatest."""

Collect = Callable[[], Callable[[], Summary]]
"""Waits for the next window, and gives what sums it up, which touches nothing that was lent."""


class NextWindow(Message):
    """A new screen, or why there won't be any more."""

    def __init__(self, found: Summary | BaseException) -> None:
        self.found = found
        super().__init__()


class TopApp(App[None]):
    """The live view over what `collect` gives, window after window."""

    CSS = """
    #head { height: auto; text-style: bold; }
    #spark { height: 1; }
    #now { height: auto; max-height: 5; }
    #tabs { height: 1; margin-top: 1; }
    DataTable { height: 1fr; min-height: 4; }
    #story { height: auto; max-height: 35%; border-top: solid $primary; }
    #search { display: none; border: none; height: 1; padding: 0; }
    #search.open { display: block; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q,ctrl+c,ctrl+q", "quit", "quit", key_display="q"),
        Binding("space", "pause", "pause"),
        Binding("s", "sort", "sort"),
        Binding("r", "reverse", "reverse"),
        Binding("slash", "search", "search"),
        Binding("tab", "next_table", "table", priority=True),
        Binding("escape", "leave", show=False),
        Binding("left_square_bracket", "story(-1)", show=False),
        Binding("right_square_bracket", "story(1)", "story", key_display="[ ]"),
        *(Binding(str(at), f"table('{name}')", show=False) for at, name in enumerate(TABLES, 1)),
    ]
    ENABLE_COMMAND_PALETTE = False

    def __init__(self, collect: Collect, about: str, *, ascii_only: bool = False) -> None:
        super().__init__(ansi_color=False)
        self._collect, self._about = collect, about
        self._blocks = ASCII_BLOCKS if ascii_only else BLOCKS
        self._summary: Summary | None = None
        self._tables: dict[str, LiveTable] = {}
        self._shown = TABLES[0]
        self._order = dict.fromkeys(TABLES, (0, True))
        self._columns: list[int] = []
        self._paused = self._over = False
        self._collecting = threading.Lock()
        self._looking = threading.Thread(target=self._watch, name="zaplock-top", daemon=True)
        self.ended_by = 0
        """The signal that ended it, 0 where a key did."""
        self.failure: BaseException | None = None

    def compose(self) -> ComposeResult:
        """Lay out: what it is about, the spark line, who waits now, a table, a story, the keys."""
        yield Static(f"zaplock top: {self._about}", id="head", markup=False)
        yield Static("looking ...", id="spark", markup=False)
        yield Static("", id="now", markup=False)
        yield Static("", id="tabs", markup=False)
        yield DataTable(id="table", cursor_type="row", zebra_stripes=True)
        with VerticalScroll(id="story", can_focus=False):
            yield Static("", id="told", markup=False)
        yield Input(placeholder="search: a task, an operation, a lock; Enter", id="search")
        yield Footer()

    def on_mount(self) -> None:
        """Begin to look; a signal ends it as a key does."""
        if threading.current_thread() is threading.main_thread():
            loop = asyncio.get_running_loop()
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                loop.add_signal_handler(number, self._end, number)
        self.query_one(DataTable).focus()
        self._looking.start()

    def _end(self, number: int) -> None:
        self.ended_by = 0 if number == signal.SIGINT else number
        self.exit()

    def close(self) -> None:
        """End the thread that looks, unless it collects: that is waited for."""
        self._over = True
        if self._looking.ident is None:
            return
        with self._collecting:
            thread = ctypes.c_ulong(self._looking.ident)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(SystemExit))
        self._looking.join()

    def _watch(self) -> None:
        """Hand over screen after screen. Runs in a thread."""
        while True:
            try:
                with self._collecting:
                    if self._over:
                        return
                    sum_up = self._collect()
                found: Summary | BaseException = sum_up()
            except SystemExit:  # from `close`
                return
            except BaseException as error:
                found = error
            self.post_message(NextWindow(found))
            if isinstance(found, BaseException):
                return

    def on_next_window(self, seen: NextWindow) -> None:
        """Draw a new screen; the chosen row stays chosen."""
        if isinstance(seen.found, BaseException):
            self.failure = seen.found
            self.exit()
        elif not self._paused:
            self._summary = seen.found
            self._tables = {table.name: table for table in live_tables(seen.found)}
            self._draw()

    def on_resize(self, _event: Resize) -> None:
        """Choose anew which columns there is room for."""
        self.call_after_refresh(self._draw)

    def _draw(self) -> None:
        summary = self._summary
        if summary is None:
            return
        # What was posted before the end may come after it, when the widgets are gone.
        if not self.is_running:
            return
        analysis = summary.analysis
        paused = "  PAUSED" if self._paused else ""
        self._say("head", f"zaplock top: {self._about}, {_events(analysis)}{paused}")
        values = waiting(analysis, min(BINS, max(8, self.size.width - AROUND)))
        most = f"{max(values):.1f}".removesuffix(".0")
        self._say("spark", f"waiting |{spark(values, blocks=self._blocks)}| at most {most} tasks")
        self._say("now", *self._verdict(summary))
        self._draw_tabs()
        self._draw_table()

    def _verdict(self, summary: Summary) -> list[str]:
        """Say in a line or two who waits now, and who holds."""
        analysis = summary.analysis
        if not analysis.sees_locks:
            return ["Who waits is not known: no lock events are seen."]
        now, holding = waiting_now(analysis), holding_now(analysis)
        if not now:
            said = ["Right now nobody waits."]
        else:
            count = "1 task waits" if len(now) == 1 else f"{len(now)} tasks wait"
            said = [f"Right now {count}: {wait_sentence(analysis, now[0])}."]
        room = 1 if self.size.height < ROOMY else 3
        said += [
            f"Held now: {hold_sentence(analysis, row, so_far=True)}." for row in holding[:room]
        ]
        return said

    def _draw_tabs(self) -> None:
        line = Text(no_wrap=True, overflow="ellipsis")
        narrow = self.size.width < 70
        for at, name in enumerate(TABLES, 1):
            chosen = name == self._shown
            label = f"{at} {name} {len(self._tables[name].rows)}"
            line.append(f" {label if chosen or not narrow else at} ", "reverse" if chosen else "")
            line.append(" ")
        self.query_one("#tabs", Static).update(line)

    def _table(self) -> LiveTable:
        column, down = self._order[self._shown]
        asked = self.query_one("#search", Input).value
        return self._tables[self._shown].matching(asked).sorted(column, down=down)

    def _draw_table(self) -> None:
        table, widget = self._table(), self.query_one(DataTable)
        chosen, top = self._key(), widget.scroll_y
        self._columns = self._that_fit(table)
        sorted_by, down = self._order[self._shown]
        with self.prevent(DataTable.RowHighlighted):
            widget.clear(columns=True)
            for at in self._columns:
                mark = MARK[down] if at == sorted_by else ""
                column = table.columns[at]
                label = Text(column.name + mark, justify="right" if column.is_figure else "left")
                widget.add_column(label, key=str(at))
            for row in table.rows:
                cells = [self._cell(table, row, at) for at in self._columns]
                widget.add_row(*cells, key=row.key)
            keys = [row.key for row in table.rows]
            if chosen in keys:
                widget.move_cursor(row=keys.index(chosen), scroll=False)
                widget.scroll_to(y=top, animate=False)
        self._tell()

    def _cell(self, table: LiveTable, row: LiveRow, at: int) -> Text:
        right = "right" if table.columns[at].is_figure else "left"
        style = "bold" if row.cells[at] in ("waits", "holds") else ""
        return Text(visible(row.cells[at]), style=style, justify=right, no_wrap=True)  # type: ignore[arg-type]

    def _that_fit(self, table: LiveTable) -> list[int]:
        """Choose the columns that have room, whole; all, to be scrolled, where too few have."""
        grid = Grid(table.columns, [row.cells for row in table.rows])
        room = self.size.width - PADDING - len(MARK) - SCROLL_BAR
        return grid.that_fit_whole(room, gap=PADDING) or list(range(len(table.columns)))

    def _key(self) -> str | None:
        widget = self.query_one(DataTable)
        if not widget.row_count or not widget.is_valid_row_index(widget.cursor_row):
            return None
        return widget.coordinate_to_cell_key(widget.cursor_coordinate).row_key.value

    def _tell(self) -> None:
        """Tell the story of the chosen row."""
        key, table = self._key(), self._table()
        row = next((row for row in table.rows if row.key == key), None)
        if row is None or self._summary is None:
            empty = "nothing matches the search" if self._tables[self._shown].rows else "none yet"
            self._say("told", f"{self._shown}: {empty}")
            return
        self._say("told", *about(self._summary, table, row))

    def _say(self, where: str, *lines: str) -> None:
        from rich.console import Group

        self.query_one(f"#{where}", Static).update(Group(*(Said(line) for line in lines)))

    def on_data_table_row_highlighted(self, _event: DataTable.RowHighlighted) -> None:
        """Follow the cursor with the story."""
        if self._summary is not None:
            self._tell()
            self.query_one("#story", VerticalScroll).scroll_home(animate=False)

    def on_data_table_header_selected(self, event: DataTable.HeaderSelected) -> None:
        """Sort by the head that was clicked, the other way round at the second click."""
        column = int(event.column_key.value or 0)
        by, down = self._order[self._shown]
        self._order[self._shown] = (column, not down if by == column else True)
        self._draw()

    def on_input_changed(self, _event: Input.Changed) -> None:
        """Leave what matches."""
        if self._summary is not None:
            self._draw_table()

    def on_input_submitted(self, _event: Input.Submitted) -> None:
        """Go back to the table, with what matches."""
        self.query_one(DataTable).focus()

    def action_search(self) -> None:
        """Open the line that is searched for."""
        field = self.query_one("#search", Input)
        field.add_class("open")
        field.focus()

    def action_leave(self) -> None:
        """Close the search, and show all rows again."""
        field = self.query_one("#search", Input)
        field.value = ""
        field.remove_class("open")
        self.query_one(DataTable).focus()

    def action_pause(self) -> None:
        """Hold the screen still, or let it go on."""
        self._paused = not self._paused
        self._draw()

    def action_sort(self) -> None:
        """Sort by the next column that is shown."""
        if self._columns:
            by, down = self._order[self._shown]
            at = self._columns.index(by) if by in self._columns else -1
            self._order[self._shown] = (self._columns[(at + 1) % len(self._columns)], down)
            self._draw()

    def action_reverse(self) -> None:
        """Sort the other way round."""
        by, down = self._order[self._shown]
        self._order[self._shown] = (by, not down)
        self._draw()

    def action_table(self, name: str) -> None:
        """Show another table."""
        self._shown = name
        self.query_one(DataTable).move_cursor(row=0)
        self._draw()

    def action_next_table(self) -> None:
        """Show the table after this one."""
        self.action_table(TABLES[(TABLES.index(self._shown) + 1) % len(TABLES)])

    def action_story(self, way: int) -> None:
        """Scroll the story."""
        story = self.query_one("#story", VerticalScroll)
        story.scroll_relative(y=4 * way, animate=False)


def _events(analysis: Analysis) -> str:
    """Say how many events a screen stands on, and what is missing."""
    lost = analysis.segments.lost_events
    missing = f", {lost:,} LOST" if lost else ""
    return ". ".join((f"{len(analysis.events):,} events{missing}", *analysis.caveats))


def show(collect: Collect, about: str, *, ascii_only: bool) -> int:
    """Show the live view until a key or a signal ends it; a TERM or HUP goes on from here.

    Returns an exit code: 0, or 1 where drawing failed (textual has told how).

    Raises what `collect` raised.
    """
    kept = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    app = TopApp(collect, about, ascii_only=ascii_only)
    try:
        app.run()
    finally:
        app.close()
        for number, handler in kept.items():
            signal.signal(number, handler)
    if app.failure is not None:
        raise app.failure
    if app.ended_by:
        os.kill(os.getpid(), app.ended_by)
    return app.return_code or 0
