"""What bystanders do beside a teardown, and how long they stall. The same as in a real measurement.

    fault     a thread of the process writes to a fresh page of its own VMA
    mmap      a thread of the process maps and unmaps 4 KiB: the lock for write, twice
    madvise   a thread of the process gives one page of its own back (MADV_DONTNEED)
    mprotect  a thread of the process makes one page of its own read-only, or writable again
    clone     a thread of the process starts another: maps a stack, protects its guard page, and
              unmaps it when the other has ended
    fork      a thread of the process forks, and the child exits; only from the teardown's begin
              on, since before it would copy what is to be unmapped
    major     a thread of the process reads a page of a file that is not in the page cache: a disk
              takes 1 ms to bring it
    neighbour a thread of the process writes to fresh pages right behind the mapping
    collapse  a thread of the process makes 2 MiB of small pages a huge one (MADV_COLLAPSE), and
              gives them back
    proc      a foreign process, as `ps`, reads /proc/PID/cmdline
    environ, maps, smaps, rollup
              foreign processes that read those files of /proc/PID (smaps_rollup)
    gup       a foreign process reads memory of this one (process_vm_readv)

The loop is closed: the next operation is due one period after the last began, or at once when that
one took longer. So one operation that waits out a whole teardown counts once.

A *stall* is what an operation took beyond its own work: the time in which its thread waited, spun,
was being woken or had no CPU. The engine knows that exactly, no idle phase is needed.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import Any

from zaplock.engines.timed.threads import Thread
from zaplock.experiment import HUGE, PAGE
from zaplock.lab.subject import (
    ADVISED,
    ARGUMENTS,
    FAULTS,
    FAULTS_LENGTH,
    MAPPING,
    MM,
    PROTECTED,
)
from zaplock.model.files import new_file
from zaplock.model.flags import (
    MADV_COLLAPSE,
    MADV_DONTNEED,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_NORESERVE,
    MAP_PRIVATE,
    MAP_SHARED,
    PROT_NONE,
    PROT_READ,
    PROT_WRITE,
)
from zaplock.model.machine import Machine
from zaplock.model.step import SleepStep, Step, Task, step
from zaplock.model.vma import vma_of
from zaplock.protocols.design import Cx, Protocol
from zaplock.protocols.exit import exit_process
from zaplock.protocols.fork import fork
from zaplock.protocols.gup import process_vm_rw, put_page, read_page
from zaplock.protocols.locking import syscall
from zaplock.protocols.madvise import madvise
from zaplock.protocols.mmap import mmap
from zaplock.protocols.mprotect import mprotect
from zaplock.protocols.own_state import OwnCells
from zaplock.protocols.proc import (
    proc_pid_environ,
    proc_pid_maps,
    proc_pid_smaps,
    proc_pid_smaps_rollup,
)
from zaplock.protocols.user_access import read_memory, write_memory

COLLAPSED = 1 << 33
"""Where the 2 MiB are that the collapse bystander uses."""
NEIGHBOUR: OwnCells[int, int] = OwnCells("neighbour", 0)
"""Where the neighbour bystander's memory begins, by mm."""
SLOW = 1 << 39
SLOW_LENGTH = 1 << 37
"""Where the file is mapped that the major bystander reads."""
SLOW_FILE = 2
READ_NS = 1_000_000
"""What a page of it takes to be read."""
STACK = 8 << 20
"""Bytes of a thread's stack."""
FIRST_CHILD = 1000
"""The mm of the first child that is forked."""
COMM = {"proc": "ps"}
"""The names of threads, where they are not the bystander's own."""


@dataclass(slots=True)
class SimulatedSamples:
    """When each operation began and ended, and for how long of that it stalled, in nanoseconds."""

    begin_ns: list[int] = field(default_factory=list)
    end_ns: list[int] = field(default_factory=list)
    stall_ns: list[int] = field(default_factory=list)

    def during(self, begin_ns: int, end_ns: int) -> list[int]:
        """List the stalls of the operations that overlap an interval; one comes after the other."""
        first, last = bisect_right(self.end_ns, begin_ns), bisect_left(self.begin_ns, end_ns)
        return self.stall_ns[first:last]


