"""The pages on any screen: wide and narrow, light and dark, by keyboard alone, for a screen reader.

axe-core, which looks for what keeps people out, comes by npm when it is wanted and is nobody's
dependency; where npm is not to be had, its test is skipped. AXE names a copy that is there.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from chromium import Page, opened
from scenes import MS, crowd, database

from zaplock.check.counterexample import tell
from zaplock.check.verdicts import check, closed_system, find_design, find_scenario
from zaplock.cli import main
from zaplock.designs import load
from zaplock.lab import profiles
from zaplock.lab.compare import compare
from zaplock.lab.experiment import SimulatedExperiment
from zaplock.replay.replay import replay
from zaplock.trace.analysis import analyse
from zaplock.trace.summary import summarise
from zaplock.views.counterexample_html import page as counterexample
from zaplock.views.html import write_html
from zaplock.views.replayed import plot
from zaplock.views.timeline import plot_comparison

AXE = "axe-core@4.11.0"
NPM_SECONDS = 90

NAMES = ("report", "check", "compare", "replay", "fleet")
WIDTHS = (360, 768, 1400)
BY_SCREEN = ["color-contrast", "target-size", "scrollable-region-focusable"]
"""The rules whose verdict depends on the width and the colours; the others are asked once."""

ALIKE_ROWS = {
    "exclude": [[f"{table} tr:nth-child(n+9)"] for table in ("#waits", "#holds", ".groups")]
}
"""Rows that are made as those above them."""

BRIEFLY = {"resultTypes": ["violations"], "selectors": False}
"""What is in order needs no selector: nobody reads where it was."""

BASELINES = Path(__file__).parent / "fixtures" / "pages"

Story = Callable[[Page], Coroutine[Any, Any, None]]


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return axe-core's source."""
    if "AXE" in os.environ:
        return Path(os.environ["AXE"]).read_text()
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("no npm: axe-core can't be had")
    folder = tmp_path_factory.mktemp("axe")
    command = [npm, "install", AXE, "--prefix", str(folder), "--no-audit", "--no-fund"]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=NPM_SECONDS)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        pytest.skip(f"npm has no {AXE} here")
    return (folder / "node_modules" / "axe-core" / "axe.min.js").read_text()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Write a page of each kind, in a folder of its own, so that their names are short."""
    folder = tmp_path_factory.mktemp("pages")
    here = Path.cwd()
    os.chdir(folder)
    yield {
        "report": write_html(summarise(analyse(crowd(600), "6.18")), folder / "report.html"),
        "check": broken(folder / "check.html"),
        "compare": compared(folder / "compare.html"),
        "replay": replayed(folder / "replay.html"),
        "fleet": fleet(folder / "fleet.html"),
    }
    os.chdir(here)


def broken(file: Path) -> Path:
    scenario, design = find_scenario("expand"), find_design("rfc-v6")
    found = check(scenario, design)
    assert found.schedule is not None
    system = closed_system(scenario, design, found.fair)
    story = tell(system, found.schedule, ("munmap 8 4", "write 11 7"), found.groups)
    file.write_text(counterexample(story, "expand under rfc-v6", "zaplock check expand"))
    return file


def compared(file: Path) -> Path:
    """Two designs beside two blocks, and a row that stands for a measured kernel."""
    designs = [load(name) for name in ("linux-4.9", "rfc-v6")]
    found = compare(
        designs, SimulatedExperiment(length=1 << 30), profiles.load("e5-2680-rfc"),
        blocks=[("fault", "proc"), ("fault", "proc", "mmap")],
    )  # fmt: skip
    measured = replace(found.rows[1], design="this kernel", extra={"backing": "zero"})
    return plot_comparison(replace(found, measured=(measured,)), file)


def replayed(file: Path) -> Path:
    profile, designs = profiles.load("e5-2680-rfc"), [load("linux-4.9"), load("linux-6.18-dying")]
    plot(replay(analyse(database(), "6.18.0"), profile, designs=designs), file)
    return file


def fleet(file: Path) -> Path:
    assert main(["fleet", "simulate", "store", "--hosts", "4", "--seed", "1"]) == 0
    assert main(["fleet", "report", "store", "--html", str(file)]) == 0
    return file


def drive(file: Path, story: Story) -> None:
    async def go() -> None:
        async with opened(file) as shown:
            await story(shown)
            assert shown.errors == []
            loaded = {url.partition("#")[0] for url in shown.requests if url[:5] != "data:"}
            assert loaded == {file.as_uri()}, "the page loaded something"

    asyncio.run(go())


async def look(shown: Page, width: int, *, dark: bool, scale: float = 1) -> None:
    """Give the page another screen."""
    await shown.call(
        "Emulation.setDeviceMetricsOverride",
        width=width, height=900, deviceScaleFactor=scale, mobile=width < 500,
    )  # fmt: skip
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    await shown.call("Emulation.setEmulatedMedia", features=[scheme])


async def press(shown: Page, key: str, times: int = 1) -> None:
    codes = {"Tab": 9, "Enter": 13, "ArrowDown": 40, "ArrowRight": 39, "ArrowLeft": 37, "n": 78}
    for _ in range(times):
        text = {"text": "\r"} if key == "Enter" else {}  # what a button waits for
        for kind, more in (("keyDown" if text else "rawKeyDown", text), ("keyUp", {})):
            await shown.call(
                "Input.dispatchKeyEvent",
                type=kind, key=key, windowsVirtualKeyCode=codes[key], **more,
            )  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_nothing_overflows_and_axe_finds_nothing(
    name: str, pages: dict[str, Path], axe: str
) -> None:
    async def story(shown: Page) -> None:
        await shown.ask(axe + "; true")
        for width in WIDTHS:
            for dark in (False, True):
                await look(shown, width, dark=dark)
                wide = await shown.ask("document.documentElement.scrollWidth")
                assert wide <= width, f"{wide} pixels on a screen of {width}"
                whole = (width, dark) == (WIDTHS[-1], False)
                asked = {} if whole else {"runOnly": {"type": "rule", "values": BY_SCREEN}}
                how = f"{json.dumps(ALIKE_ROWS)}, {json.dumps({**asked, **BRIEFLY})}"
                found = await shown.ask(
                    f"axe.run({how}).then(r => r.violations.map("
                    "v => [v.id, v.nodes.slice(0, 2).map(n => n.failureSummary + n.html)]))"
                )
                assert found == [], f"at {width} pixels, {'dark' if dark else 'light'}"

    drive(pages[name], story)


ALIKE = """(async (a, b) => {
  const cells = async shot => {
    const image = new Image();
    image.src = "data:image/png;base64," + shot;
    await image.decode();
    const canvas = document.createElement("canvas"), pen = canvas.getContext("2d");
    canvas.width = image.width / 2; canvas.height = image.height / 2;
    pen.drawImage(image, 0, 0, canvas.width, canvas.height);
    return pen.getImageData(0, 0, canvas.width, canvas.height).data;
  };
  const [one, other] = [await cells(a), await cells(b)];
  let sum = 0;
  for (let at = 0; at < one.length; at++) sum += Math.abs(one[at] - other[at]);
  return one.length === other.length ? sum / one.length : 255;
})"""
"""How far two pictures differ: the mean difference of a channel of 8 by 8 pixels, 0 to 255."""

DIFFERS = 6
"""Another font or a pixel more of margin is less; another colour, order or layout is more."""


async def difference(shown: Page, one: bytes, other: bytes) -> float:
    told = ", ".join(json.dumps(base64.b64encode(shot).decode()) for shot in (one, other))
    return float(await shown.ask(f"{ALIKE}({told})"))


@pytest.mark.parametrize("name", NAMES)
def test_every_page_looks_as_it_did(name: str, pages: dict[str, Path], tmp_path: Path) -> None:
    """Written anew with ZAPLOCK_SNAPSHOTS=1, to be looked at before they are committed."""

    async def story(shown: Page) -> None:
        shots = {}
        for width in WIDTHS:
            for dark in (False, True):
                await look(shown, width, dark=dark, scale=0.25)
                # A page that has changed its width may stay at what it showed (scroll anchoring).
                await shown.ask(
                    "new Promise(done => { scrollTo(0, 0);"
                    " requestAnimationFrame(() => setTimeout(done, 50)); })"
                )
                file = tmp_path / f"{name}-{width}-{'dark' if dark else 'light'}.png"
                await shown.screenshot(file)
                shots[file.name] = file.read_bytes()
        if "ZAPLOCK_SNAPSHOTS" in os.environ:
            BASELINES.mkdir(exist_ok=True)
            for file_name, shot in shots.items():
                (BASELINES / file_name).write_bytes(shot)
        for file_name, shot in shots.items():
            differs = await difference(shown, shot, (BASELINES / file_name).read_bytes())
            assert differs < DIFFERS, file_name
        light, dark_one = shots[f"{name}-360-light.png"], shots[f"{name}-360-dark.png"]
        assert await difference(shown, light, dark_one) > DIFFERS, "no difference would be seen"

    drive(pages[name], story)


@pytest.mark.parametrize("name", ["compare", "replay"])
def test_the_keyboard_reaches_the_waits_of_every_run(name: str, pages: dict[str, Path]) -> None:
    """N goes through all waits; each tells its run and who it was behind, and has an address."""

    async def story(shown: Page) -> None:
        await shown.ask("document.getElementById('timeline').focus()")
        count = await shown.ask("zaplock.recording.waits.count")
        assert count
        runs = set()
        for _ in range(min(count, 12)):
            await press(shown, "n")
            said = await shown.ask("document.getElementById('story').textContent")
            runs.add(re.search(r"under (\S+)", said)[1])  # type: ignore[index]
            assert "behind" in said
            writes = re.search(r"in (mmap|munmap) of .* waited", said)
            assert said.splitlines()[0].endswith("exclusive" if writes else "shared")
            assert await shown.ask("location.hash") == await shown.ask(
                "'#wait-' + zaplock.timeline.selected.row"
            )
        assert len(runs) > 1

    drive(pages[name], story)


def test_all_tables_of_a_fleet_sort_and_are_searched_by_keys(pages: dict[str, Path]) -> None:
    async def story(shown: Page) -> None:
        head = "document.querySelectorAll('table.groups th')[4]"
        await shown.ask(f"{head}.querySelector('button').focus()")
        await press(shown, "Enter")
        assert await shown.ask(f"{head}.getAttribute('aria-sort')") == "descending"
        column = "[...document.querySelector('table.groups').tBodies[0].rows]"
        spans = await shown.ask(f"{column}.map(line => worth(line.cells[4].textContent))")
        assert spans == sorted(spans, reverse=True)
        assert len(set(spans)) > 1
        await shown.type("#search", "mlock")
        await shown.until(f"{column}.filter(line => !line.hidden).length < {len(spans)}")
        left = await shown.ask(
            f"{column}.filter(line => !line.hidden).map(line => line.textContent)"
        )
        assert left
        assert all("mlock" in line for line in left)

    drive(pages["fleet"], story)


def test_the_keyboard_alone_reaches_every_wait(pages: dict[str, Path]) -> None:
    async def story(shown: Page) -> None:
        await shown.ask("document.getElementById('timeline').focus()")
        await press(shown, "n", 2)
        assert await shown.ask("location.hash") == await shown.ask(
            "'#wait-' + zaplock.timeline.order[1]"
        )
        # From the timeline on, Tab comes to the list of waits, and its arrows through it.
        for _ in range(20):
            if await shown.ask("document.activeElement.matches('#waits tr.row')"):
                break
            await press(shown, "Tab")
        await press(shown, "ArrowDown", 3)
        await press(shown, "Enter")
        assert await shown.ask(
            "document.querySelector('#waits tr.chosen') === document.activeElement"
            " && document.activeElement === document.querySelectorAll('#waits tr.row')[3]"
        )

    drive(pages["report"], story)


def test_an_address_leads_to_a_wait_and_heads_sort(tmp_path: Path) -> None:
    file = write_html(summarise(analyse(database(), "6.18")), tmp_path / "db.html")

    async def story(shown: Page) -> None:
        await shown.ask("location.hash = '#wait-1'")
        await shown.until("document.getElementById('story').textContent.includes('waited')")
        assert await shown.ask("zaplock.timeline.selected.row") == 1
        await shown.click("#waits th:nth-child(2) button")
        starts = await shown.ask(
            "[...document.querySelectorAll('#waits tr.row')]"
            ".map(line => parseFloat(line.cells[1].textContent))"
        )
        assert starts == sorted(starts)
        await shown.type("#search", "munmap")
        await shown.until(
            "[...document.querySelector('table.groups').tBodies[0].rows]"
            ".filter(line => !line.hidden).map(line => line.cells[0].textContent)"
            ".join() === 'munmap'"
        )

    drive(file, story)


def test_what_is_rarely_held_looks_rarely_held(tmp_path: Path) -> None:
    """5 us in each 5 ms, on a second: a thousandth, so faint, and never the colour of a hold."""
    from zaplock.trace.handwritten import Log

    log = Log()
    log.task(1, "busy", 1)
    for at in range(0, 1000 * MS, 5 * MS):
        log.asked(at, tid=1, mm=64, write=True)
        log.acquired(at + 10, tid=1, mm=64, write=True)
        log.released(at + 5_010, tid=1, mm=64, write=True)
    file = write_html(summarise(analyse(log.events(), "6.18")), tmp_path / "busy.html")

    async def story(shown: Page) -> None:
        densest = await shown.ask(
            "(() => { const t = zaplock.timeline, r = devicePixelRatio;"
            " const d = t.pen.getImageData(t.x(0) * r, (t.y(0) + 10) * r, 900 * r, 1).data;"
            " let most = 0; for (let i = 3; i < d.length; i += 4)"
            "   if (d[i - 3] > 150) most = Math.max(most, d[i]); return most; })()"
        )
        assert 0 < densest < 110  # of 255

    drive(file, story)


def test_a_counterexample_plays_forward_and_back(pages: dict[str, Path]) -> None:
    """Each step shows who holds what then, and what is mapped and torn down."""

    async def story(shown: Page) -> None:
        await shown.ask("location.hash = '#step-0'")
        await shown.until("document.querySelector('[aria-current]').dataset.at === '0'")
        await shown.ask("document.querySelector('[aria-current]').focus()")
        assert "mmap_lock: munmap for write" in await shown.ask("locks.textContent")
        torn = "memory.querySelectorAll('.torn').length"
        assert await shown.ask(torn) == 0
        last = await shown.ask("document.querySelectorAll('.step').length - 1")
        await press(shown, "ArrowRight", last)
        assert await shown.ask("location.hash") == f"#step-{last}"
        assert "grow for read" in await shown.ask("locks.textContent")
        assert await shown.ask(torn) == 1
        await press(shown, "ArrowLeft", last)
        assert await shown.ask(torn) == 0
        await shown.click("#play")
        await shown.until("location.hash === '#step-2'")

    drive(pages["check"], story)


WITHOUT_SCRIPTS = {
    "report": "The timeline and the lists of waits and holds are not shown",
    "check": "The locks and the memory after each step are not shown",
    "compare": "The timeline and the lists of waits and holds are not shown",
    "replay": "The timeline and the lists of waits and holds are not shown",
    "fleet": "",
}
SEEN = "[...document.querySelectorAll({selector!r})].filter(e => e.checkVisibility()).length"


@pytest.mark.parametrize("name", NAMES)
def test_without_scripts_nothing_looks_as_if_there_were_none_of_it(
    name: str, pages: dict[str, Path]
) -> None:
    """An empty list of waits says that nobody waited; a button that does nothing is broken."""

    async def story(shown: Page) -> None:
        for off in (False, True):
            await shown.call("Emulation.setScriptExecutionDisabled", value=off)
            await shown.call("Page.navigate", url=pages[name].as_uri())
            deadline = time.monotonic() + 250
            while await shown.ask("document.readyState") != "complete":
                assert time.monotonic() < deadline
                await asyncio.sleep(0.05)
            dead = await shown.ask(SEEN.format(selector="#bar, #timeline, #waits, #now, #play"))
            assert bool(dead) != off
            assert (WITHOUT_SCRIPTS[name] in await shown.ask("document.body.innerText")) == (
                off or name == "fleet"
            )

    drive(pages[name], story)
