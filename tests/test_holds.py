"""What one task did with one mmap_lock, told by its events."""

from zaplock.trace.analysis import analyse
from zaplock.trace.gaps import segments
from zaplock.trace.handwritten import Log
from zaplock.trace.holds import Holds, holds
from zaplock.trace.waits import WaitOutcome, Waits, waits

MM = 0xFFFF888000001000
GIB = 1 << 30


def held(found: Holds) -> list[tuple[int, str, int, int]]:
    """Tell each hold as (tid, mode, start, end)."""
    modes = ["shared", "exclusive"]
    return [
        (int(tid), modes[int(exclusive)], int(start), int(end))
        for tid, exclusive, start, end in zip(
            found["tid"], found["exclusive"], found["start_ns"], found.end_ns
        )
    ]


def waited(found: Waits) -> list[tuple[int, int, int, str]]:
    return [
        (int(tid), int(start), int(end), WaitOutcome(outcome).name)
        for tid, start, end, outcome in zip(
            found["tid"], found["start_ns"], found.end_ns, found["outcome"]
        )
    ]


def take(log: Log, tid: int, asked: int, acquired: int, released: int, write: bool) -> None:
    log.asked(asked, tid=tid, mm=MM, write=write)
    log.acquired(acquired, tid=tid, mm=MM, write=write)
    log.released(released, tid=tid, mm=MM, write=write)


def test_a_munmap_downgrades_and_has_two_holds_without_a_gap() -> None:
    log = Log()
    log.begin(5, tid=1, op="munmap", address=0x7000_0000, length=8 * GIB)
    log.asked(10, tid=1, mm=MM, write=True)
    log.acquired(11, tid=1, mm=MM, write=True)
    log.downgraded(20, tid=1, mm=MM)
    log.released(90, tid=1, mm=MM, write=False)
    log.end(95, tid=1, op="munmap")
    found = holds(log.events())
    found.check()
    assert held(found) == [(1, "exclusive", 11, 20), (1, "shared", 20, 90)]
    assert found["downgraded"].tolist() == [True, True]
    assert found["length"].tolist() == [8 * GIB, 8 * GIB]
    assert found.frame()["operation"].to_list() == ["munmap", "munmap"]
    assert found.unmatched == 0


def test_the_downgrade_is_no_wait() -> None:
    log = Log()
    log.asked(10, tid=1, mm=MM, write=True)
    log.acquired(11, tid=1, mm=MM, write=True)
    log.downgraded(20, tid=1, mm=MM)
    log.released(90, tid=1, mm=MM, write=False)
    assert waited(waits(log.events())) == [(1, 10, 11, "ACQUIRED")]


def test_a_shared_hold_that_was_asked_for_is_no_downgrade() -> None:
    """The release of the exclusive hold is missing; the shared one was asked for, so it is new."""
    log = Log()
    log.asked(10, tid=1, mm=MM, write=True)
    log.acquired(11, tid=1, mm=MM, write=True)
    take(log, 1, 20, 21, 30, write=False)
    found = holds(log.events())
    assert held(found) == [(1, "shared", 21, 30)]
    assert not found["downgraded"].any()
    assert found.unmatched == 1


def test_a_failed_trylock_is_neither_hold_nor_wait() -> None:
    log = Log()
    log.asked(10, tid=1, mm=MM, write=False)
    log.acquired(11, tid=1, mm=MM, write=False, success=False)
    take(log, 1, 20, 25, 40, write=False)
    events = log.events()
    assert held(holds(events)) == [(1, "shared", 25, 40)]
    assert waited(waits(events)) == [(1, 20, 25, "ACQUIRED")]
    assert waits(events).failed_trylocks == 1


def test_a_killed_wait_is_a_wait_but_no_hold() -> None:
    log = Log()
    log.asked(1_000, tid=1, mm=MM, write=True)
    log.acquired(5_001_000, tid=1, mm=MM, write=True, success=False)
    events = log.events()
    assert waited(waits(events)) == [(1, 1_000, 5_001_000, "KILLED")]
    assert len(holds(events)) == 0
    assert holds(events).unmatched == 0


def test_two_tasks_and_two_mms_do_not_mix() -> None:
    """Fork holds the parent's lock and, inside, the child's."""
    log = Log()
    child = MM + 64
    log.acquired(10, tid=1, mm=MM, write=True)
    log.acquired(12, tid=1, mm=child, write=True)
    log.acquired(13, tid=2, mm=child + 64, write=False)
    log.released(15, tid=1, mm=child, write=True)
    log.released(16, tid=2, mm=child + 64, write=False)
    log.released(20, tid=1, mm=MM, write=True)
    found = held(holds(log.events()))
    assert found == [(1, "exclusive", 10, 20), (1, "exclusive", 12, 15), (2, "shared", 13, 16)]


