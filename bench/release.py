"""Who stalls, and how long, while a huge mapping is freed or filled: docs/release.md's tables.

    python -m bench.release                       the whole table (half an hour, 13 GiB of memory)
    python -m bench.release --sizes 8 --repeat 5  one size
    python -m bench.release --force-chunks        as on kernels before 6.18, for three bounds
    python -m bench.release --populate            filling instead of freeing

Each experiment is a fresh process; its bystanders do one operation a millisecond each. A stall is
what an operation took beyond its typical duration before the teardown; the table has the median
over the repetitions of the worst stall of each. Memory that is freed comes from that process, so a
size must fit in free memory.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median
from typing import Any

from zaplock.errors import UserError
from zaplock.kernel import memory
from zaplock.kernel.children import Child
from zaplock.kernel.measure import stalls

GIB = 1 << 30
PERIOD_NS = 1_000_000
IDLE_S = 0.2
TIMEOUT_S = 120
WAYS = ("munmap", "munmap by 32 MiB", "munmap in a thread", "MADV_DONTNEED", "release")
FILLS = ("MAP_POPULATE", "populate")
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
    """The total time and the worst stall of each bystander, in nanoseconds."""

    total_ns: int
    worst_ns: dict[str, int]


def once(experiment: Experiment) -> Result:
    """Run one experiment in a process of its own."""
    deadline = time.monotonic() + TIMEOUT_S
    with ExitStack() as stack:
        watcher = stack.enter_context(Child("zaplock.kernel.foreign"))
        orders = {name: getattr(experiment, name) for name in Experiment.__slots__}
        subject = stack.enter_context(
            Child("bench.release_subject", {**orders, "period_ns": PERIOD_NS})
        )
        ready = subject.receive(deadline)
        watched = {"bystander": "proc", "pid": subject.pid, "probe": ready["probe"]}
        watcher.send({**watched, "period_ns": PERIOD_NS})
        time.sleep(IDLE_S)
        subject.send({"go": True})
        done = subject.receive(deadline)
        watcher.send({"end": True})
        samples = done["samples"] | {"proc": watcher.receive(deadline)["samples"]}
    window = (done["begin_ns"], done["end_ns"])
    worst = {name: stalls(*both, window)[0].max_ns for name, both in samples.items()}
    return Result(window[1] - window[0], worst)


def medians(experiment: Experiment, repeat: int) -> Result:
    """Run an experiment several times and take the median of each figure."""
    results = [once(experiment) for _ in range(repeat)]
    names = results[0].worst_ns
    return Result(
        int(median(one.total_ns for one in results)),
        {name: int(median(one.worst_ns[name] for one in results)) for name in names},
    )


def row(experiment: Experiment, repeat: int, fork: bool) -> dict[str, Any]:
    """Measure one row of the table; the fork has runs of its own, with the range MADV_DONTFORK."""
    from dataclasses import replace

    result = medians(experiment, repeat)
    worst = dict(result.worst_ns)
    if fork:
        forked = medians(replace(experiment, bystanders=WITH_FORK), repeat)
        worst["fork"] = forked.worst_ns["fork"]
        worst["mmap, with fork"] = forked.worst_ns["mmap"]
    return {
        "size_gib": experiment.length / GIB,
        "pages": "THP" if experiment.backing == "thp" else "4 KiB",
        "way": experiment.way,
        "max_stall_ns": experiment.max_stall_ns if experiment.way in ("release", "populate") else 0,
        "total_ns": result.total_ns,
        "worst_ns": worst,
    }


def experiments(args: argparse.Namespace) -> Iterator[Experiment]:
    """List what the arguments ask for."""
    for size in args.sizes:
        length = int(size * GIB)
        memory.require(length, "anonymous")
        if args.populate:
            yield from (Experiment(way, length, bystanders=("mmap", "fault")) for way in FILLS)
        elif args.force_chunks:
            yield Experiment("munmap", length, force_chunks=True)
            for bound_ms in args.bounds:
                bound_ns = int(bound_ms * 1e6)
                yield Experiment("release", length, max_stall_ns=bound_ns, force_chunks=True)
        else:
            for backing in args.pages:
                yield from (Experiment(way, length, backing) for way in args.ways)


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


def line(found: dict[str, Any]) -> str:
    """Write one row of the Markdown table."""
    bound = f", bound {found['max_stall_ns'] / 1e6:g} ms" if found["max_stall_ns"] else ""
    cells = [f"{found['size_gib']:g} GiB", found["pages"], found["way"] + bound]
    cells.append(milliseconds(found["total_ns"]))
    cells += [milliseconds(found["worst_ns"].get(name)) for name in COLUMNS]
    return "| " + " | ".join(cells) + " |"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table row by row, as each is measured."""
    args = parse(argv)
    head = ["size", "pages", "way", "total ms", *(f"{name} ms" for name in COLUMNS)]
    if not args.json:
        print("| " + " | ".join(head) + " |\n|" + "---|" * len(head), flush=True)
    rows = []
    try:
        for experiment in experiments(args):
            rows.append(row(experiment, args.repeat, not args.no_fork and not args.populate))
            if not args.json:
                print(line(rows[-1]), flush=True)
    except UserError as error:
        print(f"bench.release: {error}", file=sys.stderr)
        return 2
    if args.json:
        print(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