@step
def enter_kernel(m: Machine, _task: Task) -> None:
    """Pay for entry to and exit from a system call."""
    m.spend("syscall")


async def system_call(
    cx: Cx, name: str, work: Protocol, address: int = 0, length: int = 0, detail: int = 0
) -> int:
    """Do an operation as a system call, its entry and exit included."""
    await enter_kernel()
    return await syscall(cx, name, work, address, length, detail)


async def fault(cx: Cx, nth: int) -> None:
    """Write to a fresh page."""
    await write_memory(cx, FAULTS + (nth + 1) * PAGE % FAULTS_LENGTH, 1)


async def map_and_unmap(cx: Cx, _nth: int) -> None:
    """Map and unmap one page."""
    flags, prot = MAP_PRIVATE | MAP_ANONYMOUS, PROT_READ | PROT_WRITE
    address = await system_call(cx, "mmap", mmap(cx, 0, PAGE, prot, flags), 0, PAGE, prot)
    await system_call(cx, "munmap", cx.design.munmap(cx, address, PAGE), address, PAGE)


async def advise(cx: Cx, _nth: int) -> None:
    """Give a page back, which the next write would fault in again."""
    work = madvise(cx, ADVISED, PAGE, MADV_DONTNEED)
    await system_call(cx, "madvise", work, ADVISED, PAGE, MADV_DONTNEED)


async def read_cmdline(cx: Cx, _nth: int) -> None:
    """Read the command line of the process under study."""
    await system_call(cx, "read", cx.design.proc_cmdline(cx, MM))


async def read_environ(cx: Cx, _nth: int) -> None:
    """Read the environment of the process under study."""
    await system_call(cx, "read", proc_pid_environ(cx, MM))


async def read_maps(cx: Cx, _nth: int) -> None:
    """Read the maps of the process under study."""
    await system_call(cx, "read", proc_pid_maps(cx, MM))


async def read_smaps(cx: Cx, _nth: int) -> None:
    """Read the smaps of the process under study."""
    await system_call(cx, "read", proc_pid_smaps(cx, MM))


async def read_rollup(cx: Cx, _nth: int) -> None:
    """Read the smaps_rollup of the process under study."""
    await system_call(cx, "read", proc_pid_smaps_rollup(cx, MM))


async def read_remote(cx: Cx, _nth: int) -> None:
    """Read a byte of the process under study."""
    await system_call(cx, "process_vm_readv", _read_remote(cx), ARGUMENTS, 1)


async def _read_remote(cx: Cx) -> int:
    frame = await process_vm_rw(cx, MM, ARGUMENTS, False)
    await read_page(frame)
    await put_page(frame)
    return 1


async def protect(cx: Cx, nth: int) -> None:
    """Take the write permission from a page, or give it back."""
    prot = PROT_READ if nth % 2 == 0 else PROT_READ | PROT_WRITE
    await system_call(cx, "mprotect", mprotect(cx, PROTECTED, PAGE, prot), PROTECTED, PAGE, prot)


async def collapse(cx: Cx, nth: int) -> None:
    """Touch the first page of 2 MiB, make them one huge page (6.1 and later), and give it back."""
    if nth == 0:
        flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED
        await mmap(cx, COLLAPSED, HUGE, PROT_READ | PROT_WRITE, flags)
    await write_memory(cx, COLLAPSED, 1)
    for advice in (MADV_COLLAPSE, MADV_DONTNEED):
        work = madvise(cx, COLLAPSED, HUGE, advice)
        await system_call(cx, "madvise", work, COLLAPSED, HUGE, advice)


async def start_thread(cx: Cx, _nth: int) -> None:
    """Map a thread's stack, its lowest page without access, and unmap it again."""
    flags, prot = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, PROT_READ | PROT_WRITE
    stack = await system_call(cx, "mmap", mmap(cx, 0, STACK, prot, flags), 0, STACK, prot)
    await system_call(cx, "mprotect", mprotect(cx, stack, PAGE, PROT_NONE), stack, PAGE, PROT_NONE)
    await system_call(cx, "munmap", cx.design.munmap(cx, stack, STACK), stack, STACK)


