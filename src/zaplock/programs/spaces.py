"""Whose address space a recorded call works on: forks, threads, execs, and what is not recorded.

A *space* is one address space from its beginning to its end: that of the first process, of a
forked child, or of a process after its execve. Its items are the calls on it, the forks from it and
the recorder's notes. A thread, a vfork and a clone with CLONE_VM share a space.

A process that nothing in the recording has made (strace attached with -p) is taken for a thread of
the first one, unless the recorder has noted its maps.
"""

from __future__ import annotations

import itertools
import posixpath
import re
from bisect import bisect
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from zaplock.programs.dialects import UNKNOWN_NAME
from zaplock.programs.recording import (
    EXECS,
    NEVER_MADE,
    UNKNOWN,
    Area,
    Note,
    StraceRecording,
    TracedCall,
)
from zaplock.programs.text import CONSTANTS, LIMITS, file_of, number, quoted, without_comments
from zaplock.programs.text import field as member
from zaplock.system_calls import CLONES


class Fork(NamedTuple):
    """A call that has copied a space into another one."""

    call: TracedCall
    child: TracedSpace

    @property
    def line(self) -> int:
        return self.call.line

    @property
    def end(self) -> int:
        return self.call.end


Item = TracedCall | Fork | Note


class Threads(NamedTuple):
    """The threads of a space: who has made whom, and who ran while its maker waited (vfork).

    `made_at`: the line of the call that made a thread.
    """

    makers: dict[int, int]
    vforked: dict[int, int]
    made_at: dict[int, int]

    def of(self, item: Item) -> int:
        """Return whose an item is; of a vforked child it is its maker's."""
        pid = item.call.pid if isinstance(item, Fork) else item.pid
        while pid in self.vforked:
            pid = self.vforked[pid]
        return pid


@dataclass(slots=True, eq=False)
class TracedSpace:
    """One address space of a recording.

    `begin`: its maps at its beginning (empty for a forked one); `unknown` says why they are not
    known, if they aren't; `doubt` why its calls may be another's. `pids`: all that ran in it.
    `threads`: who has made whom of them. `guests`: who may belong elsewhere, and why that is not
    known. `makes_monitors`: whether it has made a userfaultfd; `has_foreign_monitor`: whether
    another process works with one of it. `visitors`: who is another process in the same memory
    (vfork, CLONE_VM without CLONE_THREAD).
    """

    number: int
    begin: tuple[Area, ...] = ()
    unknown: str = ""
    doubt: str = ""
    items: list[Item] = field(default_factory=list)
    pids: set[int] = field(default_factory=set)
    threads: Threads = field(default_factory=lambda: Threads({}, {}, {}))
    guests: dict[int, str] = field(default_factory=dict)
    makes_monitors: bool = False
    has_foreign_monitor: bool = False
    visitors: set[int] = field(default_factory=set)


def spaces_of(recording: StraceRecording) -> list[TracedSpace]:
    """Sort the calls and notes of a recording by address space, in the order of their making."""
    return _Sorter(recording).sort()


