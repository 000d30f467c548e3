"""`zaplock top` in a terminal: its tables, keys, searching and stories, by textual's own pilot."""

from __future__ import annotations

import asyncio
import html
import os
import pty
import re
import select
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from functools import cache
from pathlib import Path

import pytest
from scenes import MS, crowd, database
from textual.pilot import Pilot
from textual.widgets import DataTable

from zaplock.cli import _top_app
from zaplock.cli._top_app import TABLES, TopApp
from zaplock.trace.analysis import analyse
from zaplock.trace.handwritten import Log
from zaplock.trace.summary import Summary, summarise
from zaplock.views.live_tables import live_tables, spark, waiting

SNAPSHOT = Path(__file__).parent / "fixtures" / "top-80x24.txt"

CELL = 12.2
"""How wide a character is in textual's picture."""

Story = Callable[[TopApp, Pilot[None]], Coroutine[None, None, None]]


@cache
def seen(name: str) -> Summary:
    events = {"db": database, "crowd": lambda: crowd(2000)}[name]()
    return summarise(analyse(events, "6.18.0"))


def play(name: str, story: Story, size: tuple[int, int] = (80, 24)) -> TopApp:
    """Show one window, and then none any more; let a story press keys."""
    windows = iter([seen(name)])

    def collect() -> Callable[[], Summary]:
        try:
            found = next(windows)
        except StopIteration:
            raise SystemExit from None
        return lambda: found

    async def go() -> TopApp:
        app = TopApp(collect, "pid 100, the last 10s")
        async with app.run_test(size=size) as pilot:
            while not app._tables:
                await pilot.pause(0.01)
            await story(app, pilot)
        app.close()
        return app

    return asyncio.run(go())


def screen(app: TopApp) -> list[str]:
    """Read the screen as text, from textual's own picture of it."""
    lines: dict[float, list[tuple[int, str]]] = {}
    drawn = r'<text class="[^"]*-r\d+"[^>]*? x="([\d.]+)" y="([\d.]+)"[^>]*>(.*?)</text>'
    for x, y, text in re.findall(drawn, app.export_screenshot(simplify=True)):
        lines.setdefault(float(y), []).append((round(float(x) / CELL), html.unescape(text)))
    said = []
    for y in sorted(lines):
        line = ""
        for at, part in sorted(lines[y]):
            line = line.ljust(at) + part
        said.append(line.replace("\xa0", " ").rstrip())
    return said


async def drawn(app: TopApp, pilot: Pilot[None], wanted: Callable[[list[str]], bool]) -> list[str]:
    """Wait for a screen that is as wanted, which a busy machine draws late; give the last one."""
    await pilot.pause()
    end = time.monotonic() + 120
    while not wanted(lines := screen(app)) and time.monotonic() < end:
        await pilot.pause(0.02)
    return lines


async def says(app: TopApp, pilot: Pilot[None], text: str) -> str:
    """Wait until a text stands on the screen, over lines or not; return all of it."""

    def said(lines: list[str]) -> str:
        return " ".join(" ".join(lines).split())

    told = said(await drawn(app, pilot, lambda lines: text in said(lines)))
    assert text in told
    return told


def first_cells(app: TopApp, at: int = 0) -> list[str]:
    table = app.query_one(DataTable)
    return [str(table.get_row_at(row)[at]) for row in range(table.row_count)]


def test_a_screen_of_80_by_24_looks_as_it_did() -> None:
    """Written anew with ZAPLOCK_SNAPSHOTS=1, to be looked at before it is committed."""

    async def story(app: TopApp, pilot: Pilot[None]) -> None:
        if "ZAPLOCK_SNAPSHOTS" in os.environ:
            await pilot.pause()
            SNAPSHOT.write_text("\n".join(screen(app)) + "\n")
        before = SNAPSHOT.read_text().splitlines()
        assert await drawn(app, pilot, lambda lines: lines == before) == before

    play("crowd", story)


@pytest.mark.parametrize("size", [(40, 20), (80, 24), (200, 60)])
def test_no_figure_is_cut_and_the_keys_are_said(size: tuple[int, int]) -> None:
    async def story(app: TopApp, pilot: Pilot[None]) -> None:
        for name in TABLES:
            app.action_table(name)
            lines = await drawn(app, pilot, lambda lines: any("quit" in line for line in lines))
            table = app.query_one(DataTable)
            wide = sum(column.get_render_width(table) for column in table.ordered_columns)
            assert wide <= size[0] or len(app._columns) == len(app._tables[name].columns)
            shown = "\n".join(lines)
            assert "…" not in shown
            assert "quit" in shown
            assert app._table().rows[0].cells[0] in shown

    play("crowd", story, size)


