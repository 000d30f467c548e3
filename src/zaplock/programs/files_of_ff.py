"""The files of strace -ff, one for each thread, as one text.

They are put into one order by their times. Without times only that of each thread is known, and
that a thread begins behind the call that made it: then every file stands in the text right behind
that call.

A time is that of a call's beginning. When it had ended -T tells, or else the thread's next line,
before whose time it was; what overlaps is written as one that began and one that ended.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple

from zaplock.programs.prefix import NAME, end_of_prefix, name_of
from zaplock.programs.text import arguments_and_rest
from zaplock.system_calls import CLONES

_CLOCK = re.compile(r"(?:^|\s)(\d\d:\d\d:\d\d\.\d+|\d{9,}\.\d+)\s")
_TOOK = re.compile(r"<(\d+\.\d+)>\s*$")
_MADE = re.compile(r"0x[0-9a-f]{1,16}|[0-9]{1,20}")
_DAY_S = 86_400.0

Lines = Iterable[tuple[str, str]]
"""Each line with the thread whose file it is from."""


def has_times(lines: Lines) -> bool:
    """Return whether every call of the files has a time, or there is one file only."""
    lines = list(lines)
    if len({pid for pid, _ in lines}) < 2:
        return True
    return all(_CLOCK.search(line) or line.startswith(("#", "+++", "---")) for _, line in lines)


def by_time(lines: Lines) -> Iterator[str]:
    """Merge by time, a call that took long as one that began and ended."""
    told = [(pid, whole.rstrip("\n")) for pid, whole in lines]
    spans = _spans(told)
    spread = (_spread(line, pid, *span) for (pid, line), span in zip(told, spans, strict=True))
    events = sorted(chain.from_iterable(spread), key=lambda event: event.at)
    yield from (f"{event.line}\n" for event in events)


class _Event(NamedTuple):
    at: float
    line: str


def _spans(told: Sequence[tuple[str, str]]) -> Iterator[tuple[float, float]]:
    """Yield when each line began, and by when it had ended."""
    found = [_CLOCK.search(line) for _, line in told]
    times = _over_midnight([_seconds(one[1]) if one else None for one in found])
    ends = [math.inf] * len(told)
    following: dict[str, float] = {}
    for k in range(len(told) - 1, -1, -1):
        pid, at = told[k][0], times[k]
        ends[k] = following.get(pid, math.inf)
        following[pid] = at if at is not None else ends[k]
    last, clock = "", 0.0
    for (pid, line), at, end in zip(told, times, ends, strict=True):
        begun = at if at is not None else clock if pid == last else 0.0
        took, last = _TOOK.search(line), pid
        if NAME.match(line, end_of_prefix(line)) is None:
            clock = begun
        else:
            clock = min(begun + float(took[1]), end) if took else end
        yield begun, clock


def _over_midnight(times: list[float | None]) -> list[float | None]:
    """Return times of day that only grow: where they span half a day, the early ones come next."""
    known = [time for time in times if time is not None]
    if not known or not _DAY_S / 2 < max(known) - min(known) < _DAY_S:
        return times
    return [time + _DAY_S if time is not None and time < _DAY_S / 2 else time for time in times]


def _seconds(told: str) -> float:
    value = 0.0
    for part in told.split(":"):
        value = value * 60 + float(part)
    return value


def _spread(line: str, pid: str, begun: float, ended: float) -> list[_Event]:
    if line.startswith("#"):
        return [_Event(begun, line)]
    text = line[end_of_prefix(line) :]
    split = NAME.match(text)
    rest = arguments_and_rest(text.partition("(")[2]) if split else None
    if ended == begun or split is None or rest is None:
        return [_Event(begun, f"{pid} {line}")]
    head = line.removesuffix(rest[1])[:-1]
    return [
        _Event(begun, f"{pid} {head} <unfinished ...>"),
        _Event(ended, f"{pid} <... {split[1]} resumed>){rest[1]}"),
    ]


def by_thread(lines: Lines) -> Iterator[str]:
    """Merge without times: each file stands right behind the first call that made its thread."""
    files: dict[str, list[str]] = {}
    for pid, whole in lines:
        files.setdefault(pid, []).append(whole.rstrip("\n"))
    made = {
        (pid, number): child
        for pid, told in files.items()
        for number, line in enumerate(told)
        if (child := _made(line)) in files and child != pid
    }
    children = set(made.values())
    rest = {pid: iter(enumerate(told)) for pid, told in files.items()}
    stack = [*reversed(files), *(pid for pid in reversed(files) if pid not in children)]
    said = ""  # whose the last comment was
    while stack:
        pid = stack[-1]
        for number, line in rest[pid]:
            if line.startswith("#"):
                if said != pid:
                    yield f"# pid: {pid}\n"
                said = pid
                yield f"{line}\n"
                continue
            yield f"{pid} {line}\n"
            if child := made.get((pid, number), ""):
                stack.append(child)
                break
        else:
            stack.pop()


def _made(line: str) -> str:
    """Return the id of the process that a line has made, "" where it has made none."""
    text = line[end_of_prefix(line) :]
    named, told = NAME.match(text), _MADE.match(text.rpartition(" = ")[2])
    if named is None or told is None or name_of(named[1]) not in CLONES:
        return ""
    return str(int(told[0], 16 if "x" in told[0] else 10))
