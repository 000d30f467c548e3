"""A counterexample as a table: one column per task, one row per step, what each line does."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby
from typing import Any, Final

from zaplock.check.counterexample import Hold, StepRow, Story
from zaplock.views.fold_lines import fold

LONG: Final = 13
"""From so many steps on a story gets a summary."""
SUMMARY_LINES: Final = 5
MOST_ACTS: Final = 8
LOCKING: Final = re.compile(
    r"(?:(?:down|up|downgrade|hand_over)_\w+|(?:lock|unlock|try)_range)\((.*)\)"
)
"""A step that locks, by what it says; the group is the lock, with the range of it."""
MARKS = {"write": "W", "read": "R", "downgraded": "D", "queued": "q"}


WIDTH = 140
"""What a story is drawn for, if nothing else is said, in cells."""

NARROWEST, WIDEST = 18, 44
"""Of a task's column."""

NUMBERS = 5
"""What stands in front of the columns: a step's number and the mark of the failing one."""


def table(story: Story, width: int = WIDTH) -> str:
    """Draw the story: numbered rows, a column for each task, the locks that are held, code lines.

    Where there is no room for that, the tasks come one below the other, each line with its task.
    """
    tasks = max(1, len(story.tasks))
    held = min(max((len(locks(row.holds)) for row in story.rows), default=0), width // 3)
    column = min(WIDEST, (width - NUMBERS - held) // tasks)
    draw = _step if column >= NARROWEST else _line
    lines = []
    if column >= NARROWEST:
        head = "".join(name[: column - 1].ljust(column) for name in story.tasks)
        lines.append(f"{'':{NUMBERS}}{head}locks held")
    previous = ""
    for at, row in enumerate(story.rows):
        if story.cycle and at == len(story.rows) - story.cycle:
            lines += fold(f"  -- from here on these {story.cycle} steps repeat for ever --", width)
            previous = ""
        if row.function != previous:
            margin = NUMBERS + (column * row.task if column >= NARROWEST else 0)
            lines += fold(f"{'':{margin}}· {row.function} ({row.place})", width)
            previous = row.function
        lines += draw(story, row, column, width)
    return "\n".join(lines)


def _said(row: StepRow) -> str:
    return row.step + (f" = {row.result}" if row.result not in ("", "violation") else "")


def _begin(row: StepRow) -> str:
    number = "" if row.joins else str(row.number)
    return f"{number:>3}{'✗' if row.result == 'violation' else ' '} "


def _step(story: Story, row: StepRow, column: int, width: int) -> list[str]:
    """Draw a step in its task's column; it may reach over those to its right."""
    margin = column * row.task
    whole = column * len(story.tasks)
    cells = fold(_said(row), whole - margin - 1)
    note = f"   ({row.note})" if row.note else ""
    held = fold(locks(row.holds) + note, max(NARROWEST, width - NUMBERS - whole))
    lines = []
    for k in range(max(len(cells), len(held))):
        cell = cells[k] if k < len(cells) else ""
        begin = _begin(row) if not k else " " * NUMBERS
        after = held[k] if k < len(held) else ""
        lines.append(f"{begin}{'':{margin}}{cell:<{whole - margin}}{after}".rstrip())
    return lines


def _line(story: Story, row: StepRow, column: int, width: int) -> list[str]:
    """Draw a step with its task's name in front, the locks below it."""
    note = f"   ({row.note})" if row.note else ""
    lines = fold(
        f"{_begin(row)}{story.tasks[row.task]}: {_said(row)}{note}", width, hanging=NUMBERS
    )
    held = locks(row.holds)
    return [*lines, *(fold(f"{'':{NUMBERS + 2}}held: {held}", width) if held else [])]


def summary(story: Story, width: int = WIDTH) -> list[str]:
    """Say in five lines what a long story is: whose turn it was, and what it changed then."""
    if not story.rows or story.rows[-1].number < LONG:
        return []
    turns = [
        (story.tasks[task], acts)
        for task, rows in groupby(story.rows, key=lambda row: row.task)
        if (acts := _acts(list(rows)))
    ]
    lines = [f"  {name}: {_shortened(acts)}" for name, acts in turns]
    if len(lines) > SUMMARY_LINES:
        left = len(lines) - SUMMARY_LINES + 1
        lines = [lines[0], f"  ... {left} more turns ...", *lines[2 - SUMMARY_LINES :]]
    return ["in short:", *(part for line in lines for part in fold(line, width, hanging=4)), ""]


def _acts(rows: Sequence[StepRow]) -> list[str]:
    """Name the steps that lock, that change what others see, or that break the rule."""
    names = [
        row.step.partition("(")[0] + _lock_of(row.step)
        for row in rows
        if (row.changes and not row.joins) or LOCKING.match(row.step) or row.result == "violation"
    ]
    counted = [(name, len(list(same))) for name, same in groupby(names)]
    return [f"{name} ({count} times)" if count > 1 else name for name, count in counted]


def _lock_of(step: str) -> str:
    found = LOCKING.match(step)
    return f" {found[1]}" if found else ""


def _shortened(acts: list[str]) -> str:
    if len(acts) > MOST_ACTS:
        acts = [*acts[:4], "...", *acts[5 - MOST_ACTS :]]
    return ", ".join(acts)


def locks(holds: tuple[Hold, ...]) -> str:
    """Write who holds what: `mmap_lock: munmap D, touch R`."""
    by_lock: dict[str, list[str]] = {}
    for hold in holds:
        by_lock.setdefault(hold.lock, []).append(f"{hold.task} {MARKS[hold.mode]}")
    return "; ".join(f"{lock}: {', '.join(names)}" for lock, names in by_lock.items())


def text(story: Story, title: str, width: int = WIDTH) -> str:
    """Tell the whole story: who does what, the table, the rule that broke, the state around it."""
    lines = [title, ""]
    lines += [f"  {name}: {does}" for name, does in zip(story.tasks, story.does)]
    lines += ["", *summary(story, width), table(story, width), ""]
    if story.invariant:
        lines += [f"{story.invariant}: {story.message}", f"  the rule: {story.rule}", ""]
    else:
        lines += ["no rule is broken", ""]
    lines += ["where it ends:", *(f"  {line}" for line in story.state)]
    lines += [
        "",
        "rows without a number belong to the step above: nobody else can see them",
        "W holds for write, R for read, D for read after a downgrade, q waits in the queue",
    ]
    return "\n".join(lines)


def steps(story: Story) -> list[dict[str, Any]]:
    """Return the rows for --json."""
    return [
        {
            "step": row.number,
            "merged": row.joins,
            "task": story.tasks[row.task],
            "does": row.step,
            "result": row.result,
            "function": row.function,
            "line": row.place,
            "source": row.source,
            "holds": [{"task": h.task, "lock": h.lock, "mode": h.mode} for h in row.holds],
            "changes": list(row.changes),
        }
        for row in story.rows
    ]
