"""Look at what tasks are doing at this moment, without any trace event.

A stall that began before the recording has no event that tells of its beginning. /proc does: of
each thread of the target, of every task that sleeps without being interruptible (state D) and of
every one that runs, its kernel stack, its system call with the arguments, and when it went to
sleep. None of these files takes the mmap_lock. What the stacks mean is in `trace.kernel_stacks`.

A task that is on a cpu shows no stack. So the look is made from that same cpu, before others: while
we run there it doesn't, and its stack holds still (some 50 us).

Since when: /proc/PID/sched tells by a cpu's task clock when the task last ran (CONFIG_SCHED_DEBUG;
always from 6.15 on). Our own last run, read on that cpu just now, says how that clock and
CLOCK_MONOTONIC differ. The task clock leaves out stolen time, so a sleep is at least so long.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from zaplock.recorder.control_groups import Freezer
from zaplock.recorder.cpu_visits import CpuVisits, visiting
from zaplock.recorder.subjects import Subjects
from zaplock.trace.kernel_functions import DUMPED, FROZEN, HALTED, ON_OTHERS, SERVES_FUSE, WRITE
from zaplock.trace.kernel_stacks import advice_of, files_of, functions, has_mappers, meaning
from zaplock.trace.madvise import ADVISING, NOT_SEEN
from zaplock.trace.recorded_tasks import FoundTask

FOREIGN_PATIENCE_S = 0.25
"""Other processes are looked at for so long; then the rest of them is left out, and told."""

_OFTEN = 3
"""A running task may slip away to another cpu while we come to its own: so many tries."""
_EXEC_START = re.compile(r"se\.exec_start\s*:\s*([\d.]+)")
_TICK_NS = 20_000_000
"""The birth of a task is told in hundredths of a second: so much earlier is no error."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A found task, its process, and the process whose address space it works on (0: unknown).

    `perhaps`: it may have the lock, shared (`StackMeaning.perhaps`).
    """

    task: FoundTask
    pid: int
    subject: int
    perhaps: bool = False


NOT_WHOLE = (
    "there was no time to look at every process when this began: who of the others had or wanted "
    "the lock before may be missing"
)
"""What to say of a look that was not whole."""


STACKS_DENIED = (
    "the kernel stacks of the tasks may not be read here, so who had or wanted the lock before "
    "this began is not known: run as root outside of a user namespace, with CAP_SYS_ADMIN and "
    "CAP_SYS_PTRACE"
)
"""What to say where `stacks_are_denied`."""


@dataclass(frozen=True, slots=True)
class TaskSnapshot:
    """What was found. `whole` is False where there was no time to look at every process."""

    seen: tuple[Seen, ...]
    whole: bool


def look(pids: Iterable[int], *, hidden: Iterable[int] = (), foreign: bool = True) -> TaskSnapshot:
    """Look at every thread of `pids`, and (`foreign`) at everybody else who is in state D or R.

    `hidden` are threads of ours that are not to be told of.
    """
    return visiting(lambda on: _look(on, set(pids), set(hidden), foreign))


def sleeping_holders(pids: Iterable[int], *, hidden: Iterable[int] = ()) -> tuple[Seen, ...]:
    """Find who else than `pids` has a lock and sleeps meanwhile so that a signal wakes it.

    A reader of another process's memory does while a file system (FUSE) brings it a page. `look`
    leaves such sleepers out, since nearly every task of a machine is one.
    """
    return visiting(lambda on: tuple(_sleeping_holders(on, set(pids), set(hidden))))


def _sleeping_holders(on: CpuVisits, pids: set[int], hidden: set[int]) -> Iterator[Seen]:
    by = _Means(on)
    end = time.monotonic() + FOREIGN_PATIENCE_S
    for pid in _processes():
        for tid in () if pid in pids else _threads(pid):
            if time.monotonic() > end:
                return
            if tid in hidden or _state(f"/proc/{pid}/task/{tid}")[0] != "S":
                continue
            one = _seen(pid, tid, by, every=True)
            if one and one.task.does == "holds":
                yield one


def fuse_servers() -> tuple[Seen, ...]:
    """Find the first threads of the processes that serve FUSE file systems, and what keeps them."""
    return visiting(lambda on: tuple(_fuse_servers(_Means(on))))


def _fuse_servers(by: _Means) -> Iterator[Seen]:
    for pid in _processes():
        if not _has_open(pid, "/dev/fuse"):
            continue
        seen = [one for tid in _threads(pid) if (one := _seen(pid, tid, by, every=True))]
        halted = [one.task.operation for one in seen if one.task.operation in HALTED.values()]
        waits = [one for one in seen if one.task.does == "waits" and one.subject == pid]
        kept = halted[0] if halted else "waiting for its own mmap_lock" if waits else ""
        operation = f"{SERVES_FUSE}, {kept}" if kept else SERVES_FUSE
        now_ns, (state, _) = time.monotonic_ns(), _state(f"/proc/{pid}")
        yield Seen(FoundTask(pid, now_ns, state, "", operation, ()), pid, pid)


def _has_open(pid: int, path: str) -> bool:
    try:
        files = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return False
    for file in files:
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/{pid}/fd/{file}") == path:
                return True
    return False


def _look(on: CpuVisits, pids: set[int], hidden: set[int], foreign: bool) -> TaskSnapshot:
    by = _Means(on)
    hidden.add(threading.get_native_id())
    seen = [
        one
        for pid in sorted(pids)
        for tid in _threads(pid)
        if tid not in hidden and (one := _seen(pid, tid, by, every=True))
    ]
    end = time.monotonic() + FOREIGN_PATIENCE_S
    for pid in _processes() if foreign else ():
        if time.monotonic() > end:
            return TaskSnapshot(tuple(seen), whole=False)
        if pid in pids:
            continue
        for tid in _threads(pid):
            if tid not in hidden and (one := _seen(pid, tid, by, every=False)):
                seen.append(one)
    return TaskSnapshot(tuple(seen), whole=True)


def stacks_are_denied(pids: Iterable[int]) -> bool:
    """Say whether the kernel stacks of these processes may not be read.

    It takes CAP_SYS_ADMIN outside of all user namespaces, and the right to trace the process.
    """
    return any(_is_denied(f"/proc/{pid}/stack") for pid in pids)


def _is_denied(path: str) -> bool:
    try:
        with open(path) as file:
            file.read()
    except PermissionError:
        return True
    except OSError:  # it has ended, or this kernel has no such file
        return False
    return False


def version(release: str) -> tuple[int, int]:
    """Read a kernel's version; one that can't be read is taken for a new one."""
    found = re.match(r"(\d+)\.(\d+)", release)
    return (int(found[1]), int(found[2])) if found else (99, 0)


def _processes() -> Iterator[int]:
    own = os.getpid()
    with os.scandir("/proc") as entries:
        for entry in entries:
            if entry.name.isdigit() and int(entry.name) != own:
                yield int(entry.name)


def _threads(pid: int) -> list[int]:
    try:
        return sorted(int(name) for name in os.listdir(f"/proc/{pid}/task"))
    except OSError:
        return []


def _seen(pid: int, tid: int, by: _Means, *, every: bool) -> Seen | None:
    """Look at one task; None where it is gone or there is nothing to tell of it."""
    path = f"/proc/{pid}/task/{tid}"
    state, cpu = _state(path)
    if state not in ("D", "R") and not (every and state in ("S", "T", "t", "I")):
        return None
    stack = functions(_read(path, "stack"))
    for _ in range(_OFTEN if state == "R" and not stack else 0):
        by.cpus.go_to(cpu)
        stack = functions(_read(path, "stack"))
        if stack:
            break
        state, cpu = _state(path)
    now_ns = time.monotonic_ns()
    dumps_core = bool(DUMPED.intersection(stack)) and _dumps_core(path)
    alone = "begin_new_exec" in stack and len(_threads(pid)) == 1
    means = meaning(
        stack, asleep=state in "DSI", kernel=by.kernel, dumps_core=dumps_core, alone=alone
    )
    if not stack or not (means.does or state == "D" or means.operation or means.perhaps):
        return None
    if not every and not means.does and state != "D" and not has_mappers(stack):
        return None
    wchan, call = _read(path, "wchan"), _read(path, "syscall").split()
    arguments = _arguments(call)
    files = files_of(stack)
    name, subject, ranged = by.subjects.work(path, pid, means.operation, arguments, files)
    if state == "D" and not means.does and name not in HALTED.values() and by.freezer.keeps(path):
        name = FROZEN
    subject = 0 if name in ON_OTHERS else subject
    if name in ADVISING and not arguments:
        advice = advice_of(stack)
        ranged = (0, 0, NOT_SEEN if advice is None else advice)
    since_ns = by.cpus.since(path, cpu) if state in "DSTtI" else 0
    exclusive = means.mode == WRITE or (not means.mode and name not in _SHARED_ADVICE)
    address, length, detail = ranged
    task = FoundTask(
        tid,
        now_ns,
        state,
        "" if wchan == "0" else wchan,
        name,
        stack,
        means.does,
        exclusive if means.does else False,
        0,
        min(since_ns, now_ns),
        address,
        length,
        detail,
    )
    return Seen(task, pid, subject, means.perhaps)


_SHARED_ADVICE = frozenset({"madvise", "process_madvise"})


def _state(path: str) -> tuple[str, int]:
    """Return a task's state and the cpu that it is or was on."""
    fields = _read(path, "stat").rpartition(")")[2].split()
    return (fields[0], int(fields[36])) if len(fields) > 36 else ("X", 0)


