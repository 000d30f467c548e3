"""The look at the beginning of a recording: what was already so, and with which address space."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

from zaplock.errors import UserError
from zaplock.recorder.beginning import Beginning
from zaplock.recorder.capture import Capture
from zaplock.recorder.shared_mm import share_mm
from zaplock.recorder.snapshot import Seen, TaskSnapshot, fuse_servers, look, sleeping_holders
from zaplock.recorder.targets import LearnedMm
from zaplock.trace.event_kinds import PAGE_FAULT
from zaplock.trace.kernel_functions import HALTED
from zaplock.trace.kernel_stacks import (
    has_mappers,
    may_have_a_vmas_lock,
    reads_a_page,
    waits_for_mappers,
)
from zaplock.trace.madvise import ADVISING
from zaplock.trace.recorded_tasks import FoundTask
from zaplock.trace.sleep_reasons import FUSE, VMA_LOCK, reason_of

MOST_PROCESSES = 8
"""Of a whole system so many processes in trouble are looked up, the earliest first."""

OUR_READ = "zaplock's own read of pagemap"


def first_look(capture: Capture) -> Beginning:
    """See what the tasks are doing now; just after events were let in.

    Where one process is recorded, of everybody else only those are kept that work on it, and those
    that are stuck (state D), since nothing may tell what for. Where our own read waits for the
    lock, kernel threads that have some process's lock are kept as well; where a holder waits for
    the lock of a file's mappings, those that may have that one.
    """
    learned = list(capture.learned.values())
    seen = _without_idle_mappers(look(capture.pids, hidden=[one.tid for one in learned]))
    if capture.pids:
        waits = any(one.waits for one in learned)
        kept = [
            one
            for one in (_of_target(one, capture.pids) for one in seen.seen)
            if _concerns(one, capture.pids) or (waits and one.task.does and not one.subject)
        ]
        seen = TaskSnapshot(tuple(kept), seen.whole)
    mms = {pid: one.mm for pid, one in capture.learned.items()}
    if not learned:
        mms, learned = _learn(capture, seen)
        in_trouble = {one.subject for one in seen.seen if one.task.does and one.subject}
        seen = TaskSnapshot(seen.seen, seen.whole and len(in_trouble) <= MOST_PROCESSES)
    stuck = {one.mm: one for one in learned if one.waits}
    seen = _with_holders(seen, mms, stuck, [one.tid for one in learned])
    lone = [one for mm, one in stuck.items() if not _explained(seen, mms, mm)]
    own = tuple(_ours(one, mms) for one in lone)
    hidden = {one.tid for one in learned} - {one.tid for one in lone}
    asked = {mm: one.asked_ns for mm, one in stuck.items()}
    seen = TaskSnapshot((*seen.seen, *own), seen.whole)
    return Beginning(seen, capture.on_ns, mms, asked, tuple(hidden))


def look_untraced(pids: set[int]) -> Beginning:
    """See what the tasks are doing with no event switched on; an `mm` is a number of ours then.

    Whoever has or wants some lock of which nothing tells whose is kept as well.
    """
    seen = _without_idle_mappers(look(pids))
    kept = [
        one
        for one in (_of_target(one, pids) for one in seen.seen)
        if _concerns(one, pids) or (one.task.does and not one.subject)
    ]
    mms = {pid: number for number, pid in enumerate(sorted(pids), 1)}
    asked = {
        one.subject: one.task.since_ns or one.task.time_ns
        for one in sorted(kept, key=lambda one: -one.task.since_ns)  # the earliest comes last
        if one.task.does == "waits" and one.subject in pids
    }
    stuck = {mms[pid]: LearnedMm(mms[pid], 0, at, threading.Event()) for pid, at in asked.items()}
    seen = _with_holders(TaskSnapshot(tuple(kept), seen.whole), mms, stuck, [])
    return Beginning(seen, time.monotonic_ns(), mms, {})


def _of_target(one: Seen, pids: set[int]) -> Seen:
    """Give a task of another process that shares a target's address space to that target."""
    if not one.task.does or one.pid in pids or one.subject != one.pid:
        return one
    target = next((pid for pid in pids if share_mm(one.pid, pid)), None)
    return one if target is None else replace(one, subject=target)


def _concerns(one: Seen, pids: set[int]) -> bool:
    if one.pid in pids or one.subject in pids:
        return True
    stuck = one.task.state == "D" and one.task.operation not in HALTED.values()
    return not one.task.does and (stuck or has_mappers(one.task.stack))


