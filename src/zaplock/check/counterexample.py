"""A counterexample as rows: who does what, at which line, holding what, and the state at the end.

Made by running the schedule for real (`engines.schedule`), so the story is what happened and not
what a search remembers.
"""

from __future__ import annotations

import linecache
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from zaplock.check.scenarios import BASE_PAGE, PAGE_SHIFT
from zaplock.engines.checking.configuration import Configuration
from zaplock.engines.checking.schedule import Line, RunPlace, ScheduleRun, Taken
from zaplock.errors import UserError
from zaplock.model.flags import names
from zaplock.model.frames import OWN_FRAMES_SHIFT
from zaplock.model.machine import Machine
from zaplock.model.rwsem import Lock, Rwsem, lock_name
from zaplock.model.spans import LockedSpan, range_of
from zaplock.model.vma import Vma

PACKAGE = Path(__file__).parent.parent


@dataclass(frozen=True)
class Hold:
    """How a task stands to a lock: "write", "read", "downgraded" or "queued"."""

    task: str
    lock: str
    mode: str


@dataclass(frozen=True)
class Stretch:
    """Some pages, [first, last), of which something can be told.

    where: an address space or a CPU. what: "VMA", "mapped", "torn down", "TLB" or "page table".
    """

    where: str
    what: str
    first: int
    last: int
    about: str = ""


@dataclass(frozen=True)
class StepRow:
    """One step. `result` is "" where nothing is returned; `place` is function and line.

    number: of the transition that it belongs to; `joins`: not the first step of that, but one that
    nobody else could have seen.
    """

    number: int
    joins: bool
    task: int
    step: str
    result: str
    function: str
    place: str
    source: str
    holds: tuple[Hold, ...]
    changes: tuple[str, ...]
    note: str = ""
    memory: tuple[Stretch, ...] = ()
    """What is mapped, translated and torn down once the step is done."""


@dataclass(frozen=True)
class Story:
    """A finished run, told. `state` describes the machine where it ended, line by line.

    cycle: so many rows at the end repeat for ever. Daemons that never move are left out.
    """

    tasks: tuple[str, ...]
    does: tuple[str, ...]
    rows: tuple[StepRow, ...]
    invariant: str
    rule: str
    message: str
    state: tuple[str, ...]
    cycle: int = 0


def tell(
    system: Configuration,
    schedule: Sequence[int],
    does: Sequence[str] = (),
    groups: Sequence[int] = (),
    cycle: int = 0,
) -> Story:
    """Run a schedule and tell it row by row; raises UserError where it doesn't fit.

    cycle: so many steps at its end repeat for ever.
    """
    run = ScheduleRun(system)
    tasks = tuple(str(program.task) for program in system.programs)
    rows: list[StepRow] = []
    numbers = [n for n, size in enumerate(groups or [1] * len(schedule), 1) for _ in range(size)]
    begin: RunPlace | None = None
    for at, (number, index) in enumerate(zip(numbers, schedule)):
        if cycle and at == len(schedule) - cycle:
            begin = run.place()
        taken = run.take(index)
        if taken is None:
            raise UserError(f"the schedule doesn't fit: {tasks[index]} can't move at {number}")
        joins = bool(rows) and rows[-1].number == number
        rows.append(row_of(number, joins, taken, run, tasks))
    if cycle:
        run.judge_cycle(begin, cycle)
    elif run.violation is None and not run.can_move():
        run.finish()
    run.close()
    violation = run.violation
    moved = {row.task for row in rows}
    told = [at for at, one in enumerate(system.programs) if at in moved or not one.daemon]
    what = (*does, *tasks[len(does) :])
    return Story(
        tuple(tasks[at] for at in told),
        tuple(what[at] for at in told),
        tuple(replace(row, task=told.index(row.task)) for row in rows),
        violation.invariant.name if violation else "",
        violation.invariant.value if violation else "",
        readable(violation.message) if violation else "",
        tuple(describe_state(run.machine)),
        cycle,
    )


def row_of(
    number: int, joins: bool, taken: Taken, run: ScheduleRun, tasks: tuple[str, ...]
) -> StepRow:
    """Describe the step that a run has taken last."""
    file, line, function = innermost(taken.lines)
    return StepRow(
        number,
        joins,
        taken.index,
        short(str(taken.step)),
        _result(taken),
        function,
        place_of((file, line, function)),
        linecache.getline(file, line).strip(),
        holds_of(run, tasks),
        tuple(f"{name}[{short(str(key))}] = {short(str(value))}"
              for name, key, value in taken.changes),
        _note(taken, tasks, run),
        tuple(stretches(run.machine)),
    )  # fmt: skip


def innermost(lines: tuple[Line, ...]) -> Line:
    """Return the line of the function that awaits the step itself."""
    return lines[-1] if lines else ("", 0, "")


def place_of(line: Line) -> str:
    """Write a line as FILE:NUMBER, the file of zaplock's own by its room."""
    path = Path(line[0])
    inside = path.is_relative_to(PACKAGE)
    return f"{path.relative_to(PACKAGE).as_posix() if inside else path.name}:{line[1]}"


def _result(taken: Taken) -> str:
    if taken.kind != "done":
        return taken.kind
    return "" if taken.result is None else short(str(taken.result))


