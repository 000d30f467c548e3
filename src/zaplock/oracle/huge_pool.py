"""Pools of huge pages for as long as a run needs them; what they were given is taken back.

The pools are the machine's: 512 MiB of its memory as pages of 2 MiB, for the theme "gigantic" also
2 GiB as pages of 1 GiB (see `kept`). These are touched once when they are lent, since a virtual
machine may have to find a gigabyte for it first: 15 s were seen, where the next touch took 0.3 s.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from zaplock.errors import UserError
from zaplock.oracle.kept import kept
from zaplock.oracle.rights import way_out

POOLS = Path("/sys/kernel/mm/hugepages")
SIZE, GIGANTIC = 2 << 20, 1 << 30
PAGES = 256
"""More pages of 2 MiB than a sequence of the generator can use."""
GIGANTIC_PAGES = 2
"""Fewer of 1 GiB than a sequence asks for: that a pool is empty is a part of the theme."""

_ADD = """
import fcntl, mmap
folder, pages, touched = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
def read(name):
    with open(f'{folder}/{name}_hugepages') as file:
        return int(file.read())
def given():
    return read('nr') - read('surplus')
def add(pages):
    with open(f'{folder}/nr_hugepages', 'w') as pool:
        fcntl.flock(pool, fcntl.LOCK_EX)  # others read and write it meanwhile, too
        before = given()
        pool.write(str(max(before + pages, 0)))
        pool.flush()
        got = given() - before
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000 | touched.bit_length() - 1 << 26
    held = []
    try:
        for _ in range(read('free') - read('resv')) if touched and got > 0 else ():
            held.append(mmap.mmap(-1, touched, flags=flags))
            held[-1][0] = 1
    except OSError:  # others were quicker
        pass
    for one in held:
        one.close()
    return got
keep(lambda: add(pages), lambda got: add(-got))
"""


def pool_of(size: int = SIZE) -> Path:
    """Return where the kernel shows, and takes, how many huge pages of so many bytes there are."""
    return POOLS / f"hugepages-{size >> 10}kB"


def owed_pages(size: int = SIZE) -> int:
    """Count the pages that others use or have reserved beyond what the pool was given.

    A reservation that the kernel has lost is one, too: it stays until the machine is booted.
    """
    total, free, reserved = pool_figures(size)
    return max(0, total - free + reserved - given_pages(size))


def given_pages(size: int = SIZE) -> int:
    """Return how many pages a pool was given; those that it has beyond that are others' surplus."""
    nr, surplus = (int((pool_of(size) / f"{a}_hugepages").read_text()) for a in ("nr", "surplus"))
    return nr - surplus


def pool_figures(size: int = SIZE) -> tuple[int, int, int]:
    """Return how many huge pages there are, how many nobody uses, and how many are reserved."""
    total, free, reserved = (
        int((pool_of(size) / f"{name}_hugepages").read_text()) for name in ("nr", "free", "resv")
    )
    return total, free, reserved


@contextmanager
def huge_pages(
    pages: int = PAGES, size: int = SIZE, theme: str = "hugetlb", least: int = 0
) -> Iterator[None]:
    """Let a pool have so many pages more that nobody has reserved, or `least` where those will do.

    Raises UserError where it can't.
    """
    if not pool_of(size).exists():
        raise UserError(
            f"there is no {pool_of(size)}: the theme {theme} needs huge pages of {size >> 20} MiB, "
            "which this CPU or kernel lacks, so leave it out"
        )
    owed = owed_pages(size)
    pages, least = pages + owed, (least or pages) + owed
    touched = size if size == GIGANTIC else 0
    with kept(_ADD, pool_of(size), pages, touched) as got:
        if got < 0:
            raise UserError(
                f"can't make a pool of {pages} huge pages of {size >> 20} MiB "
                f"({os.strerror(-got)}): {way_out()}, or leave the theme {theme} out"
            )
        if got < least:
            raise UserError(
                f"the machine has memory for {got} huge pages of {size >> 20} MiB and the theme "
                f"{theme} needs {least}: free some, or leave the theme out"
            )
        yield


@contextmanager
def pages_of_both_sizes() -> Iterator[None]:
    """Let both pools have what the theme "gigantic" needs. Raises UserError where they can't."""
    with ExitStack() as lent:
        lent.enter_context(huge_pages(GIGANTIC_PAGES, GIGANTIC, "gigantic", least=1))
        lent.enter_context(huge_pages(PAGES, SIZE, "gigantic"))
        yield
