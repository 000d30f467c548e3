"""A thread of the timed engine: a task, the coroutine that it runs, and where it stands."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from typing import TYPE_CHECKING, Any

from zaplock.engines.timed.event_log import thread_code
from zaplock.model.rwsem import Lock
from zaplock.model.step import Step, Task

if TYPE_CHECKING:
    from zaplock.engines.timed.locks import TimedLock

LockCodes = tuple[int, int, int]
"""The codes of asked, acquired and released in one mode."""

Program = Coroutine[Step[Any], Any, Any] | Generator[Step[Any], Any, Any]
"""What a thread does: a coroutine that awaits steps, or a generator that yields its own.

A generator saves what an await takes (0.1 us a step). It calls protocols by `yield from`, for which
it has to be a `types.coroutine`.
"""

RUNNING = 0
"""On a CPU; its timer is the end of its work."""
SPINNING = 1
"""On a CPU, spinning for a lock; its timer, if it has one, ends the spin."""
RESUMING = 2
"""On a CPU; its timer calls `resume` before its program goes on."""
READY = 3
"""Waits for a CPU; no timer."""
BLOCKED = 4
"""Waits for a lock or a channel; no timer."""
SLEEPING = 5
"""Off the CPU until its timer."""
RESTING = 6
"""Asleep like SLEEPING, and nobody else has run on its CPU since."""
DONE = 7


class Thread:
    """One thread. `timer` is the one that counts (0: none); any other was cancelled.

    `resume` is what to do when it next gets a CPU, before its program goes on; it returns whether
    the program may. `left_ns` is work that it still has to pay for. `stalled_ns` is how long in all
    it could not do what its program says: waited, spun, was woken, switched to or preempted;
    `stalled_since_ns` where that began. `late_ns` is how much longer than others it takes to run
    after a wake-up (a replay's thread, on whose machine a CPU was hard to get). `inside` is how
    many system calls and faults it is in, where somebody asks for that (a CPU quota).
    """

    __slots__ = (
        "asked_ns",
        "background",
        "code",
        "cpu",
        "finished_ns",
        "in_queue",
        "inside",
        "last_lock",
        "last_which",
        "late_ns",
        "left_ns",
        "lock",
        "program",
        "read_codes",
        "result",
        "resume",
        "saw_no_spin",
        "send",
        "slot",
        "spun",
        "stalled_ns",
        "stalled_since_ns",
        "state",
        "step",
        "task",
        "tid",
        "timer",
        "value",
        "woken",
        "write_codes",
    )

    def __init__(self, task: Task, program: Program, cpu: int, background: bool) -> None:
        self.task = task
        self.tid = task.tid
        self.program = program
        self.send = program.send
        self.background = background
        self.result: Any = None
        self.value: Any = None
        self.state = SLEEPING
        self.timer = 0
        self.slot = 0
        self.left_ns = 0
        self.late_ns = 0
        self.stalled_ns = 0
        self.stalled_since_ns = 0
        self.asked_ns = 0
        self.finished_ns = -1
        self.in_queue = False
        self.inside = 0
        self.woken = False
        self.saw_no_spin = False
        self.lock: TimedLock | None = None
        self.step: Any = None
        self.resume: Callable[[Thread], bool] | None = None
        # Locks on which others spin because this thread owns them (a dict is an ordered set).
        self.spun: dict[TimedLock, None] = {}
        self.move_to(cpu)

    def move_to(self, cpu: int) -> None:
        """Note the CPU that it runs on, or ran on last."""
        self.cpu = cpu
        self.code = thread_code(self.tid, cpu)
        # The lock that it used last, and the whole codes of its events on that.
        self.last_which: Lock | None = None
        self.last_lock: TimedLock | None = None
        self.read_codes: LockCodes | None = None
        self.write_codes: LockCodes | None = None

    @property
    def on_cpu(self) -> bool:
        return self.state <= RESUMING

    def __repr__(self) -> str:
        return f"{self.task.name}:{self.tid}"


def call_chain(program: Any) -> list[str]:
    """Name the functions that a suspended program is in, the innermost first."""
    names = []
    if hasattr(program, "gi_code"):
        names.append(program.__name__)
        program = program.gi_yieldfrom
    while hasattr(program, "cr_code"):
        names.append(program.__name__)
        program = program.cr_await
    return names[::-1]
