"""A run that leaps over rounds has the events of the plain one, which runs each of them."""

from dataclasses import replace
from functools import wraps
from typing import Any

import numpy as np
import pytest

from zaplock.designs import SHIPPED
from zaplock.lab import bystanders, profiles
from zaplock.lab.experiment import SimulatedExperiment
from zaplock.lab.leaps import ALIKE, can_leap
from zaplock.lab.teardown import Teardown, run
from zaplock.protocols.design import Cx, Design
from zaplock.trace.quotas import CpuMax

RFC = profiles.load("e5-2680-rfc")
MIB = 1 << 20


class Rounds:
    """How many rounds of its bystanders a run has really run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.run = 0
        for name, operation in bystanders.OPERATIONS.items():
            monkeypatch.setitem(bystanders.OPERATIONS, name, self._counting(operation))

    def _counting(self, operation: bystanders.Operation) -> bystanders.Operation:
        async def counted(cx: Cx, nth: int) -> None:
            self.run += 1
            await operation(cx, nth)

        return counted


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> Rounds:
    return Rounds(monkeypatch)


def both(design: Design, rounds: Rounds, **more: Any) -> tuple[Teardown, int, int]:
    """Run both ways, assert that they are equal; return one and how many rounds each has run."""
    experiment = SimulatedExperiment(**{"length": 256 * MIB, **more})
    before = rounds.run
    plain = run(design, experiment, RFC, leaps=False)
    between = rounds.run
    leaping = run(design, experiment, RFC)
    assert leaping.outcome == plain.outcome
    assert leaping.long_waits == plain.long_waits
    assert leaping.events.mms == plain.events.mms
    assert leaping.events.operations == plain.events.operations
    leaping.events.check()
    for name, column in plain.events.columns.items():
        assert np.array_equal(leaping.events[name], column), name
    return plain, between - before, rounds.run - between


@pytest.mark.parametrize(
    ("design", "length", "block"),
    [
        ("linux-4.9", 256 * MIB, ("proc", "gup")),  # who waits out the whole hold
        ("rfc-v6", 256 * MIB, ("fault", "proc")),
        ("linux-6.18", 1024 * MIB, ("fault", "proc", "mmap")),  # two wait, one goes on
        ("linux-6.18-dying", 256 * MIB, ("mmap", "mprotect", "clone", "fork")),
        ("linux-6.18-cut", 256 * MIB, ("fault", "madvise", "environ", "gup")),
    ],
)
def test_the_events_are_those_of_the_plain_run(
    design: str, length: int, block: tuple[str, ...], rounds: Rounds
) -> None:
    what = {"length": length, "bystanders": block, "period_ns": length // 2560}
    shown, plain, leaping = both(SHIPPED[design], rounds, **what)
    if shown.outcome.exclusive_hold_ns < shown.outcome.munmap_ns // 2:
        assert leaping < plain // 2


def test_a_page_table_for_the_faults_is_made_when_it_is_due(rounds: Rounds) -> None:
    """One page in 512 needs a table: before that round and after it is leapt, not over it."""
    design, block = SHIPPED["rfc-v6"], ("fault",)
    _, plain, leaping = both(design, rounds, length=512 * MIB, bystanders=block, period_ns=10_000)
    assert plain > 600
    assert 12 <= leaping < 30


@pytest.mark.parametrize("seed", range(4))
def test_any_bystanders_on_any_machine(seed: int, rounds: Rounds) -> None:
    random = np.random.default_rng(seed)
    block = tuple(random.choice(list(ALIKE), 3, replace=False).tolist())
    design = list(SHIPPED.values())[int(random.integers(len(SHIPPED)))]
    both(
        design,
        rounds,
        length=64 * MIB,
        bystanders=block,
        cpus=int(random.integers(1, 9)),
        period_ns=int(random.integers(40_000, 200_000)),
        seed=seed,
    )


def test_what_may_not_be_alike_is_not_leapt_over(rounds: Rounds) -> None:
    quota = CpuMax(quota_ns=5_000_000, period_ns=10_000_000)
    for block, more in ((("fault", "fork"), {}), (("proc",), {"cpu_max": quota})):
        _, plain, leaping = both(
            SHIPPED["rfc-v6"], rounds, length=32 * MIB, bystanders=block, period_ns=50_000, **more
        )
        assert leaping == plain


def test_a_design_of_ones_own_may_count_its_rounds() -> None:
    @wraps(SHIPPED["rfc-v6"].munmap)
    async def own(cx: Cx, start: int, length: int) -> int:
        return await SHIPPED["rfc-v6"].munmap(cx, start, length)

    assert all(can_leap(design, ("mmap",)) for design in SHIPPED.values())
    assert not can_leap(replace(SHIPPED["rfc-v6"], munmap=own), ("mmap",))
    assert not can_leap(SHIPPED["rfc-v6"], ("smaps",))
