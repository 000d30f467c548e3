"""brk1 of will-it-scale: threads of one process let the heap grow by a page and shrink again.

What small unmaps pay for a change that big ones gain by: each shrink is an munmap of one page. With
the rwsem of 4.20 its downgrade makes the lock reader-owned for a moment, and every writer that
spins for it goes to sleep; such a regression was reported for 9bc8039e715d.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from zaplock.lab.bystanders import system_call
from zaplock.lab.lab import Laboratory
from zaplock.lab.profiles import Profile
from zaplock.model.machine import Machine
from zaplock.model.step import Task, step
from zaplock.protocols.brk import brk
from zaplock.protocols.design import Cx, Design

HEAP = 1 << 34
ROUNDS = 200
"""How often each thread lets the heap grow and shrink."""


@dataclass(frozen=True, slots=True)
class Brk1:
    """How fast threads of one process move the end of the heap, by `size` bytes up and down."""

    design: str
    threads: int
    size: int
    calls: int
    duration_ns: int

    @property
    def calls_per_s(self) -> int:
        """System calls a second, of all threads together."""
        return self.calls * 10**9 // max(1, self.duration_ns)

    def to_json(self) -> dict[str, Any]:
        """Return the figures as plain values."""
        return {**asdict(self), "calls_per_s": self.calls_per_s}


def brk1(
    designs: Sequence[Design], profile: Profile, size: int, *, cpus: int = 8, seed: int = 1
) -> list[Brk1]:
    """Run brk1 with a thread on each CPU under each design."""
    return [_run(design, profile, size, cpus, seed) for design in designs]


def _run(design: Design, profile: Profile, size: int, cpus: int, seed: int) -> Brk1:
    lab = Laboratory(design, profile, cpus=cpus, seed=seed)

    async def move(cx: Cx) -> int:
        calls = 0
        while calls < 2 * ROUNDS:
            await system_call(cx, "brk", brk(cx, HEAP + size), HEAP + size)
            await system_call(cx, "brk", brk(cx, HEAP), HEAP)
            calls += 2
        return calls

    begin_heap.run(lab.machine, Task(0, 1, "setup"), 1)
    for number in range(cpus):
        lab.thread(f"brk{number}", move)
    seen = lab.run()
    return Brk1(
        design.name,
        cpus,
        size,
        sum(calls or 0 for calls in seen.results.values()),
        seen.duration_ns,
    )


@step
def begin_heap(m: Machine, _task: Task, mm: int) -> None:
    """Let a process's heap begin, empty."""
    m.mm(mm).counters.put("start_brk", HEAP)
    m.mm(mm).counters.put("brk", HEAP)
