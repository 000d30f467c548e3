"""What a worker process occupies."""

from __future__ import annotations

import os


def resident_bytes(pid: int | str = "self") -> int:
    """Return how much memory a process occupies now, 0 if it has ended."""
    try:
        with open(f"/proc/{pid}/statm") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGESIZE")
    except OSError:
        return 0
