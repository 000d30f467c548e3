"""A counterexample as a table: one column per task, one row per step, what each line does."""

from __future__ import annotations

from typing import Any

from zaplock.check.counterexample import Hold, StepRow, Story

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
        lines.append(_step(row, width, len(story.tasks)))
    return "\n".join(lines)


def _place(row: StepRow, width: int) -> str:
    return " " * (5 + width * row.task) + f"· {row.function} ({row.place})"


def _step(row: StepRow, width: int, tasks: int) -> str:
    text = row.step + (f" = {row.result}" if row.result not in ("", "violation") else "")
    room = width * (tasks - row.task) - 1
    cell = text if len(text) <= room else text[: room - 1] + "…"
    mark = "✗" if row.result == "violation" else " "
    number = "" if row.joins else str(row.number)
    body = " " * (width * row.task) + cell
    note = f"   ({row.note})" if row.note else ""
    return f"{number:>3}{mark} {body:<{width * tasks}}{locks(row.holds)}{note}"


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
    lines += ["", table(story), ""]
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
