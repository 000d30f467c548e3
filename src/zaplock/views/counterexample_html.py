"""A counterexample as a page of its own that plays: forward and back, with no network.

The steps stand below each other, those of a task further in than those of the one before it. Beside
them is the state after the chosen step: who holds which lock and how, the line of the protocol, the
cells that it changed, and the memory as strips of pages: VMAs, mapped pages, what is being torn
down, what CPUs remember.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from zaplock.check.counterexample import StepRow, Story
from zaplock.views.self_contained_page import page as own_page
from zaplock.views.self_contained_page import safe_json

MOST_PAGES = 64
"""A page table's reach is 512 pages: what lies beyond the others is cut off the strips."""


def page(story: Story, title: str, again: str) -> str:
    """Draw the story as HTML; `again` is the command that shows it once more."""
    low, high = _pages(story)
    rows = [_row(story, row) for row in story.rows]
    return own_page(
        "counterexample.html.j2",
        styles=["counterexample.css"],
        scripts=["counterexample.js"],
        story=story,
        tasks=list(zip(story.tasks, story.does)),
        cycle_at=len(story.rows) - story.cycle if story.cycle else -1,
        title=title,
        again=again,
        low=low,
        high=high,
        data=safe_json({"rows": rows, "low": low, "high": high}),
    )


def _row(story: Story, row: StepRow) -> dict[str, Any]:
    return {**asdict(row), "task": story.tasks[row.task]}


def _pages(story: Story) -> tuple[int, int]:
    """Return the pages that the strips are about."""
    told = [one for row in story.rows for one in row.memory if one.what != "page table"]
    low = min((one.first for one in told), default=0)
    high = max((one.last for one in told), default=low + 1)
    return low, min(high, low + MOST_PAGES)