class _Sorter:
    def __init__(self, recording: StraceRecording) -> None:
        self.recording = recording
        self.spaces: list[TracedSpace] = []
        self.at: dict[int, TracedSpace] = {}
        self.unborn: list[tuple[TracedCall, TracedSpace]] = []  # clones whose result is not known
        self._has_own_notes = recording.knows_writes
        self._told = {call.pid for call in recording.calls} | {n.pid for n in recording.notes}
        self._makers: dict[int, list[TracedCall]] = {}
        self._placed: set[TracedCall] = set()  # calls whose child has been seen before them
        for call in recording.calls:
            if call.name in CLONES and 0 < call.result < UNKNOWN:
                self._makers.setdefault(call.result, []).append(call)

    def sort(self) -> list[TracedSpace]:
        events: list[TracedCall | Note] = [*self.recording.calls, *self.recording.notes]
        for event in sorted(events, key=lambda event: (event.line, isinstance(event, TracedCall))):
            if isinstance(event, Note):
                self._note(event)
            else:
                self._call(event)
        return self.spaces

    def _new(
        self, pid: int, begin: tuple[Area, ...] = (), *, unknown: str = "", doubt: str = ""
    ) -> TracedSpace:
        space = TracedSpace(len(self.spaces) + 1, begin, unknown, doubt)
        self.spaces.append(space)
        self._enter(pid, space)
        return space

    def _enter(self, pid: int, space: TracedSpace) -> None:
        self.at[pid] = space
        space.pids.add(pid)

    def _space(self, pid: int, line: int) -> TracedSpace:
        if pid not in self.at:
            self._appear(pid, line)
        return self.at[pid]

    def _appear(self, pid: int, line: int) -> None:
        """Place a process that no finished call has made."""
        made = next((call for call in self._makers.get(pid, ()) if call.line > line), None)
        if made is not None and made.pid in self.at:  # -z: it is written when it has ended
            self._placed.add(made)
            self._make_process(made, self.at[made.pid])
            return
        if self.unborn:
            call, parent = self.unborn.pop(0)
            if shares_memory(call):
                self._enter(pid, parent)
            else:
                parent.items.append(Fork(call, self._new(pid)))
            return
        first = self.at.get(self.recording.pid)
        if first is not None and self._is_the_program(pid):
            self._enter(pid, first)
        elif first is None:
            self._new(pid, unknown=f"the maps of process {pid} are not in the recording")
        else:
            told = f"whether process {pid} is a thread of process {self.recording.pid} is not in"
            first.guests[pid] = f"{told} the recording: trace clone and fork, too"
            self._enter(pid, first)

    def _is_the_program(self, pid: int) -> bool:
        """Return whether a process executes what the recording begins with, which nobody else does.

        Its maps are of another run then, whose number it hadn't (bpftrace's recordings).
        """
        if self.recording.pid in {call.pid for call in self.recording.calls}:
            return False
        own = (call for call in self.recording.calls if call.pid == pid)
        first = next(filter(_works_on_memory, own), None)
        return first is not None and first.name in EXECS and first.result == 0

    def _note(self, note: Note) -> None:
        if note.kind == "exit":
            self.at.pop(note.pid, None)
        elif note.kind == "begin":
            space = self.at.get(note.pid)
            if space is not None and space.unknown and not space.items:
                space.begin, space.unknown = note.areas, ""
            else:
                doubt = "" if space is None else _twice(note)
                self._new(note.pid, begin=note.areas, doubt=doubt)
        else:
            self._space(note.pid, note.line).items.append(note)

    def _call(self, call: TracedCall) -> None:
        space = self._space(call.pid, call.line)
        if call.cut in NEVER_MADE:
            space.items.append(call)
        elif call in self._placed:
            self._placed.discard(call)
        elif call.name in CLONES:
            self._make_process(call, space)
        elif call.name in EXECS:
            self._exec(call, space)
        elif call.name == "ioctl" and not space.makes_monitors and is_of_monitor(call):
            self._watched(space).items.append(call)
        elif call.name not in ("exit_group", "exit"):
            space.makes_monitors |= makes_monitor(call)
            space.items.append(call)
            if call.name == "prlimit64" and not self._has_own_notes:
                self._limit(call)

    def _limit(self, call: TracedCall) -> None:
        """Let a process have the limit that another one sets."""
        with suppress(ValueError, IndexError):
            pid, told = number(call.arguments[0].split("<")[0]), call.arguments[2]
            kind = LIMITS.get(number(call.arguments[1]), "")
            soft, hard = (member(told, name) for name in ("rlim_cur", "rlim_max"))
            if call.result or pid == call.pid or pid not in self.at or not (kind and soft):
                return
            items = self.at[pid].items
            items.append(Note(pid, call.line, "limit", (), kind, number(soft)))
            if hard:
                items.append(Note(pid, call.line, "limit", (), f"{kind}_hard", number(hard)))

    def _watched(self, space: TracedSpace) -> TracedSpace:
        """Return the space that a userfaultfd works on which its user has from another process."""
        makers = [other for other in self.spaces if other.makes_monitors]
        for other in makers:
            other.has_foreign_monitor = True
            if len(makers) > 1:
                told = "which process's memory a userfaultfd watches that another one uses"
                other.doubt = other.doubt or f"{told} is not in the recording"
        return makers[0] if len(makers) == 1 else space

    def _after(self, call: TracedCall) -> Iterator[TracedCall]:
        """Yield the calls of a process behind its execve, up to the next one."""
        later = self.recording.calls[bisect(self.recording.calls, call.line, key=_line_of) :]
        for other in later:
            if other.pid == call.pid:
                if other.name in EXECS and other.result == 0:
                    return
                yield other

    def _make_process(self, call: TracedCall, space: TracedSpace) -> None:
        if call.result == UNKNOWN:
            self.unborn.append((call, space))
        elif call.result > 0 and shares_memory(call):
            if flags_of(call) is None and call.name == "clone3":
                told = f"whether process {call.result} shares memory (flags of clone3)"
                space.guests[call.result] = f"{told} is not in the recording"
            self._share(call, space)
        elif call.result > 0:
            space.items.append(Fork(call, self._new(call.result)))

    def _share(self, call: TracedCall, space: TracedSpace) -> None:
        """Let a new thread, or a child until its execve, run in its maker's space.

        One whose id has been there before is behind the first that had it: no process makes itself.
        """
        is_new = call.result not in space.pids
        self._enter(call.result, space)
        flags = flags_of(call)
        if call.name == "vfork" or not (flags is None or flags & CONSTANTS["CLONE_THREAD"]):
            space.visitors.add(call.result)
        kind = "shares files" if shares_files(call) else "copies files"
        space.items.append(Note(call.pid, call.line, kind, (), "", call.result))
        if not is_new:
            return
        if waits_for_child(call):
            space.threads.vforked[call.result] = call.pid
            return
        space.threads.makers[call.result] = call.pid
        space.threads.made_at[call.result] = call.line
        if not self.recording.shows_all and call.result not in self._told:
            why = f"thread {call.result} is not in the recording: record with -f, or give all files"
            space.items.append(Note(call.pid, call.line, "lost", (), f"{why} of -ff"))

    def _exec(self, call: TracedCall, space: TracedSpace) -> None:
        fresh = not any(map(_works_on_memory, space.items))
        if call.result == UNKNOWN and any(self._after(call)) and not (fresh and space.begin):
            told = f"line {call.line}: whether {call.name} has succeeded is not in the recording"
            self._new(call.pid, unknown=told)
        if call.result != 0:
            return
        program = executed(call)
        began = space.begin
        if fresh and began and (is_mapped(program, began) or fits(began, self._after(call))):
            return  # the recording begins with the execve whose maps it has
        told = posixpath.basename(program) or "a program"
        unknown = f"line {call.line}: the maps of {told} after its execve are not in the recording"
        self._new(call.pid, unknown=unknown)


