"""Who was found to go on no further, and why: a holder that sleeps, and those who wait for no lock.

All of it is by a look at the tasks (`recorder.snapshot`), so it is how things stood then.
"""

from __future__ import annotations

from collections.abc import Iterator

from zaplock.trace.analysis import Analysis
from zaplock.trace.events import FoundTask
from zaplock.trace.kernel_functions import FROZEN, HALTED, SERVES_FUSE, UNANSWERED
from zaplock.trace.kernel_stacks import (
    has_mappers,
    may_have_a_vmas_lock,
    operation_of,
    reads_a_page,
    waits_for_mappers,
)
from zaplock.trace.madvise import with_advice
from zaplock.trace.sleep_reasons import FUSE, VMA_LOCK, reason_of
from zaplock.units import duration
from zaplock.views.sentences import what, who

FRAMES = 8
"""So many functions of a stack are shown; the rest is how every system call begins."""

_ENTRY = ("do_syscall_64", "entry_SYSCALL_64", "x64_sys_call", "el0_svc", "invoke_syscall")
_OFTEN = 3
_SLOW_NS = 100_000_000
"""What doesn't come for so long is told: disks are quicker."""

_LONG_NS = 10_000_000
"""Whoever has the lock for so long may keep others from what else it has."""

_NO_WAIT = "that is no wait for the lock"

_LET_GO = {
    "stopped by a signal": "kill -CONT lets them go on.",
    "stopped by its tracer": "Its tracer (TracerPid in /proc/PID/status) has to let it go on.",
    FROZEN: "0 in cgroup.freeze (of a v1 freezer: THAWED in freezer.state) lets them go on.",
    "kept until the core of its process is written": "Then the process ends: ulimit -c, "
    "/proc/PID/coredump_filter and MADV_DONTDUMP make a core smaller.",
    "out of memory in its cgroup": "Give the group more (memory.limit_in_bytes), or let something "
    "in it be killed (0 in memory.oom_control).",
    "waiting for the answer of a seccomp listener": "Does the process that has the listener open "
    "(anon_inode:seccomp notify in /proc/PID/fd) live and answer?",
}


def stack_line(stack: tuple[str, ...]) -> str:
    """Write a kernel stack in one line, innermost first."""
    shown = [name for name in stack if not name.startswith(_ENTRY)]
    more = " < ..." if len(shown) > FRAMES else ""
    return " < ".join(shown[:FRAMES]) + more


def asleep_with_it(analysis: Analysis, task: FoundTask) -> Iterator[str]:
    """Say what a holder sleeps on itself, and who may have that, where the look tells."""
    if task.does != "holds" or task.state not in ("D", "S"):
        return
    found = analysis.events.found
    if waits_for_mappers(task.stack):
        having = [one for one in found if has_mappers(one.stack)]
        yield f"it slept itself, for the lock of a file's mappings (i_mmap){_may(analysis, having)}"
    elif reason := reason_of(task.stack):
        mates = [one for one in found if one.tid != task.tid and _mates(analysis, one, task)]
        having = [one for one in mates if not one.does and may_have_a_vmas_lock(one.stack)]
        may = _may(analysis, having) if reason == VMA_LOCK else ""
        yield f"it slept itself, on {reason}{may or _servers(analysis, reason)}"


def _may(analysis: Analysis, having: list[FoundTask]) -> str:
    """Name those that may have what somebody waits for; "" where there are none."""
    named = [f"{who(analysis, one.tid)} in {_in_what(one)}" for one in having[:_OFTEN]]
    return f", which {' or '.join(named)} may have" if named else ""


def _servers(analysis: Analysis, reason: str) -> str:
    """Name who may have to answer, where somebody waits for a FUSE file system."""
    serving = [one for one in analysis.events.found if one.operation.startswith(SERVES_FUSE)]
    if reason != FUSE or not serving:
        return ""
    kept = [
        f"{who(analysis, one.tid)}{one.operation.removeprefix(SERVES_FUSE)}"
        for one in serving[:_OFTEN]
    ]
    more = f" or {len(serving) - _OFTEN} more" if len(serving) > _OFTEN else ""
    return f", which may be served by {' or '.join(kept)}{more}"


def _in_what(task: FoundTask) -> str:
    operation = task.operation or operation_of(task.stack) or "the kernel"
    return what(with_advice(operation, task.detail), task.length)


def _mates(analysis: Analysis, one: FoundTask, other: FoundTask) -> bool:
    """Say whether two tasks work on one address space, as far as their processes tell."""
    return _process(analysis, one) == analysis.events.mms.get(other.mm, 0) != 0


