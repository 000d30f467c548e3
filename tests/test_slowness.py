"""Why a holder was slow: on a cpu, without one, throttled, asleep on what, or not known."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from scenes import MM, MS

from zaplock.cli import main
from zaplock.recorder import control_groups, quota_watch
from zaplock.trace import recording_file
from zaplock.trace.analysis import Analysis, analyse
from zaplock.trace.events import EventKind, Events
from zaplock.trace.handwritten import Log
from zaplock.trace.hold_time import HoldTime
from zaplock.trace.quota_readings import QuotaReading
from zaplock.trace.quotas import Quotas, quotas
from zaplock.trace.sleep_reasons import NOT_KNOWN, VMA_LOCK, reason_of
from zaplock.trace.stack_reasons import StackReason
from zaplock.trace.stacks import KERNEL, NamedAddress, StackRow, in_order
from zaplock.trace.summary import summarise
from zaplock.views.report_json import report_json
from zaplock.views.sentences import answer

HOLDER, WAITER, DB = 101, 102, 100
GONE, BACK, WOKEN = EventKind.SCHED_OUT, EventKind.SCHED_IN, EventKind.WAKEUP


def story(*sched: tuple[int, EventKind, int], released: int | None = 100) -> Events:
    """A hold from 0 to 100 ms of one task, and what its scheduler did meanwhile (in ms)."""
    log = Log()
    log.task(HOLDER, "free", DB, "db")
    log.task(WAITER, "alloc", DB, "db")
    log.owner(MM, DB)
    log.asked(1, tid=HOLDER, mm=MM, write=True)
    log.acquired(2, tid=HOLDER, mm=MM, write=True)
    log.asked(3, tid=WAITER, mm=MM, write=True)
    for at_ms, kind, detail in sched:
        log.add(at_ms * MS, kind, HOLDER, detail=detail)
    if released is not None:
        log.released(released * MS, tid=HOLDER, mm=MM, write=True)
        log.acquired(released * MS + 10, tid=WAITER, mm=MM, write=True)
        log.released(released * MS + 20, tid=WAITER, mm=MM, write=True)
        log.add(released * MS + 30, GONE, HOLDER, detail=1)
    else:
        log.add(110 * MS, WOKEN, WAITER)
    return log.events()


def spent(analysis: Analysis) -> HoldTime:
    holds = analysis.holds
    found = analysis.hold_time(int(np.argmax(holds["hold_ns"])))
    assert found.whole_ns == int(holds["hold_ns"].max())
    return found


def in_ms(found: HoldTime) -> tuple[int, int, int, int]:
    values = (found.on_cpu_ns, found.preempted_ns, found.asleep_ns, found.unknown_ns)
    return tuple(round(value / MS) for value in values)  # type: ignore[return-value]


def test_a_hold_that_was_never_interrupted_was_on_a_cpu() -> None:
    assert in_ms(spent(analyse(story()))) == (100, 0, 0, 0)


def test_without_a_cpu_and_asleep_are_told_apart() -> None:
    events = story((10, GONE, 0), (40, BACK, 0), (50, GONE, 2), (70, WOKEN, 0), (75, BACK, 0))
    assert in_ms(spent(analyse(events))) == (45, 35, 20, 0)


def test_a_return_that_was_not_seen_makes_the_time_since_unknown() -> None:
    assert in_ms(spent(analyse(story((10, GONE, 0), (60, GONE, 0), (80, BACK, 0))))) == (
        30, 20, 0, 50,
    )  # fmt: skip
    assert in_ms(spent(analyse(story((30, GONE, 0))))) == (30, 0, 0, 70)


def test_a_sleep_that_goes_on_is_a_sleep() -> None:
    assert in_ms(spent(analyse(story((30, GONE, 2), released=None)))) == (30, 0, 80, 0)


def test_of_a_stranger_and_without_scheduling_nothing_is_known() -> None:
    events = story((10, GONE, 0), (40, BACK, 0))
    stranger = Events(events.columns, events.operations, events.tasks, {MM: 999})
    assert in_ms(spent(analyse(stranger))) == (0, 0, 0, 100)
    bare = events["kind"] <= EventKind.RELEASED
    columns = {name: column[bare] for name, column in events.columns.items()}
    without = Events(columns, events.operations, events.tasks, events.mms)
    assert in_ms(spent(analyse(without))) == (0, 0, 0, 100)


def account(*readings: tuple[int, int]) -> Quotas:
    """A group of 10 ms in 100 ms: (at ms, throttled so far in ms)."""
    rows = [
        QuotaReading(at * MS, "/box", 10 * MS, 100 * MS, throttled * MS, 0)
        for at, throttled in readings
    ]
    return quotas(rows, {DB: ("/box",)})


@pytest.mark.parametrize(
    ("kernel", "throttled"), [("6.1.37", 80), ("6.12.9", 80), ("6.18.0", 0), ("", 0)]
)
def test_a_gap_is_throttling_where_the_groups_account_grew_and_the_kernel_does_such_a_thing(
    kernel: str, throttled: int
) -> None:
    events = story((5, GONE, 0), (95, BACK, 0))
    found = spent(analyse(events, kernel, quotas=account((0, 500), (20, 500), (120, 580))))
    assert round(found.throttled_ns / MS) == throttled
    assert round(found.preempted_ns / MS) == 90 - throttled


def test_an_account_that_grew_before_or_after_throttled_nothing() -> None:
    events = story((50, GONE, 0), (60, BACK, 0))
    grown = account((0, 0), (20, 90), (40, 90), (70, 90), (120, 180))
    assert spent(analyse(events, "6.1", quotas=grown)).throttled_ns == 0


def test_the_report_says_what_follows() -> None:
    events = story((2, GONE, 0), (99, BACK, 0))
    quota = account((0, 0), (120, 97))
    told = "\n".join(answer(summarise(analyse(events, "6.1.37", quotas=quota))))
    assert "97 ms of 100 ms its container had no CPU left: raise cpu.max of /box" in told
    assert "(now 10000 100000), or move to Linux 6.18" in told
    (hold,) = report_json(analyse(events, "6.1.37", quotas=quota), top=1)["holds"]
    assert hold["time"]["throttled_ns"] == 97 * MS
    assert [line[:29] for line in hold["why_slow"]] == ["97 ms of 100 ms its container"]
    told = "\n".join(answer(summarise(analyse(events, "6.18.1", quotas=quota))))
    assert "97 ms of 100 ms it was ready and others had the CPUs" in told
    assert "container" not in told


def test_the_stack_says_what_it_slept_on() -> None:
    events = story((10, GONE, 2), (90, BACK, 0))
    names = {(KERNEL, 1): NamedAddress("schedule"), (KERNEL, 2): NamedAddress("__vma_start_write")}
    row = StackRow(10 * MS + 50, DB, HOLDER, StackReason.SLEEPS, (1, 2), ())
    found = spent(analyse(events, stacks=in_order([row], names)))
    assert found.asleep == ((VMA_LOCK, 80 * MS),)
    assert spent(analyse(events)).asleep == ((NOT_KNOWN, 80 * MS),)


@pytest.mark.parametrize(
    ("stack", "reason"),
    [
        ("schedule rwsem_down_write_slowpath vma_start_write.part.0 mprotect_fixup", VMA_LOCK),
        ("schedule io_schedule folio_wait_bit_common filemap_fault do_fault",
         "a file's pages (I/O)"),
        ("schedule io_schedule folio_wait_bit_common __folio_lock mlock_folio", "I/O"),
        ("io_schedule shrink_folio_list shrink_lruvec try_to_free_pages", "memory reclaim"),
        ("schedule rwsem_down_write_slowpath down_write unlink_file_vma free_pgtables",
         "a file's i_mmap lock or an anon_vma's"),
        ("schedule kmem_cache_alloc dup_mmap", ""),
        ("schedule handle_userfault do_anonymous_page", "a userfaultfd monitor"),
        ("schedule something_new", ""),
    ],
)  # fmt: skip
def test_the_table_knows_why_the_kernel_sleeps(stack: str, reason: str) -> None:
    assert reason_of(tuple(stack.split())) == reason


def test_the_json_has_the_parts_and_they_add_up() -> None:
    events = story((10, GONE, 0), (40, BACK, 0), (50, GONE, 2), (70, WOKEN, 0), (75, BACK, 0))
    hold = report_json(analyse(events), top=1)["holds"][0]
    parts = dict(hold["time"])
    asleep = sum(parts.pop("asleep_ns").values())
    assert sum(parts.values()) + asleep == hold["hold_ns"]


@contextlib.contextmanager
def box(quota_us: int) -> Iterator[Path]:
    """A cgroup with a quota; skipped where none can be made."""
    where = control_groups.hierarchy("cpu")
    if where is None:
        pytest.skip("no cpu controller of cgroups on this machine")
    root, controller = where
    folder = root / f"zaplock-test-{os.getpid()}"
    try:
        folder.mkdir()
        if controller:
            (folder / "cpu.cfs_quota_us").write_text(str(quota_us))
        else:
            (folder / "cpu.max").write_text(f"{quota_us} 100000")
    except OSError as error:
        pytest.skip(f"no cgroup with a quota can be made here: {error}")
    try:
        yield folder
    finally:
        for _ in range(50):
            with contextlib.suppress(OSError):
                folder.rmdir()
                break
            time.sleep(0.1)


BUSY = r"""
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
int main(void) {
  size_t n = 150UL << 20;
  for (int i = 0; i < 6; i++) {
    char *p = mmap(0, n, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    madvise(p, n, MADV_NOHUGEPAGE);
    memset(p, 1, n);
    munmap(p, n);
  }
}
"""


@pytest.mark.root
def test_a_box_with_a_quota_is_told_with_every_hold_adding_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "busy.c").write_text(BUSY)
    build = ["gcc", "-O1", "-o", "busy", "busy.c"]
    subprocess.run(build, cwd=tmp_path, check=True)
    path = tmp_path / "a.zaplock"
    with box(30_000) as folder:
        enter = f"echo $$ > {folder}/cgroup.procs; exec {tmp_path}/busy"
        assert main(["record", "-o", str(path), "--", "sh", "-c", enter]) == 0
    recording = recording_file.read(path)
    told = recording_file.read_quotas(path)
    assert told is not None
    (name,) = told.accounts
    assert name == f"/{folder.name}"
    assert told.accounts[name].quota_ns == 30 * MS
    assert bool(
        (told.accounts[name].throttled_ns[1:] >= told.accounts[name].throttled_ns[:-1]).all()
    )
    analysis = analyse(recording.events, recording.manifest.kernel, quotas=told)
    for row in range(len(analysis.holds)):
        found = analysis.hold_time(row)
        assert found.whole_ns == int(analysis.holds["hold_ns"][row])
        parts = (found.on_cpu_ns, found.preempted_ns, found.throttled_ns, found.unknown_ns)
        assert min(parts) >= 0
    capsys.readouterr()
    assert main(["report", str(path), "--json", "--top", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["holds"][0]["time"]["on_cpu_ns"] > 0


def test_both_versions_of_the_cpu_controller_are_read(tmp_path: Path) -> None:
    one, two, free = tmp_path / "one", tmp_path / "two", tmp_path / "free"
    for folder in (one, two, free):
        folder.mkdir()
    (one / "cpu.cfs_quota_us").write_text("10000\n")
    (one / "cpu.cfs_period_us").write_text("100000\n")
    (one / "cpu.stat").write_text("nr_periods 5\nnr_throttled 3\nthrottled_time 7000000\n")
    (two / "cpu.max").write_text("10000 100000\n")
    (two / "cpu.stat").write_text("usage_usec 1\nnr_throttled 3\nthrottled_usec 7000\n")
    (free / "cpu.max").write_text("max 100000\n")
    (free / "cpu.stat").write_text("usage_usec 1\n")
    for group in ("/one", "/two"):
        found = quota_watch.reading(tmp_path, group, 9)
        assert found == QuotaReading(9, group, 10 * MS, 100 * MS, 7 * MS, 3)
    assert quota_watch.reading(tmp_path, "/free", 9) is None
    assert quota_watch.reading(tmp_path, "/gone", 9) is None
