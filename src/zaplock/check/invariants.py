"""The invariants that no single step can see: results, stale translations, the books.

Most rules are kept watch on by the model's own steps, which raise `Violation` where one is broken
(`model.violations.Invariant`). Here is the rest: what holds when an operation has returned and when
everything has ended, and what should happen at least once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal, NamedTuple

from zaplock.check.operations import KINDS, emptied
from zaplock.check.outcomes import Outcome, parse_outcome
from zaplock.check.own_operations import kinds_of
from zaplock.check.scenarios import (
    BASE_PAGE,
    PAGE_SHIFT,
    RESULTS,
    SIGNALS,
    Scenario,
    ScenarioOperation,
    names_of,
    parse_operation,
)
from zaplock.check.shortage import EXCUSED
from zaplock.errors import UserError
from zaplock.model.check import check_books
from zaplock.model.flags import names
from zaplock.model.frames import OWN_FRAMES_SHIFT
from zaplock.model.machine import Machine, maker_of
from zaplock.model.mm import CUT_SHIFT
from zaplock.model.rwsem import Lock, lock_name
from zaplock.model.spans import TOP, spans_of
from zaplock.model.step import Task
from zaplock.model.violations import Invariant, Violation
from zaplock.model.vma import Vma, overlapping, tombstones_over
from zaplock.protocols.address_locks import ADDRESS_LOCKS
from zaplock.protocols.shortage import FAILED

SETUP_FRAMES = range(1 << OWN_FRAMES_SHIFT, 2 << OWN_FRAMES_SHIFT)
"""The frames that the initial map is made of."""

DEVICE_FRAMES = range(1 << 33, 1 << 34)
"""The frames that device mappings show."""

SPURIOUS = {
    SIGNALS["ENOMEM"]: Invariant.NO_SPURIOUS_ENOMEM,
    SIGNALS["SIGSEGV"]: Invariant.NO_SPURIOUS_SEGV,
}
"""What it is called when a result is wrong because it is this one."""

Results = tuple[int, ...]


class Promises:
    """What a scenario promises about its runs."""

    def __init__(
        self,
        scenario: Scenario,
        tasks: tuple[Task, ...],
        build: Callable[[], Machine],
        zaps_later: bool = False,
        flushes_later: bool = False,
    ) -> None:
        self.scenario = scenario
        self.zaps_later = zaps_later
        self.flushes_later = flushes_later
        self.build = build
        self.kinds = kinds_of(scenario)
        self.operations = {
            task.tid: tuple(parse_operation(text) for text in spec.do)
            for task, spec in zip(tasks, scenario.task)
        }

    def always(self) -> tuple[Callable[[Machine], None], ...]:
        """Return what has to hold in every state."""
        liveness = (readers_wait_for_writers_only,) if self.scenario.liveness else ()
        later = ((backlog_is_bounded,) if self.zaps_later else ()) + (
            (no_address_comes_back_early,) if self.flushes_later else ()
        )
        return (*liveness, *later)

    def at_task_end(self) -> tuple[Callable[[Machine, Task, Any], None], ...]:
        """Return what has to hold when a task has ended."""
        return (self._results_are_right, self._ranges_are_empty, holds_nothing)

    def at_end(self) -> tuple[Callable[[Machine, tuple[Any, ...]], None], ...]:
        """Return what has to hold when all have ended."""
        wrong = tuple(partial(forbid, outcome) for outcome in self._outcomes("forbidden"))
        if self.scenario.unchanged:
            return (*wrong, self._locks_are_free, books_balance,
                    partial(nothing_changed, self.build()))  # fmt: skip
        return (*wrong, self._locks_are_free, books_balance)

    def _locks_are_free(self, m: Machine, results: tuple[Any, ...]) -> None:
        """Report a lock whose holder has ended, or never was: it was handed over to nobody."""
        resting = {tid for tid, result in zip(self.operations, results) if result is None}
        for lock, tid in holders(m):
            if tid not in resting:
                raise Violation(
                    Invariant.LOCK_MODE,
                    f"all have ended, and {lock_name(lock)} is still held: by task {tid}, which "
                    f"{'has ended before' if tid in self.operations else 'there is none of'}",
                )

    def sometimes(self) -> dict[str, Callable[[Machine], bool]]:
        """Return what has to happen in some run, by name."""
        known = SOMETIMES
        for name in self.scenario.sometimes:
            if name not in known:
                raise UserError(
                    f"scenario {self.scenario.name!r}: nothing is called {name!r}; "
                    f"`sometimes` can be {', '.join(known)}"
                )
        return {name: known[name] for name in self.scenario.sometimes}

    def sometimes_at_end(self) -> dict[str, Callable[[Machine, tuple[Any, ...]], bool]]:
        """Return that each task has to succeed in some run, and what else some run ends with.

        Where some never end, none has an end: there the search for starvation looks after it.
        """
        ends: dict[str, Callable[[Machine, tuple[Any, ...]], bool]]
        ends = {} if not self._asks_ends() else {"an end to judge": _ends}
        ends |= {outcome.text: outcome for outcome in self._outcomes("possible")}
        if any(spec.again for spec in self.scenario.task):
            return ends
        wanted = {
            f"task {number + 1} succeeds": partial(_succeeds, number)
            for number, spec in enumerate(self.scenario.task)
            if not spec.daemon and not spec.killed and not self.scenario.may_fail
        }
        return wanted | ends

    def _asks_ends(self) -> bool:
        return self.scenario.unchanged or bool(self.scenario.forbidden)

    def _outcomes(self, kind: Literal["forbidden", "possible"]) -> list[Outcome]:
        tasks = [
            (name, len(spec.do)) for name, spec in zip(names_of(self.scenario), self.scenario.task)
        ]
        return [parse_outcome(text, tasks, RESULTS) for text in getattr(self.scenario, kind)]

    def _results_are_right(self, m: Machine, task: Task, results: Results) -> None:
        for operation, result in zip(self.operations[task.tid], results):
            if result in self._excused(m, task, operation):
                return  # what the task does then, no allocation failing, is not what was expected
            if operation.expected and result not in operation.expected:
                raise Violation(
                    _called(operation, result),
                    f"{task}: {describe(operation)} gave {result}, "
                    f"right would be {' or '.join(map(str, operation.expected))}",
                )

    def _excused(self, m: Machine, task: Task, operation: ScenarioOperation) -> tuple[int, ...]:
        """Return what may come back because an allocation of the task has failed."""
        kind = self.kinds[operation.name]
        if not self.scenario.failing_allocations or task.tid not in m.cells(FAILED):
            return ()
        if not kind.signals:
            return EXCUSED
        grows = any(mapping.kind == "stack" for mapping in self.scenario.map)
        return (SIGNALS["SIGSEGV"],) if grows else ()

    def _ranges_are_empty(self, m: Machine, task: Task, results: Results) -> None:
        for operation, result in zip(self.operations[task.tid], results):
            pages = emptied(operation, self.kinds[operation.name])
            later = self.flushes_later and operation.name == "munmap"
            if pages is not None and result >= 0 and not later:
                no_old_translation(m, task, *pages)
                no_old_page(m, task, *pages)
            if operation.name == "truncate":
                no_cut_maps(m, task, *operation.numbers)
            if operation.name == "revoke":
                nobody_reaches_the_device(m, task)
            if operation.name in ("mprotect", "fork") and result >= 0:
                no_leftover_permission(m, task)


def _called(operation: ScenarioOperation, result: int) -> Invariant:
    """Name the rule that a wrong result breaks; -11 is SIGSEGV where a signal can end it."""
    kind = KINDS.get(operation.name)  # one of the user's own may give either
    if result == SIGNALS["SIGSEGV"] and kind is not None and not kind.signals:
        return Invariant.OLD_CONTENT_OR_SIGSEGV
    return SPURIOUS.get(result, Invariant.OLD_CONTENT_OR_SIGSEGV)


def forbid(outcome: Outcome, m: Machine, results: tuple[Any, ...]) -> None:
    """Report a run that ends as its scenario forbids."""
    if outcome(m, results):
        raise Violation(Invariant.FORBIDDEN_OUTCOME, f"a run ends with {outcome.text}")


def _ends(_m: Machine, _results: tuple[Any, ...]) -> bool:
    return True


def _succeeds(number: int, _m: Machine, results: tuple[Any, ...]) -> bool:
    given = results[number]  # none of a task that has not begun
    return bool(given) and all(result is None or result >= 0 for result in given)


def describe(operation: ScenarioOperation) -> str:
    """Write an operation as scenarios do."""
    return " ".join([operation.name, *map(str, operation.numbers)])


def no_old_translation(m: Machine, task: Task, first: int, last: int) -> None:
    """Report a CPU that still translates an emptied range to what was there before the run."""
    low, high = BASE_PAGE + first, BASE_PAGE + last
    for cpu in m.cpus:
        for start, _, entry in m.tlb(cpu).overlapping(low, high):
            if entry.mm == task.mm and start + entry.delta in SETUP_FRAMES:
                raise Violation(
                    Invariant.NO_STALE_TRANSLATION,
                    f"{task} has returned from emptying it, but CPU {cpu} still translates "
                    f"page {start - BASE_PAGE} to its old frame",
                )


def no_old_page(m: Machine, task: Task, first: int, last: int) -> None:
    """Report a page of an emptied range that is still mapped as it was before the run."""
    mm = m.mm(task.mm)
    for start, _, pte in mm.ptes.overlapping(BASE_PAGE + first, BASE_PAGE + last):
        is_old = pte.delta + start in SETUP_FRAMES and pte.kind == "anon"
        if is_old and not tombstones_over(mm, start << PAGE_SHIFT, start + 1 << PAGE_SHIFT):
            raise Violation(
                Invariant.RETURN_MEANS_GONE,
                f"{task} has returned from emptying it, but page {start - BASE_PAGE} is still "
                "mapped to its old frame",
            )


def no_cut_maps(m: Machine, task: Task, file: int, size: int) -> None:
    """Report pages behind the end of a truncated file that cut page tables still map."""
    for space in m.mms.values():
        for cut in space.cuts:
            for handle in space.cuts[cut].handles:
                vma = m.vmas[handle]
                if not isinstance(vma, Vma) or vma.file != file:
                    continue
                low = (cut << CUT_SHIFT) + (vma.start >> PAGE_SHIFT) + max(0, size - vma.pgoff)
                high = (cut << CUT_SHIFT) + (vma.end >> PAGE_SHIFT)
                kinds = {pte.kind for _, _, pte in space.cut_ptes.overlapping(low, max(low, high))}
                if kinds & {"file", "shmem"}:
                    raise Violation(
                        Invariant.TEARDOWN_ORDER,
                        f"{task} has truncated file {file}, and page tables that were cut out "
                        "still map what was behind its end",
                    )


def nobody_reaches_the_device(m: Machine, task: Task) -> None:
    """Report a CPU that reaches a device's memory after its driver has taken that back."""
    for cpu in m.cpus:
        for start, (_, entry) in m.tlb(cpu).data.items():
            if start + entry.delta in DEVICE_FRAMES:
                raise Violation(
                    Invariant.NO_STALE_TRANSLATION,
                    f"{task} has returned from unmapping the device, but CPU {cpu} still "
                    f"translates page {start - BASE_PAGE} to it",
                )


