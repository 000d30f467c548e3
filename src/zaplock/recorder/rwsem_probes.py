"""Lock events from kprobes on the rwsem's functions, for kernels without mmap_lock tracepoints.

A probe at the entry of a function tells the semaphore, one at its return what came of it:

    down_read(sem) ... returns         ASKED(0)  ...  ACQUIRED(0)
    down_write_killable(sem) ...       ASKED(1)  ...  ACQUIRED(1), success 0 where it returns -EINTR
    down_read_trylock(sem) ...         ASKED(0)  ...  ACQUIRED(0), success 0 where it returns 0
    up_read(sem), up_write(sem)        RELEASED, before the real unlock as from 5.16 on
    downgrade_write(sem)               ACQUIRED(0) of the task that holds it exclusively

These are the events of the tracepoints (include/linux/mmap_lock.h), but for `mm`: it is the address
of the semaphore, which lies in the mm_struct and stands for it as well.

A return doesn't say of which semaphore it is: `rwsem_calls` pairs it with its call.
"""

from __future__ import annotations

from dataclasses import dataclass

from zaplock.trace.event_kinds import EventKind

GROUP = "zaplock"
"""The probes' events are in a system of this name, or one that begins so."""
RETURN = "_ret"


@dataclass(frozen=True, slots=True)
class ProbedFunction:
    """What a call of an rwsem function means: the kind of event at its entry, and its mode.

    `returns` is how its result tells success: "" (void), "errno" (0) or "bool" (not 0).
    """

    name: str
    kind: EventKind
    write: int
    returns: str = ""

    @property
    def asks(self) -> bool:
        """Whether it may have to wait, and its return is an event, too."""
        return self.kind == EventKind.ASKED


def _down(name: str, write: int, returns: str = "") -> ProbedFunction:
    return ProbedFunction(name, EventKind.ASKED, write, returns)


FUNCTIONS = (
    _down("down_read", 0),
    _down("down_read_nested", 0),
    _down("down_read_interruptible", 0, "errno"),
    _down("down_read_killable", 0, "errno"),
    _down("down_read_killable_nested", 0, "errno"),
    _down("down_read_trylock", 0, "bool"),
    _down("down_write", 1),
    _down("down_write_nested", 1),
    _down("_down_write_nest_lock", 1),
    _down("down_write_killable", 1, "errno"),
    _down("down_write_killable_nested", 1, "errno"),
    _down("down_write_trylock", 1, "bool"),
    ProbedFunction("up_read", EventKind.RELEASED, 0),
    ProbedFunction("up_read_non_owner", EventKind.RELEASED, 0),
    ProbedFunction("up_write", EventKind.RELEASED, 1),
    ProbedFunction("downgrade_write", EventKind.ACQUIRED, 0),
)
"""Every function of kernel/locking/rwsem.c, 4.9 to 6.18, that takes or gives a semaphore; those
with "nest" exist where lockdep is built in."""

_NUMBER = {function.name: number for number, function in enumerate(FUNCTIONS)}


def probed(event: str) -> tuple[ProbedFunction, bool] | None:
    """Return the function of a probe's event (system:name), and whether it is that of its return.

    None for any other event.
    """
    system, _, name = event.partition(":")
    if not system.startswith(GROUP):
        return None
    returned = name.endswith(RETURN)
    number = _NUMBER.get(name.removesuffix(RETURN))
    return None if number is None else (FUNCTIONS[number], returned)


def number_of(function: ProbedFunction) -> int:
    """Return the number by which events name a function until they are paired (`detail`)."""
    return _NUMBER[function.name]


def succeeded(function: ProbedFunction, result: int) -> int:
    """Return 1 where a call that returned `result` has got the semaphore, else 0."""
    if function.returns == "errno":
        return int(result == 0)
    return int(result != 0) if function.returns == "bool" else 1
