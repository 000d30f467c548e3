"""What is switched on in the kernel while a recording runs, and what of it is kept.

Two instances where there is a target, one where there is none:

locks   mmap_lock, contention and the names of tasks, of everybody: a foreign waiter is a waiter.
        With them the system calls that work on another process (process_vm_readv, ptrace).
        Where the target is one process, the kernel filters on its mm (see `targets`).
calls   system calls, faults and scheduling, of the target's threads alone: a pid filter that new
        threads and children join by `event-fork`.

The system calls are taken from their own events (`sys_enter_munmap`) and not from
`raw_syscalls:sys_enter`: these carry only the arguments that the call has and leave every other
call alone. Both make every system call of the machine take the kernel's slow entry while they are
on; whoever cannot pay that leaves the group `syscalls` out.

With `watch` all this is prepared, but only the contention of the target's lock is switched on,
which costs nothing while nobody waits; `Capture.widen` switches the rest on (see `watch`). Names
are then those of the target's own tasks, in `calls`, and wake nobody: what a busy machine starts
and ends is no reason to look. They come on before the address spaces are learned, so an exec
meanwhile is seen.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from zaplock.errors import UserError
from zaplock.recorder import perf
from zaplock.recorder.buffers import Buffers
from zaplock.recorder.capture import Capture, set_percent, wake_for_locks_alone
from zaplock.recorder.filters import locked_of, locks_of, mms_of, queues_of
from zaplock.recorder.instances_ahead import Ahead, chosen_buffer_kb
from zaplock.recorder.layouts import Layouts, read_layouts
from zaplock.recorder.lock_events import (
    BY_TRACEPOINTS,
    KPROBES,
    NONE,
    TRACEPOINTS,
    UNSEEN,
    LockEvents,
    chosen_way,
    probes,
    sweep_probes,
)
from zaplock.recorder.meanings import CONTENTION, FOREIGN_CALLS, GROUPS, NAMING
from zaplock.recorder.options import MOST_MMS, Options
from zaplock.recorder.snapshot import STACKS_DENIED, stacks_are_denied
from zaplock.recorder.stack_sampler import LOCKED, SAMPLED_EVENTS, StackSampler, Wanted
from zaplock.recorder.switch_off import Closing
from zaplock.recorder.targets import (
    LearnedMm,
    check_namespace,
    check_process,
    descendants_of,
    learn_mm,
    threads_of,
)
from zaplock.recorder.tracefs import Instance, Tracefs, opened, sweep
from zaplock.recorder.uninterrupted import uninterrupted

_OF_EVERYBODY = ("mmap_lock", "contention")
_NO_FILTER = "0"


@contextlib.contextmanager
def capturing(options: Options, ahead: Ahead | None = None) -> Iterator[Capture]:
    """Prepare a recording; afterwards everything that it switched on is off and gone.

    Instances that were made `ahead` are taken, as far as they are of the size that is asked for.
    Raises UserError where the kernel or the target does not allow it.
    """
    options.check()
    check_namespace()
    notes: list[str] = []
    options = replace(options, pids=_living(options, notes))
    ahead = None if options.buffer_kb else ahead
    with opened() as tracefs, Closing() as closing:
        stack = closing.stack
        sweep(tracefs)
        sweep_probes(tracefs)
        way = _way(tracefs, options)
        first, learned = _instance(stack, tracefs, options, ahead), dict[int, LearnedMm]()
        locks = _lock_events(stack, tracefs, first, way)
        layouts = _layouts(tracefs, options, locks)
        pids, instances = set(options.pids), [first]
        if pids:
            pids = descendants_of(pids) if options.children else pids
            instances.append(_following(stack, tracefs, options, pids, ahead))
        only_watching = _watched_names(instances[1]) if options.watch else ()
        if not options.children and len(options.pids) <= MOST_MMS and locks.asked:
            learned = {pid: learn_mm(tracefs, pid, first, locks) for pid in options.pids}
        later: list[tuple[Instance, str, str]] = []
        enable = _enabler(layouts, later if options.watch else None)
        _locks(first, enable, options, locks, learned)
        if pids:
            _calls(instances[1], enable, options)
        if options.watch:
            wake_for_locks_alone(instances)
        notes += _ways_notes(options, way, learned)
        notes += [STACKS_DENIED] if stacks_are_denied(options.pids or (os.getpid(),)) else []
        with uninterrupted():
            sampler = _sampler(tracefs, options, locks, learned, pids, notes)
            if sampler:
                stack.callback(sampler.close)
            buffers = Buffers(instances, layouts.page.page_size)
            stack.callback(buffers.close)
        capture = Capture(
            layouts,
            buffers,
            instances,
            learned,
            pids,
            options.percent,
            later,
            only_watching,
            sampler,
            tuple(notes),
            locks,
            {one.mm for one in learned.values()},
        )
        stack.callback(capture.stop)
        capture.clear = closing.begin
        yield capture


def _living(options: Options, notes: list[str]) -> tuple[int, ...]:
    """Check the target's processes. Of a group's, some may have ended since they were listed."""
    living, errors = [], list[UserError]()
    for pid in options.pids:
        try:
            check_process(pid)
            living.append(pid)
        except UserError as error:
            errors.append(error)
    if errors and not (options.children and living):
        raise errors[0]
    notes += [f"left out: {error}" for error in errors]
    return tuple(living)


def _way(tracefs: Tracefs, options: Options) -> str:
    """Choose how lock events are seen; `NONE` where they are not asked for."""
    way = chosen_way(tracefs, options.by if "mmap_lock" in options.groups else NONE)
    if options.watch and way != TRACEPOINTS:
        raise UserError(f"a watch needs the mmap_lock tracepoints, not {way}: leave out --watch")
    return way


def _lock_events(
    stack: contextlib.ExitStack, tracefs: Tracefs, instance: Instance, way: str
) -> LockEvents:
    if way == KPROBES:
        return stack.enter_context(probes(tracefs, instance))
    return UNSEEN if way == NONE else BY_TRACEPOINTS


def _ways_notes(options: Options, way: str, learned: Mapping[int, LearnedMm]) -> list[str]:
    """Say what is not seen the way that was taken."""
    if way == NONE and "mmap_lock" in options.groups:
        return ["without lock events: who held a lock, and who waited for it, is not known"]
    if way == KPROBES and not learned:
        return [
            "by kprobes: a process's lock is known from its first munmap, brk, mprotect or mremap "
            "on; what was done with it before is left out"
        ]
    return []


def _layouts(tracefs: Tracefs, options: Options, locks: LockEvents) -> Layouts:
    groups = [group for group in options.groups if group != "mmap_lock"]
    wanted = (*locks.events, *(event for group in groups for event in GROUPS[group]))
    wanted += tuple(event for event in CONTENTION if options.watch and event not in wanted)
    wanted += NAMING
    layouts = read_layouts(tracefs.path, wanted)
    if options.watch and layouts.of(CONTENTION[0]) is None:
        raise UserError(
            f"Linux {os.uname().release} has no lock:contention_begin (it came with 5.19): "
            "leave out --watch"
        )
    for group in groups:
        if not any(layouts.of(event) for event in GROUPS[group]):
            raise UserError(
                f"this kernel has no events {group!r}: leave them out, or see 'zaplock doctor'"
            )
    return layouts


def _instance(
    stack: contextlib.ExitStack, tracefs: Tracefs, options: Options, ahead: Ahead | None
) -> Instance:
    size = options.buffer_kb or chosen_buffer_kb()
    with uninterrupted():
        made = ahead.take() if ahead else None
        instance = stack.enter_context(made or Instance(tracefs, buffer_kb=size))
    set_percent(instance, options.percent)
    return instance


def _watched_names(calls: Instance) -> tuple[tuple[Instance, str], ...]:
    """Let in the names of the target's tasks from now on; return what is on by that."""
    on = tuple((calls, event) for event in NAMING if calls.has(event))
    for _, event in on:
        calls.enable(event)
    calls.start()
    return on


