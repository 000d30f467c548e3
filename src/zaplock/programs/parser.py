"""Parse what strace wrote (4.x to 7.x), with the maps that a recorder put around it.

A call may be told in two lines (`<unfinished ...>`, `<... resumed>`). Lines that begin with `#` are
a recorder's (`zaplock oracle --trace` writes them, see `notes`):

    # pid: 100                 whose the lines after it are
    # begin: LINE OF MAPS      an address space as it is here: at the start, or after an execve
    # end: LINE OF MAPS        ... and here, to be compared
    # anon: START-END          addresses of pages of its own, so that their mapping has an anon_vma
    # limit: NAME BYTES        as, data, memlock, stack (NAME_hard); mappings, memory, huge_pages,
                               lowest, keys
    # capable: NAME yes|no     ipc_lock, sys_rawio, sys_resource; read_implies_exec, bottom_up
    # file: DESCRIPTOR ...     how what is about to be mapped was opened, its inode, seals, pages
    # length: ADDRESS BYTES    the length of the file that is mapped there ("unknown", too)
    # copied: START-END yes|no whether a fork has copied a driver's mapping
    # ipc: NUMBER              its IPC namespace, from here on
    # segment: ID BYTES PAGE   how long a segment of shared memory is, and its huge pages (0: none)
    # untold: WHY              what the process does from here on is not in the recording
    # widths: 32 64            it has the calls of 32-bit programs, too

What perf trace and ltrace -S write is read too (see `dialects`).

Understood are the prefixes of -f, -ff (one file a process), -Y, -t, -tt, -ttt, -r, -n, -i and what
-T, -y and -yy add. What a cut line has lost is told as a call without a result.

The files of -ff are put into one text (see `files_of_ff`), which is not `ordered` where they have
no times.
"""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from zaplock.errors import UserError
from zaplock.programs.dialects import as_strace
from zaplock.programs.file_tables import facts_of
from zaplock.programs.files_of_ff import by_thread, by_time, has_times
from zaplock.programs.prefix import NAME, PREFIX, name_of
from zaplock.programs.recorded_lines import read_lines, rejoined
from zaplock.programs.recording import (
    DIED,
    FILTERED,
    HOW,
    NO_END,
    NOT_MADE,
    POKED,
    UNKNOWN,
    UNREADABLE,
    Area,
    Note,
    StraceRecording,
    TracedCall,
)
from zaplock.programs.text import arguments_and_rest, file_of, split_arguments
from zaplock.system_calls import BY_NUMBER

_NEVER = 1 << 60
_SUMMARY = re.compile(r"^-{4,}(?: -{4,})+")
"""The line of a table of counts (-C, -c) that comes before its rows."""
_RESULT = re.compile(
    r"^\s*=\s*(\?|-?0x[0-9a-f]{1,16}|-?\d{1,20})(?!\w)(<.*?>+)?(?:\(deleted\))?"
    r"(?:\s+(E[A-Z0-9]+)|\s+\(errno (\d{1,4})\))?"
)
_INJECTED = re.compile(
    r"\(INJECTED(?:: ([\w, ]{1,40}))?\)(?: \(DELAYED\))?\s{0,9}(?:<[\d.]{1,40}>)?\s{0,9}$"
)
_UNFINISHED = re.compile(r"<unfinished \.\.\.>\s*$")
_RESUMED = re.compile(r"^<\.\.\. (\w+) resumed>\s?(.*)$")
_GONE = re.compile(r"^\+\+\+ (exited|killed|superseded by execve in pid (\d{1,10}))")
_ERRORS = (1 << 64) - 4095
_BITS = re.compile(r"^\[ Process PID=(\d{1,10}) runs in (32 bit|64 bit|x32) mode\. \]")
_SPEECH = ("---", "strace:", "Process ", "[ Process", "<... resuming", "/*")
_ARGUMENT_NAME = re.compile(r"^[a-z_]\w*=(?!=)")
"""As -N (6.16) puts it in front of each argument; of clone every strace does."""
_DIGITS = re.compile(r"[0-9]{1,20}")
_LENGTH = re.compile(r"^([0-9a-f]{1,16}) ([0-9]{1,20}|unknown)$")
_RANGE = re.compile(r"^([0-9a-f]+)-([0-9a-f]+)$")


class _Block(NamedTuple):
    """Maps of a process of which more lines may come: other processes' lines may stand between."""

    kind: str
    line: int
    areas: list[Area]

    def goes_on(self, kind: str, item: Area) -> bool:
        """Return whether a line belongs to these maps: what overlaps begins other ones."""
        is_above = item.start >= self.areas[-1].end if self.areas else True
        return kind == self.kind and (
            is_above or all(item.end <= a.start or a.end <= item.start for a in self.areas)
        )


