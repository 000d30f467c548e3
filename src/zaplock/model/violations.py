"""What the model reports when a protocol breaks a rule: never a Python error, never silence."""

from __future__ import annotations

from enum import Enum
from typing import Final, NamedTuple


class Invariant(Enum):
    """The rules that every protocol has to keep, by the names that reports use."""

    NO_PTE_BEHIND_ZAP = "no PTE is installed between the zap and the end of the flush"
    NO_VMA_OVER_FREED_TABLES = "no VMA overlaps a range whose page tables are being freed"
    NO_STALE_VMA = "nobody uses a VMA that was found before the lock was dropped"
    TEARDOWN_ORDER = "tree, PTEs, rmap, page tables, flush, pages: in this order"
    PRIVATE_UNDER_READ = "a field written under a shared hold is private or otherwise locked"
    LOCK_MODE = "the unlock matches the lock, and nothing is touched after it"
    OLD_CONTENT_OR_SIGSEGV = "a racing access sees the old content or SIGSEGV"
    NO_STALE_TRANSLATION = "no CPU can use a translation to a page or table that was returned"
    NO_LIVE_PTE_IN_FREED_TABLE = "a page table with live PTEs is never freed"
    WALK_INSIDE_VMA = "a page-table walk under read stays inside a VMA found under that read"
    ERROR_LEAVES_NO_TRACE = "an error exit leaves map, flags and counters as before"
    BOOKS_BALANCE = "no page is leaked or freed twice, and counters equal a recount"
    NO_DEADLOCK = "somebody can always go on"
    READER_WAITS_EXCLUSIVE_ONLY = "a reader waits no longer than the exclusive part"
    BOUNDED_HOLD = "nobody waits, nor works on pages without a bound, under the mmap_lock"
    RETURN_MEANS_GONE = "an unmap that has returned leaves nothing of its range to be torn down"
    NO_SPURIOUS_ENOMEM = "no ENOMEM only because a range is still being torn down"
    NO_SPURIOUS_SEGV = "no SIGSEGV only because a range is still being torn down"
    SNAPSHOT_PER_VMA = (
        "each line of maps was true during the call, and nothing that stayed is lost or shown twice"
    )
    BOUNDED_BACKLOG = "a thread has at most one range that is dying, or two that are cut"
    DISK_APART = "a writer of the mmap_lock waits for nobody who waits for I/O"
    MUTUAL_EXCLUSION = "a writer is alone inside the semaphore"
    USE_AFTER_FREE = "nobody uses what was freed"
    HOLDER_SEES = "who takes a lock sees what was done under it before"
    FORBIDDEN_OUTCOME = "no run ends as the scenario forbids"
    NO_LIVELOCK = "every task comes to its end if each goes on whenever it can"
    NO_STARVATION = "who asks gets in at some time, however often others ask"
    ASSERTION_HOLDS = "what a step or a protocol asserts is true in every interleaving"
    CODE_RUNS = "the code of steps and protocols raises no Python error"


class InvariantName(NamedTuple):
    """An invariant of a user's own, as reports name it (`check.own_operations`)."""

    name: str
    value: str


class _Made:
    """The violation that was made last: one that nobody raises, or that is caught, is no report."""

    __slots__ = ("last",)

    def __init__(self) -> None:
        self.last: Violation | None = None


made: Final = _Made()


class Violation(Exception):
    """A protocol broke `invariant`; the message names both sides."""

    def __init__(self, invariant: Invariant | InvariantName, message: str) -> None:
        super().__init__(f"{invariant.name}: {message}")
        self.invariant = invariant
        self.message = message
        made.last = self
