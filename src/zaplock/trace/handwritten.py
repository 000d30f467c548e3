"""Write an event stream by hand: one method per kind of event, then `events()`.

For whoever emits events one by one (a simulation, an importer of text, a test). Rows may be added
in any order of time; events of one time keep the order in which they were added.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from zaplock.trace.events import EVENT, NO_OP, EventKind, Events, RecordedTask


class Log:
    """A growing list of events.

    >>> log = Log()
    >>> log.asked(10, tid=1, mm=7, write=True)
    >>> log.acquired(12, tid=1, mm=7, write=True)
    >>> log.released(30, tid=1, mm=7, write=True)
    >>> len(log.events())
    3
    """

    def __init__(self) -> None:
        self._rows: list[tuple[int, ...]] = []
        self._operations: dict[str, int] = {}
        self._tasks: dict[int, RecordedTask] = {}
        self._mms: dict[int, int] = {}

    def add(self, time_ns: int, kind: EventKind, tid: int, **columns: int) -> None:
        """Add one event of any kind; columns that are not named are 0 (`op`: none)."""
        values = {"time_ns": time_ns, "kind": int(kind), "tid": tid, "op": NO_OP, **columns}
        unknown = set(values) - set(EVENT.names or ())
        assert not unknown, f"no such columns: {sorted(unknown)}"
        self._rows.append(tuple(int(values.get(name, 0)) for name in EVENT.names or ()))

    def task(self, tid: int, comm: str, pid: int, process: str = "") -> None:
        """Name a task."""
        self._tasks[tid] = RecordedTask(tid, comm, pid, process or comm)

    def owner(self, mm: int, pid: int) -> None:
        """Say which process an mm belongs to."""
        self._mms[mm] = pid

    def asked(self, time_ns: int, *, tid: int, mm: int, write: bool, cpu: int = 0) -> None:
        """The task asks for the lock."""
        self.add(time_ns, EventKind.ASKED, tid, mm=mm, write=write, cpu=cpu)

    def acquired(
        self, time_ns: int, *, tid: int, mm: int, write: bool, success: bool = True, cpu: int = 0
    ) -> None:
        """The task has it, or with `success` False was refused."""
        self.add(time_ns, EventKind.ACQUIRED, tid, mm=mm, write=write, success=success, cpu=cpu)

    def downgraded(self, time_ns: int, *, tid: int, mm: int, cpu: int = 0) -> None:
        """The task turns its exclusive hold into a shared one."""
        self.acquired(time_ns, tid=tid, mm=mm, write=False, cpu=cpu)

    def released(self, time_ns: int, *, tid: int, mm: int, write: bool, cpu: int = 0) -> None:
        """The task gives the lock back."""
        self.add(time_ns, EventKind.RELEASED, tid, mm=mm, write=write, cpu=cpu)

    def begin(
        self,
        time_ns: int,
        *,
        tid: int,
        op: str,
        address: int = 0,
        length: int = 0,
        detail: int = 0,
        cpu: int = 0,
    ) -> None:
        """The task enters an operation on [address, address + length)."""
        number = self._operations.setdefault(op, len(self._operations))
        self.add(
            time_ns,
            EventKind.OP_BEGIN,
            tid,
            op=number,
            address=address,
            length=length,
            detail=detail,
            cpu=cpu,
        )

    def end(self, time_ns: int, *, tid: int, op: str, result: int = 0, cpu: int = 0) -> None:
        """The task leaves it."""
        number = self._operations.setdefault(op, len(self._operations))
        self.add(time_ns, EventKind.OP_END, tid, op=number, result=result, cpu=cpu)

    def lost(self, time_ns: int, *, cpu: int, count: int = -1) -> None:
        """Events of a cpu are missing before this time."""
        self.add(time_ns, EventKind.LOST, 0, cpu=cpu, length=count)

    def events(self, *, tasks: Mapping[int, RecordedTask] | None = None) -> Events:
        """Return what was written, in order of time."""
        rows = np.array(self._rows, dtype=EVENT)
        rows = rows[np.argsort(rows["time_ns"], kind="stable")]
        columns = {name: np.ascontiguousarray(rows[name]) for name in EVENT.names or ()}
        return Events(
            columns, tuple(self._operations), {**self._tasks, **(tasks or {})}, dict(self._mms)
        )
