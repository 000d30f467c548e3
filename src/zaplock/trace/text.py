"""Read the text of a trace: ftrace's `trace` and `trace_pipe`, `trace-cmd report`, `perf script`.

Their lines differ in small things only: perf puts the thread id after a blank and the event's
system before its name, ftrace joins name and id by a dash, adds a column of flags, and prints a
system call as `sys_munmap(addr: ..., len: ...)` where the others print `sys_enter_munmap: ...`.

What text can't tell: times finer than it prints (a microsecond unless `perf script --ns`), the
process of a thread, and, with ftrace's own printing, the true `mm` (it is hashed, yet the same for
the same mm, so holds and waits come out right). One line costs about as much as a hundred events
of a binary page; record with `zaplock record` where that can be had.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from zaplock.trace.events import EVENT, NO_OP, EventKind, Events, RecordedTask

_LINE = re.compile(
    r"^\s*(?P<comm>\S.*?)(?:-|\s+)(?P<tid>\d+)\s+(?:\(\s*[-\d]+\)\s+)?\[(?P<cpu>\d+)\]\s+"
    r"(?:\S{4,6}\s+)?(?P<seconds>\d+)\.(?P<fraction>\d+):\s+(?:[a-z]\w*:(?=\w))?(?P<rest>\S.*)$"
)
_NAMED = re.compile(r"^(?P<event>\w+): *(?P<text>.*)$")
_CALL = re.compile(r"^sys_(?P<op>\w+)\((?P<text>.*)\)$")
_RETURN = re.compile(r"^sys_(?P<op>\w+) -> (?P<text>\S+)")
_VALUE = re.compile(r"(\w+)[=:] ?(\([^)]*\)|[^\s,]+)")
_LOST = re.compile(
    r"CPU:\s*(\d+) \[(?:LOST )?(\d+)? ?EVENTS(?: DROPPED)?\]|PERF_RECORD_LOST.*?(\d+)"
)
_SWITCH = re.compile(r"prev_pid=(\d+).*prev_state=(\S+) ==> .*next_comm=(.*) next_pid=(\d+)")

# The arguments that say an operation's address, length and detail: by position, as the binary
# recorder takes them (mm system calls' own order).
_ARGUMENTS: dict[str, tuple[int | None, int | None, int | None]] = {
    "munmap": (0, 1, None),
    "mmap": (0, 1, 3),
    "mremap": (0, 1, 2),
    "brk": (0, None, None),
    "madvise": (0, 1, 2),
    "mprotect": (0, 1, 2),
    "pkey_mprotect": (0, 1, 2),
    "mlock": (0, 1, None),
    "mlock2": (0, 1, 2),
    "munlock": (0, 1, None),
    "mlockall": (None, None, 0),
    "munlockall": (None, None, None),
    "msync": (0, 1, 2),
    "process_madvise": (None, None, 3),
    "process_mrelease": (None, None, 0),
    "execve": (None, None, None),
    "exit": (None, None, 0),
    "exit_group": (None, None, 0),
    "clone": (None, None, 0),
    "clone3": (None, None, None),
    "fork": (None, None, None),
    "vfork": (None, None, None),
}
OPERATIONS = tuple(_ARGUMENTS)

Row = dict[str, int]


def parse(lines: Iterable[str]) -> Events:
    """Read the events of a text trace; lines that are none of ours are passed over."""
    rows: list[Row] = []
    comms: dict[int, str] = {}
    for line in lines:
        rows += _rows(line, rows[-1]["time_ns"] if rows else 0, comms)
    columns = {
        name: np.array(
            [_fitting(name, row.get(name, NO_OP if name == "op" else 0)) for row in rows],
            dtype=EVENT[name],
        )
        for name in EVENT.names or ()
    }
    order = np.argsort(columns["time_ns"], kind="stable")
    tasks = {tid: RecordedTask(tid, comm, tid, comm) for tid, comm in comms.items()}
    return Events({name: col[order] for name, col in columns.items()}, OPERATIONS, tasks)


def _fitting(column: str, number: int) -> int:
    """Read 64 printed bits as the column's type has them: a program may pass any number."""
    number &= (1 << 64) - 1
    signed = EVENT[column].kind == "i"
    return number - (1 << 64) if signed and number >= 1 << 63 else number