Enable = Callable[[Instance, tuple[str, ...], str], None]


def _enabler(layouts: Layouts, later: list[tuple[Instance, str, str]] | None) -> Enable:
    """Give what switches on the events that this kernel has, or notes them for later."""

    def enable(instance: Instance, events: tuple[str, ...], condition: str) -> None:
        for event in events:
            if layouts.of(event) and later is None:
                instance.enable(event, condition)
            elif layouts.of(event) and later is not None:
                later.append((instance, event, condition))

    return enable


def _locks(
    instance: Instance,
    enable: Enable,
    options: Options,
    locks: LockEvents,
    learned: Mapping[int, LearnedMm],
) -> None:
    if options.watch:
        instance.enable(CONTENTION[0], queues_of(learned))
        instance.enable(CONTENTION[1], locks_of(learned))
    for group in options.groups:
        if group == "mmap_lock":
            for event in locks.events:
                enable(instance, (event,), locks.condition(event, mms_of(learned)))
        elif group in _OF_EVERYBODY or not options.pids:
            enable(instance, GROUPS[group], _NO_FILTER if options.watch else "")
        elif group == "syscalls":
            enable(instance, FOREIGN_CALLS, _NO_FILTER if options.watch else "")
    enable(instance, NAMING, "")


def _following(
    stack: contextlib.ExitStack,
    tracefs: Tracefs,
    options: Options,
    pids: set[int],
    ahead: Ahead | None,
) -> Instance:
    """Make the instance of the target's own events, which follows whatever its tasks start."""
    instance = _instance(stack, tracefs, options, ahead)
    instance.write("options/event-fork", "1")
    _follow(instance, pids)
    return instance