def _note(taken: Taken, tasks: tuple[str, ...], run: ScheduleRun) -> str:
    if taken.kind == "queued":
        return "waits in the queue"
    if taken.granted:
        index_of = {task.tid: name for task, name in zip(run.tasks, tasks)}
        return "lets in " + ", ".join(index_of[tid] for tid in taken.granted)
    return ""


def holds_of(run: ScheduleRun, tasks: tuple[str, ...]) -> tuple[Hold, ...]:
    """List who holds and who queues for which lock now."""
    names_of = {task.tid: name for task, name in zip(run.tasks, tasks)}
    holds: list[Hold] = []
    for lock, sem in sorted(run.machine.locks.data.items(), key=repr):
        holds += _holds_of(sem, lock_name(lock), names_of)
    for lock, spans in sorted(run.machine.spans.data.items(), key=repr):
        for span in spans.held:
            mode = "write" if span.write else "read"
            holds.append(Hold(names_of.get(span.tid, "?"), span_name(lock, span), mode))
        for span in spans.queue:
            holds.append(Hold(names_of.get(span.tid, "?"), span_name(lock, span), "queued"))
    return tuple(holds)


def span_name(lock: Lock, span: LockedSpan) -> str:
    """Write a range of a lock."""
    return readable(f"{lock_name(lock)}[{range_of(span.start, span.end)})")


def _holds_of(sem: Rwsem, label: str, names_of: dict[int, str]) -> list[Hold]:
    holds = []
    if sem.writer:
        holds.append(Hold(names_of.get(sem.writer, "?"), label, "write"))
    for tid in sem.readers:
        mode = "downgraded" if tid == sem.downgraded else "read"
        holds.append(Hold(names_of.get(tid, "?"), label, mode))
    for tid, _ in sem.queue:
        holds.append(Hold(names_of.get(tid, "?"), label, "queued"))
    return holds


def short(text: str) -> str:
    """Write numbers as scenarios do, and cut what is too long for a table."""
    text = readable(text)
    return text if len(text) <= 160 else text[:157] + "..."


def readable(text: str) -> str:
    """Write addresses as pages (p8), handles as maker.number (#1.0), frames likewise (f0.3)."""
    return re.sub(r"0x[0-9a-f]+|\b\d{6,}\b", lambda found: _number(found.group()), text)


def _number(text: str) -> str:
    value = int(text, 0)
    page = (value >> PAGE_SHIFT) - BASE_PAGE
    if 0 <= page < 1 << 16:
        return f"p{page}"
    if text.startswith("0x") and BASE_PAGE <= value < BASE_PAGE + (1 << 16):
        return f"p{value - BASE_PAGE}"  # a virtual page number
    if 1 << 24 <= value < 1 << 30:
        return f"#{(value >> 24) - 1}.{value & 0xFFFFFF}"
    if value >> OWN_FRAMES_SHIFT and value >> OWN_FRAMES_SHIFT < 256:
        tid = (value >> OWN_FRAMES_SHIFT) - 1
        return f"f{tid}.{value & (1 << OWN_FRAMES_SHIFT) - 1}"
    return text


TOLD = {
    "VMA": "VMA of pages {} {}",
    "mapped": "pages {} are mapped ({})",
    "torn down": "pages {} are being torn down",
    "TLB": "its TLB translates pages {}",
    "page table": "remembers the page table of pages {}",
}


def describe_state(m: Machine) -> list[str]:
    """Describe what is mapped, translated and torn down, and the cells of a user's own."""
    lines = [
        f"{name}[{short(str(key))}] = {short(str(value))}"
        for name, cells in m.named_cells()
        for key, value in sorted(cells.data.items(), key=repr)
    ]
    for one in stretches(m):
        pages = f"[{one.first}, {one.last})"
        lines.append(f"{one.where}: {TOLD[one.what].format(pages, one.about)}")
    return lines


def stretches(m: Machine) -> Iterator[Stretch]:
    """List what is mapped, torn down and remembered by CPUs, in pages of the scenario."""
    for mm, space in sorted(m.mms.items()):
        where = f"mm {mm}"
        for start in space.tree:
            vma = m.vmas[space.tree[start]]
            if isinstance(vma, Vma):
                yield Stretch(where, "VMA", _page(vma.start), _page(vma.end), names(vma.flags))
        for first, (last, pte) in sorted(space.ptes.data.items()):
            kind = f"{pte.kind}{', writable' if pte.writable else ''}"
            yield Stretch(where, "mapped", first - BASE_PAGE, last - BASE_PAGE, kind)
        for low, high in space.teardown.data.values():
            yield Stretch(where, "torn down", _page(low), _page(high))
    for cpu in m.cpus:
        where = f"CPU {cpu}"
        for first, (last, _) in sorted(m.tlb(cpu).data.items()):
            yield Stretch(where, "TLB", first - BASE_PAGE, last - BASE_PAGE)
        for first, (last, _) in sorted(m.walk_cache(cpu).data.items()):
            begin, end = (first << 9) - BASE_PAGE, (last << 9) - BASE_PAGE
            yield Stretch(where, "page table", begin, end)


def _page(address: int) -> int:
    return (address >> PAGE_SHIFT) - BASE_PAGE