def _dumps_core(path: str) -> bool:
    """Say whether the core of a task's process is being written (told from Linux 4.15 on)."""
    return "\nCoreDumping:\t1" in _read(path, "status")


def _read(path: str, name: str) -> str:
    try:
        with open(f"{path}/{name}", errors="replace") as file:
            return file.read().strip()
    except OSError:  # gone, or this kernel has no such file
        return ""


def _arguments(call: list[str]) -> tuple[int, ...]:
    """Read /proc/PID/syscall: the six arguments; none for a task that runs or is in no call."""
    return tuple(int(word, 16) for word in call[1:7]) if len(call) == 9 else ()


class _Means:
    """What a look is made with; `on` is what takes it to the cpus."""

    def __init__(self, on: CpuVisits) -> None:
        self.cpus, self.subjects, self.freezer = _Cpus(on), Subjects(), Freezer()
        self.kernel = version(os.uname().release)


class _Cpus:
    """This thread, on one cpu after the other; what each one's task clock is ahead or behind."""

    def __init__(self, on: CpuVisits) -> None:
        self.go_to = on.go_to
        self._offset_ns: dict[int, int | None] = {}

    def since(self, path: str, cpu: int) -> int:
        """Return when (CLOCK_MONOTONIC) a sleeping task last ran, 0 where that isn't known."""
        last = _exec_start_ns(path)
        if last is None:
            return 0
        if cpu not in self._offset_ns:
            self._offset_ns[cpu] = self._ahead_ns(cpu)
        offset = self._offset_ns[cpu]
        since_ns = last + offset if offset is not None else 0
        # A new thread's clock may still stand at nought: before its birth it did not sleep.
        return since_ns if since_ns >= born_ns(_read(path, "stat")) - _TICK_NS else 0

    def _ahead_ns(self, cpu: int) -> int | None:
        if not self.go_to(cpu):
            return None
        time.sleep(0)
        os.sched_yield()
        own = _exec_start_ns("/proc/thread-self")
        return time.monotonic_ns() - own if own is not None else None


def born_ns(stat: str) -> int:
    """When a task was made (CLOCK_MONOTONIC), by its /proc/PID/stat, to a hundredth of a second."""
    fields = stat.rpartition(")")[2].split()
    ticks = int(fields[19]) if len(fields) > 19 else 0
    asleep_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.monotonic_ns()
    return ticks * 10**9 // os.sysconf("SC_CLK_TCK") - asleep_ns


def _exec_start_ns(path: str) -> int | None:
    found = _EXEC_START.search(_read(path, "sched"))
    return int(float(found[1]) * 1_000_000) if found else None
