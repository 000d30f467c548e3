"""Which process a task works on: its own, or one that it names by a number, a pidfd or a file.

What a task hands to the kernel is seen from where the task lives: in a container, a process has
another number there, and `/proc/1` is the container's first process. Here numbers are this
process's own, so they are translated by the PID namespace that they are from: that of the task, or
of the mount of /proc in which it opened the file. Both are found through /proc alone, and none of
this takes the mmap_lock.

Not covered: a number in a namespace whose processes live in one below it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

from zaplock.system_calls import TRACED

Found = TypeVar("Found")

_PROC_FILE = re.compile(r"(?P<mount>.*/proc)/(?P<pid>\d+)/(?:task/\d+/)?(?P<name>\w+)$")
_READS = frozenset(
    {"read", "pread64", "readv", "preadv", "write", "pwrite64", "ioctl", "getdents64", "getdents"}
)
_DETAILS = {call.name: tuple(call.shown.values()) for call in TRACED}
_MOST_FILES = 1_024
"""Open files that are looked through; among more, which is the only one is not known."""
_BY_PIDFD = {"process_madvise": 0, "process_mrelease": 0}
"""Calls that work on the process of a pidfd: which argument it is."""

_BY_NUMBER = {
    "process_vm_readv": 0, "process_vm_writev": 0, "ptrace": 1, "move_pages": 0, "migrate_pages": 0,
}  # fmt: skip
"""Calls that work on the process of a number: which argument it is; 0 is the caller."""

Work = tuple[str, int, tuple[int, int, int]]
"""An operation's full name, the process that it works on (0: unknown), its range and detail."""


class Subjects:
    """Whom tasks work on; what is found of namespaces is kept for one look."""

    def __init__(self) -> None:
        self._own = _namespace("/proc/self")
        self._inside: dict[tuple[int, int], int] | None = None

    def work(
        self,
        path: str,
        pid: int,
        operation: str,
        arguments: tuple[int, ...],
        files: Collection[str] = (),
    ) -> Work:
        """Say what a task of process `pid` works on; without `arguments` if they can't be seen.

        They can't where it runs, or waits for a CPU. `files`: those of /proc/PID that it may read
        then, by its stack; none if that tells nothing of it.
        """
        if operation in _BY_PIDFD or operation in _BY_NUMBER:
            subject = self._named(path, pid, operation, arguments)
            return operation, subject, _shown(operation, arguments)
        if operation in _DETAILS:
            return operation, pid, _shown(operation, arguments)
        if file := self._proc_file(path, operation, arguments, files):
            subject, name = file
            verb = "write" if operation.startswith("write") or operation == "pwrite64" else "read"
            return f"{verb} of /proc/{subject}/{name}", subject, (0, 0, 0)
        return operation, pid, (0, 0, 0)

    def _named(self, path: str, pid: int, operation: str, arguments: tuple[int, ...]) -> int:
        """Return the process that a call names; of a call that isn't seen, its one pidfd's."""
        if operation in _BY_PIDFD:
            if arguments:
                return _of_pidfd(path, str(arguments[_BY_PIDFD[operation]]))
            return _only(path, lambda file: _of_pidfd(path, file)) or 0
        if not arguments:
            return 0
        number = arguments[_BY_NUMBER[operation]]
        return self._translated(number, _namespace(path)) if number else pid

    def _proc_file(
        self, path: str, operation: str, arguments: tuple[int, ...], files: Collection[str]
    ) -> tuple[int, str] | None:
        """Find which file of which process in /proc a task reads or writes."""
        kind = re.sub("^(read of|write of|access to) ", "", operation)
        kind = "pagemap" if operation == "PAGEMAP_SCAN" else kind
        if kind == operation and operation not in _READS:
            return None
        if arguments:
            return self._link(path, str(arguments[0]))

        def linked(file: str) -> tuple[int, str] | None:
            link = self._link(path, file)
            return link if link and (link[1] in may_be if may_be else True) else None

        # Its arguments can't be seen: the one open file of such a name.
        may_be = files if kind == operation else (kind,)
        return _only(path, linked)

    def _link(self, path: str, file: str) -> tuple[int, str] | None:
        try:
            found = _PROC_FILE.match(os.readlink(f"{path}/fd/{file}"))
        except OSError:
            return None
        if not found:
            return None
        mounted = _namespace(f"{path}/root{found['mount']}/1") or _namespace(path)
        subject = self._translated(int(found["pid"]), mounted)
        return (subject, found["name"]) if subject else None

    def _translated(self, number: int, namespace: int) -> int:
        """Return our number of the process of a thread that has `number` in a namespace."""
        if namespace in (0, self._own):
            return _process(number)
        if self._inside is None:
            self._inside = dict(_numbers())
        return self._inside.get((namespace, number), 0)


def _numbers() -> Sequence[tuple[tuple[int, int], int]]:
    """List the processes in other namespaces: ((namespace, number there), number here)."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        inside = re.search(r"^NSpid:.*\t(\d+)$", _text(f"/proc/{name}/status"), re.MULTILINE)
        if inside:
            found.append(((_namespace(f"/proc/{name}"), int(inside[1])), int(name)))
    return found


def _namespace(path: str) -> int:
    """Tell the PID namespace of a process or thread by its inode; 0: unknown."""
    try:
        return os.stat(f"{path}/ns/pid").st_ino
    except OSError:
        return 0


def _process(number: int) -> int:
    """Return the process of a thread; 0 where there is none."""
    found = re.search(r"^Tgid:\s+(\d+)", _text(f"/proc/{number}/status"), re.MULTILINE)
    return int(found[1]) if found else 0


def _of_pidfd(path: str, file: str) -> int:
    """Return the process of a pidfd; 0 where it has ended, or the file is none."""
    found = re.search(r"^Pid:\s+(\d+)", _text(f"{path}/fdinfo/{file}"), re.MULTILINE)
    return int(found[1]) if found else 0


def _only(path: str, meaning: Callable[[str], Found | None]) -> Found | None:
    """Return what one open file of a task means, if no other means something else."""
    try:
        files = os.listdir(f"{path}/fd")
    except OSError:
        return None
    if len(files) > _MOST_FILES:
        return None
    found = {one for file in files if (one := meaning(file))}
    return found.pop() if len(found) == 1 else None


def _shown(operation: str, arguments: tuple[int, ...]) -> tuple[int, int, int]:
    """Return the range and the detail that a call's arguments tell, at most what an event holds."""
    ranged = [
        arguments[place] if place is not None and place < len(arguments) else 0
        for place in _DETAILS.get(operation, (None, None, None))
    ]
    return ranged[0], min(ranged[1], (1 << 62) - 1), min(ranged[2], (1 << 62) - 1)


def _text(path: str) -> str:
    try:
        with open(path, errors="replace") as file:
            return file.read()
    except OSError:  # gone, or a stranger's
        return ""