def test_before_5_16_the_release_is_written_late() -> None:
    """The next owner's ACQUIRED comes first: the hold ended there at the latest."""
    log = Log()
    take(log, 1, 10, 11, 33, write=True)
    take(log, 2, 12, 30, 40, write=True)
    take(log, 3, 31, 38, 50, write=False)
    assert held(holds(log.events())) == [
        (1, "exclusive", 11, 30),
        (2, "exclusive", 30, 38),
        (3, "shared", 38, 50),
    ]


def test_readers_hold_side_by_side() -> None:
    log = Log()
    take(log, 1, 10, 11, 50, write=False)
    take(log, 2, 12, 13, 60, write=False)
    take(log, 3, 14, 61, 70, write=True)
    assert held(holds(log.events())) == [
        (1, "shared", 11, 50),
        (2, "shared", 13, 60),
        (3, "exclusive", 61, 70),
    ]


def test_a_recording_that_begins_and_ends_in_the_middle() -> None:
    """Who held already, and who holds and waits still, is told as far as it was seen."""
    log = Log()
    log.asked(100, tid=2, mm=MM, write=True)
    log.released(150, tid=1, mm=MM, write=False)
    log.acquired(151, tid=2, mm=MM, write=True)
    log.asked(160, tid=3, mm=MM, write=False)
    log.add(200, 3, tid=9, op=-1)
    events = log.events()
    found = holds(events)
    assert held(found) == [(1, "shared", 100, 150), (2, "exclusive", 151, 200)]
    assert found["complete"].tolist() == [False, False]
    assert len(found.complete()) == 0
    assert found.unmatched == 0
    assert waited(waits(events)) == [(2, 100, 151, "ACQUIRED"), (3, 160, 200, "WAITING")]


def test_nothing_is_joined_across_a_gap() -> None:
    """Cpu 1 lost its events between 20 and 60: what spans them is known on either side only."""
    log = Log()
    log.asked(10, tid=1, mm=MM, write=False, cpu=0)
    log.acquired(11, tid=1, mm=MM, write=False, cpu=0)
    log.asked(20, tid=2, mm=MM, write=True, cpu=1)
    log.acquired(30, tid=4, mm=MM, write=False, cpu=0)
    log.released(40, tid=4, mm=MM, write=False, cpu=0)
    log.lost(60, cpu=1, count=17)
    log.released(70, tid=1, mm=MM, write=False, cpu=0)
    log.acquired(80, tid=2, mm=MM, write=True, cpu=1)
    log.released(90, tid=2, mm=MM, write=True, cpu=1)
    events = log.events()
    cut = segments(events)
    assert cut.lost_events == 17
    assert [(gap.cpu, gap.start_ns, gap.end_ns) for gap in cut.gaps] == [(1, 20, 60)]
    found = holds(events)
    assert held(found) == [
        (1, "shared", 11, 20),
        (1, "shared", 60, 70),
        (2, "exclusive", 80, 90),
    ]
    assert found["complete"].tolist() == [False, False, True]
    asked_before = waits(events)
    assert waited(asked_before) == [(1, 10, 11, "ACQUIRED"), (2, 60, 80, "ACQUIRED")]
    assert asked_before["partial"].tolist() == [False, True]


def test_a_call_that_was_under_way_is_known_by_its_end() -> None:
    log = Log()
    take(log, 1, 10, 11, 30, write=True)
    log.end(40, tid=1, op="munmap")
    take(log, 1, 50, 51, 60, write=False)
    frame = holds(log.events()).frame()
    assert frame["operation"].to_list() == ["munmap", None]


def test_a_fault_outside_of_calls_names_its_hold() -> None:
    log = Log()
    log.add(9, 5, tid=1, address=0x1234000)
    take(log, 1, 10, 11, 30, write=False)
    log.begin(40, tid=1, op="madvise", address=0x1000, length=4096)
    log.add(41, 5, tid=1, address=0x1234000)
    take(log, 1, 50, 51, 60, write=False)
    log.end(70, tid=1, op="madvise")
    frame = holds(log.events()).frame()
    assert frame["operation"].to_list() == ["page fault", "madvise(MADV_NORMAL)"]


def test_a_hang_lasts_until_the_recording_was_stopped() -> None:
    """After the last event nothing happened, for as long as somebody looked."""
    log = Log()
    log.asked(100, tid=1, mm=MM, write=False)
    assert waited(analyse(log.events(), span=(50, 9_000)).waits) == [(1, 100, 9_000, "WAITING")]
    assert analyse(log.events(), span=(50, 9_000)).duration_ns == 8_950
    assert analyse(Log().events(), span=(50, 9_000)).duration_ns == 8_950
