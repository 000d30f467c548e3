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
which costs nothing while nobody waits; `Capture.widen` switches the rest on (see `watch`).
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from zaplock.errors import UserError
from zaplock.recorder.buffers import Buffers, lost_in_kernel
from zaplock.recorder.layouts import Layouts, read_layouts
from zaplock.recorder.meanings import (
    CONTENTION,
    FOREIGN_CALLS,
    GROUPS,
    MMAP_LOCK,
    NAMING,
    USER_STACK,
)
from zaplock.recorder.targets import check_process, descendants_of, learn_mm, threads_of
from zaplock.recorder.tracefs import Instance, Tracefs, opened, sweep

DEFAULT_GROUPS = ("mmap_lock", "syscalls")
_OF_EVERYBODY = ("mmap_lock", "contention")
_NO_FILTER = "0"
_RWSEM = "(flags == 2 || flags == 4 || flags == 10 || flags == 12)"
"""LCB_F_READ or LCB_F_WRITE, alone or with LCB_F_RT (include/trace/events/lock.h): a rwsem."""
LOCK_WITHIN = 1024
"""The mmap_lock is the only rwsem in the first bytes of an mm_struct, wherever a kernel has it."""


@dataclass(frozen=True, slots=True)
class Options:
    """What to record. `pid` None is the whole system; `groups` are keys of `meanings.GROUPS`."""

    pid: int | None = None
    children: bool = False
    groups: tuple[str, ...] = DEFAULT_GROUPS
    buffer_kb: int | None = None
    percent: int = 25
    """How full a buffer is before the reader wakes up."""
    stacks: bool = False
    """Take the user stack of whoever gets the lock (see `stacks`)."""
    watch: bool = False
    """Begin with the contention of the target's lock alone; the rest waits for `Capture.widen`."""

    def check(self) -> None:
        """Raise UserError where a group is unknown or a number makes no sense."""
        for group in self.groups:
            if group not in GROUPS:
                raise UserError(f"no events {group!r}: choose among {', '.join(GROUPS)}")
        if self.buffer_kb is not None and self.buffer_kb < 64:
            raise UserError(f"a buffer of {self.buffer_kb} KiB is under 64 KiB: give a larger one")
        if self.watch and (self.pid is None or self.children):
            raise UserError("one process at a time can be watched: give -p PID, without --children")
        if not 0 <= self.percent <= 100:
            raise UserError(f"{self.percent} % of a buffer is not between 0 and 100")


def chosen_buffer_kb() -> int:
    """Choose the size of each CPU's buffer in KiB: 32 MiB, less where memory is short.

    All buffers together take at most a sixteenth of the memory.
    """
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    share = memory // 16 // (os.cpu_count() or 1)
    return max(1024, min(32 << 10, share >> 10))


@dataclass
class Capture:
    """A prepared recording: start it, read its buffers, stop it. Made by `capturing`."""

    layouts: Layouts
    buffers: Buffers
    instances: list[Instance]
    target_mm: int | None
    pids: set[int] = field(default_factory=set)
    """The target's process ids at the beginning; empty for the whole system."""
    percent: int = 25
    later: list[tuple[Instance, str, str]] = field(default_factory=list)
    """What `widen` switches on: instance, event, filter."""

    def start(self) -> None:
        """Let events in."""
        for instance in self.instances:
            instance.start()

    def widen(self) -> tuple[int, int]:
        """End the watch: switch on what was prepared, the lock events first.

        Return when (CLOCK_MONOTONIC) the first and the last of the lock events came on.
        """
        first_ns = last_ns = time.monotonic_ns()
        for instance, event, condition in self.later:
            instance.enable(event, condition)
            last_ns = time.monotonic_ns() if event in MMAP_LOCK else last_ns
        self.later.clear()
        for instance in self.instances:
            _set_percent(instance, self.percent)
        return first_ns, last_ns

    def follow_exec(self, pid: int) -> int | None:
        """Point the filters at the address space that a process has now; return it if it is new.

        None where it is the old one, has ended or can't be learned.
        """
        try:
            mm = learn_mm(Tracefs(root(self), private=False), pid)
        except UserError:
            return None
        if self.target_mm is None or mm == self.target_mm:
            return None
        old, self.target_mm = self.target_mm, mm
        for instance in self.instances:
            for event in MMAP_LOCK:
                if f"mm == {old:#x}" in instance.read(f"events/{event.replace(':', '/')}/filter"):
                    instance.filter(event, f"mm == {mm:#x}")
        return mm

    def stop(self) -> None:
        """Let no more events in."""
        for instance in self.instances:
            instance.stop()

    def lost_in_kernel(self) -> int:
        """Count the events that the kernel's own statistics call lost."""
        return sum(lost_in_kernel(instance) for instance in self.instances)


