"""Run one teardown experiment on the kernel that you are on: how long does it take, who stalls?

A process of its own maps SIZE with every page present; bystanders work beside it; then the whole
mapping is taken down by one system call. Bystanders: fault (a thread touching fresh pages), proc (a
foreign process reading /proc/PID/cmdline), mmap (a thread mapping and unmapping 4 KiB), gup (a
foreign process_vm_readv), madvise (a thread giving back one page).

A stall is what an operation took beyond its typical duration before the teardown; "idle worst" is
the same before the teardown, so a stall below it is noise.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from zaplock.cli import _guest, _race
from zaplock.cli._designs import parse_cpu_max
from zaplock.cli._ending import next_step
from zaplock.cli._json_text import print_json
from zaplock.cli._lists import items
from zaplock.units import duration, format_size, parse_duration, parse_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zaplock.measure.measure import Progress
    from zaplock.trace.teardown_outcome import TeardownOutcome
    from zaplock.views.console import Screen
    from zaplock.views.grid import Grid


_SIZE = "1G"
_BACKING = (
    "anonymous, zero (the shared zero page: no memory needed), file, thp, hugetlb, or auto: "
    "anonymous where it fits, else zero (default)"
)
_TEARDOWN = (
    "munmap (default), growsdown (munmap below a growing stack), fixed (mmap over it), brk, "
    "mremap, dontneed, exit"
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `zaplock measure`."""
    add = parser.add_argument
    add("size", nargs="?", metavar="SIZE", help=f"such as 80G (default {_SIZE}; of a race 16M)")
    add("--backing", default="auto", metavar="KIND", help=_BACKING)
    add("--teardown", default="munmap", metavar="WAY", help=_TEARDOWN)
    add(
        "--bystanders",
        default="fault,proc",
        metavar="LIST",
        help="of fault, proc, mmap, gup, madvise; none for none (default fault,proc)",
    )
    add("--rate", type=int, default=1000, metavar="N", help="operations a second of each (1000)")
    add("--locked", action="store_true", help="lock the mapping in memory (mlock)")
    add("--vmas", type=int, default=1, metavar="N", help="cut the mapping into N VMAs (1)")
    add("--cpu-max", metavar="QUOTA/PERIOD", help="give the process so many us of CPU time in each "
        "period, such as 10000/100000 (10 %%)")  # fmt: skip
    add("--repeat", type=int, default=1, metavar="N", help="run N times: medians and ranges (1)")
    add("--timeout", default="300s", metavar="TIME", help="limit for one repetition (300s)")
    add("--no-holds", action="store_true", help="leave the tracepoints alone, also as root")
    add("--json", action="store_true", help="print every run, their median and range as JSON")
    _guest.configure(parser)
    _race.configure(parser)


def bystanders(text: str) -> tuple[str, ...]:
    """Split a list of names; `none` alone means nobody."""
    from zaplock.errors import UserError

    names = items("--bystanders", text)
    if "none" in names and len(names) > 1:
        raise UserError(f"--bystanders {text!a} names somebody beside none: leave out one of both")
    return () if names == ["none"] else tuple(names)


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    if args.list_kernels:
        _guest.list_kernels(as_json=args.json)
        return 0
    if args.race:
        return _race.run(args)
    _race.refuse_without_race(args)
    args.size = args.size or _SIZE
    if args.kernel:
        outcomes = _guest.measure(args, bystanders(args.bystanders))
    else:
        _guest.refuse_without_kernel(args)
        outcomes = _here(args)
    if args.json:
        print_json(as_json(outcomes))
    else:
        from zaplock.views.console import Screen

        print(headline(outcomes))
        for line in sentences(outcomes):
            print(f"- {line}")
        print()
        Screen().print(table(outcomes))
    next_step(*_next(args, outcomes), aside=args.json)
    return 0


def _here(args: argparse.Namespace) -> list[TeardownOutcome]:
    """Measure on the kernel that runs."""
    from zaplock.measure.measure import measure
    from zaplock.views.console import Screen

    length, timeout_ns = parse_size(args.size), parse_duration(args.timeout)
    with _Bar(Screen(stderr=True)) as progress:
        return measure(
            length,
            backing=args.backing,
            teardown=args.teardown,
            bystanders=bystanders(args.bystanders),
            rate=args.rate,
            locked=args.locked,
            nr_vmas=args.vmas,
            repeat=args.repeat,
            timeout_s=timeout_ns / 1e9,
            trace=not args.no_holds,
            cpu_max=parse_cpu_max(args.cpu_max) if args.cpu_max else None,
            progress=progress,
        )


