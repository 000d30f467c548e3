"""Look at a process for a few seconds and say, in one screen: does anything wait for its mmap_lock,
behind whom, and what are they doing?

  zaplock why -p 4711              five seconds
  zaplock why -p 4711 -d 1s

Needs root. Foreign waiters, such as ps, are seen as well. Nothing is written.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zaplock.trace.analysis import Analysis

SUMMARY = "is anything waiting for this process's mmap_lock now, and behind whom?"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `zaplock why`."""
    add = parser.add_argument
    add("-p", "--pid", type=int, required=True, help="the process")
    add("-d", "--duration", default="5s", metavar="TIME", help="look for so long (5s)")
    add("--no-sched", action="store_true", help="leave out who sleeps and wakes")
    add("--top", type=int, default=5, metavar="N", help="holds and waits in --json (5)")
    add("--json", action="store_true", help="print what was seen as JSON")


def run(args: argparse.Namespace) -> int:
    """Look, then tell."""
    from zaplock.trace.summary import summarise
    from zaplock.units import parse_duration
    from zaplock.views.live import why_json, why_lines
    from zaplock.views.report_json import report_json
    from zaplock.views.report_text import heading

    seconds = parse_duration(args.duration) / 1e9
    analysis = _look(args.pid, seconds, sched=not args.no_sched)
    if args.json:
        print(json.dumps({**why_json(analysis), **report_json(analysis, top=args.top)}, indent=1))
    else:
        print(heading(analysis), "", *why_lines(summarise(analysis), seconds=seconds), sep="\n")
    out = sys.stderr if args.json else sys.stdout
    print(f"next: zaplock record -p {args.pid} -d 30s -o why.zaplock", file=out)
    return 0


def _look(pid: int, seconds: float, *, sched: bool) -> Analysis:
    """Record in memory for a while."""
    from zaplock.cli._busy import busy
    from zaplock.recorder.in_memory import record_mm
    from zaplock.trace.analysis import analyse

    groups = ("mmap_lock", "syscalls", *(("sched",) if sched else ()))
    looking = record_mm(pid, events=groups, kernel_stacks=True)
    with looking as recorder, busy(f"looking at {pid} for {seconds:g} s"):
        began_ns = time.monotonic_ns()
        time.sleep(seconds)
        ended_ns = time.monotonic_ns()
    events, stacks = recorder.events(), recorder.stacks()
    return analyse(
        events,
        os.uname().release,
        span=(began_ns, ended_ns),
        stacks=stacks,
        quotas=recorder.quotas(),
    )