@dataclass(slots=True)
class _State:
    pid: int = 0
    calls: list[TracedCall] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    open: dict[int, tuple[str, int]] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)
    blocks: dict[int, _Block] = field(default_factory=dict)
    names_pids: bool = False
    is_own: bool = False
    has_narrow_calls: bool = False
    in_summary: bool = False


def parse(path: Path) -> StraceRecording:
    """Read a recording. Raises UserError where the file can't be read or has no calls or maps."""
    state = _State()
    whole, number = "\n", 0
    parts, lines = read_lines(path)
    ordered = not parts or has_times(lines)
    merged = by_time(lines) if ordered else by_thread(lines)
    text = merged if parts else (line for _, line in lines)
    for number, whole in enumerate(as_strace(list(rejoined(text))), 1):
        line = whole.rstrip("\n")
        if line.startswith("# "):
            _comment(state, path, number, line)
            continue
        if line.strip():
            _take(state, number, line)
    last = state.blocks.get(state.pid)
    if not whole.endswith("\n") and whole.startswith("# end") and last:
        del state.blocks[state.pid]
        state.unreadable.append(f"line {number}: the recording is cut in the last maps")
    for pid in tuple(state.blocks):
        _close_block(state, pid)
    for pid, (call, begun) in state.open.items():
        state.calls.append(_cut(pid, call, begun, NO_END))
    calls = _ended(sorted(state.calls, key=lambda call: call.line))
    for note in state.notes if not calls else ():
        if note.kind in ("lost", "width"):
            raise UserError(f"{path}: {note.name} and has no calls: record it with strace -f")
    if not calls:
        raise UserError(f"{path} has no line that is a system call: {HOW}")
    if not any(note.kind == "begin" for note in state.notes):
        raise UserError(f"{path} has no '# begin: ' lines (the maps right after exec): {HOW}")
    calls = _with_own_id(calls)
    first = next(note.pid for note in state.notes if note.kind == "begin") or calls[0].pid
    notes = tuple(n if n.pid else n._replace(pid=first) for n in state.notes)
    shows_all = state.names_pids and not parts and len({call.pid for call in calls}) > 1
    return StraceRecording(
        first,
        calls,
        notes,
        tuple(state.unreadable),
        ordered,
        shows_all,
        state.is_own,
        not state.is_own or state.has_narrow_calls,
    )


def _ended(calls: list[TracedCall]) -> tuple[TracedCall, ...]:
    """Let calls whose end is not seen have ended before the next one of their thread."""
    following: dict[int, int] = {}
    for k in range(len(calls) - 1, -1, -1):
        call = calls[k]
        if call.end == _NEVER and call.pid in following:
            calls[k] = call._replace(end=following[call.pid] - 1)
        following[call.pid] = call.line
    return tuple(calls)


def _with_own_id(calls: tuple[TracedCall, ...]) -> tuple[TracedCall, ...]:
    """Give calls without an id, which are of one process, the one that it was told by one of them.

    The C library asks for it at the beginning of every program.
    """
    if any(call.pid for call in calls):
        return calls
    told = {call.name: call.result for call in calls if 0 < call.result < UNKNOWN}
    pid = next((told[name] for name in _TELL_ID if name in told), 0)
    return tuple(call._replace(pid=pid) for call in calls)


_TELL_ID = ("getpid", "set_tid_address")


