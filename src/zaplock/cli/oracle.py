"""Let the real kernel judge the model: random sequences of memory-management calls run on both
sides, and after every operation result, maps, residency, contents and counters are compared.

Every divergence is shrunk to a few operations; --save keeps it as JSON and as a script that runs on
its own. With --against-itself a second process of the real kernel is the other side: what differs
then is what the kernel itself does not repeat. --replay FILE runs one saved sequence, step by step;
--trace FILE -- PROGRAM records a program and runs it through the model; --strace FILE does so with
what strace has recorded. --threads runs programs of two to four threads: every outcome must be one
that the exhaustive engine allows. --kernel judges by another kernel, in QEMU, under its own design.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zaplock import outputs
from zaplock.cli._ending import next_step, wrote
from zaplock.cli._oracle_text import print_json, print_report
from zaplock.cli._oracle_text import progress as progress_text
from zaplock.cli._output_files import require_files, require_folders
from zaplock.errors import UserError, no_such

if TYPE_CHECKING:
    from zaplock.oracle.campaign import Bench, Report, SideMaker
    from zaplock.oracle.compare import Divergence
    from zaplock.oracle.ops import OracleStep
    from zaplock.programs.replay import StraceVerdict


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("--seconds", type=float, default=20.0, help="how long to run (20)")
    parser.add_argument("--seed", type=int, default=1, help="equal seeds give equal runs (1)")
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side (1)")
    parser.add_argument("--cluster", default="", metavar="ADDRESS",
                        help="judge the kernel of this Dask scheduler's workers")  # fmt: skip
    parser.add_argument("--theme", action="append", help="only sequences of this theme; repeatable")
    parser.add_argument("--against-itself", action="store_true", help="kernel against kernel")
    parser.add_argument("--save", metavar="DIR", help="keep every divergence as JSON and script; "
        "with --replay, the script")  # fmt: skip
    parser.add_argument("--replay", metavar="FILE", help="run one saved sequence, step by step")
    parser.add_argument("--c", metavar="FILE", help="write the sequence of --replay as a C program")
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
        raise UserError(f"--c {args.c!a} needs --replay FILE: it writes that sequence as a program")
    require_files({"--c": args.c})
    require_folders({"--save": args.save})
    if args.trace is not None:
        return _trace(args)
    if args.every_call:
        raise UserError("--every-call is for --trace: zaplock oracle --trace -- PROGRAM")
    if args.bpftrace:
        from zaplock.programs.bpf_script import script

        print(script(), end="")
        return 0
    if args.command:
        raise UserError(f"{args.command[0]!r} is for --trace: zaplock oracle --trace -- PROGRAM")
    if args.strace:
        return _strace(args.strace, args.json)
    if args.replay:
        if args.kernel and args.against_itself:
            raise UserError("--kernel judges the model: leave --against-itself away")
        return _replay(args)
    if not 0 < args.seconds <= 86_400:
        raise UserError(f"--seconds {args.seconds} is not between 0 and 86400: give such a number")
    if not 1 <= args.jobs <= 256:
        raise UserError(f"--jobs {args.jobs} is not between 1 and 256: give such a number")
    if "ksm" in (args.theme or ()) and args.jobs != 1:
        raise UserError("ksmd would merge what several jobs have: leave --jobs out of theme ksm")
    if args.cluster:
        _check_cluster(args)
    if args.threads:
        return _threads(args)
    elsewhere = args.jobs != 1 or args.against_itself or args.self_test
    if args.kernel and (elsewhere or args.locks or args.committed):
        raise UserError("--kernel runs one guest: leave --jobs and the other comparisons away")
    if args.self_test or args.locks or args.committed:
        with _lent(args.theme or ()):
            if args.self_test:
                return _self_test(args)
            return _sampled(args, "locks" if args.locks else "committed")
    report = _campaign(args)
    if args.json:
        print_json(report, args.seed)
    else:
        print_report(report, args.coverage)
    _say_next(report, args)
    return 0 if report.agrees else 1


_CHANGES_MACHINE = ("hugetlb", "gigantic", "hugetlbfs", "swap", "ksm", "group")


def _check_cluster(args: argparse.Namespace) -> None:
    """Raise UserError for what a cluster isn't for."""
    others = ("threads", "kernel", "self_test", "locks", "committed")
    if given := next((name for name in others if getattr(args, name)), None):
        raise UserError(f"--{given.replace('_', '-')} runs here: leave --cluster out")
    if theme := next((one for one in args.theme or () if one in _CHANGES_MACHINE), None):
        raise UserError(f"the theme {theme} changes its machine: run it there, without --cluster")


