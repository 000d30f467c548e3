"""Faults that wait for a disk beside a process that forks and maps: who stalls, for how long?

A thread reads a mapped file that is not in memory, each page 1 ms away; beside it a thread forks
50 times a second and one maps and unmaps 1000 times a second. What is shown is of one second.

python docs/examples/major_faults.py
"""

from zaplock import Lab
from zaplock.author import Cx, SleepStep
from zaplock.units import duration

PROPOSED = (
    "",
    "-song-2026-04-retry",
    "-wilcox-2026-05-hold",
    "-wilcox-2026-05-hold+song-2026-05-fork",
    "-wilcox-2026-05-hold+shi-2026-05-fork-copying",
)


async def second(_cx: Cx) -> None:
    """Let a second pass."""
    await SleepStep(10**9)


print(f"{'the worst stall of':57}" + "".join(f"{who:>10}" for who in ("fork", "mmap", "major")))
for name in PROPOSED:
    lab = Lab(f"linux-7.3{name}", cpus=8)
    lab.map("64M")
    lab.thread("clock", second)
    lab.bystander("major", period_ns=1_100_000)
    lab.bystander("fork", period_ns=20_000_000)
    lab.bystander("mmap", period_ns=1_000_000)
    stalls = lab.run().stalls
    row = [stalls[who].max_ns for who in ("fork", "mmap", "major")]
    print(f"{'linux-7.3' + name:57}" + "".join(f"{duration(span):>10}" for span in row))
