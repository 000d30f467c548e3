"""The threads of a replay: each recorded operation as a program for the timed engine.

A thread begins an operation at its recorded time, or when its previous one has ended, whichever is
later (an open loop); where another thread let it begin, when that one has come so far
(`closed_loops`).

What the design decides runs as the design's own protocol over a mapping of its own, which is there
when the operation begins. Its price is the recorded one: what the operation did before it had found
and detached its mappings is charged to the first step under the lock, what it did to pages to the
zap, in proportion to the length that is zapped. So a hold that one kernel has exclusively is shared
under the other, at the same cost. Everything else asks and holds as recorded.

Another way of freeing (`replay_ways`) takes the place of every munmap that is longer than a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from types import coroutine
from typing import Any

from zaplock.engines.timed.threads import Thread
from zaplock.lab.profiles import Profile
from zaplock.model.flags import (
    MADV_DONTNEED,
    VM_MAYREAD,
    VM_MAYWRITE,
    VM_READ,
    VM_WRITE,
    page_align,
)
from zaplock.model.machine import Machine
from zaplock.model.rwsem import (
    Lock,
    LockStep,
    down_read,
    down_write,
    downgrade_write,
    up_read,
    up_write,
)
from zaplock.model.step import MarkStep, SleepStep, Step, Task, WaitStep, step
from zaplock.model.vma import Vma, anon_vma_prepare, insert, lookup, remove
from zaplock.protocols.design import Cx, Protocol, UnmapEvents
from zaplock.protocols.fault import fault_entry
from zaplock.protocols.locking import mmap_write_lock_killable, unlock_after_unmap
from zaplock.protocols.madvise import madvise
from zaplock.protocols.teardown import zap_pte_range
from zaplock.replay.closed_loops import Link, Links
from zaplock.replay.other_ways import Way
from zaplock.replay.plan import HoldPhase, RecordedOperation
from zaplock.trace.event_kinds import PAGE_FAULT
from zaplock.trace.summary import NO_OPERATION

MM = 1
FAULTED = 1 << 30
"""A page of the process that is there: where faults are replayed."""
MAPPING, FAR = 1 << 40, 1 << 47
"""Where mappings that operations need are put, by turns."""
PAGE = 4096

_FLAGS = VM_READ | VM_WRITE | VM_MAYREAD | VM_MAYWRITE


@dataclass(slots=True)
class Done:
    """When each operation of a thread began and ended, and for how long of that it stalled."""

    begin_ns: list[int]
    end_ns: list[int]
    stall_ns: list[int]


class Places:
    """Addresses for mappings, by turns: no two operations under way have the same."""

    def __init__(self) -> None:
        self._next = MAPPING

    def take(self, length: int) -> int:
        """Return where a mapping of so many bytes can be put."""
        # A table's worth of space between two, so that none has a neighbour in its tables.
        room = length + (4 << 20)
        if self._next + room >= FAR:
            self._next = MAPPING
        start = self._next
        self._next += room
        return start


@step
def work(m: Machine, _task: Task, ns: int) -> None:
    """Spend time on a CPU."""
    m.spent_ns += ns


@step
def put_mapping(m: Machine, task: Task, start: int, length: int) -> None:
    """Let an anonymous mapping be there, at no cost and without the lock."""
    insert(m, task, Vma(MM, start, start + length, _FLAGS, start // PAGE))
    # Nobody write-locks it, so that a fault or an advice may take it by its own lock.
    handle = lookup(m, m.mm(MM), start)
    anon_vma_prepare.run(m, task, handle)
    m.mm(MM).add("total_vm", length // PAGE)
    m.mm(MM).add("lock_seq", 1)


@step
def drop_mapping(m: Machine, task: Task, start: int) -> None:
    """Take a mapping away again, at no cost and without the lock."""
    handle = lookup(m, m.mm(MM), start)
    if handle:
        vma = remove(m, task, handle)
        m.mm(MM).add("total_vm", -vma.nr_pages)


@step
def tell_ended(m: Machine, task: Task) -> None:
    """Let those go on who wait for an operation of this thread."""
    m.wake(("ended", task.tid))


def await_end(done: Done, tid: int, number: int) -> Step[None]:
    """Wait until a thread has ended its operation `number`."""
    return WaitStep(_go_on, (done, number), _has_ended, ("ended", tid))


def _go_on(_m: Machine, _task: Task, _done: Done, _number: int) -> None:
    return None


def _has_ended(_m: Machine, _task: Task, done: Done, number: int) -> bool:
    return len(done.end_ns) > number


@dataclass(frozen=True, slots=True)
class Price:
    """What a protocol costs: once it has the lock, and for all of its page work; nanoseconds."""

    fixed_ns: int
    pages_ns: int
    length: int


@coroutine
def priced(program: Protocol, price: Price) -> Generator[Any, Any, int]:
    """Run a protocol on a machine whose steps cost nothing, and charge the price to its steps."""
    due_ns, fixed_ns, result = 0, price.fixed_ns, None
    try:
        while True:
            try:
                one = program.send(result)
            except StopIteration as stop:
                return int(stop.value or 0)
            if isinstance(one, LockStep):
                if one.action == "down":
                    due_ns, fixed_ns = fixed_ns, 0
            elif one.__class__ is Step:
                cost_ns, due_ns = due_ns + _page_work(one, price), 0
                if cost_ns:
                    one = Step(_charged, (one, cost_ns))
            result = yield one
    finally:
        program.close()


def _charged(m: Machine, task: Task, one: Step[Any], cost_ns: int) -> Any:
    result = one.run(m, task, *one.args)
    m.spent_ns += cost_ns
    return result


def _page_work(one: Step[Any], price: Price) -> int:
    if one.run is zap_pte_range.run:
        low, high = one.args[2:4]
        return int(price.pages_ns * (high - low) // price.length)
    return price.pages_ns if one.run is fault_entry.run else 0


async def shrink(cx: Cx, start: int, length: int, downgrade: bool) -> int:
    """Unmap the end of a heap or of a mapping, as brk and mremap do."""
    events: UnmapEvents = []
    if await mmap_write_lock_killable(cx):
        return -1
    await unlock_after_unmap(cx, await cx.design.do_munmap(cx, start, length, events, downgrade))
    return 0


@dataclass(frozen=True)
class Replayer:
    """What the threads of one replay have in common."""

    profile: Profile
    way: Way
    look: Callable[[], Step[tuple[int, int]]]
    be_late: Callable[[int], Step[None]]
    places: Places
    exclusive: frozenset[str]
    """The calls that the recorded kernel did all their work in with an exclusive hold."""
    links: Links
    done: dict[int, Done]

    @property
    def detach_ns(self) -> int:
        """How long finding and detaching a VMA takes, by the profile."""
        return round(self.profile["vma_find"] + self.profile["vma_detach"])

    async def thread(
        self, cx: Cx, operations: tuple[RecordedOperation, ...], latency_ns: int
    ) -> int:
        """Do a thread's operations, none before its time; note what each took."""
        done = self.done[cx.task.tid]
        for number, one in enumerate(operations):
            link = self.links.get((cx.task.tid, number))
            due_ns = await self._due(link) if link else one.begin_ns
            now, _ = await self.look()
            if now + latency_ns < due_ns:
                await SleepStep(due_ns - now - latency_ns)
            elif now < due_ns:
                await work(due_ns - now)
            begin_ns, stalled_ns = await self.look()
            await self.do(cx, one)
            end_ns, stalled_then_ns = await self.look()
            done.begin_ns.append(begin_ns)
            done.end_ns.append(end_ns)
            done.stall_ns.append(stalled_then_ns - stalled_ns)
            if self.links:
                await tell_ended()
        return 0

    async def _due(self, link: Link) -> int:
        """Wait for those who let an operation begin; return when it does."""
        due_ns = link.floor_ns
        for tid, number, delay_ns in link.after:
            done = self.done[tid]
            await await_end(done, tid, number)
            due_ns = max(due_ns, done.end_ns[number] + delay_ns)
        return due_ns

    async def do(self, cx: Cx, one: RecordedOperation) -> None:
        """Do one operation with the marks that recordings have."""
        late_ns = one.phases[0].late_ns if one.phases else 0
        if late_ns:
            await self.be_late(late_ns)
        if self.way.replaces(one):
            await self._free_otherwise(cx, one)
        else:
            await self._do_marked(cx, one)
        if late_ns:
            await self.be_late(0)

    async def _do_marked(self, cx: Cx, one: RecordedOperation) -> None:
        marked = one.name not in (PAGE_FAULT, NO_OPERATION)
        if marked:
            await MarkStep("op_begin", (one.name, one.address, one.length, one.detail))
        elif one.name == PAGE_FAULT:
            await MarkStep("fault_begin", (one.address, one.detail))
        await self._work(cx, one)
        if marked:
            await MarkStep("op_end", (one.name, 0))
        elif one.name == PAGE_FAULT:
            await MarkStep("fault_end", (0,))

    async def _work(self, cx: Cx, one: RecordedOperation) -> None:
        if one.kind == "as recorded":
            await self._as_recorded(one)
        elif one.kind == "fault":
            await self._fault(cx, one)
        elif one.kind == "dontneed":
            await self._dontneed(cx, one)
        else:
            await self._unmap(cx, one)

    async def _unmap(self, cx: Cx, one: RecordedOperation) -> None:
        length = page_align(one.length)
        start = self.places.take(length)
        await put_mapping(start, length)
        price = self.price(one, length)
        await work(one.phases[0].before_ns)
        if one.kind == "munmap":
            await priced(cx.design.munmap(cx, start, length), price)
        else:
            moved = one.name == "mremap"
            downgrade = cx.design.mremap_downgrades if moved else cx.design.brk_downgrades
            await priced(shrink(cx, start, length, downgrade), price)
        await work(one.after_ns)

    def price(self, one: RecordedOperation, length: int) -> Price:
        """Tell what an unmap does before its page work from the page work itself.

        A downgrade in the recording shows where the one ends; without it, the profile says how long
        finding and detaching a VMA takes.
        """
        phase = one.phases[0]
        if phase.downgraded or one.name not in self.exclusive:
            return Price(phase.exclusive_ns, phase.shared_ns, length)
        fixed_ns = min(self.detach_ns, phase.exclusive_ns)
        return Price(fixed_ns, phase.exclusive_ns - fixed_ns, length)

    async def _dontneed(self, cx: Cx, one: RecordedOperation) -> None:
        length = page_align(one.length)
        start = self.places.take(length)
        await put_mapping(start, length)
        if one.phases:
            phase, after_ns = one.phases[0], one.after_ns
        else:
            phase, after_ns = HoldPhase(0, False, 0, one.after_ns), 0
        await work(phase.before_ns)
        price = Price(0, phase.shared_ns, length)
        await priced(madvise(cx, start, length, MADV_DONTNEED), price)
        await work(after_ns)
        await drop_mapping(start)

    async def _fault(self, cx: Cx, one: RecordedOperation) -> None:
        if one.phases:
            await work(one.phases[0].before_ns)
            cost_ns = one.phases[0].shared_ns
        else:
            cost_ns = round(self.profile["fault_minor"] + self.profile["fault_anon"])
        await priced(cx.design.page_fault(cx, FAULTED, True), Price(0, cost_ns, PAGE))
        await work(one.after_ns)

    async def _free_otherwise(self, cx: Cx, one: RecordedOperation) -> None:
        """Free what a munmap freed another way: the same page work, more calls in a row.

        What the one munmap did before its page work was recorded once and may hold an interrupt;
        every further munmap does that part at the profile's price at most.
        """
        length = page_align(one.length)
        start = self.places.take(length)
        await put_mapping(start, length)
        price = self.price(one, length)
        find_ns = round(self.profile["vma_find"] + self.profile["flush"])
        fixed_ns = price.fixed_ns
        await work(one.phases[0].before_ns)
        for call in self.way.calls(length):
            at = start + call.at
            advice = 0 if call.name == "munmap" else MADV_DONTNEED
            await MarkStep("op_begin", (call.name, one.address + call.at, call.length, advice))
            await work(round(self.profile["syscall"]))
            if advice:
                zap = Price(find_ns, price.pages_ns, length)
                await priced(madvise(cx, at, call.length, advice), zap)
            else:
                pages_ns = price.pages_ns if call.zaps else 0
                unmap = Price(fixed_ns, pages_ns, length)
                await priced(cx.design.munmap(cx, at, call.length), unmap)
                fixed_ns = min(fixed_ns, self.detach_ns)
            await MarkStep("op_end", (call.name, 0))
        await work(one.after_ns)

    async def _as_recorded(self, one: RecordedOperation) -> None:
        """Ask for the lock and hold it as an operation did in the recording."""
        lock: Lock = ("mmap_lock", MM)
        for number, phase in enumerate(one.phases):
            if number and phase.late_ns != one.phases[number - 1].late_ns:
                await self.be_late(phase.late_ns)
            await work(phase.before_ns)
            if not phase.write:
                await down_read(lock)
                await work(phase.shared_ns)
                await up_read(lock)
                continue
            await down_write(lock)
            await work(phase.exclusive_ns)
            if phase.downgraded:
                await downgrade_write(lock)
                await work(phase.shared_ns)
                await up_read(lock)
            else:
                await up_write(lock)
        await work(one.after_ns)


def lateness(threads: dict[int, Thread]) -> Callable[[int], Step[None]]:
    """Make a step that lets its thread take so much longer to run after each wake-up."""

    @step
    def be_late(_m: Machine, task: Task, ns: int) -> None:
        threads[task.tid].late_ns = ns

    return be_late
