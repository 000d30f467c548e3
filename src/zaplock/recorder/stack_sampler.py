"""Take call stacks while a recording runs.

Always, where the kernel gives perf events: a clock samples whoever is on a cpu (its kernel stack),
and whoever joins the queue of a rwsem gives its own. Neither costs a task anything that holds the
lock for less than a tick. With the scheduling events who goes to sleep, which is what one does in
a queue, or has to leave its cpu to another, and with `--stacks` everybody who gets the lock, with
the program's stack: these cost something each time (docs/recording.md). `stack_keeper` keeps those
that tell of a hold or a wait.

CPUs come and go meanwhile. The events of one that went are dead, also when it is back: it has new
ones then.

Not covered: a hold shorter than a tick that never leaves its cpu has no stack without `--stacks`; a
CPU that goes and is back between two looks, 0.1 s apart.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace

from zaplock.recorder import perf
from zaplock.recorder.perf import Event, Ring
from zaplock.recorder.scheduling import join_first
from zaplock.recorder.stack_samples import CodeEvent, Sample, StackDecoder
from zaplock.trace.stack_reasons import StackReason

QUEUED, LOCKED, SLEEPS = (
    "lock:contention_begin",
    "mmap_lock:mmap_lock_acquire_returned",
    "sched:sched_switch",
)
SAMPLED_EVENTS = (QUEUED, LOCKED, SLEEPS)
TICK_NS = 1_000_000
_TICKS_PER_SECOND = 8_000
"""So many samples a second at most, of all cpus together."""
_ASLEEP = "prev_state & 2"
"""TASK_UNINTERRUPTIBLE, as whoever holds a lock sleeps; other sleeps are far more frequent."""
_READY = "prev_state == 0 || prev_state >= 256"
"""TASK_RUNNING: it gave its cpu up; TASK_REPORT_MAX (4.14): it was taken from it."""
_RING, _LARGE_RING = 1 << 20, 8 << 20
_PAUSE_S = 0.1
_MOST_BYTES = 256 << 20
_MOST_EVENTS = 8_192
"""A target's threads get an event each on each cpu, up to so many; of more, everybody has one."""
_EVERYBODY = (-1,)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to sample. `ids` has the numbers of those of `SAMPLED_EVENTS` that this kernel has.

    `queue` is a condition on contention, `mm` one on lock events ("": none); `tids` are the threads
    of a target whose children are recorded as well, empty for another target. `user` is --stacks,
    `sleeps` the scheduling events.
    """

    ids: dict[str, int]
    queue: str = ""
    mm: str = ""
    tids: tuple[int, ...] = ()
    user: bool = False
    sleeps: bool = False


@contextlib.contextmanager
def _unless_off() -> Iterator[None]:
    """Pass over a CPU that has just gone off."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise


@dataclass(frozen=True, slots=True)
class _Source:
    """One kind of sample: why, of what, of whom, and where."""

    reason: StackReason
    event: Event
    condition: str = ""
    tids: tuple[int, ...] = _EVERYBODY


