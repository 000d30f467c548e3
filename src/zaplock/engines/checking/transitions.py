"""Transitions, each run once per value of the cells that it depends on.

A state is an int (see `packed`) whose low bits are the tasks' positions. For each position of a
task there is a row: the mask of all cells that its step was ever seen to read or write, and a memo
from the state's bits under that mask to what the step did, as the XOR of old and new state. So a
transition that was made before, in whatever surroundings, costs an AND, a look-up and an XOR, and
steps really run some thousand times where there are a million states.

Soundness: a step is a deterministic function of the cells that it reads (`purity` and `audit` see
to that). If it read the set A in
some state, then it reads A, and does the same, in every state that agrees on A. The mask holds A,
and widening it only drops memos. Everything else that is asked in the same instant (promises about
every state or a task's end) is run together with the step and adds its own reads to the footprint.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from zaplock.engines.checking.audit import Auditor
from zaplock.engines.checking.configuration import Configuration
from zaplock.engines.checking.faults import asked
from zaplock.engines.checking.packed_states import PackedStore, StateLayout
from zaplock.engines.checking.positions import POSITION_BITS, Node, Trie, look_at_captured
from zaplock.engines.checking.purity import Surroundings
from zaplock.engines.checking.sealed import seal
from zaplock.engines.checking.step_attempt import attempt
from zaplock.errors import ProtocolError
from zaplock.model.frozen import NotFrozen
from zaplock.model.machine import Machine
from zaplock.model.violations import Violation

BLOCKED: Final = 0
"""A memo of 0: the task can't go on in this state. Negative: -1 - the index of a violation."""

STAYS: Final = -(1 << 62)
"""A memo of a step that changes nothing and leads back to its own position: a turn of a loop."""


class Transition:
    """One position of one task: what its step depends on, and what it did so far."""

    __slots__ = ("mask", "memo", "node", "written")

    def __init__(self, node: Node) -> None:
        self.node = node
        self.mask = 0
        self.written = 0
        self.memo: dict[int, int] = {}


class Promise:
    """A predicate on every state, asked again only where a cell that it looked at has changed."""

    __slots__ = ("mask", "run")

    def __init__(self, run: Callable[[Machine], Any]) -> None:
        self.run = run
        self.mask = 0


