"""Predict how a workload grows with CPUs under designs; with --measure, what this kernel does.

WORKLOAD is one of will-it-scale's (mmap1, mmap2, brk1, page_fault1, page_fault2, page_fault3), pft
(pft-one: one mapping for all threads, pft-each: one for each), regions (regions-low, regions-high:
CortenMM's micro-benchmarks) or maps (a mapper beside a reader of /proc/PID/maps); pft and regions
alone lay both side by side. A thread is on each CPU, all of one process.

What is predicted are ratios between designs on one machine: what the address space's locks and
lines allow. The page allocator, the LRU lists and memory cgroups are not there, and where their
locks begin to count a real curve bends earlier. To put a machine in, give what one thread makes a
second (--single, of the first design) and what a cache line takes from CPU to CPU (--transfer).
--measure takes both from this machine, and how fast CPUs are beside each other; costs are then this
machine's own profile's, where there is one (zaplock calibrate).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from zaplock import outputs
from zaplock.cli._ending import next_step, options, wrote
from zaplock.cli._json_text import print_json
from zaplock.cli._lists import items
from zaplock.errors import UserError

if TYPE_CHECKING:
    from zaplock.lab.scale import MachineOfTheirs, MeasuredPoint, Point
    from zaplock.measure.scale import Measured
    from zaplock.protocols.design import Design

CPUS = "1,2,4,8,16,32,64"
DESIGNS = "linux-6.3,linux-6.4"
SMT = 0.6
"""The speed of a thread that shares its core, if nothing is said or measured."""
TRANSFER_NS = 60
OWN_CORES = 0.95
"""CPUs that are at least so fast beside each other share no core."""

PICTURES = (".svg", ".png", ".pdf")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `zaplock scale`."""
    add = parser.add_argument
    add("workload", metavar="WORKLOAD", help="mmap1, brk1, page_fault1, pft, regions, maps, ...")
    add("--cpus", metavar="LIST", help=f"numbers of CPUs by comma ({CPUS})")
    add("--design", action="append", metavar="NAMES",
        help=f"designs by comma, or a group; again for more ({DESIGNS})")  # fmt: skip
    add("--against", metavar="NAME", help="the design that others are compared with (the first)")
    add("--single", type=float, metavar="RATE",
        help="operations a second of one thread, which all costs are fitted to")  # fmt: skip
    add("--transfer", type=int, metavar="NS",
        help="what a cache line takes from CPU to CPU (60)")  # fmt: skip
    add("--nodes", type=int, default=1, metavar="N", help="NUMA nodes, CPUs in equal parts (1)")
    add("--far", type=int, metavar="NS", help="... from another node (as --transfer)")
    add("--cores", type=int, metavar="N", help="cores: above so many threads, two run on one")
    add("--smt", type=float, metavar="SPEED",
        help="with --cores: the speed of a thread that shares its core (0.6)")  # fmt: skip
    add("--profile", default=None, metavar="NAME", help="cost profile (e5-2680-rfc)")
    add("--measure", action="store_true",
        help="run it on this kernel, too, which then gives --single and --transfer")  # fmt: skip
    add("--jobs", type=int, default=1, metavar="N", help="predict in so many processes (1)")
    add("--cluster", default="", metavar="ADDRESS",
        help="predict on the cluster of this Dask scheduler")  # fmt: skip
    add("--plot", metavar="FILE", help="draw operations a second over CPUs (.svg, .png, .pdf)")
    add("--json", action="store_true", help="print JSON instead of a table")


def run(args: argparse.Namespace) -> int:
    """Predict, and measure where asked to."""
    from zaplock.cli._progress import counter
    from zaplock.executors import executor
    from zaplock.lab import profiles
    from zaplock.lab.scale import require, scale

    cpus = _cpus(args.cpus, args.measure)
    require(args.workload, cpus)
    designs = _designs(args)
    against = _against(args.against, designs)
    _check(args)
    if args.plot:
        outputs.require_picture(args.plot, PICTURES)
    profile = profiles.load(args.profile or _profile(args.measure))
    seen = _measured(args.workload, cpus) if args.measure else None
    measured, theirs = _points(seen), _machine(args, seen)
    with executor(args.jobs, args.cluster) as workers, counter("scale") as show:
        points = scale(
            designs, profile, args.workload, cpus, theirs,
            single=_single(args, measured), workers=workers, progress=show,
        )  # fmt: skip
    if args.plot:
        from zaplock.views.scale import plot

        plot([*points, *measured], Path(args.plot))
        wrote(args.plot, aside=args.json)
    if args.json:
        told = {"workload": args.workload, "profile": profile.name, **theirs.to_json(),
                "points": [one.to_json() for one in points],
                "measured": [one.to_json() for one in measured]}  # fmt: skip
        print_json(told)
    else:
        _print(points, measured, against, theirs)
    after = f"zaplock scale {args.workload} --design linux-7.3,rivals{_given(args)}"
    next_step(f"{after} --plot scale.svg", aside=args.json)
    return 0


