"""Notice that a process has another address space: it has called exec.

An open `pagemap` belongs to the address space that the process had when it was opened. A read of
an odd number of bytes is refused (EINVAL) while that lives and gives nothing once it is gone, and
takes no lock. An old address space lives on where somebody shares it (vfork, CLONE_VM), so what
/proc/PID/stat says of the present one is compared as well.

Source: pagemap_read (fs/proc/task_mmu.c; mmget_not_zero since 4.9), do_task_stat (fs/proc/array.c).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable

from zaplock.untrusted_names import read_text

_BOUNDS = (23, 24, 25, 42, 43, 44, 45, 46, 47, 48)
"""Where code, stack, data, brk, arguments and environment begin and end: fields 26 to 28 and 45 to
51 of /proc/PID/stat, counted behind the name."""
_ENDED = "ZX"


class ExecWatch:
    """The address spaces of some processes. Close it."""

    def __init__(self, pids: Iterable[int]) -> None:
        self._known = {pid: (_pagemap(pid), _bounds(pid)) for pid in pids}

    def changed(self) -> set[int]:
        """Return which processes may have another address space; those that ended are left out."""
        found = set()
        for pid, (file, bounds) in list(self._known.items()):
            now = _bounds(pid)
            if not now:
                self._forget(pid)
            elif now != bounds or (file >= 0 and _is_gone(file)):
                found.add(pid)
        return found

    def again(self, pid: int) -> None:
        """Take the address space that a process has now for the one that is known."""
        self._forget(pid)
        self._known[pid] = _pagemap(pid), _bounds(pid)

    def _forget(self, pid: int) -> None:
        file, _ = self._known.pop(pid)
        if file >= 0:
            os.close(file)

    def close(self) -> None:
        """Let go of all. Twice does no harm."""
        for pid in list(self._known):
            self._forget(pid)


def _pagemap(pid: int) -> int:
    with contextlib.suppress(OSError):  # it has ended, or we have no right to look
        return os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    return -1


def _is_gone(file: int) -> bool:
    try:
        return os.pread(file, 1, 0) == b""
    except OSError:
        return False


def _bounds(pid: int) -> tuple[str, ...]:
    """Read the bounds of a process's address space; () where it has ended."""
    try:
        fields = read_text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    except OSError:
        return ()
    if len(fields) <= _BOUNDS[-1] or fields[0] in _ENDED:
        return ()
    return tuple(fields[place] for place in _BOUNDS)