def no_leftover_permission(m: Machine, task: Task) -> None:
    """Report a CPU that may still write to a page which its entry protects by now."""
    ptes = m.mm(task.mm).ptes
    for cpu in m.cpus:
        for start, (end, entry) in m.tlb(cpu).data.items():
            for vpn in range(start, end):
                pte = ptes.at(vpn)
                if entry.mm != task.mm or not entry.writable or pte is None or pte.writable:
                    continue
                if pte.delta == entry.delta:
                    raise Violation(
                        Invariant.NO_STALE_TRANSLATION,
                        f"{task} has returned, but CPU {cpu} may still write to "
                        f"page {vpn - BASE_PAGE}, which is write-protected",
                    )


def holders(m: Machine) -> Iterator[tuple[Lock, int]]:
    """List who holds which semaphore, in either mode."""
    for lock in m.locks:
        sem = m.locks[lock]
        yield from ((lock, tid) for tid in (sem.writer, *sem.readers) if tid)


def holds_nothing(m: Machine, task: Task, _results: Any) -> None:
    """Report a task that ends while it holds a lock."""
    for lock, tid in holders(m):
        if tid == task.tid:
            raise Violation(Invariant.LOCK_MODE, f"{task} ends and still holds {lock_name(lock)}")
    for lock in m.spans:
        if any(span.tid == task.tid for span in m.spans[lock].held):
            raise Violation(
                Invariant.LOCK_MODE, f"{task} ends and still holds a range of {lock_name(lock)}"
            )


