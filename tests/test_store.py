"""The cells that all state lives in, against the plainest thing that could do the same."""

from __future__ import annotations

from itertools import groupby

from drawn import times
from hypothesis import given
from hypothesis import strategies as st

from zaplock.model.store import RangeMap, Store

POINTS = range(24)
change = st.tuples(
    st.integers(0, 23), st.integers(0, 24), st.one_of(st.none(), st.sampled_from("abc"))
)
changes = st.lists(change, max_size=12)


def write(
    ranges: RangeMap[str], points: dict[int, str], low: int, high: int, to: str | None
) -> None:
    """Give [low, high) a value, or none, in both."""
    if to is None:
        ranges.clear(low, high)
    elif low < high:
        ranges.set(low, high, to)
    for point in range(low, high):
        points.pop(point, None)
        if to is not None:
            points[point] = to


def runs(points: dict[int, str], low: int, high: int) -> list[tuple[int, int, str]]:
    """List the runs of equal points of [low, high)."""
    found, at = [], low
    for value, same in groupby(range(low, high), points.get):
        end = at + len(list(same))
        if value is not None:
            found.append((at, end, value))
        at = end
    return found


@given(changes, st.integers(0, 23), st.integers(0, 24))
@times(300)
def test_ranges_are_what_so_many_single_points_would_be(
    script: list[tuple[int, int, str | None]], low: int, high: int
) -> None:
    ranges, points = RangeMap[str](Store(), "r"), dict[int, str]()
    for one in script:
        write(ranges, points, *one)
    ranges.check()
    assert [ranges.at(point) for point in POINTS] == [points.get(point) for point in POINTS]
    assert ranges.overlapping(low, high) == runs(points, low, high)
    inside = [point for point in range(low, high) if point in points]
    assert ranges.total(low, high) == len(inside)
    assert ranges.any_in(low, high) == bool(inside)
    assert ranges.covers(low, high) == (len(inside) == max(0, high - low))


@given(changes, changes)
@times(200)
def test_undo_brings_back_the_state_and_its_hash(
    kept: list[tuple[int, int, str | None]], undone: list[tuple[int, int, str | None]]
) -> None:
    store = Store()
    ranges = RangeMap[str](store, "r")
    for one in kept:
        write(ranges, {}, *one)
    store.start_journal()
    before, was, mark = store.snapshot(), store.hash, store.mark()
    for one in undone:
        write(ranges, {}, *one)
    ranges.check()
    assert store.hash == store.recount()
    store.undo(mark)
    ranges.check()
    assert (store.snapshot(), store.hash) == (before, was)
