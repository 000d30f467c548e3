"""The search for an order of recorded calls that explains every result.

What overlaps in time is one group. Often more than one order explains it, and only a later call
tells which it was: the last groups are held, and tried again together with one that has no
explanation of its own. A fork among other threads' calls has copied what was there at its moment,
and only the child's calls tell what that was: its first ones are tried at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, NamedTuple

from zaplock.programs import orders
from zaplock.programs.maps import MapsVerdict
from zaplock.programs.orders import ByThread, ByTime, Order, Reasons, end_of
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

    `doubt`: why what differs may be the recording's fault, "" where it can't. `got`: what the model
    returned where it differs.
    """

    kind: str
    call: TracedCall
    why: str = ""
    doubt: str = ""
    got: int = -1

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
    _child_objected: bool = False
    """Whether a child's calls have ruled out an order in the last search."""

    def take(self, group: Sequence[Item]) -> list[Outcome]:
        """Run a group; return what is settled by now of it and of earlier ones."""
        if len(group) == 1 and not self._held:
            outcome = self.run(self.live, group[0])
            self.world.machine.store.forget_journal()
            return [outcome] if outcome is not None else []
        mark = self.world.mark(self.live)
        taken = self._explained(self.live, group, STEPS, asks_children=True)
        without_child = self._child_objected
        if taken is None and self._held:
            again = self._explained_with_held(group)
            if again is not None:
                return self._slide()
            mark = self.world.mark(self.live)
        if taken is None:
            self.world.undo(self.live, mark)
            return [*self.settle(), *self._unexplained(group, without_child=without_child)]
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

    def _unexplained(self, group: Sequence[Item], *, without_child: bool) -> list[Outcome]:
        """Run a group that differs, or a child of it, in the likeliest order.

        `without_child`: there may be an order that a child's calls alone have ruled out.
        """
        mark = self.world.mark(self.live)
        taken = None
        if without_child:
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
        descent = _Descent(self, live, self._order(live, group), asks_children=asks_children)
        is_found = descent.ends_within(steps + len(group))
        self._child_objected = descent.child_objected
        return descent.taken if is_found else None

    def _groups(self, live: LiveSpace) -> Iterator[list[Item]]:
        """Cut what a space does into groups that have one order among each other."""
        return orders.groups(live.traced.items, live.traced.threads, has_times=self.has_times)

    def _order(self, live: LiveSpace, group: Sequence[Item]) -> Order:
        return ByTime(group) if self.has_times else ByThread(group, live.traced.threads)

    def childs_fault(self, child: LiveSpace) -> Ruling | None:
        """Return which of a child's first calls tells that it is no copy of this moment, or None.

        Of threads of its own only that there is no order is told, by the first call of them.
        """
        mark = self.world.mark(child)
        fault: Ruling | None = None
        for group in islice(self._groups(child), CHILD):
            if len(group) > 1:
                if self._explained(child, group, STEPS_AGAIN, asks_children=False) is None:
                    first = next(item for item in group if isinstance(item, TracedCall))
                    fault = Ruling("differs", first)
            elif isinstance(outcome := self.run(child, group[0]), Ruling):
                fault = outcome if outcome.kind == "differs" else None
            if fault is not None:
                break
        self.world.undo(child, mark)
        return fault


class _Step(NamedTuple):
    """An item that was taken, what was said of it, and where the world stood before."""

    item: Item
    outcome: Outcome | None
    mark: Any


class _Descent:
    """One search for an order of a group, from where a space stands: depth first.

    Two orders that have come to the same mappings and the same rest come to the same end, so none
    is tried a second time. Where nothing leads on, all goes back to what last touched one of the
    reasons (conflict-directed backjumping, Prosser 1993): without what came in between it would be
    the same.
    """

    def __init__(
        self, search: OrderSearch, live: LiveSpace, order: Order, *, asks_children: bool
    ) -> None:
        self._search, self._live, self._order = search, live, order
        self._asks_children = asks_children
        self.child_objected = False
        self._trail: list[_Step] = []
        self._dead: dict[Hashable, Reasons] = {}
        self._choices: list[list[Item]] = []
        self._places: list[Hashable] = []
        self._reasons: list[Reasons] = []
        self._open(self._place())

    @property
    def taken(self) -> Taken:
        """What was taken, in this order."""
        return [(step.item, step.outcome) for step in self._trail]

    def ends_within(self, steps: int) -> bool:
        """Search; return whether an order was found within so many tries."""
        while not self._order.is_done:
            if not self._choices[-1]:
                if not self._back():
                    return False
                continue
            steps -= 1
            if steps < 0:
                return False
            self._try(self._choices[-1].pop(0))
        return True

    def _open(self, place: Hashable) -> None:
        self._places.append(place)
        self._choices.append([] if self._order.is_done else self._order.candidates())
        self._reasons.append(frozenset())

    def _try(self, item: Item) -> None:
        """Take an item; give it back where it has not its result, or leads to a dead end."""
        world = self._search.world
        mark = world.mark(self._live)
        outcome = self._search.run(self._live, item)
        if isinstance(outcome, Ruling) and outcome.kind == "differs":
            world.undo(self._live, mark)
            self._fail(outcome)
            return
        self._order.take(item)
        place = self._place()
        reasons: Reasons = frozenset(self._order.in_the_way(item))
        fault: Ruling | None = None
        if place in self._dead:
            reasons = self._dead[place]
        elif not reasons and self._asks_children and isinstance(item, Fork):
            fault = self._search.childs_fault(self._search.child(item))
            self.child_objected |= fault is not None
        if place in self._dead or reasons or fault is not None:
            self._order.give_back(item)
            world.undo(self._live, mark)
            if fault is not None:
                self._fail(fault)
            else:
                self._add(reasons)
            return
        self._trail.append(_Step(item, outcome, mark))
        self._open(place)

    def _fail(self, fault: Ruling) -> None:
        """Note why a call has not its result; where that lasts nothing else need be tried."""
        call, got = fault.call, fault.got
        is_known = not self._live.known.limits.bottom_up
        reasons = self._order.reasons(call, got) if is_known else orders.EVERYTHING
        if is_known and self._order.lasts(call, got):
            self._choices[-1], self._reasons[-1] = [], reasons
        else:
            self._add(reasons)

    def _add(self, reasons: Reasons) -> None:
        known = self._reasons[-1]
        self._reasons[-1] = None if known is None or reasons is None else known | reasons

    def _back(self) -> bool:
        """Give the last item back; return whether there was one."""
        reasons = self._reasons.pop()
        self._dead[self._places.pop()] = reasons
        self._choices.pop()
        if not self._trail:
            return False
        step = self._trail.pop()
        is_reason = self._order.touches(step.item, reasons)
        self._order.give_back(step.item)
        self._search.world.undo(self._live, step.mark)
        if is_reason:
            self._add(reasons)
        else:
            self._choices[-1], self._reasons[-1] = [], reasons
        return True

    def _place(self) -> Hashable:
        """Return what all that comes depends on: what is left, the mappings, what is known."""
        vmas = self._search.world.vmas(self._live)
        layout = tuple((vma.start, vma.end, vma.flags, vma.file) for vma in vmas)
        known = self._live.known
        return self._order.left(), layout, known.files, known.clouds, known.unknown


def _outcomes(taken: Taken) -> list[Outcome]:
    return [outcome for _, outcome in taken if outcome is not None]
