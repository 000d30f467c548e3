"""The flight recorder's trigger: what fires it, across batches and gaps, in a made-up stream."""

import numpy as np
import pytest

from zaplock.recorder.flight import Trigger
from zaplock.trace.events import EVENT, EventKind

MS = 1_000_000
MM, OTHER = 0x1000, 0x2000

Row = tuple[float, EventKind, int, int, int]
"""Milliseconds, kind, tid, mm, write."""


def batch(*rows: Row) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    columns = {name: np.zeros(len(rows), EVENT[name]) for name in EVENT.names or ()}
    for number, (at_ms, kind, tid, mm, write) in enumerate(rows):
        columns["time_ns"][number] = int(at_ms * MS)
        columns["kind"][number], columns["tid"][number] = kind, tid
        columns["mm"][number], columns["write"][number] = mm, write
        columns["success"][number] = kind == EventKind.ACQUIRED
    return columns


def hold(at_ms: float, lasts_ms: float, tid: int = 7, mm: int = MM) -> list[Row]:
    return [
        (at_ms, EventKind.ASKED, tid, mm, 1),
        (at_ms, EventKind.ACQUIRED, tid, mm, 1),
        (at_ms + lasts_ms, EventKind.RELEASED, tid, mm, 1),
    ]


def test_a_long_hold_fires_and_a_short_one_does_not() -> None:
    trigger = Trigger(hold_ns=50 * MS)
    assert trigger.check(batch(*hold(0, 49)), 60 * MS) is None
    fired = trigger.check(batch(*hold(100, 51)), 200 * MS)
    assert fired is not None
    assert (fired.what, fired.tid, fired.start_ns, fired.lasted_ns) == (
        "hold",
        7,
        100 * MS,
        51 * MS,
    )
    assert fired.write


def test_the_two_parts_of_a_downgraded_hold_are_looked_at_apart() -> None:
    rows = [
        (0, EventKind.ACQUIRED, 7, MM, 1),
        (30, EventKind.ACQUIRED, 7, MM, 0),
        (60, EventKind.RELEASED, 7, MM, 0),
    ]
    assert Trigger(hold_ns=31 * MS).check(batch(*rows), 70 * MS) is None
    fired = Trigger(hold_ns=30 * MS).check(batch(*rows), 70 * MS)
    assert fired is not None
    assert (fired.start_ns, fired.write) == (0, True)


def test_a_hold_fires_before_it_ends_and_across_batches() -> None:
    trigger = Trigger(hold_ns=50 * MS)
    assert trigger.check(batch((0, EventKind.ACQUIRED, 7, MM, 1)), 20 * MS) is None
    assert trigger.check(batch(*hold(25, 1, tid=8, mm=OTHER)), 40 * MS) is None
    fired = trigger.check(batch(), 60 * MS)
    assert fired is not None
    assert (fired.tid, fired.lasted_ns) == (7, 60 * MS)


def test_a_wait_fires_only_where_waits_are_looked_for() -> None:
    rows = [
        (0, EventKind.ASKED, 9, MM, 0),
        (20, EventKind.ACQUIRED, 9, MM, 0),
        (21, EventKind.RELEASED, 9, MM, 0),
    ]
    assert Trigger(hold_ns=15 * MS).check(batch(*rows), 30 * MS) is None
    fired = Trigger(wait_ns=15 * MS).check(batch(*rows), 30 * MS)
    assert fired is not None
    assert (fired.what, fired.tid, fired.write) == ("wait", 9, False)


def test_a_failed_trylock_is_no_hold() -> None:
    failed = batch((0, EventKind.ACQUIRED, 7, MM, 1))
    failed["success"][:] = 0
    assert Trigger(hold_ns=1 * MS).check(failed, 100 * MS) is None


def test_nothing_is_made_up_across_a_gap() -> None:
    trigger = Trigger(hold_ns=50 * MS, wait_ns=50 * MS)
    assert trigger.check(batch((0, EventKind.ACQUIRED, 7, MM, 1)), 10 * MS) is None
    gap = batch((30, EventKind.LOST, 0, 0, 0), (90, EventKind.RELEASED, 7, MM, 1))
    assert trigger.check(gap, 95 * MS) is None


@pytest.mark.parametrize("seed", range(5))
def test_however_the_stream_is_cut_the_same_thing_fires(seed: int) -> None:
    random = np.random.default_rng(seed)
    rows: list[Row] = []
    for tid in range(4):
        at = 0.0
        while at < 1000:
            lasts = float(random.choice([0.1, 1, 5, 60], p=[0.5, 0.3, 0.19, 0.01]))
            rows += hold(at, lasts, tid=tid)
            at += lasts + float(random.uniform(0.1, 5))
    rows.sort(key=lambda row: row[0])
    whole = Trigger(hold_ns=50 * MS).check(batch(*rows), int(rows[-1][0] * MS))
    trigger, fired = Trigger(hold_ns=50 * MS), None
    for start in range(0, len(rows), 17):
        part = rows[start : start + 17]
        fired = trigger.check(batch(*part), int(part[-1][0] * MS))
        if fired:
            break
    assert (fired is None) == (whole is None)
    if fired and whole:
        assert (fired.tid, fired.start_ns) == (whole.tid, whole.start_ns)
