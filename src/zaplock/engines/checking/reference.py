"""The plain search: no tables, no packing. What the fast one is compared with.

Depth first over the journaled store: each transition really runs its step, is hashed by what it
wrote, and is taken back. A state is known by its 128-bit hash and the tasks' positions, or in the
exact mode by the whole of both. It shares with the fast engine only the trie of positions and the
rules of the locks, so an error in footprints, packing or memos shows as a different verdict or a
different number of states.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from zaplock.engines.checking.audit import SAMPLE, Audit, no_forgotten_await, walk_again
from zaplock.engines.checking.children import resident_bytes
from zaplock.engines.checking.configuration import Configuration
from zaplock.engines.checking.depicting import depict
from zaplock.engines.checking.exhaustive import Answer, SearchLimits, Verdict, answer_of
from zaplock.engines.checking.faults import asked
from zaplock.engines.checking.positions import Node, Trie, look_at_captured
from zaplock.engines.checking.purity import Surroundings
from zaplock.engines.checking.sealed import seal
from zaplock.engines.checking.step_attempt import attempt
from zaplock.errors import ProtocolError
from zaplock.model.frozen import NotFrozen
from zaplock.model.store import Mark
from zaplock.model.violations import Invariant, InvariantName, Violation

Positions = tuple[Node, ...]


def explore_plainly(
    configuration: Configuration, limits: SearchLimits = SearchLimits(), *, exact: bool = False
) -> Verdict:
    """Visit every reachable state, collecting all violations; `exact` remembers whole states."""
    with no_forgotten_await(), frozen_only():
        search = _PlainSearch(configuration, limits, exact)
        try:
            return search.run()
        finally:
            for trie in search.tries:
                trie.close()


@contextmanager
def frozen_only() -> Iterator[None]:
    """Report a cell that holds what can be changed."""
    try:
        yield
    except NotFrozen as error:
        raise ProtocolError(f"a cell of the machine holds what can be changed: {error}") from None


class _PlainSearch:
    """One machine that is stepped forth and back."""

    def __init__(self, configuration: Configuration, limits: SearchLimits, exact: bool) -> None:
        self.configuration = configuration
        self.limits = limits
        self.exact = exact
        self.machine = seal(configuration.build())
        self.machine.store.start_journal()
        self.attributes = depict(vars(self.machine))
        self.surroundings = Surroundings()
        self.tries = [Trie(program, self.surroundings) for program in configuration.programs]
        for observer in configuration.observers():
            self.surroundings.add_observer(observer)
        self.tasks = [program.task for program in configuration.programs]
        self.visited: set[Any] = set()
        self.found: dict[tuple[Invariant | InvariantName, str], Violation] = {}
        self.seen_sometimes: set[str] = set()
        self.transitions = self.depth = self.endings = self.steps_again = 0
        self.started = time.monotonic()

    def run(self) -> Verdict:
        limit = ""
        # (positions, next task to try, mark to undo to when this state is left, anyone enabled)
        stack: list[list[Any]] = []
        roots = tuple(trie.root for trie in self.tries)
        failed = next((trie.failed for trie in self.tries if trie.failed is not None), None)
        if failed is not None:
            self._note(failed)
        elif self._arrive(roots):
            stack.append([roots, 0, None, False])
        while stack:
            limit = self._limit()
            if limit:
                break
            self._go_on(stack)
        audit = self._audit()
        return self._verdict(limit, audit)

    def _audit(self) -> Audit:
        """Walk all positions again, and see that nothing but cells has changed."""
        started = time.perf_counter()
        whole = self.surroundings.has_users_code
        walks = walk_again(self.tries, whole)
        if depict(vars(self.machine)) != self.attributes:
            raise ProtocolError("an attribute of the machine that is no cell has changed")
        self.surroundings.compare()
        return Audit(walks, self.steps_again, time.perf_counter() - started, whole)

    def _go_on(self, stack: list[list[Any]]) -> None:
        """Take the next transition of the state on top, or leave that state."""
        top = stack[-1]
        positions, index, mark, enabled = top
        if index == len(positions):
            if not enabled:
                self._nobody_can_go_on(positions)
            stack.pop()
            if mark is not None:
                self.machine.store.undo(mark)
            return
        top[1] += 1
        if positions[index].step is None:
            return
        before = self.machine.store.mark()
        try:
            after = self._step(positions, index)
            if self._is_audited():
                self._step_again(positions, index, before, after)
            if after is None:
                self.machine.store.undo(before)
                return
            top[3] = True
            self.transitions += 1
            if self._arrive(after):
                stack.append([after, 0, before, False])
                self.depth = max(self.depth, len(stack))
                return
        except Violation as violation:
            top[3] = True
            self.transitions += 1
            self._note(violation)
        self.machine.store.undo(before)

    def _is_audited(self) -> bool:
        whole = self.surroundings.has_users_code
        return whole or self.transitions % SAMPLE == 0

    def _step_again(
        self, positions: Positions, index: int, before: Mark, after: Positions | None
    ) -> None:
        """Take a step back and take it again; raises ProtocolError where it then does otherwise."""
        self.steps_again += 1
        store = self.machine.store
        did = (store.hash, after)
        store.undo(before)
        does = None
        with suppress(Violation):
            does = self._step(positions, index)
        if (store.hash, does) != did:
            raise ProtocolError(
                f"{self.tasks[index]}: the step {positions[index].step} did two things in one "
                "state; it goes by something that is no cell"
            )

    def _step(self, positions: Positions, index: int) -> Positions | None:
        node = positions[index]
        assert node.step is not None
        if node.captured is not None:
            look_at_captured(node, self.tasks[index])
        rules = self.configuration.rules
        outcome = attempt(rules, self.machine, self.tasks[index], node.step, node.queued)
        if outcome.kind == "blocked":
            return None
        after = list(positions)
        trie = self.tries[index]
        queued = outcome.kind == "queued"
        after[index] = trie.asleep(node) if queued else trie.child(node, outcome.result)
        moved = [index]
        for tid in outcome.granted:
            other = next(i for i, task in enumerate(self.tasks) if task.tid == tid)
            after[other] = self.tries[other].child(after[other], 0)
            moved.append(other)
        for i in moved:
            if after[i].step is None:
                for check in self.configuration.at_task_end:
                    asked(check, self.machine, self.tasks[i], after[i].result)
        for promise in self.configuration.always:
            asked(promise, self.machine)
        return tuple(after)

    def _arrive(self, positions: Positions) -> bool:
        """Return whether this state is new, and remember it."""
        store = self.machine.store
        ids = tuple(node.id for node in positions)
        key = (store.snapshot(), ids) if self.exact else (store.hash, ids)
        if key in self.visited:
            return False
        if not self.visited:
            try:
                for task, node in zip(self.tasks, positions):
                    if node.step is None:
                        for check in self.configuration.at_task_end:
                            asked(check, self.machine, task, node.result)
                for promise in self.configuration.always:
                    asked(promise, self.machine)
            except Violation as violation:
                self._note(violation)
        self.visited.add(key)
        for name, is_true in self.configuration.sometimes.items():
            if name not in self.seen_sometimes and asked(is_true, self.machine):
                self.seen_sometimes.add(name)
        return True

    def _nobody_can_go_on(self, positions: Positions) -> None:
        waiting = [
            f"{program.task} waits in {node.step}"
            for program, node in zip(self.configuration.programs, positions)
            if not program.may_rest(node.step)
        ]
        if waiting:
            self._note(Violation(Invariant.NO_DEADLOCK, "; ".join(waiting)))
            return
        self.endings += 1
        results = tuple(node.result for node in positions)
        try:
            for name, is_true in self.configuration.sometimes_at_end.items():
                if asked(is_true, self.machine, results):
                    self.seen_sometimes.add(name)
            for check in self.configuration.at_end:
                asked(check, self.machine, results)
        except Violation as violation:
            self._note(violation)

    def _note(self, violation: Violation) -> None:
        self.found.setdefault((violation.invariant, violation.message), violation)

    def _limit(self) -> str:
        if len(self.visited) > self.limits.states:
            return f"{self.limits.states} states"
        if self.transitions % 256 == 0 and time.monotonic() - self.started > self.limits.seconds:
            return f"{self.limits.seconds:g} s"
        if self.transitions % 1024 == 0 and resident_bytes() > self.limits.memory:
            return f"{self.limits.memory >> 20} MiB"
        return ""

    def _verdict(self, limit: str, audit: Audit) -> Verdict:
        never = self.configuration.never(self.seen_sometimes)
        answer: Answer = "proved"
        if self.found:
            answer = answer_of(self.found.values())
        elif limit:
            answer = "not-exhausted"
        elif never:
            answer = "vacuous"
        return Verdict(
            answer,
            len(self.visited),
            self.transitions,
            self.depth,
            time.monotonic() - self.started,
            tuple(self.found.values()),
            never if answer == "vacuous" else (),
            limit,
            self.endings,
            audit=audit,
            loops=any(trie.merged for trie in self.tries),
            results=tuple(tuple(end.result for end in trie.ended()) for trie in self.tries),
        )
