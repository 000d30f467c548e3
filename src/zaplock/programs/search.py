"""The search for an order of recorded calls that explains every result.

What overlaps in time is one group. Often more than one order explains it, and only a later call
tells which it was: the last groups are held, and tried again together with one that has no
explanation of its own. A fork among other threads' calls has copied what was there at its moment,
and only the child's calls tell what that was: its first ones are tried at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, NamedTuple

from zaplock.programs import orders
from zaplock.programs.maps import MapsVerdict
from zaplock.programs.orders import ByThread, ByTime, Order, end_of
from zaplock.programs.recorded_world import LiveSpace, StraceWorld
from zaplock.programs.recording import TracedCall
from zaplock.programs.spaces import Fork, Item

STEPS, STEPS_AGAIN = 20_000, 3_000
"""Of the search for an order of one group, beside its items; and of several, held ones."""
RECENT = 60
"""How many items behind a group may tell which of its orders it was."""
CHILD = 300
"""How many of a child's first groups tell what its fork has copied."""
_LONGEST_JOURNAL = 200_000
UNORDERED = (
    "which order its threads called in is not in the recording: record with -f, or -ff -tt -T"
)


class Ruling(NamedTuple):
    """What is said of one call: "agrees", "differs", "refused", or "silent" (no memory call).

    `doubt`: why what differs may be the recording's fault, "" where it can't.
    """

    kind: str
    call: TracedCall
    why: str = ""
    doubt: str = ""

    def __str__(self) -> str:
        told = f"line {self.call.line}: {self.call.name}({', '.join(self.call.arguments)})"
        return f"{told}: {self.why}"


class SeenMaps(NamedTuple):
    """What is said of recorded maps: what was found, or why they were not compared."""

    line: int
    found: MapsVerdict | None
    why: str = ""


Outcome = Ruling | SeenMaps
Taken = list[tuple[Item, Outcome | None]]
"""Items in the order in which they were run, each with what is said of it, if anything is."""


class _Held(NamedTuple):
    mark: Any
    taken: Taken


@dataclass(slots=True)
class OrderSearch:
    """Runs the groups of one space. `run` does one item; `child` gives what a fork has made."""

    world: StraceWorld
    live: LiveSpace
    has_times: bool
    run: Callable[[LiveSpace, Item], Outcome | None]
    child: Callable[[Fork], LiveSpace]
    _held: deque[_Held] = field(default_factory=deque)

    def take(self, group: Sequence[Item]) -> list[Outcome]:
        """Run a group; return what is settled by now of it and of earlier ones."""
        if len(group) == 1 and not self._held:
            outcome = self.run(self.live, group[0])
            self.world.machine.store.forget_journal()
            return [outcome] if outcome is not None else []
        mark = self.world.mark(self.live)
        taken = self._explained(self.live, group, STEPS, asks_children=self.has_times)
        if taken is None and self._held:
            again = self._explained_with_held(group)
            if again is not None:
                return self._slide()
            mark = self.world.mark(self.live)
        if taken is None:
            self.world.undo(self.live, mark)
            return [*self.settle(), *self._unexplained(group)]
        self._held.append(_Held(mark, taken))
        return self._slide() if self.has_times else self.settle()

    def settle(self) -> list[Outcome]:
        """Return what was still held: nothing can change it any more."""
        settled = [outcome for held in self._held for outcome in _outcomes(held.taken)]
        self._held.clear()
        self.world.machine.store.forget_journal()
        return settled

    def _slide(self) -> list[Outcome]:
        """Settle what is so far back that no call will tell its order."""
        journal = self.world.machine.store.journal
        if journal is not None and len(journal) > _LONGEST_JOURNAL:
            return self.settle()
        settled: list[Outcome] = []
        behind = sum(len(held.taken) for held in self._held)
        while self._held and (
            len(self._held[0].taken) == 1 or behind - len(self._held[0].taken) > RECENT
        ):
            taken = self._held.popleft().taken
            behind -= len(taken)
            settled += _outcomes(taken)
        return settled if self._held else settled + self.settle()

    def _explained_with_held(self, group: Sequence[Item]) -> Taken | None:
        """Try what is held in another order, for the sake of this group; else have it as it was."""
        mark = self._held[0].mark
        before = [pair for held in self._held for pair in held.taken]
        self.world.undo(self.live, mark)
        items = [*(item for item, _ in before), *group]
        taken = self._explained(self.live, items, STEPS_AGAIN, asks_children=True)
        if taken is not None:
            self._held = deque([_Held(mark, taken)])
            return taken
        self.world.undo(self.live, mark)
        for item, _ in before:
            self.run(self.live, item)
        return None

    def _unexplained(self, group: Sequence[Item]) -> list[Outcome]:
        """Run a group that differs, or a child of it, in the likeliest order."""
        mark = self.world.mark(self.live)
        taken = self._explained(self.live, group, STEPS, asks_children=False)
        if taken is None:
            self.world.undo(self.live, mark)
            if not self.has_times:
                self.live.known = replace(self.live.known, unknown=UNORDERED)
            taken = [(item, self.run(self.live, item)) for item in sorted(group, key=end_of)]
        self.world.machine.store.forget_journal()
        return _outcomes(taken)

    def _explained(
        self, live: LiveSpace, group: Sequence[Item], steps: int, *, asks_children: bool
    ) -> Taken | None:
        """Find an order in which every result is explained; None if there is none."""
        left = steps + len(group)
        trail: list[tuple[Item, Outcome | None, object]] = []
        order = self._order(live, group)
        choices = [order.candidates()]
        while not order.is_done:
            if not choices[-1]:
                while True:
                    choices.pop()
                    if not choices:
                        return None
                    item, _, mark = trail.pop()
                    order.give_back(item)
                    if order.decides(item):
                        break
                self.world.undo(live, mark)  # type: ignore[arg-type]
                continue
            left -= 1
            if left < 0:
                return None
            item = choices[-1].pop(0)
            mark = self.world.mark(live)
            outcome = self.run(live, item)
            fails = isinstance(outcome, Ruling) and outcome.kind == "differs"
            if not fails and asks_children and isinstance(item, Fork):
                fails = not self._child_agrees(self.child(item))
            if fails:
                self.world.undo(live, mark)
                continue
            trail.append((item, outcome, mark))
            order.take(item)
            choices.append([] if order.is_done else order.candidates())
        return [(item, outcome) for item, outcome, _ in trail]

    def _order(self, live: LiveSpace, group: Sequence[Item]) -> Order:
        return ByTime(group) if self.has_times else ByThread(group, live.traced.threads)

    def _child_agrees(self, child: LiveSpace) -> bool:
        """Return whether the first calls of a child are those of a copy made at this moment."""
        mark = self.world.mark(child)
        agrees = all(
            self._explained(child, group, STEPS_AGAIN, asks_children=False) is not None
            for group in islice(orders.by_time(child.traced.items), CHILD)
        )
        self.world.undo(child, mark)
        return agrees


def _outcomes(taken: Taken) -> list[Outcome]:
    return [outcome for _, outcome in taken if outcome is not None]