def _other_side(args: argparse.Namespace) -> SideMaker:
    from zaplock.oracle import campaign

    if args.against_itself:
        return campaign.against_itself
    from zaplock.oracle.modelside import model_side

    return model_side


def _scope(args: argparse.Namespace) -> Any:
    from dataclasses import replace

    from zaplock.oracle.scope import EVERYTHING
    from zaplock.oracle.themes import THEMES

    scope = EVERYTHING
    if not args.against_itself:
        from zaplock.oracle.modelside import COVERED

        scope = COVERED
    for theme in args.theme or ():
        if theme not in THEMES:
            raise no_such("theme", theme, THEMES)
    return replace(scope, themes=tuple(args.theme)) if args.theme else scope


def _threads(args: argparse.Namespace) -> int:
    """Run programs of threads, or with --self-test look for mutants with them."""
    from zaplock.cli import _oracle_threads
    from zaplock.oracle.bare_process import check_machine, check_overcommit

    if args.kernel or args.theme or args.jobs != 1:
        raise UserError(
            "--threads runs on this kernel, in one job: leave --kernel, --theme, --jobs"
        )
    check_machine()
    check_overcommit()
    return (_oracle_threads.hunt_mutants if args.self_test else _oracle_threads.run_threads)(args)


def _campaign(args: argparse.Namespace) -> Report:
    from zaplock.oracle.bare_process import check_machine, check_overcommit

    if args.kernel:
        return _guest_campaign(args)
    if args.cluster:
        return _cluster_campaign(args)
    check_machine()
    check_overcommit()
    with _lent(args.theme or ()):
        return _run_campaign(args)


@contextmanager
def _lent(themes: Collection[str]) -> Iterator[None]:
    """Let the machine have what some themes need for as long as the block runs.

    Raises UserError on a machine that can't run them.
    """
    from zaplock.oracle.huge_mounts import pages_and_mounts
    from zaplock.oracle.huge_pool import huge_pages, pages_of_both_sizes
    from zaplock.oracle.ksm import ksmd
    from zaplock.oracle.memory_group import memory_group
    from zaplock.oracle.swap_file import swap_file

    for check in _checks_of_themes(themes):
        check()
    lenders: dict[str, Callable[[], AbstractContextManager[object]]] = {
        "hugetlb": huge_pages, "gigantic": pages_of_both_sizes,
        "hugetlbfs": pages_and_mounts, "swap": swap_file, "ksm": ksmd, "group": memory_group,
    }  # fmt: skip
    with ExitStack() as lent:
        for theme, lend in lenders.items():
            if theme in themes:
                lent.enter_context(lend())
        yield


def _checks_of_themes(themes: Collection[str]) -> list[Callable[[], None]]:
    """List what raises UserError on a machine that some themes can't run on."""
    from functools import partial

    from zaplock.oracle.bare_process import check_io_uring, check_no_swap, check_root
    from zaplock.oracle.ksm import check_ksm
    from zaplock.oracle.memory_group import check_group

    checks: dict[str, Callable[[], None]] = {
        "pageout": check_no_swap,
        "shm": partial(check_root, "shm", "a namespace of its own for System V shared memory"),
        "uring": check_io_uring,
        "ksm": check_ksm,
        "group": check_group,
    }
    return [check for theme, check in checks.items() if theme in themes]


