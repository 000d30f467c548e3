"""Intervals in which a task did something with an mmap_lock, as columns: holds and waits are both.

One array a column, one row an interval, sorted by `start_ns`: a recording has millions of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from zaplock.extras import needed
from zaplock.trace.calls import NO_CALL, Calls
from zaplock.trace.events import HOLD_UNSEEN, IN_PART, EventKind, Events, RecordedTask
from zaplock.trace.gaps import Segments
from zaplock.trace.lanes import Lanes, lanes

if TYPE_CHECKING:
    from typing import Self

    import polars

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, repr=False)
class Intervals:
    """What a kind of interval has: `DTYPE` names and types the columns, `LENGTH` is how long.

    `op` indexes `operations` (or is `events.NO_OP`); `call` is the row of `Calls`.
    """

    DTYPE: ClassVar[np.dtype[Any]]
    LENGTH: ClassVar[str]

    columns: Mapping[str, Array]
    operations: tuple[str, ...]
    tasks: Mapping[int, RecordedTask]

    def __len__(self) -> int:
        return len(self.columns["mm"])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} rows of {', '.join(self.columns)})"

    def __getitem__(self, name: str) -> Array:
        return self.columns[name]

    @property
    def end_ns(self) -> Array:
        """When each interval ended."""
        end: Array = self.columns["start_ns"] + self.columns[self.LENGTH]
        return end

    def only(self, chosen: Array) -> Self:
        """Return the chosen rows (a mask, or row numbers in the wanted order)."""
        columns = {name: column[chosen] for name, column in self.columns.items()}
        return replace(self, columns=columns)

    def longest(self, count: int) -> Self:
        """Return the `count` longest rows, longest first, of equals the earlier first."""
        return self.only(np.argsort(-self.columns[self.LENGTH], kind="stable")[:count])

    def frame(self) -> polars.DataFrame:
        """Return a table with comm, mode and operation spelt out."""
        with needed("a frame"):
            import polars as pl

        frame = pl.DataFrame(dict(self.columns))
        names = pl.DataFrame(
            {
                "tid": pl.Series([task.tid for task in self.tasks.values()], dtype=pl.Int32),
                "comm": pl.Series([task.comm for task in self.tasks.values()], dtype=pl.String),
                "pid": pl.Series([task.pid for task in self.tasks.values()], dtype=pl.Int32),
            }
        )
        ops = pl.DataFrame(
            {
                "op": pl.Series(range(len(self.operations)), dtype=pl.Int16),
                "operation": pl.Series(self.operations, dtype=pl.String),
            }
        )
        mode = pl.when("exclusive").then(pl.lit("exclusive")).otherwise(pl.lit("shared"))
        frame = frame.join(names, on="tid", how="left", maintain_order="left")
        frame = frame.join(ops, on="op", how="left", maintain_order="left")
        return frame.with_columns(mode.alias("mode"), pl.col("comm").fill_null("")).drop(
            "op", "exclusive", "call"
        )

    def check(self) -> None:
        """Raise AssertionError unless the columns are typed and in order."""
        for name in self.DTYPE.names or ():
            assert self.columns[name].dtype == self.DTYPE[name], (name, self.columns[name].dtype)
            assert len(self.columns[name]) == len(self), name
        assert bool((self[self.LENGTH] >= 0).all()), f"a negative {self.LENGTH}"
        assert bool((np.diff(self["start_ns"]) >= 0).all()), "the rows are not in order"


def found_so(events: Events, rows: Lanes) -> Array:
    """Say of each row whether it was so already when the recording began (`IN_PART`)."""
    begins = events["kind"][rows.index] <= EventKind.ACQUIRED
    found: Array = begins & (events["result"][rows.index] == IN_PART)
    return found


def hold_unseen(events: Events, rows: Lanes) -> Array:
    """Say of each row whether it only ends a wait: the hold that it began was over unseen."""
    unseen: Array = events["kind"][rows.index] == EventKind.ACQUIRED
    unseen &= events["result"][rows.index] == HOLD_UNSEEN
    return unseen


DOWNGRADES = ("munmap", "brk", "mremap")
"""Operations that turn their exclusive hold into a shared one."""


def begun_before(events: Events, rows: Lanes, in_calls: Calls) -> tuple[Array, Array]:
    """Say which rows end a wait, and which an exclusive hold, that began before their segment.

    Both are an ACQUIRED that is the first of its lane. Getting the lock is told by an ASKED before
    it; a downgrade has none, so a shared one in a call that downgrades is taken for that,
    and in a recording without calls for neither.
    """
    unseen = hold_unseen(events, rows)
    first = (rows.starts() | np.roll(unseen, 1)) & ~unseen
    first &= (events["kind"][rows.index] == EventKind.ACQUIRED) & ~found_so(events, rows)
    downgraded = np.zeros(len(rows), bool)
    places = np.flatnonzero(first & (events["write"][rows.index] == 0))
    event = rows.index[places]
    call = in_calls.during(events["tid"][event], event)
    ops = [op for op, name in enumerate(in_calls.operations) if name in DOWNGRADES]
    if len(in_calls):
        in_one = (call != NO_CALL) & np.isin(in_calls.op[call], ops)
        downgraded[places] = in_one & (events["success"][event] != 0)
        return first & ~downgraded, downgraded
    return first & (events["write"][rows.index] != 0), downgraded


def lock_lanes(events: Events, cut: Segments) -> Lanes:
    """Lay the lock events side by side by (mm, tid)."""
    return lanes(events, cut, events["kind"] <= EventKind.RELEASED, by_mm=True)
