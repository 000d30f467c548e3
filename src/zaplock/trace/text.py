"""Read the text of a trace: ftrace's `trace` and `trace_pipe`, `trace-cmd report`, `perf script`.

Their lines differ in small things only. A line is read from its time stamp on: what stands after it
is the event (`text_events`); what stands before it ends, from right to left, in ftrace's flags, the
cpu in brackets, ftrace's "(tgid)", the thread's id (perf: "pid/tid"), and the rest is the name.
perf leaves out what its -F does not name: the cpu, the name, and then the thread alone is known.

ftrace's function_graph puts events among its calls as comments; its columns are options, of which
two are needed, the time and the thread. Its calls don't tell whose lock they are about, so they are
passed over.

What text can't tell: times finer than it prints (a microsecond unless `perf script --ns`), the
process of a thread where no pid is printed, and, with ftrace's own printing, the true `mm` (it is
hashed, yet the same for the same mm, so holds and waits come out right). One line costs about as
much as a hundred events of a binary page; record with `zaplock record` where that can be had.

Events that the kernel had overwritten are told by ftrace's header ("entries-in-buffer/
entries-written") and by lines such as "CPU 1 buffer started": they are missing before those times.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import islice

from zaplock.errors import UserError
from zaplock.trace.events import EventKind
from zaplock.trace.imported import ImportedTrace, TraceBuilder
from zaplock.trace.text_events import Row, rows_of

_TIME = re.compile(r"(?<!\S)(\d{1,10}+)\.(\d{1,9}+): ")
_CPU = re.compile(r"\[(\d{1,5}+)\](?:\s{1,8}(\S{1,8}))?$")
_IN_INTERRUPT = re.compile("[hHsSzZ]")
"""Among ftrace's flags: in a hard or soft interrupt or an NMI."""
_TGID = re.compile(r"\(\s{0,8}([\d-]{1,10}+)\)$")
_TASK = re.compile(r"(?:^|[\s-])(?:(\d{1,20})/\s{0,12})?(\d{1,20})$")
_INSTANCE = re.compile(r"\S{1,100}: (?=.{16}-\d)")
"""trace-cmd's name of the instance that an event is from, before a task's name of 16 columns."""
_TAIL = 48
"""So many characters before the time hold the thread, the cpu and the flags."""
_TIMES = 3
"""A task may be called "1.5: x": so many places are tried for the time."""
_PERIOD = re.compile(r"\d{1,20}+\s++")
"""`perf script -F period` puts it before the event."""
_RELEASE = re.compile(r"#\s{0,4}os release\s{0,8}:\s{0,4}(\S{1,100}+)")
_WRITTEN = re.compile(r"entries-in-buffer/entries-written:\s{0,8}(\d{1,18}+)/(\d{1,18}+)")
_STARTED = re.compile(r"#{2,8} CPU (\d{1,5}+) buffer started")
_LOST = re.compile(
    r"CPU:\s{0,8}(\d{1,5}+) \[(?:LOST )?(\d{1,18}+)? ?EVENTS(?: DROPPED)?\]"
    r"|PERF_RECORD_LOST\D{0,80}+(\d{1,18}+)"
)
_UNNAMED = ("<...>", ":-1", "")
_COMMENT = re.compile(r"/\* (.*+)")
_GRAPH = re.compile(
    r"\s*+(?:(?P<seconds>\d{1,10}+)\.(?P<rest>\d{1,9}+) \|)?"  # funcgraph-abstime
    r"\s*+(?:(?P<cpu>\d{1,5}+)\))?"  # funcgraph-cpu
    r"\s*+(?:(?P<comm>.{0,16}?)-(?P<tid>\d{1,10}+)\s*+\|)?"  # funcgraph-proc
    r"(?:\s*+(?P<flags>[\w.#-]{3,9}+) \|)?"  # latency-format
    r"[\s|]*+"  # where a duration stands
)
"""What function_graph puts before an event; the options it is for (trace_functions_graph.c)."""


