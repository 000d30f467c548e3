"""What a call costs on this kernel, by the page; measured when advice is asked for."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from zaplock.errors import UserError
from zaplock.measure import memory
from zaplock.measure.json_children import Child

LENGTHS: Final = (256 << 20, 64 << 20, 16 << 20)
"""Bytes to measure with: the first that fits."""
TIMEOUT_S: Final = 120
PAGE: Final = 4096


@dataclass(frozen=True, slots=True)
class Costs:
    """How long each call took on `length` bytes of present 4 KiB pages, in nanoseconds."""

    length: int
    took_ns: Mapping[str, int]

    def of(self, name: str, length: int) -> int | None:
        """Return what a call is expected to take on `length` bytes; None if it wasn't measured."""
        took = self.took_ns.get(name)
        return None if took is None else took * length // self.length

    def fixed(self, name: str) -> int | None:
        """Return a figure that doesn't grow with the length, such as the piece of a release."""
        return self.took_ns.get(name)


def measure_costs() -> Costs:
    """Measure on this kernel, in a process of its own; takes a few seconds."""
    length = next((length for length in LENGTHS if memory.fits(length, "anonymous")), None)
    if length is None:
        raise UserError("not even 16M of memory is free to measure with: end something, try again")
    deadline = time.monotonic() + TIMEOUT_S
    took: dict[str, int] = {}
    with Child("zaplock.advise.call_timing", {"length": length}) as child:
        while "done" not in (answer := child.receive(deadline)):
            took[answer["name"]] = answer["took_ns"]
    return Costs(length, took)
