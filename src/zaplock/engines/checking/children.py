"""What a worker process occupies."""

from __future__ import annotations

import os
import resource


def resident_bytes(pid: int | str = "self") -> int:
    """Return how much memory a process occupies now, 0 if it has ended."""
    try:
        with open(f"/proc/{pid}/statm") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGESIZE")
    except OSError:
        return 0


def most_resident_bytes() -> int:
    """Return the most that this process has occupied so far: asked in a tenth of the time."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
