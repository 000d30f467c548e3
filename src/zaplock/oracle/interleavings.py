"""What the model allows the threads of a program to return and to leave behind.

Nearly every outcome of the real kernel is that of some order of whole operations, and such orders
are some of the exhaustive engine's interleavings; so they are tried first (`whole_operations`).
What no order explains is looked for among all interleavings of the operations' steps
(`engines.checking.exhaustive`), with every CPU's TLB as state, zaps page by page, and locks granted
to any waiter; and what these don't have, among those in which CPUs have also looked up ahead of
time what their thread's loads and stores will need, as they may whenever they like (the set-up
leaves such translations, and CPUs run ahead), and mark an entry before they look it up to write.

A fault maps around its page what nobody has locked, and who has a page of a file locked at which
moment (a fault of it, a read, another mapping around) is not in the model. So an outcome that lacks
such pages is looked for among the interleavings where somebody has locked these pages for a while,
if other threads have something to do by which they may be locked (`locked_pages`).

A search that comes to a limit says so: its outcomes are some of the allowed ones, and nothing
follows from one that is not among them. What it has found must keep a rule of its own
(`thread_accesses`).
"""

from __future__ import annotations

import types
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

from zaplock.engines.checking.audit import no_forgotten_await
from zaplock.engines.checking.configuration import Configuration, Rules, TaskProgram
from zaplock.engines.checking.exhaustive import Search, SearchLimits
from zaplock.engines.checking.transitions import TransitionTable
from zaplock.model.flags import PAGE_SHIFT
from zaplock.model.machine import Machine
from zaplock.model.pagetable import mark_ahead, translate
from zaplock.model.step import Task, step
from zaplock.model.violations import Invariant, Violation
from zaplock.oracle.compare import result_text
from zaplock.oracle.locked_pages import (
    MOST_LOCKED,
    FilePage,
    file_pages,
    lock_pages,
    locks_pages,
    present_pages,
)
from zaplock.oracle.ops import Environment
from zaplock.oracle.thread_accesses import accesses_of, strange
from zaplock.oracle.threaded import ThreadedOutcome, ThreadedProgram, number_of
from zaplock.oracle.whole_operations import (
    WholeOperations,
    Wrap,
    numbers_of,
    result_of,
    start,
)
from zaplock.oracle.world import MM
from zaplock.protocols import user_access
from zaplock.protocols.design import Cx, Design

Answer = Literal["in order", "interleaved", "not allowed", "not known"]
"""not known: the search came to a limit before it had seen every interleaving."""
SEARCH = SearchLimits(states=8_000_000, seconds=20.0, memory=2 << 30)


@step
def looked_up(m: Machine, task: Task, mm: int, address: int) -> None:
    """Let a CPU find what is mapped at an address, as it may at any time."""
    translate(m, task, m.mm(mm), address >> PAGE_SHIFT, False)


@step
def marked(m: Machine, task: Task, mm: int, address: int) -> None:
    """Let a CPU mark an entry before it looks it up again to write."""
    mark_ahead(m, task, m.mm(mm), address >> PAGE_SHIFT)


@types.coroutine
def marking(protocol: Any) -> Generator[Any, Any, Any]:
    """Let the CPU mark the entry before each try of a protocol to store."""
    result = None
    try:
        while True:
            awaited = protocol.send(result)
            if getattr(awaited, "run", None) is user_access.store.run:
                yield from marked(*awaited.args[:2]).__await__()
            result = yield awaited
    except StopIteration as end:
        return end.value
    finally:
        protocol.close()


