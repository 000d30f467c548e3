"""A comparison on the terminal: its table, and what the table says in plain sentences.

The sentences are computed from the figures alone. A bystander *stalls* where its worst stall is at
least half of the munmap's hold of the lock; why it does follows from how the lock was held and who
else was there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING, Literal

from zaplock.trace.teardown_outcome import TeardownOutcome
from zaplock.units import duration, size

if TYPE_CHECKING:
    from zaplock.lab.compare import Comparison
    from zaplock.views.grid import Grid

WRITERS = ("mmap", "mprotect", "clone", "fork")
"""Bystanders that ask for the lock for write."""

SCANNERS = ("smaps", "rollup")
"""Bystanders that may hold the lock for long themselves: they walk all pages."""

FELT_NS = 100_000
"""What nobody calls a stall where the lock is held for microseconds."""

Hold = Literal["exclusive", "shared", "brief", "range"]


def title(comparison: Comparison) -> str:
    """Say what was compared, on which machine's costs."""
    experiment = comparison.experiment
    what = [size(experiment.length), f"{experiment.backing} memory, every page mapped"]
    what += ["locked"] if experiment.locked else []
    what += [f"{experiment.nr_vmas} VMAs"] if experiment.nr_vmas > 1 else []
    costs = f"costs of {comparison.profile.name}, {experiment.cpus} CPUs"
    costs += f", cpu.max {experiment.cpu_max}" if experiment.cpu_max else ""
    if experiment.is_sampled_under(comparison.profile):
        every = duration(experiment.period_under(comparison.profile))
        costs += f"; bystanders come once in {every}"
    return f"munmap of {what[0]} of {', '.join(what[1:])} ({costs})"


def table(comparison: Comparison, block: Sequence[str]) -> Grid:
    """Draw one block: a row for each design, the kernel at hand last."""
    from zaplock.views.grid import Grid, figure, words

    measured = comparison.measured or ()
    rows: list[list[str] | None] = []
    for row in comparison.block(block):
        if row in measured:
            if rows and None not in rows:
                rows.append(None)
            name = row.design.split(",")[0]
            row = replace(row, design=f"{name} ({row.extra['backing']})")
        rows.append(cells(row, block))
    return Grid((words("design"), *map(figure, columns(block))), rows, heading(block))


def brk1_table(comparison: Comparison) -> Grid:
    """Draw how fast threads let the heap grow and shrink, against the first design."""
    from zaplock.views.grid import Grid, figure, words

    first = comparison.brk1[0]
    title = (
        f"brk1: {first.threads} threads let the heap grow and shrink by {size(first.size)}, "
        "each shrink an unmap"
    )
    rows = [
        (row.design, f"{row.calls_per_s:,}", f"{row.calls_per_s / max(1, first.calls_per_s):.0%}")
        for row in comparison.brk1
    ]
    columns = (words("design"), figure("calls a second"), figure(f"of {first.design}'s"))
    return Grid(columns, rows, title)


def heading(block: Sequence[str]) -> str:
    """Name a block by its bystanders."""
    if not block:
        return "nobody beside it; hold times"
    return f"beside {listed(block)}: hold times, and the worst stall of each"


def columns(block: Sequence[str]) -> list[str]:
    """Name the columns behind the design's."""
    return ["exclusive", "shared", *block, "hung"]


def cells(row: TeardownOutcome, block: Sequence[str]) -> list[str]:
    """Write one outcome's figures."""
    holds = (row.exclusive_hold_ns, row.shared_hold_ns)
    stalls = (row.stalls[name].max_ns for name in block)
    spans = ["not seen" if span is None else span_of(span) for span in (*holds, *stalls)]
    return [row.design, *spans, str(row.hung_tasks)]


def span_of(span_ns: int) -> str:
    """Write a duration; nothing is a dash, which is easier to see past."""
    return duration(span_ns) if span_ns else "-"


def sentences(comparison: Comparison) -> list[str]:
    """Say who stalls, because of whom, and under which design no more."""
    said: list[str] = []
    order = [row.design for row in comparison.block(comparison.blocks[0])]
    for block in comparison.blocks:
        rows = comparison.block(block)
        simulated = [row for row in rows if row not in (comparison.measured or ())]
        said += block_sentences(simulated, block, order)
        said += quota_sentences(comparison, block)
        said += [
            f"{measured_sentence(row)}{others_costs(comparison, row)}"
            for row in rows
            if row in (comparison.measured or ())
        ]
    return said


