"""Cache lines that several CPUs write: who had it last, and how long it takes to come over.

A write by the thread that wrote last costs nothing more. By another one the line has to come from
there: `transfer_ns`, or `far_ns` from another NUMA node; and it comes to one after the other, so
those who want it at once queue. That is all that makes an atomic operation on a shared word slow.

A line that somebody polls (who spins for a lock reads its owner over and over) is never its
writer's alone: each write takes it back from there, and then it is read again before the next. So
a write of a polled line costs two transfers, whoever wrote it last.

Each thread counts as a CPU of its own, in the order of its number.
"""

from __future__ import annotations

from collections.abc import Hashable


class CacheLines:
    """The contended lines of a run. `transfers`: how often one came over."""

    def __init__(
        self, transfer_ns: int, *, far_ns: int | None = None, cpus: int = 1, nodes: int = 1
    ) -> None:
        self._near_ns = transfer_ns
        self._far_ns = transfer_ns if far_ns is None else far_ns
        self._per_node = -(-cpus // nodes)
        self._owner: dict[Hashable, int] = {}
        self._free_at_ns: dict[Hashable, int] = {}
        self.transfers = 0

    def touch(self, line: Hashable, tid: int, now_ns: int, polled: bool = False) -> int:
        """Write a line as a thread: how long that takes beyond the write itself."""
        owner = self._owner.get(line, tid)
        self._owner[line] = tid
        if owner == tid and not polled:
            return 0
        times = 2 if polled else 1
        self.transfers += times
        begin_ns = max(now_ns, self._free_at_ns.get(line, 0))
        end_ns = begin_ns + times * self._between(owner, tid)
        self._free_at_ns[line] = end_ns
        return end_ns - now_ns

    def touch_under(self, lock: Hashable, tid: int, now_ns: int) -> int:
        """Write what every exclusive hold of a lock writes, beside the lock's own word."""
        return self.touch(("under", lock), tid, now_ns)

    def _between(self, owner: int, tid: int) -> int:
        same = (owner - 1) // self._per_node == (tid - 1) // self._per_node
        return self._near_ns if same else self._far_ns
