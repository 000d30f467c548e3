"""Look at a process for a few seconds and say, in one screen: does anything wait for its mmap_lock,
behind whom, and what are they doing?

  zaplock why 4711                 five seconds
  zaplock why -p 4711 -d 1s
  zaplock why --unit postgresql    every process of a systemd unit

Needs root. Foreign waiters, such as ps, are seen as well. Nothing is written but what --folded and
--pprof ask for.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from functools import partial
from typing import TYPE_CHECKING

from zaplock.cli._ending import next_step, wrote
from zaplock.cli._json_text import print_json
from zaplock.cli._output_files import require_files
from zaplock.cli._rows import add_top
from zaplock.cli._signals import answered
from zaplock.cli._stack_files import (
    add_stack_files,
    next_for_stack_files,
    write_stack_files,
)
from zaplock.cli._targets import add_targets, in_group, spelt, targets
from zaplock.errors import UserError

if TYPE_CHECKING:
    from zaplock.recorder.in_memory import Recorder
    from zaplock.recorder.instances_ahead import Ahead

_SHORT = 1_000_000
"""An answer from so many events takes a second or two, for which we go before others."""

_EXPLAINED = 32
"""So many of the longest waits are explained: where hundreds wait, each stands behind hundreds."""

_STEP_S = 0.05
"""So often it is asked whether the process still lives."""

_LEAST = 0.4
"""Of the time asked for so much is for the look itself, whatever is needed before and after it."""

_END_NS = 250_000_000
"""Telling, and switching everything off again, takes about so long."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `zaplock why`."""
    add = parser.add_argument
    add("process", nargs="?", type=int, metavar="PID", help="the process, as -p gives it")
    add_targets(parser)
    add(
        "-d",
        "--duration",
        default="5s",
        metavar="TIME",
        help="answer after so long, start and end included (5s)",
    )
    add("--no-sched", action="store_true", help="leave out who sleeps and wakes")
    add("--stacks", action="store_true", help="the program's stacks as well as the kernel's")
    add_stack_files(add)
    add_top(parser, 5, "holds and waits in --json")
    add("--json", action="store_true", help="print what was seen as JSON")


def run(args: argparse.Namespace) -> int:
    """Look, then tell."""
    from zaplock.recorder.scheduling import going_first

    with contextlib.ExitStack() as first:
        first.enter_context(going_first())
        return _run(args, first)


def _run(args: argparse.Namespace, first: contextlib.ExitStack) -> int:
    """Answer what was asked; `first` ends our going before others."""
    from zaplock.recorder.instances_ahead import Ahead
    from zaplock.units import parse_duration

    if args.process is not None:
        args.pid = [args.process, *(args.pid or ())]
    pids = targets(args)
    if not pids:
        raise UserError("why is about a process: give its PID, or --comm, --cgroup or --unit")
    require_files({"--folded": args.folded, "--pprof": args.pprof})
    asked_ns, duration_ns = time.monotonic_ns(), parse_duration(args.duration)
    with Ahead(2) as ahead:
        began_ns = _started_ns() if args.own_process else asked_ns
        _answer(ahead, args, pids, duration_ns, began_ns + duration_ns - _END_NS, first)
    if not next_for_stack_files(args):
        next_step(f"zaplock record{spelt(args)} -d 30s -o why.zaplock", aside=args.json)
    return 0


def _answer(
    ahead: Ahead,
    args: argparse.Namespace,
    pids: tuple[int, ...],
    duration_ns: int,
    due_ns: int,
    first: contextlib.ExitStack,
) -> None:
    """Look until `due_ns`, then tell."""
    from zaplock.cli._busy import busy
    from zaplock.cli._meanwhile import Meanwhile
    from zaplock.recorder.in_memory import record_mm

    groups = ("mmap_lock", "syscalls", *(() if args.no_sched else ("sched",)))
    who = " ".join(map(str, pids))
    looking = record_mm(
        pids, events=groups, children=in_group(args), kernel_stacks=True, stacks=args.stacks,
        ahead=ahead,
    )  # fmt: skip
    with Meanwhile(pids, aside=args.json) as meanwhile, looking as recorder:
        meanwhile.on()
        with busy(f"looking at {who} for {duration_ns / 1e9:g} s"):
            gone = _look(pids, due_ns, int(duration_ns * _LEAST))
        recorder.stop()
        if len(recorder.events()) > _SHORT:
            first.close()
        # Said before the kernel has cleared up, which may take it a quarter of a second.
        _tell(args, recorder, ended=gone)
        for note in recorder.notes:
            print(f"note: {note}", file=sys.stderr if args.json else sys.stdout)


def _started_ns() -> int:
    """When this process was started (CLOCK_MONOTONIC), to a hundredth of a second."""
    from zaplock.recorder.snapshot import born_ns
    from zaplock.untrusted_names import read_text

    return born_ns(read_text("/proc/self/stat"))


def _look(pids: tuple[int, ...], due_ns: int, least_ns: int) -> bool:
    """Wait until the time is over, but at least so long, or all processes end; say if they did.

    Ctrl-C ends the waiting: what was seen by then is told.
    """
    from zaplock.recorder.tracefs import start_time

    began_ns, born = time.monotonic_ns(), {pid: start_time(pid) for pid in pids}
    # What telling needs, while there is time.
    import zaplock.trace.summary
    import zaplock.views.live
    import zaplock.views.report_json
    import zaplock.views.sentences  # noqa: F401
    from zaplock.recorder.symbols import kernel_functions

    kernel_functions()

    gone, end_ns = False, max(due_ns, began_ns + least_ns)
    try:
        while not gone and (left_ns := end_ns - time.monotonic_ns()) > 0:
            time.sleep(min(left_ns / 1e9, _STEP_S))
            gone = all(start_time(pid) != at for pid, at in born.items())
    except KeyboardInterrupt as ended:
        if type(ended) is not KeyboardInterrupt:  # TERM and HUP end it as they end all verbs
            raise
        answered()
    return gone


def _tell(args: argparse.Namespace, recorder: Recorder, *, ended: bool) -> None:
    from zaplock.trace.analysis import analyse
    from zaplock.trace.summary import summarise
    from zaplock.units import duration
    from zaplock.views.live import why_json, why_lines
    from zaplock.views.report_json import report_json
    from zaplock.views.sentences import heading

    events, span = recorder.events(), recorder.span
    analysis = analyse(
        events, os.uname().release, span=span, stacks=recorder.stacks(), quotas=recorder.quotas()
    )
    if args.json:
        about = {"ended": ended, **why_json(analysis)}
        print_json({**about, **report_json(analysis, top=args.top)})
    else:
        print(heading(analysis))
        if ended:
            lasted = duration(span[1] - span[0])
            print(f"{spelt(args).strip()} ended after {lasted}: this is until then.")
        print(
            "",
            *why_lines(summarise(analysis, explain=_EXPLAINED), seconds=(span[1] - span[0]) / 1e9),
            sep="\n",
            flush=True,
        )
    for path in write_stack_files(args, partial(summarise, analysis)):
        wrote(path, aside=args.json)