class TransitionTable:
    """The transition relation of a configuration, filled as it is asked for."""

    stays = STAYS

    def __init__(self, configuration: Configuration, layout: StateLayout | None = None) -> None:
        self.configuration = configuration
        self.machine = seal(configuration.build())
        self.surroundings = Surroundings()
        self.tries = [Trie(program, self.surroundings) for program in configuration.programs]
        for observer in configuration.observers():
            self.surroundings.add_observer(observer)
        self.tasks = [program.task for program in configuration.programs]
        self.index_of = {task.tid: index for index, task in enumerate(self.tasks)}
        count = len(self.tasks)
        try:
            self.packed = PackedStore(self.machine.store, POSITION_BITS * count, layout)
        except NotFrozen as error:
            raise ProtocolError(
                f"a cell of the machine holds what can be changed: {error}"
            ) from None
        self.position_masks = [
            ((1 << POSITION_BITS) - 1) << POSITION_BITS * index for index in range(count)
        ]
        self.rows: list[dict[int, Transition | None]] = [{} for _ in self.tasks]
        self.violations: list[Violation] = []
        self._violation_numbers: dict[tuple[Any, str], int] = {}
        self.promises = [Promise(run) for run in configuration.always]
        self.sometimes = {name: Promise(run) for name, run in configuration.sometimes.items()}
        self.seen_sometimes: set[str] = set()
        self.misses = 0
        self.forgotten = 0
        """How often all memos of some steps were dropped that may not have been right."""
        self.widened = 0
        """How often fields took more bits, so that masks did."""
        positions = [self.enter(index, trie.root) for index, trie in enumerate(self.tries)]
        self.initial = self.packed.current | sum(positions)
        self.packed.begin()
        failed = [trie.failed for trie in self.tries if trie.failed is not None]
        self.initial_violation = failed[0] if failed else self._ask_in_the_beginning()
        while self.packed.adopt():  # what a promise has made it has looked into, and nobody saw it
            self._ask_promises(everything=True)
        self.auditor = Auditor(self)

    def _ask_in_the_beginning(self) -> Violation | None:
        """Ask about the first state, and about tasks that have come to their ends in no step."""
        try:
            for index, trie in enumerate(self.tries):
                if trie.root.step is None:
                    self._task_ended(index, trie.root)
        except Violation as violation:
            return violation
        return self._ask_promises(everything=True)

    def enter(self, index: int, node: Node) -> int:
        """Return the bits of a position, which has a row from now on (None: ended)."""
        if node.id >> POSITION_BITS:
            raise OverflowError(f"{self.tasks[index]} has over {1 << POSITION_BITS} positions")
        bits = node.id << POSITION_BITS * index
        if bits not in self.rows[index]:
            self.rows[index][bits] = Transition(node) if node.step is not None else None
        return bits

    def node(self, index: int, state: int) -> Node:
        """Return the position of a task in a state."""
        return self.tries[index].nodes[
            (state & self.position_masks[index]) >> POSITION_BITS * index
        ]

    def results(self, state: int) -> tuple[Any, ...] | None:
        """Return what the tasks returned, or None while one that has to end hasn't."""
        nodes = [self.node(index, state) for index in range(len(self.tasks))]
        programs = self.configuration.programs
        if not all(program.may_rest(node.step) for node, program in zip(nodes, programs)):
            return None
        return tuple(node.result for node in nodes)

    def move(self, index: int, row: Transition, state: int) -> int:
        """Return the memo of a task's next step in a state, running the step if there is none."""
        memo = row.memo.get(state & row.mask)
        return self.fill(index, row, state) if memo is None else memo

    def fill(self, index: int, row: Transition, state: int) -> int:
        """Run a step that has no memo for a state like this one, and write the memo."""
        self.misses += 1
        try:
            outcome, mask = self.outcome(index, row, state)
        except NotFrozen as error:
            raise ProtocolError(
                f"{self.tasks[index]}: the step {row.node.step} writes a cell with what can be "
                f"changed: {error}"
            ) from None
        mask |= row.mask
        if mask != row.mask:
            row.mask = mask
            row.memo.clear()
        if self.packed.layout.grown:
            self.widen()
        row.memo[state & row.mask] = outcome
        return outcome

    def outcome(self, index: int, row: Transition, state: int) -> tuple[int, int]:
        """Run a step in a state: (its memo, the mask of what it and the promises looked at)."""
        packed = self.packed
        everything = False
        while True:
            outcome, moved, extra_mask = self._run_at(index, row.node, state)
            if self.adopt():
                everything = True
                continue
            written = packed.commit()
            row.written |= packed.written_mask
            if outcome > 0 and (self.promises or self.sometimes):
                violation = self._ask_promises(everything)
                if self.adopt():
                    everything = True
                    continue
                if violation is not None:
                    outcome = self._number(violation)
            if outcome > 0:
                outcome = written ^ moved or STAYS
            return outcome, packed.read_mask() | extra_mask

    def adopt(self) -> bool:
        """Take in new containers; if any, forget all memos: steps may have looked there."""
        if not self.packed.adopt():
            return False
        self.forgotten += 1
        for rows in self.rows:
            for row in rows.values():
                if row is not None:
                    row.memo.clear()
        return True

    def _run_at(self, index: int, node: Node, state: int) -> tuple[int, int, int]:
        packed = self.packed
        packed.take_back(packed.current)  # what an earlier try wrote
        packed.go_to(state)
        packed.begin()
        if node.captured is not None:
            look_at_captured(node, self.tasks[index])
        try:
            ran = self._run(index, node, state)
            return (BLOCKED, 0, 0) if ran is None else (1, *ran)
        except Violation as violation:
            return self._number(violation), 0, 0

    def _run(self, index: int, node: Node, state: int) -> tuple[int, int] | None:
        """Take the step; return how positions change (XOR) and whose positions that looked at.

        None where it has to wait.
        """
        task = self.tasks[index]
        assert node.step is not None
        rules = self.configuration.rules
        kind, result, granted = attempt(rules, self.machine, task, node.step, node.queued)
        if kind == "blocked":
            return None
        trie = self.tries[index]
        child = trie.asleep(node) if kind == "queued" else trie.child(node, result)
        moved = (node.id << POSITION_BITS * index) ^ self.enter(index, child)
        mask = 0
        if child.step is None:
            self._task_ended(index, child)
        for tid in granted:
            other = self.index_of[tid]
            at = self.node(other, state)
            after = self.tries[other].child(at, 0)
            moved ^= (at.id << POSITION_BITS * other) ^ self.enter(other, after)
            mask |= self.position_masks[other]
            if after.step is None:
                self._task_ended(other, after)
        return moved, mask

    def _task_ended(self, index: int, node: Node) -> None:
        for check in self.configuration.at_task_end:
            asked(check, self.machine, self.tasks[index], node.result)

    def _number(self, violation: Violation) -> int:
        key = violation.invariant, violation.message
        number = self._violation_numbers.setdefault(key, len(self.violations))
        if number == len(self.violations):
            self.violations.append(violation)
        return -1 - number

    def violation(self, memo: int) -> Violation:
        """Return the violation that a negative memo stands for."""
        return self.violations[-1 - memo]

    def _ask_promises(self, everything: bool = False) -> Violation | None:
        """Ask what concerns the cells just written; the reads join the footprint of the step."""
        written = self.packed.written_mask
        broken = None
        for promise in self.promises:
            if everything or written & promise.mask:
                try:
                    self._ask(promise)
                except Violation as violation:
                    broken = broken or violation
        for name, promise in self.sometimes.items():
            is_new = name not in self.seen_sometimes
            if is_new and (everything or written & promise.mask) and self._ask(promise):
                self.seen_sometimes.add(name)
        return broken

    def _ask(self, promise: Promise) -> Any:
        packed = self.packed
        known = set(packed.reads)
        packed.reads.clear()
        try:
            return asked(promise.run, self.machine)
        finally:
            looked_at = packed.read_mask()
            packed.reads.update(known)
            self._widen_promise(promise, looked_at)

    def _widen_promise(self, promise: Promise, looked_at: int) -> None:
        # Steps that write what the promise did not look at until now were run without asking it.
        new = looked_at & ~promise.mask
        if new:
            promise.mask |= new
            self.forgotten += 1
            for rows in self.rows:
                for row in rows.values():
                    if row is not None and row.written & new:
                        row.memo.clear()

    def widen(self) -> None:
        """Follow fields that took more bits: whoever looked at them looks at the new bits too."""
        self.widened += bool(self.packed.layout.grown)
        for old, new in self.packed.layout.grown:
            for rows in self.rows:
                for row in rows.values():
                    if row is not None and row.mask & old:
                        row.mask |= new
                    if row is not None and row.written & old:
                        row.written |= new
            for promise in (*self.promises, *self.sometimes.values()):
                if promise.mask & old:
                    promise.mask |= new
        self.packed.layout.grown.clear()

    def at_end(self, state: int, results: tuple[Any, ...]) -> Violation | None:
        """Ask what is promised for the end of everything."""
        self.packed.go_to(state)
        try:
            for name, is_true in self.configuration.sometimes_at_end.items():
                if name not in self.seen_sometimes and asked(is_true, self.machine, results):
                    self.seen_sometimes.add(name)
            for check in self.configuration.at_end:
                asked(check, self.machine, results)
        except Violation as violation:
            return violation
        finally:
            self.adopt()
        return None

    def loops(self) -> bool:
        """Return whether a task was seen to come back to where it was."""
        return any(trie.merged for trie in self.tries)

    def close(self) -> None:
        """Let go of every coroutine."""
        for trie in self.tries:
            trie.close()
