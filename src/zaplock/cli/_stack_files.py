"""The options with which a verb writes the stacks that it has seen: folded text and pprof."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from zaplock.cli._ending import next_step
from zaplock.untrusted_names import shell_word

if TYPE_CHECKING:
    from zaplock.trace.summary import Summary


def add_stack_files(add: Callable[..., object]) -> None:
    """Add the arguments."""
    add("--folded", metavar="FILE", help="write the stacks as folded text for flame graphs")
    add("--pprof", metavar="FILE", help="write the stacks as a pprof profile (.pb.gz)")


def write_stack_files(args: Namespace, summary: Callable[[], Summary]) -> list[Path]:
    """Write what was asked for; return the files. Raises UserError where there are no stacks."""
    from zaplock.cli._busy import busy

    written = []
    if args.folded:
        from zaplock.views.stacks import write_folded

        found = summary()
        with busy(f"writing {args.folded}"):
            written.append(write_folded(found, Path(args.folded)))
    if args.pprof:
        from zaplock.views.pprof import write_pprof

        found = summary()
        with busy(f"writing {args.pprof}"):
            written.append(write_pprof(found, Path(args.pprof)))
    return written


def next_for_stack_files(args: Namespace) -> bool:
    """Say what to do with such a file; say whether there is one."""
    if args.pprof:
        next_step(f"go tool pprof -top {shell_word(args.pprof)}", aside=args.json)
    elif args.folded:
        next_step("open it at speedscope.app", "or: flamegraph.pl FILE > x.svg", aside=args.json)
    return bool(args.pprof or args.folded)
