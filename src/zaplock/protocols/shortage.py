"""Memory that runs short: an allocation that fails where whoever runs the protocols lets it.

As the kernel's failslab does. A protocol asks `no_memory` where its kernel allocates; that is a
step only where `Cx.allocations_fail` is on, so nobody else pays for it. The checker puts a daemon
beside the tasks that lets an allocation fail at any moment (`check.shortage`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from zaplock.model.step import Step, Task, WaitStep, step

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.protocols.design import Cx


FAILED: Final = "failed allocations"
"""The cells that say whose allocations have failed, by task id."""


async def no_memory(cx: Cx) -> bool:
    """Return whether an allocation fails here."""
    return cx.allocations_fail and await allocation_fails()


@step
def allocation_fails(m: Machine, task: Task) -> bool:
    """Allocate: True if this is the allocation that fails."""
    fails = bool(m.globals.get("allocation_fails"))
    if fails:
        m.globals.put("allocation_fails", 0)
        m.cells(FAILED).put(task.tid, True)
    return fails


def let_one_fail() -> Step[None]:
    """Let the next allocation fail, whosever it is; waits for the one before it to have failed."""
    return WaitStep(next_allocation_fails, (), _none_is_to_fail, ("allocation_fails",))


def next_allocation_fails(m: Machine, _task: Task) -> None:
    """Let it fail, whosever it is."""
    m.globals.put("allocation_fails", 1)


def _none_is_to_fail(m: Machine, _task: Task) -> bool:
    return not m.globals.get("allocation_fails")