def readers_wait_for_writers_only(m: Machine) -> None:
    """Report a reader that queues although only readers hold: the patch promised otherwise."""
    for lock in m.locks:
        sem = m.locks[lock]
        if lock[0] in ADDRESS_LOCKS and not sem.writer and sem.readers:
            for tid, write in sem.queue:
                if not write:
                    raise Violation(
                        Invariant.READER_WAITS_EXCLUSIVE_ONLY,
                        f"task {tid} queues to read behind {sem.queue[0]} while only readers hold",
                    )
    for lock in m.spans:
        spans = m.spans[lock]
        for wish in spans.queue:
            if lock[0] in ADDRESS_LOCKS and not wish.write and not wish.meets(spans.held):
                raise Violation(
                    Invariant.READER_WAITS_EXCLUSIVE_ONLY,
                    f"task {wish.tid} queues to read a range that only readers hold",
                )


def backlog_is_bounded(m: Machine) -> None:
    """Report a thread that has left more behind it than what it is at (a mremap cuts twice)."""
    for space in m.mms.values():
        dying = Counter(maker_of(space.dying[start][1]) for start in space.dying)
        cut = Counter(maker_of(handle) for handle in space.cuts)
        for kind, left, most in (("dying", dying, 1), ("cut", cut, 2)):
            for tid, ranges in left.items():
                if ranges > most:
                    raise Violation(
                        Invariant.BOUNDED_BACKLOG, f"task {tid} has {ranges} ranges that are {kind}"
                    )


