"""How much to do at a time, so that nobody waits longer than a bound: measured as it goes.

Everything that works on a huge range in pieces is paced alike. A piece holds a lock (the VMA's or
the mmap_lock) for about as long as it uses the CPU; so the next piece is as long as the last one's
cost per byte allows for `max_stall_ns / SHARE`. The thread's CPU time is the measure, not the
clock: in Python the return from a system call may wait milliseconds for the GIL, when the lock is
long free.

After an empty stretch a piece may meet a full one. So no piece is longer than what the bound allows
if all its pages are there, at the price of the dearest page seen so far.

After each piece the worker sleeps. Without that it takes the mmap_lock again before the waiter whom
it woke is running, and goes on until the rwsem's handoff, 4 ms later; with it, each waiter has its
turn. Pieces are whole 2 MiB where they can be: then the kernel frees
the page-table page along with its pages (CONFIG_PT_RECLAIM, 6.14), and a transparent huge page is
not split.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from zaplock.release.errors import ReleaseError
from zaplock.release.syscalls import HUGE, PAGE

SHARE: Final = 3
"""Part of the bound that one piece may use: the rest is for waking up, and for a missed turn."""
PAUSE_NS: Final = 50_000
LEAST: Final = 256 << 10
SHORTEST_BOUND_NS: Final = 100_000
DEFAULT_BOUND_NS: Final = 5_000_000


@dataclass(slots=True)
class Pace:
    """The bound, the length of the next piece in bytes, and what was seen so far.

    `page_ns` is what a page costs at most, in nanoseconds: an assumption until more was seen.
    """

    max_stall_ns: int = DEFAULT_BOUND_NS
    length: int = HUGE
    page_ns: int = 150
    nr_pieces: int = 0
    longest_ns: int = 0
    paused_ns: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.max_stall_ns, int) or self.max_stall_ns < SHORTEST_BOUND_NS:
            raise ReleaseError(
                f"max_stall_ns={self.max_stall_ns!r} must be an integer of at least "
                f"{SHORTEST_BOUND_NS} (0.1 ms): waking a waiter takes a part of that"
            )

    def learn(self, length: int, took_ns: int) -> None:
        """Choose the next length from what one piece of `length` bytes took."""
        self.nr_pieces += 1
        self.longest_ns = max(self.longest_ns, took_ns)
        self.page_ns = max(self.page_ns, took_ns * PAGE // length)
        allowed = min(
            length * self.max_stall_ns // SHARE // max(took_ns, 1),
            self.max_stall_ns * PAGE // self.page_ns,
            2 * self.length,
        )
        unit = HUGE if allowed >= HUGE else LEAST
        self.length = max(allowed // unit * unit, LEAST)

    def rest(self) -> None:
        """Sleep, so that whoever waits gets the lock before the next piece."""
        began = time.monotonic_ns()
        time.sleep(PAUSE_NS / 1e9)
        self.paused_ns += time.monotonic_ns() - began


def pieces(
    start: int, end: int, pace: Pace, work: Callable[[int, int], None], page_size: int = PAGE
) -> None:
    """Call `work(address, length)` piece by piece over a range, resting after each but the last.

    The range is whole pages of `page_size` bytes, and so is each piece.
    """
    while start < end:
        length = max(pace.length // page_size * page_size, page_size)
        stop = min(start + length, end)
        if stop < end and length >= HUGE:
            stop -= stop % HUGE  # a whole number of page-table pages from the second piece on
        began = time.thread_time_ns()
        work(start, stop - start)
        pace.learn(stop - start, time.thread_time_ns() - began)
        start = stop
        if start < end:
            pace.rest()