def parse(lines: Iterable[str]) -> ImportedTrace:
    """Read the events of a text trace; lines that are none of ours are passed over.

    Raises UserError for a line that is one of ours and can't be read, or has an absurd number.
    """
    trace = TraceBuilder()
    for number, line in enumerate(lines, 1):
        try:
            if not _header(line, trace):
                _line(line, trace)
        except (KeyError, ValueError, IndexError, OverflowError):
            raise UserError(
                f"line {number} can't be read ({line.strip()[:80]!r}): give the tool's own text, "
                "or take the line out"
            ) from None
    return trace.finished()


def _header(line: str, trace: TraceBuilder) -> bool:
    """Read a line that tells of the trace and not of an event; say whether it was one."""
    if line.startswith("#"):
        if found := _RELEASE.match(line):
            trace.kernel = found[1]
        elif found := _WRITTEN.search(line):
            overwritten = int(found[2]) - int(found[1])
            if overwritten > 0:
                trace.lost(count=overwritten)
        elif found := _STARTED.match(line):
            trace.lost(cpu=int(found[1]), count=0)
        return True
    lost = _LOST.search(line)
    if lost:
        trace.lost(cpu=int(lost[1] or -1), count=int(lost[2] or lost[3] or -1))
    return bool(lost)


def _line(line: str, trace: TraceBuilder) -> None:
    for found in islice(_TIME.finditer(line), _TIMES):
        said = line[found.end() :].strip()
        period = _PERIOD.match(said)
        rows = rows_of(said[period.end() :] if period else said)
        if rows:
            break
    else:
        _graph_line(line, trace)
        return
    before = line[: found.start()].rstrip()
    if instance := _INSTANCE.match(before):
        before = before[instance.end() :]
    head = {
        "time_ns": int(found[1]) * 1_000_000_000 + int(found[2].ljust(9, "0")),
        **_who(before, trace),
    }
    flagged = _CPU.search(before, max(len(before) - _TAIL, 0))
    _add(trace, head, rows, said, flagged[2] if flagged else None)


def _add(trace: TraceBuilder, head: Row, rows: list[Row], said: str, flags: str | None) -> None:
    """Add the rows of one line. Without flags (perf prints none) nobody knows who woke."""
    sure = bool(flags) and not _IN_INTERRUPT.search(flags or "")
    for row in rows:
        whole = {**head, **row}
        if row["kind"] == EventKind.WAKEUP and said.startswith("sched_waking:"):
            whole["detail"] = head["tid"] if sure else 0
        trace.add(whole)


def _graph_line(line: str, trace: TraceBuilder) -> None:
    """Read an event among function_graph's calls: its columns, then a comment."""
    comment = _COMMENT.search(line)
    if comment is None:
        return
    said = comment[1].rstrip().removesuffix("*/").rstrip()
    rows = rows_of(said)
    if not rows:
        return
    found = _GRAPH.fullmatch(line[: comment.start()])
    if found is None:
        raise ValueError(line)
    if found["seconds"] is None or found["tid"] is None:
        raise UserError(
            "function_graph tells no time or no thread here: as root, in tracefs, echo 1 > "
            "options/funcgraph-abstime, echo 1 > options/funcgraph-proc, then read trace again"
        )
    tid, comm = int(found["tid"]), found["comm"].strip()
    if comm not in _UNNAMED:
        trace.name(tid, comm)
    time_ns = int(found["seconds"]) * 1_000_000_000 + int(found["rest"].ljust(9, "0"))
    head = {"time_ns": time_ns, "cpu": int(found["cpu"] or -1), "tid": tid}
    _add(trace, head, rows, said, found["flags"])


def _who(head: str, trace: TraceBuilder) -> Row:
    """Read the cpu and the thread from what stands before the time; learn the thread's name."""
    cpu, pid = -1, None
    if found := _CPU.search(head, max(len(head) - _TAIL, 0)):
        cpu, head = int(found[1]), head[: found.start()].rstrip()
    if found := _TGID.search(head, max(len(head) - _TAIL, 0)):
        pid = int(found[1]) if found[1].isdigit() else None
        head = head[: found.start()].rstrip()
    found = _TASK.search(head, max(len(head) - _TAIL, 0))
    if found is None:
        raise ValueError(head)
    tid, comm = int(found[2]), head[: found.start()].strip()
    if found[1]:
        pid = int(found[1])
    if comm not in _UNNAMED:
        trace.name(tid, comm)
    if pid is not None:
        trace.own(tid, pid)
    return {"cpu": cpu, "tid": tid}
