"""Levels of a search in C, which keeps states and what steps do, and asks for the rest.

A state is a word, as in `wide_levels`: each task's position in some bits, above them the number of
what the store holds. Words are in the order in which they were met, so a level is a part of them,
and beside them stand slots of four bytes (open addressing). Contents of the store are limbs of 64
bits, each once. What a step does is remembered as `transitions` does it, by those bits of a state
that it looks at.

C knows nothing of steps, rules or Python. It goes on until it needs what a step does in a state,
meets one that breaks a rule or one in which nobody can go on, and returns; so all steps run in the
order in which `Search.expand` runs them, and everything found is the same, in the same order.

The library is compiled from source once and kept (`zaplock.compiled`). It is looked for when a
process has visited a few thousand states without it. It is compiled, which takes a fifth of a
second, where a frontier is so wide that many more states are ahead, or when a process has visited
so many without it that this took longer. Without a compiler all searches go on in Python.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from zaplock.compiled.build import already_built, built
from zaplock.engines.checking import exhaustive
from zaplock.engines.checking.exhaustive import SET_BYTES, Outgrown
from zaplock.engines.checking.positions import POSITION_BITS
from zaplock.errors import UserError

if TYPE_CHECKING:
    from zaplock.engines.checking.exhaustive import Search
    from zaplock.engines.checking.transitions import Transition

SOURCE: Final = Path(__file__).with_name("compiled_levels.c")
FLAGS: Final = ("-O2", "-Wall", "-shared", "-fPIC", "-pthread")

LOOK_AFTER: Final = 2_000
"""States that a process visits in Python before it looks whether the library is kept."""
COMPILE_AFTER: Final = 300_000
"""And before it compiles it, if no frontier was wide."""

AHEAD: Final = 2
"""Slices behind one that other cores may begin with before it is done."""

LIMB: Final = 64
WORD_BITS: Final = 63
"""The highest bit of a limb tells C what is no word."""
SPARE: Final = 128
"""Bits that contents of the store may grow by before there is another limb."""
NUMBER_BITS: Final = 20
"""What the numbers of contents get of a word, where positions leave as much."""

_DONE, _ASK, _BREAKS, _STUCK, _FULL, _NO_MEMORY = range(6)


class LevelsLibrary:
    """The library, once it is there, and how many states this process has visited without it."""

    def __init__(self) -> None:
        self.loaded: ctypes.CDLL | None = None
        self.visited = 0
        self._looks_at = LOOK_AFTER
        self._may_compile = True

    def is_there(self, states: int, is_wide: bool) -> bool:
        """Return whether the library is there after so many more states without it.

        is_wide: so many states are ahead that it is worth compiling.
        """
        self.visited += states
        if self.loaded is not None:
            return True
        if self._may_compile and (is_wide or self.visited >= COMPILE_AFTER):
            self._may_compile = False
            self.load(may_compile=True)
        elif self.visited >= self._looks_at:
            self._looks_at = sys.maxsize
            self.load(may_compile=False)
        return self.loaded is not None

    def load(self, may_compile: bool) -> None:
        """Load the library if it is kept, or can be compiled and may be."""
        if sys.byteorder != "little":  # as limbs are written here
            return
        beside, kept = SOURCE.parent, "checking"
        try:
            path = already_built(SOURCE, FLAGS, beside=beside, kept=kept)
            if path is None and may_compile:
                path = built(SOURCE, FLAGS, beside=beside, kept=kept, named="the checker's levels")
            if path is not None:
                self.loaded = _declared(ctypes.CDLL(str(path)))
        except (UserError, OSError, subprocess.SubprocessError):
            # No cache of ours, no compiler, or it can't: all searches go on in Python.
            self._may_compile = False

    def get(self) -> ctypes.CDLL:
        """Return the library, which is there."""
        assert self.loaded is not None
        return self.loaded


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    handle, limbs, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint64
    widths = ctypes.POINTER(ctypes.c_uint32)
    for name, result, arguments in (
        ("new", handle, (ctypes.c_uint32, ctypes.c_uint32, widths, *[ctypes.c_uint32] * 3)),
        ("free", None, (handle,)),
        ("settle", ctypes.c_int, (handle,)),
        ("forget", ctypes.c_int, (handle,)),
        ("widen_row", ctypes.c_int, (handle, ctypes.c_uint32, ctypes.c_uint32, limbs)),
        ("lay_out", ctypes.c_int, (handle, widths)),
        ("widen", ctypes.c_int, (handle, ctypes.c_uint32)),
        ("take", ctypes.c_int, (handle, limbs, number)),
        ("begin", None, (handle, number)),
        ("go", ctypes.c_int, (handle, number, number, number)),
        ("ended", ctypes.c_int, (handle,)),
        ("learn", ctypes.c_int, (handle, limbs, ctypes.c_int64, limbs)),
        ("show", None, (handle, number, number, limbs)),
        ("visited", number, (handle, ctypes.POINTER(number), number, limbs)),
        ("bytes_to_come", number, (handle, number)),
    ):
        function = getattr(library, f"levels_{name}")
        function.restype, function.argtypes = result, arguments
    return library


levels_library: Final = LevelsLibrary()


class _Seen(ctypes.Structure):
    """The beginning of `struct levels`, which says what these are."""

    now: int
    index: int
    at: int
    met: int
    stores: int
    before: int
    code: int
    _fields_ = (
        ("now", ctypes.c_void_p), ("index", ctypes.c_uint64), ("at", ctypes.c_uint64),
        ("met", ctypes.c_uint64), ("stores", ctypes.c_uint64), ("before", ctypes.c_uint64),
        ("code", ctypes.c_int64),
    )  # fmt: skip


class CompiledLevels:
    """A search that was begun by `Search`, from a frontier on, its levels explored in C."""

    def __init__(self, search: Search, frontier: list[int]) -> None:
        self.search = search
        self.table = search.table
        library = self.library = levels_library.get()
        self.widths = self._widths_needed()
        self.limbs, self.room = self._limbs_needed()
        self.handle = library.levels_new(
            len(self.widths), self.limbs, _uint32s(self.widths), search.cores,
            exhaustive.WIDE, exhaustive.SLICE,
        )  # fmt: skip
        if not self.handle:
            raise MemoryError("for the levels of a search")
        weakref.finalize(self, library.levels_free, self.handle)
        self._seen = _Seen.from_address(self.handle)
        self.forgotten, self.widened = self.table.forgotten, self.table.widened
        self.masks: dict[Transition, tuple[int, int, bytes]] = {}
        """Of the steps that C knows: whose each is, and what it looks at, as limbs too."""
        self.transitions = search.transitions
        """Of states that were explored elsewhere."""
        self.met = 0
        ahead = set(frontier)
        for states in search.all_visited():
            self._take(state for state in states if state not in ahead)
        self._take(frontier)
        self.end = self.met
        self.at = self.met - len(frontier)
        library.levels_begin(self.handle, self.at)

    @property
    def visited(self) -> range:
        """The numbers of all states that were met."""
        return range(self.met)

    @property
    def frontier(self) -> range:
        """The numbers of the states of this level that are left to explore."""
        return range(self.at, self.end)

    def is_worth_it(self) -> bool:
        """Return whether to go on like this: it always is."""
        return True

    def level(self) -> bool:
        """Explore the frontier and make what it finds the next one; False where a limit ends that.

        Raises Outgrown; what is left can be given back.
        """
        first = self.at
        while self.at < self.end:
            if self.search.is_at_limit(self.met - self.at):
                _succeeded(self.library.levels_settle(self.handle))
                self.met = self._seen.met
                return False
            until = min(self.at + exhaustive.SLICE, self.end)
            ahead = until + AHEAD * exhaustive.SLICE
            # After this level's states come those of the next that are met by then.
            self._explore(until, ahead if until == self.end else min(ahead, self.end))
            if self.at - first >= exhaustive.SLICE:
                self.table.auditor.look_in(self.at)  # other cores go on meanwhile
        self.end = self.met
        return True

    def _explore(self, until: int, ahead: int) -> None:
        library, search, event = self.library, self.search, -1
        # Where a level ends, and where there may be too many states, it matters how many there are.
        most = 0 if until == self.end else search.limits.states
        self._follow_the_table()
        try:
            while event != _DONE:
                event = library.levels_go(self.handle, until, ahead, most)
                if event == _ASK:
                    self._answer()
                elif event == _BREAKS:
                    search.note(self.table.violation(self._seen.code))
                elif event == _STUCK:
                    search.nobody_can_go_on(self._state_at_hand())
                elif event == _FULL:
                    self.lay_out_anew()
                else:
                    _succeeded(event)
        except BaseException:
            _succeeded(library.levels_settle(self.handle))
            raise
        finally:
            seen = self._seen
            self.at, self.met = seen.at, seen.met
            search.transitions = self.transitions + seen.before

    def _answer(self) -> None:
        """Say what a step does that was asked for; raises Outgrown."""
        table, index, library = self.table, self._seen.index, self.library
        state = self._state_at_hand()
        row = table.rows[index][state & table.position_masks[index]]
        if row is None:
            library.levels_ended(self.handle)
            return
        mask = row.mask
        change = table.move(index, row, state)
        if row.mask != mask:  # the table has dropped what the step did before
            self.masks.pop(row, None)
        self._follow_the_table()
        known = self.masks.get(row)
        if known is None or known[1] != row.mask:
            limbs = self._limbs(row.mask, self._mask_of_positions(row.mask))
            known = self.masks[row] = index, row.mask, limbs
        if change <= 0:
            _succeeded(library.levels_learn(self.handle, known[2], change, b""))
            return
        try:
            limbs = self._limbs(change, self._positions(change))
        except Outgrown:
            self.lay_out_anew()
            return
        _succeeded(library.levels_learn(self.handle, known[2], 1, limbs))

    def _follow_the_table(self) -> None:
        """Have asked again what the table has dropped; look where it looks."""
        table = self.table
        if table.packed.layout.bits > self.room:
            self._widen()
        if self.forgotten != table.forgotten:
            self.forgotten = table.forgotten
            self.masks.clear()
            _succeeded(self.library.levels_forget(self.handle))
        if self.widened != table.widened:
            self.widened = table.widened
            for row, (index, mask, _) in self.masks.items():
                if row.mask != mask:
                    self._widen_row(index, row)

    def _widen_row(self, index: int, row: Transition) -> None:
        limbs = self._limbs(row.mask, self._mask_of_positions(row.mask))
        self.masks[row] = index, row.mask, limbs
        _succeeded(self.library.levels_widen_row(self.handle, index, row.node.id, limbs))

    def _widths_needed(self, of_number: int = 1) -> list[int]:
        """Return how many bits each task's positions get, where the number needs so many at least.

        Raises Outgrown.
        """
        widths = [max(trie.nodes).bit_length() + 1 for trie in self.table.tries]
        left = WORD_BITS - sum(widths)
        if left < of_number:
            raise Outgrown
        spare = max(left - max(of_number, NUMBER_BITS), 0) // len(widths)
        return [width + spare for width in widths]

    def _limbs_needed(self) -> tuple[int, int]:
        """Return how many limbs the positions and the store get, and for which bits of a state."""
        layout = self.table.packed.layout
        limbs = -(-(layout.bits - layout.reserved + SPARE) // LIMB)
        return 1 + limbs, layout.reserved + LIMB * limbs

    def lay_out_anew(self) -> None:
        """Give positions and numbers the bits that they need by now; raises Outgrown."""
        self.widths = self._widths_needed(self._seen.stores.bit_length() + 1)
        _succeeded(self.library.levels_lay_out(self.handle, _uint32s(self.widths)))
        self._write_masks()

    def _widen(self) -> None:
        self.limbs, self.room = self._limbs_needed()
        _succeeded(self.library.levels_widen(self.handle, self.limbs))
        self._write_masks()

    def _write_masks(self) -> None:
        """Have the limbs of masks as C has them by now."""
        for row, (index, mask, _) in self.masks.items():
            self.masks[row] = index, mask, self._limbs(mask, self._mask_of_positions(mask))

    def _limbs(self, bits: int, positions: int) -> bytes:
        """Return bits of the store as C has them, behind positions as a word has them."""
        store = bits >> self.table.packed.layout.reserved
        return (store << LIMB | positions).to_bytes(8 * self.limbs, "little")

    def _positions(self, state: int) -> int:
        """Return the positions in a state, or their change, as a word has them; raises Outgrown."""
        word = shift = 0
        left = state & self.table.packed.low_mask
        for width in self.widths:
            if not left:
                break
            position = left & (1 << POSITION_BITS) - 1
            if position >> width:
                raise Outgrown
            word |= position << shift
            left >>= POSITION_BITS
            shift += width
        return word

    def _mask_of_positions(self, mask: int) -> int:
        """Return which positions are under a mask, as a word has them: each is whole or not."""
        word = shift = 0
        for width, of_task in zip(self.widths, self.table.position_masks):
            if mask & of_task:
                word |= ((1 << width) - 1) << shift
            shift += width
        return word

    def _state_at_hand(self) -> int:
        return self._state_of(ctypes.string_at(self._seen.now, 8 * self.limbs))

    def _state_of(self, limbs: bytes) -> int:
        """Return the state that C wrote down."""
        word = int.from_bytes(limbs[: LIMB // 8], "little")
        positions = shift = 0
        for width in self.widths:
            positions |= (word & (1 << width) - 1) << shift
            word >>= width
            shift += POSITION_BITS
        store = int.from_bytes(limbs[LIMB // 8 :], "little")
        return positions | store << self.table.packed.layout.reserved

    def _take(self, states: Iterable[int]) -> None:
        limbs = [self._limbs(state, self._positions(state)) for state in states]
        self.take_limbs(b"".join(limbs), len(limbs))

    def take_limbs(self, limbs: bytes, count: int) -> None:
        """Take in states that were met before, one after another as C has them; raises Outgrown."""
        event = self.library.levels_take(self.handle, limbs, count)
        if event == _FULL:
            raise Outgrown
        _succeeded(event)
        self.met = self._seen.met

    def given_back(self) -> Iterator[list[int]]:
        """Give all states that were visited, some at a time."""
        slot, size = ctypes.c_uint64(0), 8 * self.limbs
        shown = ctypes.create_string_buffer(exhaustive.SLICE * size)
        while count := self.library.levels_visited(self.handle, slot, exhaustive.SLICE, shown):
            limbs = shown.raw
            yield [self._state_of(limbs[at : at + size]) for at in range(0, count * size, size)]

    def left(self) -> tuple[list[int], list[int]]:
        """Return the states left of this level, and those of the next that were found."""
        return self._shown(self.at, self.end), self._shown(self.end, self.met)

    def _shown(self, first: int, last: int) -> list[int]:
        size, limbs = 8 * self.limbs, self.limbs_of(first, last)
        return [self._state_of(limbs[at : at + size]) for at in range(0, len(limbs), size)]

    def limbs_of(self, first: int, last: int) -> bytes:
        """Return the states with the numbers from `first` up to `last`, as C has them."""
        shown = ctypes.create_string_buffer((last - first) * 8 * self.limbs + 1)
        self.library.levels_show(self.handle, first, last, shown)
        return shown.raw[:-1]

    def bytes_given_back(self) -> int:
        """Return what the states of `given_back` occupy in a set."""
        return self.met * (sys.getsizeof(self.table.initial) + 8 * self.limbs + SET_BYTES)

    def bytes_to_come(self) -> int:
        """Return what the next slice may add to what this process occupies."""
        most = exhaustive.SLICE * len(self.widths)
        return int(self.library.levels_bytes_to_come(self.handle, most))


def _uint32s(numbers: list[int]) -> ctypes.Array[ctypes.c_uint32]:
    return (ctypes.c_uint32 * len(numbers))(*numbers)


def _succeeded(event: int) -> None:
    if event == _NO_MEMORY:
        raise MemoryError("for the levels of a search")