async def fork_and_exit(cx: Cx, nth: int) -> None:
    """Fork; the child, which does nothing, exits."""
    child = FIRST_CHILD + nth
    result = await system_call(cx, "clone", fork(cx, child))
    assert result == 0, result
    await exit_process(replace(cx, task=Task(cx.task.tid, child, cx.task.name, cx.task.cpu)))


async def fault_from_disk(cx: Cx, nth: int) -> None:
    """Read a page of a file that nobody has read yet."""
    if nth == 0:
        await open_slow_file()
        flags = MAP_SHARED | MAP_FIXED
        await mmap(cx, SLOW, SLOW_LENGTH, PROT_READ, flags, SLOW_FILE)
    await read_memory(cx, SLOW + nth * PAGE % SLOW_LENGTH)


async def fault_behind(cx: Cx, nth: int) -> None:
    """Write to a fresh page of memory a little behind the mapping under study."""
    if nth == 0:
        behind = await end_of_mapping() + HUGE & -HUGE
        flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED
        await mmap(cx, behind, HUGE, PROT_READ | PROT_WRITE, flags)
        await write_memory(cx, behind, 1)
        await NEIGHBOUR.write(cx.mm, behind)
    behind = await NEIGHBOUR.read(cx.mm)
    await write_memory(cx, behind + (nth + 1) * PAGE % HUGE, 1)


@step
def end_of_mapping(m: Machine, task: Task) -> int:
    """Find where the mapping under study ends."""
    space, end = m.mm(MM), MAPPING
    while end in space.tree:
        end = vma_of(m, task, space.tree[end]).end
    return end


@step
def open_slow_file(m: Machine, _task: Task) -> None:
    """Let there be a file whose pages have to be read from a disk."""
    new_file(m, SLOW_FILE, "disk", SLOW_LENGTH, read_ns=READ_NS)


Operation = Callable[[Cx, int], Coroutine[Step[Any], Any, Any]]
"""What a bystander does once a period; the number says how often it has done it before."""

OPERATIONS: dict[str, Operation] = {
    "fault": fault,
    "mmap": map_and_unmap,
    "madvise": advise,
    "proc": read_cmdline,
    "environ": read_environ,
    "maps": read_maps,
    "smaps": read_smaps,
    "rollup": read_rollup,
    "gup": read_remote,
    "mprotect": protect,
    "collapse": collapse,
    "clone": start_thread,
    "fork": fork_and_exit,
    "major": fault_from_disk,
    "neighbour": fault_behind,
}


async def keep_doing(
    cx: Cx,
    operation: Operation,
    period_ns: int,
    look: Callable[[], Step[tuple[int, int]]],
    samples: SimulatedSamples,
    leap: Callable[[], Step[int]] | None = None,
) -> int:
    """Do a bystander's operation once a period for ever; note what each took.

    `leap` passes over rounds that would be like the last ones: it notes them in the samples of all
    bystanders and returns how long they last.
    """
    while True:
        nth = len(samples.begin_ns)
        begin_ns, stalled_ns = await look()
        samples.begin_ns.append(begin_ns)
        await operation(cx, nth)
        end_ns, stalled_then_ns = await look()
        samples.end_ns.append(end_ns)
        samples.stall_ns.append(stalled_then_ns - stalled_ns)
        leapt_ns = 0 if leap is None else await leap()
        await SleepStep(max(0, period_ns - (end_ns - begin_ns)) + leapt_ns)


def stopwatch(
    now: Callable[[], int], threads: dict[int, Thread]
) -> Callable[[], Step[tuple[int, int]]]:
    """Make a step that tells its thread (the time, how long it has stalled in all)."""

    @step
    def look(_m: Machine, task: Task) -> tuple[int, int]:
        return now(), threads[task.tid].stalled_ns

    return look
