"""A few thousand random lives of buffers; tests/release_stress.py runs 500,000 on request."""

import re
import subprocess
import sys
from pathlib import Path

from release_lives import GUISES, KINDS
from release_stress import SPARE, footprint, stress

HERE = Path(__file__).parent


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


ZAPS_ONE_PAGE_BELOW = """
from zaplock.release import syscalls
real = syscalls.madvise
syscalls.madvise = lambda start, length, advice: real(start - 4096, length + 4096, advice)
"""

ZAPS_FROM_THE_PAGES_BEGIN = """
from zaplock.release import owners
real = owners.bounds
def wider(array):
    start, length = real(array)
    return start // 4096 * 4096, length + start % 4096
owners.bounds = wider
owners.Owner.check = lambda *_arguments: None
"""

LIVES = """
import sys
sys.path.insert(0, sys.argv[1])
from release_stress import stress
try:
    stress(400, threads=1, seed=int(sys.argv[2]), kinds=sys.argv[3].split(","))
except AssertionError as error:
    print(error, flush=True)
    import os
    os._exit(3)
"""


def caught(fault: str, kinds: str) -> str:
    """Seed a fault in a process of its own, whose memory it may destroy; return what was said.

    The fault may end that process before anything looks, or let it hang in a heap that it has
    destroyed, so other lives are tried, too.
    """
    for seed in range(3, 13):
        command = [sys.executable, "-c", fault + LIVES, str(HERE), str(seed), kinds]
        try:
            ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        except subprocess.TimeoutExpired:
            continue
        if ended.returncode == 3:
            return ended.stdout
    return ""


def test_the_canaries_can_sing() -> None:
    """A release that zaps one page too many, the one below, is caught."""
    assert re.search("canary|byte", caught(ZAPS_ONE_PAGE_BELOW, "address"))


def test_the_shadow_sees_a_part_of_a_page_too_many() -> None:
    """A view's first page is zapped, though somebody's bytes stand before the view's in it."""
    assert "byte" in caught(ZAPS_FROM_THE_PAGES_BEGIN, "malloc,private")
