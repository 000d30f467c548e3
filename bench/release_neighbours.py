"""Bystanders that touch the very range under release; the others are those of `zaplock measure`.

| name     | one operation                                                                     |
|----------|-----------------------------------------------------------------------------------|
| beside   | mmap of a page right behind the range, made alike so that it merges; munmap of it |
| mprotect | a page in the middle of the range made read-only and writable again               |
| fork     | a real fork (clone without CLONE_VM) whose child ends at once                     |

The first two need the range's VMA for write while they hold the mmap_lock for write. So does a
fork; and it would copy the page tables of the whole range as well, which takes longer than a
munmap, so the range is MADV_DONTFORK where a fork is among the bystanders.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable

from zaplock.measure import syscalls as sys
from zaplock.measure.bystanders import BystanderOperation, inside
from zaplock.measure.mappings import StudiedMapping, advise_huge

_clone = sys.bind("clone", ctypes.c_int, *[ctypes.c_void_p] * 2, ctypes.c_int, ctypes.c_void_p)
_exit = ctypes.cast(ctypes.CDLL(None)._exit, ctypes.c_void_p)
STACK = 64 << 10
FLAGS = sys.MAP_PRIVATE | sys.MAP_ANONYMOUS | sys.MAP_NORESERVE


def _beside(mapping: StudiedMapping) -> BystanderOperation:
    page = StudiedMapping(mapping.end, sys.PAGE, mapping.backing)

    def work() -> None:
        sys.mmap(page.length, flags=FLAGS | sys.MAP_FIXED_NOREPLACE, address=page.address)
        advise_huge(page)
        sys.munmap(page.address, page.length)

    return BystanderOperation(work)


def _mprotect(mapping: StudiedMapping) -> BystanderOperation:
    page = mapping.address + mapping.length // 2

    def work() -> None:
        try:
            sys.mprotect(page, sys.PAGE, sys.PROT_READ)
            sys.mprotect(page, sys.PAGE, sys.PROT_READ | sys.PROT_WRITE)
        except OSError:
            pass  # the range is gone

    return BystanderOperation(work)


def _fork(mapping: StudiedMapping) -> BystanderOperation:
    stack = sys.mmap(STACK)

    def work() -> None:
        pid = _clone(_exit, stack + STACK, signal.SIGCHLD, 0)
        if pid > 0:
            os.waitpid(pid, 0)

    return BystanderOperation(work)


_ON_RANGE: dict[str, Callable[[StudiedMapping], BystanderOperation]] = {
    "beside": _beside,
    "mprotect": _mprotect,
    "fork": _fork,
}


def operation(name: str, mapping: StudiedMapping) -> BystanderOperation:
    """Return a bystander's operation by its name."""
    return _ON_RANGE[name](mapping) if name in _ON_RANGE else inside(name)
