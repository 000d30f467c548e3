"""Names are bytes from strangers: no escape of theirs reaches a terminal, a page or a sheet."""

from __future__ import annotations

import asyncio
import csv
import html
import io
import json
import os
import re
import sys
from pathlib import Path

import chromium
import pytest
import scenes
from drawn import times
from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text

from zaplock.cli import main
from zaplock.cli._streams import guarded
from zaplock.outputs import walk
from zaplock.trace import recording_file
from zaplock.trace.parquet import columns_of, packed
from zaplock.trace.tables import TASKS, put
from zaplock.untrusted_names import cell, name_of, visible
from zaplock.views.console import Screen
from zaplock.views.panels import Bar, Panel
from zaplock.views.timeline import draw

SOURCE = Path(__file__).parent.parent / "src" / "zaplock"
EXPAND = SOURCE / "check/scenario_files/expand.toml"
HOSTILE = (
    "\x1b]52;c;eA==\x07",  # writes the clipboard
    "\x1b]0;title\x1b\\",
    "\x1b[2J\x1b[H",
    "\x1bP1$r\x1b\\",
    "\x1b[6n",
    "\x1b]8;;http://x\x07y\x1b]8;;\x07",
    "\x9b31m",  # C1
    "a\nok: none lost",
    "a\rb",
    "\u202etxt.exe",  # right to left
    "\u2066a\u2069",
    "\u200bzero",
    "[/]",
    "[red]",
    ":smile:",
    "</script><script>document.title='pwned'</script>",
    "<img src=x onerror=document.title='pwned'>",
    "\"'><svg/onload=document.title='pwned'>",
    "=cmd|' /C calc'!A0",
    "@SUM(A1)",
    "\udcff\udc80",
)


def recording_of(name: str, path: Path) -> None:
    """Write a recording whose tasks all have one name, as no recorder would."""
    events = scenes.database()
    recording_file.write(
        path, events, recording_file.Manifest(source="simulation", kernel=name, target=name)
    )
    raw = name.encode("utf-8", "replace").decode()
    rows = [(task.tid, raw, task.pid, raw) for task in events.tasks.values()]
    [tasks] = path.glob("tasks-*")
    tasks.unlink()
    with walk(path) as folder:
        put(folder, "tasks", 0, packed(columns_of(rows, TASKS), TASKS))


def is_plain(text: str) -> bool:
    return all(char.isprintable() or char == "\n" for char in text)


@given(st.binary(max_size=64))
@times(100)
def test_a_name_is_plain_whatever_its_bytes_are(raw: bytes) -> None:
    assert name_of(raw).isprintable()
    assert visible(name_of(raw)) == name_of(raw)


@given(st.text(alphabet=st.characters(), max_size=40))
@times(100)
def test_no_text_reaches_the_streams_unseen(text: str) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    before, sys.stdout = sys.stdout, out
    try:
        with guarded():
            print(text)
    finally:
        sys.stdout = before
    out.flush()
    assert is_plain(out.buffer.getvalue().decode().replace("\t", ""))  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_terminal_sees_only_the_consoles_own_controls(name: str) -> None:
    out = io.StringIO()
    console = Screen(file=out, force_terminal=True, color_system="truecolor", width=200)
    console.print(Text(name, style="bold"))
    console.print(name)
    with console.status(Text(name)):
        pass
    plain = re.sub(r"\x1b\[[0-9;?]*[mhlKA]|\r", "", out.getvalue())
    assert is_plain(plain)


def test_no_other_console_is_made() -> None:
    for path in SOURCE.rglob("*.py"):
        if path.name != "console.py":
            assert not re.search(r"\bConsole\(", path.read_text()), path


@pytest.mark.parametrize("name", HOSTILE)
def test_every_view_of_a_recording_shows_a_hostile_name_plainly(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.zaplock"
    recording_of(name, path)
    assert main(["report", str(path)]) == 0
    assert main(["report", str(path), "--json"]) == 0
    assert main(["report", str(path), "--csv", str(tmp_path / "csv")]) == 0
    assert main(["report", str(path), "--html", str(tmp_path / "page.html")]) == 0
    printed = capsys.readouterr()
    assert is_plain(printed.out)
    assert is_plain(printed.err)
    for sheet in (tmp_path / "csv").iterdir():
        rows = list(csv.reader(io.StringIO(sheet.read_text())))
        assert rows
        assert not [c for row in rows[1:] for c in row if re.match(r"[=@+]|-\D", c)]
    page = (tmp_path / "page.html").read_text()
    assert "Content-Security-Policy" in page
    if "<" in name:
        assert name not in page
    told = html.unescape(page)
    assert not re.search("[\x1b\x9b\u202e\u2066\u200b]", told)


def test_no_script_of_a_name_runs_in_any_page(tmp_path: Path) -> None:
    chromium.find()
    evil = "".join(name for name in HOSTILE if "<" in name)
    recording_of(evil, tmp_path / "a.zaplock")
    page = tmp_path / "page.html"
    assert main(["report", str(tmp_path / "a.zaplock"), "--html", str(page)]) == 0
    lanes = (evil, "db")
    bars = (Bar(evil, "wait", 0, 1000), Bar("db", "exclusive hold", 0, 500))
    plot = draw([Panel(evil, lanes, bars)], tmp_path / "plot.html", title=evil)

    scenario = tmp_path / "evil.toml"
    scenario.write_text(EXPAND.read_text().replace('"munmap"', json.dumps(evil)))
    drawn = tmp_path / "drawn.html"
    found = ["check", str(scenario), "--design", "rfc-v6", "--html", str(drawn)]
    assert main(found) == 1

    async def look(file: Path) -> None:
        async with chromium.opened(file, still=file == drawn) as opened:
            assert await opened.ask("document.title") != "pwned"
            assert not [url for url in opened.requests if not url.startswith("file:")]
            assert opened.errors == []
            # Even markup that got through would run nothing.
            await opened.ask(
                "(() => { const s = document.createElement('script');"
                " s.textContent = \"document.title = 'pwned'\"; document.body.append(s);"
                " document.body.insertAdjacentHTML('beforeend',"
                " '<img src=x onerror=\"document.title=\\'pwned\\'\">'); })()"
            )
            await asyncio.sleep(0.2)
            assert await opened.ask("document.title") != "pwned"

    for one in (page, plot, drawn):
        asyncio.run(look(one))


@pytest.mark.parametrize("start", "=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")
def test_a_cell_that_begins_like_a_formula_is_quoted(start: str) -> None:
    assert cell(f"{start}1") == f"'{start}1"
    assert cell("1=2") == "1=2"


def test_an_argument_is_shown_plainly_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "\x1b]0;x\x07"]) == 2
    assert main(["\x1b]0;x\x07"]) == 2
    assert "\x1b" not in capsys.readouterr().err


def test_json_is_ascii(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recording_of("\u202e\x1b", tmp_path / "a.zaplock")
    capsys.readouterr()
    assert main(["report", str(tmp_path / "a.zaplock"), "--json"]) == 0
    out = capsys.readouterr().out
    assert out.isascii()
    json.loads(out)
    assert os.environ is not None
