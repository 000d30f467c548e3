"""Run a program so that its big frees stall none of its threads.

  zaplock run --release -- ./server --port 80      any language, unchanged
  zaplock run --release --background -- python train.py
                                                   frees in a thread of its own: who frees goes on
  zaplock record -- zaplock run --release -- ./server
                                                   and see what is left to wait for

The program becomes this process: its exit code, its signals and its terminal are its own. A small
library, compiled from source on first use, is loaded before the program's own (LD_PRELOAD), and
into its children. Of at least --from bytes it takes the pages of a munmap, of a shrinking mremap or
brk, and of glibc's free away at once, and gives them back by paced pieces; MADV_DONTNEED and
MADV_FREE go by pieces where they are (with --background, what MADV_DONTNEED drops is taken away as
well). Results, errors and maps are those of the plain call. Where it can't be certain of that, the
plain call is made. docs/run-release.md has what it can't do.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys

from zaplock.errors import UserError


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("--release", action="store_true", help="free big memory by paced pieces")
    parser.add_argument(
        "--from", dest="smallest", metavar="SIZE", default="16M",
        help="from which size on (default 16M)",
    )  # fmt: skip
    parser.add_argument(
        "--max-stall", metavar="TIME", default="5ms",
        help="how long anybody should wait at most (default 5ms)",
    )  # fmt: skip
    parser.add_argument(
        "--background", action="store_true",
        help="give back in a thread of its own; memory is in use a little longer",
    )  # fmt: skip
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- PROGRAM")


def run(args: argparse.Namespace) -> int:
    """Become the program."""
    from zaplock.measure.memory import room
    from zaplock.preload.library import ReleaseSettings, environment
    from zaplock.preload.programs import require_loading
    from zaplock.units import parse_duration, parse_size

    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not args.release:
        raise UserError("what is it to be run with? give --release")
    if not command:
        raise UserError("no program to run: give one after --")
    settings = ReleaseSettings(
        smallest=parse_size(args.smallest),
        max_stall_ns=parse_duration(args.max_stall),
        background=args.background,
        most_waiting=room() // 3,
    )
    path = require_loading(command[0])
    prepared = environment(settings, dict(os.environ))
    sys.stdout.flush()
    sys.stderr.flush()
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # by Python, for itself
        signal.signal(ignored, signal.SIG_DFL)
    try:
        os.execve(path, command, prepared)
    except OSError as error:
        raise UserError(
            f"{command[0]!r} can't be run ({error.strerror}): give a program after --"
        ) from None
