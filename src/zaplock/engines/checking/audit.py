"""The audit: what a search has remembered is done again and compared in full.

A verdict rests on two memories: of where a protocol went with which results, and of what a step did
with which cells. Both are right if protocols and steps look at nothing else. `purity` refuses most
of what would break that; here is what sees the rest. At the end of every search

* fresh coroutines walk the positions of every task again, and each step on the way is compared;
* steps are run again on the cells that they were remembered for, and what they do is compared;
* whatever code can reach beside cells must look as it did in the beginning.

Where a system has code that is not zaplock's own, everything is done again; otherwise a sample,
since zaplock's own tests do the rest. Some steps are run again during the search, so that a long
one ends early. A difference is a `ProtocolError`: there is no verdict then.
"""

from __future__ import annotations

import random
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from zaplock.engines.checking.coverage import NO_LINES, LineCoverage, Lines
from zaplock.engines.checking.depicting import depict
from zaplock.engines.checking.positions import POSITION_BITS
from zaplock.engines.checking.while_any import WhileAny
from zaplock.errors import ProtocolError
from zaplock.model.frozen import NotFrozen, exact

if TYPE_CHECKING:
    from zaplock.engines.checking.positions import Node, Trie
    from zaplock.engines.checking.transitions import Transition, TransitionTable

SAMPLE: Final = 64
"""Of so many positions and steps of zaplock's own, one is done again."""

TWICE: Final = 256
"""Steps that are run again a second time, where there is code that is not zaplock's."""

AT_ONCE: Final = 16
"""Steps that are run again in the middle of a search."""

PART: Final = 16
"""Until the next of them a search grows by one part in so many."""


@dataclass(frozen=True)
class Audit:
    """What was done again, and how long that took in sum.

    positions: walks of a task, from its beginning. steps: runs of a step. whole: all, not a sample.
    lines: of code that was looked at, and which of them ran; known where it was whole.
    """

    positions: int = 0
    steps: int = 0
    seconds: float = 0.0
    whole: bool = False
    lines: Lines = NO_LINES

    def __add__(self, other: Audit) -> Audit:
        return Audit(
            self.positions + other.positions, self.steps + other.steps,
            self.seconds + other.seconds, self.whole and other.whole, self.lines | other.lines,
        )  # fmt: skip


