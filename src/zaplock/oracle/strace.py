"""Parse what `strace -f -y -e trace=%memory` wrote, with the maps of its beginning and its end.

A call of which strace saw the end later (`<unfinished ...>`, `<... resumed>`) counts where it
ended, since that is nearest to when it took effect; one that makes a process counts where it began,
because the child's own calls may come before the parent's return. Lines `# begin: ` and `# end: `
hold /proc/PID/maps; without them the replay has nothing to start from.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from zaplock.errors import UserError
from zaplock.inputs import read_plain
from zaplock.model import flags as model_flags

MAKES_PROCESS = ("clone", "clone3", "fork", "vfork")


class TracedCall(NamedTuple):
    """One system call: who, what, the arguments as written, the result (minus errno), the line."""

    pid: int
    name: str
    arguments: tuple[str, ...]
    result: int
    line: int


class Area(NamedTuple):
    """One line of /proc/PID/maps; `name` is the last part of the path."""

    start: int
    end: int
    perms: str
    offset: int
    name: str


@dataclass(frozen=True, slots=True)
class StraceRecording:
    """A parsed file: calls in their order, the maps before and after, the first process's id."""

    pid: int
    begin: tuple[Area, ...]
    end: tuple[Area, ...]
    calls: tuple[TracedCall, ...]


_LINE = re.compile(r"^(?:\[pid\s+)?(\d+)\]?\s+(.*)$")
_CALL = re.compile(r"^(\w+)\((.*)\)\s+=\s+(-?\w+|\?)(?:\s+(E[A-Z0-9]+))?.*$")
_UNFINISHED = re.compile(r"^(\w+)\((.*)<unfinished \.\.\.>$")
_RESUMED = re.compile(r"^<\.\.\. (\w+) resumed>(.*)$")
_CONSTANTS = {
    name: value
    for name, value in vars(model_flags).items()
    if name.startswith(("MAP_", "PROT_", "MADV_", "MREMAP_", "MCL_")) and isinstance(value, int)
} | {
    "NULL": 0, "MAP_FILE": 0, "MLOCK_ONFAULT": 1, "MS_ASYNC": 1, "MS_INVALIDATE": 2, "MS_SYNC": 4,
    "MAP_HUGE_SHIFT": 26, "MADV_SOFT_OFFLINE": 101, "MADV_HWPOISON": 100,
}  # fmt: skip


_LARGEST = 1 << 30


@dataclass(slots=True)
class _State:
    pid: int = 0
    begin: list[Area] = field(default_factory=list)
    end: list[Area] = field(default_factory=list)
    calls: list[TracedCall | None] = field(default_factory=list)
    open: dict[int, tuple[str, int]] = field(default_factory=dict)


def parse(path: Path) -> StraceRecording:
    """Read a recording. Raises UserError where the file can't be read or has no calls or maps."""
    way_out = "give a recording of strace"
    try:
        text = read_plain(path, _LARGEST, way_out).decode(errors="replace")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"can't read {path}: {reason}; {way_out}") from None
    state = _State()
    for number, line in enumerate(text.splitlines(), 1):
        try:
            _take(state, number, line)
        except (ValueError, OverflowError):
            raise UserError(f"{path}: line {number} is not what strace writes: {way_out}") from None
    calls = tuple(call for call in state.calls if call is not None)
    if not calls:
        raise UserError(
            f"{path} has no line that is a system call: record with "
            "strace -f -y -e trace=%memory,clone,clone3,fork,vfork,execve -o FILE PROGRAM"
        )
    if not state.begin:
        raise UserError(
            f"{path} has no '# begin: ' lines: put /proc/PID/maps right after exec in front of it"
        )
    pid = state.pid or calls[0].pid
    return StraceRecording(pid, tuple(state.begin), tuple(state.end), calls)


def _take(state: _State, number: int, line: str) -> None:
    if line.startswith("# pid: "):
        state.pid = int(line[7:])
    elif line.startswith("# begin: "):
        state.begin.append(area(line[9:]))
    elif line.startswith("# end: "):
        state.end.append(area(line[7:]))
    matched = _LINE.match(line)
    if matched:
        _event(state, number, int(matched[1]), matched[2])


def _event(state: _State, number: int, pid: int, text: str) -> None:
    unfinished = _UNFINISHED.match(text)
    if unfinished:
        state.open[pid] = (f"{unfinished[1]}({unfinished[2]}", len(state.calls))
        state.calls.append(None)
        return
    place = len(state.calls)
    resumed = _RESUMED.match(text)
    if resumed:
        begun = state.open.pop(pid, None)
        if begun is None:
            return
        text, place = begun[0] + resumed[2], begun[1]
    call = _call(pid, text, number)
    if call is None:
        return
    if resumed and call.name in MAKES_PROCESS:
        state.calls[place] = call
    else:
        state.calls.append(call)


def _call(pid: int, text: str, number: int) -> TracedCall | None:
    matched = _CALL.match(text)
    if not matched or matched[3] == "?":
        return None
    name, inside, result, failure = matched.groups()
    value = int(result, 0)
    if failure:
        value = -getattr(errno, failure, 0)
    return TracedCall(pid, name, tuple(split_arguments(inside)), value, number)


def split_arguments(text: str) -> Iterator[str]:
    """Split at the commas that are not inside brackets, angle brackets or quotes."""
    depth, quoted, begin = 0, False, 0
    for k, character in enumerate(text):
        if character == '"' and text[k - 1 : k] != "\\":
            quoted = not quoted
        elif quoted:
            continue
        elif character in "([{<" and not text.startswith("<<", k) and text[k - 1 : k] != "<":
            depth += 1
        elif character in ")]}>":
            depth -= 1
        elif character == "," and depth == 0:
            yield text[begin:k].strip()
            begin = k + 1
    if text[begin:].strip():
        yield text[begin:].strip()


def number(text: str) -> int:
    """Return the value of an argument: a number, names joined by |, a shift, a commented one.

    Raises ValueError for what is none of these.
    """
    text = text.split("/*")[0].strip()
    value = 0
    for part in text.split("|"):
        if "<<" in part:
            left, _, right = part.partition("<<")
            distance = number(right)
            if not 0 <= distance < 64:
                raise ValueError(f"a shift by {distance}")
            value |= number(left) << distance
        elif part in _CONSTANTS:
            value |= _CONSTANTS[part]
        elif len(part) > 1 and part[0] == "0" and part.isdigit():
            value |= int(part, 8)
        else:
            value |= int(part, 0)
    return value


def file_of(text: str) -> str:
    """Return the name of the file of a descriptor argument as `-y` shows it, "" for none."""
    matched = re.match(r"^-?\d+<(.*?)>?(?:\(deleted\))?>?$", text)
    return matched[1] if matched else ""


def area(line: str) -> Area:
    """Parse one line of maps."""
    addresses, perms, offset, _device, _inode, *path = line.split(None, 5)
    start, end = (int(part, 16) for part in addresses.split("-"))
    name = path[0].strip() if path else ""
    deleted = " (deleted)"
    name = name.removesuffix(deleted)
    return Area(start, end, perms, int(offset, 16), name.rsplit("/", 1)[-1])
