"""A few thousand random lives of buffers; tests/release_stress.py runs 100,000 on request."""

import pytest
from release_stress import KINDS, SPARE, footprint, stress

from zaplock.release import syscalls


def test_random_lives_leave_no_trace_and_touch_no_neighbour() -> None:
    stress(200, threads=4, seed=2)
    before = footprint()
    counts = stress(3_000, threads=4, seed=1)
    mappings, resident = footprint()
    assert mappings <= before[0] + 8
    assert resident <= before[1] + SPARE
    acts = {"write", "view", "misuse", "empty", "contend", "race won", "race lost", "soon", "close"}
    assert set(KINDS) | acts <= set(counts)  # nothing of the repertoire was left out


def test_the_canaries_can_sing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A release that zaps one page too many, the one below, is caught."""
    real = syscalls.madvise
    monkeypatch.setattr(
        syscalls, "madvise", lambda start, length, advice: real(start - 4096, length + 4096, advice)
    )
    with pytest.raises(AssertionError, match="AssertionError"):
        stress(400, threads=1, seed=3, kinds=["address"])
