"""What a run takes from the whole machine and gives back, however it ends.

A process of its own takes it, waits for the end of its input, and gives it back: also where whoever
asked for it is killed. It heeds no signal that ends a run.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_KEEPER = """
import signal, sys
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
def keep(take, give_back):
    try:
        got = take()
    except OSError as error:
        print(-error.errno, flush=True)
        sys.exit()
    try:
        print(got, flush=True)
        sys.stdin.read()
    finally:
        give_back(got)
"""


@contextmanager
def kept(program: str, *arguments: object) -> Iterator[int]:
    """Run a program that calls `keep(take, give_back)`, and give what `take` returned.

    That is a number, of what was taken; minus an errno where nothing was. When the block ends
    `give_back(number)` has been called.
    """
    keeper = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _KEEPER + program, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert keeper.stdout is not None
        yield int(keeper.stdout.readline() or 0)
    finally:
        keeper.communicate()
