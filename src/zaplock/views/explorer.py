"""A state of a scenario that is gone through by hand, as text."""

from __future__ import annotations

from typing import Any

from zaplock.check.counterexample import StepRow
from zaplock.check.explorer import Choice, ExplorerView
from zaplock.views.counterexample import locks

HELP = """a, b, ... or a task's name   take its next step; with a number so many: a 3
a!                           let it go on until it has to wait or ends
back, back 3                 take the last step back, or so many
state                        what is mapped, translated, torn down; your own cells
steps                        all steps so far
token                        what --replay TOKEN would show again
restart                      go back to the beginning
quit                         leave"""


def screen(view: ExplorerView) -> str:
    """Show where a run stands: the last step and what it changed, the locks, who can move."""
    lines = ["", *last_step(view)]
    lines.append(f"  locks   {locks(view.holds) or 'none is held'}")
    if view.invariant:
        lines += [f"  BROKEN  {view.invariant}: {view.message}", f"          the rule: {view.rule}"]
    width = max(len(choice.task) for choice in view.choices)
    lines += [f"  {_choice(choice, width, view.invariant)}" for choice in view.choices]
    if view.results and view.ended and not view.invariant:
        results = ", ".join(f"{c.task} {r}" for c, r in zip(view.choices, view.results))
        lines.append(f"  the end; results: {results}")
    return "\n".join(lines)


def last_step(view: ExplorerView) -> list[str]:
    """Describe the last step, and each cell that it changed."""
    if not view.rows:
        return ["step 0: nothing has happened yet"]
    row = view.rows[-1]
    changes = [f"  changed {one}" for one in row.changes if not one.startswith("locks[")]
    return [f"step {row.number}: {said(row, view)}", *changes]


def said(row: StepRow, view: ExplorerView) -> str:
    """Write a step in one line: who does what, with which result, where."""
    result = f" = {row.result}" if row.result else ""
    note = f"   ({row.note})" if row.note else ""
    task = view.choices[row.task].task
    return f"{task} does {row.step}{result} in {row.function} ({row.place}){note}"


def _choice(choice: Choice, width: int, broken: str) -> str:
    head = f"{choice.letter}  {choice.task:<{width}}  "
    if not choice.step:
        return f"{head}has ended"
    where = f"in {choice.function} ({choice.place})"
    how = "" if choice.can_move else "stands at: " if broken else "waits: "
    return f"{head}{how}{choice.step}  {where}"


def steps(view: ExplorerView) -> str:
    """List all steps so far."""
    lines = [f"{row.number:>3}  {said(row, view)}" for row in view.rows]
    return "\n".join(lines) or "nothing has happened yet"


def as_json(view: ExplorerView) -> dict[str, Any]:
    """Return what `screen` shows, for --json."""
    row = view.rows[-1] if view.rows else None
    return {
        "step": len(view.rows),
        "last": None if row is None else {
            "task": view.choices[row.task].task, "does": row.step, "result": row.result,
            "function": row.function, "line": row.place, "changes": list(row.changes),
        },
        "locks": [{"task": h.task, "lock": h.lock, "mode": h.mode} for h in view.holds],
        "tasks": [
            {"letter": c.letter, "task": c.task, "next": c.step or None, "can_move": c.can_move}
            for c in view.choices
        ],
        "ended": view.ended,
        "invariant": view.invariant or None,
        "message": view.message or None,
    }  # fmt: skip
