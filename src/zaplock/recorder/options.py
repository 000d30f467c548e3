"""What to record."""

from __future__ import annotations

from dataclasses import dataclass

from zaplock.errors import UserError, no_such
from zaplock.recorder.lock_events import AUTO
from zaplock.recorder.meanings import GROUPS

DEFAULT_GROUPS = ("mmap_lock", "syscalls")
MOST_MMS = 32
"""Of more processes the kernel is not asked to filter by mm: that is done afterwards."""


@dataclass(frozen=True, slots=True)
class Options:
    """What to record. No `pids` is the whole system; `groups` are keys of `meanings.GROUPS`."""

    pids: tuple[int, ...] = ()
    children: bool = False
    groups: tuple[str, ...] = DEFAULT_GROUPS
    buffer_kb: int | None = None
    percent: int = 25
    """How full a buffer is before the reader wakes up."""
    kernel_stacks: bool = False
    """Sample kernel stacks of those who hold or wait (see `stack_sampler`)."""
    stacks: bool = False
    """And the program's stack, of everybody who gets the lock."""
    watch: bool = False
    """Begin with the contention of the target's lock alone; the rest waits for `Capture.widen`."""
    by: str = AUTO
    """How lock events are seen: one of `lock_events.WAYS`."""

    def check(self) -> None:
        """Raise UserError where a group is unknown or a number makes no sense."""
        for group in self.groups:
            if group not in GROUPS:
                raise no_such("events", group, GROUPS)
        if self.buffer_kb is not None and self.buffer_kb < 64:
            raise UserError(f"a buffer of {self.buffer_kb} KiB is under 64 KiB: give a larger one")
        if self.watch and (not 1 <= len(self.pids) <= MOST_MMS or self.children):
            raise UserError(
                f"1 to {MOST_MMS} processes can be watched, without their children: "
                f"{len(self.pids)} are asked for"
            )
        if not 0 <= self.percent <= 100:
            raise UserError(f"{self.percent} % of a buffer is not between 0 and 100")
