"""From a sequence of operations to the program that a bare process runs, and back to outcomes.

Every operation becomes a few entries of the stub and three that observe the address space after it.
The places of all results are known when the program is built, so reading them is indexing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from zaplock import advice
from zaplock.oracle import ops, ring, stub
from zaplock.oracle.composed_calls import remove_segments
from zaplock.oracle.ops import Op
from zaplock.oracle.program_builder import SCANS_OF_HUGE, Builder
from zaplock.oracle.program_operations import operation
from zaplock.oracle.program_setup import MEMINFO_FD, OF_KSM, ProgramNames, begin, begin_ksm

MARK = ring.call("brk", 0) + ring.call("mincore", ring.RING, 1, ring.RING + ring.SCRATCH)
"""brk(0) and a mincore of the ring: the lock for write, then for read, and nothing is changed."""


class Place(NamedTuple):
    """Where an operation's results are: offsets of entries in the program, in bytes.

    `seen`: the entry that copies mincore's vector; `child`: the first of the three that observe
    in a forked child; `after`: the first of the three that observe afterwards. -1: there is none.
    """

    result: int
    seen: int
    child: int
    after: int


_new = tuple.__new__


class BareProgram(NamedTuple):
    """The bytes of a program and where in it each operation's results will be."""

    code: bytes
    places: tuple[Place, ...]
    baseline: int


class Look(NamedTuple):
    """What a program does to show something before its operations, and after each of them."""

    before: bytes
    after: bytes
    needs_meminfo: bool = False


OBSERVING = Look(ring.OBSERVE, ring.OBSERVE)
UNTOUCHED = Look(ring.OBSERVE_UNTOUCHED, ring.OBSERVE_UNTOUCHED)
"""As OBSERVING, where it is compared which pages were used."""
MARKING = Look(ring.call("getpid"), MARK)
"""Nothing but the operations takes the mmap_lock, except that MARK after each shows its end."""

_MEMINFO = stub.entry(
    stub.READ, MEMINFO_FD, ring.BUFFER_ROOM, ring.RING + ring.BUFFER, ring.OUT_FD, 1
)
COMMITTED = Look(_MEMINFO, _MEMINFO, True)
"""The whole machine's /proc/meminfo, for Committed_AS."""
DRAIN = ring.call("madvise", ring.RING + ring.SCRATCH, ring.PAGE, advice.MADV_COLD)
"""Has the CPU work off its lists of pages (lru_add_drain), and does nothing else that shows.

It comes after each operation where it shows what is on such a list. What MADV_FREE has put there is
not lazily free yet; and a list holds its pages, so that wp_can_reuse_anon_folio (mm/memory.c) takes
one that nobody else has for shared, and it is copied. MADV_COLD lists what is active, under MGLRU
(Debian's kernels) every page: folio_deactivate, mm/swap.c. A list is worked off when 31 pages are
on it or something has it done, so which page is copied would be a matter of time.
"""


def build(sequence: Sequence[Op], names: ProgramNames, look: Look = OBSERVING) -> BareProgram:
    """Make the program of a sequence: set-up, operations, each looked at, and the exit."""
    references = ops.shows_references(sequence)
    listed = references or ops.shows_lazyfree(sequence) or ops.lists_pages(sequence)
    if look is not OBSERVING or not listed:
        names = names._replace(cpu=-1)
    build_into = Builder()
    if look is OBSERVING and references:
        look, build_into.observes = UNTOUCHED, ring.OBSERVE_UNTOUCHED
    used = {op.name for op in sequence}
    if not used.isdisjoint(OF_KSM) and any(ops.makes_huge(op) for op in sequence):
        build_into.scans = SCANS_OF_HUGE
    begin(build_into, sequence, names, meminfo=look.needs_meminfo)
    baseline = build_into.add(look.before)
    results: list[int] = []
    places = list[Place]()
    after = (DRAIN if names.cpu >= 0 else b"") + look.after
    drained = len(after) - len(look.after)
    for index, op in enumerate(sequence):
        result, seen, child = operation(build_into, index, op, results, names)
        results.append(result)
        places.append(_new(Place, (result, seen, child, build_into.here + drained)))
        build_into.parts.append(after)
        build_into.here += len(after)
    remove_segments(build_into)
    if not used.isdisjoint(ops.KSM_WRITES):
        begin_ksm(build_into)
    build_into.add(ring.EXIT)
    return BareProgram(b"".join(build_into.parts), tuple(places), baseline)
