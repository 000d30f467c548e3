"""Eight threads unmap 40 GiB each of one process at once: when is the last one done, who waits?

python docs/examples/many_unmaps.py
"""

from zaplock import Lab
from zaplock.units import duration

THREADS, EACH = 8, 40 << 30

for design in ("linux-6.1", "linux-6.18", "linux-6.18-dying", "linux-6.18-cut"):
    lab = Lab(design, cpus=12)
    heap = lab.map(THREADS * EACH)
    for number in range(THREADS):
        at = heap + number * EACH
        lab.thread(f"free-{number}", lambda cx, at=at: cx.design.munmap(cx, at, EACH))
    lab.bystander("mmap")
    lab.bystander("proc")
    run = lab.run()
    assert set(run.results.values()) <= {0, None}
    mmap, ps = (duration(run.stalls[name].max_ns) for name in ("mmap", "proc"))
    print(f"{design:18}{duration(run.duration_ns):>8}   mmap {mmap:>8}   ps {ps:>8}")
