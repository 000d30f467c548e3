"""The HTML page in a real browser: it opens fast, zooms, searches and tells who is to blame."""

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
from chromium import Page, opened
from scenes import MS, crowd, database

from zaplock.trace.analysis import analyse
from zaplock.trace.events import Events
from zaplock.trace.handwritten import Log
from zaplock.trace.summary import summarise
from zaplock.views.html import render, write_html


def page(events: Events, path: Path) -> Path:
    return write_html(summarise(analyse(events, "6.18.44")), path)


def drive(file: Path, story: Any) -> None:
    async def go() -> None:
        async with opened(file) as shown:
            await story(shown)
            assert shown.errors == []
            assert shown.requests == [file.as_uri()], "the page loaded something"

    asyncio.run(go())


async def canvas(shown: Page) -> dict[str, float]:
    box: dict[str, float] = await shown.ask(
        "(() => { const e = document.getElementById('timeline');"
        " e.scrollIntoView({block: 'center'}); const b = e.getBoundingClientRect();"
        " return {x: b.x, y: b.y, width: b.width, height: b.height}; })()"
    )
    return box


def test_a_click_on_a_wait_tells_its_story_and_points_at_the_culprit(tmp_path: Path) -> None:
    file = page(database(), tmp_path / "db.html")

    async def story(shown: Page) -> None:
        await shown.click("#waits tr.row:nth-child(2)")
        told = await shown.ask("document.getElementById('story').textContent")
        assert told.startswith("at 0.010000 s: ps (tid 200) waited 176 ms for the lock of db")
        assert "behind db-free (tid 101) in munmap of 8 GiB" in told
        assert "which itself waited" in told
        culprit = await shown.ask(
            "(() => { const {waits, holds, lanes} = zaplock.recording;"
            " const row = zaplock.timeline.selected.row;"
            " return lanes[holds.lane[waits.culprit[row]]].comm; })()"
        )
        assert culprit == "db-free"
        # An arrow leaves the end of the wait, as soon as a frame is drawn.
        await shown.until(
            "(() => { const t = zaplock.timeline, c = t.canvas, r = window.devicePixelRatio;"
            " const {waits} = zaplock.recording, row = t.selected.row;"
            " const x = Math.round((t.width - 12) * r);"
            " const top = Math.round((t.y(waits.lane[row]) + 5) * r);"
            " const d = c.getContext('2d').getImageData(x, top, 10, 4).data;"
            " let dark = 0; for (let i = 0; i < d.length; i += 4)"
            "   if (d[i + 3] > 200 && d[i] < 60 && d[i + 1] < 60) dark++; return dark > 0; })()"
        )

    drive(file, story)


def test_wheel_and_drag_move_the_view(tmp_path: Path) -> None:
    file = page(database(), tmp_path / "db.html")

    async def story(shown: Page) -> None:
        box = await canvas(shown)
        before = await shown.ask("zaplock.timeline.view.span")
        x, y = box["x"] + box["width"] * 0.8, box["y"] + 60
        under = await shown.ask(f"zaplock.timeline.time({x - box['x']})")
        for _ in range(5):
            await shown.wheel(x, y, -200)
        await shown.until(f"zaplock.timeline.view.span < {before} / 10")
        after = await shown.ask(f"zaplock.timeline.time({x - box['x']})")
        assert abs(after - under) < before / 100, "the instant under the pointer moved"
        await shown.click("#fit")
        assert await shown.ask("zaplock.timeline.view.span") == before

    drive(file, story)


def test_a_million_events_open_fast_zoom_and_are_searched(tmp_path: Path) -> None:
    file = page(crowd(1_000_000), tmp_path / "crowd.html")
    assert file.stat().st_size < 15_000_000

    async def story(shown: Page) -> None:
        assert 0.05 < await shown.computed_s() < 5  # whatever else the machine does
        assert await shown.ask("zaplock.recording.holds.count") > 250_000
        await shown.type("#search", "worker-5 munmap")
        await shown.until(
            "document.getElementById('holds-count').textContent.split(' ')[0].length < 6"
        )
        rows = await shown.ask(
            "[...document.querySelectorAll('#holds tr.row')].map(line => line.textContent)"
        )
        assert len(rows) == 200
        assert all(re.search(r"worker-5 .*munmap", row) for row in rows)
        await shown.click("#holds tr.row")
        span = await shown.ask("zaplock.timeline.view.span")
        assert span < await shown.ask("zaplock.timeline.all") / 2
        await shown.screenshot(tmp_path / "crowd.png")
        assert (tmp_path / "crowd.png").stat().st_size > 20_000

    drive(file, story)


def test_names_cannot_break_out_of_the_page() -> None:
    log = Log()
    log.task(1, "</script><script>alert(1)</script>", 1, "<b>")
    log.asked(0, tid=1, mm=64, write=True)
    log.acquired(5 * MS, tid=1, mm=64, write=True)
    log.released(6 * MS, tid=1, mm=64, write=True)
    text = render(summarise(analyse(log.events())))
    assert "alert(1)</script>" not in text
    assert text.count("</script>") == 7  # two of data, five of code


def test_gaps_are_drawn(tmp_path: Path) -> None:
    log = Log()
    log.acquired(0, tid=1, mm=64, write=True)
    log.lost(50 * MS, cpu=0, count=3)
    log.released(100 * MS, tid=1, mm=64, write=True)
    file = page(log.events(), tmp_path / "gap.html")

    async def story(shown: Page) -> None:
        assert await shown.ask("zaplock.recording.gaps") == [[0, 50 * MS]]
        text = await shown.ask("document.getElementById('answer').textContent")
        assert "EVENTS ARE MISSING" in text
        await shown.until(
            "(() => { const t = zaplock.timeline, r = window.devicePixelRatio;"
            f" const x = t.x(20 * {MS}) * r, y = (t.height - 30) * r;"
            " const pixel = t.canvas.getContext('2d').getImageData(x, y, 1, 1).data;"
            " return pixel.join() === '154,160,168,255'; })()"
        )

    drive(file, story)


@pytest.mark.parametrize("missing", ["http:", "https:", "//cdn", "@import", "url("])
def test_the_page_refers_to_nothing_outside(missing: str) -> None:
    assert missing not in render(summarise(analyse(database())))
