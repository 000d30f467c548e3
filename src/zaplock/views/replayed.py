"""A replay on the terminal: its own error first, then the table, then who would have waited less.

Every sentence is computed from the figures. Waits under `QUEUED_NS` are called none: a lock
operation and a wake-up take as long.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from zaplock.linux_version import LinuxVersion, find
from zaplock.replay.replay import MOST_ERROR
from zaplock.trace.analysis import Analysis, analyse
from zaplock.trace.events import Events
from zaplock.trace.summary import NO_OPERATION, QUEUED_NS, thread_name
from zaplock.units import duration, size
from zaplock.views.outcomes import listed, run_of
from zaplock.views.panels import PageText, Panel, explained, panel
from zaplock.views.timeline import draw

if TYPE_CHECKING:
    from zaplock.replay.replay import Replay, ReplayRun
    from zaplock.views.grid import Grid

KINDS_SHOWN = 4
WAITS_TOLD = 3
WORTH_TELLING = 0.01
"""What share of the recorded waiting the wait for CPUs must be to be told."""
ALIKE = 0.1
"""Waits that differ by less than this share are told as one."""


def title(replay: Replay) -> str:
    """Say what was replayed."""
    plan = replay.plan
    names = [task.process or task.comm for task in plan.tasks.values() if task.pid == plan.pid]
    who = f"{names[0]} (pid {plan.pid})" if names else f"mm {plan.mm:#x}"
    return (
        f"{len(replay.operations)} operations of {len(plan.threads)} threads on the mmap_lock of "
        f"{who}, {duration(plan.duration_ns)} of {replay.analysis.kernel or 'a recording'}"
    )


def fit_sentence(replay: Replay) -> str:
    """Say how well the replay does what the recording did."""
    fit = replay.fit
    limit = duration(QUEUED_NS)
    if not fit.operations and any(one.waited_ns >= QUEUED_NS for one in replay.operations):
        return (
            f"Replayed under {replay.recorded.name} as recorded. None of the recorded waits of "
            f"{limit} or longer was seen from its beginning to its end with its holder, so the "
            "replay's own error can't be told."
        )
    if not fit.operations:
        return (
            f"Replayed under {replay.recorded.name} as recorded: nobody waits {limit} or longer, "
            "as in the recording."
        )
    counted = f"{fit.operations} operation{'s' if fit.operations != 1 else ''}"
    no_cpu = ""
    if fit.no_cpu_ns >= WORTH_TELLING * fit.recorded_ns:
        no_cpu = (
            f" {duration(fit.no_cpu_ns)} of the recorded waiting passed with the lock free: the "
            "waiter had no CPU yet, and has none for as long in every replay in which it waits."
        )
    return (
        f"The replay's own error, under {replay.recorded.name} as recorded: "
        f"{counted} waited {limit} or longer, {duration(fit.recorded_ns)} in all "
        f"in the recording and {duration(fit.replayed_ns)} in the replay "
        f"({round(100 * fit.sum_error, 1) + 0.0:+.1f} %); "
        f"the longest {duration(fit.longest_recorded_ns)} and {duration(fit.longest_replayed_ns)}; "
        "a single wait is off by "
        f"{100 * fit.typical_error:.1f} % in the middle, by {duration(fit.worst_ns)} at worst."
        f"{no_cpu}"
    )


def remarks(replay: Replay) -> list[str]:
    """Say what the recording lacks."""
    said = [*replay.analysis.caveats, *([f"{replay.note}."] if replay.note else [])]
    if replay.plan.lost_events:
        said.append(
            f"The recording lacks {replay.plan.lost_events} events, so some operations are missing "
            "here."
        )
    if replay.linked:
        said.append(
            f"{replay.linked} operations begin when another thread, which the recording shows to "
            "have let them begin, has come so far."
        )
    if replay.plan.left_out:
        said.append(
            f"Left out: {replay.plan.left_out} asks that got no lock (killed waits, failed "
            "trylocks)."
        )
    unknown = replay.unknown_holders
    if unknown:
        waited_ns = sum(replay.operations[row].waited_ns for row in unknown)
        said.append(
            f"In {len(unknown)} of the recorded waits, {duration(waited_ns)} in all, the recording "
            "does not show who held the lock: the replays lack those holds, and so those waits."
        )
    if any(one.waited_ns >= QUEUED_NS for one in replay.operations) and not replay.fit.sound:
        said.append(f"WARNING: {_unsound(replay)}: the rows below prove nothing.")
    return said


def table(replay: Replay) -> Grid:
    """Draw a row for the recording and one for each run."""
    from zaplock.views.grid import Grid, figure, words

    shown = waiting_kinds(replay)
    kinds = [figure(name, rank=at) for at, name in enumerate(shown)]
    rows: list[list[str] | None] = [["recorded", "", *cells(replay, None, shown)], None]
    rows += [[run.design.name, str(run.way), *cells(replay, run, shown)] for run in replay.runs]
    holds = (figure("exclusive"), figure("shared", rank=1))
    columns = (words("design"), words("freed by"), *holds, *kinds, figure("all waits"))
    return Grid(columns, rows, "longest holds, and the longest wait of each")


def waiting_kinds(replay: Replay) -> list[str]:
    """Name the kinds of operations that wait in the recording or in any run, a few of them."""
    runs: list[ReplayRun | None] = [None, *replay.runs]
    waits = [
        kind
        for kind in replay.kinds
        if max(replay.worst_ns(run, kind) for run in runs) >= QUEUED_NS
    ]
    return waits[:KINDS_SHOWN]


def cells(replay: Replay, run: ReplayRun | None, kinds: Sequence[str]) -> list[str]:
    """Write the figures of one run, or of the recording (None)."""
    if run is None:
        holds, waited = replay.recorded_holds, sum(one.waited_ns for one in replay.operations)
    else:
        holds = run.longest_exclusive_ns, run.longest_shared_ns
        waited = run.waited_ns
    worst = [replay.worst_ns(run, kind) for kind in kinds]
    return [duration(span) if span else "-" for span in (*holds, *worst, waited)]


def sentences(replay: Replay) -> list[str]:
    """Tell what would have become of the longest recorded waits, and which run waits least.

    Nothing is concluded from a replay that doesn't do what the recording did.
    """
    order = sorted(range(len(replay.operations)), key=lambda row: -replay.operations[row].waited_ns)
    told = [row for row in order[:WAITS_TOLD] if replay.operations[row].waited_ns >= QUEUED_NS]
    if not told:
        return [f"Nobody waited {duration(QUEUED_NS)} or longer: there is nothing to cure."]
    said = Counter(wait_sentence(replay, row) for row in told)
    return [*(_once(line, times, len(told)) for line, times in said.items()), best_sentence(replay)]


def _once(line: str, times: int, of: int) -> str:
    """Say once what is true of several waits."""
    others = "another" if times == 2 else f"{times - 1} others"
    return line if times == 1 else f"{line} The same is true of {others} of the {of} longest waits."


def wait_sentence(replay: Replay, row: int) -> str:
    """Tell what one wait would have been under each design and way, or why that can't be told.

    A wait of a foreign reader is named by its thread, any other by its thread and call.
    """
    one = replay.operations[row]
    call = "" if one.name == NO_OPERATION else f" in {one.name}"
    who = f"{thread_name(replay.plan.tasks, one.tid)}{call}"
    wait = f"The {duration(one.waited_ns)} wait of {who}"
    if not replay.holder_known(row):
        return (
            f"{wait}: who held the lock is not in the recording, so no replay can tell what it "
            "would have been."
        )
    if not replay.reproduced(row):
        base = replay.runs[0]
        instead = at_least(replay.near(row, base))
        return (
            f"{wait}{culprit(replay, one.wait)} is {instead} in the replay under "
            f"{base.design.name} itself, so nothing can be told of it under others."
        )
    would = [(run, replay.near(row, run)) for run in replay.runs]
    return f"{wait}{culprit(replay, one.wait)} would have been {grouped(would)}."


def culprit(replay: Replay, wait: int) -> str:
    """Name whom a recorded wait was behind."""
    found = replay.analysis.explain(wait).culprit if wait >= 0 else None
    if found is None:
        return ""
    of = f" of {size(found.length)}" if found.length > 0 else ""
    what = f"{found.operation}{of} by " if found.operation else ""
    return f" behind {what}{thread_name(replay.plan.tasks, found.tid)}"


def label(run: ReplayRun) -> str:
    """Name a run: its design, and the way of freeing where it isn't the recorded one."""
    return run.design.name if run.way.name == "munmap" else f"{run.design.name} with {run.way}"


