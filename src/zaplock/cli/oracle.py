"""Let the real kernel judge the model: random sequences of memory-management calls run on both
sides, and after every operation result, maps, residency, contents and counters are compared.

Every divergence is shrunk to a few operations; --save keeps it as JSON and as a script that runs on
its own. With --against-itself a second process of the real kernel is the other side: what differs
then is what the kernel itself does not repeat. --replay FILE runs one saved sequence, step by step;
--trace FILE -- PROGRAM records a program and runs it through the model; --strace FILE does so with
what strace has recorded. --threads runs programs of two to four threads: every outcome must be one
that the exhaustive engine allows; with --replay a saved one again and again. --kernel judges by
another kernel, in QEMU, under its own design.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import NoReturn

from zaplock.cli._ending import wrote
from zaplock.cli._oracle_campaign import run_campaign, save_report, say_next
from zaplock.cli._oracle_recorded import record_and_replay, replay_recorded
from zaplock.cli._oracle_replay import replay_saved
from zaplock.cli._oracle_samples import compare_samples, self_test
from zaplock.cli._oracle_sides import CHANGES_MACHINE, lent
from zaplock.cli._oracle_text import print_report, print_report_json
from zaplock.cli._output_files import require_files, require_folders
from zaplock.cli._streams import while_read
from zaplock.errors import UserError
from zaplock.oracle.themes import THEMES
from zaplock.untrusted_names import shell_word


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("--seconds", type=float, default=20.0, help="how long to run (20)")
    parser.add_argument("--seed", type=int, default=1, help="equal seeds give equal runs (1)")
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side (1)")
    parser.add_argument("--cluster", default="", metavar="ADDRESS",
                        help="judge the kernel of this Dask scheduler's workers")  # fmt: skip
    themes = ", ".join(THEMES)
    parser.add_argument(
        "--theme", action="append", help=f"only sequences of this theme; repeatable: {themes}"
    )
    parser.add_argument("--against-itself", action="store_true", help="kernel against kernel")
    parser.add_argument("--save", metavar="DIR", help="keep every divergence as JSON and script; "
        "with --replay, the script; with --threads, JSON")  # fmt: skip
    parser.add_argument(
        "--replay",
        metavar="FILE",
        help="run one saved sequence, step by step; with --threads, a program",
    )
    parser.add_argument("--c", metavar="FILE", help="write what --replay reads as a C program")
    parser.add_argument(
        "--strace", metavar="FILE", nargs="+", help="replay recorded programs; several make a table"
    )
    parser.add_argument(
        "--trace", metavar="FILE", nargs="?", const="", help="record a program, then replay it"
    )
    parser.add_argument(
        "--every-call",
        action="store_true",
        help="with --trace, stop at all calls: the program may trace others then, or filter calls",
    )
    parser.add_argument("command", nargs="*", metavar="-- PROGRAM", help="what --trace runs")
    parser.add_argument(
        "--threads", action="store_true", help="programs of threads: is every outcome allowed?"
    )
    parser.add_argument(
        "--kernel", metavar="KERNEL", help="judge by a guest's kernel: debian:6.12 or a vmlinuz"
    )
    parser.add_argument(
        "--bpftrace", action="store_true", help="print a script that records for --strace"
    )
    parser.add_argument("--locks", action="store_true", help="compare lock sequences (root)")
    parser.add_argument(
        "--committed",
        action="store_true",
        help="compare Committed_AS (and of huge pages those free and reserved), on a quiet machine",
    )
    parser.add_argument("--self-test", action="store_true", help="put faults in: are they found?")
    parser.add_argument("--coverage", action="store_true", help="print every outcome's count")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def run(args: argparse.Namespace) -> int:
    """Run the oracle; exit code 0 if both sides agreed throughout, 1 if not."""
    if args.c and not args.replay:
        raise UserError(
            f"--c {args.c!a} needs --replay FILE: it writes what that holds as a program"
        )
    if args.every_call and args.trace is None:
        raise UserError("--every-call is for --trace: zaplock oracle --trace -- PROGRAM")
    if args.command and args.trace is None:
        _refuse_command(args.command[0])
    check_what_goes_together(args)
    require_files({"--c": args.c})
    require_folders({"--save": args.save})
    if args.trace is not None:
        return record_and_replay(args)
    if args.bpftrace:
        from zaplock.programs.bpf_script import script

        print(script(), end="")
        return 0
    if args.strace:
        return replay_recorded(args.strace, args.json)
    if args.replay and not args.threads:
        if args.kernel and args.against_itself:
            raise UserError("--kernel judges the model: leave --against-itself away")
        return replay_saved(args)
    if not 0 < args.seconds <= 86_400:
        raise UserError(
            f"--seconds {args.seconds:g} is not above 0 and at most 86400: give such a number"
        )
    if not 1 <= args.jobs <= 256:
        raise UserError(f"--jobs {args.jobs} is not between 1 and 256: give such a number")
    if "ksm" in (args.theme or ()) and args.jobs != 1:
        raise UserError("ksmd would merge what several jobs have: leave --jobs out of theme ksm")
    if args.cluster:
        _check_cluster(args)
    if args.threads:
        return _threads(args)
    if args.kernel and (args.jobs != 1 or args.against_itself):
        raise UserError("--kernel runs one guest, and judges the model: leave the other away")
    if args.self_test or args.locks or args.committed:
        with lent(args.theme or ()):
            if args.self_test:
                return self_test(args)
            return compare_samples(args, "locks" if args.locks else "committed")
    return _campaign(args)


def _campaign(args: argparse.Namespace) -> int:
    """Run sequences, tell what they have shown, and keep it; 0 if both sides agree, 1 if not."""
    report = run_campaign(args)
    with while_read():
        if args.json:
            print_report_json(report, args.seed)
        else:
            print_report(report, args.coverage)
    saved = save_report(report, args) if args.save else []
    with while_read():
        for path in saved:
            wrote(path, aside=args.json)
        say_next(report, args)
    return 0 if report.agrees else 1


def _refuse_command(first: str) -> NoReturn:
    """Raise UserError for what stands there without an option: a recording, or a program."""
    if Path(first).is_file() and not os.access(first, os.X_OK):
        how = f"is it a recording? zaplock oracle --strace {shell_word(first)}"
        raise UserError(f"{first!a} needs an option: {how}")
    raise UserError(f"{first!a} is for --trace: zaplock oracle --trace -- PROGRAM")


_SAMPLED = ("seconds", "seed", "theme", "json")
_GOES_WITH: dict[str, tuple[str, ...]] = {
    "trace": ("every_call", "command", "json"),
    "bpftrace": (),
    "strace": ("json",),
    "c": ("replay", "threads"),
    "threads": ("seconds", "seed", "self_test", "replay", "save", "json"),
    "replay": ("save", "kernel", "against_itself", "theme"),
    "self_test": _SAMPLED,
    "locks": _SAMPLED,
    "committed": _SAMPLED,
}
"""By what is to be done, what else may be said. A campaign is what is left, and takes the rest."""
_BY_THEMSELVES = {"seconds": 20.0, "seed": 1, "jobs": 1}


def check_what_goes_together(args: argparse.Namespace) -> None:
    """Raise UserError where an option would change nothing beside another one."""
    given = {
        name
        for name, value in vars(args).items()
        if value not in (None, False, "", [], _BY_THEMSELVES.get(name)) or (name, value) == _RECORDS
    }
    done = next((name for name in _GOES_WITH if name in given), None)
    if done is None:
        return
    known = {name for names in _GOES_WITH.values() for name in names} | {*_GOES_WITH, *_CAMPAIGN}
    if strange := sorted(given & known - {done, *_GOES_WITH[done]}):
        value = vars(args)[strange[0]]
        shown = "" if value is True else f" {value[0] if isinstance(value, list) else value!a}"
        raise UserError(
            f"--{_spelled(strange[0])}{shown} is not for --{_spelled(done)}: leave one of them away"
        )


_RECORDS = ("trace", "")  # --trace without a file
_CAMPAIGN = ("jobs", "cluster", "coverage", "save", "kernel")


def _spelled(name: str) -> str:
    return name.replace("_", "-")


def _check_cluster(args: argparse.Namespace) -> None:
    """Raise UserError for what a cluster isn't for."""
    if args.kernel:
        raise UserError("--kernel runs here: leave --cluster out")
    if theme := next((one for one in args.theme or () if one in CHANGES_MACHINE), None):
        raise UserError(f"the theme {theme} changes its machine: run it there, without --cluster")


def _threads(args: argparse.Namespace) -> int:
    """Run programs of threads, or one again, or with --self-test look for mutants with them."""
    from zaplock.cli import _oracle_threads, _oracle_threads_replay
    from zaplock.oracle.bare_process import check_machine, check_overcommit

    done = "replay" if args.replay else "self_test" if args.self_test else ""
    for other in ("self_test", "save"):
        if done not in ("", other) and (value := getattr(args, other)):
            shown = "" if value is True else f" {value!a}"
            raise UserError(
                f"--{_spelled(other)}{shown} is not for --threads --{_spelled(done)}: leave one of "
                "them away"
            )
    check_machine()
    check_overcommit()
    if args.replay:
        return _oracle_threads_replay.replay_threads(args)
    return (_oracle_threads.hunt_mutants if args.self_test else _oracle_threads.run_threads)(args)