def quota_sentences(comparison: Comparison, block: Sequence[str]) -> list[str]:
    """Say where the quota stopped the munmap, and how long its caller waited."""
    if comparison.experiment.cpu_max is None:
        return []
    said = []
    for where, stops in (
        ("kernel", "in the middle of its work, with the lock in hand"),
        ("user", "when it has given the lock back"),
    ):
        runs = [run for run in comparison.runs if run.design.throttled_in == where]
        runs = [run for run in runs if run.outcome.bystanders == tuple(block)]
        if runs:
            order = [run.design.name for run in comparison.runs]
            names = run_of([run.design.name for run in runs], list(dict.fromkeys(order)))
            took = reach([run.outcome.munmap_ns for run in runs])
            said.append(f"The quota stops munmap {stops}, under {names}: the call takes {took}.")
    return said


def block_sentences(
    rows: Sequence[TeardownOutcome], block: Sequence[str], order: Sequence[str]
) -> list[str]:
    """Say what one block shows, once for designs that show the same."""

    def shows(row: TeardownOutcome) -> tuple[Hold, tuple[str, ...]]:
        return told_hold(row), tuple(stalled(row))

    said = []
    beside = f"Beside {listed(block)}" if block else "With nobody beside it"
    groups: dict[tuple[Hold, tuple[str, ...]], list[TeardownOutcome]] = {}
    for row in rows:
        groups.setdefault(shows(row), []).append(row)
    for (hold, victims), alike in groups.items():
        names = run_of([row.design for row in alike], order)
        said.append(f"{beside}, {names}: {story(alike, hold, victims, block)}")
    return said


def story(
    rows: Sequence[TeardownOutcome], hold: Hold, victims: Sequence[str], block: Sequence[str]
) -> str:
    """Tell what happened under designs that behave alike."""
    spared = [name for name in block if name not in victims]
    parts = [held(rows, hold)]
    if victims:
        worst = max(row.stalls[name].max_ns for row in rows for name in victims)
        verb = "stalls" if len(victims) == 1 else "stall"
        parts.append(f"{listed(victims)} {verb} for up to {duration(worst)}{why(hold, victims)}")
        longest = max((row.exclusive_hold_ns or 0) + (row.shared_hold_ns or 0) for row in rows)
        scanners = [name for name in block if name in SCANNERS]
        if scanners and worst > 1.1 * longest:
            parts.append(f"what is longer than the hold they wait for {listed(scanners)}")
    if spared:
        worst = max(row.stalls[name].max_ns for row in rows for name in spared)
        verb = "goes" if len(spared) == 1 else "go"
        limit = f"at most {duration(worst)} late" if worst else "without a stall"
        lock = {row.extra.get("faults_lock", "VMA") for row in rows}
        reason = why_spared(victims, spared, lock.pop() if len(lock) == 1 else "")
        parts.append(f"{listed(spared)} {verb} on, {limit}{reason}")
    return "; ".join(parts) + "."


def held(rows: Sequence[TeardownOutcome], hold: Hold) -> str:
    """Say how the munmap held the lock."""
    alone = reach([row.exclusive_hold_ns or 0 for row in rows])
    if hold == "exclusive":
        return f"munmap holds the lock exclusively for {alone}"
    if hold == "range":
        return f"munmap holds what covers its own range, and nothing else, for {alone}"
    if hold == "brief":
        return f"munmap holds the lock exclusively for {alone} and zaps without it"
    shared = reach([row.shared_hold_ns or 0 for row in rows])
    return f"munmap holds it exclusively for {alone} only, then shared for {shared}"


def reach(values: Sequence[int]) -> str:
    """Say the greatest of some durations, or both ends where they are far apart."""
    least, most = min(values), max(values)
    return duration(most) if most <= 1.5 * least else f"{duration(least)} to {duration(most)}"


