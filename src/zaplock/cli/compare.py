"""Tear the same mapping down under every kernel's design: how long is the lock held, who stalls?

SIZE bytes with every page mapped, one munmap, simulated in virtual time under each design; beside
it bystanders: fault (a thread touching fresh pages), proc (`ps` reading /proc/PID/cmdline), mmap
(a thread mapping and unmapping 4 KiB: a writer), gup (a foreign read of the memory), madvise (a
thread giving one page back). Without --bystanders there are two blocks: readers alone, and readers
with a writer queued. The last row of each block is this machine's own kernel, really measured.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from zaplock import outputs
from zaplock.cli._designs import parse_cpu_max, parse_designs
from zaplock.cli._ending import next_step, options, wrote
from zaplock.cli._json_text import print_json
from zaplock.cli._lists import once
from zaplock.cli._output_files import require_files
from zaplock.cli.measure import bystanders
from zaplock.errors import UserError
from zaplock.units import parse_duration, parse_size

if TYPE_CHECKING:
    from zaplock.lab.compare import Blocks, Comparison
    from zaplock.lab.experiment import SimulatedExperiment
    from zaplock.lab.teardown import Teardown
    from zaplock.trace.teardown_outcome import TeardownOutcome


MESSAGES_SHOWN = 3
CPUS = 8
"""Of the simulated machine, if nothing else is said."""
SIZE = "80G"
"""What is torn down, if nothing else is said."""
HUNG = "120s"
"""When a kernel reports a task that waits, if nothing else is said."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `zaplock compare`."""
    add = parser.add_argument
    add("sizes", nargs="*", metavar="SIZE", help="such as 80G (default); several are compared one "
        "after the other")  # fmt: skip
    add("--design", action="append", metavar="NAME", help="of `zaplock designs`, or FILE.py:NAME "
        "for your own; several by commas or by repeating (default: all)")  # fmt: skip
    add("--bystanders", action="append", metavar="LIST", help="of fault, proc, mmap, gup, madvise, "
        "mprotect, clone, fork; none for none; repeat for more blocks (default: fault,proc and "
        "fault,proc,mmap and mmap,fork,mprotect,clone)")  # fmt: skip
    add("--rate", type=int, metavar="N", help="operations a second of each bystander (default: "
        "about 400 during the teardown, at least 100 a second)")  # fmt: skip
    add("--cpus", type=int, default=CPUS, metavar="N", help="CPUs of the simulated machine (8)")
    add("--profile", metavar="NAME", help="costs: a profile's name or its TOML file (default: "
        "this machine's, if it is calibrated and its kernel is measured beside, else "
        "e5-2680-rfc)")  # fmt: skip
    add("--backing", metavar="KIND", help="anonymous, zero, file, thp or hugetlb (anonymous)")
    add("--locked", action="store_true", help="lock the mapping in memory (mlock)")
    add("--vmas", type=int, default=1, metavar="N", help="cut the mapping into N VMAs (1)")
    add("--cpu-max", metavar="QUOTA/PERIOD", help="give the process so many us of CPU time in each "
        "period, such as 10000/100000 (10 %%)")  # fmt: skip
    add("--hung-task-timeout", default=HUNG, metavar="TIME", help="report who waits longer "
        "uninterruptibly (120s)")  # fmt: skip
    add("--seed", type=int, default=1, metavar="N", help="when each bystander begins (1)")
    add("--no-measure", action="store_true", help="leave this machine's kernel out")
    add("--measure-kernel", action="append", default=[], metavar="KERNEL", help="measure this real "
        "kernel too, in QEMU: a vmlinuz, debian:6.1 or debian:6.12; may be repeated")  # fmt: skip
    add("--json", action="store_true", help="print JSON instead of tables")
    add("--trace", metavar="FILE", help="write the runs as ftrace function_graph text")
    add("--trace-layout", default="trace-cmd", choices=("trace-cmd", "ftrace"), help="in the "
        "layout of trace-cmd report, or of the kernel's own file (trace-cmd)")  # fmt: skip
    add(
        "--plot",
        metavar="FILE",
        help="draw who holds and who waits: FILE.svg, .png, or "
        ".html: a page with the answer, the tables and a timeline of all runs",
    )


