"""Simulated teardowns as ftrace's function_graph text, in one of two layouts.

trace-cmd   as `trace-cmd report` prints it, and as the RFC shows its munmap: an event a line, with
            the thread, its CPU and the time in seconds
ftrace      as the kernel's own file `trace` does, by its default options (print_graph_duration
            and its neighbours: the same from 4.9 to 7.3)

A function is entered, and left with how long it took; one that calls none stands in one line. The
marks before a duration are the kernel's: + over 10 us, ! 100 us, # 1 ms, * 10 ms, @ 100 ms, $ 1 s
(Documentation/trace/ftrace.rst). Leaves are the model's steps.

Not covered: interrupts; only the thread that unmaps is traced; columns of options for what a
simulation has not (latency-format's flags, funcgraph-retval, -args and -retaddr).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zaplock.lab.call_log import FunctionCall
    from zaplock.lab.compare import Comparison
    from zaplock.lab.teardown import Teardown

TRACE_CMD, FTRACE = "trace-cmd", "ftrace"
MARKS = (
    (1_000_000_000, "$"),
    (100_000_000, "@"),
    (10_000_000, "*"),
    (1_000_000, "#"),
    (100_000, "!"),
    (10_000, "+"),
)
_HEADERS = {
    TRACE_CMD: ("# tracer: function_graph",),
    FTRACE: (
        "# tracer: function_graph",
        "#",
        "# CPU  DURATION                  FUNCTION CALLS",
        "# |     |   |                     |   |   |   |",
    ),
}
_INDENT = "  "
_DIGITS = 7
"""So many digits of a duration the kernel prints, where its point is among them."""

_Head = Callable[[int, bool], str]
"""What stands before an entry's or an exit's (True) duration, at some time (ns)."""


def function_graph(comparison: Comparison, layout: str = TRACE_CMD) -> str:
    """Return the text of all runs whose calls were logged, each under a line that names it."""
    lines = [*_HEADERS[layout]]
    for run in comparison.runs:
        beside = ",".join(run.outcome.bystanders) or "nobody"
        lines += [f"# design: {run.design.name}, bystanders: {beside}", *_run_lines(run, layout)]
    return "\n".join([*lines, ""])


def _run_lines(run: Teardown, layout: str) -> Iterator[str]:
    """Write the lines of one run; its calls must have been logged."""
    assert run.calls is not None, "run with log_calls=True"
    task = run.subject

    def by_trace_cmd(time_ns: int, left: bool) -> str:
        seconds, rest_ns = divmod(time_ns, 10**9)
        event = "funcgraph_exit: " if left else "funcgraph_entry:"
        who = f"{task.name[:15]:>16}-{task.tid:<5} [{task.cpu:03}]"
        return f"{who} {seconds:5}.{rest_ns // 1000:06}: {event}      "

    def by_ftrace(_time_ns: int, _left: bool) -> str:
        return f" {task.cpu}) "

    head, width = (by_trace_cmd, 7) if layout == TRACE_CMD else (by_ftrace, 8)
    yield from lines_of(run.calls.calls(), head, width)


def lines_of(calls: Sequence[FunctionCall], head: _Head, width: int) -> Iterator[str]:
    """Write calls in the order of their entries, closing each behind what it called.

    A duration fills `width` columns behind its mark.
    """
    open_: list[FunctionCall] = []
    nothing = " " * (2 + width + len(" us "))
    for call in calls:
        while open_ and open_[-1].depth >= call.depth:
            yield _left(open_.pop(), head, width)
        indent = _INDENT * call.depth
        if call.is_leaf:
            took = _duration(call, width)
            yield f"{head(call.begin_ns, False)}{took}|  {indent}{call.name}();"
        else:
            yield f"{head(call.begin_ns, False)}{nothing}|  {indent}{call.name}() {{"
            open_.append(call)
    while open_:
        yield _left(open_.pop(), head, width)


def _left(call: FunctionCall, head: _Head, width: int) -> str:
    return f"{head(call.end_ns, True)}{_duration(call, width)}|  {_INDENT * call.depth}}}"


def _duration(call: FunctionCall, width: int) -> str:
    """Write a duration as function_graph does: a mark, then microseconds in 7 places."""
    span_ns = call.end_ns - call.begin_ns
    mark = next((mark for least, mark in MARKS if span_ns > least), " ")
    micro, nano = divmod(span_ns, 1000)
    places = min(3, _DIGITS - len(str(micro)))
    digits = f"{micro}.{f'{nano:03}'[:places]}" if places > 0 else str(micro)
    return f"{mark} {digits} us {'':{max(0, width - len(digits))}}"
