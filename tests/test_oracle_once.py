"""What a campaign has seen once counts, unless the machine was seen to be disturbed just then."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from test_oracle import needs_kernel
from test_oracle_settings import changed, needs_setting

from zaplock.cli import _oracle_campaign, _oracle_text, _oracle_threads
from zaplock.cli._json_text import print_json
from zaplock.designs.linux import design_of
from zaplock.oracle import ring, thread_replay
from zaplock.oracle.bare_process import Late, Lost
from zaplock.oracle.campaign import Bench
from zaplock.oracle.modelside import model_side
from zaplock.oracle.ops import Op, OracleStep
from zaplock.oracle.program import build
from zaplock.oracle.report import Report
from zaplock.oracle.thread_campaign import ThreadBench, ThreadReport
from zaplock.oracle.thread_programs import PAGE, WINDOW, ThreadedGenerator
from zaplock.oracle.threaded import ThreadedOutcome, ThreadedProgram

SEED = 5
APART = ThreadedProgram(
    (Op("mmap", (WINDOW, 2 * PAGE, 3, 0x32, -1, 0)),),
    ((Op("store", (WINDOW,)),), (Op("store", (WINDOW + PAGE,)),)),
)


@pytest.fixture
def bench() -> Iterator[Bench]:
    with contextlib.closing(Bench(model_side)) as both:
        yield both


@pytest.fixture
def threads() -> Iterator[ThreadBench]:
    with contextlib.closing(ThreadBench(design_of(platform.release()).design)) as both:
        yield both


def first_time(monkeypatch: pytest.MonkeyPatch, side: object, name: str, other: Any) -> None:
    """Do something else with the result the first time that a side does something."""
    does, times = getattr(side, name), iter([other])

    def done(*given: Any, **named: Any) -> Any:
        return next(times, lambda result: result)(does(*given, **named))

    monkeypatch.setattr(side, name, done)


def otherwise(steps: list[OracleStep]) -> list[OracleStep]:
    """Give what a kernel would show whose first call returned something else."""
    first, *later = steps
    outcome = first.outcome._replace(result=first.outcome.result + 1)
    return [first._replace(outcome=outcome), *later]


@needs_kernel
def test_a_difference_that_does_not_come_again_counts(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first_time(monkeypatch, bench.real, "run", otherwise)
    report = bench.slice(SEED, sequences=3)
    if report.set_aside:
        pytest.skip(f"somebody disturbs: {report.unsettled}")
    (found,) = report.once
    assert not report.agrees
    assert not report.divergences
    assert found.differences[0].startswith("result kernel ")
    _oracle_text.print_report(report, False)
    _oracle_text.print_report_json(report, SEED)
    shown = capsys.readouterr().out
    assert "0 divergences of 0 kinds, 1 more that did not come again" in shown
    assert f"DIVERGENCE, NOT AGAIN (1 times) {found.signature}" in shown
    names = [name for name, _ in _oracle_campaign._to_save(report, ())]
    assert f"{found.sequence[0].name}-0.json" in names
    total = Report()
    for _ in range(2):
        total.merge(report)
    assert (len(total.once), total.once_signatures.total()) == (1, 2)


@needs_kernel
@needs_setting
def test_one_that_came_while_settings_were_changed_is_set_aside(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def amid_changes(steps: list[OracleStep]) -> list[OracleStep]:
        with changed():
            return otherwise(steps)

    first_time(monkeypatch, bench.real, "run", amid_changes)
    report = bench.slice(SEED, sequences=3)
    assert report.set_aside == 1
    assert not report.once
    assert any("was written to" in one for one in report.unsettled)


@needs_kernel
def test_a_page_of_the_process_s_own_machinery_that_is_away_is_seen(bench: Bench) -> None:
    """Its counters lack it; here because nobody has populated the ring."""
    sequence = (Op("mmap", (WINDOW, PAGE, 3, 0x32, -1, 0)), Op("store", (WINDOW,)))
    real = bench.real
    real.run(sequence)
    assert not real.own_page_away()
    built = build(sequence, real._names)
    assert ring.POPULATE in built.code
    bare = built._replace(code=built.code.replace(ring.POPULATE, ring.call("getpid")))

    def unpopulated(_steps: list[OracleStep]) -> list[OracleStep]:
        real._run(bare.code)
        return otherwise(real._steps(sequence, bare))

    steps = unpopulated([])
    assert real.own_page_away()
    report = Report()
    found = bench.diverge(sequence)
    assert found is None
    whole = bench.real.run(sequence)
    assert not real.own_page_away()
    with pytest.MonkeyPatch.context() as patched:
        first_time(patched, real, "run", unpopulated)
        bench._one(sequence, None, report, _no_coverage(), True)
    assert report.set_aside == 1
    assert list(report.unsettled) == ["a page of the bare process's own machinery was taken away"]
    assert steps != whole


def _no_coverage() -> Any:
    from zaplock.oracle.coverage import Coverage

    return Coverage()


def raising(error: Lost) -> Callable[[object], object]:
    def done(_steps: object) -> object:
        raise error

    return done


@needs_kernel
def test_who_had_no_time_once_is_told_and_who_died_once_counts(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first_time(monkeypatch, bench.real, "run", raising(Late("still running after 10 s")))
    late = bench.slice(SEED, sequences=2)
    assert late.agrees
    assert len(late.late) == 1
    _oracle_text.print_report(late, False)
    assert "LATE ONCE still running after 10 s: " in capsys.readouterr().out
    first_time(monkeypatch, bench.real, "run", raising(Lost("it ended with 11")))
    died = bench.slice(SEED, sequences=2)
    assert died.set_aside or [one.split(":")[0] for one in died.lost] == ["it ended with 11, once"]
    assert died.set_aside or not died.agrees


def more_resident(outcome: ThreadedOutcome) -> ThreadedOutcome:
    """Give what a kernel would show that counts a page too many."""
    counters = tuple(4 + figure for figure in outcome.after.counters)
    return outcome._replace(after=outcome.after._replace(counters=counters))


@needs_kernel
def test_an_outcome_of_threads_that_came_once_is_a_divergence(
    threads: ThreadBench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = ThreadReport()
    first_time(monkeypatch, threads.real, "run_threads", more_resident)
    threads.one(ThreadedGenerator(SEED), APART, report)
    if report.set_aside:
        pytest.skip(f"somebody disturbs: {report.set_aside[0].why}")
    (found,) = report.divergences
    assert found.repeated == 0
    assert not report.agrees
    _oracle_threads._print(report)
    assert "DIVERGENCE, again in 0 of 200 more runs" in capsys.readouterr().out


@needs_kernel
@needs_setting
def test_one_of_threads_that_came_while_settings_were_changed_is_set_aside(
    threads: ThreadBench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def amid_changes(outcome: ThreadedOutcome) -> ThreadedOutcome:
        with changed():
            return more_resident(outcome)

    report = ThreadReport()
    first_time(monkeypatch, threads.real, "run_threads", amid_changes)
    threads.one(ThreadedGenerator(SEED), APART, report)
    assert report.agrees
    (one,) = report.set_aside
    assert "no interleaving gives" in one.why
    assert "was written to meanwhile" in one.why
    _oracle_threads._print(report)
    assert "0 divergences, 1 set aside" in capsys.readouterr().out
    print_json(_oracle_threads._document(report, SEED))
    assert [name for name, _ in _oracle_threads._to_save(report)] == ["threads-set-aside-0.json"]


@needs_kernel
def test_a_run_of_threads_without_a_page_of_its_machinery_shows_nothing(
    threads: ThreadBench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first_time(monkeypatch, threads.real, "run_threads", more_resident)
    first_time(monkeypatch, threads.real, "own_page_away", lambda _: True)
    report = ThreadReport()
    threads.one(ThreadedGenerator(SEED), APART, report)
    assert report.agrees
    assert (report.dropped, report.outcomes.total()) == (1, 1)
    _oracle_threads._print(report)
    assert "1 runs left out: a page of the process's own machinery" in capsys.readouterr().out
    first_time(monkeypatch, threads.real, "own_page_away", lambda _: True)
    *_, seen = thread_replay.outcomes(threads, APART, seconds=0.0, seed=1)
    assert not seen