def _sources(wanted: Wanted, cpus: int) -> Iterator[_Source]:
    caller = wanted.user and perf.caller_can_be_had()
    plain = Event(
        perf.TRACEPOINT,
        0,
        flags=0 if wanted.user else perf.NO_USER_CHAIN,
        sample=perf.PLAIN | (perf.REGS_USER | perf.STACK_USER) * caller,
        stack_bytes=8 * caller,
    )
    tick_ns = max(TICK_NS, 10**9 * cpus // _TICKS_PER_SECOND)
    flags = plain.flags | perf.EXCLUDE_IDLE
    clock = replace(plain, kind=perf.SOFTWARE, number=perf.CPU_CLOCK, period=tick_ns, flags=flags)
    yield _Source(StackReason.SAMPLED, clock)
    sleeps = wanted.sleeps and SLEEPS in wanted.ids
    if QUEUED in wanted.ids and not sleeps:  # whoever queues goes to sleep there
        event = replace(plain, number=wanted.ids[QUEUED])
        yield _Source(StackReason.QUEUED, event, wanted.queue)
    if sleeps:
        event = replace(plain, number=wanted.ids[SLEEPS])
        yield _Source(StackReason.SLEEPS, event, _ASLEEP)
        yield _Source(StackReason.READY, event, _READY)
    if wanted.user and LOCKED in wanted.ids:
        own = 0 < len(wanted.tids) * cpus <= _MOST_EVENTS
        flags = plain.flags | perf.NO_KERNEL_CHAIN | (perf.INHERIT if own else 0)
        event = replace(plain, number=wanted.ids[LOCKED], flags=flags)
        yield _Source(StackReason.LOCKED, event, wanted.mm, wanted.tids if own else _EVERYBODY)


class StackSampler:
    """Take samples between `start` and `stop`; `take` gives what came in meanwhile."""

    def __init__(self, wanted: Wanted) -> None:
        """Open the events. Raises OSError where the kernel gives none."""
        self._wanted = wanted
        self._rings: list[Ring] = []
        self._reasons: dict[int, StackReason] = {}
        self._raw: list[bytes] = []
        self._size = 0
        self._mutex = threading.Lock()
        self._changing = threading.Lock()  # which rings there are, their events, who drains them
        self._ended = threading.Event()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.lost = 0
        """Samples that the kernel had no room for, and those that nobody took in time."""
        try:
            self._open()
        except BaseException:
            self.close()
            raise
        self._decoder = StackDecoder(self._reasons, self.callers)

    def _open(self) -> None:
        perf.allow_many_files()
        wanted, cpus = self._wanted, perf.online_cpus()
        self._cpus = len(cpus)
        code = perf.MMAP | perf.MMAP2 | perf.COMM | perf.COMM_EXEC | perf.TASK
        flags = perf.SAMPLE_ID_ALL | (code if wanted.user else 0)
        self._owner = Event(perf.SOFTWARE, perf.DUMMY, flags=flags)
        for cpu in cpus:
            with _unless_off():
                self._open_on(cpu)

    def _open_on(self, cpu: int) -> Ring:
        ring = Ring(cpu, self._owner, _LARGE_RING if self._wanted.user else _RING)
        self._rings.append(ring)
        self._add(ring, tuple(StackReason))
        return ring

    def _follow_cpus(self) -> None:
        """Have rings on the CPUs that are on now, and on no others."""
        online = perf.online_cpus()
        if self.cpus == set(online):
            return
        with self._changing:
            for ring in [ring for ring in self._rings if ring.cpu not in online]:
                self._drain(ring)
                self._rings.remove(ring)
                ring.close()
            # The target may have other threads by now than those that are known.
            self._wanted = replace(self._wanted, tids=())
            for cpu in set(online) - self.cpus:
                with contextlib.suppress(OSError):  # it is off again, or descriptors ran out
                    self._open_on(cpu).enable()

    def _add(self, ring: Ring, reasons: tuple[StackReason, ...]) -> None:
        for source in _sources(self._wanted, self._cpus):
            if source.reason in reasons:
                ids = ring.add(source.event, source.tids, source.condition)
                self._reasons.update(dict.fromkeys(ids, source.reason))

    @property
    def cpus(self) -> set[int]:
        """The CPUs on which samples are taken now."""
        return {ring.cpu for ring in list(self._rings)}

    def start(self) -> None:
        """Let samples in."""
        for ring in self._rings:
            ring.enable()
        self._thread.start()

    def follow(self, mm: str, queue: str) -> None:
        """Sample another address space's lock: the target has called exec."""
        self._wanted = replace(self._wanted, mm=mm, queue=queue)
        changed = (StackReason.LOCKED, StackReason.QUEUED)
        old = {number for number, reason in self._reasons.items() if reason in changed}
        with self._changing:
            for ring in self._rings:
                ring.remove(old)
                with _unless_off():
                    self._add(ring, changed)
                    ring.enable()

    def _run(self) -> None:
        while not self._ended.is_set():
            perf.wait_for(self._rings, _PAUSE_S, self._wake)
            self._drain_all()
            self._follow_cpus()

    def _drain_all(self) -> None:
        with self._changing:
            for ring in self._rings:
                self._drain(ring)

    def _drain(self, ring: Ring) -> None:
        taken = ring.drain()
        with self._mutex:
            if self._size + len(taken) <= _MOST_BYTES:
                self._raw.append(taken)
                self._size += len(taken)
            else:
                self.lost += 1

    def take_raw(self) -> list[bytes]:
        """Give all that there is by now and wasn't given before, as the kernel wrote it.

        A sample that came only when the lock events of its time are judged would be left out.
        """
        self._drain_all()  # the thread sees to it that no ring gets full, and may come late
        with self._mutex:
            raw, self._raw, self._size = self._raw, [], 0
        return raw

    @property
    def reasons(self) -> dict[int, StackReason]:
        """Why the event of each number takes its samples; it grows."""
        return dict(self._reasons)

    @property
    def callers(self) -> bool:
        """Whether a sample has the word at the program's stack pointer."""
        return self._wanted.user and perf.caller_can_be_had()

    def take(self) -> tuple[list[Sample], list[CodeEvent]]:
        """Give the samples that came in since, and what processes did to their code."""
        samples: list[Sample] = []
        code: list[CodeEvent] = []
        for part in self.take_raw():
            decoded = self._decoder.decode(part)
            samples += decoded.samples
            code += decoded.code
            self.lost += decoded.lost
        return samples, code

    def stop(self) -> None:
        """Let no more samples in; what has come in can still be taken. Twice does no harm."""
        if self._ended.is_set():
            return
        with self._changing:
            for ring in self._rings:
                ring.disable()
            self._ended.set()
        if self._thread.is_alive():
            os.eventfd_write(self._wake, 1)
            join_first(self._thread)
            self._drain_all()

    def close(self) -> None:
        """End the events. Twice does no harm."""
        self.stop()
        with self._changing:
            while self._rings:
                self._rings.pop().close()
        if self._wake >= 0:
            os.close(self._wake)
            self._wake = -1
