"""Tasks that other tasks create: a thread, a fork's child, a worker for a piece of work.

A task that is to be created waits to begin. Who creates it says so by its name; what it is to do is
told in cells. One that nobody creates never begins, and nothing is wrong with that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from zaplock.errors import ProtocolError
from zaplock.model.step import Step, Task, WaitStep, step

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.protocols.design import Cx

IDS: Final = "tasks to begin"
"""The cells with the ids of tasks that are to be created, by name."""
BEGUN: Final = "tasks begun"
"""The cells that say which of them have been: True, or False for one that never will be."""


@step
def task_id(m: Machine, task: Task, name: str) -> int:
    """Return the id of a task that waits to be started, as `hand_over_read` wants it."""
    tid: int | None = m.cells(IDS).get(name)
    if tid is None:
        raise ProtocolError(
            f"{task} asks for {name!r}, but no task of that name waits to be started: give one "
            'begins = "when started"'
        )
    return tid


@step
def start_task(m: Machine, task: Task, name: str) -> int:
    """Let a task of the scenario begin; return its id. Once: it does its operations and ends."""
    tid = task_id.run(m, task, name)
    if name in m.cells(BEGUN):
        raise ProtocolError(f"{task} starts {name!r}, which has begun already")
    settle_beginning.run(m, task, (name,), True)
    return tid


@step
def settle_beginning(m: Machine, _task: Task, names: tuple[str, ...], begin: bool) -> None:
    """Let the tasks begin that an operation has created, or never, if it has failed."""
    for name in names:
        m.cells(BEGUN).put(name, begin)
        m.wake((BEGUN, name))


def beginning(name: str) -> Step[bool]:
    """Wait until a task is created; False if it never will be."""
    return WaitStep(begin, (name,), _is_settled, (BEGUN, name), may_last=True)


def begin(m: Machine, _task: Task, name: str) -> bool:
    """Begin, or end at once."""
    return bool(m.cells(BEGUN)[name])


def _is_settled(m: Machine, _task: Task, name: str) -> bool:
    return name in m.cells(BEGUN)


async def clone_thread(cx: Cx) -> int:
    """Create a thread: one more user of the address space (clone with CLONE_VM)."""
    await count_user(cx.mm)
    return 0


@step
def count_user(m: Machine, _task: Task, mm: int) -> None:
    """Count one user more of an address space that has some (mmget)."""
    m.mm(mm).add("users", 1)