def grouped(would: Sequence[tuple[ReplayRun, int]]) -> str:
    """Join runs with their waits, those that wait alike as one, the longest first."""
    groups: list[tuple[int, list[ReplayRun]]] = []
    for run, wait_ns in sorted(would, key=lambda pair: -pair[1]):
        alike = groups and (wait_ns >= groups[-1][0] * (1 - ALIKE) or groups[-1][0] < QUEUED_NS)
        if alike:
            groups[-1][1].append(run)
        else:
            groups.append((wait_ns, [run]))
    return "; ".join(f"{at_least(wait_ns)} {named(runs, would)}" for wait_ns, runs in groups)


def at_least(wait_ns: int) -> str:
    """Write a wait, or that there was none to speak of."""
    return duration(wait_ns) if wait_ns >= QUEUED_NS else f"under {duration(QUEUED_NS)}"


def named(runs: Sequence[ReplayRun], all_: Sequence[tuple[ReplayRun, int]]) -> str:
    """Name runs: the designs with the recorded way of freeing, then each other way with its own."""
    kernels = {run.design.name: release(run.design.kernel) for run, _ in all_}
    order = sorted(kernels, key=lambda name: kernels[name])
    designs_of: dict[str, list[str]] = {}
    for run in runs:
        way = "" if run.way.name == "munmap" else f"{run.way} "
        designs_of.setdefault(way, []).append(run.design.name)
    ways_of: dict[str, list[str]] = {}
    for way in sorted(designs_of):
        ways_of.setdefault(run_of(designs_of[way], order), []).append(way.strip())
    parts = []
    for designs, ways in ways_of.items():
        if not ways[0]:
            parts.append(f"under {designs}")
        others = [way for way in ways if way]
        if others:
            there = "there" if not ways[0] else f"under {designs}"
            parts.append(f"with {listed(others)} {there}")
    return listed(parts)


