"""A pool of huge pages for as long as a run needs it; what it was given is taken back.

The pool is the machine's, and 512 MiB of its memory (see `kept`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zaplock.errors import UserError
from zaplock.oracle.kept import kept

POOL = Path("/proc/sys/vm/nr_hugepages")
MEMINFO = Path("/proc/meminfo")
PAGES = 256
"""More than a sequence of the generator can use: what an empty pool does is not in the model."""

_ADD = """
path, pages = sys.argv[1], int(sys.argv[2])
def add(pages):
    with open(path) as pool:
        before = int(pool.read())
    with open(path, 'w') as pool:
        pool.write(str(max(before + pages, 0)))
    with open(path) as pool:
        return int(pool.read()) - before
keep(lambda: add(pages), lambda got: add(-got))
"""


def owed_pages() -> int:
    """Count the pages that others use or have reserved beyond what the pool was given.

    A reservation that the kernel has lost is one, too: it stays until the machine is booted.
    """
    total, free, reserved = pool_figures()
    return max(0, total - free + reserved - int(POOL.read_text()))


def pool_figures() -> tuple[int, int, int]:
    """Return how many huge pages there are, how many nobody uses, and how many are reserved."""
    figures = dict(line.split(":") for line in MEMINFO.read_text().splitlines())
    total, free, reserved = (
        int(figures[f"HugePages_{name}"]) for name in ("Total", "Free", "Rsvd")
    )
    return total, free, reserved


@contextmanager
def huge_pages(pages: int = PAGES) -> Iterator[None]:
    """Let the pool have so many pages of 2 MiB more that nobody has reserved.

    Raises UserError where it can't.
    """
    pages += owed_pages()
    with kept(_ADD, POOL, pages) as got:
        if got < 0:
            raise UserError(
                f"can't make a pool of {pages} huge pages ({os.strerror(-got)}): be root, or leave "
                "the theme hugetlb out"
            )
        if got < pages:
            raise UserError(
                f"the machine has memory for {got} huge pages and the theme hugetlb needs {pages}: "
                "free some, or leave the theme out"
            )
        yield
