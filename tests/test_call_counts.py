"""Calls x time x bytes, also of calls that take no mmap_lock."""

from __future__ import annotations

from io import StringIO

from rich.console import Console

from zaplock.trace.analysis import analyse
from zaplock.trace.call_counts import CallCount, call_counts
from zaplock.trace.events import EventKind
from zaplock.trace.handwritten import Log
from zaplock.trace.madvise import NOT_SEEN, advised
from zaplock.trace.summary import summarise
from zaplock.views.report_json import report_json
from zaplock.views.report_text import report_text
from zaplock.views.sentences import answer

MS, MIB = 1_000_000, 1 << 20


def allocator() -> Log:
    """An allocator gives 4 MiB back again and again, under its VMA's lock; once it maps memory."""
    log = Log()
    log.task(1, "main", 1, "allocator")
    log.task(2, "jemalloc_bg_thd", 1, "allocator")
    for nth in range(100):
        start = (10 + 10 * nth) * MS
        log.begin(start, tid=2, op="madvise", address=nth << 22, length=4 * MIB, detail=4)
        log.end(start + 3 * MS, tid=2, op="madvise")
    log.begin(1_100 * MS, tid=1, op="mmap", length=MIB)
    log.asked(1_100 * MS + 1, tid=1, mm=7, write=True)
    log.acquired(1_100 * MS + 2, tid=1, mm=7, write=True)
    log.released(1_101 * MS, tid=1, mm=7, write=True)
    log.end(1_101 * MS + 1, tid=1, op="mmap")
    log.add(1_102 * MS, EventKind.FAULT_BEGIN, 1, address=4096)
    log.begin(1_103 * MS, tid=1, op="exit_group")
    return log


def test_calls_without_the_lock_are_counted() -> None:
    storm, mapped, *rest = call_counts(analyse(allocator().events(), "6.18"))
    assert storm == CallCount(
        "madvise(MADV_DONTNEED)", 1, 100, 300 * MS, 3 * MS, 400 * MIB, without_lock=100
    )
    assert (mapped.operation, mapped.count, mapped.without_lock) == ("mmap", 1, 0)
    assert [(one.operation, one.count, one.total_ns) for one in rest] == [
        ("exit_group", 1, None),
        ("page fault", 1, None),
    ]


def test_they_are_told_although_nobody_waited() -> None:
    analysis = analyse(allocator().events(), "6.18")
    summary = summarise(analysis)
    said = (
        "Most time in calls: allocator (pid 1) made 100 madvise(MADV_DONTNEED) of 400 MiB in all, "
        "300 ms together, 100 of them without the mmap_lock."
    )
    assert said in list(answer(summary))
    console = Console(width=160, record=True, file=StringIO())
    console.print(report_text(summary, top=10))
    assert "madvise(MADV_DONTNEED)    100  300 ms" in console.export_text()
    told = report_json(analysis, top=10)["calls"][0]
    assert (told["operation"], told["length"]) == ("madvise(MADV_DONTNEED)", 400 * MIB)
    assert told["process"] == "allocator (pid 1)"


def test_absurd_lengths_and_recordings_without_calls() -> None:
    log = Log()
    log.begin(1, tid=1, op="munmap", length=(1 << 63) - 1)
    log.begin(3, tid=1, op="munmap", length=-1)
    log.end(4, tid=1, op="munmap")
    (count,) = call_counts(analyse(log.events(), ""))
    assert (count.count, count.length) == (2, 1 << 47)
    assert call_counts(analyse(Log().events(), "")) == ()


def test_an_advice_that_nobody_saw_is_not_called_unknown() -> None:
    log = Log()
    log.task(1, "app", 1)
    for nth, detail in enumerate((NOT_SEEN, 99)):
        log.begin(nth * MS, tid=1, op="madvise", detail=detail)
        log.end(nth * MS + 1_000, tid=1, op="madvise")
    calls = analyse(log.events(), "6.18.0").calls
    assert [calls.operations[op] for op in calls.op] == ["madvise", advised("madvise", 99)]
