"""The rule of a search's own: what a load or a store can give, looked at alone.

What the kernel shows can't judge a model that allows too much: a page whose content goes before its
mapping does, say, may always have kept it by chance. So a search holds the model to a rule that
knows nothing of its steps (`Invariant.OLD_CONTENT_OR_SIGSEGV`): what an access gives, it gives in
some order of *moments*. A call is done as a whole at one moment, but for what `page_moments` names;
and from then until it returns a CPU may still know what the call has taken away: a translation of
the page that was found before and is not flushed yet. Who reads by that gets the old content, who
writes by it changes the old page, and both are done. Only who asks for the mmap_lock for write
waits until a call that excludes it has returned; MADV_DONTNEED excludes nobody from 6.17 on, as it
flushes when it has let go of the VMA.

Each access is looked at alone, and with it one page, so that what else happens is left open: what
other operations return does not matter. Orders of the same state are one. A search of more than
`MOST_MOVES` moves tells nothing.
"""

from __future__ import annotations

import types
from collections.abc import Generator
from typing import Any, NamedTuple

from zaplock import advice
from zaplock.model.flags import PAGE_MASK, PAGE_SHIFT
from zaplock.model.frames import ZERO_PFN
from zaplock.model.pagetable import ABSENT
from zaplock.model.rwsem import LockStep
from zaplock.oracle import ops
from zaplock.oracle.ops import Op
from zaplock.oracle.page_moments import (
    EXCLUSIVE,
    FAULT,
    OF_ALL,
    POPULATING,
    Moments,
    covers,
    moments,
)
from zaplock.oracle.threaded import FORK_LOAD, number_of
from zaplock.oracle.whole_operations import (
    ACCESSES,
    WholeOperations,
    fork_child,
    load_and_exit,
    result_of,
    start,
)
from zaplock.protocols import user_access
from zaplock.protocols.design import Cx
from zaplock.protocols.madvise import DONTNEEDS

Access = tuple[int, int]
"""A load or store: its thread, and which of the thread's operations it is."""
MOST_MOVES = 20_000
_WRITES = ("store", "pread", "process_vm_writev")
_USES_A_PAGE = ("load", *_WRITES)
"""What may access a page that is gone by then; _WRITES are those that write to it."""


def accesses_of(whole: WholeOperations) -> list[Access]:
    """List the accesses of a program."""
    return [
        (thread, index)
        for thread, operations in enumerate(whole.threaded.threads)
        for index, op in enumerate(operations)
        if op.name in ACCESSES
    ]


def given(whole: WholeOperations, access: Access) -> set[int]:
    """Return all that an access can give."""
    return _Orders(whole, access, None).search()


def strange(whole: WholeOperations, access: Access, results: set[int]) -> tuple[set[int], set[int]]:
    """Return those of an access's results that no order gives, and where there are any, what does.

    None are, as far as can be told, where the search came to its limit.
    """
    orders = _Orders(whole, access, results)
    found = orders.search()
    return (results - found if orders.is_whole else set()), found


class OldTranslation(NamedTuple):
    """A translation that CPUs may still have: to which frame, what that held last, may it write?"""

    frame: int
    tag: int
    writable: bool


class _Place(NamedTuple):
    """How far a thread has come: with its operation number `at`, which is done or not.

    known: what it has taken away of the page, until it returns. past: frames that its own CPU knows
    no longer, since it has looked the page up after they were taken away.
    """

    at: int = 0
    done: bool = False
    known: tuple[OldTranslation, ...] = ()
    past: frozenset[int] = frozenset()

    def next(self) -> _Place:
        """Return where the thread is when its operation has returned."""
        return _Place(self.at + 1, past=self.past)


_Places = tuple[_Place, ...]
_Tried = frozenset[tuple[int, Op]]
"""What threads have done beside their operations since the last one was done as a whole."""


