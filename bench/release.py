"""Who stalls, and how long, while a huge mapping is freed or filled: docs/release.md's tables.

    python -m bench.release                       the whole table (half an hour, 13 GiB of memory)
    python -m bench.release --sizes 8 --repeat 5  one size
    python -m bench.release --force-chunks        as on kernels before 6.18, for three bounds
    python -m bench.release --populate            filling instead of freeing

Each experiment is a fresh process; its bystanders do one operation a millisecond each. A stall is
what an operation took beyond its typical duration before the teardown; the table has the median
over the repetitions of the worst stall of each. "idle" is the worst of all of them before it: what
cannot be told from the machine's own noise. Memory that is freed comes from that process, so a
size must fit in free memory.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import zaplock
from zaplock.errors import UserError
from zaplock.measure import memory
from zaplock.measure.json_children import Child
from zaplock.measure.measure import stalls

GIB = 1 << 30
PERIOD_NS = 1_000_000
IDLE_S = 0.5
TIMEOUT_S = 120
WAYS = ("munmap", "munmap by 32 MiB", "munmap in a thread", "MADV_DONTNEED", "release")
FILLS = ("MAP_POPULATE", "populate")
PACED = ("release", "populate")
INSIDE = ("mmap", "fault", "beside", "mprotect")
WITH_FORK = ("mmap", "fault", "fork")
COLUMNS = ("mmap", "fault", "proc", "beside", "mprotect", "fork")


@dataclass(frozen=True, slots=True)
class Experiment:
    """One way of giving back or filling `length` bytes beside some threads, and proc always."""

    way: str
    length: int
    backing: str = "anonymous"
    bystanders: tuple[str, ...] = INSIDE
    max_stall_ns: int = 5_000_000
    force_chunks: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    """The total time and the worst stall of each bystander, in nanoseconds.

    `idle_ns` is the worst stall of any in the half second before: what the machine itself adds.
    """

    total_ns: int
    worst_ns: dict[str, int]
    idle_ns: int


class Subject(Child):
    """The measured process: a module of this folder, which zaplock's own children can't find.

    They import nothing but zaplock, whatever lies where they are started. So does this one, beside
    the folder that this file is in.
    """

    def __init__(self, orders: dict[str, Any]) -> None:
        here, source = Path(__file__).parents[1], Path(zaplock.__file__).parents[1]
        plain = {name: value for name, value in os.environ.items() if name[:6] != "PYTHON"}
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-s", "-S", "-m", "bench.release_subject"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**plain, "PYTHONPATH": f"{source}:{here}", "ZAPLOCK_PARENT": str(os.getpid())},
        )
        self.pid, self._seen = self.process.pid, b""
        self.send(orders)


def once(experiment: Experiment) -> Result:
    """Run one experiment in a process of its own."""
    deadline = time.monotonic() + TIMEOUT_S
    with ExitStack() as stack:
        watcher = stack.enter_context(Child("zaplock.measure.foreign_bystander"))
        orders = {name: getattr(experiment, name) for name in Experiment.__slots__}
        subject = stack.enter_context(Subject({**orders, "period_ns": PERIOD_NS}))
        ready = subject.receive(deadline)
        watched = {"bystander": "proc", "pid": subject.pid, "probe": ready["probe"]}
        watcher.send({**watched, "period_ns": PERIOD_NS})
        time.sleep(IDLE_S)
        subject.send({"go": True})
        done = subject.receive(deadline)
        watcher.send({"end": True})
        samples = done["samples"] | {"proc": watcher.receive(deadline)["samples"]}
    window = (done["begin_ns"], done["end_ns"])
    found = {name: stalls(*both, window) for name, both in samples.items()}
    worst = {name: beside.max_ns for name, (beside, _idle) in found.items()}
    idle_ns = max(idle.max_ns for _beside, idle in found.values())
    return Result(window[1] - window[0], worst, idle_ns)


def side_by_side(experiments: Sequence[Experiment], repeat: int) -> list[Result]:
    """Run experiments in turn, several times; return the medians of each one's figures."""
    rounds = [[_told(experiment) for experiment in experiments] for _ in range(repeat)]
    return [_middle([results[index] for results in rounds]) for index in range(len(experiments))]


