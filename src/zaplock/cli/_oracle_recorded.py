"""Recorded programs of `zaplock oracle`: one is recorded and replayed, or files are replayed."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from zaplock.errors import UserError

if TYPE_CHECKING:
    from zaplock.programs.replay import StraceVerdict


def replay_recorded(files: list[str], as_json: bool) -> int:
    """Run recorded programs through the model; several make a table."""
    from zaplock.cli import _oracle_text
    from zaplock.programs import parser
    from zaplock.programs.replay import StraceReplay

    def replay(path: Path) -> StraceVerdict:
        return StraceReplay(parser.parse(path)).play()

    if len(files) > 1:
        return _oracle_text.print_table(((Path(f), replay(Path(f))) for f in files), as_json)
    return _oracle_text.print_verdict(replay(Path(files[0])), Path(files[0]), as_json)


def record_and_replay(args: argparse.Namespace) -> int:
    """Record a program with all that a replay needs, and replay it."""
    from zaplock.oracle.bare_process import check_machine
    from zaplock.programs.tracer import record, record_to

    if not args.command:
        raise UserError("no program to record: zaplock oracle --trace FILE -- PROGRAM ARGUMENTS")
    check_machine()
    with tempfile.TemporaryFile() as nameless:
        if args.trace:
            path = Path(args.trace)
            status = record(args.command, path, every_call=args.every_call)
        else:  # nothing of it is left, however this ends
            path = Path(f"/proc/self/fd/{nameless.fileno()}")
            status = record_to(args.command, nameless, every_call=args.every_call)
        print(f"{args.command[0]} ended with {status}", file=sys.stderr)
        return replay_recorded([str(path)], args.json)
