"""What the model allows the threads of a program to return and to leave behind.

Nearly every outcome of the real kernel is that of some order of whole operations, and such orders
are some of the exhaustive engine's interleavings; so they are tried first, depth first, and given
up as soon as a result differs. What no order explains is looked for among all interleavings of the
operations' steps (`engines.checking.exhaustive`), with every CPU's TLB as state, zaps page by page,
and locks granted to any waiter; and what these don't have, among those in which CPUs have also
looked up ahead of time what their thread's loads and stores will need, as they may whenever they
like (the set-up leaves such translations, and CPUs run ahead). A search that comes to a limit says
so: its outcomes are some of the allowed ones, and nothing follows from one that is not among them.

What the kernel shows can't judge a model that allows too much: a page whose content goes before its
mapping does, say, may always have kept it by chance. So a search holds the model to a rule of its
own, `OLD_CONTENT_OR_SIGSEGV`: a load or a store, looked at alone, gives what it gives in some order
of whole operations, since each operation (but one, `_moments`) changes one page at one moment for
all who access it, and an access is done some time after it has faulted. What that page is mapped by
may have gone before (munmap detaches first and zaps then), which the own thread's call before the
access may have seen: one that others have made fail is left out of the order then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

from zaplock import advice
from zaplock.engines.checking.audit import no_forgotten_await
from zaplock.engines.checking.configuration import Configuration, Rules, TaskProgram
from zaplock.engines.checking.exhaustive import Search, SearchLimits
from zaplock.engines.checking.faults import guarded
from zaplock.engines.checking.transitions import TransitionTable
from zaplock.engines.sequential import run
from zaplock.model.flags import PAGE_SHIFT
from zaplock.model.machine import Machine
from zaplock.model.pagetable import translate
from zaplock.model.step import Task, step
from zaplock.model.violations import Invariant, Violation
from zaplock.oracle import ops
from zaplock.oracle.compare import result_text
from zaplock.oracle.modelops import PROTOCOLS, apply
from zaplock.oracle.ops import Environment, Op, slots_used
from zaplock.oracle.threaded import (
    FORK_LOAD,
    ThreadedOutcome,
    ThreadedProgram,
    number_of,
)
from zaplock.oracle.world import MM, World, limits_of
from zaplock.protocols import exit, fork, user_access
from zaplock.protocols.design import Cx, Design

Answer = Literal["in order", "interleaved", "not allowed", "not known"]
"""not known: the search came to a limit before it had seen every interleaving."""
Wrap = Callable[[Any], Any]
"""From a started protocol to one with a fault in it."""

SEARCH = SearchLimits(states=8_000_000, seconds=20.0, memory=2 << 30)


async def _fork_load(cx: Cx, address: int) -> int:
    """Fork a child that loads a word and exits; return what it has loaded, or minus the signal."""
    child = MM + cx.task.tid
    if error := await fork.fork(cx, child):
        return error
    as_child = Cx(cx.design, Task(cx.task.tid, child, "child", cx.task.cpu), cx.grain, cx.limits)
    loaded = await user_access.read_memory(as_child, address)
    await exit.exit_process(as_child)
    return loaded


_STARTS: dict[str, Callable[..., Any]] = {
    **PROTOCOLS, "load": user_access.read_memory, "store": user_access.write_memory,
    FORK_LOAD: _fork_load,
}  # fmt: skip
OPERATIONS = frozenset(_STARTS)
"""What threads can do."""
ACCESSES = ("load", "store", FORK_LOAD)
_FAULT = "fault"
_NOTHING = Op("brk", (0,))
"""An operation that changes nothing."""
Access = tuple[int, int]
"""A load or store: its thread, and which of the thread's operations it is."""


def start(cx: Cx, number: int, op: Op) -> Any:
    """Start the protocol of an operation."""
    arguments = [*op.args, ops.store_tag(number)] if op.name in ops.WRITERS else op.args
    starts = user_access.user_fault if op.name == _FAULT else _STARTS[op.name]
    return starts(cx, *arguments)


def result_of(op: Op, result: int) -> int:
    """Write what a protocol returned as the real side shows it."""
    return -(-result << 16) if op.name in ACCESSES and result < 0 else result


def _moments(op: Op, faults_first: bool) -> tuple[Op, ...]:
    """Return an operation as those that change a page at one moment each.

    MADV_GUARD_INSTALL zaps what is there and guards then what is empty; in between others find
    the page empty, and may fill it, which it zaps again (madvise_guard_install, mm/madvise.c).
    """
    if op.name in ("madvise", "process_madvise") and op.args[2] == advice.MADV_GUARD_INSTALL:
        return Op(op.name, (*op.args[:2], advice.MADV_DONTNEED)), op
    if faults_first and op.name in ("load", "store"):
        return Op(_FAULT, (op.args[0], int(op.name == "store"))), op
    return (op,)


