"""A level of many states at once: a state in one 64-bit word, and numpy instead of a loop.

What the store holds is the same in many states, which differ in where the tasks stand. So the
contents of the store are numbered as they are met, and a state becomes a word: each task's position
in as many bits as its positions take, above them the number. What a task does is remembered by its
position and that number, so that a level of states is an AND, a look-up and an XOR for each task.
Visited states take 13 to 27 bytes in sum instead of 150.

What is found, and in which order, is as in `Search.expand`. A step is asked of the transition table
again for each content of the store; where there are nearly as many of those as states, or where a
state doesn't fit into a word, the search goes on without this.

A step that moves others as well (the release of a lock that somebody queues for) goes by where they
stand: what it does is looked up for each state.

Cf. the tree compression of LTSmin (Laarman, van de Pol, Weber 2011), of which this is the root.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from zaplock.engines.checking.exhaustive import SET_BYTES
from zaplock.engines.checking.exhaustive import Outgrown as Outgrown
from zaplock.engines.checking.hashed import (
    NOTHING,
    SETTLED_BYTES,
    Flags,
    HashMap,
    HashSet,
    Places,
    Words,
)
from zaplock.engines.checking.positions import POSITION_BITS
from zaplock.engines.checking.transitions import STAYS

if TYPE_CHECKING:
    from zaplock.engines.checking.exhaustive import Search
    from zaplock.engines.checking.transitions import Transition, TransitionTable

WORD_BITS = 63
BATCH = 20_000
"""States to expand in one go."""
_CHANGE_BYTES: Final = 16 + SETTLED_BYTES
"""What a change of a batch occupies at most: itself, the word that it leads to while that is put
in."""
ENOUGH_SEEN = 20_000
"""Transitions after which it is looked whether contents of the store repeat."""

# What a look-up gives that is no change: the highest bit is set.
_NO_CHANGE: Final = 1 << 63
_STAYS: Final = _NO_CHANGE
_ASK: Final = _NO_CHANGE | 1
"""The step goes by the positions of others: ask the transition table for each state."""
_BREAKS: Final = _NO_CHANGE | 1 << 62
"""Added to which violation it is."""

_ODD: Final = np.uint64(_NO_CHANGE)
_ONE: Final = np.uint64(1)


class Visited(Protocol):
    """Words that were met."""

    def __len__(self) -> int: ...
    def add(self, keys: Words, /) -> Flags: ...
    def parts(self) -> Iterator[Words]: ...
    def move(self, moved: Callable[[Words], Words], /) -> None: ...
    def bytes_to_come(self, more: int, /) -> int: ...


class Words64:
    """Which bits of a word are whose, and the contents of the store by number."""

    def __init__(self, table: TransitionTable) -> None:
        self.table = table
        self.stores: list[int] = []
        self.numbers: dict[int, int] = {}
        self.low_mask = table.packed.low_mask
        self.lay_out()

    def lay_out(self) -> None:
        """Give each task bits for its positions so far and as many again; the number has the rest.

        Raises Outgrown where that isn't enough.
        """
        widths = [max(trie.nodes).bit_length() + 1 for trie in self.table.tries]
        low = sum(widths)
        most = 1 << max(WORD_BITS - low, 0)
        if low > WORD_BITS or len(self.stores) * 2 >= most:
            raise Outgrown
        self.widths, self.low, self.most = widths, low, most
        self.shifts = [sum(widths[:index]) for index in range(len(widths))]
        self.masks = [
            np.uint64((most - 1) << low | ((1 << width) - 1) << shift)
            for width, shift in zip(widths, self.shifts)
        ]

    def number(self, store: int) -> int:
        """Number what the store holds; raises Outgrown."""
        number = self.numbers.get(store)
        if number is None:
            number = len(self.stores)
            if number >= self.most:
                raise Outgrown
            self.numbers[store] = number
            self.stores.append(store)
        return number

    def word(self, state: int) -> int:
        """Return the word of a state; raises Outgrown."""
        word = self.number(state & ~self.low_mask) << self.low
        for index, (width, shift) in enumerate(zip(self.widths, self.shifts)):
            position = state >> POSITION_BITS * index & (1 << POSITION_BITS) - 1
            if position >> width:
                raise Outgrown
            word |= position << shift
        return word

    def words(self, states: list[int]) -> Words:
        """Return the words of some states; raises Outgrown."""
        return np.array([self.word(state) for state in states], dtype=np.uint64)

    def state(self, word: int) -> int:
        """Return the state that a word stands for."""
        state = self.stores[word >> self.low]
        for index, (width, shift) in enumerate(zip(self.widths, self.shifts)):
            state |= (word >> shift & (1 << width) - 1) << POSITION_BITS * index
        return state

    def laid_out(self, numbers: Words, words: Words, layout: Sequence[tuple[int, int]]) -> Words:
        """Add to numbers in place the positions in words of another layout: (width, shift) each.

        Raises Outgrown.
        """
        for (width, shift), mine, to in zip(layout, self.widths, self.shifts):
            position = (words >> np.uint64(shift)) & np.uint64((1 << width) - 1)
            if width > mine and len(position) and int(position.max()) >> mine:
                raise Outgrown
            numbers |= position << np.uint64(to)
        return numbers

    def states(self, words: Words) -> list[int]:
        """Return the states that words stand for."""
        return [self.state(word) for word in words.tolist()]


class WideLevels:
    """A search that was begun by `Search`, from a wide frontier on."""

    def __init__(self, search: Search, frontier: list[int], visited: Visited | None = None) -> None:
        self.search = search
        self.table = search.table
        self.words = Words64(search.table)
        self.visited: Visited = HashSet() if visited is None else visited
        for states in search.all_visited():
            self.remember(states)
        self.frontier = self.words.words(frontier)
        self.found: list[Words] = []
        self.memos = [HashMap() for _ in self.table.tasks]
        self.forgotten = self.table.forgotten
        """How often the table had dropped memos when these were begun."""
        self.outdated: set[tuple[int, int]] = set()
        """Whose steps were seen to look at more, so that the table has dropped their memos: a task,
        and its position in a word."""
        self.asked = 0
        self.transitions = 0

    def remember(self, states: list[int]) -> None:
        """Take in states that were visited before."""
        self.visited.add(self.words.words(states))

    def is_worth_it(self) -> bool:
        """Return whether few enough steps had to be asked of the transition table."""
        return self.transitions < ENOUGH_SEEN or self.asked * 2 < self.transitions

    def level(self) -> bool:
        """Explore the frontier and make what it finds the next one; False where a limit ends that.

        Raises Outgrown; what is left can be given back.
        """
        while len(self.frontier):
            if self.search.is_at_limit(len(self.frontier) + sum(map(len, self.found))):
                return False
            self.expand()
        self.frontier, self.found = np.concatenate(self.found), []
        return True

    def expand(self) -> None:
        """Explore a batch of the frontier; raises Outgrown as `level` does."""
        while True:
            words = self.frontier[:BATCH]
            try:
                changes = self._changes(words)
            except Outgrown:
                self.lay_out_anew()
                continue
            self.found.append(self._take(words, changes))
            self.frontier = self.frontier[BATCH:]
            if sum(map(len, self.found)) >= BATCH:
                self.table.auditor.look_in(self.search.states)
            return

    def given_back(self) -> Iterator[list[int]]:
        """Give all states that were visited, some at a time."""
        for part in self.visited.parts():
            yield self.words.states(part)

    def left(self) -> tuple[list[int], list[int]]:
        """Return the states left of this level, and those of the next that were found."""
        found = [state for part in self.found for state in self.words.states(part)]
        return self.words.states(self.frontier), found

    def bytes_given_back(self) -> int:
        """Return what the states of `given_back` occupy in a set."""
        state = sys.getsizeof(self.words.stores[-1])
        return len(self.visited) * (state + SET_BYTES)

    def bytes_to_come(self) -> int:
        """Return what the next slice may add to what this process occupies."""
        memos = sum(memo.bytes_to_come(BATCH) for memo in self.memos)
        changes = len(self.memos) * BATCH
        return self.visited.bytes_to_come(changes) + memos + _CHANGE_BYTES * changes

    def lay_out_anew(self) -> None:
        """Give numbers more bits, in all words that there are; raises Outgrown."""
        words, before = self.words, list(zip(self.words.widths, self.words.shifts))
        low = np.uint64(words.low)
        words.lay_out()

        def moved(old: Words) -> Words:
            return words.laid_out((old >> low) << np.uint64(words.low), old, before)

        self.move(moved)
        self.memos = [HashMap() for _ in self.memos]

    def move(self, moved: Callable[[Words], Words]) -> None:
        """Replace all words that there are."""
        self.visited.move(moved)
        self.frontier = moved(self.frontier)
        self.found = [moved(part) for part in self.found]

    def _take(self, words: Words, changes: Words) -> Words:
        """Go where the changes lead; return the words that are new."""
        went = _Went(words, changes)
        self._tell(went)
        self.transitions += went.count
        self.search.transitions += went.count
        found: Words = went.after[self.visited.add(went.after)]
        return found

    def _tell(self, went: _Went) -> None:
        """Note violations and ends, in the order of the states."""
        events: list[tuple[int, int, int | None]]
        events = [(at, 1, None) for at in np.flatnonzero(went.stuck).tolist()]
        events += [(at, 0, violation) for at, violation in went.broken()]
        events.sort(key=lambda event: event[:2])
        for at, _, violation in events:
            if violation is None:
                self.search.nobody_can_go_on(self.words.state(int(went.words[at])))
            else:
                self.search.note(self.table.violations[violation])

    def _changes(self, words: Words) -> Words:
        """Return what each task does in each state: a row a state; raises Outgrown."""
        while True:
            if self.forgotten != self.table.forgotten:
                self.forgotten = self.table.forgotten
                self.memos = [HashMap() for _ in self.memos]
            self._drop_outdated()
            changes = np.empty((len(words), len(self.memos)), dtype=np.uint64)
            self._ask_for(words, changes, self._look_up(words, changes))
            self._ask_each(words, changes)
            if self.forgotten == self.table.forgotten:
                return changes

    def _look_up(self, words: Words, changes: Words) -> list[_Unknown]:
        """Fill in what is in the maps; return what is not."""
        unknown = []
        for index, memo in enumerate(self.memos):
            keys = words & self.words.masks[index]
            column = changes[:, index] = memo.get(keys)
            at = np.flatnonzero(column == NOTHING)
            if len(at):
                unknown.append(_Unknown(index, keys.take(at), at))
        return unknown

    def _drop_outdated(self) -> None:
        """Have steps run again that the table no longer remembers: it audits what it does."""
        by_task: dict[int, list[int]] = {}
        for index, position in self.outdated:
            by_task.setdefault(index, []).append(position << self.words.shifts[index])
        for index, positions in by_task.items():
            width, shift = self.words.widths[index], self.words.shifts[index]
            mask = np.uint64(((1 << width) - 1) << shift)
            self.memos[index].drop(mask, np.array(positions, dtype=np.uint64))
        self.outdated.clear()

    def _ask_for(self, words: Words, changes: Words, unknown: list[_Unknown]) -> None:
        """Fill in what is not in the maps yet; steps run in the order in which states need it."""
        to_run: list[tuple[int, int, int]] = []
        answers = []
        for which, one in enumerate(unknown):
            answer = self._remembered(one.index, words.take(one.first).tolist())
            places = enumerate(zip(one.first.tolist(), answer))
            to_run += [(at, which, number) for number, (at, known) in places if known is None]
            answers.append(answer)
            self.asked += len(answer)
        for at, which, number in sorted(to_run):
            answers[which][number] = self._run(unknown[which].index, int(words[at]))
        for one, answer in zip(unknown, answers):
            learnt = np.array(answer, dtype=np.uint64)
            changes[one.at, one.index] = learnt[one.which]
            self.memos[one.index].put(one.keys, learnt)

    def _remembered(self, index: int, words: list[int]) -> list[int | None]:
        """Return what a task does in some states as far as the transition table knows it."""
        layout, rows = self.words, self.table.rows[index]
        low, low_mask, numbers, stores = layout.low, layout.low_mask, layout.numbers, layout.stores
        shift, bits = layout.shifts[index], POSITION_BITS * index
        last = (1 << layout.widths[index]) - 1
        answers: list[int | None] = []
        for word in words:
            row = rows[(word >> shift & last) << bits]
            if row is None:
                answers.append(0)
                continue
            if row.mask & low_mask:
                answers.append(_ASK)
                continue
            before = word >> low
            change = row.memo.get(stores[before] & row.mask)
            if change is not None and change > 0:  # as in `_change`, where only this task moves
                moved = (change & low_mask) >> bits
                if moved > last:
                    raise Outgrown
                stored = change & ~low_mask
                change = moved << shift
                if stored:
                    store = stores[before] ^ stored
                    after = numbers.get(store)
                    if after is None:
                        after = layout.number(store)
                    change |= (before ^ after) << low
                answers.append(change)
            else:
                answers.append(self._change(word, change) if change else change)
        return answers

    def _ask_each(self, words: Words, changes: Words) -> None:
        """Ask for each state where a step goes by the positions of others."""
        for index, column in enumerate(changes.T):
            for at in np.flatnonzero(column == np.uint64(_ASK)).tolist():
                self.asked += 1
                word = int(words[at])
                column[at] = self._change(word, self._move(index, word)[1])

    def _run(self, index: int, word: int) -> int:
        """Return what a task does in a state, or that others' positions count."""
        row, change = self._move(index, word)
        return _ASK if row.mask & self.words.low_mask else self._change(word, change)

    def _move(self, index: int, word: int) -> tuple[Transition, int]:
        """Return a task's position in a state, and what the table says that it does there."""
        state = self.words.state(word)
        row = self.table.rows[index][state & self.table.position_masks[index]]
        assert row is not None
        mask = row.mask
        change = self.table.move(index, row, state)
        if row.mask != mask:
            self.outdated.add((index, row.node.id))
        return row, change

    def _change(self, word: int, change: int) -> int:
        """Return a change of a state as one of its word; raises Outgrown."""
        if change <= 0:
            return _STAYS if change == STAYS else _BREAKS + ~change if change else 0
        words = self.words
        stored = change & ~words.low_mask
        changed = 0
        if stored:
            before = word >> words.low
            after = words.number(words.stores[before] ^ stored)
            changed = (before ^ after) << words.low
        moved = change & words.low_mask
        index = 0
        while moved:
            position = moved & (1 << POSITION_BITS) - 1
            if position:
                if position >> words.widths[index]:
                    raise Outgrown
                changed |= position << words.shifts[index]
            moved >>= POSITION_BITS
            index += 1
        return changed


class _Went:
    """What became of some states: the words that follow, by state and task, and how many steps.

    stuck: where no task could go on. odd: where a step is no change, None if nowhere.
    """

    def __init__(self, words: Words, changes: Words) -> None:
        self.words = words
        self.changes = changes
        moves = changes - _ONE < _ODD - _ONE
        self.after: Words = (words[:, None] ^ changes)[moves]
        odd = changes >= _ODD
        self.odd = odd if odd.any() else None
        goes = moves if self.odd is None else moves | odd
        self.stuck: Flags = ~np.any(goes, axis=1)
        self.count = int(np.count_nonzero(goes))

    def broken(self) -> list[tuple[int, int]]:
        """Return where rules are broken: which state, which violation."""
        if self.odd is None:
            return []
        breaks = np.argwhere(self.odd & (self.changes >= np.uint64(_BREAKS)))
        return [(at, int(self.changes[at, index]) - _BREAKS) for at, index in breaks.tolist()]


class _Unknown:
    """What a task does is not in its map yet: the keys, and which state has which."""

    def __init__(self, index: int, keys: Words, at: Places) -> None:
        self.index = index
        self.at = at
        self.keys, first, self.which = np.unique(keys, return_index=True, return_inverse=True)
        self.first = at[first]
