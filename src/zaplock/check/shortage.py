"""A closed system in which allocations fail: a daemon beside its tasks says when.

One may fail for each step that the daemon takes, at any moment, in any task; so all places where
one could fail are tried, under every interleaving. What is an error then is no wrong result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from errno import EAGAIN, EFAULT, ENOMEM
from functools import partial
from typing import Final

from zaplock.engines.checking.configuration import Configuration, TaskProgram
from zaplock.model.machine import Machine
from zaplock.model.step import Step, Task, WaitStep
from zaplock.protocols.shortage import FAILED, let_one_fail

MEMORY: Final = "memory"
"""The name of the task that makes allocations fail."""

EXCUSED: Final = (-ENOMEM, -EAGAIN, -EFAULT)
"""What system calls return when an allocation has failed: some have another name for it."""


def with_shortage(system: Configuration, times: int) -> Configuration:
    """Return the system with so many allocations that may fail."""
    last = max(program.task.tid for program in system.programs)
    memory = TaskProgram(Task(last + 1, 0, MEMORY), partial(_runs_short, times), daemon=True)
    return replace(system, build=partial(_build, system.build), programs=(*system.programs, memory))


def _build(build: Callable[[], Machine]) -> Machine:
    machine = build()
    machine.globals.put("allocation_fails", 0)
    machine.cells(FAILED)
    return machine


async def _runs_short(times: int) -> None:
    for _ in range(times):
        await let_one_fail()
    await _for_ever()


def _for_ever() -> Step[None]:
    return WaitStep(_nothing, (), _never, ("never",))


def _nothing(_m: Machine, _task: Task) -> None:
    return None


def _never(_m: Machine, _task: Task) -> bool:
    return False
