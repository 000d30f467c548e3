"""One part of a search that several workers share: see `parallel`.

A worker expands its own states of a level, hands over what belongs to others, and asks the parent
for the number of whatever it is the first to meet.
"""

from __future__ import annotations

import pickle
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final, Protocol

from zaplock.engines.checking import exhaustive
from zaplock.engines.checking.audit import Audit
from zaplock.engines.checking.children import resident_bytes
from zaplock.engines.checking.divided_levels import (
    DividedLevels,
    WordParcel,
    owner_of,
    pack,
    unpack,
)
from zaplock.engines.checking.exhaustive import SLICE, Search
from zaplock.engines.checking.packed_states import StateField
from zaplock.engines.checking.parallel import (
    Key,
    Message,
    News,
    Parcel,
    PartCounts,
    StateParcel,
    perform,
)
from zaplock.engines.checking.positions import Node
from zaplock.engines.checking.wide_levels import Outgrown
from zaplock.errors import ProtocolError
from zaplock.model.frozen import exact

_PACKED: Final = 64
"""Bytes that a state takes at most, about, in a list and as it is sent."""


class Wire(Protocol):
    """What a worker talks through: messages in, messages out."""

    def send(self, message: Message, /) -> None: ...
    def recv(self) -> Message: ...

    def poll(self) -> bool:
        """Return whether there is something to receive, be it that the parent is gone."""
        ...


def serve(wire: Wire, search: Search, frontier: list[int], number: int, jobs: int) -> None:
    """Be worker `number` of `jobs`: expand the own states of each level until told to stop."""
    worker = _Worker(wire, search, frontier, number, jobs)
    try:
        while (message := wire.recv())[0] != "stop":
            worker.obey(*message)
    except (EOFError, OSError):
        return  # nobody is there any more who would want the result
    except Exception as error:
        try:
            pickle.dumps(error)
        except Exception:
            error = RuntimeError(repr(error))
        with suppress(OSError):
            wire.send(("error", error))