@contextlib.contextmanager
def capturing(options: Options) -> Iterator[Capture]:
    """Prepare a recording; afterwards everything that it switched on is off and gone.

    Raises UserError where the kernel or the target does not allow it.
    """
    options.check()
    if options.pid is not None:
        check_process(options.pid)
    with opened() as tracefs, contextlib.ExitStack() as stack:
        sweep(tracefs)
        layouts = _layouts(tracefs, options)
        one_mm = options.pid is not None and not options.children
        mm = learn_mm(tracefs, options.pid) if one_mm and options.pid is not None else None
        later: list[tuple[Instance, str, str]] = []
        enable = _enabler(layouts, later if options.watch else None)
        instances = [_locks(stack, tracefs, enable, options, mm)]
        pids: set[int] = set()
        if options.pid is not None:
            pids = descendants_of(options.pid) if options.children else {options.pid}
            instances.append(_calls(stack, tracefs, enable, options, pids))
        if options.stacks:
            instances.append(_stacks(stack, tracefs, enable, options, mm))
        buffers = Buffers(instances, layouts.page.page_size)
        stack.callback(buffers.close)
        capture = Capture(layouts, buffers, instances, mm, pids, options.percent, later)
        try:
            yield capture
        finally:
            capture.stop()


def _layouts(tracefs: Tracefs, options: Options) -> Layouts:
    wanted = tuple(event for group in options.groups for event in GROUPS[group])
    wanted += tuple(event for event in CONTENTION if options.watch and event not in wanted)
    wanted += NAMING + ((USER_STACK,) if options.stacks else ())
    layouts = read_layouts(tracefs.path, wanted)
    if "mmap_lock" in options.groups and layouts.of(MMAP_LOCK[0]) is None:
        raise UserError(
            f"Linux {os.uname().release} has no mmap_lock events (they came with 5.11): "
            "boot a newer kernel"
        )
    if options.watch and layouts.of(CONTENTION[0]) is None:
        raise UserError(
            f"Linux {os.uname().release} has no lock:contention_begin (it came with 5.19): "
            "leave out --watch"
        )
    for group in options.groups:
        if not any(layouts.of(event) for event in GROUPS[group]):
            raise UserError(
                f"this kernel has no events {group!r}: leave them out, or see 'zaplock doctor'"
            )
    return layouts


def _instance(stack: contextlib.ExitStack, tracefs: Tracefs, options: Options) -> Instance:
    size = options.buffer_kb or chosen_buffer_kb()
    instance = stack.enter_context(Instance(tracefs, buffer_kb=size))
    _set_percent(instance, 0 if options.watch else options.percent)
    return instance


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


def _locks(
    stack: contextlib.ExitStack,
    tracefs: Tracefs,
    enable: Enable,
    options: Options,
    mm: int | None,
) -> Instance:
    instance = _instance(stack, tracefs, options)
    for event in NAMING:
        if instance.has(event):
            instance.enable(event)
    if options.watch and mm is not None:
        near = f"lock_addr >= {mm:#x} && lock_addr < {mm + LOCK_WITHIN:#x}"
        instance.enable(CONTENTION[0], f"{_RWSEM} && {near}")
        instance.enable(CONTENTION[1], near)
    for group in options.groups:
        if group == "mmap_lock":
            events = tuple(one for one in MMAP_LOCK if not (options.stacks and one == MMAP_LOCK[1]))
            enable(instance, events, f"mm == {mm:#x}" if mm else "")
        elif group in _OF_EVERYBODY or options.pid is None:
            enable(instance, GROUPS[group], _NO_FILTER if options.watch else "")
        elif group == "syscalls":
            enable(instance, FOREIGN_CALLS, _NO_FILTER if options.watch else "")
    return instance


def _calls(
    stack: contextlib.ExitStack,
    tracefs: Tracefs,
    enable: Enable,
    options: Options,
    pids: set[int],
) -> Instance:
    instance = _instance(stack, tracefs, options)
    instance.write("options/event-fork", "1")
    follow(instance, pids)
    for group in options.groups:
        if group not in _OF_EVERYBODY:
            events = tuple(event for event in GROUPS[group] if event not in FOREIGN_CALLS)
            enable(instance, events, "")
    return instance


def _stacks(
    stack: contextlib.ExitStack,
    tracefs: Tracefs,
    enable: Enable,
    options: Options,
    mm: int | None,
) -> Instance:
    """Make a third instance, since the option takes a stack at every event of its instance."""
    instance = _instance(stack, tracefs, options)
    try:
        instance.write("options/userstacktrace", "1")
    except OSError:
        raise UserError(
            "this kernel takes no user stacks (CONFIG_USER_STACKTRACE_SUPPORT): leave out --stacks"
        ) from None
    # So this event is left out of the other instance.
    enable(instance, MMAP_LOCK[1:2], f"mm == {mm:#x}" if mm else "")
    return instance


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
