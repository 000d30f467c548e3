"""Explain a recording: who held an mmap_lock for long, who waited, and behind whom.

Without options: the answer in sentences, then the longest holds, the worst waits with their chains,
sums by operation, thread and process, and histograms. FILE is what `zaplock record`, `zaplock
import` or a simulation wrote.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from zaplock.cli._ending import next_step, wrote
from zaplock.cli._json_text import print_json
from zaplock.cli._output_files import require_files, require_folders
from zaplock.cli._rows import add_top
from zaplock.cli._stack_files import (
    add_stack_files,
    next_for_stack_files,
    write_stack_files,
)
from zaplock.untrusted_names import shell_word

if TYPE_CHECKING:
    from zaplock.trace.analysis import Analysis
    from zaplock.trace.summary import Summary


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `zaplock report`."""
    add = parser.add_argument
    add("file", metavar="FILE", help="a recording")
    add_top(parser, 10)
    add("--json", action="store_true", help="print holds, waits and blame as JSON")
    add("--csv", metavar="DIR", help="write holds.csv, waits.csv and blame.csv into DIR")
    add("--parquet", metavar="DIR", help="the same as Parquet")
    add("--html", metavar="PAGE", help="write one self-contained page with a zoomable timeline")
    add_stack_files(add)
    add("--perfetto", metavar="FILE", help="write a trace for ui.perfetto.dev (.pftrace)")


def run(args: argparse.Namespace) -> int:
    """Read, analyse, print."""
    require_folders({"--csv": args.csv, "--parquet": args.parquet})
    files = {"--html": args.html, "--folded": args.folded, "--pprof": args.pprof}
    require_files({**files, "--perfetto": args.perfetto})
    analysis = load(args.file)
    written = _write(args, analysis)
    if args.json:
        from zaplock.views.report_json import report_json

        print_json(report_json(analysis, top=args.top))
    if not args.json and not written:
        _print(args, analysis)
    _next(args, written)
    return 0


def load(file: str) -> Analysis:
    """Read a recording and analyse it, showing on a terminal that this takes a while."""
    from zaplock.cli._busy import busy
    from zaplock.trace.reading import read_analysis

    found = read_analysis(file, busy)
    for caveat in found.caveats:
        print(f"{file}: {caveat}", file=sys.stderr)
    return found


def _summary(analysis: Analysis) -> Summary:
    from zaplock.cli._busy import busy
    from zaplock.trace.summary import summarise

    with busy("finding who is to blame"):
        return summarise(analysis)


def _print(args: argparse.Namespace, analysis: Analysis) -> None:
    from zaplock.views.console import Screen
    from zaplock.views.report_text import report_text

    Screen().print(report_text(_summary(analysis), top=args.top, made=_made(args.file)))


def _made(file: str) -> str:
    from zaplock.trace.recording_file import read_manifest
    from zaplock.views.sentences import made

    return made(read_manifest(file))


def _write(args: argparse.Namespace, analysis: Analysis) -> list[Path]:
    """Write the files that were asked for; return them."""
    from zaplock.cli._busy import busy

    written: list[Path] = []
    if args.csv or args.parquet:
        from zaplock.views.export import export

        summary = _summary(analysis)
        if args.csv:
            written += export(summary, Path(args.csv), "csv")
        if args.parquet:
            written += export(summary, Path(args.parquet), "parquet")
    if args.html:
        from zaplock.views.html import write_html

        summary = _summary(analysis)
        with busy(f"writing {args.html}"):
            written.append(write_html(summary, Path(args.html), made=_made(args.file)))
    written += write_stack_files(args, partial(_summary, analysis))
    if args.perfetto:
        from zaplock.views.perfetto import write_perfetto

        summary = _summary(analysis)
        with busy(f"writing {args.perfetto}"):
            written.append(write_perfetto(summary, Path(args.perfetto)))
    return written


def _next(args: argparse.Namespace, written: list[Path]) -> None:
    """Say what was written and what to type next."""
    file = shell_word(args.file)
    for path in written:
        wrote(path, aside=args.json)
    if args.html:
        next_step(f"xdg-open {shell_word(args.html)}", aside=args.json)
    elif args.perfetto:
        next_step("open it at ui.perfetto.dev", "the file stays in your browser", aside=args.json)
    elif not next_for_stack_files(args):
        next_step(f"zaplock advise {file}", "what would cure it; --html draws it", aside=args.json)