def run(args: argparse.Namespace) -> int:
    """Compare, measure, print: one size after the other."""
    each = [argparse.Namespace(**vars(args), size=size) for size in args.sizes or [SIZE]]
    if len(each) > 1 and (args.trace or args.plot):
        option = "--trace" if args.trace else "--plot"
        raise UserError(f"{option} takes one size, not {len(each)}: compare one at a time")
    for one in each:
        _experiment(one)  # a size that is none is said before the first has run
    found = []
    for number, one in enumerate(each):
        found.append(_compare(one))
        if not args.json:
            print(end="\n" if number else "")
            _print(found[-1])
    if args.json:
        told = [one.to_json() for one in found]
        print_json(told if len(told) > 1 else told[0])
    next_step(*_next(each[-1], found[-1]), aside=args.json)
    return 0


def _compare(args: argparse.Namespace) -> Comparison:
    from zaplock.lab import profiles
    from zaplock.lab.compare import compare

    experiment, blocks = _experiment(args), _blocks(args.bystanders)
    designs, profile = parse_designs(args.design), profiles.load(_profile(args))
    if args.plot is not None:
        outputs.require_picture(args.plot, place=False)
    require_files({"--trace": args.trace, "--plot": args.plot})
    comparison = compare(
        designs, experiment, profile, blocks=blocks, log_calls=args.trace is not None
    )
    if not args.no_measure:
        comparison = replace(comparison, measured=_measured(args, comparison))
    for kernel in args.measure_kernel:
        rows = (*(comparison.measured or ()), *_measured_in_guest(args, comparison, kernel))
        comparison = replace(comparison, measured=rows)
    _write_files(args, comparison)
    return comparison


def _profile(args: argparse.Namespace) -> str:
    """Choose the costs: this machine's where its kernel is measured beside, if they are known."""
    from zaplock.lab import profiles

    if args.profile is not None:
        return str(args.profile)
    known = not args.no_measure and profiles.THIS_MACHINE in profiles.available()
    return profiles.THIS_MACHINE if known else profiles.DEFAULT


def _experiment(args: argparse.Namespace) -> SimulatedExperiment:
    from zaplock.experiment import page_of, period_of
    from zaplock.lab.experiment import SimulatedExperiment

    backing = args.backing or "anonymous"
    return SimulatedExperiment(
        length=parse_size(args.size, page=page_of(backing)),
        backing=backing,
        period_ns=None if args.rate is None else period_of(args.rate),
        cpus=args.cpus,
        locked=args.locked,
        nr_vmas=args.vmas,
        hung_task_timeout_ns=parse_duration(args.hung_task_timeout),
        seed=args.seed,
        cpu_max=parse_cpu_max(args.cpu_max) if args.cpu_max else None,
    )


def _blocks(lists: list[str] | None) -> Blocks:
    from zaplock.lab.compare import BLOCKS

    if lists is None:
        return BLOCKS
    once("--bystanders", lists)
    return [bystanders(text) for text in lists]


def _measured(
    args: argparse.Namespace, comparison: Comparison
) -> tuple[TeardownOutcome, ...] | None:
    """Measure each block on the kernel that runs; None (and a word why) where that can't be."""
    from zaplock.cli._busy import busy
    from zaplock.lab.experiment import SIMULATED_ONLY
    from zaplock.measure.measure import measure

    experiment, blocks = comparison.experiment, _measurable(comparison)
    if not blocks:
        print(
            f"zaplock compare: nobody can be measured beside {', '.join(SIMULATED_ONLY)}: "
            "this kernel was not measured",
            file=sys.stderr,
        )
        return None
    outcomes = []
    try:
        with busy(f"unmapping {args.size} on this kernel, {len(blocks)} times"):
            for block in blocks:
                outcomes += measure(
                    experiment.length,
                    backing=args.backing or "auto",
                    bystanders=block,
                    rate=args.rate or 1000,
                    locked=experiment.locked,
                    nr_vmas=experiment.nr_vmas,
                    cpu_max=experiment.cpu_max,
                )
    except UserError as error:
        print(f"zaplock compare: this kernel was not measured: {error}", file=sys.stderr)
        return None
    return tuple(outcomes)


def _measurable(comparison: Comparison) -> list[tuple[str, ...]]:
    """List the blocks whose bystanders `zaplock measure` has, too."""
    from zaplock.lab.experiment import SIMULATED_ONLY

    return [block for block in comparison.blocks if not set(block) & set(SIMULATED_ONLY)]


