"""How long does an munmap stall while another thread registers a buffer of 4 MiB?

python docs/examples/timed_buffers.py
"""

import registered_buffers as buffers

from zaplock import Lab
from zaplock.author import SHIPPED, Cx, flags, mmap, page_of
from zaplock.units import duration

PROT, FLAGS = flags.PROT_READ | flags.PROT_WRITE, flags.MAP_PRIVATE | flags.MAP_ANONYMOUS


async def map_and_unmap(cx: Cx, _nth: int) -> None:
    """Map a page somewhere else, and unmap it."""
    await cx.design.munmap(cx, await mmap(cx, 0, 4096, PROT, FLAGS), 4096)


for design in (SHIPPED["linux-6.18"], buffers.REFUSING):
    lab = Lab(design)
    page = page_of(lab.map("4M"))
    lab.thread("driver", lambda cx, at=page: buffers.register(cx, at, 1024), at_ns=2_000_000)
    lab.bystander("unmapper", does=map_and_unmap, period_ns=100_000)
    run = lab.run()
    assert run.results["driver"] == 0
    print(f"{design.name:12} worst stall {duration(run.stalls['unmapper'].max_ns)}")
