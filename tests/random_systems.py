"""Random systems, searched in C with one core and with several, and by the loop over states.

    python tests/random_systems.py SEED SECONDS

searches system after system, from SEED on, until the time is over, on all CPUs, and says how many
were alike; at the first that is not it names the seed and ends with status 1. The same seed is the
same system, with the same ways to search it: words and numbers of few bits, levels that are wide
with a few states, so that threads share them and are begun with before the last are done.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest
from test_wide_levels import drawn

from zaplock.engines.checking import compiled_levels, exhaustive
from zaplock.engines.checking.exhaustive import explore

NEVER = 1 << 60
WORDS = ((63, 20, 128), (63, 60, 0), (63, 1, 0), (11, 5, 128))
"""Bits of a word, of a number, and those to spare."""


def told(seed: int, jobs: int) -> tuple[tuple[Any, ...], int]:
    """Search a system; give all that is found, its states first, and how many steps ran."""
    verdict = explore(drawn(seed, seed % 4 < 2), all_violations=seed % 2 == 0, jobs=jobs)
    results = [sorted(map(repr, ends)) for ends in verdict.results]
    found = (
        verdict.states, verdict.answer, verdict.transitions, verdict.depth, verdict.endings,
        verdict.never, verdict.limit, verdict.loops, results, [str(v) for v in verdict.violations],
    )  # fmt: skip
    return found, verdict.steps_run


def states_alike(seed: int) -> int:
    """Search a system in all ways; return its states, or -1 where they differ.

    In C as many steps run with several cores as with one.
    """
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(exhaustive, "WIDE", NEVER)
        patched.setattr(exhaustive, "MANY", NEVER)
        witness, _ = told(seed, 1)
        word, number, spare = WORDS[seed // 8 % 4] if seed % 8 == 3 else WORDS[0]
        patched.setattr(compiled_levels, "WORD_BITS", word)
        patched.setattr(compiled_levels, "NUMBER_BITS", number)
        patched.setattr(compiled_levels, "SPARE", spare)
        patched.setattr(exhaustive, "MANY", 1 + seed % 7)
        patched.setattr(exhaustive, "WIDE", 1 + seed % 5)
        patched.setattr(exhaustive, "SLICE", 1_000 if seed % 3 else 17)
        one, *more = (told(seed, jobs) for jobs in (1, 2, 2 + seed % 2))
    alike = one[0] == witness and all(other == one for other in more)
    return int(witness[0]) if alike else -1


def searched(first: int, step: int, seconds: float) -> tuple[int, int, int]:
    """Search every `step`th system until the time is over.

    Returns how many were alike, their states in sum, and the seed of one that is not, or -1.
    """
    compiled_levels.levels_library.load(may_compile=True)
    assert compiled_levels.levels_library.loaded is not None, "this needs a C compiler"
    deadline, alike, states, seed = time.monotonic() + seconds, 0, 0, first
    while time.monotonic() < deadline:
        more = states_alike(seed)
        if more < 0:
            return alike, states, seed
        alike, states, seed = alike + 1, states + more, seed + step
    return alike, states, -1


def main(first: int, seconds: float) -> int:
    cpus = sorted(os.sched_getaffinity(0))
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(cpus), mp_context=spawned) as pool:
        parts = [
            pool.submit(searched, first + part, len(cpus), seconds) for part in range(len(cpus))
        ]
        found = [part.result() for part in parts]
    alike, states = (sum(column) for column in list(zip(*found))[:2])
    then = first + len(cpus) * max(count for count, *_ in found)
    print(
        f"{alike} systems from seed {first} on with {states} states in sum are alike; next: {then}"
    )
    differ = [seed for *_, seed in found if seed >= 0]
    for seed in differ:
        print(f"system {seed} differs")
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), float(sys.argv[2])))