class _Bar:
    """A bar on stderr while pages are populated; gone before the experiment begins."""

    def __init__(self, console: Screen) -> None:
        from rich.progress import Progress as RichProgress

        self.bar = RichProgress(console=console, transient=True)
        self.task = self.bar.add_task("mapping every page", total=1)
        self.shown = False

    def __enter__(self) -> Progress:
        return self.show

    def __exit__(self, *_: object) -> None:
        self._set(False)

    def _set(self, shown: bool) -> None:
        if shown != self.shown:
            (self.bar.start if shown else self.bar.stop)()
        self.shown = shown

    def show(self, phase: str, done: int, of: int) -> None:
        """Draw the bar while pages are mapped on a terminal; take it away in every other phase."""
        self._set(phase == "populate" and self.bar.console.is_terminal)
        self.bar.update(self.task, completed=done, total=of)


def as_json(outcomes: Sequence[TeardownOutcome]) -> dict[str, object]:
    """Return the runs, and their median with its spread, as one JSON object."""
    from zaplock.measure.measure import summary

    middle = summary(outcomes)
    return {
        "size": middle.extra["size"],
        "kernel": middle.design,
        "backing": middle.extra["backing"],
        "teardown": middle.extra["teardown"],
        "rows": [one.to_json() for one in outcomes],
        "median": middle.to_json(),
    }


def _span(span_ns: int | None) -> str:
    return "not seen" if span_ns is None else duration(span_ns)


def _range(spread: dict[str, list[int]], name: str, repeat: int) -> str:
    if repeat == 1 or name not in spread:
        return ""
    low, high = (duration(end) for end in spread[name])
    same = low.split()[-1] == high.split()[-1]
    return f"{low.split()[0] if same else low} to {high}"


def table(outcomes: Sequence[TeardownOutcome]) -> Grid:
    """Draw the median of each figure, with its range where runs were repeated."""
    from zaplock.measure.measure import summary
    from zaplock.views.grid import Grid, figure, words

    middle = summary(outcomes)
    spread, repeat = middle.extra["spread"], len(outcomes)
    way = middle.extra["teardown"]
    figures = (figure("time"), figure("p99", rank=2), figure("idle worst", rank=1))
    ranges = (figure("range"),) if repeat > 1 else ()
    columns = (words("what"), *figures, figure("operations", rank=3), *ranges)
    rows: list[Sequence[str]] = []

    def row(label: str, name: str, *cells: str) -> None:
        cells += ("",) * (4 - len(cells))
        rows.append((label, *cells, *([_range(spread, name, repeat)] if repeat > 1 else [])))

    row(f"{way}, whole call", "munmap_ns", _span(middle.munmap_ns))
    row("exclusive hold", "exclusive_hold_ns", _span(middle.exclusive_hold_ns))
    row("shared hold", "shared_hold_ns", _span(middle.shared_hold_ns))
    for name in middle.bystanders:
        one, idle = middle.stalls[name], middle.extra["idle"][name]
        spans = (_span(span) for span in (one.max_ns, one.p99_ns, idle["max_ns"]))
        row(f"{name}: worst stall", f"{name}_max_ns", *spans, str(one.count))
    return Grid(columns, rows)


def sentences(outcomes: Sequence[TeardownOutcome]) -> list[str]:
    """Say in words who waited, computed from the figures."""
    from zaplock.measure.measure import summary

    middle = summary(outcomes)
    said: dict[str, list[str]] = {}
    for name in middle.bystanders:
        said.setdefault(verdict(middle, name), []).append(name)
    return [
        line
        for line in (middle.note, *(f"{', '.join(who)}: {v}" for v, who in said.items()))
        if line
    ]


def verdict(outcome: TeardownOutcome, name: str) -> str:
    """Say what the teardown did to a bystander, as far as this machine's noise lets it be told."""
    stall, noise_ns = outcome.stalls[name], outcome.extra["idle"][name]["max_ns"]
    if stall.count == 0:
        return "did nothing during the teardown (raise --rate, or take a larger SIZE)."
    if stall.max_ns > max(outcome.munmap_ns // 2, 2 * noise_ns):
        return "waited for most of the teardown."
    if noise_ns > outcome.munmap_ns // 4:
        return "not to be told: idle stalls here are as long (--repeat 5, or a larger SIZE)."
    if stall.max_ns <= 2 * noise_ns:
        return "no stall beyond this machine's own noise."
    return f"stalled at most {stall.max_ns / outcome.munmap_ns:.1%} of the teardown's time."


def headline(outcomes: Sequence[TeardownOutcome]) -> str:
    """Say what was measured, where and how often."""
    first = outcomes[0]
    what = f"{first.extra['teardown']} of {format_size(first.extra['size'])}"
    times = "one run" if len(outcomes) == 1 else f"median of {len(outcomes)} runs"
    return f"{what} on {first.design}: {times}"


def _next(args: argparse.Namespace, outcomes: Sequence[TeardownOutcome]) -> tuple[str, ...]:
    if args.kernel:
        return (_guest.next_command(args),)
    if "mmap" not in outcomes[0].bystanders and args.teardown != "exit":
        return (f"zaplock measure {args.size} --bystanders fault,proc,mmap", "with a queued writer")
    return f"zaplock compare {args.size}", "the same under other kernels' designs"