def no_address_comes_back_early(m: Machine) -> None:
    """Report a mapping where a CPU still translates to what was there before, and waits for ticks.

    So much is left of no stale translation where other CPUs flush later (protocols.lazy_flush).
    """
    waiting = [
        (space.mm, run)
        for space in m.mms.values()
        for start in space.dying
        for run in m.gathers[space.dying[start][1]].pages
    ]
    if not waiting:
        return
    for cpu in m.cpus:
        for start, (_, entry) in m.tlb(cpu).data.items():
            frame = start + entry.delta
            old = any(mm == entry.mm and low <= frame < high for mm, (low, high) in waiting)
            if old and overlapping(m, m.mm(entry.mm), start << PAGE_SHIFT, start + 1 << PAGE_SHIFT):
                raise Violation(
                    Invariant.NO_STALE_TRANSLATION,
                    f"page {start - BASE_PAGE} is mapped anew while CPU {cpu} still translates it "
                    "to its old frame",
                )


def books_balance(m: Machine, _results: tuple[Any, ...]) -> None:
    """Report counters, frames or page tables that differ from a recount."""
    check_books(m)


class MapPicture(NamedTuple):
    """What an error must not change of an address space: the map (splits apart) and counters.

    coverage: (first page, end page, flags) of what is mapped, neighbours alike taken together.
    """

    coverage: tuple[tuple[int, int, int], ...]
    total_vm: int
    locked_vm: int
    brk: int


