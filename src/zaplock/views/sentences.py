"""Holds, waits and blame in plain sentences: what a report says before its tables."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from zaplock.trace.analysis import Analysis
from zaplock.trace.blame import Blame, Explained
from zaplock.trace.events import NO_OP
from zaplock.trace.holds import Holds
from zaplock.trace.manifest import Manifest
from zaplock.trace.summary import Summary, process_name, thread_name
from zaplock.trace.waits import WaitOutcome, Waits
from zaplock.units import duration, share, size
from zaplock.views.slow_holds import of_culprit, why_slow
from zaplock.views.stacks import of_wait, sentence

LONG_WAIT_NS = 1_000_000
"""From here on a wait is one that somebody may have noticed."""

CHAIN = 3
"""A chain of queued writers is followed so far."""


def heading(analysis: Analysis) -> str:
    """Say in one line what was recorded and what is missing."""
    lost = analysis.segments.lost_events
    none = "none known to be lost" if analysis.caveats else "none lost"
    losses = f"{lost:,} lost" if lost else none
    kernel = analysis.kernel or "an unknown kernel"
    span = duration(analysis.duration_ns)
    odd = analysis.holds.unmatched
    unmatched = f", {odd:,} unmatched" if odd else ""
    return f"{kernel}: {span}, {len(analysis.events):,} events, {losses}{unmatched}"


def made(about: Manifest) -> str:
    """Say when, where and of whom a recording was made, to lay it beside logs; "" if unknown."""
    if not about.started_at:
        return ""
    at = about.started_at.replace("T", " ").partition(".")[0].removesuffix("+00:00")
    where = f" on {about.host}" if about.host else ""
    whom = f": {about.target}" if about.target else ""
    return f"Recorded {at.removesuffix('Z')} UTC{where}{whom}."


def who(analysis: Analysis, tid: int) -> str:
    """Name a task."""
    return thread_name(analysis.events.tasks, tid)


def what(operation: str, length: int) -> str:
    """Name an operation and its size, such as 'munmap of 8 GiB'."""
    return f"{operation} of {size(length)}" if length > 0 else operation


def doing(table: Holds | Waits, row: int) -> str:
    """Name the operation that a hold or a wait belongs to, "" where none was recorded."""
    op = int(table["op"][row])
    return what("" if op == NO_OP else table.operations[op], int(table["length"][row]))


def _in(operation: str) -> str:
    return f" in {operation}" if operation else ""


def owner(analysis: Analysis, mm: int) -> str:
    """Name the process that an mm belongs to, by its pointer where it isn't known."""
    pid = analysis.events.mms.get(mm)
    if pid is None:
        return f"mm {mm:#x}"
    tasks = analysis.events.tasks
    return process_name(tasks, pid) if pid in tasks else f"pid {pid}"


def hold_sentence(analysis: Analysis, row: int, *, so_far: bool = False) -> str:
    """Say who held which lock, how, for how long and in what; `so_far`: it goes on."""
    holds = analysis.holds
    mode = "exclusively" if holds["exclusive"][row] else "shared"
    if holds["downgraded"][row]:
        mode += ", then downgraded," if holds["exclusive"][row] else " after a downgrade"
    whole = holds["complete"][row]
    seen = " so far" if so_far else "" if whole else " (seen in part)"
    early = int(holds["start_ns"][row]) <= analysis.recorded_ns
    least = "at least " if not whole and early else ""
    held = least + duration(int(holds["hold_ns"][row]))
    task = who(analysis, int(holds["tid"][row]))
    return f"{task} held it {mode} for {held}{seen}{_in(doing(holds, row))}"


def wait_sentence(analysis: Analysis, row: int) -> str:
    """Say who waited, for what and for how long."""
    waits = analysis.waits
    mode = "exclusively" if waits["exclusive"][row] else "shared"
    outcome = WaitOutcome(int(waits["outcome"][row]))
    ended = {
        WaitOutcome.ACQUIRED: "waited",
        WaitOutcome.KILLED: "was killed after waiting",
        WaitOutcome.WAITING: "is still waiting after",
    }[outcome]
    least = "at least " if waits["partial"][row] else ""
    span = least + duration(int(waits["wait_ns"][row]))
    task = who(analysis, int(waits["tid"][row]))
    lock = owner(analysis, int(waits["mm"][row]))
    return f"{task}{_in(doing(waits, row))} {ended} {span} for the lock of {lock}, {mode}"


def blame_sentence(analysis: Analysis, blame: Blame) -> str:
    """Say who is to blame, in which role."""
    name = (blame.comm and f"{blame.comm} (tid {blame.tid})") or f"tid {blame.tid}"
    task = f"{name}{_in(what(blame.operation, blame.length))}"
    if blame.vma:
        victim = who(analysis, int(analysis.holds["tid"][blame.row]))
        return f"{task}, which held a VMA's lock that the holder, {victim}, slept on"
    if blame.role == "queued-writer":
        return f"{task}, a writer queued in front"
    if blame.waited:
        return f"{task}, which was let in and had no cpu yet"
    if analysis.holds["exclusive"][blame.row]:
        return f"{task}, which held it exclusively"
    after = " after its downgrade" if analysis.holds["downgraded"][blame.row] else ""
    return f"{task}, which held it shared{after}"


