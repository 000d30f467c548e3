"""Who is changing a file under its lock, and the faults that wait until a hole is punched.

Who writes to a file, cuts it or punches a hole into it holds its lock (i_rwsem). While a hole is
punched into a file in memory no fault may bring a page of it back, or the punch would never come to
an end: a fault that has to have such a page waits until the punch is over, and the access comes
again. What the page cache has around a fault's page is mapped before that, also if it is in the
hole and still there.

Taking the lock is part of the step that begins a change, giving it back is `end_change`; what is
one step altogether just waits until the file is unlocked.

Source: mm/shmem.c (shmem_fault, shmem_falloc_wait, shmem_fallocate; 8e205f779d14, 3.16).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import msgspec

from zaplock.model.step import Step, StepKind, Task, WaitStep, step

if TYPE_CHECKING:
    from zaplock.model.machine import Machine

P = ParamSpec("P")
R = TypeVar("R")


class FileChange(msgspec.Struct, frozen=True):
    """A file is locked; its pages [first, last), if any, are being punched out.

    `waiters`: the tasks, by id, whose faults wait for that. They do not wait for the next punch.
    """

    first: int = 0
    last: int = 0
    waiters: tuple[int, ...] = ()


def once_unlocked(
    kind: StepKind[Concatenate[int, P], R], file: int, *args: P.args, **kwargs: P.kwargs
) -> Step[R]:
    """Take a step, whose first argument is the file, when nobody else is changing that."""
    assert not kwargs, "step arguments are positional"
    return WaitStep(kind.run, (file, *args), _is_unlocked, ("file", file))


def _is_unlocked(m: Machine, _task: Task, file: int, *_args: Any) -> bool:
    return file not in m.file_changes


@step
def begin_change(m: Machine, _task: Task, file: int, first: int = 0, last: int = 0) -> None:
    """Lock a file; faults in pages [first, last) of it wait from now on, if it is in memory."""
    punched = (first, last) if m.files[file].kind == "shmem" else (0, 0)
    m.file_changes.put(file, FileChange(*punched))


@step
def end_change(m: Machine, _task: Task, file: int) -> None:
    """Unlock a file, and let the faults go on that wait."""
    m.file_changes.drop(file)
    m.wake(("file", file))
    m.wake(("punch", file))


def joins_waiters(m: Machine, task: Task, file: int, pgoff: int) -> bool:
    """Return whether a page is being punched out of its file; then `task` waits for that."""
    change = m.file_changes.get(file)
    if change is None or not change.first <= pgoff < change.last:
        return False
    if task.tid not in change.waiters:
        waiters = tuple(sorted((*change.waiters, task.tid)))
        m.file_changes.put(file, msgspec.structs.replace(change, waiters=waiters))
    return True


def punch_is_over(file: int) -> Step[None]:
    """Wait, uninterruptibly, until the punch is over that this task was seen to wait for."""
    return WaitStep(_go_on, (file,), _is_over, ("punch", file))


def _go_on(_m: Machine, _task: Task, _file: int) -> None:
    return None


def _is_over(m: Machine, task: Task, file: int) -> bool:
    change = m.file_changes.get(file)
    return change is None or task.tid not in change.waiters
