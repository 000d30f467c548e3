"""The promises of `zaplock.release`, as ratios against the plain calls in the same run.

    python -m pytest bench/test_release.py -s

Needs 9 GiB of free memory; `python -m bench.release` makes the whole table of docs/release.md.
"""

from __future__ import annotations

import pytest

from bench.release import GIB, INSIDE, Experiment, Result, side_by_side
from zaplock.measure import memory

SIZE = 8 * GIB
REPEAT = 5
pytestmark = [
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not memory.fits(SIZE, "anonymous"), reason="8 GiB of memory aren't free"),
]


def show(name: str, result: Result) -> None:
    """Print the medians of one way."""
    stalls = ", ".join(f"{who} {worst / 1e6:.1f}" for who, worst in result.worst_ns.items())
    print(f"\n{name}: {result.total_ns / 1e6:.0f} ms in all; worst stalls in ms: {stalls}")


def test_a_release_stalls_nobody_and_takes_hardly_longer() -> None:
    munmap, release = side_by_side(
        [Experiment("munmap", SIZE), Experiment("release", SIZE)], REPEAT
    )
    show("munmap", munmap)
    show("release", release)
    assert munmap.worst_ns["mmap"] >= 50 * release.worst_ns["mmap"]
    assert release.total_ns <= 1.3 * munmap.total_ns


@pytest.mark.parametrize("bound_ms", [1, 5, 20])
def test_the_bound_holds_where_pieces_take_the_mmap_lock(bound_ms: int) -> None:
    """As before Linux 6.18: the range is under a userfaultfd (see release_subject)."""
    bound_ns = bound_ms * 1_000_000
    (release,) = side_by_side(
        [Experiment("release", 4 * GIB, max_stall_ns=bound_ns, force_chunks=True)], REPEAT
    )
    show(f"release, bound {bound_ms} ms", release)
    if 2 * release.idle_ns > bound_ns:
        pytest.skip(f"stalls of {release.idle_ns / 1e6:.1f} ms without any release: not quiet")
    assert max(release.worst_ns[name] for name in INSIDE) <= 2 * bound_ns


def test_filling_stalls_nobody() -> None:
    ways = [
        Experiment(way, SIZE, bystanders=("mmap", "fault")) for way in ("MAP_POPULATE", "populate")
    ]
    at_once, paced = side_by_side(ways, 3)
    show("MAP_POPULATE", at_once)
    show("populate", paced)
    assert at_once.worst_ns["mmap"] >= 50 * paced.worst_ns["mmap"]