def _comment(state: _State, path: Path, number: int, line: str) -> None:
    """Read one of the recorder's own lines."""
    key, _, value = line[2:].partition(": ")
    if key == "command":
        state.is_own = True
    elif key == "widths":
        state.has_narrow_calls = True
    elif key == "pid":
        state.pid = int(value) if _DIGITS.fullmatch(value) else 0
    elif key in ("begin", "end", "anon"):
        try:
            _mapped(state, number, key, _range(value) if key == "anon" else area(value))
        except ValueError as error:
            if key == "begin":
                raise UserError(f"{path}, line {number}: {error}: give it as maps has it") from None
            state.unreadable.append(f"line {number}: {error}")
    elif key in ("limit", "capable"):
        _close_block(state, state.pid)
        name, _, told = value.rstrip().partition(" ")
        amount = {"yes": 1, "no": 0, "unlimited": (1 << 64) - 1}.get(told)
        if amount is None and not _DIGITS.fullmatch(told):
            raise UserError(f"{path}, line {number}: {told!r} is no limit: give bytes or unlimited")
        amount = int(told) if amount is None else amount
        state.notes.append(Note(state.pid, number, key, (), name, amount))
    elif key == "sealed":
        _close_block(state, state.pid)
        try:
            state.notes.append(Note(state.pid, number, key, (_range(value),)))
        except ValueError as error:
            state.unreadable.append(f"line {number}: {error}")
    elif key == "copied":
        _close_block(state, state.pid)
        span, _, told = value.rstrip().partition(" ")
        try:
            state.notes.append(
                Note(state.pid, number, key, (_range(span),), "", int(told == "yes"))
            )
        except ValueError as error:
            state.unreadable.append(f"line {number}: {error}")
    elif key in ("ipc", "segment"):
        _close_block(state, state.pid)
        numbers = [int(word) for word in value.split() if _DIGITS.fullmatch(word)]
        if key == "ipc" and len(numbers) == 1:
            state.notes.append(Note(state.pid, number, key, (), "", numbers[0]))
        elif key == "segment" and len(numbers) == 3:
            name = f"{numbers[0]} {numbers[2]}"
            state.notes.append(Note(state.pid, number, key, (), name, numbers[1]))
        else:
            state.unreadable.append(f"line {number}: {value!r} is no {key}")
    elif key == "untold":
        _close_block(state, state.pid)
        state.notes.append(Note(state.pid, number, key, (), value))
    elif key == "file":
        _close_block(state, state.pid)
        try:
            facts_of(value.rstrip())
            state.notes.append(Note(state.pid, number, key, (), value.rstrip()))
        except ValueError as error:
            state.unreadable.append(f"line {number}: {error}")
    elif key == "length":
        _close_block(state, state.pid)
        matched = _LENGTH.match(value)
        if matched is None:
            state.unreadable.append(f"line {number}: {value!r} is no address and length")
        else:
            length = -1 if matched[2] == "unknown" else int(matched[2])
            state.notes.append(Note(state.pid, number, key, (), matched[1], length))


def _mapped(state: _State, number: int, kind: str, item: Area) -> None:
    """Put a line of maps to those that came before it."""
    block = state.blocks.get(state.pid)
    if block is None or not block.goes_on(kind, item):
        _close_block(state, state.pid)
        block = state.blocks[state.pid] = _Block(kind, number, [])
    block.areas.append(item)


def _close_block(state: _State, pid: int) -> None:
    block = state.blocks.pop(pid, None)
    if block is not None:
        state.notes.append(Note(pid, block.line, block.kind, tuple(block.areas)))


def _take(state: _State, number: int, line: str) -> None:
    line = _PLAIN.sub(_plain_character, line) if "\\x" in line else line
    matched = PREFIX.match(line)
    assert matched is not None
    state.names_pids |= bool(matched[1] or matched[2])
    pid = int(matched[1] or matched[2] or state.pid)
    _close_block(state, pid)
    _close_block(state, 0)
    text = line[matched.end() :]
    if filtered := _FILTERED.match(text):
        _filtered(state, pid, filtered[1])
    gone, resumed, narrow = _GONE.match(text), _RESUMED.match(text), _BITS.match(text)
    if narrow:
        told = f"process {narrow[1]} runs in {narrow[2]} mode"
        is_older = state.is_own and not state.has_narrow_calls
        is_lost = is_older or narrow[2] == "x32"
        told += ", of which this recording has no calls" * is_lost
        kind, bits = "lost" if is_lost else "width", 32 if narrow[2] == "32 bit" else 64
        state.notes.append(Note(int(narrow[1]), number, kind, (), told, bits))
    elif gone:
        _process_gone(state, number, pid, gone)
    elif resumed:
        begun = state.open.pop(pid, None)
        if begun is None:
            told = f"{resumed[1]}({resumed[2]}"
            state.calls.append(_cut(pid, told, number, "its beginning is not in the recording"))
        else:
            _event(state, number, pid, begun[0] + resumed[2], begun[1])
    elif NAME.match(text):
        if pid in state.open:
            old, at = state.open.pop(pid)
            state.calls.append(_cut(pid, old, at, NO_END))
        _event(state, number, pid, text, number)
    elif _SUMMARY.match(line):
        state.in_summary = True
    elif state.in_summary or text.startswith(_SPEECH):
        return
    elif text.strip() and (matched[1] or matched[2]):
        state.calls.append(_cut(pid, text, number, UNREADABLE))


_FILTERED = re.compile(r"^--- SIGSYS \{.*si_code=SYS_SECCOMP.*si_syscall=__NR_(\w+)")