def _calls(instance: Instance, enable: Enable, options: Options) -> None:
    for group in options.groups:
        if group not in _OF_EVERYBODY:
            events = tuple(event for event in GROUPS[group] if event not in FOREIGN_CALLS)
            enable(instance, events, "")


def _sampler(
    tracefs: Tracefs,
    options: Options,
    locks: LockEvents,
    learned: Mapping[int, LearnedMm],
    pids: set[int],
    notes: list[str],
) -> StackSampler | None:
    """Make what takes the call stacks; a note, where the kernel gives them to nobody."""
    if not (options.stacks or options.kernel_stacks):
        return None
    seen = [event for event in SAMPLED_EVENTS if event != LOCKED or event in locks.events]
    if options.stacks and LOCKED not in seen:
        raise UserError("--stacks are taken by the mmap_lock tracepoints: leave one of them out")
    wanted = Wanted(
        ids={event: one for event in seen if (one := tracefs.event_id(event))},
        queue=queues_of(learned),
        mm=locked_of(locks, learned),
        tids=() if learned else tuple(sorted(tid for pid in pids for tid in threads_of(pid))),
        user=options.stacks,
        sleeps="sched" in options.groups,
    )
    try:
        return StackSampler(wanted)
    except OSError as error:
        if options.stacks:
            raise UserError(f"no stacks: {perf.why_not(error)}, or leave out --stacks") from None
        notes.append(f"without kernel stacks: {perf.why_not(error)}")
        return None


def _follow(instance: Instance, pids: set[int]) -> None:
    """Put every thread of these processes into the pid filter.

    A thread that is born while we list them is found by listing again; those that are born later
    come by `event-fork`.
    """
    followed: set[int] = set()
    while missing := {tid for pid in pids for tid in threads_of(pid)} - followed:
        instance.add("set_event_pid", " ".join(map(str, sorted(missing))))
        followed |= missing
