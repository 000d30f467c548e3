"""Watch, live, who holds mmap_locks and who waits for them.

  zaplock top                      the whole system, until q
  zaplock top -p 4711 -i 500ms     one process, twice a second
  zaplock top -n 3 > top.txt       three plain screens for a file or a pipe

Each screen is about the last ten seconds: who waits and who holds right now, a spark line of how
many waited, and tables of waits, holds, threads, operations and processes (keys 1 to 5, or Tab).
Arrows and the mouse choose a row: below it stand its chain and its stacks ([ and ] scroll them).
s sorts by the next column, r the other way round, / searches, space holds it still, q ends it.
Needs root. The live tables need `pip install 'zaplock[live]'`; without it plain screens come.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from zaplock.cli._ending import next_step
from zaplock.cli._rows import add_top
from zaplock.cli._signals import answered
from zaplock.cli._targets import add_targets, spelt, targets
from zaplock.errors import UserError

if TYPE_CHECKING:
    from zaplock.cli._live import Window
    from zaplock.trace.summary import Summary


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `zaplock top`."""
    add = parser.add_argument
    add_targets(parser)
    add("-i", "--interval", default="1s", metavar="TIME", help="from screen to screen (1s)")
    add("-w", "--window", default="10s", metavar="TIME", help="what a screen is about (10s)")
    add("-n", "--screens", type=int, metavar="N", help="end after N screens")
    add_top(parser, 8)


def run(args: argparse.Namespace) -> int:
    """Show screens until interrupted."""
    from zaplock.cli._live import window
    from zaplock.cli._meanwhile import Meanwhile
    from zaplock.units import parse_duration

    if args.screens is not None and args.screens < 1:
        raise UserError(f"-n {args.screens} is less than 1: ask for at least one screen")
    interval = parse_duration(args.interval) / 1e9
    pids = targets(args)
    groups = ("mmap_lock", "syscalls", *(("sched",) if pids else ()))
    live = args.screens is None and _can_be_live()
    with (
        Meanwhile(pids, aside=False) as meanwhile,
        window(pids, groups, parse_duration(args.window)) as view,
    ):
        meanwhile.on()
        looks = _Looks(view, interval)
        if live:
            code = _live(looks, spelt(args).strip() or "the whole system", args.window)
        else:
            _screens(looks, args, of_all=len(pids) != 1)
            code = 0
    if code:
        return code
    whom = spelt(args) or looks.worst()
    next_step(f"zaplock record{whom} -d 30s -o top.zaplock", "to explain it afterwards")
    return 0


class _Looks:
    """Window after window of what goes on, and whom the last one was about."""

    def __init__(self, view: Window, interval: float) -> None:
        self._view, self._interval = view, interval
        self._last: Summary | None = None

    def collect(self) -> Callable[[], Summary]:
        """Wait for the next window; return what sums it up."""
        from zaplock.trace.analysis import analyse
        from zaplock.trace.summary import summarise

        events, span = self._view.advance(self._interval)
        stacks, quotas = self._view.stacks(), self._view.quotas()

        def sum_up() -> Summary:
            kernel = os.uname().release
            analysis = analyse(events, kernel, span=span, stacks=stacks, quotas=quotas)
            self._last = summarise(analysis, explain=500)
            return self._last

        return sum_up

    def worst(self) -> str:
        """Spell, as an option, the process whose lock was waited for longest; "": nobody's."""
        if self._last is None or not self._last.explained:
            return ""
        analysis = self._last.analysis
        mm = int(analysis.waits["mm"][self._last.explained[0].wait])
        pid = analysis.events.mms.get(mm)
        return f" -p {pid}" if pid else ""


def _can_be_live() -> bool:
    """Say whether there is a terminal with a cursor, and `textual` to draw on it."""
    from zaplock.views.console import Screen

    out = Screen()
    if not out.is_terminal or out.is_dumb_terminal or not sys.stdin.isatty():
        return False
    if importlib.util.find_spec("textual") is None:
        print("note: keys, sorting and search need: pip install 'zaplock[live]'", file=sys.stderr)
        return False
    return True


def _live(looks: _Looks, about: str, span: str) -> int:
    """Show live tables until a key ends it; return the exit code."""
    from zaplock.cli._top_app import show
    from zaplock.views.console import Screen

    ascii_only = not Screen().encoding.startswith("utf")
    return show(looks.collect, f"{about}, the last {span}", ascii_only=ascii_only)


def _screens(looks: _Looks, args: argparse.Namespace, *, of_all: bool) -> None:
    """Print one screen below the other; Ctrl-C is the way to end that."""
    from zaplock.views.console import Screen
    from zaplock.views.report_text import live_screen

    out, shown = Screen(), 0
    try:
        while args.screens is None or shown < args.screens:
            out.print(live_screen(looks.collect()(), top=args.top, of_all=of_all))
            shown += 1
    except KeyboardInterrupt as ended:
        if type(ended) is not KeyboardInterrupt:  # TERM and HUP end it as they end all verbs
            raise
        answered()