def no_waits(analysis: Analysis) -> Iterator[str]:
    """Say who goes on no further, and not for want of the lock."""
    for operation in UNANSWERED:
        if stuck := [task for task in analysis.events.found if task.operation == operation]:
            stand = "stands" if len(stuck) == 1 else "stand"
            since = _since(stuck) or " now"
            yield (
                f"{_several(analysis, stuck)} {stand} in {operation},{since}: {_NO_WAIT}. Does the "
                "monitor (the process that reads the userfaultfd) live and answer?"
            )
    yield from _slow_pages(analysis)
    for operation in dict.fromkeys(HALTED.values()):
        if halted := [task for task in analysis.events.found if task.operation == operation]:
            be = "is" if len(halted) == 1 else "are"
            yield (
                f"{_several(analysis, halted)} {be} {operation}{_since(halted)}: {_NO_WAIT}, but "
                f"whoever waits for them waits for that. {_LET_GO[operation]}"
            )
    yield from _uninterruptible(analysis)


def registrars(analysis: Analysis) -> str:
    """Say who was seen to register a uprobe, for which all tracing waits; "" where nobody was."""
    seen = [one for one in analysis.events.found if "uprobe_register" in one.stack]
    if not seen:
        return ""
    registers = "registers" if len(seen) == 1 else "register"
    return f", while {_several(analysis, seen)} {registers} a uprobe{_since(seen)}"


def _slow_pages(analysis: Analysis) -> Iterator[str]:
    for task in analysis.events.found:
        if not task.does and reads_a_page(task.stack) and _is_slow(task):
            doing = what(with_advice(task.operation, task.detail), task.length)
            served = _servers(analysis, reason_of(task.stack))
            by = f"a FUSE file system{served}," if served else "a file system or swap"
            yield (
                f"{who(analysis, task.tid)} stands in {doing}{_since([task])}, until {by} brings "
                f"a page: {_NO_WAIT}. It is in {stack_line(task.stack)}"
            )


def _uninterruptible(analysis: Analysis) -> Iterator[str]:
    """Tell of the target's tasks in state D for which nothing else is a reason."""
    told = {*UNANSWERED, *HALTED.values()}
    owners = set(analysis.events.mms.values())
    stuck = [
        task
        for task in analysis.events.found
        if task.state == "D" and not task.does and task.operation not in told
        if _is_slow(task) and not reads_a_page(task.stack) and _process(analysis, task) in owners
    ]
    for task in stuck[:_OFTEN]:
        operation = task.operation or operation_of(task.stack)
        doing = f" in {operation}" if operation else ""
        reason = reason_of(task.stack)
        on = f", on {reason}{_servers(analysis, reason)}" if reason else ""
        yield (
            f"{who(analysis, task.tid)} has slept{doing}{_since([task])} so that no signal wakes "
            f"it (state D){on}: {_NO_WAIT}. It is in {stack_line(task.stack)}"
        )
    if len(stuck) > _OFTEN:
        yield f"... and {len(stuck) - _OFTEN:,} more in state D."


def _process(analysis: Analysis, task: FoundTask) -> int:
    known = analysis.events.tasks.get(task.tid)
    return known.pid if known else 0


def _is_slow(task: FoundTask) -> bool:
    return bool(task.since_ns) and task.time_ns - task.since_ns >= _SLOW_NS


def perhaps_behind(analysis: Analysis) -> Iterator[str]:
    """Name who sleeps in a futex beside a thread of the same process that has the lock for long.

    Its owner is known to the program alone; of who is woken later `headlines` tells by whom.
    """
    tasks, found, holds = analysis.events.tasks, analysis.events.found, analysis.holds
    seen = set(analysis.events["tid"].tolist())
    for holder in (task for task in found if task.does == "holds" and task.tid in tasks):
        if not (holds["hold_ns"][holds["tid"] == holder.tid] >= _LONG_NS).any():
            continue
        asleep = [
            task
            for task in found
            if task.operation == "futex"
            and task.tid not in seen
            and task.tid in tasks
            and tasks[task.tid].pid == tasks[holder.tid].pid
        ]
        if asleep:
            asleep.sort(key=lambda task: -task.since_ns)  # what has just begun is the likelier
            have = "has" if len(asleep) == 1 else "have"
            yield (
                f"{_several(analysis, asleep)} {have} slept in a futex{_since(asleep)} and not "
                f"been woken: if that is for what {who(analysis, holder.tid)} has in hand "
                "meanwhile (the interpreter's lock, say), they stand behind it as well."
            )


def _several(analysis: Analysis, tasks: list[FoundTask]) -> str:
    names = [who(analysis, task.tid) for task in tasks[:_OFTEN]]
    more = f" and {len(tasks) - _OFTEN} more" if len(tasks) > _OFTEN else ""
    return f"{', '.join(names)}{more}"


def _since(tasks: list[FoundTask]) -> str:
    oldest = min((task.since_ns for task in tasks if task.since_ns), default=0)
    return f" for {duration(max(task.time_ns for task in tasks) - oldest)}" if oldest else ""
