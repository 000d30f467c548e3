"""Make before.zaplock and after.zaplock: a program frees 64 MiB again and again, on two kernels.

Both are simulated. A thread of the program takes page faults meanwhile, and `ps` looks at it.
"""

from zaplock import Lab
from zaplock.author import Cx, SleepStep, flags, mmap, system_call

LENGTH = 64 << 20


async def frees(cx: Cx) -> None:
    """Map and fill 64 MiB, use it for a while, unmap it; a hundred times."""
    for _ in range(100):
        anonymous = flags.MAP_PRIVATE | flags.MAP_ANONYMOUS | flags.MAP_POPULATE
        rights = flags.PROT_READ | flags.PROT_WRITE
        made = mmap(cx, 0, LENGTH, rights, anonymous, 0, 0)
        there = await system_call(cx, "mmap", made, 0, LENGTH)
        await SleepStep(10_000_000)
        freed = cx.design.munmap(cx, there, LENGTH)
        await system_call(cx, "munmap", freed, there, LENGTH)


for name, design in (("before", "linux-4.18"), ("after", "linux-6.18")):
    lab = Lab(design)
    lab.map("1M")
    lab.thread("db", frees)
    lab.bystander("proc")
    lab.bystander("fault")
    lab.run().save(f"{name}.zaplock")
