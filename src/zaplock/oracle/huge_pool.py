"""A pool of huge pages for as long as a run needs it; what it was given is taken back.

The pool is the machine's, and 512 MiB of its memory. So it is a process of its own that enlarges
it, waits for the end of its input, and makes it smaller again: also where whoever asked for it is
killed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zaplock.errors import UserError

POOL = Path("/proc/sys/vm/nr_hugepages")
PAGES = 256
"""More than a sequence of the generator can use: what an empty pool does is not in the model."""

_KEEPER = """
import signal, sys
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
path, pages = sys.argv[1], int(sys.argv[2])
def add(pages):
    with open(path) as pool:
        before = int(pool.read())
    with open(path, 'w') as pool:
        pool.write(str(max(before + pages, 0)))
    with open(path) as pool:
        return int(pool.read()) - before
try:
    got = add(pages)
except OSError as error:
    print(-error.errno, flush=True)
    sys.exit()
try:
    print(got, flush=True)
    sys.stdin.read()
finally:
    add(-got)
"""


@contextmanager
def huge_pages(pages: int = PAGES) -> Iterator[None]:
    """Let the pool have so many free pages of 2 MiB more. Raises UserError where it can't."""
    keeper = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _KEEPER, str(POOL), str(pages)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert keeper.stdout is not None
        got = int(keeper.stdout.readline() or 0)
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
    finally:
        keeper.communicate()
