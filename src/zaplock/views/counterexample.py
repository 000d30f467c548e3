"""A counterexample as a table: one column per task, one row per step, what each line does."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby
from typing import Any, Final

from zaplock.check.counterexample import Hold, StepRow, Story

LONG: Final = 13
"""From so many steps on a story gets a summary."""
SUMMARY_LINES: Final = 5
MOST_ACTS: Final = 8
LOCKING: Final = re.compile(r"(?:down|up|downgrade|hand_over)_\w+\((.*)\)")
MARKS = {"write": "W", "read": "R", "downgraded": "D", "queued": "q"}


def table(story: Story) -> str:
    """Draw the story for a terminal of any width: numbered rows, locks, lines of the protocol."""
    width = max(18, min(44, 132 // max(1, len(story.tasks))))
    head = "".join(name[: width - 1].ljust(width) for name in story.tasks)
    lines = [f"{'':>4} {head}locks held"]
    previous = ""
    for at, row in enumerate(story.rows):
        if story.cycle and at == len(story.rows) - story.cycle:
            lines.append(f"  -- from here on these {story.cycle} steps repeat for ever --")
            previous = ""
        if row.function != previous:
            lines.append(_place(row, width))
            previous = row.function
        lines += _step(row, width, len(story.tasks))
    return "\n".join(lines)


def _place(row: StepRow, width: int) -> str:
    return " " * (5 + width * row.task) + f"· {row.function} ({row.place})"


def _step(row: StepRow, width: int, tasks: int) -> list[str]:
    text = row.step + (f" = {row.result}" if row.result not in ("", "violation") else "")
    cell, *rest = _wrapped(text, width * (tasks - row.task) - 1)
    mark = "✗" if row.result == "violation" else " "
    number = "" if row.joins else str(row.number)
    indent = " " * (width * row.task)
    note = f"   ({row.note})" if row.note else ""
    first = f"{number:>3}{mark} {indent + cell:<{width * tasks}}{locks(row.holds)}{note}"
    return [first, *(f"{'':>4} {indent}{part}" for part in rest)]


def _wrapped(text: str, room: int) -> list[str]:
    """Break a text behind blanks, commas and the | between flags."""
    lines = [""]
    for part in re.split(r"(?<=[ |,])", text):
        if len(lines[-1]) + len(part.rstrip()) > room and lines[-1].strip():
            lines.append("  ")
        lines[-1] += part
    return [line.rstrip() for line in lines]


def summary(story: Story) -> list[str]:
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
    return ["in short:", *lines, ""]


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


def text(story: Story, title: str) -> str:
    """Tell the whole story: who does what, the table, the rule that broke, the state around it."""
    lines = [title, ""]
    lines += [f"  {name}: {does}" for name, does in zip(story.tasks, story.does)]
    lines += ["", *summary(story), table(story), ""]
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
