"""For tests of other projects: fail a test that holds, or waits for, its mmap_lock too long.

    @pytest.mark.mmap_lock(max_exclusive_hold="5ms", max_wait="20ms")
    def test_the_cache_is_dropped_without_a_stall():
        ...

The test's own process is recorded while the test runs, and a hold or a wait over the limit fails it
with the report of the offender: who, in which system call, of which size, and who waited because of
it. Limits: `max_exclusive_hold`, `max_shared_hold`, `max_wait`, each a duration such as "5ms".

Recording needs root and tracefs. Where they are missing the test runs all the same, with a warning
that its limits were not checked; with `--mmap-lock-required` (or `mmap_lock_required = true` in the
ini file) it fails instead.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from zaplock.trace.analysis import Analysis

LIMITS = ("max_exclusive_hold", "max_shared_hold", "max_wait")
SHOWN = 5
"""So many offenders of each kind are told."""


@dataclass(frozen=True, slots=True)
class LockLimits:
    """Limits in nanoseconds; None is no limit."""

    max_exclusive_hold: int | None = None
    max_shared_hold: int | None = None
    max_wait: int | None = None


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option and the ini value."""
    text = "fail tests marked mmap_lock where the lock can't be recorded"
    group = parser.getgroup("zaplock")
    group.addoption("--mmap-lock-required", action="store_true", default=None, help=text)
    parser.addini("mmap_lock_required", text, type="bool", default=False)


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line(
        "markers",
        "mmap_lock(max_exclusive_hold, max_shared_hold, max_wait): fail the test if its process "
        'holds or waits for its mmap_lock longer than these durations, such as "5ms"',
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Record the marked test and hold it to its limits; a failure of its own comes first."""
    marker = item.get_closest_marker("mmap_lock")
    if marker is None:
        return (yield)
    limits = _limits(marker)
    recorded = _start(item)
    if recorded is None:
        return (yield)
    with recorded as recorder:
        outcome = yield
    _judge(recorder.events(), limits)
    return outcome


def _limits(marker: pytest.Mark) -> LockLimits:
    from zaplock.errors import UserError
    from zaplock.units import parse_duration

    unknown = sorted(set(marker.kwargs) - set(LIMITS))
    if marker.args or unknown or not marker.kwargs:
        wrong = f"not {', '.join(unknown)}" if unknown else "by name"
        pytest.fail(f"mmap_lock takes {', '.join(LIMITS)}, {wrong}", pytrace=False)
    try:
        return LockLimits(**{name: parse_duration(text) for name, text in marker.kwargs.items()})
    except UserError as error:
        wrong = str(error)
    pytest.fail(f"mmap_lock: {wrong}", pytrace=False)


def _start(item: pytest.Item) -> Any:
    """Return a recording of this process to be entered, or None where it can't be made."""
    import contextlib
    import os

    from zaplock.errors import UserError
    from zaplock.recorder.in_memory import record_mm

    stack = contextlib.ExitStack()
    try:
        recorder = stack.enter_context(record_mm(os.getpid(), events=("mmap_lock", "syscalls")))
    except UserError as error:
        required = item.config.getoption("--mmap-lock-required")
        if required or item.config.getini("mmap_lock_required"):
            pytest.fail(f"the mmap_lock can't be recorded: {error}", pytrace=False)
        item.warn(pytest.PytestWarning(f"limits of mmap_lock are not checked: {error}"))
        return None
    return _Started(stack, recorder)


@dataclass(frozen=True, slots=True)
class _Started:
    """A recording that runs already; leaving the block ends it."""

    stack: Any
    recorder: Any

    def __enter__(self) -> Any:
        return self.recorder

    def __exit__(self, *error: object) -> None:
        self.stack.close()


def _judge(events: Any, limits: LockLimits) -> None:
    """Fail the test with the offenders, if there are any."""
    import os

    from zaplock.trace.analysis import analyse

    offences = list(offenders(analyse(events, os.uname().release), limits))
    if offences:
        pytest.fail("\n".join(["this test breaks its limits of mmap_lock:", *offences]), False)


def offenders(analysis: Analysis, limits: LockLimits) -> Iterator[str]:
    """Tell every hold and wait over the limit, the longest first."""
    exclusive = analysis.holds["exclusive"]
    held = analysis.holds["hold_ns"]
    for limit, chosen, name in (
        (limits.max_exclusive_hold, exclusive, "max_exclusive_hold"),
        (limits.max_shared_hold, ~exclusive, "max_shared_hold"),
    ):
        if limit is not None:
            yield from _holds_over(analysis, held, chosen & (held > limit), name, limit)
    if limits.max_wait is not None:
        yield from _waits_over(analysis, limits.max_wait)


def _holds_over(analysis: Analysis, held: Any, over: Any, name: str, limit: int) -> Iterator[str]:
    from zaplock.units import duration
    from zaplock.views.sentences import hold_sentence, wait_sentence

    rows = sorted(over.nonzero()[0].tolist(), key=lambda row: -int(held[row]))
    for row in rows[:SHOWN]:
        yield f"  {name} {duration(limit)}: {hold_sentence(analysis, row)}"
        yield from (f"      {wait_sentence(analysis, wait)}" for wait in _victims(analysis, row))
    if len(rows) > SHOWN:
        yield f"  {name}: and {len(rows) - SHOWN} more"


def _victims(analysis: Analysis, row: int) -> list[int]:
    """Return the waits of 10 us and more for the lock of a hold, while it lasted."""
    from zaplock.trace.summary import QUEUED_NS

    holds, waits = analysis.holds, analysis.waits
    start, end = int(holds["start_ns"][row]), int(holds.end_ns[row])
    beside = (waits["mm"] == holds["mm"][row]) & (waits["wait_ns"] >= QUEUED_NS)
    during = (waits["start_ns"] < end) & (waits.end_ns > start)
    found: list[int] = (beside & during & (waits["tid"] != holds["tid"][row])).nonzero()[0].tolist()
    return found[:SHOWN]


def _waits_over(analysis: Analysis, limit: int) -> Iterator[str]:
    from zaplock.units import duration
    from zaplock.views.sentences import chain, wait_sentence

    waited = analysis.waits["wait_ns"]
    rows = sorted((waited > limit).nonzero()[0].tolist(), key=lambda row: -int(waited[row]))
    for row in rows[:SHOWN]:
        yield f"  max_wait {duration(limit)}: {wait_sentence(analysis, row)}"
        yield from (f"      {line}" for line in chain(analysis, analysis.explain(row)))
    if len(rows) > SHOWN:
        yield f"  max_wait: and {len(rows) - SHOWN} more"