def _run_campaign(args: argparse.Namespace) -> Report:
    from zaplock.oracle import campaign

    other, scope = _other_side(args), _scope(args)
    reports = campaign.run(other, seconds=args.seconds, seed=args.seed, jobs=args.jobs, scope=scope)
    return _watched(reports, args)


def _cluster_campaign(args: argparse.Namespace) -> Report:
    """Run a campaign on the workers of a cluster."""
    from zaplock.executors import cluster_at
    from zaplock.oracle.campaign import run_on

    other, scope = _other_side(args), _scope(args)
    with cluster_at(args.cluster, args.jobs) as cluster:
        for check in _checks_of_themes(args.theme or ()):
            cluster.each(check)
        return _watched(
            run_on(cluster, other, seconds=args.seconds, seed=args.seed, scope=scope), args
        )


_NOT_IN_GUESTS = {
    "swap": "a swap file",
}


def _refuse_in_guests(kernel: str | None, themes: Collection[str]) -> None:
    """Raise UserError where a guest would need what only this machine is made to have."""
    for theme, what in _NOT_IN_GUESTS.items():
        if kernel and theme in themes:
            raise UserError(f"theme {theme} needs {what}: run it here, without --kernel")


def _guest_campaign(args: argparse.Namespace) -> Report:
    """Run a campaign on a guest's kernel."""
    from dataclasses import replace

    from zaplock.oracle.guest_side import booted, guest_scope, run_in

    themes = _scope(args).themes
    _refuse_in_guests(args.kernel, args.theme or ())
    with booted(args.kernel, args.theme or ()) as side:
        print(f"{args.kernel} is {side.release}", file=sys.stderr)
        scope = guest_scope(side.release)
        scope = replace(scope, themes=themes) if args.theme else scope
        return _watched(run_in(side, seconds=args.seconds, seed=args.seed, scope=scope), args)


def _watched(reports: Iterator[Report], args: argparse.Namespace) -> Report:
    """Show the reports as they come; return the last, saved where that is asked for."""
    from rich.progress import Progress, TextColumn, TimeElapsedColumn

    from zaplock.oracle import campaign
    from zaplock.views.console import Screen

    report = campaign.Report()
    columns = (TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Screen(stderr=True), transient=True) as progress:
        task = progress.add_task("starting")
        for report in reports:
            progress.update(task, description=progress_text(report))
    if args.save:
        lent = {theme for theme in args.theme or () if theme in _CHANGES_MACHINE}
        _save(report, Path(args.save), lent, aside=args.json)
    return report


def _save(report: Report, directory: Path, lent: Collection[str], *, aside: bool) -> None:
    from zaplock.oracle import corpus, script

    try:
        with outputs.walk(directory, make=True) as folder:
            for number, found in enumerate([*report.divergences, *report.kernel_faults]):
                name = _saved_as(found, number)
                sequence = found.sequence[: found.at + 1]
                text = corpus.dump(sequence, "; ".join(found.differences), lent)
                folder.write(f"{name}.json", text.encode(), 0o666)
                folder.write(f"{name}.py", script.write(found).encode(), 0o666)
                for kind in ("json", "py"):
                    wrote(directory / f"{name}.{kind}", aside=aside)
    except OSError as error:
        raise UserError(
            f"can't write into {directory}: {error.strerror}; give --save a directory of yours"
        ) from None


def _saved_as(found: Divergence, number: int) -> str:
    """Name the files of a divergence, the `number`-th of its report."""
    return f"{found.signature.split(':')[0]}-{number}"


def _say_next(report: Report, args: argparse.Namespace) -> None:
    found = [*report.divergences, *report.kernel_faults]
    sides, themes = _sides(args), "".join(f" --theme {theme}" for theme in args.theme or ())
    if found and not args.save:
        what = f"--seed {args.seed}{themes}{sides} --save out/oracle"
    elif found:
        first = Path(args.save) / f"{_saved_as(found[0], 0)}.json"
        what = f"--replay {shlex.quote(str(first))}{sides}"
    else:
        what = f"--seed {args.seed + 1} --seconds 60 --coverage{themes}{sides}"
    next_step(f"zaplock oracle {what}", aside=args.json)


