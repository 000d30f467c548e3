"""A pool of huge pages for as long as a run needs it; what was there before is given back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zaplock.errors import UserError

POOL = Path("/proc/sys/vm/nr_hugepages")
PAGES = 256
"""More than a sequence of the generator can use: what an empty pool does is not in the model."""


@contextmanager
def huge_pages(pages: int = PAGES) -> Iterator[None]:
    """Let the pool have so many free pages of 2 MiB more. Raises UserError where it can't."""
    try:
        before = int(POOL.read_text())
        POOL.write_text(str(before + pages))
    except OSError as error:
        raise UserError(
            f"can't make a pool of {pages} huge pages ({error.strerror}): be root, or leave the "
            "theme hugetlb out"
        ) from None
    try:
        got = int(POOL.read_text()) - before
        if got < pages:
            raise UserError(
                f"the machine has memory for {got} huge pages and the theme hugetlb needs {pages}: "
                "free some, or leave the theme out"
            )
        yield
    finally:
        POOL.write_text(str(before))
