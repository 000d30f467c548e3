"""Turn a text trace into a recording that every zaplock verb reads.

  trace-cmd report trace.dat > trace.txt && zaplock import trace.txt
  perf script --ns > trace.txt           && zaplock import trace.txt
  cat /sys/kernel/tracing/trace          | zaplock import - -o trace.zaplock

It takes the events mmap_lock:*, the memory system calls, sched_switch, sched_wakeup,
page_fault_user and lock:contention_*; other lines are passed over. A text can't tell the process
of a thread, and most texts no time finer than a microsecond: 'zaplock record' tells both. Nor the
kernel, which report and replay go by: perf script --header does, else give --kernel.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from zaplock.errors import UserError

SUMMARY = "turn trace-cmd, ftrace or perf script text into a recording"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("text", metavar="FILE", help="the text, or - for standard input")
    parser.add_argument("-o", "--output", metavar="FILE", help="default: FILE with .zaplock")
    parser.add_argument("--kernel", metavar="RELEASE", help="what uname -r says where the trace "
                        "was made: report and replay go by it")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON")


def run(args: argparse.Namespace) -> int:
    """Read the text and write the recording."""
    import json

    import numpy as np

    from zaplock.trace import file, text
    from zaplock.trace.events import EventKind
    from zaplock.version import __version__

    if args.text == "-" and not args.output:
        raise UserError("standard input has no name to derive one from: give -o FILE")
    output = args.output or str(Path(args.text).with_suffix(".zaplock"))
    lines = _lines(args.text)
    kernel = _kernel(args.kernel, lines)
    events = text.parse(lines)
    if not len(events):
        raise UserError(
            f"{args.text} has no event that zaplock knows: record mmap_lock:* "
            "('trace-cmd record -e mmap_lock', 'perf record -e mmap_lock:*')"
        )
    manifest = file.Manifest(
        source="import",
        kernel=kernel,
        clock="text",
        command_line=tuple(sys.argv),
        zaplock=__version__,
        notes=(f"imported from {Path(args.text).name}",),
    )
    file.write(output, events, manifest)
    counts = np.bincount(events["kind"], minlength=len(EventKind))
    kinds = {kind.name: int(counts[kind]) for kind in EventKind if counts[kind]}
    if args.json:
        print(json.dumps({"file": output, "events": len(events), "kinds": kinds}))
    out = sys.stderr if args.json else sys.stdout
    print(f"{len(events):,} events in {output}\nNext: zaplock report {output}", file=out)
    return 0


def _kernel(given: str | None, lines: Sequence[str]) -> str:
    """Return the release that was given or that perf's header names, "" where neither does."""
    from zaplock.linux_version import find

    if given is None:
        header = (re.match(r"# os release : (\S+)", line) for line in lines)
        return next((found[1] for found in header if found), "")
    if find(given) is None:
        raise UserError(f"kernel {given!r} is no Linux release: give what uname -r says there")
    return given


def _lines(name: str) -> list[str]:
    try:
        if name == "-":
            return sys.stdin.read().splitlines()
        return Path(name).read_text(errors="replace").splitlines()
    except OSError as error:
        raise UserError(f"{name} can't be read ({error.strerror}): give a text trace") from None
