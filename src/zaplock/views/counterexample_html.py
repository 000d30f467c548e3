"""A counterexample as a page of its own: a sequence diagram that needs no network.

One lifeline per task, one row per step; bars beside a lifeline show how long which lock is held and
how. Hovering over a step shows the protocol's line and the cells that it changed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

from zaplock.check.counterexample import Story
from zaplock.views.own_page import policy

if TYPE_CHECKING:
    from jinja2 import Template

ROW = 26
TOP = 64
LANE = 380
LEFT = 56


@dataclass(frozen=True)
class LaneBar:
    """A stretch of rows in which a task holds a lock in one mode; coordinates in pixels."""

    x: int
    y: int
    height: int
    mode: str
    lock: str


def page(story: Story, title: str, again: str) -> str:
    """Draw the story as HTML; `again` is the command that shows it once more."""
    return _template().render(
        story=story,
        title=title,
        again=again,
        policy=policy(),
        rows=[
            {
                "row": row,
                "x": LEFT + LANE * row.task + 34,
                "y": TOP + ROW * index,
                "bad": row.result == "violation",
                "tip": _tip(row.place, row.function, row.source, row.changes),
            }
            for index, row in enumerate(story.rows)
        ],
        lanes=[
            {"name": name, "does": does, "x": LEFT + LANE * index}
            for index, (name, does) in enumerate(zip(story.tasks, story.does))
        ],
        bars=bars(story),
        height=TOP + ROW * len(story.rows) + 24,
        width=LEFT + LANE * len(story.tasks) + 40,
        row_height=ROW,
        top=TOP,
    )


@cache
def _template() -> Template:
    from jinja2 import Environment

    assets = resources.files("zaplock.views") / "assets"
    source = (assets / "counterexample.html.j2").read_text()
    return Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(source)


def _tip(place: str, function: str, source: str, changes: tuple[str, ...]) -> str:
    lines = [f"{function}, {place}", source, *changes]
    return "\n".join(line for line in lines if line)


def bars(story: Story) -> list[LaneBar]:
    """Join rows in which a task stands to a lock in the same way into bars."""
    found: list[LaneBar] = []
    open_since: dict[tuple[str, str, str], int] = {}
    slots: dict[tuple[str, str], int] = {}
    for index, row in enumerate([*story.rows, None]):
        now = {(h.task, h.lock, h.mode) for h in row.holds} if row is not None else set()
        for key in [key for key in open_since if key not in now]:
            found.append(_bar(story, key, open_since.pop(key), index, slots))
        for key in now:
            open_since.setdefault(key, index)
    return found


def _bar(
    story: Story,
    key: tuple[str, str, str],
    first: int,
    last: int,
    slots: dict[tuple[str, str], int],
) -> LaneBar:
    task, lock, mode = key
    lane = story.tasks.index(task) if task in story.tasks else 0
    taken = len([1 for name, _ in slots if name == task])
    slot = slots.setdefault((task, lock), taken)
    return LaneBar(
        LEFT + LANE * lane + 6 + 8 * slot, TOP + ROW * first - 8, ROW * (last - first), mode, lock
    )
