"""Simulated teardowns as ftrace's function_graph text, as the RFC itself shows its munmap.

Each line has the thread, its CPU, the time in seconds, whether a function is entered or left, how
long it took (where it is left, or beside a leaf) and the function, indented by its depth. The marks
before a duration are the kernel's: + over 10 us, ! 100 us, # 1 ms, * 10 ms, @ 100 ms, $ 1 s
(Documentation/trace/ftrace.rst). Leaves are the model's steps.

Not covered: interrupts; only the thread that unmaps is traced.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zaplock.lab.call_log import FunctionCall
    from zaplock.lab.compare import Comparison
    from zaplock.lab.teardown import Teardown

MARKS = (
    (1_000_000_000, "$"),
    (100_000_000, "@"),
    (10_000_000, "*"),
    (1_000_000, "#"),
    (100_000, "!"),
    (10_000, "+"),
)
HEADER = "# tracer: function_graph"
BLANK = " " * 15


def function_graph(comparison: Comparison) -> str:
    """Return the text of all runs whose calls were logged, each under a line that names it."""
    lines = [HEADER]
    for run in comparison.runs:
        beside = ",".join(run.outcome.bystanders) or "nobody"
        lines += [f"# design: {run.design.name}, bystanders: {beside}", *run_lines(run)]
    return "\n".join([*lines, ""])


def run_lines(run: Teardown) -> Iterator[str]:
    """Write the lines of one run; its calls must have been logged."""
    assert run.calls is not None, "run with log_calls=True"
    return lines_of(
        run.calls.calls(), f"{run.subject.name}-{run.subject.tid} [{run.subject.cpu:03}]"
    )


def lines_of(calls: Sequence[FunctionCall], who: str) -> Iterator[str]:
    """Write calls in the order of their entries, closing each behind what it called."""
    open_: list[FunctionCall] = []
    for call in calls:
        while open_ and open_[-1].depth >= call.depth:
            yield _exit(open_.pop(), who)
        head, indent = _head(who, call.begin_ns, "entry"), "  " * call.depth
        if call.is_leaf:
            yield f"{head} {duration_of(call)} | {indent}{call.name}();"
        else:
            yield f"{head} {BLANK} | {indent}{call.name}() {{"
            open_.append(call)
    while open_:
        yield _exit(open_.pop(), who)


def _exit(call: FunctionCall, who: str) -> str:
    indent = "  " * call.depth
    return f"{_head(who, call.end_ns, 'exit ')} {duration_of(call)} | {indent}}} /* {call.name} */"


def _head(who: str, time_ns: int, what: str) -> str:
    seconds, rest_ns = divmod(time_ns, 10**9)
    return f"{who} {seconds}.{rest_ns // 1000:06}: funcgraph_{what}:"


def duration_of(call: FunctionCall) -> str:
    """Write a duration as function_graph does: a mark, then microseconds in about 7 places."""
    span_ns = call.end_ns - call.begin_ns
    mark = next((mark for least, mark in MARKS if span_ns > least), " ")
    micro, nano = divmod(span_ns, 1000)
    digits = f"{micro}.{nano:03}"[: max(7, len(str(micro)))].rstrip(".")
    return f"{mark} {digits:<10} us"