def _told(experiment: Experiment) -> Result:
    if sys.stderr.isatty():
        size = f"{experiment.length / GIB:g} GiB"
        print(f"\r\033[K{size} {experiment.way}", end="", file=sys.stderr, flush=True)
    return once(experiment)


def _middle(results: Sequence[Result]) -> Result:
    names = results[0].worst_ns
    return Result(
        int(median(one.total_ns for one in results)),
        {name: int(median(one.worst_ns[name] for one in results)) for name in names},
        int(median(one.idle_ns for one in results)),
    )


def rows(experiments: Sequence[Experiment], repeat: int, *, fork: bool) -> Iterator[dict[str, Any]]:
    """Measure some rows side by side; the fork has runs of its own, the range being DONTFORK."""
    found = side_by_side(experiments, repeat)
    forked = [replace(experiment, bystanders=WITH_FORK) for experiment in experiments]
    beside_fork = side_by_side(forked, repeat) if fork else []
    for index, experiment in enumerate(experiments):
        worst = dict(found[index].worst_ns)
        if fork:
            worst["fork"] = beside_fork[index].worst_ns["fork"]
        yield {
            "size_gib": experiment.length / GIB,
            "pages": "THP" if experiment.backing == "thp" else "4 KiB",
            "way": experiment.way,
            "max_stall_ns": experiment.max_stall_ns if experiment.way in PACED else 0,
            "total_ns": found[index].total_ns,
            "worst_ns": worst,
            "idle_ns": found[index].idle_ns,
        }


def groups(args: argparse.Namespace) -> Iterator[list[Experiment]]:
    """List what the arguments ask for; the experiments of a group are run in turn."""
    for size in args.sizes:
        length = int(size * GIB)
        memory.require(length, "anonymous")
        if args.populate:
            yield [Experiment(way, length, bystanders=("mmap", "fault")) for way in FILLS]
        elif args.force_chunks:
            bounds = [int(bound_ms * 1e6) for bound_ms in args.bounds]
            forced = Experiment("release", length, force_chunks=True)
            paced = [replace(forced, max_stall_ns=bound_ns) for bound_ns in bounds]
            yield [replace(forced, way="munmap"), *paced]
        else:
            for backing in args.pages:
                yield [Experiment(way, length, backing) for way in args.ways]


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.release",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--sizes", type=float, nargs="+", default=[1, 4, 8, 12], metavar="GIB")
    add("--pages", nargs="+", default=["anonymous", "thp"], choices=["anonymous", "thp"])
    add("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    add("--repeat", type=int, default=5)
    add("--no-fork", action="store_true", help="leave out the runs with a forking bystander")
    add("--force-chunks", action="store_true", help="make MADV_DONTNEED take the mmap_lock")
    add("--bounds", type=float, nargs="+", default=[1, 5, 20], metavar="MS", help="max_stall_ns")
    add("--populate", action="store_true", help="fill instead of free")
    add("--json", action="store_true")
    return parser.parse_args(argv)


def milliseconds(span_ns: int | None) -> str:
    """Write a duration for the table."""
    return "" if span_ns is None else f"{span_ns / 1e6:.1f}"


def line(measured: dict[str, Any]) -> str:
    """Write one row of the Markdown table."""
    bound_ns, worst = measured["max_stall_ns"], measured["worst_ns"]
    way = measured["way"] + (f", bound {bound_ns / 1e6:g} ms" if bound_ns else "")
    cells = [f"{measured['size_gib']:g} GiB", measured["pages"], way]
    cells.append(milliseconds(measured["total_ns"]))
    cells += [milliseconds(worst.get(name)) for name in COLUMNS]
    cells.append(milliseconds(measured["idle_ns"]))
    return "| " + " | ".join(cells) + " |"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table row by row, as each is measured."""
    args = parse(argv)
    head = ["size", "pages", "way", "total ms", *(f"{name} ms" for name in COLUMNS), "idle ms"]
    if not args.json:
        print("| " + " | ".join(head) + " |\n|" + "---|" * len(head), flush=True)
    found: list[dict[str, Any]] = []
    try:
        for group in groups(args):
            for measured in rows(group, args.repeat, fork=not (args.no_fork or args.populate)):
                found.append(measured)
                if not args.json:
                    print(line(measured), flush=True)
    except UserError as error:
        print(f"bench.release: {error}", file=sys.stderr)
        return 2
    if args.json:
        print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