def release(kernel: str) -> LinuxVersion:
    """Return a kernel's version, to sort by; what only stands on it sorts beside it."""
    return find(kernel) or LinuxVersion(0, 0)


def decided_sentence(replay: Replay) -> str:
    """Name the changes of Linux that made the recorded kernel's locking what was replayed."""
    base = replay.runs[0]
    rows = [f"{one.since} {one.commit or one.subject}" for one in base.decided_by]
    said = f"{base.design.name} is decided by " + (", ".join(rows) or "nothing newer than 4.9")
    return f"{said} (zaplock designs 4.9 {base.design.kernel} tells of them)."


def best_sentence(replay: Replay) -> str:
    """Say which designs and ways leave the least waiting, against the recorded kernel's."""
    base = replay.runs[0]
    if not replay.fit.sound:
        return f"No conclusion on all waiting: {_unsound(replay)}."
    waited = [(run, run.waited_ns) for run in replay.runs]
    least = min(total for _, total in waited)
    near = max(int(least / (1 - ALIKE)), QUEUED_NS)
    best = [run for run, total in waited if total <= near]
    if base in best:
        return "None of these spares much waiting in all."
    spared_ns, error_ns = base.waited_ns - least, replay.fit.error_ns
    if spared_ns <= error_ns:
        return (
            f"No conclusion on all waiting: {named(best, waited)} would spare "
            f"{duration(spared_ns)}, and the replay's own error is {duration(error_ns)}."
        )
    return (
        f"Least is waited {named(best, waited)}: {at_least(least)} in all instead of "
        f"{duration(base.waited_ns)}."
    )


