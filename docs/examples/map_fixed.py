"""How long does mmap(MAP_FIXED) over 80 GiB, every page mapped, hold the lock exclusively?

python docs/examples/map_fixed.py
"""

from zaplock import Lab
from zaplock.author import flags as f
from zaplock.author import mmap
from zaplock.trace.holds import holds
from zaplock.units import duration

FLAGS = f.MAP_PRIVATE | f.MAP_ANONYMOUS | f.MAP_FIXED | f.MAP_NORESERVE

for design in ("linux-6.18", "linux-6.18-dying", "linux-6.18-cut"):
    lab = Lab(design)
    heap = lab.map("80G")
    lab.thread("db", lambda cx, at=heap: mmap(cx, at, 80 << 30, f.PROT_READ, FLAGS))
    lab.bystander("mmap")
    lab.bystander("proc")
    held = holds(lab.run().events)
    print(f"{design:18}{duration(int(held['hold_ns'][held['exclusive']].max()))}")
