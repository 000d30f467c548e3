"""Name the calls and mappings that are worth changing, with what that gains on this kernel.

FILE is a recording (`zaplock record`): advice on the calls behind which others waited. `-p PID`
looks at a running process without taking its lock: advice on mappings whose end would stall it,
upper bounds, since what is present can't be seen without that lock. Both need some seconds in
which the calls are measured on this kernel, in a process of their own.

"now" is the worst stall of others, "then" what the longest piece takes after the change. Advice
never costs data: pages are given back only where the call frees them anyway. A program with
settings of its own (Java, Go, jemalloc, Redis, ...) is told those, and where they are documented.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from zaplock.cli._ending import next_step
from zaplock.cli._json_text import print_json
from zaplock.cli._rows import add_top
from zaplock.errors import UserError
from zaplock.units import duration, parse_duration, size
from zaplock.untrusted_names import shell_word

if TYPE_CHECKING:
    from zaplock.advise.advice import Advice
    from zaplock.advise.calls import RecordedAdvice
    from zaplock.advise.costs import Costs
    from zaplock.views.grid import Grid


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `zaplock advise`."""
    add = parser.add_argument
    add("file", metavar="FILE", nargs="?", help="a recording")
    add("-p", "--pid", type=int, metavar="PID", help="a running process instead")
    add("--least", default="1ms", metavar="TIME", help="stalls below this are let be (1ms)")
    add_top(parser, 10, "rows of the table")
    add("--json", action="store_true", help="print the advice as JSON")


def run(args: argparse.Namespace) -> int:
    """Collect, measure, print."""
    if (args.file is None) == (args.pid is None):
        raise UserError("give a recording or -p PID: one of them, and not both")
    least_ns = parse_duration(args.least)
    told, costs = (_from_file if args.file else _from_pid)(args, least_ns)
    worth = [one for one in told.advice if one.worth_it]
    found = sorted(worth, key=lambda one: (-one.caused_ns, -one.gain_ns, one.what))
    if args.json:
        print_json(_to_json(told, found[: args.top], costs))
    else:
        _print(args, told, found, costs)
    next_step(*_next(args), aside=args.json)
    return 0


def _to_json(told: RecordedAdvice, found: list[Advice], costs: Costs) -> dict[str, Any]:
    names = ("waits", "waited_ns", "unexplained_ns", "free_ns")
    return {
        "advice": [one.to_json() for one in found],
        **{name: getattr(told, name) for name in names},
        **({"caveats": list(told.caveats)} if told.caveats else {}),
        "costs": {"length": costs.length, "took_ns": dict(costs.took_ns)},
    }


def _costs() -> Costs:
    from zaplock.advise.costs import measure_costs
    from zaplock.cli._busy import busy

    with busy("measuring what each call costs on this kernel"):
        return measure_costs()


def _from_file(args: argparse.Namespace, least_ns: int) -> tuple[RecordedAdvice, Costs]:
    from zaplock.advise.calls import from_recording
    from zaplock.advise.runtimes import recognise
    from zaplock.cli._busy import busy
    from zaplock.cli.report import load
    from zaplock.trace.summary import summarise

    analysis, costs = load(args.file), _costs()
    with busy("finding who is to blame"):
        summary = summarise(analysis)
        told = from_recording(summary, costs, least_ns=least_ns, recognise=recognise)
    return told, costs


def _from_pid(args: argparse.Namespace, least_ns: int) -> tuple[RecordedAdvice, Costs]:
    from zaplock.advise.calls import RecordedAdvice
    from zaplock.advise.mappings import from_process, require_readable, warnings

    require_readable(args.pid)
    costs = _costs()
    found = from_process(args.pid, costs, least_ns=least_ns)
    for line in warnings(args.pid):
        print(line, file=sys.stderr)
    return RecordedAdvice(tuple(found), 0, 0, 0, 0), costs


def _print(
    args: argparse.Namespace, told: RecordedAdvice, found: list[Advice], costs: Costs
) -> None:
    from zaplock.views.console import Screen

    for line in said(told, found, args.top, args.least):
        print(f"- {line}")
    if found:
        print()
        Screen().print(table(found, args.top))
    munmap = costs.of("munmap", 1 << 30)
    if munmap:
        print(f"\nMeasured on this kernel: munmap of 1 GiB of 4 KiB pages {duration(munmap)}.")


def said(told: RecordedAdvice, found: list[Advice], top: int, least: str) -> list[str]:
    """Say what to do about each kind, and what nobody is known to be behind."""
    shown = found[:top]
    lines = [f"{one.kind.name}: {one.change}." + _source(one) for one in shown]
    lines = [*told.caveats, *dict.fromkeys(lines), *map(_little, shown)]
    lines = [line for line in lines if line]
    dark_ns = told.unexplained_ns - told.free_ns
    if told.waits and (dark_ns or not found):
        counted = "1 wait" if told.waits == 1 else f"{told.waits:,} waits"
        lines.append(
            f"{counted} took {least} or longer, {duration(told.waited_ns)} in all; who "
            f"held the lock in {duration(dark_ns)} of that is not known, and in "
            f"{duration(told.free_ns)} nobody had it."
        )
    elif not found:
        lines.append(f"nothing stalls others for {least} or longer")
    return lines


def _little(one: Advice) -> str:
    """Say where what was measured speaks against what is advised."""
    if not one.gains_little or one.then_ns is None:
        return ""
    return (
        f"{one.what}: little is gained: the longest piece took {duration(one.then_ns)} when it was "
        f"measured just now, and {duration(one.now_ns)} is what others waited. If this machine was "
        "busy, ask again."
    )


def _source(one: Advice) -> str:
    return f" See {one.source}" if one.source else ""


def table(found: list[Advice], top: int) -> Grid:
    """Draw the advice as a table, the greatest sum of stalls first."""
    from zaplock.views.grid import Grid, beyond, figure, words

    recorded = any(one.seen for one in found)
    now = figure("now" if recorded else "now, if called")
    columns = [words("what"), figure("size", rank=1), now, figure("then")]
    columns += [figure("calls", rank=2), figure("waits caused")] if recorded else []
    rows = []
    for one in found[:top]:
        then = "?" if one.then_ns is None else duration(one.then_ns)
        cells = [one.what, size(one.length) if one.length else "", duration(one.now_ns), then]
        if recorded:
            cells += [str(one.count), duration(one.caused_ns) if one.caused_ns else ""]
        rows.append([*cells, one.note])
    return Grid((*columns, words("note", rank=3)), rows, more=beyond(len(found) - top))


def _next(args: argparse.Namespace) -> tuple[str, str]:
    if args.file:
        return f"zaplock replay {shell_word(args.file)}", "would another way of freeing do"
    return f"zaplock record -p {args.pid}", "who really waits"