def makes_monitor(call: TracedCall) -> bool:
    """Return whether a call makes a userfaultfd."""
    return call.name == "userfaultfd" or (call.name == "ioctl" and call.arguments[1:2] == (NEW,))


NEW = "USERFAULTFD_IOC_NEW"


def is_of_monitor(call: TracedCall) -> bool:
    """Return whether an ioctl says which range a userfaultfd watches."""
    asks = len(call.arguments) > 1 and call.arguments[1] in ("UFFDIO_REGISTER", UNREGISTER)
    return asks and file_of(call.arguments[0]) in ("", MONITOR)


OF_32_BITS = frozenset({"mmap2", "old_mmap"})
"""Calls that 32-bit programs alone have, and that are mmap."""
MONITOR = "anon_inode:[userfaultfd]"
UNREGISTER = "UFFDIO_UNREGISTER"


def _twice(note: Note) -> str:
    return (
        f"line {note.line}: process {note.pid} begins again without an execve: are these two "
        "recordings in one?"
    )


def _works_on_memory(item: Item) -> bool:
    """Return whether an item is more than what a launcher does with its descriptors."""
    of_descriptors = ("close", "dup", "dup2", "dup3", "fcntl")
    is_call = isinstance(item, TracedCall) and item.name not in of_descriptors
    return is_call or isinstance(item, Fork)


