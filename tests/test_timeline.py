"""Pictures of who holds and who waits."""

import re
from pathlib import Path

import pytest
from scenes import MS, database

from zaplock.errors import UserError
from zaplock.trace.analysis import analyse
from zaplock.trace.handwritten import Log
from zaplock.views.timeline import COLOURS, Bar, binned, draw, panel


def test_what_is_narrower_than_a_pixel_is_a_pixel_as_faint_as_it_is_rare() -> None:
    bars = [Bar("a", "wait", 0, 5), Bar("a", "wait", 18, 22), Bar("a", "wait", 40, 65)]
    assert binned([*bars, Bar("b", "wait", 6, 7)], pixel_ns=10) == [
        Bar("a", "wait", 40, 65),
        Bar("a", "wait", 0, 10, 0.5),
        Bar("a", "wait", 10, 20, 0.2),
        Bar("a", "wait", 20, 30, 0.2),
        Bar("b", "wait", 0, 10, 0.1),
    ]


def test_each_thread_has_its_lane_though_all_are_called_the_same() -> None:
    log = Log()
    for tid in (7, 8):
        log.task(tid, "python3", 7)
        log.asked(tid, tid=tid, mm=64, write=False)
        log.acquired(tid + 1, tid=tid, mm=64, write=False)
        log.released(tid + 50, tid=tid, mm=64, write=False)
    one = panel("two", analyse(log.events(), "6.18"), 0, 100)
    assert one.lanes == ("python3 7", "python3 8")
    assert {bar.lane for bar in one.bars} == set(one.lanes)


def test_a_panel_has_a_lane_for_each_task_and_its_window_only() -> None:
    one = panel("db", analyse(database(), "6.18"), 0, 100 * MS)
    assert one.lanes == ("db", "db-free", "db-alloc", "ps")
    assert {(bar.lane, bar.style) for bar in one.bars} == {
        ("db-free", "exclusive hold"),
        ("db-free", "shared after downgrade"),
        ("db-alloc", "wait"),
        ("ps", "wait"),
    }


def widths(svg: str, colour: str) -> list[float]:
    """Measure the bars of one colour in an SVG of rectangles drawn as paths."""
    paths = re.findall(rf'd="M[^"]*?h([0-9.]+)v[^"]*"[^>]*fill="{colour}"', svg)
    return [float(width) for width in paths]


def test_the_picture_shows_a_long_zap_and_its_victims(tmp_path: Path) -> None:
    one = panel("linux-6.18, beside nobody", analyse(database(), "6.18"), 0, 187 * MS)
    svg = draw([one], tmp_path / "db.svg", title="a munmap").read_text()
    assert "linux-6.18, beside nobody" in svg
    assert max(widths(svg, COLOURS["shared after downgrade"])) > 700
    assert len([width for width in widths(svg, COLOURS["wait"]) if width > 600]) == 2


def test_png_and_html(tmp_path: Path) -> None:
    one = panel("x", analyse(database(), "6.18"), 0, 187 * MS)
    assert draw([one], tmp_path / "db.png").read_bytes().startswith(b"\x89PNG")
    html = draw([one], tmp_path / "db.html").read_text()
    assert not re.search(r"<script[^>]*\ssrc=", html), "the page loads something"


def test_bad_paths_are_one_line(tmp_path: Path) -> None:
    one = panel("x", analyse(database(), "6.18"), 0, 187 * MS)
    with pytest.raises(UserError, match=r"must end in \.svg"):
        draw([one], tmp_path / "db.pdf")
    with pytest.raises(UserError, match="no run to draw"):
        draw([], tmp_path / "db.svg")
