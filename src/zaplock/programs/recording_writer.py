"""Write what traced threads do: their calls as strace would, and between them what a replay needs.

Of every process the maps are written when it begins, after each execve and when it ends; before
each call, which mappings have got pages of their own, and how long their files are if its result
hangs on that (see `notes`). What comes before the program's own execve is not written.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TextIO

from zaplock.model import flags as f
from zaplock.model.store import RangeMap, Store
from zaplock.oracle import ring
from zaplock.programs import notes, spelling
from zaplock.programs.written_pages import written_ranges

_QUIET = frozenset(
    {
        "userfaultfd",
        "pkey_alloc",
        "pkey_free",
        "open",
        "openat",
        "openat2",
        "creat",
        "dup",
        "dup2",
        "dup3",
        "close",
        "close_range",
        "io_uring_setup",
        "shmget",
        "shmctl",
        "seccomp",
        "ptrace",
        *spelling.CHANGES_PRIVILEGES,
    }
)
"""Calls that neither hang on what is mapped nor change it."""


@dataclass(slots=True)
class TracedThread:
    """A traced thread: the process and address space it is of, and the call it is in.

    `about_to`: the name of the call that it has stopped before, `told`: that call's text once it
    is let go, "" between calls; `is_written`: it stands in the file already, as one whose end is
    still to come. `is_narrow`: the call is a 32-bit one, `returns_at`: where its result is put
    (ipc). `is_in_narrow`: the addresses of its process have 32 bits.
    """

    tid: int
    pid: int
    mm: int
    name: str = ""
    about_to: str = ""
    told: str = ""
    arguments: tuple[int, ...] = (0,) * 6
    shares: bool = False
    is_written: bool = False
    has_failed_to_exec: bool = False
    is_narrow: bool = False
    is_in_narrow: bool = False
    returns_at: int = 0


@dataclass(slots=True)
class RecordingWriter:
    """Writes into `out`, from the program's execve on."""

    out: TextIO
    _is_on: bool = False
    _written: dict[int, RangeMap[bool]] = field(default_factory=dict)
    _lengths: dict[int, dict[tuple[int, int], int]] = field(default_factory=dict)
    _last_maps: dict[int, list[str]] = field(default_factory=dict)
    _unusual: set[int] = field(default_factory=set)
    """Threads whose calls have another width than their addresses."""
    _unread: set[int] = field(default_factory=set)
    _segments: set[tuple[str, int]] = field(default_factory=set)
    """Segments whose length is told, by namespace."""

    def begun(self, thread: TracedThread) -> None:
        """Write what the result of a call may hang on that is about to be made."""
        if not self._is_on:
            return
        self._write_width(thread)
        if thread.name in _QUIET:
            return
        tid, name, arguments = thread.tid, thread.name, thread.arguments
        self._write_written(thread)
        if name == "mmap":
            self._note(tid, notes.file_lines(tid, arguments))
        if notes.hangs_on_lengths(name, arguments):
            address, length = arguments[:2]
            told = self._lengths.setdefault(thread.mm, {})
            self._note(tid, notes.length_lines(tid, address, address + length, told))
        if notes.hangs_on_pool(tid, name, arguments):
            self._note(tid, [notes.pool_line()])

    def ended(self, thread: TracedThread, result: int) -> None:
        """Write a call with its result."""
        if thread.name not in _QUIET:
            self._forget_written(thread, result)
        if thread.name in spelling.CHANGES_PRIVILEGES and not result:
            self._note(thread.tid, [*notes.capabilities(thread.tid), notes.ipc_line(thread.tid)])
        if thread.name and thread.told:
            shown = spelling.result_text(thread.tid, thread.name, result)
            if thread.name == "io_setup" and not thread.is_written:  # it tells now what it made
                thread.told = spelling.call_text(
                    thread.tid, thread.name, thread.arguments, is_narrow=thread.is_narrow
                )
            if thread.is_written:
                self._write(f"{thread.tid} <... {thread.name} resumed>) = {shown}")
            else:
                self._write(f"{thread.tid} {thread.told} = {shown}")
            if thread.name == "shmat" and result > 0:
                self._tell_segment(thread, result)

    def _tell_segment(self, thread: TracedThread, at: int) -> None:
        """Write once in each namespace how long a segment is."""
        segment = thread.arguments[0]
        named = notes.ipc_line(thread.tid), segment
        if named not in self._segments:
            self._segments.add(named)
            with contextlib.suppress(OSError):
                self._note(thread.tid, notes.segment_lines(thread.tid, segment, at))

    def unfinished(self, thread: TracedThread) -> None:
        """Write the call that a thread is in as one whose end is still to come."""
        if thread.told and not thread.is_written:
            self._write(f"{thread.tid} {thread.told[:-1]} <unfinished ...>")
            thread.is_written = True

    def made(self, thread: TracedThread, child: int, *, is_in_namespace: bool) -> None:
        """Write what a call has made."""
        self._write(f"{thread.tid} {thread.told} = {child}")
        if not thread.shares:
            with contextlib.suppress(OSError):
                self._note(child, notes.copied_lines(thread.tid, child))
        if is_in_namespace:
            self._note(child, [*notes.capabilities(child), notes.ipc_line(child)])

    def executed(self, thread: TracedThread, told: str) -> None:
        """Write an execve, and the address space that it has made."""
        if self._is_on:
            self._write(f"{thread.tid} {told} = 0")
        else:
            self._is_on = True
            self._write(f"# command: {told}", "# widths: 32 64")
        self._unusual.discard(thread.tid)
        maps = notes.maps_lines(thread.tid, "begin")
        thread.is_in_narrow = notes.have_narrow_addresses(maps)
        self._note(thread.tid, maps)
        self._write(*notes.sealed_lines(thread.tid), *notes.privileges(thread.tid))

    def limits(self, pid: int) -> None:
        """Write the limits of a process that may have changed."""
        with contextlib.suppress(OSError):
            self._note(pid, notes.limits(pid))

    def unreadable(self, thread: TracedThread) -> None:
        """Write, in strace's words, that what is done here is not recorded: calls of x32."""
        if thread.mm not in self._unread:
            self._unread.add(thread.mm)
            self._write(f"[ Process PID={thread.tid} runs in x32 mode. ]")

    def _write_width(self, thread: TracedThread) -> None:
        """Write in strace's words if a call has another width than a reader would take it for."""
        unusual = thread.is_narrow != thread.is_in_narrow
        if unusual != (thread.tid in self._unusual):
            (self._unusual.add if unusual else self._unusual.discard)(thread.tid)
            bits = 32 if thread.is_narrow else 64
            self._write(f"[ Process PID={thread.tid} runs in {bits} bit mode. ]")

    def untold(self, tid: int, why: str) -> None:
        """Write that no more of what a thread does is in the recording."""
        self._note(tid, [f"# untold: {why}"])

    def keep_maps(self, thread: TracedThread) -> None:
        """Keep the maps as they are now: the last that are seen are those of the end."""
        with contextlib.suppress(OSError):
            self._write_written(thread)
            self._last_maps[thread.mm] = notes.maps_lines(thread.tid, "end")

    def drop_maps(self, mm: int) -> None:
        """Let go of maps that were kept: they have changed since, or are another program's."""
        self._last_maps.pop(mm, None)

    def gone(self, tid: int) -> None:
        """Write that a thread has ended."""
        self._unusual.discard(tid)
        self._write(f"{tid} +++ exited with 0 +++")

    def end_of_space(self, tid: int, mm: int) -> None:
        """Write the last maps of an address space whose last thread has ended."""
        self._note(tid, self._last_maps.pop(mm, []))

    def _write(self, *lines: str) -> None:
        if self._is_on:
            self.out.writelines(f"{line}\n" for line in lines)

    def _note(self, tid: int, lines: list[str]) -> None:
        """Write lines about a thread, if there are any."""
        if lines:
            self._write(f"# pid: {tid}", *lines)

    def _write_written(self, thread: TracedThread) -> None:
        """Write which mappings have got pages since the last call."""
        known = self._known(thread.mm)
        fresh = written_ranges(thread.tid, known)
        for low, high in fresh:
            known.set(low, high, True)
        self._note(thread.tid, [f"# anon: {low:x}-{high:x}" for low, high in fresh])

    def _known(self, mm: int) -> RangeMap[bool]:
        """Return where an address space was seen to have pages, as it is mapped now."""
        if mm not in self._written:
            self._written[mm] = RangeMap(Store(), "written")
        return self._written[mm]

    def _forget_written(self, thread: TracedThread, result: int) -> None:
        """What a call has mapped, moved or unmapped is new: its pages have to be seen again.

        A mapping that is cut, protected or named keeps its anon_vma; segments never have one.
        """
        known = self._known(thread.mm)
        address, length, new_length = thread.arguments[:3]
        placed = max(result, 0)
        if thread.name == "brk":  # there may have been memory behind the new end
            end = f.page_align(placed)
            run = known.run_at(end)
            spans = [(end, run[1] - end)] if run else []
        elif thread.name in ("mmap", "munmap"):
            spans = [(placed or address, length)]
        elif thread.name == "mremap":
            spans = [(address, length), (placed, new_length)]
        else:
            return
        for start, size in spans:
            low, high = start & -f.PAGE_SIZE, min(f.page_align(start + size), ring.TASK_SIZE)
            if low < high:
                known.clear(low, high)
