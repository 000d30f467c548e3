"""The kernel's hung-task message for a wait of the model, with the model's call chain.

Only waits that the kernel's code path does uninterruptibly are told of
(`engines.timed.hung_tasks`). The shape is that of kernel/hung_task.c, so that what greps a log for
it finds it; there are no addresses and no taints here to print.
"""

from __future__ import annotations

from zaplock.engines.timed.hung_tasks import LongWait

_OUTSIDE = ("write_memory", "syscall")
"""Where the kernel's part of a call chain ends: what is further out is the program's own."""


def kernel_chain(wait: LongWait) -> list[str]:
    """Name the functions of the kernel that a task waited in, the innermost first."""
    names = [wait.waits_for, *wait.chain]
    inside = (i for i, name in enumerate(names) if name in _OUTSIDE)
    return names[: next(inside, len(names))]


def message(wait: LongWait, timeout_ns: int, release: str) -> str:
    """Return the lines that the kernel `release` would log about one wait."""
    seconds = timeout_ns / 1e9
    name = f"{wait.name:<15} D{0:>5} {wait.tid:>5}"
    return "\n".join(
        [
            f"INFO: task {wait.name}:{wait.tid} blocked for more than {seconds:g} seconds.",
            f"      Not tainted {release} (zaplock model)",
            '"echo 0 > /proc/sys/kernel/hung_task_timeout_secs" disables this message.',
            name,
            "Call Trace:",
            *(f" {function}" for function in kernel_chain(wait)),
        ]
    )
