"""Which features a kernel lacks of those that its judgement can use, and what is not seen for it.

docs/kernels.md lists them with the options of a kernel's build. The probe looks in the guest.
"""

from __future__ import annotations

from zaplock.measure.guest.capsule import Capsule

NEEDED = {
    "tracefs": "lock events, system calls, scheduling",
    "kprobe_events": "lock events before 5.11",
    "kallsyms": "lock events before 5.11",
    "mmap_lock": "lock events by tracepoints",
    "syscalls": "which call holds the lock",
    "sched": "who was preempted before it queued",
    "page_fault_user": "faults as such",
    "function_graph": "--graph, and lock events without kprobes",
    "hung_task": "hung tasks",
    "hugetlb": "the hugetlb row",
}
"""What is not seen without a feature."""
_WAYS = {
    "tracepoints": {"mmap_lock"},
    "kprobes": {"kprobe_events", "kallsyms"},
    "function_graph": {"function_graph"},
}
"""What each way to see lock events needs."""


def missing(capsule: Capsule, by: str = "auto") -> tuple[str, ...]:
    """Say which features the kernel of a run lacks, and what is not seen for it.

    Of the ways to see the lock only one is needed, that which was asked for.
    """
    told = (line.partition("=") for line in capsule.text("features").splitlines())
    lacks = {name for name, _, value in told if value == "0"}
    ways = [_WAYS[by]] if by in _WAYS else list(_WAYS.values())
    others = set().union(*_WAYS.values()) - {"function_graph"}  # it is of use besides
    if any(not way & lacks for way in ways):
        lacks -= others
    elif by in _WAYS:
        lacks -= others - _WAYS[by]
    return tuple(f"{name} ({use})" for name, use in NEEDED.items() if name in lacks)