def why(hold: Hold, victims: Sequence[str]) -> str:
    """Name the cause of stalls."""
    if hold == "range":
        return ", since what that needs overlaps, or queues behind what overlaps"
    if hold != "shared":
        return ", since nobody else may have the lock"
    writers = [name for name in victims if name in WRITERS]
    readers = [name for name in victims if name not in WRITERS]
    if not writers or not readers:
        return ", since a writer waits for every reader" if writers else ""
    return (
        f": {listed(writers)} queues as a writer behind the shared hold, and {listed(readers)} "
        f"{'queues' if len(readers) == 1 else 'queue'} behind {listed(writers)} (a convoy)"
    )


def why_spared(victims: Sequence[str], spared: Sequence[str], faults_lock: str = "VMA") -> str:
    """Say why somebody is spared although a convoy stands there; "": for several reasons."""
    if faults_lock and "fault" in spared and any(name in WRITERS for name in victims):
        what = "nothing" if faults_lock == "nothing" else f"their {faults_lock} only"
        return f", since page faults lock {what}"
    return ""


def others_costs(comparison: Comparison, row: TeardownOutcome) -> str:
    """Say why a row that was measured here is not to be laid beside simulated ones, if it isn't."""
    from zaplock.lab.profiles import THIS_MACHINE

    name = comparison.profile.name
    if name == THIS_MACHINE or not row.design.startswith("this kernel"):
        return ""
    return (
        f" (The designs above have the costs of {name}, so the two differ: `zaplock calibrate` "
        "measures this machine's, and compare takes them from then on.)"
    )


def measured_sentence(row: TeardownOutcome) -> str:
    """Say what the kernel at hand really did."""
    victims = stalled(row)
    beside = f"beside {listed(row.bystanders)} " if row.bystanders else ""
    name = row.design[:1].upper() + row.design[1:]
    took = f"{name}, measured {beside}({row.note}): munmap took {duration(row.munmap_ns)}"
    if not victims:
        worst = max((one.max_ns for one in row.stalls.values()), default=0)
        return f"{took}; nobody stalled for longer than {duration(worst)}."
    worst = max(row.stalls[name].max_ns for name in victims)
    return f"{took}; {listed(victims)} stalled for up to {duration(worst)}."


def hold_of(row: TeardownOutcome) -> Hold:
    """Return how the lock was held for the most part; "brief": for less than half of the time."""
    exclusive_ns, shared_ns = row.exclusive_hold_ns or 0, row.shared_hold_ns or 0
    if shared_ns > exclusive_ns:
        return "shared"
    worked_ns = row.munmap_ns - row.waited_ns
    return "brief" if 0 < exclusive_ns + shared_ns < worked_ns // 2 else "exclusive"


def told_hold(row: TeardownOutcome) -> Hold:
    """Return how the hold is told: of a range, where that is all that munmap locks."""
    return "range" if row.extra.get("munmap_locks") == "range" else hold_of(row)


def stalled(row: TeardownOutcome) -> list[str]:
    """Name the bystanders whose worst stall is at least half of the hold, and can be felt."""
    known = row.exclusive_hold_ns is not None or row.shared_hold_ns is not None
    hold_ns = (row.exclusive_hold_ns or 0) + (row.shared_hold_ns or 0) if known else row.munmap_ns
    least_ns = max(FELT_NS if hold_of(row) == "brief" else 1, hold_ns // 2)
    return [name for name in row.bystanders if row.stalls[name].max_ns >= least_ns]


def listed(names: Iterable[str]) -> str:
    """Join names as a sentence does.

    >>> listed(["fault", "proc", "mmap"])
    'fault, proc and mmap'
    """
    *most, last = list(names)
    return f"{', '.join(most)} and {last}" if most else last


def run_of(names: Sequence[str], order: Sequence[str]) -> str:
    """Join designs; three or more neighbours in the order of kernels become a range.

    >>> run_of(["a", "b", "c", "e"], ["a", "b", "c", "d", "e"])
    'a to c and e'
    """
    places = sorted(order.index(name) for name in names)
    parts = []
    for _, group in groupby(enumerate(places), key=lambda pair: pair[1] - pair[0]):
        run = [order[place] for _, place in group]
        parts += [f"{run[0]} to {run[-1]}"] if len(run) > 2 else run
    return listed(parts)