def picture_of(m: Machine, mm: int, low: int = 0, high: int = TOP) -> MapPicture:
    """Take the picture of an address space, or of a range of it, which has no counters."""
    space = m.mm(mm)
    if (low, high) != (0, TOP):
        return MapPicture(coverage(m, mm, low, high), 0, 0, 0)
    counts = (space.count(name) for name in ("total_vm", "locked_vm", "brk"))
    return MapPicture(coverage(m, mm), *counts)


def forbid_trace(mm: int, before: MapPicture, after: MapPicture) -> None:
    """Report what an error has changed in an address space."""
    for name, old, new in zip(MapPicture._fields, before, after):
        if old != new:
            if name == "coverage":
                name, old, new = "the map", in_words(before.coverage), in_words(after.coverage)
            raise Violation(
                Invariant.ERROR_LEAVES_NO_TRACE, f"{name} of mm {mm} was {old} and is {new}"
            )


def in_words(runs: tuple[tuple[int, int, int], ...]) -> str:
    """Write what is mapped."""
    return "; ".join(f"[{first}, {last}) {names(flags)}" for first, last, flags in runs) or "empty"


def nothing_changed(before: Machine, m: Machine, _results: tuple[Any, ...]) -> None:
    """Report what failed operations have changed: the map (splits apart) or counters."""
    for mm in before.mms:
        forbid_trace(mm, picture_of(before, mm), picture_of(m, mm))


def coverage(
    m: Machine, mm: int, low: int = 0, high: int = TOP
) -> tuple[tuple[int, int, int], ...]:
    """List (first page, end page, flags) of what is mapped, neighbours alike taken together."""
    runs: list[tuple[int, int, int]] = []
    for handle in overlapping(m, m.mm(mm), low, high):
        vma = m.vmas[handle]
        assert isinstance(vma, Vma)
        first, last = ((at >> 12) - BASE_PAGE for at in (max(low, vma.start), min(high, vma.end)))
        if runs and runs[-1][1] == first and runs[-1][2] == vma.flags:
            first = runs.pop()[0]
        runs.append((first, last, vma.flags))
    return tuple(runs)


def _downgraded(m: Machine) -> bool:
    sem = m.locks.get(("mmap_lock", 1))
    return sem is not None and sem.downgraded != 0


def _two_readers(m: Machine) -> bool:
    sem = m.locks.get(("mmap_lock", 1))
    return sem is not None and len(sem.readers) > 1


def _reader_beside_downgraded(m: Machine) -> bool:
    return _downgraded(m) and _two_readers(m)


def _tearing_down(m: Machine) -> bool:
    return any(len(space.teardown) or len(space.cuts) for space in m.mms.values())


def _two_gathers(m: Machine) -> bool:
    return len(m.gathers) > 1


def _dying(m: Machine) -> bool:
    return any(len(space.dying) > 0 for space in m.mms.values())


def _queued_writer(m: Machine) -> bool:
    queues = [m.locks[lock].queue for lock in m.locks if lock[0] in ADDRESS_LOCKS]
    spans = spans_of(m, ("mmap_lock", 1)).queue
    return any(write for queue in queues for _, write in queue) or any(one.write for one in spans)


def _two_copies(m: Machine) -> bool:
    return sum(end - start for start, (end, f) in m.frames.data.items() if f.kind == "anon") > 1


SOMETIMES: dict[str, Callable[[Machine], bool]] = {
    "downgraded": _downgraded,
    "two readers": _two_readers,
    "a reader beside the downgraded holder": _reader_beside_downgraded,
    "a range is torn down": _tearing_down,
    "two gathers": _two_gathers,
    "a queued writer": _queued_writer,
    "two copies of a page": _two_copies,
}
