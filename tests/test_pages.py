"""The pages on any screen: wide and narrow, light and dark, by keyboard alone, for a screen reader.

axe-core, which looks for what keeps people out, comes by npm when it is wanted and is nobody's
dependency; where npm is not to be had, its test is skipped. AXE names a copy that is there.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from chromium import Page, opened
from scenes import MS, crowd, database

from zaplock.check.counterexample import tell
from zaplock.check.verdicts import check, closed_system, find_design, find_scenario
from zaplock.trace.analysis import analyse
from zaplock.trace.summary import summarise
from zaplock.views.counterexample_html import page as counterexample
from zaplock.views.html import write_html

AXE = "axe-core@4.11.0"
NPM_SECONDS = 90

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
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write a page of each kind."""
    folder = tmp_path_factory.mktemp("pages")
    scenario, design = find_scenario("expand"), find_design("rfc-v6")
    found = check(scenario, design)
    assert found.schedule is not None
    system = closed_system(scenario, design, found.fair)
    story = tell(system, found.schedule, ("munmap 8 4", "write 11 7"), found.groups)
    broken = folder / "check.html"
    broken.write_text(counterexample(story, "expand under rfc-v6", "zaplock check expand"))
    return {
        "report": write_html(summarise(analyse(crowd(3000), "6.18")), folder / "report.html"),
        "check": broken,
    }


def drive(file: Path, story: Story) -> None:
    async def go() -> None:
        async with opened(file) as shown:
            await story(shown)
            assert shown.errors == []
            loaded = {url.partition("#")[0] for url in shown.requests}
            assert loaded == {file.as_uri()}, "the page loaded something"

    asyncio.run(go())


async def look(shown: Page, width: int, *, dark: bool) -> None:
    """Give the page another screen."""
    await shown.call(
        "Emulation.setDeviceMetricsOverride",
        width=width, height=900, deviceScaleFactor=1, mobile=width < 500,
    )  # fmt: skip
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    await shown.call("Emulation.setEmulatedMedia", features=[scheme])


async def press(shown: Page, key: str, times: int = 1) -> None:
    codes = {"Tab": 9, "Enter": 13, "ArrowDown": 40, "ArrowRight": 39, "ArrowLeft": 37, "n": 78}
    for _ in range(times):
        for kind in ("rawKeyDown", "keyUp"):
            await shown.call(
                "Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=codes[key]
            )


@pytest.mark.parametrize("name", ["report", "check"])
def test_nothing_overflows_and_axe_finds_nothing(
    name: str, pages: dict[str, Path], axe: str
) -> None:
    async def story(shown: Page) -> None:
        await shown.ask(axe + "; true")
        for width in (360, 768, 1400):
            for dark in (False, True):
                await look(shown, width, dark=dark)
                wide = await shown.ask("document.documentElement.scrollWidth")
                assert wide <= width, f"{wide} pixels on a screen of {width}"
                found = await shown.ask(
                    "axe.run().then(r => r.violations.map("
                    "v => [v.id, v.nodes.slice(0, 2).map(n => n.failureSummary + n.html)]))"
                )
                assert found == [], f"at {width} pixels, {'dark' if dark else 'light'}"

    drive(pages[name], story)


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