def _line_of(call: TracedCall) -> int:
    return call.line


def fits(begin: tuple[Area, ...], calls: Iterable[TracedCall]) -> bool:
    """Return whether maps are those that a program begins with which then makes these calls.

    Its name need not tell: it may be a symbolic link's, or a script's. The first brk tells where
    its own memory ends, exactly there where addresses are not random. Where they are, what the
    loader takes write permission from is where a writable mapping of a file begins that no call has
    made.
    """
    ends = {area.end for area in begin if area.name and not area.name.startswith("[")}
    written = {area.start for area in begin if area.name.startswith("/") and "w" in area.perms}
    for call in itertools.islice(calls, _FEW_CALLS):
        if call.name == "brk":
            below = max((area.end for area in begin if area.end <= call.result), default=0)
            anonymous = any(area.end == below and not area.name for area in begin)
            return (call.result == below and (below in ends or anonymous)) or any(
                _protects(other, written) for other in itertools.islice(calls, _FEW_CALLS)
            )
    return False


_FEW_CALLS = 200
"""Of a program's beginning: what its loader does comes before them."""


def _protects(call: TracedCall, starts: set[int]) -> bool:
    if call.name != "mprotect" or call.result or not call.arguments:
        return False
    try:
        start = number(call.arguments[0])
    except ValueError:
        return False
    return start in starts and not _NOT_RANDOM <= start < _NOT_RANDOM + (1 << 32)


_NOT_RANDOM = 0x5555_5555_4000
"""Where a program that can be anywhere is without randomisation, whatever it is."""


def shares_memory(call: TracedCall) -> bool:
    """Return whether a call that makes a process lets it work on the same memory.

    A clone3 whose flags were not seen is one of the C library's: it makes threads, and children
    that call exec, and leaves forks to clone.
    """
    if call.name == "vfork":
        return True
    flags = flags_of(call)
    return flags is None or bool(flags & CONSTANTS["CLONE_VM"])


def shares_files(call: TracedCall) -> bool:
    """Return whether a child in its maker's memory has its maker's descriptors, as threads do."""
    flags = flags_of(call)
    return call.name != "vfork" and (flags is None or bool(flags & CONSTANTS["CLONE_FILES"]))


def flags_of(call: TracedCall) -> int | None:
    """Return what is known by number of a clone's flags; None where none were seen."""
    named = [re.search(r"\bflags=([^,}]+)", without_comments(a)) for a in call.arguments]
    told = next((found[1] for found in named if found), "")
    if not told and call.name == "clone":  # as numbers, without names
        told = next(iter(call.arguments), "")
    flags = 0
    for part in without_comments(told).split("|"):  # SIGCHLD and most of CLONE_* don't matter
        with suppress(ValueError):
            flags |= number(part)
    return flags if told or call.name != "clone3" else None


def waits_for_child(call: TracedCall) -> bool:
    """Return whether the maker of a child waits until that calls exec."""
    return call.name == "vfork" or bool((flags_of(call) or 0) & CONSTANTS["CLONE_VFORK"])


def executed(call: TracedCall) -> str:
    """Return the path that an execve runs, "" where it can't be read."""
    with suppress(ValueError, IndexError):
        told = quoted(call.arguments[1 if call.name == "execveat" else 0])
        return "" if told == UNKNOWN_NAME else told
    return ""


def is_mapped(program: str, areas: tuple[Area, ...]) -> bool:
    """Return whether maps are those of a program just begun: python3 may be a python3.12."""
    wanted = posixpath.basename(program)
    names = {posixpath.basename(a.name) for a in areas if a.name and not a.name.startswith("[")}
    return bool(wanted) and any(
        name == wanted or name.startswith(wanted) or wanted.startswith(name) for name in names
    )
