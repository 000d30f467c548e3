"""What the threads of a program do one operation after another, each from its beginning to its end.

Nearly every outcome of the real kernel is that of some order of whole operations; orders are tried
depth first, and given up as soon as a result differs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zaplock.engines.checking.faults import guarded
from zaplock.engines.sequential import run
from zaplock.model.step import Task
from zaplock.oracle import ops
from zaplock.oracle.modelops import PROTOCOLS, apply
from zaplock.oracle.ops import Environment, Op, slots_used
from zaplock.oracle.threaded import FORK_LOAD, ThreadedOutcome, ThreadedProgram, number_of
from zaplock.oracle.world import MM, World, limits_of
from zaplock.protocols import exit, fork, user_access
from zaplock.protocols.design import Cx, Design

Wrap = Callable[[Any], Any]
"""From a started protocol to one with a fault in it."""


async def fork_child(cx: Cx) -> int:
    """Fork a child of a thread's own; 0 or a negative errno."""
    return await fork.fork(cx, MM + cx.task.tid)


async def load_and_exit(cx: Cx, address: int) -> int:
    """Let that child load a word and exit; return what it has loaded, or minus the signal."""
    child = MM + cx.task.tid
    as_child = Cx(cx.design, Task(cx.task.tid, child, "child", cx.task.cpu), cx.grain, cx.limits)
    loaded = await user_access.read_memory(as_child, address)
    await exit.exit_process(as_child)
    return loaded


async def _fork_load(cx: Cx, address: int) -> int:
    return await fork_child(cx) or await load_and_exit(cx, address)


_STARTS: dict[str, Callable[..., Any]] = {
    **PROTOCOLS, "load": user_access.read_memory, "store": user_access.write_memory,
    FORK_LOAD: _fork_load,
}  # fmt: skip
OPERATIONS = frozenset(_STARTS)
"""What threads can do."""
ACCESSES = ("load", "store", FORK_LOAD)


def start(cx: Cx, number: int, op: Op) -> Any:
    """Start the protocol of an operation."""
    arguments = [*op.args, ops.store_tag(number)] if op.name in ops.WRITERS else op.args
    return _STARTS[op.name](cx, *arguments)


def result_of(op: Op, result: int) -> int:
    """Write what a protocol returned as the real side shows it."""
    return -(-result << 16) if op.name in ACCESSES and result < 0 else result


class WholeOperations:
    """A program whose operations are done as a whole, by one thread at a time."""

    def __init__(
        self, environment: Environment, design: Design, threaded: ThreadedProgram, wrap: Wrap
    ) -> None:
        self.environment = environment
        self.design = design
        self.threaded = threaded
        self.wrap = wrap

    def cx(self, thread: int, grain: int = 0) -> Cx:
        """Return how a thread's protocols see the system."""
        task = Task(10 + thread, MM, f"thread {thread}", cpu=10 + thread)
        return Cx(self.design, task, grain, limits_of(self.environment))

    def world(self, tracks_tlbs: bool = False) -> World:
        """Make the machine as the set-up leaves it."""
        everything = [*self.threaded.setup, *(op for part in self.threaded.threads for op in part)]
        world = World(self.environment, self.design, tracks_tlbs)
        world.begin(slots_used(everything))
        for index, op in enumerate(self.threaded.setup):
            apply(world, index, op.name, numbers_of(op))
        return world

    def do(self, world: World, thread: int, index: int, op: Op | None = None) -> int:
        """Do a thread's operation, or another in its place, as a whole; return its result.

        Raises Violation, as a step may.
        """
        op = self.threaded.threads[thread][index] if op is None else op
        return result_of(op, self.run(world, thread, start, number_of(thread, index), op))

    def run(self, world: World, thread: int, begin: Callable[..., Any], *arguments: object) -> int:
        """Run the protocol that `begin` starts as a thread, from its beginning to its end."""
        cx = self.cx(thread)
        result: int = guarded(run, world.machine, cx.task, self.wrap(begin(cx, *arguments)))
        return result

    def in_some_order(self, outcome: ThreadedOutcome) -> bool:
        """Return whether some order of whole operations has an outcome."""
        world = self.world()
        world.machine.store.start_journal(hashes=False)
        return self._goes_on(world, [0] * len(self.threaded.threads), outcome)

    def _goes_on(self, world: World, at: list[int], outcome: ThreadedOutcome) -> bool:
        store, ended = world.machine.store, True
        for thread, operations in enumerate(self.threaded.threads):
            index = at[thread]
            if index == len(operations):
                continue
            ended = False
            mark = store.mark()
            fits = self.do(world, thread, index) == outcome.results[thread][index]
            at[thread] += 1
            if fits and self._goes_on(world, at, outcome):
                return True
            at[thread] -= 1
            store.undo(mark)
        return ended and world.view.afresh().snapshot() == outcome.after


def numbers_of(op: Op) -> list[int]:
    """Return an operation's arguments, all of which are numbers here."""
    return [value for value in op.args if isinstance(value, int)]
