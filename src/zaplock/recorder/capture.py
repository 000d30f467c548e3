"""A prepared recording: let events in, narrow or widen what is let in, and stop.

What is prepared, and how, is `capturing`'s to say.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from zaplock.errors import UserError
from zaplock.recorder.buffers import Buffers, lost_in_kernel, seen_in_kernel
from zaplock.recorder.filters import locked_of, mms_of, queues_of
from zaplock.recorder.layouts import Layouts
from zaplock.recorder.lock_events import BY_TRACEPOINTS, LockEvents
from zaplock.recorder.stack_sampler import StackSampler
from zaplock.recorder.targets import LearnedMm, learn_mm
from zaplock.recorder.tracefs import Instance, Tracefs

_HALF = 50
"""How full a buffer gets before it wakes a watch with what is not urgent."""


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
            set_percent(instance, self.percent)
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
        wake_for_locks_alone(self.instances)

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
        before = mms_of(self.learned)
        self.learned[pid] = learned
        for event in self.locks.named:
            filtered = self.instances[0].read(f"events/{event.replace(':', '/')}/filter")
            if self.locks.condition(event, before) in filtered:
                now = self.locks.condition(event, mms_of(self.learned))
                self.instances[0].filter(event, now)
        if self.sampler:
            self.sampler.follow(locked_of(self.locks, self.learned), queues_of(self.learned))
        return learned.mm

    def learn(self, pid: int) -> LearnedMm:
        """Find the address space of a process, as lock events name it; see `targets.learn_mm`."""
        tracefs = Tracefs(self.instances[0].path.parent.parent, private=False)
        found = learn_mm(tracefs, pid, locks=self.locks)
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

    def seen_in_kernel(self) -> int:
        """Count the events that the kernel's own statistics have, names of tasks among them."""
        return sum(seen_in_kernel(instance) for instance in self.instances)

    def lost_in_kernel(self) -> int:
        """Count the events that the kernel's own statistics call lost."""
        return sum(lost_in_kernel(instance) for instance in self.instances)


def wake_for_locks_alone(instances: list[Instance]) -> None:
    """Let a watch sleep until somebody queues for a lock; the rest wakes it before it is lost."""
    for instance in instances:
        set_percent(instance, 0 if instance is instances[0] else _HALF)


def set_percent(instance: Instance, percent: int) -> None:
    """Say how full a buffer gets before it wakes its reader."""
    with contextlib.suppress(OSError):  # older than 4.20: every page wakes the reader
        instance.write("buffer_percent", str(percent))
