"""`release`: zap, then unmap, in the caller's thread.

A munmap of a populated range holds the mmap_lock until the last page is free: 0.3 s for 8 GiB of 4
KiB pages, in which no thread of the process can map, unmap or fork, and `ps` hangs. So the pages
go first, by MADV_DONTNEED in paced pieces, then the empty range, by one munmap. In between the
range stays mapped: nobody else can be given its addresses.

What it costs, and what it does not promise:

- Between zap and unmap a racing access sees zeroes (a file mapping: the file's content) instead of
  the old content or SIGSEGV, and a racing write brings pages back, which the munmap then frees
  under the lock.
- The total time is that of munmap plus the pauses (docs/release.md has the figures).
- The final munmap still frees what DONTNEED leaves: page tables, before 6.14 all of them.
- Every piece passes through the interpreter: a thread that computes in Python can make each of
  them wait for the GIL, up to `sys.getswitchinterval()`. Others don't stall by that; the release
  takes longer.
- Pages in a shared file or segment are only unmapped; they are freed with the file.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from zaplock.release.hold import MemoryHold
from zaplock.release.pace import DEFAULT_BOUND_NS, Pace


@dataclass(frozen=True, slots=True)
class Released:
    """What a release did.

    `length` is the whole pages that were given back, in bytes, `unmapped` whether their addresses
    are free as well, `nr_pieces` into how many calls the work was cut, `longest_piece_ns` the CPU
    time of the longest (about as long as a lock was held), `paused_ns` how much of `total_ns`
    was rest, `left` how many bytes MADV_DONTNEED could not free (device memory).
    """

    address: int
    length: int
    unmapped: bool
    total_ns: int
    paused_ns: int
    nr_pieces: int
    longest_piece_ns: int
    left: int = 0


def release(
    buffer: object,
    length: int | None = None,
    *,
    max_stall_ns: int = DEFAULT_BOUND_NS,
    unmap: bool = True,
) -> Released:
    """Free the memory of `buffer` (or of `length` bytes at an address) without stalling anybody.

    Owners (an address with its length, `mmap.mmap`, `SharedMemory`) are zapped, then unmapped and
    closed. Views (numpy arrays, memoryviews, other writable buffers) are zapped: the whole pages
    inside them are free and read as zero; the addresses go with the last reference, cheaply. The
    GIL is not held while the kernel works.

    - `max_stall_ns`: how long anybody should have to wait at most. Price of a lower bound: more and
      shorter pieces with a rest after each, so a longer total time.
    - `unmap=False`: keep an owner open and its addresses mapped. Price: the address range stays
      reserved, and whatever is written to it is memory again.

    Raises ExportedError (a BufferError) if an owner has exported buffers, BusyError if another
    thread is releasing the same memory, ReleaseError (a ValueError) for everything that isn't the
    caller's to release.
    """
    Pace(max_stall_ns)
    hold = MemoryHold()
    try:
        try:
            hold.take(buffer, length)
            done = finish(hold, max_stall_ns, unmap=unmap)
        finally:
            hold.let_go()
    finally:
        hold.let_go()
    return done  # not inside: the bytecode of a return in a try is in no handler's range


def finish(hold: MemoryHold, max_stall_ns: int, *, unmap: bool = True) -> Released:
    """Do the work on memory that is held; tell what it was."""
    pace, began = Pace(max_stall_ns), time.monotonic_ns()
    left, unmapped = hold.work(pace, unmap=unmap)
    return Released(
        address=hold.target.start,
        length=hold.target.end - hold.target.start,
        unmapped=unmapped,
        total_ns=time.monotonic_ns() - began,
        paused_ns=pace.paused_ns,
        nr_pieces=pace.nr_pieces,
        longest_piece_ns=pace.longest_ns,
        left=left,
    )
