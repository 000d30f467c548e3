"""What a run takes from the whole machine and gives back, however it ends.

A process of its own takes it, waits until nobody has the other end of its input any more, and gives
it back: also where whoever asked for it is killed. It heeds no signal that ends a run.

Whoever uses what was taken has that end, too (`ends`): the bare processes and their runners. A
killed run's runner lives a moment longer, and would start ksmd again, or take pages from a pool,
after all was given back.
"""

from __future__ import annotations

import fcntl
import os
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

_LOWEST = 64  # none of the small descriptors that a bare process uses itself
_ENDS: list[int] = []


def ends() -> tuple[int, ...]:
    """Return the descriptors that keep what is taken now from being given back while they are open.

    A process that uses it inherits them.
    """
    return tuple(_ENDS)


@contextmanager
def kept(program: str, *arguments: object) -> Iterator[int]:
    """Run a program that calls `keep(take, give_back)`, and give what `take` returned.

    That is a number, of what was taken; minus an errno where nothing was. When the block ends, and
    the last process that has inherited `ends` with it, `give_back(number)` has been called.
    """
    reading, writing = os.pipe()
    end = fcntl.fcntl(writing, fcntl.F_DUPFD_CLOEXEC, _LOWEST)
    os.close(writing)
    try:
        keeper = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _KEEPER + program, *map(str, arguments)],
            stdin=reading,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
    except BaseException:
        os.close(end)
        raise
    finally:
        os.close(reading)
    _ENDS.append(end)
    try:
        assert keeper.stdout is not None
        got = keeper.stdout.readline()
        if not got:
            raise RuntimeError("who was to keep what a run takes has ended, as said above")
        yield int(got)
    finally:
        _ENDS.remove(end)
        os.close(end)
        keeper.communicate()