def _sides(args: argparse.Namespace) -> str:
    """Return the options that say what is laid beside what, each behind a blank."""
    kernel = f" --kernel {shlex.quote(args.kernel)}" if args.kernel else ""
    return f"{kernel} --against-itself" if args.against_itself else kernel


_NEEDS_THEME = {
    "ksm_scan": "ksm", "ksm_unmerge": "ksm", "ksm_zero_pages": "ksm", "ksm_most": "ksm",
    "fill_memory": "group",
}  # fmt: skip
"""Operations that need what is lent to the sequences of a theme."""


def _replay(args: argparse.Namespace) -> int:
    from zaplock.oracle import compare, corpus, script
    from zaplock.oracle.bare_process import Lost
    from zaplock.oracle.modelops import OPERATIONS

    sequence, why = corpus.load(Path(args.replay))
    if args.c:
        return _write_c(Path(args.replay), Path(args.c))
    unknown = sorted({op.name for op in sequence} - set(OPERATIONS))
    if unknown and not args.against_itself:
        raise UserError(
            f"{args.replay}: the model has no {', '.join(unknown)}: leave it out, or compare the "
            "kernel with itself (--against-itself)"
        )
    needed = {_NEEDS_THEME[op.name] for op in sequence if op.name in _NEEDS_THEME}
    needed |= corpus.themes_of(Path(args.replay)) | set(_scope(args).themes if args.theme else ())
    _refuse_in_guests(args.kernel, needed)
    with _lent(() if args.kernel else needed), _bench(args, needed) as bench:
        real: list[OracleStep] = []

        def run() -> Divergence | None:
            real[:] = bench.real.run(sequence)
            return compare.first_divergence(sequence, real, bench.model.run(sequence))

        try:
            found, disturbed = bench.in_peace(sequence, run)
        except Lost as error:
            raise UserError(
                f"{args.replay}: {error}: make its ranges smaller, a sequence has 10 s"
            ) from None
    if disturbed:
        raise UserError(
            f"{args.replay} differs, but so may a machine at work ({disturbed} meanwhile): replay "
            "it with nobody beside"
        )
    if why:
        print(f"kept because: {why}")
    for number, (op, step) in enumerate(zip(sequence, real, strict=True)):
        print(f"op{number} {op} = {compare.result_text(step.outcome.result)}")
    if found is None:
        print("both sides agree after every operation")
        next_step("zaplock oracle --seconds 60")
        return 0
    print(f"they part after op{found.at}:", *found.differences, sep="\n  ")
    if args.save:
        path = Path(args.save) / f"{Path(args.replay).stem}.py"
        outputs.write(path, script.write(found), parents=True)
        wrote(path)
        next_step(f"python3 -I {shlex.quote(str(path))}")
    else:
        which = f"{shlex.quote(args.replay)}{_sides(args)}"
        next_step(f"zaplock oracle --replay {which} --save out/oracle")
    return 1


@contextmanager
def _bench(args: argparse.Namespace, themes: Collection[str]) -> Iterator[Bench]:
    """Give both sides: this kernel, or a guest's that has what themes need, and the model of it."""
    from dataclasses import replace

    from zaplock.oracle.campaign import Bench

    if args.kernel:
        from zaplock.oracle.guest_side import GuestModel, booted

        with booted(args.kernel, themes) as side:
            yield Bench(lambda real: GuestModel(side), real=side)
        return
    bench = Bench(_other_side(args), replace(_scope(args), themes=tuple(themes)))
    try:
        yield bench
    finally:
        bench.close()