def chain(analysis: Analysis, found: Explained, *, limit: int = 3, depth: int = 1) -> list[str]:
    """List who made a wait long, the greatest share first, following queued writers.

    The lines add up to the wait, but for what is less than a hundredth of it.
    """
    whole = int(analysis.waits["wait_ns"][found.wait])
    lines = []
    shares = found.shares.share_ns
    worth = max(int((shares * 100 >= whole).sum()), 1)
    told = found.first(min(worth, limit))
    for blame in told:
        part = f"{duration(blame.share_ns)} ({share(blame.share_ns, whole)})"
        lines.append(f"{part} behind {blame_sentence(analysis, blame)}")
        if blame.role == "queued-writer" and depth < CHAIN:
            behind = analysis.explain(blame.row)
            lines += ["  which itself waited: " + line for line in _first(analysis, behind, depth)]
    rest, rest_ns = len(shares) - len(told), int(shares[len(told) :].sum())
    if rest_ns * 100 >= whole and rest:
        others = "1 other" if rest == 1 else f"{rest:,} others"
        lines.append(f"{duration(rest_ns)} ({share(rest_ns, whole)}) behind {others}")
    return lines + _rest(found, whole)


def _rest(found: Explained, whole: int) -> list[str]:
    """Name what nobody explains, where it is more than a hundredth."""
    dark_ns = found.unexplained_ns - found.free_ns - found.unseen_ns
    lines = []
    if found.free_ns * 100 > whole:
        part = f"{duration(found.free_ns)} ({share(found.free_ns, whole)})"
        lines.append(f"{part} nobody had it: the next in line had no CPU yet")
    if found.unseen_ns * 100 > whole:
        part = f"{duration(found.unseen_ns)} ({share(found.unseen_ns, whole)})"
        lines.append(f"{part} not known: whoever had it took it before anything was recorded")
    if dark_ns * 100 > whole:
        lines.append(f"{duration(dark_ns)} ({share(dark_ns, whole)}) unexplained")
    return lines


def _first(analysis: Analysis, found: Explained, depth: int) -> list[str]:
    return chain(analysis, found, limit=1, depth=depth + 1)[:1]


def answer(summary: Summary) -> Iterator[str]:
    """Say the most important things about a recording, the most important first."""
    analysis = summary.analysis
    yield from _losses(analysis)
    yield _waits_in_one(summary)
    if summary.explained:
        worst = summary.explained[0]
        yield f"The worst: {wait_sentence(analysis, worst.wait)}:"
        yield from (f"    {line}" for line in chain(analysis, worst))
        yield from of_culprit(analysis, worst)
        yield from of_wait(analysis, worst)
        yield from _most_blamed(summary)
    for exclusive, name in ((True, "exclusive"), (False, "shared")):
        rows = np.flatnonzero(analysis.holds["exclusive"] == exclusive)
        if len(rows):
            longest = int(rows[np.argmax(analysis.holds["hold_ns"][rows])])
            yield f"The longest {name} hold: {hold_sentence(analysis, longest)}."
            yield from (f"    {line}" for line in why_slow(analysis, longest))
            if stack := analysis.hold_stack(longest):
                yield f"    it was {sentence(stack)}"
    yield from _most_time(summary)


def _most_time(summary: Summary) -> Iterator[str]:
    """Name the call in which most time was spent, whether it took an mmap_lock or not."""
    for most in summary.calls[:1]:
        if most.total_ns and most.total_ns >= LONG_WAIT_NS:
            bytes_ = f" of {size(most.length)} in all" if most.length else ""
            without = f", {most.without_lock or 0:,} of them without the mmap_lock"
            yield (
                f"Most time in calls: {process_name(summary.analysis.events.tasks, most.pid)} made "
                f"{most.count:,} {most.operation}{bytes_}, {duration(most.total_ns)} together"
                f"{without if most.without_lock else ''}."
            )


def _losses(analysis: Analysis) -> Iterator[str]:
    yield from analysis.caveats
    cut = analysis.segments
    if not cut.gaps:
        return
    lost_ns = sum(gap.end_ns - gap.start_ns for gap in cut.gaps)
    first = cut.gaps[0].start_ns - analysis.begin_ns
    yield (
        f"EVENTS ARE MISSING: at least {cut.lost_events:,} in {_gaps(len(cut.gaps))}, the first "
        f"{duration(first)} after the beginning, {duration(lost_ns)} in all. No hold and no wait "
        f"is made up across them."
    )


def _gaps(count: int) -> str:
    return "1 gap" if count == 1 else f"{count:,} gaps"


def _waits_in_one(summary: Summary) -> str:
    if not summary.analysis.sees_locks:
        return "Who waited for an mmap_lock is not known."
    if not summary.queued:
        if not summary.analysis.is_whole:
            return "No wait for an mmap_lock was recorded; of what is missing that is not known."
        return "Nobody waited for an mmap_lock in this recording."
    waited = summary.analysis.waits["wait_ns"]
    noticed = int((waited >= LONG_WAIT_NS).sum())
    total = duration(summary.waited_ns)
    return (
        f"{times(summary.queued)} a task queued for an mmap_lock, {total} in all; {noticed:,} of "
        f"these waits took {duration(LONG_WAIT_NS)} or more."
    )


def times(count: int) -> str:
    """Say how often, as one would."""
    return "Once" if count == 1 else f"{count:,} times"


def _most_blamed(summary: Summary) -> Iterator[str]:
    group = max(summary.by_operation, key=lambda group: group.caused_ns)
    if group.caused_ns:
        of = share(group.caused_ns, summary.explained_ns)
        count = len(summary.explained)
        what = "waiting" if count == summary.queued else f"of the {count:,} longest waits"
        yield f"Most {what} is due to {group.name}: {duration(group.caused_ns)}, {of} of it."