class Interleavings:
    """The outcomes that the model allows one program."""

    def __init__(
        self,
        environment: Environment,
        design: Design,
        threaded: ThreadedProgram,
        wrap: Wrap = lambda protocol: protocol,
        limits: SearchLimits = SEARCH,
    ) -> None:
        self.environment = environment
        self.design = design
        self.threaded = threaded
        self.wrap = wrap
        self.limits = limits
        self.whole = WholeOperations(environment, design, threaded, wrap)
        self.violations: tuple[Violation, ...] = ()
        self._reached: set[ThreadedOutcome] | None = None
        self._ahead: set[ThreadedOutcome] | None = None
        self._mapped: dict[ThreadedOutcome, dict[int, FilePage]] = {}
        self._locking: dict[frozenset[FilePage], set[ThreadedOutcome]] = {}
        self._complete = False

    @property
    def is_explored(self) -> bool:
        """Tell whether all interleavings (or as many as the limits let) were looked at."""
        return self._reached is not None

    def judge(self, outcome: ThreadedOutcome) -> Answer:
        """Say whether and how the model allows an outcome. Raises Violation, as a step may."""
        if self.whole.in_some_order(outcome):
            return "in order"
        if outcome in self.explored() or (self._complete and outcome in self._explored_ahead()):
            return "interleaved"
        if self._complete and outcome in self._explored_locking(self._left_out(outcome)):
            return "interleaved"
        return "not allowed" if self._complete else "not known"

    def explored(self) -> set[ThreadedOutcome]:
        """Return every outcome of every interleaving; sets `violations` where rules were broken."""
        if self._reached is None:
            search, broken = self._search()
            self._reached = set(search.reached)
            self._mapped = search.reached
            self.violations = (*broken, *self._strange_accesses(self._reached))
        return self._reached

    def _explored_ahead(self) -> set[ThreadedOutcome]:
        """Return the outcomes where CPUs look up ahead of time what they will access, too."""
        if self._ahead is None:
            search, broken = self._search(self._looking_up(), marking)
            self._ahead = set(search.reached)
            self.violations += broken
        return self._ahead

    def _explored_locking(self, pages: frozenset[FilePage]) -> set[ThreadedOutcome]:
        """Return the outcomes where somebody has these pages locked for a while, each by itself.

        More than `MOST_LOCKED` are locked together.
        """
        if not pages:
            return set()
        if pages not in self._locking:
            parts: list[tuple[FilePage, ...]] = [(page,) for page in sorted(pages)]
            if len(parts) > MOST_LOCKED:
                parts = [tuple(sorted(pages))]
            search, broken = self._search(
                TaskProgram(Task(40 + number, MM, "page lock"), partial(self._lock, part))
                for number, part in enumerate(parts)
            )
            self._locking[pages] = set(search.reached)
            self.violations += broken
        return self._locking[pages]

    def _left_out(self, outcome: ThreadedOutcome) -> frozenset[FilePage]:
        """Return the pages of files that an outcome lacks, and the nearest that was reached has.

        None where only one thread does anything by which pages of files are locked.
        """
        if sum(any(map(locks_pages, thread)) for thread in self.threaded.threads) < 2:
            return frozenset()
        present = present_pages(outcome.after)
        lacks = (
            frozenset(pages[at] for at in pages.keys() - present)
            for other, pages in self._mapped.items()
            if other.results == outcome.results
        )
        nearest = sorted(filter(None, lacks), key=lambda pages: (len(pages), sorted(pages)))
        return nearest[0] if nearest else frozenset()

    # Every step

    def _search(
        self, others: Iterable[TaskProgram] = (), runs: Wrap = lambda protocol: protocol
    ) -> tuple[_Endings, tuple[Violation, ...]]:
        """Search all interleavings; return what was reached, and which rules were broken.

        others: what goes on beside the program's threads. runs: wraps what the threads run.
        """
        programs = [
            TaskProgram(self._cx(thread).task, partial(self._body, thread, runs))
            for thread in range(len(self.threaded.threads))
        ]
        configuration = Configuration(self._machine, (*programs, *others), Rules())
        with no_forgotten_await():
            table = TransitionTable(configuration)
            try:
                search = _Endings(table, self.limits, self._outcome)
                verdict = search.run()
            finally:
                table.close()
        self._complete = not verdict.limit
        return search, verdict.violations

    def _looking_up(self) -> Iterator[TaskProgram]:
        """Give each thread's CPU what looks up the pages that it will load from and store to."""
        for thread, operations in enumerate(self.threaded.threads):
            accesses = (op for op in operations if op.name in ("load", "store"))
            if pages := sorted({numbers_of(op)[0] for op in accesses}):
                task = Task(20 + thread, MM, "CPU", self._cx(thread).task.cpu)
                yield TaskProgram(task, partial(self._look_up, pages))

    async def _look_up(self, pages: Sequence[int]) -> int:
        for address in pages:
            await looked_up(MM, address)
        return 0

    async def _lock(self, pages: Sequence[FilePage]) -> int:
        await lock_pages(pages, True)
        await lock_pages(pages, False)
        return 0

    def _strange_accesses(self, reached: set[ThreadedOutcome]) -> Iterator[Violation]:
        """Tell of accesses that gave what no order of the calls' moments gives them."""
        for thread, index in accesses_of(self.whole):
            results = {outcome.results[thread][index] for outcome in reached}
            strange_ones, given = strange(self.whole, (thread, index), results)
            for one in sorted(strange_ones):
                told = ", ".join(map(result_text, sorted(given)))
                yield Violation(
                    Invariant.OLD_CONTENT_OR_SIGSEGV,
                    f"{self.threaded.threads[thread][index]} of thread {thread} gave "
                    f"{result_text(one)}, in every order of what the others do {told}",
                )

    async def _body(self, thread: int, runs: Wrap) -> tuple[int, ...]:
        results = []
        for index, op in enumerate(self.threaded.threads[thread]):
            protocol = self.wrap(start(self._cx(thread, 1), number_of(thread, index), op))
            results.append(result_of(op, await runs(protocol)))
        return tuple(results)

    def _outcome(self, machine: Machine, results: tuple[Any, ...]) -> ThreadedOutcome:
        threads = results[: len(self.threaded.threads)]
        return ThreadedOutcome(threads, self._view.afresh(machine).snapshot())

    def _cx(self, thread: int, grain: int = 0) -> Cx:
        return self.whole.cx(thread, grain)

    def _machine(self) -> Machine:
        """Make the machine as the set-up leaves it, with TLBs."""
        world = self.whole.world(tracks_tlbs=True)
        self._view = world.view
        return world.machine


class _Endings(Search):
    """A search that keeps what is to be seen where all tasks have ended.

    And which pages of files are mapped then, by their addresses.
    """

    def __init__(
        self,
        table: TransitionTable,
        limits: SearchLimits,
        outcome: Callable[[Machine, tuple[Any, ...]], ThreadedOutcome],
    ) -> None:
        super().__init__(table, limits, True, None)
        self.outcome = outcome
        self.reached: dict[ThreadedOutcome, dict[int, FilePage]] = {}

    def nobody_can_go_on(self, state: int) -> None:
        super().nobody_can_go_on(state)
        results = self.table.results(state)
        if results is not None:
            self.table.packed.go_to(state)
            outcome = self.outcome(self.table.machine, results)
            if outcome not in self.reached:
                self.reached[outcome] = file_pages(self.table.machine, self.table.tasks[0])
