"""Which addresses a recorded call is about."""

from __future__ import annotations

from zaplock.model import flags as f
from zaplock.programs import monitors
from zaplock.programs.arguments import numbers
from zaplock.programs.calls import page_size
from zaplock.programs.recording import TracedCall

OF_A_RANGE = frozenset({
    "munmap", "mprotect", "madvise", "mlock", "mlock2", "munlock", "msync", "mincore", "mseal",
    "mbind", "set_mempolicy_home_node", "pkey_mprotect", "remap_file_pages", "ioctl",
})  # fmt: skip


def ranges_of(call: TracedCall) -> list[tuple[int, int]]:
    """List the addresses that a call names or was given; empty where they can't be read."""
    try:
        if call.name == "mmap":
            address, length, _, flags = numbers(call, 4)
            length += -length % page_size(flags)
            at = call.result if call.result >= 0 else address
            return [(at, at + f.page_align(length))] if call.result >= 0 or flags & 16 else []
        if call.name == "mremap":
            address, old, new = numbers(call, 3)
            found = [(address, address + f.page_align(old))]
            return found + ([(call.result, call.result + new)] if call.result >= 0 else [])
        if call.name == "ioctl":
            return [monitors.range_of(call)]
        if call.name in OF_A_RANGE:
            start, length = numbers(call, 2)
            return [(start, start + f.page_align(length))]
        if call.name in ("mlockall", "munlockall"):
            return [(0, f.TASK_SIZE_4_LEVELS)]
        if call.name == "shmdt":
            (start,) = numbers(call, 1)
            return [(start, start + 1)]
    except (ValueError, IndexError):
        return []
    return []
