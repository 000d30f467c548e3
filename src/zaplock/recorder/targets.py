"""Whom to record: a process, a command, or everybody; and which mm is a process's own.

The pid filter of tracefs hides what matters most: the foreign reader (`ps`, a debugger) that waits
for the target's lock. A filter on the event's `mm` keeps it. The kernel shows that pointer nowhere
but in these events, so it is learned: this thread makes one lock operation on the target, reading
8 bytes of its `pagemap` at address 0, and the ASKED event of it says which mm that was. It comes
before the lock is had, so it is seen also while another task holds the lock for minutes; the read
is done by a thread that nobody waits for. This happens once, before the recording begins.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass

from zaplock.errors import UserError
from zaplock.recorder.buffers import Buffers
from zaplock.recorder.few_events import numbers_of
from zaplock.recorder.layouts import Layouts, read_layouts
from zaplock.recorder.lock_events import BY_TRACEPOINTS, LockEvents
from zaplock.recorder.scheduling import start_first
from zaplock.recorder.tracefs import Instance, Tracefs
from zaplock.recorder.uninterrupted import surely, uninterrupted
from zaplock.untrusted_names import read_text

_PATIENCE_S = 2.0
_TRIES = 3
"""So often is it asked where what was read left no event: somebody has emptied the buffer."""
_FIRST_PID_NAMESPACE = 0xEFFFFFFC
"""PROC_PID_INIT_INO (include/linux/proc_ns.h)."""

_GLANCE_S = 0.03
"""How long our read may take where nobody has the lock; after that it waits for it."""
_PAUSE_S = 0.002
"""So often it is looked whether it sleeps in the lock's queue, which nobody does who has a CPU."""


def check_namespace() -> None:
    """Raise UserError in a PID namespace: the kernel's events name tasks by other numbers there."""
    try:
        own = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return
    if own != _FIRST_PID_NAMESPACE:
        raise UserError(
            "this is a container (a PID namespace): the kernel's trace names tasks by their "
            "numbers outside, which can't be known in here. Run zaplock outside, where --comm NAME "
            "or --cgroup PATH finds the process, or give the container the host's pids (--pid=host)"
        )


_PF_KTHREAD = 0x0020_0000


def check_process(pid: int) -> None:
    """Raise UserError unless this is a process with an address space that we may look at."""
    try:
        status = read_text(f"/proc/{pid}/status")
    except (FileNotFoundError, ProcessLookupError):
        raise UserError(f"there is no process {pid}: 'ps -e' lists those that are") from None
    tgid = re.search(r"^Tgid:\s+(\d+)", status, re.MULTILINE)
    if tgid and int(tgid[1]) != pid:
        raise UserError(f"{pid} is a thread of process {tgid[1]}: give -p {tgid[1]}")
    if re.search(r"^VmSize:", status, re.MULTILINE):
        return
    if _is_kernel_thread(pid):
        raise UserError(f"{pid} is a kernel thread: it has no address space to lock")
    if threads_of(pid) - {pid}:
        raise UserError(
            f"the first thread of process {pid} has ended and others live: their address space "
            "can't be found by it, so record the whole system ('zaplock record -d 30s')"
        )
    if re.search(r"^State:\s+[ZX]", status, re.MULTILINE):
        raise UserError(f"process {pid} has ended (a zombie): it has no address space any more")
    raise UserError(
        f"process {pid} is ending: its memory may still be freed, but nobody comes for its lock "
        "any more ('zaplock record' of the whole system tells what its end holds up)"
    )


def _is_kernel_thread(pid: int) -> bool:
    """Say so by the flags in /proc/PID/stat; a process at its end has no address space either."""
    try:
        fields = read_text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return len(fields) > 6 and bool(int(fields[6]) & _PF_KTHREAD)


def threads_of(pid: int) -> set[int]:
    """List the thread ids of a process; empty where it is gone."""
    try:
        return {int(name) for name in os.listdir(f"/proc/{pid}/task")}
    except (FileNotFoundError, ProcessLookupError):
        return set()


def descendants_of(pids: Iterable[int]) -> set[int]:
    """List processes and their children, grandchildren and so on."""
    children: dict[int, list[int]] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and (parent := _parent(int(entry.name))) is not None:
            children.setdefault(parent, []).append(int(entry.name))
    found, todo = set(), list(pids)
    while todo:
        one = todo.pop()
        found.add(one)
        todo += children.get(one, [])
    return found