class Auditor:
    """The audit of one transition table."""

    def __init__(self, table: TransitionTable) -> None:
        self.table = table
        self.report = Audit()
        self._rng = random.Random(0)
        self._attributes = depict(vars(table.machine))
        self._due = 0

    def finish(self) -> Audit:
        """Do the audit at the end of a search; raises ProtocolError."""
        started = time.perf_counter()
        table = self.table
        covers = table.configuration.covers
        whole = table.surroundings.has_users_code or bool(covers)
        coverage = LineCoverage(table.surroundings.covered, covers)
        with coverage.watching() if whole else nullcontext():
            positions = walk_again(table.tries, whole)
            again = list(self._memos())[:: 1 if whole else SAMPLE]
            # Some once more, after all others: what those have changed in secret shows by now.
            twice = again[:TWICE] if whole else []
            for index, row, state, memo in (*again, *twice):
                self._run_again(index, row, state, memo)
        if whole:
            self._look_at_values()
        self._look_at_machine()
        table.surroundings.compare()
        seconds = time.perf_counter() - started
        lines = coverage.lines() if whole else Lines()
        self.report = replace(
            self.report + Audit(positions, len(again), seconds), whole=whole, lines=lines
        )
        return self.report

    def is_due(self, states: int) -> bool:
        """Return whether a search that has met so many states is to be looked into."""
        return states >= self._due

    def look_in(self, states: int) -> None:
        """Run a few steps again in the middle of a search, if it is due; raises ProtocolError."""
        if not self.is_due(states):
            return
        self._due = states + states // PART
        started = time.perf_counter()
        for _ in range(AT_ONCE):
            index = self._rng.randrange(len(self.table.rows))
            rows = [row for row in self.table.rows[index].values() if row is not None and row.memo]
            if rows:
                row = self._rng.choice(rows)
                state = self._rng.choice(list(row.memo))  # its bits under the row's mask
                self._run_again(index, row, state, row.memo[state])
        self.report += Audit(0, AT_ONCE, time.perf_counter() - started)

    def _memos(self) -> Iterator[tuple[int, Transition, int, int]]:
        for index, rows in enumerate(self.table.rows):
            for row in list(rows.values()):
                if row is not None:
                    for state, memo in list(row.memo.items()):
                        yield index, row, state, memo

    def _run_again(self, index: int, row: Transition, state: int, memo: int) -> None:
        table = self.table
        state = table.packed.completed(state, row.mask)
        try:
            outcome, mask = table.outcome(index, row, state)
        except NotFrozen as error:
            raise ProtocolError(f"{table.tasks[index]}: {row.node.step}: {error}") from None
        if table.packed.layout.grown:
            table.widen()
        if outcome != memo:
            before, now = (self._show(index, row, state, did) for did in (memo, outcome))
            raise ProtocolError(
                f"{table.tasks[index]}: the step {row.node.step} did two things in one state: "
                f"{before} before, {now} now; it goes by something that is no cell"
            )
        if mask & ~row.mask:
            cells = ", ".join(sorted(
                f"{field.container}[{field.key!r}]" for field in table.packed.reads
                if field.mask & ~row.mask
            ))  # fmt: skip
            raise ProtocolError(
                f"{table.tasks[index]}: the step {row.node.step} looks at {cells} now and did not "
                "before, in one state: it goes by something that is no cell"
            )

    def _show(self, index: int, row: Transition, state: int, memo: int) -> str:
        table = self.table
        if memo == 0:
            return "it waits"
        if memo == self.table.stays:
            return "it changes nothing and stays"
        if memo < 0:
            return f"it breaks {table.violation(memo)}"
        after, owner, changes = state ^ memo, table.packed.layout.owner, []
        left = memo & ~table.packed.low_mask
        while left:
            field = owner((left & -left).bit_length() - 1)
            left &= ~field.mask
            if not field.is_keys:
                value = field.values.get(after & field.mask)
                changes.append(f"{field.container}[{field.key!r}] = {value!r}")
        number = row.node.id ^ (memo & table.position_masks[index]) >> POSITION_BITS * index
        node = table.tries[index].nodes[number]
        return "; ".join([*changes, f"it goes on to {node.step or node.result!r}"])

    def _look_at_values(self) -> None:
        packed = self.table.packed
        for container, fields in packed.fields.items():
            for key, field in fields.items():
                for code, value in field.values.items():
                    if code and field.codes.get(exact(value)) != code:
                        raise ProtocolError(
                            f"a value of the cell {container}[{key!r}] was changed in place: "
                            f"{value!r}; write a new one with `put`"
                        )

    def _look_at_machine(self) -> None:
        if depict(vars(self.table.machine)) != self._attributes:
            raise ProtocolError(
                "an attribute of the machine that is no cell has changed while the checker ran; "
                "keep state in cells"
            )


def walk_again(tries: Sequence[Trie], whole: bool) -> int:
    """Walk the positions of tasks again, all or a sample; return how many walks that took."""
    walks: list[tuple[Trie, Node, Any, Node | None]] = []
    rounds: list[tuple[Trie, Node, Any, Node]] = []
    for trie in tries:
        walks += [(trie, *end) for end in trie.ends]
        walks += [
            (trie, node, None, None)
            for node in trie.nodes.values()
            if node.step is not None and not node.children and not node.queued
        ]
        rounds += [(trie, *merged) for merged in trie.merged]
    some_walks, some_rounds = walks[:: 1 if whole else SAMPLE], rounds[:: 1 if whole else 4]
    for trie, node, result, then in some_walks:
        trie.walk_again(node, result, then)
    for trie, node, result, back_at in some_rounds:
        trie.walk_round(node, result, back_at)
    return len(some_walks) + len(some_rounds)


@contextmanager
def _warnings_caught() -> Iterator[list[warnings.WarningMessage]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught
    for one in caught:
        if not _is_of_forgotten_await(one):
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)


_all_caught: Final = WhileAny(_warnings_caught)


def _is_of_forgotten_await(one: warnings.WarningMessage) -> bool:
    return issubclass(one.category, RuntimeWarning) and "was never awaited" in str(one.message)


@contextmanager
def no_forgotten_await() -> Iterator[None]:
    """Raise ProtocolError at the end if a protocol was called on the way and never awaited.

    Python tells that wherever it finds out, so each of several searches at once raises it.
    """
    with _all_caught() as caught:
        first = len(caught)
        yield
        new = caught[first:]
    for one in new:
        if _is_of_forgotten_await(one):
            raise ProtocolError(f"{one.message}: write `await` before the call")