@step
def looked_up(m: Machine, task: Task, mm: int, address: int) -> None:
    """Let a CPU find what is mapped at an address, as it may at any time."""
    translate(m, task, m.mm(mm), address >> PAGE_SHIFT, False)


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
        self.violations: tuple[Violation, ...] = ()
        self._reached: set[ThreadedOutcome] | None = None
        self._ahead: set[ThreadedOutcome] | None = None
        self._complete = False

    @property
    def is_explored(self) -> bool:
        """Tell whether all interleavings (or as many as the limits let) were looked at."""
        return self._reached is not None

    def judge(self, outcome: ThreadedOutcome) -> Answer:
        """Say whether and how the model allows an outcome. Raises Violation, as a step may."""
        if self.in_some_order(outcome):
            return "in order"
        if outcome in self.explored() or (self._complete and outcome in self._explored_ahead()):
            return "interleaved"
        return "not allowed" if self._complete else "not known"

    def explored(self) -> set[ThreadedOutcome]:
        """Return every outcome of every interleaving; sets `violations` where rules were broken."""
        if self._reached is None:
            search, broken = self._search(ahead=False)
            self._reached = search.reached
            self.violations = (*broken, *self._strange_accesses(search.reached))
        return self._reached

    def _explored_ahead(self) -> set[ThreadedOutcome]:
        """Return the outcomes where CPUs look up ahead of time what they will access, too."""
        if self._ahead is None:
            search, broken = self._search(ahead=True)
            self._ahead = search.reached
            self.violations += broken
        return self._ahead

    # Whole operations

    def in_some_order(self, outcome: ThreadedOutcome) -> bool:
        """Return whether some order of whole operations has an outcome."""
        world = self._world()
        world.machine.store.start_journal(hashes=False)
        at = [0] * len(self.threaded.threads)
        return self._goes_on(world, at, outcome)

    def _goes_on(self, world: World, at: list[int], outcome: ThreadedOutcome) -> bool:
        store, ended = world.machine.store, True
        for thread, operations in enumerate(self.threaded.threads):
            index = at[thread]
            if index == len(operations):
                continue
            ended = False
            mark = store.mark()
            fits = self._whole(world, thread, index) == outcome.results[thread][index]
            at[thread] += 1
            if fits and self._goes_on(world, at, outcome):
                return True
            at[thread] -= 1
            store.undo(mark)
        return ended and world.view.afresh().snapshot() == outcome.after

    def accesses_in_order(self, faulting: Access | None = None) -> dict[Access, set[int]]:
        """Return what each load and store gives in any order of whole operations.

        `faulting`: one that faults some time before it is done: in between, what its fault has done
        (a stack has grown, say) can be taken away again.
        """
        moments = [
            [
                (index, moment)
                for index, op in enumerate(operations)
                for moment in _moments(op, (thread, index) == faulting)
            ]
            for thread, operations in enumerate(self.threaded.threads)
        ]
        given: dict[Access, set[int]] = {
            (thread, index): set()
            for thread, parts in enumerate(moments)
            for index, op in parts
            if op.name in ACCESSES
        }
        if given:
            world = self._world()
            world.machine.store.start_journal(hashes=False)
            self._collect(world, moments, [0] * len(moments), given)
        return given

    def _collect(
        self,
        world: World,
        moments: list[list[tuple[int, Op]]],
        at: list[int],
        given: dict[Access, set[int]],
    ) -> None:
        store = world.machine.store
        for thread, parts in enumerate(moments):
            if at[thread] == len(parts):
                continue
            mark = store.mark()
            index, op = parts[at[thread]]
            result = self._do(world, thread, index, op)
            if op.name in ACCESSES:
                given[thread, index].add(result)
            at[thread] += 1
            self._collect(world, moments, at, given)
            at[thread] -= 1
            store.undo(mark)

    def _whole(self, world: World, thread: int, index: int) -> int:
        """Do an operation from its beginning to its end; return its result. Raises Violation."""
        return self._do(world, thread, index, self.threaded.threads[thread][index])

    def _do(self, world: World, thread: int, index: int, op: Op) -> int:
        cx = self._cx(thread)
        protocol = self.wrap(start(cx, number_of(thread, index), op))
        return result_of(op, guarded(run, world.machine, cx.task, protocol))

    # Every step

    def _search(self, *, ahead: bool) -> tuple[_Endings, tuple[Violation, ...]]:
        """Search all interleavings; return what was reached, and which rules were broken."""
        programs = [
            TaskProgram(self._cx(thread).task, partial(self._body, thread))
            for thread in range(len(self.threaded.threads))
        ]
        if ahead:
            programs += [
                TaskProgram(Task(20 + thread, MM, "CPU", programs[thread].task.cpu), looks_up)
                for thread, looks_up in self._looking_up()
            ]
        configuration = Configuration(lambda: self._world(True).machine, tuple(programs), Rules())
        with no_forgotten_await():
            table = TransitionTable(configuration)
            try:
                search = _Endings(table, self.limits, self._outcome)
                verdict = search.run()
            finally:
                table.close()
        self._complete = not verdict.limit
        return search, verdict.violations

    def _looking_up(self) -> Iterator[tuple[int, Callable[[], Any]]]:
        """Give each thread's CPU what looks up the pages that it will load from and store to."""
        for thread, operations in enumerate(self.threaded.threads):
            accesses = (op for op in operations if op.name in ("load", "store"))
            if pages := sorted({_numbers(op)[0] for op in accesses}):
                yield thread, partial(self._look_up, pages)

    async def _look_up(self, pages: Sequence[int]) -> int:
        for address in pages:
            await looked_up(MM, address)
        return 0

    def _strange_accesses(self, reached: set[ThreadedOutcome]) -> Iterator[Violation]:
        """Tell of loads and stores that gave what no order of whole operations gives them."""
        for (thread, index), given in self.accesses_in_order().items():
            op = self.threaded.threads[thread][index]
            strange_ones = {outcome.results[thread][index] for outcome in reached} - given
            if strange_ones:
                strange_ones -= self.accesses_in_order((thread, index))[thread, index]
            for strange in strange_ones:
                if self._failed_before(thread, index, strange, reached):
                    continue
                told = ", ".join(map(result_text, sorted(given)))
                yield Violation(
                    Invariant.OLD_CONTENT_OR_SIGSEGV,
                    f"{op} of thread {thread} gave {result_text(strange)}, "
                    f"in every order of whole operations {told}",
                )

    def _failed_before(
        self, thread: int, index: int, given: int, reached: set[ThreadedOutcome]
    ) -> bool:
        """Return whether an access gives this where what others have made fail is left out.

        So it must be in every outcome that has it.
        """
        operations = self.threaded.threads[thread][: index + 1]
        alone = self._fails_alone(thread)
        for results in {one.results[thread] for one in reached}:
            if results[index] != given:
                continue
            done = tuple(
                _NOTHING if op.name not in ACCESSES and result < 0 and not fails else op
                for op, result, fails in zip(operations, results, alone, strict=False)
            )
            threads = (*self.threaded.threads[:thread], done, *self.threaded.threads[thread + 1 :])
            program = ThreadedProgram(self.threaded.setup, threads)
            without = Interleavings(self.environment, self.design, program, self.wrap, self.limits)
            if given not in without.accesses_in_order()[thread, index]:
                return False
        return True

    def _fails_alone(self, thread: int) -> list[bool]:
        """Tell of each of a thread's operations whether it fails though nobody is beside it."""
        world = self._world()
        count = len(self.threaded.threads[thread])
        return [self._whole(world, thread, index) < 0 for index in range(count)]

    async def _body(self, thread: int) -> tuple[int, ...]:
        results = []
        for index, op in enumerate(self.threaded.threads[thread]):
            protocol = self.wrap(start(self._cx(thread, 1), number_of(thread, index), op))
            results.append(result_of(op, await protocol))
        return tuple(results)

    def _outcome(self, machine: Machine, results: tuple[Any, ...]) -> ThreadedOutcome:
        threads = results[: len(self.threaded.threads)]
        return ThreadedOutcome(threads, self._view.afresh(machine).snapshot())

    def _cx(self, thread: int, grain: int = 0) -> Cx:
        task = Task(10 + thread, MM, f"thread {thread}", cpu=10 + thread)
        return Cx(self.design, task, grain, limits_of(self.environment))

    def _world(self, tracks_tlbs: bool = False) -> World:
        """Make the machine as the set-up leaves it."""
        everything = [*self.threaded.setup, *(op for part in self.threaded.threads for op in part)]
        world = World(self.environment, self.design, tracks_tlbs)
        world.begin(slots_used(everything))
        for index, op in enumerate(self.threaded.setup):
            apply(world, index, op.name, _numbers(op))
        self._view = world.view
        return world


def _numbers(op: Op) -> list[int]:
    return [value for value in op.args if isinstance(value, int)]


class _Endings(Search):
    """A search that keeps what is to be seen where all tasks have ended."""

    def __init__(
        self,
        table: TransitionTable,
        limits: SearchLimits,
        outcome: Callable[[Machine, tuple[Any, ...]], ThreadedOutcome],
    ) -> None:
        super().__init__(table, limits, True, None)
        self.outcome = outcome
        self.reached: set[ThreadedOutcome] = set()

    def nobody_can_go_on(self, state: int) -> None:
        super().nobody_can_go_on(state)
        results = self.table.results(state)
        if results is not None:
            self.table.packed.go_to(state)
            self.reached.add(self.outcome(self.table.machine, results))