class _Worker:
    """One part of the states, by the hash of what the store holds in them."""

    def __init__(
        self, wire: Wire, search: Search, frontier: list[int], number: int, jobs: int
    ) -> None:
        self.wire = wire
        self.search = search
        self.frontier = frontier
        self.number = number
        self.jobs = jobs
        self.known: dict[Key, int] = {}
        self.base = search.states
        self.handed_over: Sequence[set[int]] = (set(), set())
        """Others' states that this level and the one before it have met: none is sent again."""
        self.wide: DividedLevels | None = None
        self.may_be_wide = True
        self.stores_of: dict[int, dict[int, int]] = {}
        """What the store holds, by who has sent that and its number there."""
        search.progress = None
        search.transitions = search.endings = 0
        search.found = {}
        table = search.table
        table.auditor.report = Audit()
        table.packed.layout.take = self._take  # type: ignore[method-assign]
        table.packed.layout.number = self._number  # type: ignore[method-assign]
        table.packed.announce = self._announce
        for index, trie in enumerate(table.tries):
            trie.number = self._node_number(index)  # type: ignore[method-assign,assignment]

    def _ask(self, key: Key, value: Any = None) -> int:
        answer = self.known.get(key)
        if answer is None:
            self.wire.send(("ask", key, value))
            answer = self.known[key] = self.wire.recv()[1]
        return answer

    def _announce(self, name: str) -> None:
        """Let everybody have a container that this worker is the first to make."""
        origin = self.search.table.machine.store.origins.get(name)
        if origin is None:
            raise ProtocolError(
                f"a step has made the container {name!r}, which other processes can't make: make "
                "it with the machine, or use --jobs 1"
            )
        self._ask(("container", *origin), origin[1])

    def _take(self, field: StateField) -> int:
        layout = self.search.table.packed.layout
        shift = self._ask(("take", field.container, field.key, len(field.shifts)))
        layout.own(shift, field)
        return shift

    def _number(self, field: StateField, value: Any) -> int:
        name = value if field.is_keys else exact(value)
        return self._ask(("number", field.container, field.key, name), value)

    def _node_number(self, index: int) -> Callable[[Node | None, str, Any], int]:
        def number(parent: Node | None, kind: str, result: Any) -> int:
            parent_id = parent.id if parent is not None else -1
            return self._ask(("node", index, parent_id, kind, exact(result)), result)

        return number

    def obey(self, order: str, news: list[News], parcels: list[Parcel], memory: int) -> None:
        """Learn what others met, take in states, and for a "level" expand and hand over."""
        self.known.update((key, answer) for key, _, answer in news)
        for key, value, _ in news:
            perform(self.search.table, key, value)
        search = self.search
        search.memory = memory
        if order == "audit":
            self.wire.send(("audited", search.table.auditor.finish(), search.table.loops()))
            return
        for parcel in parcels:
            self._take_in(parcel)
        if self.wide is not None:
            self.wide.settle(self.wide.ahead)
        had_frontier, outboxes = self._has_frontier(), list[tuple[int, Parcel]]()
        if order == "level" and not search.limit:
            outboxes = self._level()
        counts = PartCounts(
            search.states - self.base,
            search.transitions,
            search.endings,
            had_frontier,
            self._has_frontier(),
            search.limit,
            resident_bytes(),
        )
        seen = search.table.seen_sometimes | search.table.configuration.happened()
        self.wire.send(("done", outboxes, counts, list(search.found), seen))

    def _take_in(self, parcel: Parcel) -> None:
        """Take in states that others have found."""
        if isinstance(parcel, WordParcel):
            parcel.add_to(self.stores_of.setdefault(parcel.sender, {}))
        if self.wide is not None:
            try:
                if isinstance(parcel, WordParcel):
                    self.wide.receive(parcel, self.stores_of[parcel.sender])
                else:
                    self.wide.receive_states(unpack(parcel.states))
                return
            except Outgrown:
                found = self._by_states()  # of this level still, from the parcels before
                self.frontier += found
        if isinstance(parcel, WordParcel):
            states = parcel.states(self.stores_of[parcel.sender])
        else:
            states = unpack(parcel.states)
        self.frontier += self.search.take_in(states)

    def _has_frontier(self) -> bool:
        return bool(self.frontier) if self.wide is None else self.wide.has_frontier()

    def _level(self) -> list[tuple[int, Parcel]]:
        """Expand the own states of a level; return what is for others."""
        parcels: list[tuple[int, Parcel]] = []
        found: list[int] = []
        if self.may_be_wide and len(self.frontier) * self.jobs >= exhaustive.WIDE:
            self._begin_wide()
        if self.wide is not None:
            wide = self.wide
            try:
                wide.level()
            except Outgrown:
                parcels += wide.parcels()
                found = self._by_states()
            else:
                parcels += wide.parcels()
                if not self.search.limit and not wide.is_worth_it():
                    self._by_states()
                return parcels
        self.handed_over = (self.handed_over[1], set())
        self.frontier = found + self._expand()
        return parcels + self._outboxes()

    def _begin_wide(self) -> None:
        self.may_be_wide = False
        frontier, self.frontier = self.frontier, []
        try:
            self.wide = self.search.divided(frontier, self.number, self.jobs, self._look)
        except Outgrown:
            self.frontier = frontier

    def _by_states(self) -> list[int]:
        """Go on state by state; return what was found of the next level."""
        assert self.wide is not None
        search, wide = self.search, self.wide
        self.frontier, found = search.by_states(wide)
        if not search.limit:
            self.wide = None
            self.base += search.states - len(wide.visited)
        return found

    def _look(self) -> None:
        if self.wire.poll():
            raise EOFError("the parent is gone")

    def _expand(self) -> list[int]:
        """Expand the frontier in slices; return the own states found."""
        own: list[int] = []
        limits, search = self.search.limits, self.search
        for first in range(0, len(self.frontier), SLICE):
            if time.monotonic() - search.started > limits.seconds:
                search.limit = f"{limits.seconds:g} s"
            elif search.memory_ahead() + self._to_hand_over() > search.memory:
                search.limit = f"{limits.memory >> 20} MiB"
            if search.limit:
                break
            self._look()
            found = search.expand(self.frontier[first : first + SLICE])
            own += search.settled(self._own(found))
        return own

    def _to_hand_over(self) -> int:
        """Return what the states for others will take: a table that may double, and their bytes."""
        states = self.handed_over[1]
        return 2 * sys.getsizeof(states) + _PACKED * len(states)

    def _own(self, found: list[int]) -> list[int]:
        """Return those of some new states that belong here; the others are to be handed over."""
        number, jobs, stores = self.number, self.jobs, ~self.search.table.packed.low_mask
        own: list[int] = []
        others: list[int] = []
        for state in found:
            (own if owner_of(state & stores, jobs) == number else others).append(state)
        self.search.visited.difference_update(others)
        before, now = self.handed_over
        now.update(state for state in others if state not in before)
        return own

    def _outboxes(self) -> list[tuple[int, Parcel]]:
        """Pack what this level has found for each of the others."""
        by_owner: dict[int, list[int]] = {}
        stores = ~self.search.table.packed.low_mask
        for state in self.handed_over[1]:
            by_owner.setdefault(owner_of(state & stores, self.jobs), []).append(state)
        return [
            (owner, StateParcel(len(states), pack(states))) for owner, states in by_owner.items()
        ]