def _parent(pid: int) -> int | None:
    try:
        return int(read_text(f"/proc/{pid}/stat").rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return None


@dataclass(frozen=True, slots=True)
class LearnedMm:
    """A process's `mm`, and our own read that told it: thread `tid` asked at `asked_ns`.

    The read waits for the process's lock like anybody's; it may still do so (`waits`).
    """

    mm: int
    tid: int
    asked_ns: int
    done: threading.Event

    @property
    def waits(self) -> bool:
        """Whether our read still waits for the lock: somebody has it since before `asked_ns`."""
        return not self.done.is_set()


def learn_mm(
    tracefs: Tracefs,
    pid: int,
    within: Instance | None = None,
    locks: LockEvents = BY_TRACEPOINTS,
) -> LearnedMm:
    """Find the kernel's `mm` pointer of a process.

    Asks for its mmap_lock for read, once; if somebody has it, a thread of ours is left waiting.
    `within` is an instance that has not begun to record, to be looked through in place of a new one
    (which the kernel takes a tenth of a second to make and to remove). `locks` are the events that
    tell of it; what names the address space is what they have.
    Raises UserError where it can't be learned.
    """
    if not locks.asked:
        raise UserError(f"the address space of process {pid} isn't known without lock events")
    with contextlib.nullcontext(within) if within else Instance(tracefs, buffer_kb=64) as instance:
        assert instance is not None
        for _ in range(_TRIES):
            reader = _Reader(pid)
            opened = reader.opened.wait(_PATIENCE_S)
            asked = _asked(tracefs, instance, reader, locks) if opened else {}
            others = list(asked.items())[0 if pid == os.getpid() else 1 :]
            if others or not reader.done.is_set():
                break
    if len(others) == 1:
        mm, asked_ns = others[0]
        return LearnedMm(mm, reader.tid, asked_ns, reader.done)
    check_process(pid)
    raise UserError(
        f"the address space of process {pid} can't be told from others ({len(others)} seen): "
        "record the whole system (leave out -p)"
    )


class _Reader:
    """A thread that takes our own mmap_lock, then the process's, and may stay there."""

    def __init__(self, pid: int) -> None:
        self.pid, self.tid = pid, 0
        self.done, self.opened = threading.Event(), threading.Event()
        """Whether it has read, and whether it has opened what it reads: both may take for ever."""
        self._ready, self._may = threading.Event(), threading.Event()
        start_first(threading.Thread(target=self._run, daemon=True))
        self._ready.wait()

    def go(self) -> None:
        """Let it read."""
        self._may.set()

    def settled(self) -> bool:
        """Wait until it has read or sleeps, or for `_GLANCE_S`; say whether it has read."""
        end = time.monotonic() + _GLANCE_S
        while not self.done.wait(_PAUSE_S) and time.monotonic() < end and not self._sleeps():
            pass
        return self.done.is_set()

    def _sleeps(self) -> bool:
        try:
            stat = read_text(f"/proc/self/task/{self.tid}/stat")
        except (FileNotFoundError, ProcessLookupError):
            return False
        return stat.rpartition(")")[2].split()[0] == "D"

    def _run(self) -> None:
        self.tid = threading.get_native_id()
        self._ready.set()
        files: list[int] = []
        try:
            # Before it is traced: opening takes other semaphores, of which probes would tell, too.
            for pid in (os.getpid(), self.pid):
                files.append(_openable(pid))
            self.opened.set()
            self._may.wait()
            for file in files:
                os.pread(file, 8, 0)
        except OSError:  # the process has ended
            pass
        finally:
            self.done.set()
            self.opened.set()
            for file in files:
                os.close(file)


def _asked(
    tracefs: Tracefs, instance: Instance, reader: _Reader, locks: LockEvents
) -> dict[int, int]:
    """List the mms that the reader asks for, and when: first our own, then the process's."""
    layouts = read_layouts(tracefs.path, locks.asked)
    buffers = None

    def end() -> None:
        if buffers:
            buffers.close()
        instance.stop()
        for event in locks.asked:
            instance.disable(event)
            instance.filter(event, "0")

    try:
        with uninterrupted():
            buffers = Buffers([instance], layouts.page.page_size)
        # Not by set_event_pid: to empty that again takes the kernel a grace period.
        for event in locks.asked:
            instance.enable(event, f"common_pid == {reader.tid}")
        instance.start()
        reader.go()
        return _seen_soon(buffers, layouts, reader, locks.field)
    finally:
        surely(end)


def _seen_soon(buffers: Buffers, layouts: Layouts, reader: _Reader, field: str) -> dict[int, int]:
    """Collect until the reader is through, or has asked for every lock and waits."""
    enough = 1 if reader.pid == os.getpid() else 2
    told, seen = list[tuple[int, int]](), dict[int, int]()
    end = time.monotonic() + _PATIENCE_S
    while time.monotonic() < end:
        finished = reader.settled()
        told += [one for _, pages in buffers.drain() for one in numbers_of(pages, layouts, field)]
        for mm, time_ns in sorted(told, key=lambda one: one[1]):
            seen.setdefault(mm, time_ns)
        if finished or len(seen) >= enough:
            break
    return seen


def _openable(pid: int) -> int:
    try:
        return os.open(f"/proc/{pid}/pagemap", os.O_RDONLY)
    except PermissionError:  # needs ptrace rights; this one does not
        return os.open(f"/proc/{pid}/cmdline", os.O_RDONLY)
