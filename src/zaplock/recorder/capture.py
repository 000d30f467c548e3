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
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType

from zaplock.errors import UserError, no_such
from zaplock.recorder import perf
from zaplock.recorder.ahead import Ahead, chosen_buffer_kb
from zaplock.recorder.buffers import Buffers, lost_in_kernel
from zaplock.recorder.layouts import Layouts, read_layouts
from zaplock.recorder.lock_events import (
    AUTO,
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
from zaplock.recorder.stack_sampler import LOCKED, SAMPLED_EVENTS, StackSampler, Wanted
from zaplock.recorder.targets import (
    LearnedMm,
    check_namespace,
    check_process,
    descendants_of,
    learn_mm,
    threads_of,
)
from zaplock.recorder.tracefs import Instance, Tracefs, opened, sweep
from zaplock.recorder.uninterrupted import surely, uninterrupted
from zaplock.recorder.urgent import going_first, join_first, start_first

DEFAULT_GROUPS = ("mmap_lock", "syscalls")
_OF_EVERYBODY = ("mmap_lock", "contention")
_NO_FILTER = "0"
_HALF = 50
"""How full a buffer gets before it wakes a watch with what is not urgent."""
RWSEM = "(flags == 2 || flags == 4 || flags == 10 || flags == 12)"
"""LCB_F_READ or LCB_F_WRITE, alone or with LCB_F_RT (include/trace/events/lock.h): a rwsem."""
MOST_MMS = 32
"""Of more processes the kernel is not asked to filter by mm: that is done afterwards."""
LOCK_WITHIN = 1024
"""The mmap_lock is the only rwsem in the first bytes of an mm_struct, wherever a kernel has it."""


@dataclass(frozen=True, slots=True)
class Options:
    """What to record. No `pids` is the whole system; `groups` are keys of `meanings.GROUPS`."""

    pids: tuple[int, ...] = ()
    children: bool = False
    groups: tuple[str, ...] = DEFAULT_GROUPS
    buffer_kb: int | None = None
    percent: int = 25
    """How full a buffer is before the reader wakes up."""
    kernel_stacks: bool = False
    """Sample kernel stacks of those who hold or wait (see `stack_sampler`)."""
    stacks: bool = False
    """And the program's stack, of everybody who gets the lock."""
    watch: bool = False
    """Begin with the contention of the target's lock alone; the rest waits for `Capture.widen`."""
    by: str = AUTO
    """How lock events are seen: one of `lock_events.WAYS`."""

    def check(self) -> None:
        """Raise UserError where a group is unknown or a number makes no sense."""
        for group in self.groups:
            if group not in GROUPS:
                raise no_such("events", group, GROUPS)
        if self.buffer_kb is not None and self.buffer_kb < 64:
            raise UserError(f"a buffer of {self.buffer_kb} KiB is under 64 KiB: give a larger one")
        if self.watch and (not 1 <= len(self.pids) <= MOST_MMS or self.children):
            raise UserError(
                f"1 to {MOST_MMS} processes can be watched, without their children: "
                f"{len(self.pids)} are asked for"
            )
        if not 0 <= self.percent <= 100:
            raise UserError(f"{self.percent} % of a buffer is not between 0 and 100")


@dataclass
class Capture:
    """A prepared recording: start it, read its buffers, stop it. Made by `capturing`."""

    layouts: Layouts
    buffers: Buffers
    instances: list[Instance]
    learned: dict[int, LearnedMm]
    """The mm of each process, and our own read of it, which may still wait for its lock; empty
    where the kernel doesn't filter by mm."""
    pids: set[int] = field(default_factory=set)
    """The target's process ids at the beginning; empty for the whole system."""
    percent: int = 25
    later: list[tuple[Instance, str, str]] = field(default_factory=list)
    """What `widen` switches on: instance, event, filter."""
    _widened: list[tuple[Instance, str, str]] = field(default_factory=list, init=False)
    only_watching: tuple[tuple[Instance, str], ...] = ()
    """What is on only while it watches: instance, event."""
    sampler: StackSampler | None = None
    notes: tuple[str, ...] = ()
    """What could not be had, and why."""
    locks: LockEvents = BY_TRACEPOINTS
    """The events that tell of mmap_locks."""
    semaphores: set[int] = field(default_factory=set)
    """The address spaces that are known where probes name them by their semaphore; it grows."""

    on_ns: int = 0
    """From when on every instance let events in (CLOCK_MONOTONIC), and until when all of them did:
    one cannot be switched together with another, and on a busy machine half a second may lie
    between two. What one of them has beyond that is left out, since its counterpart is missing."""
    off_ns: int | None = None
    clear: Callable[[], None] = lambda: None
    """Begin to take everything away, in a thread, once all has been read: it takes the kernel a
    fifth of a second, in which what was recorded can be written. The end of `capturing` waits."""

    @property
    def target_mm(self) -> int | None:
        """The mm that is recorded, where it is one."""
        return (
            next((one.mm for one in self.learned.values()), None)
            if len(self.learned) == 1
            else None
        )

    def start(self) -> None:
        """Let events in."""
        if self.sampler and not self.later:
            self.sampler.start()
        for instance in self.instances:
            instance.start()
        self.on_ns = time.monotonic_ns()

    def widen(self) -> int:
        """End the watch: switch on what was prepared, the lock events first.

        Return when (CLOCK_MONOTONIC) the last of the lock events came on.
        """
        on_ns = time.monotonic_ns()
        for instance, event, condition in self.later:
            instance.enable(event, condition)
            on_ns = time.monotonic_ns() if event in self.locks.events else on_ns
        for instance, event in self.only_watching:
            instance.disable(event)
        if self.sampler and self.later:
            self.sampler.start()
        self._widened, self.later = self.later, []
        for instance in self.instances:
            _set_percent(instance, self.percent)
        return on_ns

    def narrow(self) -> None:
        """Go back to the watch: switch off what `widen` switched on, to be widened again.

        Without stacks: their sampler doesn't start twice.
        """
        assert self.sampler is None
        for instance, event in self.only_watching:
            instance.enable(event)
        for instance, event, _ in self._widened:
            instance.disable(event)
        self.later, self._widened = self._widened, []
        _wake_for_locks_alone(self.instances)

    def follow_exec(self, pid: int) -> int | None:
        """Point the filters at the address space that a process has now; return it if it is new.

        None where it is the old one, has ended or can't be learned.
        """
        if pid not in self.learned:
            return None
        try:
            learned = self.learn(pid)
        except UserError:
            return None
        if learned.mm == self.learned[pid].mm:
            return None
        before = _mms(self.learned)
        self.learned[pid] = learned
        for event in self.locks.named:
            filtered = self.instances[0].read(f"events/{event.replace(':', '/')}/filter")
            if self.locks.condition(event, before) in filtered:
                now = self.locks.condition(event, _mms(self.learned))
                self.instances[0].filter(event, now)
        if self.sampler:
            self.sampler.follow(_locked(self.locks, self.learned), _queues_of(self.learned))
        return learned.mm

    def learn(self, pid: int, within: Instance | None = None) -> LearnedMm:
        """Find the address space of a process, as lock events name it; see `targets.learn_mm`."""
        found = learn_mm(Tracefs(root(self), private=False), pid, within, self.locks)
        self.semaphores.add(found.mm)
        return found

    def stop(self) -> None:
        """Let no more events in. Twice does no harm."""
        if self.off_ns is None:
            self.off_ns = time.monotonic_ns()
        for instance in self.instances:
            instance.stop()
        if self.sampler:
            self.sampler.stop()

    def lost_in_kernel(self) -> int:
        """Count the events that the kernel's own statistics call lost."""
        return sum(lost_in_kernel(instance) for instance in self.instances)


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
    with opened() as tracefs, _Closing() as closing:
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
            _wake_for_locks_alone(instances)
        notes += _ways_notes(options, way, learned)
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


class _Closing:
    """A stack whose callbacks are all called at the end of the block, whatever signal comes.

    They may be called before, in a thread (`begin`); then the end of the block waits for it.
    """

    def __init__(self) -> None:
        self.stack = contextlib.ExitStack()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def begin(self) -> None:
        """Call them from now on, in a thread."""
        thread = threading.Thread(target=self._run, daemon=True)
        start_first(thread)
        self._thread = thread

    def _run(self) -> None:
        try:
            self.stack.close()
        except BaseException as error:
            self._error = error

    def _end(self) -> None:
        if self._thread:
            join_first(self._thread)
        self.stack.close()

    def __enter__(self) -> _Closing:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        with going_first():
            surely(self._end)
        if self._error:
            raise self._error


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
    _set_percent(instance, options.percent)
    return instance


def _wake_for_locks_alone(instances: list[Instance]) -> None:
    """Let a watch sleep until somebody queues for a lock; the rest wakes it before it is lost."""
    for instance in instances:
        _set_percent(instance, 0 if instance is instances[0] else _HALF)


def _watched_names(calls: Instance) -> tuple[tuple[Instance, str], ...]:
    """Let in the names of the target's tasks from now on; return what is on by that."""
    on = tuple((calls, event) for event in NAMING if calls.has(event))
    for _, event in on:
        calls.enable(event)
    calls.start()
    return on


def _set_percent(instance: Instance, percent: int) -> None:
    with contextlib.suppress(OSError):  # older than 4.20: every page wakes the reader
        instance.write("buffer_percent", str(percent))


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


def _mms(learned: Mapping[int, LearnedMm]) -> list[int]:
    return [one.mm for one in learned.values()]


def _locked(locks: LockEvents, learned: Mapping[int, LearnedMm]) -> str:
    """Make the filter of the event that tells who got a lock; "" where every lock is recorded."""
    return locks.condition(LOCKED, _mms(learned))


def _locks(
    instance: Instance,
    enable: Enable,
    options: Options,
    locks: LockEvents,
    learned: Mapping[int, LearnedMm],
) -> None:
    if options.watch:
        near = " || ".join(f"({_near(one.mm)})" for one in learned.values())
        instance.enable(CONTENTION[0], _queues_of(learned))
        instance.enable(CONTENTION[1], near)
    for group in options.groups:
        if group == "mmap_lock":
            for event in locks.events:
                enable(instance, (event,), locks.condition(event, _mms(learned)))
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
    follow(instance, pids)
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
        queue=_queues_of(learned),
        mm=_locked(locks, learned),
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


def _near(mm: int) -> str:
    return f"lock_addr >= {mm:#x} && lock_addr < {mm + LOCK_WITHIN:#x}"


def _queues_of(learned: Mapping[int, LearnedMm]) -> str:
    """Make the filter that lets through waits for these address spaces' locks; "" for all."""
    near = " || ".join(f"({_near(one.mm)})" for one in learned.values())
    return f"{RWSEM} && ({near})" if near else RWSEM


def follow(instance: Instance, pids: set[int]) -> None:
    """Put every thread of these processes into the pid filter.

    A thread that is born while we list them is found by listing again; those that are born later
    come by `event-fork`.
    """
    followed: set[int] = set()
    while missing := {tid for pid in pids for tid in threads_of(pid)} - followed:
        instance.add("set_event_pid", " ".join(map(str, sorted(missing))))
        followed |= missing


def root(capture: Capture) -> Path:
    """Where the instances' tracefs is."""
    return capture.instances[0].path.parent.parent