def _filtered(state: _State, pid: int, name: str) -> None:
    """A signal stands for the call before it: what that returned is none of its results.

    The process may be killed without one (no name): then it has the call's number.
    """
    at = next((k for k, call in enumerate(reversed(state.calls), 1) if call.pid == pid), None)
    if at is None:
        return
    call = state.calls[-at]
    if call.name == (name or BY_NUMBER.get(call.result, "")):
        state.calls[-at] = call._replace(cut=FILTERED)


_PLAIN = re.compile(r"\\x([0-9a-f]{2})")


def _plain_character(escaped: re.Match[str]) -> str:
    """Return what -x and -xx write as a number, where that is a letter like others."""
    character = chr(int(escaped[1], 16))
    plain = " " <= character <= "~" and character not in '\\"<>(),[]{}'
    return character if plain else escaped[0]


def _process_gone(state: _State, number: int, pid: int, gone: re.Match[str]) -> None:
    if gone[2]:  # a thread's execve goes on under the id of its process
        if int(gone[2]) in state.open:
            state.open[pid] = state.open.pop(int(gone[2]))
        return
    if "killed by SIGSYS" in gone.string:
        _filtered(state, pid, "")
    begun = state.open.pop(pid, None)
    if begun is not None:
        state.calls.append(_cut(pid, begun[0], begun[1], DIED))
    state.notes.append(Note(pid, number, "exit"))


def _event(state: _State, number: int, pid: int, text: str, begun: int) -> None:
    unfinished = _UNFINISHED.search(text)
    if unfinished:
        state.open[pid] = (text[: unfinished.start()], begun)
        return
    name, _, inside = text.partition("(")
    split = arguments_and_rest(inside)
    if split is None:
        state.calls.append(_cut(pid, text, begun, "the line is cut"))
        return
    matched = _RESULT.match(split[1])
    if matched is None:
        state.calls.append(_cut(pid, text, begun, "the line is cut"))
        return
    injected = _INJECTED.search(split[1])
    not_made = "" if injected is None else POKED if injected[1] == "args" else NOT_MADE
    value = UNKNOWN if matched[1] == "?" else int(matched[1], 16 if "x" in matched[1] else 10)
    value -= 1 << 64 if _ERRORS <= value < 1 << 64 else 0
    if matched[1] == "?" and (matched[3] or "").startswith("ERESTART"):
        value = -errno.EINTR
    elif matched[3]:
        value = -getattr(errno, matched[3], 0) or value
    elif matched[4]:  # -e raw, and calls that have no name (4.x)
        value = -int(matched[4])
    opened = file_of(matched[1] + matched[2]) if matched[2] else ""
    call = TracedCall(pid, *_named(name, split[0]), value, begun, number, not_made, opened)
    state.calls.append(call)


def _named(name: str, arguments: list[str]) -> tuple[str, tuple[str, ...]]:
    """Give a call that strace knows by its number only its name: syscall_0x1ce(...)."""
    name = name_of(name)
    if name != "clone" or (arguments[:1] and arguments[0].startswith("arg1=")):
        arguments = [_ARGUMENT_NAME.sub("", argument, count=1) for argument in arguments]
    if name == "syscall" and arguments:
        try:
            name = BY_NUMBER.get(int(arguments[0], 0), name)
        except ValueError:
            return name, tuple(arguments)
        arguments = arguments[1:]
    return name, tuple(arguments)


def _cut(pid: int, text: str, number: int, why: str) -> TracedCall:
    name, _, inside = text.partition("(")
    named, arguments = _named(name, split_arguments(inside))
    return TracedCall(pid, named, arguments, UNKNOWN, number, _NEVER, why)


def area(line: str) -> Area:
    """Parse one line of maps. Raises ValueError where it isn't one."""
    parts = line.split(None, 5)
    if len(parts) < 5:
        raise ValueError(f"{line!r} is no line of maps")
    offset = int(parts[2], 16) if re.fullmatch("[0-9a-f]+", parts[2]) else 0
    span = _range(parts[0])
    name = parts[5].strip() if len(parts) > 5 else ""
    inode = int(parts[4]) if name.startswith("/SYSV") and parts[4].isdigit() else 0
    return Area(span.start, span.end, parts[1], offset, name.removesuffix(" (deleted)"), inode)


def _range(text: str) -> Area:
    matched = _RANGE.match(text)
    if not matched:
        raise ValueError(f"{text!r} is no range of addresses")
    start, end = int(matched[1], 16), int(matched[2], 16)
    if start >= end:
        raise ValueError(f"{text} ends before it begins")
    return Area(start, end, "", 0, "")
