"""The lock as a measurement sees it: hold times from the recorder, or a note why there are none."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TeardownHolds:
    """How long the teardown held the mmap_lock, in nanoseconds; None: could not be seen."""

    exclusive_ns: int | None
    shared_ns: int | None
    note: str = ""


class Blind:
    """A view without eyes: says why, and how to see."""

    def __init__(self, note: str) -> None:
        self.note = note

    def of_thread(self, tid: int, begin_ns: int, end_ns: int) -> TeardownHolds:
        """Return no holds, and the reason."""
        return TeardownHolds(None, None, self.note)


@contextmanager
def watch(wanted: bool) -> Iterator[Blind]:
    """Watch the mmap_lock of all processes while the block runs, where that is possible."""
    if not wanted:
        yield Blind("")
        return
    if os.geteuid() != 0:
        yield Blind("hold times not seen: they need root (sudo zaplock measure ...)")
        return
    yield Blind("hold times not seen: no recorder yet")