def _without_idle_mappers(seen: TaskSnapshot) -> TaskSnapshot:
    """Leave out who has the lock of a file's mappings, where no holder waits for such a lock."""
    if any(one.task.does == "holds" and waits_for_mappers(one.task.stack) for one in seen.seen):
        return seen
    kept = (one for one in seen.seen if one.task.does or not has_mappers(one.task.stack))
    return replace(seen, seen=tuple(kept))


def _learn(capture: Capture, seen: TaskSnapshot) -> tuple[dict[int, int], list[LearnedMm]]:
    """Learn the address spaces of those whose lock somebody waits for or has."""
    wanted = {one.subject: 0 for one in seen.seen if one.task.does == "waits" and one.subject}
    wanted |= {one.subject: 0 for one in seen.seen if one.task.does == "holds" and one.subject}
    if capture.pids:
        wanted = {pid: 0 for pid in wanted if pid in capture.pids}
    mms, learned = {}, []
    for pid in list(wanted)[:MOST_PROCESSES]:
        try:
            one = capture.learn(pid)
        except UserError:  # it has ended meanwhile
            continue
        mms[pid] = one.mm
        learned.append(one)
    return mms, learned


def _with_holders(
    seen: TaskSnapshot, mms: dict[int, int], stuck: dict[int, LearnedMm], hidden: list[int]
) -> TaskSnapshot:
    """Find who has the locks for which reads of ours wait, where the look didn't see it.

    It may be a stranger who sleeps. If it isn't, and one task alone has some lock of which nothing
    tells whose (khugepaged), or is in something that is done under the shared lock now and then (a
    page fault, an madvise that frees), it is that one.
    """
    lone = {pid for pid, mm in mms.items() if mm in stuck and not _explained(seen, mms, mm)}
    if lone:
        asleep = (_of_target(one, lone) for one in sleeping_holders(lone, hidden=hidden))
        found = [one for one in asleep if one.subject in lone]
        seen = replace(seen, seen=(*seen.seen, *found))
    for pid in lone:
        if seen.whole and not _explained(seen, mms, mms[pid]):
            may = [one for one in seen.seen if _may_have(one, pid, stuck[mms[pid]].asked_ns)]
            if len(may) == 1:
                having = _having(may[0], pid)
                seen = replace(seen, seen=(*(one for one in seen.seen if one not in may), having))
    drained = {one.subject for one in seen.seen if one.task.does and _waits_for_a_vma(one)}
    if any(reason_of(one.task.stack) == FUSE for one in seen.seen):
        known = {one.task.tid for one in seen.seen}
        servers = (one for one in fuse_servers() if one.task.tid not in known)
        seen = replace(seen, seen=(*seen.seen, *servers))
    told = tuple(one for one in seen.seen if _is_told(one) or _drains(one, drained))
    return replace(seen, seen=told)


def _is_told(one: Seen) -> bool:
    task = one.task
    return bool(task.does or task.operation or task.state == "D" or reads_a_page(task.stack))


def _waits_for_a_vma(one: Seen) -> bool:
    return reason_of(one.task.stack) == VMA_LOCK


def _drains(one: Seen, drained: set[int]) -> bool:
    """Say whether a holder may wait until this task lets go of a VMA's lock."""
    return one.subject in drained and may_have_a_vmas_lock(one.task.stack)


def _may_have(one: Seen, pid: int, asked_ns: int) -> bool:
    """Say whether a task may have the lock of a process, since before a read of ours asked for it.

    Whoever hasn't slept since then may have come later: of an madvise events will tell.
    """
    if one.task.does == "holds":
        return not one.subject
    slept = one.task.since_ns and one.task.since_ns <= asked_ns
    return one.perhaps and one.subject == pid and bool(slept or one.task.operation in ADVISING)


def _having(one: Seen, pid: int) -> Seen:
    operation = one.task.operation or PAGE_FAULT
    exclusive = one.task.exclusive and not one.perhaps
    task = replace(one.task, does="holds", exclusive=exclusive, operation=operation)
    return replace(one, task=task, subject=pid)


def _explained(seen: TaskSnapshot, mms: dict[int, int], mm: int) -> bool:
    """Say whether somebody was found who has this lock."""
    return any(one.task.does == "holds" and mms.get(one.subject) == mm for one in seen.seen)


def _ours(learned: LearnedMm, mms: dict[int, int]) -> Seen:
    """Tell of our own read that waits for a lock of which nobody was found to have it."""
    pid = next(pid for pid, mm in mms.items() if mm == learned.mm)
    task = FoundTask(
        learned.tid,
        learned.asked_ns,
        "D",
        "",
        OUR_READ,
        (),
        does="waits",
        since_ns=learned.asked_ns,
    )
    return Seen(task, 0, pid)
