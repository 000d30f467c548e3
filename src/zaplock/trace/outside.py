"""What a task did that had or wanted the lock outside of any recorded call: its kernel stack tells.

A reader of /proc/PID/smaps, a fault inside of read(), khugepaged or an exit that another thread
asked for have no event of their own. Where a stack was taken in the hold or the wait, the functions
in it name the operation ("read of smaps_rollup"), and it stands in the tables like any call's, with
no range. What has no stack of its own is left without a name: nothing is taken over from another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from zaplock.trace.events import NO_OP
from zaplock.trace.intervals import Intervals
from zaplock.trace.kernel_stacks import operation_of

Table = TypeVar("Table", bound=Intervals)

LIMIT = 50_000
"""So many of the longest rows are looked at: none of interest is beyond."""


def named_by_stack(table: Table, stack_of: Callable[[int], Sequence[str]]) -> Table:
    """Name the operations of rows without one; `stack_of` gives a row's kernel stack."""
    length = table[table.LENGTH]
    rows = np.flatnonzero((table["op"] == NO_OP) & (length > 0))
    rows = rows[np.argsort(-length[rows], kind="stable")[:LIMIT]]
    operations = {name: number for number, name in enumerate(table.operations)}
    op = table["op"].copy()
    for row in rows.tolist():
        stack = stack_of(row)
        name = operation_of(stack) if stack else ""
        if name:
            op[row] = operations.setdefault(name, len(operations))
    return replace(table, columns={**table.columns, "op": op}, operations=tuple(operations))
