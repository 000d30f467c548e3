"""Watch, live, who holds mmap_locks and who waits for them.

  zaplock top                      the whole system, until Ctrl-C
  zaplock top -p 4711 -i 500ms     one process, twice a second

Each screen is about the last ten seconds: who waits and who holds right now, the worst waits, and
the threads that made others wait. Needs root.
"""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from zaplock.cli._ending import next_step
from zaplock.cli._rows import add_top
from zaplock.cli._targets import add_targets, spelt, targets
from zaplock.errors import UserError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from zaplock.cli._live import Window


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
    from zaplock.units import parse_duration

    if args.screens is not None and args.screens < 1:
        raise UserError(f"-n {args.screens} is less than 1: ask for at least one screen")
    interval = parse_duration(args.interval) / 1e9
    pids = targets(args)
    groups = ("mmap_lock", "syscalls", *(("sched",) if pids else ()))
    with window(pids, groups, parse_duration(args.window)) as view:
        _show(view, interval, args.screens, args.top)
    next_step(f"zaplock record{spelt(args)} -d 30s -o top.zaplock")
    return 0


def _show(view: Window, interval: float, screens: int | None, top: int) -> None:
    """Draw one screen over the other in a terminal, one below the other elsewhere."""
    from rich.live import Live

    from zaplock.views.screen import Screen

    out, shown = Screen(), 0
    if not out.is_terminal:
        while screens is None or shown < screens:
            out.print(_screen(view, interval, top))
            shown += 1
        return
    with Live(console=out, screen=screens is None, auto_refresh=False) as live:
        while screens is None or shown < screens:
            live.update(_screen(view, interval, top), refresh=True)
            shown += 1


def _screen(view: Window, interval: float, top: int) -> RenderableType:
    from zaplock.trace.analysis import analyse
    from zaplock.trace.summary import summarise
    from zaplock.views.report_text import live_screen

    events, span = view.advance(interval)
    analysis = analyse(
        events, os.uname().release, span=span, stacks=view.stacks(), quotas=view.quotas()
    )
    return live_screen(summarise(analysis, explain=500), top=top)