def _unsound(replay: Replay) -> str:
    if not replay.fit.operations:
        return "the replay's own error can't be told"
    error, most = abs(replay.fit.sum_error), MOST_ERROR
    return f"the replay's own error is {100 * error:.1f} %, more than {100 * most:.0f} %"


def answer(replay: Replay) -> list[str]:
    """Say what the replay shows, how good it is, and what the recording lacks."""
    return [*sentences(replay), fit_sentence(replay), *remarks(replay)]


def ending(replay: Replay) -> tuple[str, str]:
    """Say what the replay stands on, and what it leaves out."""
    return decided_sentence(replay), LIMITS


LIMITS = (
    "Not replayed: what threads would have done sooner if they had waited less, and the VMA locks "
    "of the recorded mappings; see docs/replay.md."
)


def plot(replay: Replay, path: Path) -> None:
    """Draw the recording and each run around the longest recorded wait."""
    begin, end = _window(replay)
    events, at = _only(replay.analysis.events, replay.plan.mm), replay.plan.begin_ns
    cut = replay.analysis.segments
    # Its own end, too: what goes on there would end with its last event otherwise.
    span = int(cut.begin_ns[0]), int(cut.end_ns[-1])
    seen = analyse(events, replay.analysis.kernel, span=span)
    waited = duration(sum(one.waited_ns for one in replay.operations))
    recorded = panel(f"recorded, {waited} waited in all", seen, at + begin, at + end)
    recorded = replace(recorded, name="recorded")
    panels = [explained(recorded, seen, at + begin)]
    panels += [_of_run(run, begin, end) for run in replay.runs]
    title = f"replay of pid {replay.plan.pid}: holds and waits around the longest recorded wait"
    axis = f"time since {(at + begin - replay.analysis.begin_ns) / 1e9:.3f} s of the recording"
    title = " ".join((f"{title}.", *caveats)) if (caveats := replay.analysis.caveats) else title
    text = PageText((title, *answer(replay)), (table(replay),), ending(replay))
    draw(_same_lanes(panels), path, title=title, axis=axis, text=text)


def _window(replay: Replay) -> tuple[int, int]:
    worst = max(replay.operations, key=lambda one: one.waited_ns)
    margin = max(worst.waited_ns, 1_000_000)
    return max(0, worst.begin_ns - margin), worst.begin_ns + worst.waited_ns + margin


def _of_run(run: ReplayRun, begin: int, end: int) -> Panel:
    found: Analysis = analyse(run.events, run.design.kernel)
    waited = duration(run.waited_ns) if run.waited_ns >= QUEUED_NS else "nothing"
    one = panel(f"{label(run)}, {waited} waited in all", found, begin, end)
    return explained(replace(one, name=label(run)), found, begin)


def _same_lanes(panels: Sequence[Panel]) -> list[Panel]:
    """Give every panel the lanes that any of them has a bar in."""
    lanes = tuple(dict.fromkeys(bar.lane for one in panels for bar in one.bars))
    return [replace(one, lanes=lanes) for one in panels]


def _only(events: Events, mm: int) -> Events:
    """Leave the events of one mm's lock, and those of no lock."""
    kept = (events["mm"] == mm) | (events["mm"] == 0)
    rows = np.flatnonzero(kept)
    columns = {name: column[rows] for name, column in events.columns.items()}
    return Events(columns, events.operations, events.tasks, events.mms)
