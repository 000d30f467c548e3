"""The kernel's hung-task message for a wait of the model, with the model's call chain.

Only waits that the kernel's code path does uninterruptibly are told of (`engines.hung`). The shape
is that of kernel/hung_task.c, so that what greps a log for it finds it; there are no addresses and
no taints here to print.
"""

from __future__ import annotations

from zaplock.engines.hung import LongWait


def message(wait: LongWait, timeout_ns: int, release: str) -> str:
    """Return the lines that the kernel `release` would log about one wait."""
    seconds = timeout_ns / 1e9
    name = f"{wait.name:<15} D{0:>5} {wait.tid:>5}"
    chain = [wait.waits_for, *wait.chain]
    return "\n".join(
        [
            f"INFO: task {wait.name}:{wait.tid} blocked for more than {seconds:g} seconds.",
            f"      Not tainted {release} (zaplock model)",
            '"echo 0 > /proc/sys/kernel/hung_task_timeout_secs" disables this message.',
            name,
            "Call Trace:",
            *(f" {function}" for function in chain),
        ]
    )