def _given(args: argparse.Namespace) -> str:
    """Spell the options that say for which machine it was."""
    rates = {name: getattr(args, name) for name in ("single", "smt")}
    told = {f"--{name}": None if rate is None else f"{rate:.12g}" for name, rate in rates.items()}
    told |= {"--transfer": args.transfer, "--far": args.far}
    nodes = args.nodes if args.nodes > 1 else None
    return options(
        {"--cpus": args.cpus, "--measure": args.measure, **told, "--nodes": nodes,
         "--cores": args.cores, "--profile": args.profile}
    )  # fmt: skip


def _print(
    points: list[Point],
    measured: list[MeasuredPoint],
    against: str,
    theirs: MachineOfTheirs,
) -> None:
    from zaplock.views import scale as view
    from zaplock.views.console import Screen

    print(view.inputs(theirs))
    console = Screen()
    for table in (*view.tables(points, against), view.measured_table(measured, points, against)):
        if table.rows:
            print()
            console.print(table)


def _designs(args: argparse.Namespace) -> list[Design]:
    """Return the designs asked for; with --measure this kernel's, unless others are."""
    import os

    from zaplock.cli._designs import parse_designs
    from zaplock.designs.linux import design_of

    if args.measure and not args.design:
        return [design_of(os.uname().release).design]
    return parse_designs(args.design or [DESIGNS])


def _single(args: argparse.Namespace, measured: list[MeasuredPoint]) -> dict[str, float]:
    """Return what one thread makes a second, by workload: as given, or as measured."""
    from zaplock.lab.scale import parts_of

    if args.single is not None:
        return dict.fromkeys(parts_of(args.workload), args.single)
    return {one.workload: one.per_second for one in measured if one.cpus == 1}


def _cpus(text: str | None, measures: bool) -> list[int]:
    """Read --cpus; without it those that there are, where they are to be measured.

    One is measured always, since its rate is what all is fitted to.
    """
    if text is None and measures:
        from zaplock.measure.scale import cpus_here

        return list(range(1, cpus_here() + 1))
    text = CPUS if text is None else text
    try:
        found = {int(part) for part in items("--cpus", text)} if text.isascii() else set()
    except ValueError:
        found = set()
    if not found:
        raise UserError(f"--cpus {text!r} is no list of numbers such as {CPUS}")
    return sorted(found | {1} if measures else found)


def _check(args: argparse.Namespace) -> None:
    from zaplock.experiment import between

    if args.transfer is not None:
        between("--transfer", args.transfer, 0, 1e6)
    if args.smt is not None:
        between("--smt", args.smt, 0.1, 1)
        if args.cores is None:
            raise UserError(f"--smt {args.smt} needs --cores N: it is about threads that share one")
    between("--nodes", args.nodes, 1, 64)
    if args.far is not None:
        between("--far", args.far, 0, 1e6)
        if args.nodes == 1:
            raise UserError(f"--far {args.far} needs --nodes N, two or more: one has no other node")
    if args.cores is not None:
        between("--cores", args.cores, 1, 512)
    if args.single is not None:
        between("--single", args.single, 1, 1e12)


def _machine(args: argparse.Namespace, seen: Measured | None) -> MachineOfTheirs:
    """Return the machine that was described, with what was measured of it in place of the rest."""
    from zaplock.lab.scale import MachineOfTheirs

    transfer_ns, cores = args.transfer, args.cores
    smt = SMT if args.smt is None else args.smt
    if seen is not None:
        transfer_ns = seen.transfer_ns if transfer_ns is None else transfer_ns
        if cores is None and seen.speed < OWN_CORES:
            cores, smt = max(count for _, count in seen.rates) // 2, round(seen.speed, 2)
    if transfer_ns is None:
        transfer_ns = TRANSFER_NS
    return MachineOfTheirs(transfer_ns, args.far, args.nodes, cores, smt)


def _profile(measures: bool) -> str:
    """Return whose costs they are unless one is named: this machine's where it is measured."""
    from zaplock.lab import profiles
    from zaplock.measure.calibrate import cpu_name

    if not measures:
        return profiles.DEFAULT
    if profiles.THIS_MACHINE in profiles.available():
        return profiles.THIS_MACHINE
    here = cpu_name()
    alike = [name for name in profiles.shipped() if profiles.load(name).cpu == here]
    return alike[0] if alike else profiles.DEFAULT


def _against(name: str | None, designs: list[Design]) -> str:
    names = [design.name for design in designs]
    if name is not None and name not in names:
        raise UserError(f"--against {name!r} is not among the designs: {', '.join(names)}")
    return name or names[0]


def _measured(workload: str, cpus: list[int]) -> Measured:
    from zaplock.cli._busy import busy
    from zaplock.lab.scale import parts_of
    from zaplock.measure.scale import measure

    with busy(f"running {workload} on this kernel"):
        return measure(parts_of(workload), cpus)


def _points(seen: Measured | None) -> list[MeasuredPoint]:
    from zaplock.lab.scale import MeasuredPoint

    if seen is None:
        return []
    return [
        MeasuredPoint("this kernel", name, count, one.per_second, one.low, one.high,
                      one.milliseconds)
        for (name, count), one in seen.rates.items()
    ]  # fmt: skip
