"""What a task did that had or wanted the lock outside of any recorded call: its kernel stack tells.

A reader of /proc/PID/smaps, a fault inside of read(), khugepaged or an exit that another thread
asked for have no event of their own. Where a stack was taken in the hold or the wait, the functions
in it name the operation ("read of smaps_rollup"), and it stands in the tables like any call's, with
no range. What has no stack of its own is left without a name: nothing is taken over from another.
But for the kernel's own threads: khugepaged does nothing else, so its name tells.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from zaplock.trace.events import NO_OP, RecordedTask
from zaplock.trace.intervals import Intervals
from zaplock.trace.kernel_functions import OF_KERNEL_THREADS
from zaplock.trace.kernel_stacks import operation_of

Table = TypeVar("Table", bound=Intervals)

LIMIT = 50_000
"""So many of the longest rows are looked at: none of interest is beyond."""


def named_by_stack(table: Table, stack_of: Callable[[int], Sequence[str]]) -> Table:
    """Name the operations of rows without one; `stack_of` gives a row's kernel stack."""
    length = table[table.LENGTH]
    rows = np.flatnonzero((table["op"] == NO_OP) & (length > 0))
    longest: list[int] = rows[np.argsort(-length[rows], kind="stable")[:LIMIT]].tolist()
    stacks = ((row, stack_of(row)) for row in longest)
    return _named(table, ((row, operation_of(stack)) for row, stack in stacks if stack))


def named_by_worker(
    table: Table, tasks: Mapping[int, RecordedTask], owners: Iterable[int]
) -> Table:
    """Name the operations of rows without one whose task is a worker of the kernel's.

    `owners` are the processes that have an address space: a kernel thread is none of them.
    """
    have = set(owners)
    workers = {
        tid: work
        for tid, task in tasks.items()
        if (work := work_of(task.comm)) and (work == _IO_URING or task.pid not in have)
    }
    rows = np.flatnonzero((table["op"] == NO_OP) & np.isin(table["tid"], list(workers)))
    tids = table["tid"][rows].tolist()
    return _named(table, ((row, workers[tid]) for row, tid in zip(rows.tolist(), tids)))


_IO_URING = "io_uring"


def work_of(comm: str) -> str:
    """Name what a worker of the kernel's does, by its name; "" where that doesn't tell.

    >>> work_of("khugepaged"), work_of("iou-wrk-4711"), work_of("kdamond.0"), work_of("kworker/1")
    ('khugepaged', 'io_uring', 'DAMON', '')
    """
    if comm in OF_KERNEL_THREADS:
        return comm
    if re.fullmatch(r"iou-(wrk|sqp)-[0-9]++", comm):
        return _IO_URING
    return "DAMON" if re.fullmatch(r"kdamond\.[0-9]++", comm) else ""


def _named(table: Table, names: Iterable[tuple[int, str]]) -> Table:
    operations = {name: number for number, name in enumerate(table.operations)}
    op = table["op"].copy()
    for row, name in names:
        if name:
            op[row] = operations.setdefault(name, len(operations))
    return replace(table, columns={**table.columns, "op": op}, operations=tuple(operations))
