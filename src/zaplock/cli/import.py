"""Turn another tool's trace into a recording that every zaplock verb reads.

  zaplock import trace.dat                (printed by trace-cmd, which must be installed)
  zaplock import perf.data                (printed by perf, which must be installed)
  zaplock import trace.pftrace            (Perfetto, with its ftrace events)
  perf script --ns --header > trace.txt   && zaplock import trace.txt
  cat /sys/kernel/tracing/trace           | zaplock import - -o trace.zaplock

A text may be packed with gzip. It takes the events mmap_lock:*, the memory system calls (syscalls:*
or raw_syscalls:* of x86-64), sched_switch, sched_waking, sched_wakeup, sched_process_exit,
page_fault_user and lock:contention_*, also as comments in function_graph's text (with its options
funcgraph-abstime and funcgraph-proc); other lines are passed over. Who woke whom is known by
sched_waking with ftrace's flags, which perf doesn't print. Most texts can't tell the process of a
thread (perf script -F comm,pid,tid,cpu,time,event,trace does) nor a time finer than a microsecond:
'zaplock record' tells both. Nor the kernel, which report and replay go by: perf script --header
does, else give --kernel.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from zaplock.cli._ending import next_step, wrote
from zaplock.cli._json_text import print_json
from zaplock.errors import UserError
from zaplock.untrusted_names import shell_word


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("text", metavar="FILE", help="the trace, or - for text on standard input")
    parser.add_argument("-o", "--output", metavar="FILE", help="default: FILE with .zaplock")
    parser.add_argument("--kernel", metavar="RELEASE", help="what uname -r says where the trace "
                        "was made: report and replay go by it")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON")


def run(args: argparse.Namespace) -> int:
    """Read the trace and write the recording."""

    import numpy as np

    from zaplock.trace import recording_file
    from zaplock.trace.events import EventKind
    from zaplock.trace.foreign import read_foreign
    from zaplock.version import __version__

    if args.text == "-" and not args.output:
        raise UserError("standard input has no name to derive one from: give -o FILE")
    _require_release(args.kernel)
    output = args.output or str(_unpacked(Path(args.text)).with_suffix(".zaplock"))
    imported = read_foreign(args.text)
    events = imported.events
    if not len(events):
        raise UserError(
            f"{args.text} has no event that zaplock knows (function_graph's calls tell no lock): "
            "record mmap_lock:* ('trace-cmd record -e mmap_lock', 'perf record -e mmap_lock:*')"
        )
    manifest = recording_file.Manifest(
        source="import",
        kernel=args.kernel or imported.kernel,
        clock="text",
        command_line=tuple(sys.argv),
        zaplock=__version__,
        notes=(f"imported from {Path(args.text).name}",),
    )
    recording_file.write(output, events, manifest)
    counts = np.bincount(events["kind"], minlength=len(EventKind))
    kinds = {kind.name: int(counts[kind]) for kind in EventKind if counts[kind]}
    if args.json:
        print_json({"file": output, "events": len(events), "kinds": kinds})
    out = sys.stderr if args.json else sys.stdout
    lost = recording_file.read_manifest(output).lost_events
    losses = f", at least {lost:,} lost" if lost else ""
    print(f"{len(events):,} events{losses}", file=out)
    wrote(output, aside=args.json)
    next_step(f"zaplock report {shell_word(output)}", aside=args.json)
    return 0


def _require_release(given: str | None) -> None:
    from zaplock.linux_version import find

    if given is not None and find(given) is None:
        raise UserError(f"kernel {given!r} is no Linux release: give what uname -r says there")


def _unpacked(path: Path) -> Path:
    return path.with_suffix("") if path.suffix == ".gz" else path