def _write_c(source: Path, target: Path) -> int:
    """Write a sequence as a C program that shows the kernel's own accounting."""
    from zaplock.oracle import corpus, reproducer

    sequence, why = corpus.load(source)
    text = reproducer.write(sequence, why, source.stem)
    outputs.write(target, text)
    wrote(target)
    program = shlex.quote(target.stem)
    next_step(f"cc -o {program} {shlex.quote(str(target))} && ./{program}")
    return 0


def _self_test(args: argparse.Namespace) -> int:
    """Put each fault into the model and see whether it is found within --seconds."""
    import json

    from zaplock.oracle import seeded_faults
    from zaplock.oracle.campaign import Bench

    bench = Bench(_other_side(args), _scope(args))
    of_themes = [
        one for theme in args.theme or () for one in seeded_faults.OF_THEMES.get(theme, ())
    ]
    rows = []
    try:
        for fault in of_themes or seeded_faults.FAULTS:
            found = seeded_faults.hunt(bench, fault, args.seed, args.seconds)
            told = found.signature or "NOT FOUND"
            text = (
                f"{fault.name:<22} {found.operations:>8,} operations {found.seconds:6.1f} s  {told}"
            )
            print(text, file=sys.stderr if args.json else sys.stdout, flush=True)
            rows.append((fault, found))
    finally:
        bench.close()
    missed = [fault.name for fault, found in rows if not found.signature]
    if args.json:
        document = [
            {"fault": fault.name, "rule": fault.rule, "operations": found.operations,
             "seconds": round(found.seconds, 2), "found_as": found.signature or None}
            for fault, found in rows
        ]  # fmt: skip
        print(json.dumps(document, indent=1))
    else:
        print(f"{len(rows) - len(missed)} of {len(rows)} faults found", *missed, sep="\n  missed: ")
        next_step("zaplock oracle --seconds 60 --coverage")
    return 1 if missed else 0


def _sampled(args: argparse.Namespace, flag: str) -> int:
    """Compare lock sequences, or Committed_AS, for so many seconds."""
    import json
    import time

    from zaplock.oracle import committed, lock_sequences
    from zaplock.oracle.campaign import slice_seed
    from zaplock.oracle.modelside import ModelSide
    from zaplock.oracle.real import RealSide

    scope, real = _scope(args), RealSide()
    model = ModelSide(real.environment)
    operations = lock_operations = number = 0
    differing: list[lock_sequences.Difference] = []
    deadline = time.monotonic() + args.seconds
    try:
        while time.monotonic() < deadline:
            seed = slice_seed(args.seed, number)
            number += 1
            if flag == "locks":
                found = lock_sequences.sample(real, model, seed, scope)
                lock_operations += found.lock_operations
                operations += found.operations
                differing += found.differences
            else:
                charges = committed.sample(real, model, seed, scope)
                operations += charges.operations
                differing += charges.differences
    finally:
        real.close()
    told = [f"{d.sequence[d.at]}: kernel {d.kernel}, model {d.model}" for d in differing]
    if args.json:
        document = {"operations": operations, "lock_operations": lock_operations, "differing": told}
        print(json.dumps(document, indent=1))
        return 1 if told else 0
    print(*told[:10], sep="\n", end="\n" if told else "")
    what = f"{lock_operations:,} lock operations" if flag == "locks" else "Committed_AS"
    print(f"{what} of {operations:,} operations compared, {len(told)} sequences differ")
    next_step(f"zaplock oracle --{flag} --seed {args.seed + 1}")
    return 1 if told else 0


def _strace(files: list[str], as_json: bool) -> int:
    from zaplock.cli import _oracle_text
    from zaplock.programs import recording
    from zaplock.programs.replay import StraceReplay

    def replay(path: Path) -> StraceVerdict:
        return StraceReplay(recording.parse(path)).play()

    if len(files) > 1:
        return _oracle_text.print_table(((Path(f), replay(Path(f))) for f in files), as_json)
    return _oracle_text.print_verdict(replay(Path(files[0])), Path(files[0]), as_json)


def _trace(args: argparse.Namespace) -> int:
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
        return _strace([str(path)], args.json)
