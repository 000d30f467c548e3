"""Pictures of who holds and who waits."""

import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from scenes import MS, database

from zaplock.errors import UserError
from zaplock.trace.analysis import analyse
from zaplock.trace.handwritten import Log
from zaplock.views.panels import Bar, panel
from zaplock.views.timeline import COLOURS, binned, draw


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


ASSETS = Path(__file__).parent.parent / "src" / "zaplock" / "views" / "assets"
NAMES = {"exclusive hold": "exclusive", "shared hold": "shared", "wait": "wait",
         "shared after downgrade": "downgraded"}  # fmt: skip
SIGHTS = {
    "usual": np.eye(3),
    "without long cones": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                           [-0.003882, -0.048116, 1.051998]],
    "without middle cones": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                             [-0.011820, 0.042940, 0.968881]],
    "without short cones": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
                            [0.004733, 0.691367, 0.303900]],
}  # fmt: skip
"""What they make of linear RGB (Machado, Oliveira and Fernandes 2009, severity 1)."""
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
TOLD_APART = 15
"""CIE76: 2.3 is just noticeable side by side."""
FROM_PAPER = 2.0
"""Contrast ratio of a bar and the paper; a bar is a shape as well, and of its own height."""


def page_colours(theme: str) -> dict[str, str]:
    """Read the pages' colours; what dark pages don't say anew is as on light ones."""
    light, _, dark = (
        (ASSETS / "base.css").read_text().partition("@media (prefers-color-scheme: dark)")
    )
    both = light.partition("}")[0] + (dark.partition("}")[0] if theme == "dark" else "")
    colours = dict(re.findall(r"--(\w+): (#\w+);", both))
    return {name: colour if len(colour) == 7 else "#ffffff" for name, colour in colours.items()}


def linear(colour: str) -> np.ndarray:
    parts = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def lab(light: np.ndarray) -> np.ndarray:
    x, y, z = TO_XYZ @ np.clip(light, 0, 1) / np.array([0.9505, 1.0, 1.089])
    f, g, h = (np.cbrt(v) if v > 0.008856 else 7.787 * v + 16 / 116 for v in (x, y, z))
    return np.array([116 * g - 16, 500 * (f - g), 200 * (g - h)])


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("sight", SIGHTS)
def test_the_colours_are_told_apart_by_everybody(theme: str, sight: str) -> None:
    colours = page_colours(theme)
    seen = {name: lab(SIGHTS[sight] @ linear(colours[name])) for name in (*NAMES.values(), "gap")}
    for one, other in combinations(seen, 2):
        assert np.linalg.norm(seen[one] - seen[other]) > TOLD_APART, (one, other)
    paper = TO_XYZ[1] @ linear(colours["paper"])
    for name in NAMES.values():
        bright = TO_XYZ[1] @ linear(colours[name])
        assert (max(bright, paper) + 0.05) / (min(bright, paper) + 0.05) > FROM_PAPER, name


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_one_thing_has_one_colour_everywhere(theme: str) -> None:
    colours = page_colours(theme)
    assert {name: colours[of] for name, of in NAMES.items()} == COLOURS


def test_what_was_seen_in_part_is_pale_with_an_outline(tmp_path: Path) -> None:
    log = Log()
    log.task(1, "a", 1)
    log.asked(0, tid=1, mm=64, write=True)
    log.acquired(10, tid=1, mm=64, write=True)
    log.task(2, "b", 1)
    log.asked(20 * MS, tid=2, mm=64, write=False)
    log.begin(90 * MS, tid=2, op="none")
    one = panel("x", analyse(log.events(), "6.18"), 0, 90 * MS)
    assert {(bar.style, bar.seen) for bar in one.bars} == {
        ("exclusive hold", "in part"),
        ("wait", "in part"),
    }
    svg = draw([one], tmp_path / "part.svg").read_text()
    drawn = re.findall(rf'<path[^>]*fill="{COLOURS["exclusive hold"]}"[^>]*>', svg)
    assert any(
        f'stroke="{COLOURS["exclusive hold"]}"' in path and 'stroke-width="1"' in path
        for path in drawn
    )
