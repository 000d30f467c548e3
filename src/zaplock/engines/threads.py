"""A thread of the timed engine: a task, the coroutine that it runs, and where it stands."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from zaplock.engines.recorder import thread_code
from zaplock.model.step import Step, Task

if TYPE_CHECKING:
    from zaplock.engines.locks import TimedLock

Program = Coroutine[Step[Any], Any, Any]

RUNNING = 0
"""On a CPU; its timer is the end of its work."""
SPINNING = 1
"""On a CPU, spinning for a lock; its timer, if it has one, ends the spin."""
READY = 2
"""Waits for a CPU; no timer."""
BLOCKED = 3
"""Waits for a lock or a channel; no timer."""
SLEEPING = 4
"""Off the CPU until its timer."""
DONE = 5
TICK = 6
"""Not a thread: the end of a time slice on a CPU."""


class Thread:
    """One thread. `token` tells a timer that is still meant from one that was cancelled.

    `resume` is what to do when it next gets a CPU, before its program goes on; it returns whether
    the program may. `left_ns` is work that it still has to pay for. `work_ns` is all the work that
    it has paid for: time of its own, without waiting, spinning or switching.
    """

    __slots__ = (
        "asked_ns",
        "background",
        "code",
        "cpu",
        "finished_ns",
        "in_queue",
        "left_ns",
        "lock",
        "program",
        "result",
        "resume",
        "send",
        "spun",
        "state",
        "step",
        "task",
        "tid",
        "token",
        "value",
        "woken",
        "work_ns",
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
        self.token = 0
        self.left_ns = 0
        self.work_ns = 0
        self.asked_ns = 0
        self.finished_ns = -1
        self.in_queue = False
        self.woken = False
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

    @property
    def on_cpu(self) -> bool:
        return self.state <= SPINNING

    def __repr__(self) -> str:
        return f"{self.task.name}:{self.tid}"


def call_chain(program: Any) -> list[str]:
    """Name the functions that a suspended program is in, the innermost first."""
    names = []
    while hasattr(program, "cr_code"):
        names.append(program.__name__)
        program = program.cr_await
    return names[::-1]
