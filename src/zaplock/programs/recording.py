"""What is known of a program that ran: its system calls, and what its recorder wrote beside them.

A call has a beginning and an end: between them it took effect, so two that overlap have no order of
their own. How a file is read into this stands in `parser`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

EXECS = ("execve", "execveat")
UNKNOWN = 1 << 70
"""The result of a call whose end is not in the recording."""
UNREADABLE = "the line can't be read"
NO_END, DIED = "its end is not in the recording", "the process ended in it"
"""What is wrong with a call that can be read as far as it goes."""
NOT_MADE = "strace gave it its result (-e inject): the kernel has never seen it"
POKED = "strace has changed what its arguments point to (-e inject)"
FILTERED = "a seccomp filter has stopped it: the kernel has never done it"
NEVER_MADE = (NOT_MADE, FILTERED)

HOW = (
    "zaplock oracle --trace FILE -- PROGRAM records what is needed; with strace it is -f -y "
    "-e trace=%memory,%process,prctl,prlimit64,openat,memfd_create, and the maps"
)


class TracedCall(NamedTuple):
    """One system call: who, what, arguments as written, result (minus errno), first and last line.

    `cut` says what is wrong with a call that can't be read whole, "" for a good one. `opened`: the
    path of the descriptor that it returned, where that is shown.
    """

    pid: int
    name: str
    arguments: tuple[str, ...]
    result: int
    line: int
    end: int
    cut: str = ""
    opened: str = ""


class Area(NamedTuple):
    """One line of /proc/PID/maps; `name` is the path as it stands there, without (deleted);
    `inode`: of a segment of System V its id."""

    start: int
    end: int
    perms: str
    offset: int
    name: str
    inode: int = 0


class Note(NamedTuple):
    """What a recorder wrote about a process at a line.

    `kind`: "begin" or "end" (`areas`), "anon" or "sealed" (one of `areas`), "limit" or "capable"
    (`name`, `value`), "length" (`name` is an address in hexadecimal, `value` below 0 where it could
    not be had), "file" (`name` is what `file_tables.facts_of` reads), "copies files" or "shares
    files" (a child `value` in the memory of its maker), "exit" (the process ended here), "copied"
    (whether it has got a driver's mapping, one of `areas`, of its maker), "ipc"
    (`value` is its IPC namespace), "segment" (`name` is its id and the size of its huge pages,
    `value` its length), "lost" (a thread of it has no lines: `name` says so), "untold" (no more
    lines come of it, `name` says why), "width" (from here on its calls have `value` bits).
    """

    pid: int
    line: int
    kind: str
    areas: tuple[Area, ...] = ()
    name: str = ""
    value: int = 0


@dataclass(frozen=True, slots=True)
class StraceRecording:
    """A parsed file: calls in the order of their beginnings, notes, the first process's id.

    `ordered`: whether lines of different threads stand in the order of time. `shows_all`: whether a
    thread that makes no call would be seen anyway, so that one without a line has made none.
    `is_own`: zaplock's recorder has written it. `has_narrow_calls`: calls of 32-bit programs would
    be in it.
    """

    pid: int
    calls: tuple[TracedCall, ...]
    notes: tuple[Note, ...]
    unreadable: tuple[str, ...]
    ordered: bool = True
    shows_all: bool = True
    is_own: bool = False
    has_narrow_calls: bool = True

    @property
    def knows_writes(self) -> bool:
        """Whether the recorder told of written pages also behind calls, not just at a beginning."""
        begun: dict[int, int] = {}
        called: dict[int, int] = {}
        events: list[TracedCall | Note] = [*self.notes, *self.calls]
        for event in sorted(events, key=lambda event: event.line):
            if isinstance(event, TracedCall):
                called[event.pid] = event.line
            elif event.kind == "begin":
                begun[event.pid] = event.line
            elif event.kind == "anon" and called.get(event.pid, 0) > begun.get(event.pid, 0):
                return True
        return False

    @property
    def begin(self) -> tuple[Area, ...]:
        """The first maps of the first process."""
        return next((n.areas for n in self.notes if n.kind == "begin" and n.pid == self.pid), ())

    @property
    def end(self) -> tuple[Area, ...]:
        """The last maps of the first process."""
        found = [n.areas for n in self.notes if n.kind == "end" and n.pid == self.pid]
        return found[-1] if found else ()
