"""Columnar holds and waits against a state machine that takes one event at a time.

The events are arbitrary: torn, doubled, out of order, with gaps. Both must tell the same story.
"""

from collections import defaultdict
from dataclasses import dataclass, field

from drawn import times
from hypothesis import given
from hypothesis import strategies as st

from zaplock.trace.events import EventKind
from zaplock.trace.gaps import IN_GAP, segments
from zaplock.trace.handwritten import Log
from zaplock.trace.holds import holds
from zaplock.trace.waits import TRYLOCK_NS, WaitOutcome, waits

STEP_NS = 10_000

events_drawn = st.lists(
    st.tuples(
        st.sampled_from(
            [EventKind.ASKED, EventKind.ACQUIRED, EventKind.RELEASED] * 5 + [EventKind.LOST]
        ),
        st.sampled_from([1, 1, 1, 2]),  # tid
        st.sampled_from([64, 64, 64, 128]),  # mm
        st.booleans(),  # write
        st.sampled_from([True, True, True, False]),  # success
        st.integers(0, 1),  # cpu
        st.integers(1, 3),  # steps since the event before
    ),
    min_size=8,
    max_size=40,
)


@dataclass
class Lane:
    """What one task does with one mm between two gaps."""

    held: tuple[bool, int, bool] | None = None
    held_since: int = 0
    begun: bool = False
    seen_edge: bool = False
    asked: tuple[bool, int, int] | None = None
    stories: list[tuple[int, bool, int, int, bool, bool]] = field(default_factory=list)
    waits: list[tuple[bool, int, int, WaitOutcome, bool]] = field(default_factory=list)
    unmatched: int = 0

    def take(
        self, index: int, kind: EventKind, now: int, write: bool, success: bool, begin: int
    ) -> None:
        first, self.begun = not self.begun, True
        if kind == EventKind.ASKED:
            self.asked = (write, now, index)
            return
        asked, self.asked = self.asked, None
        if kind == EventKind.ACQUIRED:
            # Nobody gets it exclusively without asking: it asked before this stretch.
            if first and write and now > begin:
                outcome = WaitOutcome.ACQUIRED if success else WaitOutcome.KILLED
                self.waits.append((write, begin, now, outcome, True))
            self.answer(asked, now, write, success)
            if success:
                self.acquired(index, now, write, asked is not None and asked[0] == write)
        else:
            self.released(now, write, begin)

    def answer(
        self, asked: tuple[bool, int, int] | None, now: int, write: bool, success: bool
    ) -> None:
        if asked is None or asked[0] != write:
            return
        if not success and now - asked[1] < TRYLOCK_NS:
            return
        outcome = WaitOutcome.ACQUIRED if success else WaitOutcome.KILLED
        self.waits.append((write, asked[1], now, outcome, False))

    def acquired(self, index: int, now: int, write: bool, asked: bool) -> None:
        downgrades = self.held is not None and self.held[0] and not write and not asked
        if self.held is not None:
            if downgrades:
                self.stories.append((self.held[1], True, self.held_since, now, True, True))
            else:
                self.unmatched += 1
        self.held, self.held_since, self.seen_edge = (write, index, downgrades), now, True

    def released(self, now: int, write: bool, begin: int) -> None:
        if self.held is not None and self.held[0] == write:
            _, index, downgraded = self.held
            self.stories.append((index, write, self.held_since, now, downgraded, True))
        elif not self.seen_edge:
            self.stories.append((-1, write, begin, now, False, False))
        else:
            self.unmatched += 1 + (self.held is not None)
        self.held, self.seen_edge = None, True

    def ended(self, end: int, last: bool) -> None:
        if self.held is not None:
            write, index, downgraded = self.held
            self.stories.append((index, write, self.held_since, end, downgraded, False))
        if self.asked is not None and last:
            self.waits.append((self.asked[0], self.asked[1], end, WaitOutcome.WAITING, False))


def clip(
    found: list[tuple[int, int, int, bool, int, int, bool, bool]],
) -> list[tuple[int, int, bool, int, int, bool, bool]]:
    """End each hold at the next one of its mm that excludes it."""
    clipped = []
    for place, (_, mm, tid, write, start, end, downgraded, complete) in enumerate(found):
        for _, other_mm, _, other_write, other_start, *_ in found[place + 1 :]:
            if other_mm == mm and (write or other_write):
                end = min(end, other_start)
                break
        clipped.append((mm, tid, write, start, end, downgraded, complete))
    return clipped


@given(events_drawn)
@times(200)
def test_the_columns_agree_with_one_event_at_a_time(
    drawn: list[tuple[EventKind, int, int, bool, bool, int, int]],
) -> None:
    log, now = Log(), 0
    for kind, tid, mm, write, success, cpu, steps in drawn:
        now += steps * STEP_NS
        if kind == EventKind.LOST:
            log.lost(now, cpu=cpu, count=1)
        else:
            ok = success and kind == EventKind.ACQUIRED
            log.add(now, kind, tid, mm=mm, write=write, success=ok, cpu=cpu)
    events = log.events()
    cut = segments(events)
    import numpy as np

    segment_of = cut.of(np.arange(len(events)))
    lanes: dict[tuple[int, int, int], Lane] = defaultdict(Lane)
    for index in range(len(events)):
        segment = int(segment_of[index])
        kind = EventKind(int(events["kind"][index]))
        if segment == IN_GAP or kind == EventKind.LOST:
            continue
        key = (int(events["mm"][index]), int(events["tid"][index]), segment)
        lanes[key].take(
            index,
            kind,
            int(events["time_ns"][index]),
            bool(events["write"][index]),
            bool(events["success"][index]),
            int(cut.begin_ns[segment]),
        )
    expected, expected_waits, unmatched = [], [], 0
    for (mm, tid, segment), lane in lanes.items():
        lane.ended(int(cut.end_ns[segment]), cut.last[segment] == len(events))
        unmatched += lane.unmatched
        for index, *story in lane.stories:
            place = int(cut.first[segment]) if index < 0 else index
            expected.append((place, mm, tid, *story))
        expected_waits += [(mm, tid, *wait) for wait in lane.waits]
    # Holds that were under way at one instant have no order of their own.
    expected.sort(key=lambda hold: (hold[0], hold[1], hold[2]))

    found = holds(events)
    found.check()
    got = list(
        zip(
            found["mm"].tolist(),
            found["tid"].tolist(),
            found["exclusive"].tolist(),
            found["start_ns"].tolist(),
            found.end_ns.tolist(),
            found["downgraded"].tolist(),
            found["complete"].tolist(),
        )
    )
    assert got == clip(expected)
    assert found.unmatched == unmatched
    told = waits(events)
    told.check()
    assert sorted(
        zip(
            told["mm"].tolist(),
            told["tid"].tolist(),
            told["exclusive"].tolist(),
            told["start_ns"].tolist(),
            told.end_ns.tolist(),
            told["outcome"].tolist(),
            told["partial"].tolist(),
        )
    ) == sorted(expected_waits)
