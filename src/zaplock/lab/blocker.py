"""Who keeps a task waiting at an instant: the lock's holder, and who queues between the two.

That is the writer, or the reader that came last. The rwsem remembers one reader's name, of whoever
had it last, and forgets it when that one leaves, though others may still have it
(kernel/locking/rwsem.c rwsem_set_reader_owned, rwsem_clear_reader_owned).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from zaplock.trace.analysis import Analysis


@dataclass(frozen=True, slots=True)
class Party:
    """A task at a lock, as it has it or asks for it."""

    tid: int
    name: str
    exclusive: bool


@dataclass(frozen=True, slots=True)
class Blocker:
    """Who has the lock, and the writers that queue before the one who waits.

    is_known: whether the kernel remembers the holder as the lock's owner.
    """

    holder: Party
    between: tuple[Party, ...] = ()
    is_known: bool = True


def blocker(seen: Analysis, tid: int, at_ns: int) -> Blocker | None:
    """Find who keeps a task from the lock that it waits for then; None where nobody does."""
    holds, waits = seen.holds, seen.waits
    standing = (waits["start_ns"] <= at_ns) & (waits.end_ns > at_ns)
    own = np.flatnonzero(standing & (waits["tid"] == tid))
    if not len(own):
        return None
    mm, asked_ns = waits["mm"][own[0]], waits["start_ns"][own[0]]
    came = np.flatnonzero((holds["mm"] == mm) & (holds["start_ns"] <= at_ns))
    holders = came[holds.end_ns[came] > at_ns]
    if not len(holders):
        return None
    row = int(holders[-1])  # rows are in the order in which they came
    before = standing & (waits["mm"] == mm) & waits["exclusive"] & (waits["start_ns"] < asked_ns)
    between = tuple(
        _party(seen, int(waits["tid"][one]), exclusive=True) for one in np.flatnonzero(before)
    )
    return Blocker(
        _party(seen, int(holds["tid"][row]), exclusive=bool(holds["exclusive"][row])),
        between,
        is_known=bool(row == came[-1]),
    )


def _party(seen: Analysis, tid: int, *, exclusive: bool) -> Party:
    task = seen.events.tasks.get(tid)
    return Party(tid, task.comm if task else str(tid), exclusive)