def _rows(line: str, last_ns: int, comms: dict[int, str]) -> Sequence[Row]:
    if lost := _LOST.search(line):
        count = int(lost[2] or lost[3] or -1)
        kind = int(EventKind.LOST)
        return [{"time_ns": last_ns, "kind": kind, "cpu": int(lost[1] or -1), "length": count}]
    found = _LINE.match(line)
    if found is None:
        return []
    fraction = found["fraction"].ljust(9, "0")[:9]
    head = {
        "time_ns": int(found["seconds"]) * 1_000_000_000 + int(fraction),
        "cpu": int(found["cpu"]),
        "tid": int(found["tid"]),
    }
    rows = [{**head, **row} for row in _meaning(found["rest"])]
    if rows and found["comm"] not in ("<...>", ":-1"):
        comms[head["tid"]] = found["comm"]
    return rows


def _meaning(rest: str) -> list[Row]:
    if call := _CALL.match(rest):
        return _began(call["op"], call["text"])
    if back := _RETURN.match(rest):
        return _returned(back["op"], back["text"])
    named = _NAMED.match(rest)
    if named is None:
        return []
    event, text = named["event"], named["text"]
    if event.startswith("sys_enter_"):
        return _began(event.removeprefix("sys_enter_"), text)
    if event.startswith("sys_exit_"):
        return _returned(event.removeprefix("sys_exit_"), text)
    return _READERS[event](text) if event in _READERS else []


def _began(op: str, text: str) -> list[Row]:
    if op not in _ARGUMENTS:
        return []
    values = [_number(value, 16) for _, value in _VALUE.findall(text)]
    row = {"kind": int(EventKind.OP_BEGIN), "op": OPERATIONS.index(op)}
    for column, position in zip(("address", "length", "detail"), _ARGUMENTS[op]):
        if position is not None and position < len(values):
            row[column] = values[position]
    return [row]


def _returned(op: str, text: str) -> list[Row]:
    if op not in _ARGUMENTS:
        return []
    result = _number(text.strip())
    return [{"kind": int(EventKind.OP_END), "op": OPERATIONS.index(op), "result": result}]


def _lock(kind: EventKind) -> Callable[[str], list[Row]]:
    def read(text: str) -> list[Row]:
        values = dict(_VALUE.findall(text))
        row = {
            "kind": int(kind),
            "mm": int(values["mm"], 16),
            "write": int(values["write"] in ("true", "1")),
        }
        if kind == EventKind.ACQUIRED:
            row["success"] = int(values["success"] in ("true", "1"))
        return [row]

    return read


def _switch(text: str) -> list[Row]:
    found = _SWITCH.search(text)
    if found is None:
        return []
    runnable = found[2] in ("R", "R+")
    out = {"kind": int(EventKind.SCHED_OUT), "tid": int(found[1]), "detail": 0 if runnable else 1}
    return [out, {"kind": int(EventKind.SCHED_IN), "tid": int(found[4])}]


def _wakeup(text: str) -> list[Row]:
    return [{"kind": int(EventKind.WAKEUP), "tid": int(dict(_VALUE.findall(text))["pid"])}]


def _fault(text: str) -> list[Row]:
    values = dict(_VALUE.findall(text))
    where = {"address": _number(values["address"]), "detail": _number(values["error_code"])}
    return [{"kind": int(EventKind.FAULT_BEGIN), **where}]


def _contention(kind: EventKind) -> Callable[[str], list[Row]]:
    def read(text: str) -> list[Row]:
        row = {"kind": int(kind), "address": int(text.split()[0], 16)}
        if kind == EventKind.CONTENTION_END and (result := re.search(r"ret=(-?\d+)", text)):
            row["result"] = int(result[1])
        return [row]

    return read


_READERS: dict[str, Callable[[str], list[Row]]] = {
    "mmap_lock_start_locking": _lock(EventKind.ASKED),
    "mmap_lock_acquire_returned": _lock(EventKind.ACQUIRED),
    "mmap_lock_released": _lock(EventKind.RELEASED),
    "sched_switch": _switch,
    "sched_wakeup": _wakeup,
    "page_fault_user": _fault,
    "contention_begin": _contention(EventKind.CONTENTION_BEGIN),
    "contention_end": _contention(EventKind.CONTENTION_END),
}


def _number(text: str, base: int = 0) -> int:
    """Read a printed number. An argument of a system call is hexadecimal also without its 0x."""
    try:
        return int(text, base)
    except ValueError:
        return 0