def _measured_in_guest(
    args: argparse.Namespace, comparison: Comparison, kernel: str
) -> tuple[TeardownOutcome, ...]:
    """Measure each block on another kernel, in QEMU."""
    from zaplock.cli._busy import busy
    from zaplock.experiment import period_of
    from zaplock.measure.guest.experiment import GuestPlan
    from zaplock.measure.guest.rows import measure

    experiment = comparison.experiment
    rows: list[TeardownOutcome] = []
    for block in _measurable(comparison):
        plan = GuestPlan(
            length=experiment.length,
            kernel=kernel,
            backing=args.backing or "auto",
            bystanders=block,
            period_ns=period_of(args.rate or 1000),
            locked=experiment.locked,
            nr_vmas=experiment.nr_vmas,
            cpu_max=experiment.cpu_max,
        )
        with busy(f"unmapping {args.size} on {kernel} in QEMU beside {', '.join(block)}"):
            rows += measure(plan)
    return tuple(rows)


def _print(comparison: Comparison) -> None:
    from zaplock.views import outcomes
    from zaplock.views.console import Screen

    console = Screen()
    print(outcomes.title(comparison))
    for line in outcomes.sentences(comparison):
        print(f"- {line}")
    tables = [outcomes.table(comparison, block) for block in comparison.blocks]
    for table in (*tables, *([outcomes.brk1_table(comparison)] if comparison.brk1 else [])):
        print()
        console.print(table)
    for text in _hung_tasks(comparison):
        print(f"\n{text}")


def _hung_tasks(comparison: Comparison) -> list[str]:
    """Return what the kernels would log about hung tasks, the first few of it."""
    texts = list(
        dict.fromkeys(
            f"{run.design.name} logs:\n{text}"
            for run in comparison.runs
            for text in _logged(run, comparison.experiment.hung_task_timeout_ns)
        )
    )
    more = len(texts) - MESSAGES_SHOWN
    return texts[:MESSAGES_SHOWN] + ([f"... and {more} more such messages"] if more > 0 else [])


def _logged(run: Teardown, timeout_ns: int) -> list[str]:
    """Write what a kernel logs in one run, and zaplock's own sentence of who stands between."""
    if not run.long_waits:
        return []
    from zaplock.lab.blocker import blocker
    from zaplock.lab.hung_task import in_between, message
    from zaplock.trace.analysis import analyse

    kernel, texts = run.design.kernel, []
    seen = analyse(run.events, kernel)
    for wait in run.long_waits:
        found = blocker(seen, wait.tid, wait.asked_ns + timeout_ns)
        text = message(wait, timeout_ns, kernel, blocker=found)
        own = in_between(wait, found) if found else ""
        texts.append(f"{text}\n{own}" if own else text)
    return texts


def _write_files(args: argparse.Namespace, comparison: Comparison) -> None:
    if args.trace:
        from zaplock.views.function_graph import function_graph

        outputs.write(args.trace, function_graph(comparison, args.trace_layout))
        wrote(args.trace, aside=args.json)
    if args.plot:
        from zaplock.cli._busy import busy
        from zaplock.views.timeline import plot_comparison

        with busy(f"drawing {args.plot}"):
            plot_comparison(comparison, Path(args.plot))
        wrote(args.plot, aside=args.json)


def _next(args: argparse.Namespace, comparison: Comparison) -> tuple[str, str]:
    if args.plot is None and len(comparison.runs) > 1:
        again = f"zaplock compare {args.size}{_spelt(args)} --no-measure"
        return f"{again} --plot compare.svg", "who holds, who waits"
    return f"zaplock measure {args.size} --bystanders fault,proc,mmap", "this kernel alone"


def _spelt(args: argparse.Namespace) -> str:
    """Spell what was asked for beyond the size, so that the next command is about the same.

    Its costs as well: with --no-measure other ones are the default.
    """
    from zaplock.lab import profiles

    profile = None if _profile(args) == profiles.DEFAULT else _profile(args)
    usual = {"--cpus": CPUS, "--vmas": 1, "--seed": 1, "--hung-task-timeout": HUNG}
    given = {
        "--design": args.design, "--bystanders": args.bystanders, "--rate": args.rate,
        "--profile": profile, "--backing": args.backing, "--cpu-max": args.cpu_max,
        "--cpus": args.cpus, "--vmas": args.vmas, "--seed": args.seed,
        "--hung-task-timeout": args.hung_task_timeout, "--locked": args.locked,
    }  # fmt: skip
    return options({name: None if usual.get(name) == one else one for name, one in given.items()})
