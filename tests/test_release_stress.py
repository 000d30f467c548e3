"""A few thousand random lives of buffers; tests/release_stress.py runs 500,000 on request."""

import pytest
from release_lives import GUISES, KINDS
from release_stress import SPARE, footprint, stress

from zaplock.release import owners, syscalls


def test_random_lives_leave_no_trace_and_touch_no_neighbour() -> None:
    stress(200, threads=3, seed=2)
    before = footprint()
    counts = stress(3_000, threads=3, seed=1)
    mappings, resident = footprint()
    assert mappings <= before[0] + 8
    assert resident <= before[1] + SPARE
    acts = {
        "write", "view", "misuse", "empty", "contend", "race won", "race lost", "soon", "close",
        "populate", "resize", "fork", "struck",
    }  # fmt: skip
    assert set(KINDS) | set(GUISES) | acts <= set(counts)  # nothing was left out


def test_the_canaries_can_sing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A release that zaps one page too many, the one below, is caught."""
    real = syscalls.madvise
    monkeypatch.setattr(
        syscalls, "madvise", lambda start, length, advice: real(start - 4096, length + 4096, advice)
    )
    with pytest.raises(AssertionError, match=r"canary|byte"):
        stress(400, threads=1, seed=3, kinds=["address"])


def test_the_shadow_sees_a_part_of_a_page_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """A view's first page is zapped, though somebody's bytes stand before the view's in it."""
    real = owners.bounds

    def wider(array: object) -> tuple[int, int]:
        start, length = real(array)
        return start // 4096 * 4096, length + start % 4096

    monkeypatch.setattr(owners, "bounds", wider)
    monkeypatch.setattr(owners.Owner, "check", lambda *_arguments: None)
    with pytest.raises(AssertionError, match="byte"):
        stress(400, threads=1, seed=3, kinds=["malloc", "private"])
