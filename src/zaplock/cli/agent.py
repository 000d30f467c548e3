"""Watch processes for weeks at no cost; when somebody waits too long for a lock, record it.

  zaplock agent --unit redis.service --store s3://bucket/fleet
  zaplock agent --all --store /var/lib/zaplock/store --listen 127.0.0.1:9464

While nothing happens only the contention of the targets' locks is traced. On a wait beyond
--stop-after-wait some seconds are recorded, into the store and its budget. Figures for Prometheus
at --listen, one line of JSON for each trouble on stdout, and --hook COMMAND is run with that line.
Exit codes: 0 ended by a signal, 2 can't begin or go on (one line on stderr). Needs root;
of its capabilities SYS_ADMIN, SYS_PTRACE and SYS_NICE (docs/fleet.md).
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from zaplock.cli._targets import add_targets, targets
from zaplock.errors import UserError

SPOOL = "/var/lib/zaplock/spool"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `zaplock agent`."""
    add = parser.add_argument
    add_targets(parser)
    add("--all", action="store_true", help="every process with more than one thread")
    add("--store", required=True, metavar="URL", help="a folder, or a URL that fsspec knows")
    add("--spool", default=SPOOL, metavar="DIR", help=f"what waits for the store ({SPOOL})")
    add("--host", default=os.uname().nodename, metavar="NAME", help="this host's name in the store")
    add("--listen", default="127.0.0.1:9464", metavar="HOST:PORT",
        help="serve figures for Prometheus (127.0.0.1:9464); none: off")  # fmt: skip
    add(
        "--stop-after-wait", default="20ms", metavar="TIME", help="a wait of that is trouble (20ms)"
    )
    add("--after", default="2s", metavar="TIME", help="record so long then (2s)")
    add("--per-hour", type=int, default=60, metavar="N", help="recordings an hour at most (60)")
    add("--keep", type=int, default=200, metavar="N", help="recordings of this host (200)")
    add("--keep-bytes", default="1G", metavar="SIZE", help="bytes of this host (1G)")
    add("--keep-days", type=int, default=30, metavar="N", help="days of this host (30)")
    add("--buffers", default="12M", metavar="SIZE", help="all trace buffers together (12M)")
    add("--rescan", default="10s", metavar="TIME", help="look for new processes (10s)")
    add("--hook", default="", metavar="COMMAND", help="run on trouble, with its line on stdin")


def run(args: argparse.Namespace) -> int:
    """Watch until a signal."""
    from zaplock.agent.main_loop import Agent
    from zaplock.agent.metrics import Metrics
    from zaplock.agent.settings import Settings
    from zaplock.cli.record import Signals
    from zaplock.units import parse_duration, parse_size

    settings = Settings(
        store=args.store,
        spool=Path(args.spool),
        host=args.host,
        limit_ns=parse_duration(args.stop_after_wait),
        after_ns=parse_duration(args.after),
        per_hour=args.per_hour,
        keep=args.keep,
        keep_bytes=parse_size(args.keep_bytes),
        keep_days=args.keep_days,
        buffer_bytes=parse_size(args.buffers),
        rescan_ns=parse_duration(args.rescan),
        hook=args.hook,
    )
    find = _finder(args)
    metrics = Metrics()
    with Signals() as signals:
        agent = Agent(settings, find, metrics, ended=lambda: signals.asked)
        if args.listen != "none":
            metrics.serve(args.listen)
        agent.run()
    return 0


def _finder(args: argparse.Namespace) -> Callable[[], list[int]]:
    """Give what looks for the targets; a name that stands for no process now may do so later."""
    named = [
        (option, one)
        for option in ("pid", "comm", "cgroup", "unit")
        for one in getattr(args, option) or ()
    ]
    if not named and not args.all:
        raise UserError("say whom to watch: -p PID, --comm, --cgroup, --unit, or --all")
    none = argparse.Namespace(pid=None, comm=None, cgroup=None, unit=None)

    def find() -> list[int]:
        found = set(_with_threads()) if args.all else set()
        for option, one in named:
            asked = argparse.Namespace(**{**vars(none), option: [one]})
            try:
                found.update(pid for pid in targets(asked) if os.path.exists(f"/proc/{pid}"))
            except UserError:  # none at present
                continue
        return sorted(found)

    return find


def _with_threads() -> list[int]:
    """List the processes that have more than one thread: only they can make each other wait."""
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                if len(os.listdir(f"/proc/{entry.name}/task")) > 1:
                    found.append(int(entry.name))
            except OSError:  # gone
                continue
    return found