class _Orders:
    """All orders of the moments of a program, for one access and its page."""

    def __init__(self, whole: WholeOperations, access: Access, wanted: set[int] | None) -> None:
        self.whole, self.access, self.wanted = whole, access, wanted
        self.threads = whole.threaded.threads
        address = self.threads[access[0]][access[1]].args[0]
        assert isinstance(address, int)
        self.page = address & PAGE_MASK
        self.moments: list[list[Moments]] = [
            [moments(op, self.page) for op in operations] for operations in self.threads
        ]
        design = whole.design
        self._flushes_late = design.dontneed_flushes_once and design.dontneed_lock == "vma"
        self.world = whole.world()
        self.store = self.world.machine.store
        self.found: set[int] = set()
        self.is_whole = True
        self._been = set[tuple[_Places, _Tried, int]]()
        self._moves = 0

    def search(self) -> set[int]:
        """Return what the access gives: all of it, or until what was wanted is found."""
        self.store.start_journal()
        self._go_on((_Place(),) * len(self.threads), frozenset())
        return self.found

    def _go_on(self, places: _Places, tried: _Tried) -> None:
        here = places, tried, self.store.hash
        if here in self._been or (self.wanted is not None and self.wanted <= self.found):
            return
        self._been.add(here)
        under_way = [
            (thread, place)
            for thread, place in enumerate(places)
            if place.at < len(self.threads[thread])
        ]
        for thread, place in under_way:
            if place.done:
                self._return(places, tried, thread)
            else:
                self._whole(places, thread)
                if place.known and self.moments[thread][place.at].begins_anew:
                    again = place._replace(known=())
                    self._go_on((*places[:thread], again, *places[thread + 1 :]), tried)
        for thread, place in under_way:
            parts = self.moments[thread][place.at]
            for part in parts.after if place.done else parts.before:
                if (thread, part) not in tried:
                    self._part(places, tried, thread, part)

    def _may_move(self) -> bool:
        self._moves += 1
        self.is_whole = self.is_whole and self._moves <= MOST_MOVES
        return self.is_whole

    def _whole(self, places: _Places, thread: int) -> None:
        """Do a thread's operation as a whole."""
        if not self._may_move():
            return
        place = places[thread]
        op = self.threads[thread][place.at]
        judged = (thread, place.at) == self.access
        known = self._known(places, thread)
        if judged:
            self.found.update(_by_translation(op, known))
        elif known and op.name in _USES_A_PAGE and covers(op, self.page):
            self._at_a_page_gone(places, thread, op)
        mark, seen = self.store.mark(), self._seen()
        result = self._do(thread, place.at, op)
        if judged and (op.name != FORK_LOAD or result < 0):
            self.found.add(result)
        elif self.store.hash == mark[1] or not self._waits(places, thread, op):
            place = self._after(places, thread, op, seen)._replace(done=True)
            has_child = op.name == FORK_LOAD and result >= 0
            if not (has_child or place.known or self.moments[thread][place.at].after):
                place = place.next()
            places = (*places[:thread], place, *places[thread + 1 :])
            self._go_on(places, frozenset())
        self.store.undo(mark)
        if op.name in POPULATING and not self._waits(places, thread, op):
            self._unpopulated(places, thread, op)

    def _unpopulated(self, places: _Places, thread: int, op: Op) -> None:
        """Do a thread's operation without what it populates."""
        mark, seen = self.store.mark(), self._seen()
        place = places[thread]

        def begin(cx: Cx) -> Any:
            return _before_populating(start(cx, number_of(thread, place.at), op))

        if self.whole.run(self.world, thread, begin):
            place = place._replace(done=True, known=self._taken(seen))
            self._go_on((*places[:thread], place, *places[thread + 1 :]), frozenset())
        self.store.undo(mark)

    def _at_a_page_gone(self, places: _Places, thread: int, op: Op) -> None:
        """Let an access go to a page that is taken away, and be done with that."""
        tag = ops.store_tag(number_of(thread, places[thread].at))
        for other, place in enumerate(places):
            for known in place.known if other != thread else ():
                if known.frame in places[thread].past:
                    continue
                if op.name in _WRITES and not known.writable:
                    continue
                if not self._may_move():
                    return
                mark = self.store.mark()
                if self._is_there(known.frame) and op.name in ops.WRITERS:
                    self.world.machine.content.set(known.frame, known.frame + 1, tag)
                written = known._replace(tag=tag) if op.name in ops.WRITERS else known
                left = tuple(written if one == known else one for one in place.known)
                moved = list(places)
                moved[other] = place._replace(known=left)
                others = frozenset(one.frame for place in places for one in place.known)
                past = places[thread].past | others - {known.frame}
                moved[thread] = places[thread]._replace(past=past).next()
                self._go_on(tuple(moved), frozenset())
                self.store.undo(mark)

    def _part(self, places: _Places, tried: _Tried, thread: int, part: Op) -> None:
        """Do what an operation may do to the page beside what it does as a whole."""
        if not self._may_move():
            return
        place = places[thread]
        mark, seen = self.store.mark(), self._seen()
        self._do(thread, place.at, part)
        if self.store.hash != mark[1]:
            place = self._after(places, thread, self.threads[thread][place.at], seen)
            places = (*places[:thread], place, *places[thread + 1 :])
            self._go_on(places, tried | {(thread, part)})
        self.store.undo(mark)

    def _after(self, places: _Places, thread: int, op: Op, seen: OldTranslation | None) -> _Place:
        """Return a thread's place with what its operation, or a part of that, has taken away.

        Who accesses the page by itself has looked it up, and knows nothing older any more.
        """
        place, past = places[thread], frozenset[int]()
        if op.name in ("load", "store") and covers(op, self.page):
            past = frozenset(known.frame for one in places for known in one.known)
            now = self._seen()
            past -= {now.frame} if now else set()
        known = dict.fromkeys((*place.known, *self._taken(seen)))
        return place._replace(known=tuple(known), past=place.past | past)

    def _return(self, places: _Places, tried: _Tried, thread: int) -> None:
        """Let a thread's operation return: what it has taken away is flushed by then."""
        place = places[thread]
        op = self.threads[thread][place.at]
        mark = self.store.mark()
        if op.name == FORK_LOAD:
            loaded = self.whole.run(self.world, thread, load_and_exit, op.args[0])
            if (thread, place.at) == self.access:
                self.found.add(result_of(op, loaded))
                self.store.undo(mark)
                return
        self._go_on((*places[:thread], place.next(), *places[thread + 1 :]), tried)
        self.store.undo(mark)

    def _do(self, thread: int, index: int, op: Op) -> int:
        if op.name == FAULT:
            return self.whole.run(self.world, thread, user_access.user_fault, *op.args)
        if op.name == FORK_LOAD:
            return result_of(op, self.whole.run(self.world, thread, fork_child))
        return self.whole.do(self.world, thread, index, op)

    def _waits(self, places: _Places, thread: int, op: Op) -> bool:
        """Return whether an operation has to wait for one that is not flushed yet."""
        return op.name in EXCLUSIVE and any(
            place.known and other != thread and self._keeps_out(other, place.at, op)
            for other, place in enumerate(places)
        )

    def _keeps_out(self, other: int, index: int, op: Op) -> bool:
        holder = self.threads[other][index]
        if holder.name == "ftruncate" or advice.MADV_REMOVE in holder.args[2:3]:
            return False  # they look for who maps a file, and hold none of its locks
        if self._flushes_late and set(DONTNEEDS) & {*holder.args[2:3]}:
            return False  # they have given the VMA's lock back by then
        return holder.name in EXCLUSIVE or op.name in OF_ALL or covers(op, self.page)

    # What a page's entry says

    def _seen(self) -> OldTranslation | None:
        """Return what a CPU finds that looks the page up."""
        vpn = self.page >> PAGE_SHIFT
        pte = self.world.space.ptes.at(vpn)
        if pte is None or pte.kind in ABSENT or pte.no_access:
            return None
        frame = ZERO_PFN if pte.kind in ("zero", "zero_thp") else vpn + pte.delta
        return OldTranslation(frame, self.world.machine.content.at(frame) or 0, pte.writable)

    def _taken(self, seen: OldTranslation | None) -> tuple[OldTranslation, ...]:
        """Return what has been taken away of what a CPU had seen, if anything was."""
        now = self._seen()
        if seen is None or (now and now.frame == seen.frame and now.writable >= seen.writable):
            return ()
        return (seen,)

    def _is_there(self, frame: int) -> bool:
        found = self.world.machine.frames.at(frame)
        return found is not None and not found.freed_by

    def _known(self, places: _Places, thread: int) -> list[OldTranslation]:
        """List what a thread's CPU may still know of the page, with what it holds by now."""
        content, past = self.world.machine.content, places[thread].past
        return [
            known._replace(tag=content.at(known.frame) or 0)
            if self._is_there(known.frame)
            else known
            for place in places
            for known in place.known
            if known.frame not in past
        ]


def _by_translation(op: Op, known: list[OldTranslation]) -> set[int]:
    """Return what an access gives by a translation that is not flushed yet."""
    if op.name == "load":
        return {one.tag for one in known}
    return {0} if op.name == "store" and any(one.writable for one in known) else set()


@types.coroutine
def _before_populating(protocol: Any) -> Generator[Any, Any, int]:
    """Do an operation until it asks for the mmap_lock for read, having had it for write: 1; or 0.

    0 where it does not ask for that and has come to its end.
    """
    has_written, result = False, None
    try:
        while True:
            awaited = protocol.send(result)
            if isinstance(awaited, LockStep) and awaited.lock[0] == "mmap_lock":
                if has_written and awaited.action == "down" and not awaited.write:
                    return 1
                has_written = has_written or awaited.write
            result = yield awaited
    except StopIteration:
        return 0
    finally:
        protocol.close()