def test_keys_go_through_tables_sort_and_search() -> None:
    async def story(app: TopApp, pilot: Pilot[None]) -> None:
        table = app._tables["waits"]
        assert first_cells(app) == [row.cells[0] for row in table.rows]
        await pilot.press("r")
        assert first_cells(app) == [row.cells[0] for row in reversed(table.rows)]
        await pilot.press("s", "s")
        tasks = first_cells(app, 2)
        assert tasks == sorted(tasks)
        await pilot.press("tab")
        assert app._shown == "holds"
        await pilot.press("5")
        assert first_cells(app, 1)[0].startswith("service-")
        await pilot.press("3", "slash", *"r-1", "enter")
        assert first_cells(app, 1)
        assert all("worker-1" in name for name in first_cells(app, 1))
        await pilot.press("escape")
        assert len(first_cells(app)) == len(app._tables["threads"].rows)

    play("crowd", story)


def test_the_chosen_wait_tells_its_chain_and_stays_chosen() -> None:
    async def story(app: TopApp, pilot: Pilot[None]) -> None:
        await says(app, pilot, "db-alloc (tid 102) in mmap of 4 KiB waited 185 ms")
        await pilot.press("down")
        await says(app, pilot, "ps (tid 200) waited 176 ms")
        await says(app, pilot, "behind db-free (tid 101) in munmap of 8 GiB")
        chosen = app._key()
        app.post_message(_top_app.NextWindow(seen("db")))
        await pilot.pause()
        assert app._key() == chosen

    play("db", story, (80, 30))


def test_a_pause_holds_the_screen_still() -> None:
    async def story(app: TopApp, pilot: Pilot[None]) -> None:
        await pilot.press("space")
        app.post_message(_top_app.NextWindow(seen("crowd")))
        await pilot.pause()
        assert len(app._tables["waits"].rows) == 2
        await says(app, pilot, "PAUSED")
        await pilot.press("space")
        app.post_message(_top_app.NextWindow(seen("crowd")))
        await drawn(app, pilot, lambda _: len(app._tables["waits"].rows) > 2)
        assert len(app._tables["waits"].rows) > 2

    play("db", story)


def test_what_fails_while_looking_ends_it() -> None:
    async def story(app: TopApp, pilot: Pilot[None]) -> None:
        app.post_message(_top_app.NextWindow(OSError("tracing was switched off")))
        await pilot.pause()

    assert isinstance(play("db", story).failure, OSError)


def test_the_spark_line_is_how_many_wait_on_average() -> None:
    """Both wait from 10 ms on, one from 1 ms on, nobody after 186 ms."""
    values = waiting(seen("db").analysis, 186)
    assert values[0] == pytest.approx(0, abs=0.01)
    assert values[5] == pytest.approx(1)
    assert values[100] == pytest.approx(2)
    assert spark([0, 1, 8]) == " ▁█"


def test_what_is_in_a_name_stays_in_its_cell() -> None:
    log = Log()
    log.task(1, "[red]\x1b[2J", 1)
    log.asked(0, tid=1, mm=64, write=True)
    log.acquired(5 * MS, tid=1, mm=64, write=True)
    log.released(6 * MS, tid=1, mm=64, write=True)
    summary = summarise(analyse(log.events(), "6.18"))
    assert "[red]" in live_tables(summary)[0].rows[0].cells[2]

    async def story(app: TopApp, pilot: Pilot[None]) -> None:
        app.post_message(_top_app.NextWindow(summary))
        assert "\x1b" not in await says(app, pilot, "[red]")

    play("db", story)


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """Start `zaplock top` on a terminal of its own: its pid, and the other end."""
    pid, end = pty.fork()
    if pid == 0:
        os.environ |= {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}
        command = [sys.executable, "-m", "zaplock", "top", "-p", str(os.getppid()), "-i", "200ms"]
        os.execv(command[0], command)
    yield pid, end
    os.close(end)


def until(end: int, text: bytes, seconds: float = 120) -> bytes:
    """Read from a terminal until a text is there; at its end, all there was."""
    said, due = b"", time.monotonic() + seconds
    while text not in said and time.monotonic() < due:
        if select.select([end], [], [], 0.2)[0]:
            try:
                said += os.read(end, 1 << 16)
            except OSError:
                break
    return said


@pytest.mark.root
@pytest.mark.parametrize(("how", "code"), [("\x03", 0), (signal.SIGTERM, 143)])
def test_a_key_or_a_signal_ends_it_cleanly(
    how: str | int, code: int, terminal: tuple[int, int]
) -> None:
    if os.geteuid():
        pytest.skip("needs root")
    pid, end = terminal
    assert b"Right now" in until(end, b"Right now")
    if isinstance(how, int):
        os.kill(pid, how)
    else:
        os.write(end, how.encode())
    rest = until(end, b"never")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == code
    assert b"\x1b[?1049l" in rest, "the terminal has its own screen back"
    assert (b"next: zaplock record" in rest) == (code == 0)
    assert not list(Path("/sys/kernel/tracing/instances").glob(f"zaplock-*-*-{pid}-*-*"))
