"""Name the calls and mappings that are worth changing, with what that gains on this kernel.

FILE is a recording (`zaplock record`): advice on the calls behind which others waited. `-p PID`
looks at a running process without taking its lock: advice on mappings whose end would stall it,
upper bounds, since what is present can't be seen without that lock. Both need some seconds in
which the calls are measured on this kernel, in a process of their own.

"now" is the worst stall of others, "then" what the longest piece takes after the change.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from typing import TYPE_CHECKING

from zaplock.errors import UserError
from zaplock.units import duration, format_size, parse_duration

if TYPE_CHECKING:
    from rich.table import Table

    from zaplock.advise.advice import Advice
    from zaplock.advise.costs import Costs

SUMMARY = "name the calls and mappings that are worth changing, and the gain"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `zaplock advise`."""
    add = parser.add_argument
    add("file", metavar="FILE", nargs="?", help="a recording")
    add("-p", "--pid", type=int, metavar="PID", help="a running process instead")
    add("--least", default="1ms", metavar="TIME", help="stalls below this are let be (1ms)")
    add("--top", type=int, default=10, metavar="N", help="rows of the table (10)")
    add("--json", action="store_true", help="print the advice as JSON")


def run(args: argparse.Namespace) -> int:
    """Collect, measure, print."""
    if (args.file is None) == (args.pid is None):
        raise UserError("give a recording or -p PID: one of them, and not both")
    if args.top < 1:
        raise UserError(f"--top {args.top} is less than 1: ask for at least one row")
    least_ns = parse_duration(args.least)
    costs = _costs()
    found = (
        _from_file(args.file, costs, least_ns) if args.file else _from_pid(args, costs, least_ns)
    )
    found = [one for one in found if one.worth_it]
    found = sorted(found, key=lambda one: (-one.caused_ns, -one.gain_ns, one.what))[: args.top]
    if args.json:
        measured = {"length": costs.length, "took_ns": dict(costs.took_ns)}
        print(json.dumps({"advice": [one.to_json() for one in found], "costs": measured}, indent=1))
    else:
        _print(args, found, costs)
    print(_next(args), file=sys.stderr if args.json else sys.stdout)
    return 0


def _costs() -> Costs:
    from zaplock.advise.costs import measure_costs
    from zaplock.cli._busy import busy

    with busy("measuring what each call costs on this kernel"):
        return measure_costs()


def _from_file(file: str, costs: Costs, least_ns: int) -> list[Advice]:
    from zaplock.advise.calls import from_recording
    from zaplock.cli._busy import busy
    from zaplock.cli.report import load
    from zaplock.trace.summary import summarise

    analysis = load(file)
    with busy("finding who is to blame"):
        return from_recording(summarise(analysis), costs, least_ns=least_ns)


def _from_pid(args: argparse.Namespace, costs: Costs, least_ns: int) -> list[Advice]:
    from zaplock.advise.mappings import from_process, warnings

    found = from_process(args.pid, costs, least_ns=least_ns)
    for line in warnings(args.pid):
        print(line, file=sys.stderr)
    return found


def _print(args: argparse.Namespace, found: list[Advice], costs: Costs) -> None:
    from rich.console import Console

    console = Console()
    if not found:
        print(f"nothing stalls others for {args.least} or longer")
        return
    console.print(table(found))
    for kind in dict.fromkeys(one.kind for one in found):
        change = next(one.change for one in found if one.kind == kind)
        console.print(f"{kind}: {change}.", highlight=False, soft_wrap=True)
    munmap = costs.of("munmap", 1 << 30)
    if munmap:
        console.print(
            f"Measured on this kernel: munmap of 1G of 4 KiB pages {duration(munmap)}.",
            highlight=False,
        )


def table(found: list[Advice]) -> Table:
    """Draw the advice as a table, the greatest sum of stalls first."""
    from rich.table import Table

    recorded = any(one.seen for one in found)
    drawn = Table("what", "size", "now" if recorded else "now, if called", "then")
    if recorded:
        drawn.add_column("calls")
        drawn.add_column("waits caused")
    drawn.add_column("note")
    for one in found:
        then = "?" if one.then_ns is None else duration(one.then_ns)
        size = format_size(one.length) if one.length else ""
        cells = [one.what, size, duration(one.now_ns), then]
        if recorded:
            cells += [str(one.count), duration(one.caused_ns) if one.caused_ns else ""]
        drawn.add_row(*cells, one.note)
    return drawn


def _next(args: argparse.Namespace) -> str:
    if args.file:
        return f"next: zaplock report {shlex.quote(args.file)}"
    return f"next: zaplock record -p {args.pid} shows who really waits"
