"""Races of two threads, driven on a real kernel: how often does it lose what check says it loses?

The interleavings are those of the checker's scenarios of the same names, and race.c drives them:
one thread tears a range down, the other acts as soon as it sees that the range is gone. So a try is
lost only where the kernel takes away what was written afterwards, or counts wrongly; a try in which
the second thread came late, or was killed for its access, is none that was lost.

A kernel that has a bug may leak a page in each lost try, or worse. In a guest that does no harm.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from zaplock.errors import UserError, no_such
from zaplock.experiment import between
from zaplock.measure.guest import host, kernels, qemu
from zaplock.measure.guest.capsule import Capsule, CapsuleError

RACES = {
    "expand": "a stack grows into the range that munmap zaps",
    "ceiling": "a stack grows into the last page table that munmap frees",
    "lost-update": "munmap and a growing stack both change total_vm",
    "missed-flush": "two MADV_DONTNEED of one page, of which the second finds it gone",
}
"""The races that can be driven from user mode, named as the checker's scenarios."""
MOST_TRIES = 20_000
LENGTH = 16 << 20
_MEMORY = 512 << 20
_SMALLEST = 8 << 20
_KEPT, _LOST, _REFUSED = range(3)
_STAMPED = re.compile(r"\[ {0,12}(?P<s>\d+\.\d+)\] (?P<text>.*)")
_COMPLAINTS = ("BUG: ", "WARNING: ", "Bad rss-counter")


@dataclass(frozen=True, slots=True)
class RacePlan:
    """A race of `tries` tries on a range of `length` bytes. `kernel` is "host" or a guest's.

    With `stand_in` the kernel isn't asked for its teardown: several calls do what the bug does.
    """

    race: str
    kernel: str = "debian:6.1"
    tries: int = 1000
    length: int = LENGTH
    nr_cpus: int = 2
    timeout_s: float = 300.0
    stand_in: bool = False

    def check(self) -> None:
        """Raise UserError where there is no such race or a number makes no sense."""
        if self.race not in RACES:
            raise no_such("race", self.race, RACES)
        between("--tries", self.tries, 1, MOST_TRIES)
        between("--guest-cpus", self.nr_cpus, 2, 64)
        if self.length % (2 << 20) or not _SMALLEST <= self.length <= 1 << 40:
            raise UserError(f"a race on {self.length} bytes: give a multiple of 2 MiB, 8M or more")

    @property
    def arguments(self) -> list[str]:
        """The probe's command line."""
        words = {"race": self.race, "tries": self.tries, "length": self.length}
        words["stand_in"] = int(self.stand_in)
        return [f"{name}={value}" for name, value in words.items()]


@dataclass(frozen=True)
class RaceRun:
    """A plan and what became of its tries."""

    plan: RacePlan
    capsule: Capsule

    @property
    def release(self) -> str:
        """The release of the kernel that was raced."""
        return self.capsule.facts["release"]

    @cached_property
    def _tries(self) -> NDArray[np.int64]:
        """Rows of begin, seen, acted, end (CLOCK_MONOTONIC, ns) and outcome."""
        data = self.capsule.records.get("race", b"")
        if len(data) != self.plan.tries * 40:
            raise CapsuleError("its race is no table of tries")
        return np.frombuffer(data, "<i8").reshape(-1, 5)

    def _count(self, outcome: int) -> int:
        return int((self._tries[:, 4] == outcome).sum())

    @property
    def lost(self) -> int:
        """In how many tries the kernel lost what was written, or counted wrongly."""
        return self._count(_LOST)

    @property
    def refused(self) -> int:
        """In how many tries the second thread's access was refused by a signal."""
        return self._count(_REFUSED)

    @property
    def seen_share(self) -> float:
        """How far the call was when the second thread saw its range gone: a median, 1 at its end.

        A kernel that holds the lock exclusively to its end lets nobody look before.
        """
        begin, seen, _, end, _ = self._tries.T
        return float(np.median((seen - begin) / np.maximum(end - begin, 1)))

    @property
    def call_ns(self) -> int:
        """The median of how long the call took."""
        begin, _, _, end, _ = self._tries.T
        return int(np.median(end - begin))

    @property
    def complaints(self) -> tuple[str, ...] | None:
        """What the kernel's log says of it since the first try; None where it can't be read."""
        log = self.capsule.lines("kernel_log")
        if not log:
            return None
        since_s = self.capsule.fact("begin_ns") / 1e9 - 1
        complaints = (line for line in log if any(word in line for word in _COMPLAINTS))
        found = filter(None, map(_STAMPED.search, complaints))
        return tuple(one["text"] for one in found if float(one["s"]) >= since_s)

    def to_json(self) -> dict[str, object]:
        """Return it as plain values."""
        return {
            "race": self.plan.race,
            "kernel": self.plan.kernel,
            "release": self.release,
            "stand_in": self.plan.stand_in,
            "tries": self.plan.tries,
            "lost": self.lost,
            "refused": self.refused,
            "seen_share": round(self.seen_share, 4),
            "call_ns": self.call_ns,
            "complaints": None if self.complaints is None else list(self.complaints),
        }


def run(plan: RacePlan, *, progress: Callable[[str], None] = lambda _phase: None) -> RaceRun:
    """Race on the plan's kernel. Raises UserError where it can't be had, or the driver fails."""
    plan.check()
    if plan.kernel == host.HOST:
        return RaceRun(plan, host.probed(plan.arguments, plan.timeout_s))
    machine = qemu.GuestMachine((_MEMORY + plan.length) >> 20 << 20, plan.nr_cpus)
    kernel = kernels.find(plan.kernel)
    found = qemu.run(kernel, machine, plan.arguments, limit_s=plan.timeout_s, progress=progress)
    return RaceRun(plan, found)
