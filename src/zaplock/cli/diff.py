"""Lay two recordings beside each other: is there less waiting now, and how sure is that?

  zaplock diff before.zaplock after.zaplock

What is compared is how much was waited in each slice of time, of a length that no wait exceeds: so
one bad moment that was recorded twice is no proof. "better" and "worse" are said where chance alone
parts the slices as far in fewer than one case in a hundred. Two recordings of the same program
under the same load, half a minute each, are a good beginning; two kernels or two days do as well.

The exit code is 0 whatever the verdict; 1 with --fail-if-worse, where it is worse.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from zaplock.cli._ending import next_step
from zaplock.cli._json_text import print_json
from zaplock.cli._rows import add_top
from zaplock.cli._streams import while_read
from zaplock.untrusted_names import shell_word

if TYPE_CHECKING:
    from zaplock.trace.difference import RecordingDifference
    from zaplock.trace.summary import Summary


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `zaplock diff`."""
    add = parser.add_argument
    add("before", metavar="BEFORE", help="a recording")
    add("after", metavar="AFTER", help="another one")
    add_top(parser, 10, "rows of the table of operations")
    add("--fail-if-worse", action="store_true", help="exit with 1 where there is more waiting")
    add("--json", action="store_true", help="print the comparison as JSON")


def run(args: argparse.Namespace) -> int:
    """Read both, compare, print."""
    from zaplock.cli._busy import busy
    from zaplock.trace.difference import difference

    before, after = _summary(args.before), _summary(args.after)
    with busy("comparing"):
        found = difference(before, after)
    with while_read():
        if args.json:
            print_json(found.to_json())
        else:
            _print(found, args.top)
        next_step(*_next(args, found), aside=args.json)
    return 1 if args.fail_if_worse and found.verdict == "worse" else 0


def _summary(file: str) -> Summary:
    from zaplock.cli.report import load
    from zaplock.trace.summary import summarise

    return summarise(load(file))


def _print(found: RecordingDifference, top: int) -> None:
    from zaplock.views import differences as view
    from zaplock.views.console import Screen

    print(*view.sentences(found), "", *view.sides(found), "", sep="\n")
    console = Screen()
    console.print(view.figures(found))
    if found.operations:
        print()
        console.print(view.operations(found, top))
    print()


def _next(args: argparse.Namespace, found: RecordingDifference) -> tuple[str, str]:
    file = shell_word(args.after)
    if found.verdict == "not known":
        return "zaplock record -p PID -d 60s", "both for longer, under the same load"
    if found.after.queued:
        return f"zaplock report {file}", "who still waits, behind whom"
    return "zaplock record -p PID --watch", "to be told if it comes back"
