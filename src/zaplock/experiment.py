"""An experiment as data: what is mapped, taken down how, beside whom, and where that can be done.

`zaplock compare` runs it under a design, `zaplock measure` on the kernel at hand or in a guest. The
description, its vocabulary and its rules are here; `lab.experiment`, `measure.plan` and
`measure.guest.experiment` add what only their place has (CPUs to simulate, a limit of time, a
kernel to boot).

| backing   | what a page is                                                        |
|-----------|-----------------------------------------------------------------------|
| anonymous | a private page of 4 KiB (THP switched off for the range)              |
| zero      | the shared zero page, read-faulted: page tables but no memory         |
| file      | the page cache of a memfd, mapped shared; unmapping frees no page     |
| thp       | a transparent huge page of 2 MiB                                      |
| hugetlb   | a page of 2 MiB from the pool (vm.nr_hugepages)                       |

The ways of teardown are described in `measure.teardown`, the bystanders in `measure.bystanders` and
`lab.bystanders`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from zaplock.errors import UserError, no_such

if TYPE_CHECKING:  # a measured process imports this, and shall not import numpy
    from zaplock.trace.quotas import CpuMax

PAGE = 4096
HUGE = 2 << 20


class Backing(NamedTuple):
    """What a mapping is made of.

    page: bytes of its page. takes_memory, from_pool: whether pages are memory of their own, and
    from the hugetlb pool. on_heap: the heap can be made of it. zap, free: the units of a cost
    profile that one page takes when it is unmapped.
    """

    page: int = PAGE
    zap: str = "zap_anon"
    free: str | None = "free_anon"
    takes_memory: bool = True
    from_pool: bool = False
    on_heap: bool = True


BACKINGS = {
    "anonymous": Backing(),
    "zero": Backing(PAGE, "zap_zero", None, takes_memory=False),
    "file": Backing(PAGE, "zap_file", "free_file", on_heap=False),
    "thp": Backing(HUGE, "zap_thp", "free_thp"),
    "hugetlb": Backing(HUGE, "zap_hugetlb", "free_hugetlb", from_pool=True, on_heap=False),
}
TEARDOWNS = ("munmap", "growsdown", "fixed", "brk", "mremap", "dontneed", "exit")


PROC_FILES = {
    "proc": "cmdline",
    "environ": "environ",
    "maps": "maps",
    "smaps": "smaps",
    "rollup": "smaps_rollup",
}
"""Bystanders that read a file of /proc/PID, and which one."""
BYSTANDERS = (
    "fault", "proc", "mmap", "gup", "madvise", "mprotect", "clone", "maps", "smaps", "rollup",
    "environ",
)  # fmt: skip
"""Those that can be had on a real kernel; a simulation has more (`lab.bystanders`)."""
FOREIGN = ("gup", *PROC_FILES)
"""Bystanders that are processes of their own."""


@dataclass(frozen=True, slots=True)
class Experiment:
    """`length` bytes of `backing` in `nr_vmas` VMAs, every page mapped, taken down by one call.

    Each bystander does one operation every `period_ns`, never two at a time. `locked` memory is
    mlocked. `cpu_max` is the quota of the process under study; foreign bystanders have none.
    """

    length: int
    backing: str = "anonymous"
    teardown: str = "munmap"
    bystanders: tuple[str, ...] = ("fault", "proc")
    locked: bool = False
    nr_vmas: int = 1
    period_ns: int | None = None
    cpu_max: CpuMax | None = None

    @property
    def page(self) -> int:
        """Bytes of a page of the mapping: the unit in which it is mapped and cut."""
        return BACKINGS[self.backing].page


class Venue(NamedTuple):
    """Where experiments run, and what is possible there; `refused` are (teardown, backing)."""

    where: str
    teardowns: Collection[str] = TEARDOWNS
    bystanders: Collection[str] = BYSTANDERS
    refused: Collection[tuple[str, str]] = ()
    most_vmas: int = 60_000


HOST = Venue("on this kernel")
GUEST = Venue(
    "in a guest",
    bystanders=(*BYSTANDERS, "fork"),
    refused={("mremap", "file"), ("mremap", "hugetlb")},
)


def check(experiment: Experiment, place: Venue) -> None:
    """Raise UserError unless the experiment can be run at this place."""
    one_of("backing", experiment.backing, BACKINGS, place.where)
    one_of("teardown", experiment.teardown, place.teardowns, place.where)
    for name in experiment.bystanders:
        one_of("bystander", name, place.bystanders, place.where)
    if len(set(experiment.bystanders)) < len(experiment.bystanders):
        names = ",".join(experiment.bystanders)
        raise UserError(f"bystanders {names} name one twice: name each once")
    unit = experiment.page
    if experiment.length < 1 or experiment.length % unit:
        raise UserError(
            f"size {experiment.length} is no positive multiple of {unit}, the page size of "
            f"{experiment.backing} backing: round it up"
        )
    between("--vmas", experiment.nr_vmas, 1, min(place.most_vmas, experiment.length // unit))
    if experiment.period_ns is not None:
        between("period in nanoseconds", experiment.period_ns, 1_000, 10**9)
    _check_teardown(experiment, place)
    _check_quota(experiment.cpu_max)


def _check_teardown(experiment: Experiment, place: Venue) -> None:
    way, backing = experiment.teardown, experiment.backing
    if way == "brk" and not BACKINGS[backing].on_heap:
        raise UserError(
            f"teardown brk works on the heap, which has no {backing} backing: use anonymous"
        )
    if (way, backing) in place.refused:
        raise UserError(
            f"teardown {way} {place.where} can't have {backing} backing: use anonymous, zero or thp"
        )
    if way == "mremap" and experiment.nr_vmas > 1:
        raise UserError(
            f"teardown mremap works on one VMA, not on {experiment.nr_vmas}: leave --vmas away"
        )


def _check_quota(cpu_max: CpuMax | None) -> None:
    if cpu_max is None:
        return
    between("quota of cpu.max in nanoseconds", cpu_max.quota_ns, 10**6, 10**12)
    between("period of cpu.max in nanoseconds", cpu_max.period_ns, 10**6, 10**9)


def period_of(rate: int) -> int:
    """Return the period in ns of so many operations a second; raise UserError for a wrong rate."""
    if not 1 <= rate <= 1_000_000:
        raise UserError(f"rate {rate} must lie between 1 and 1000000 operations a second")
    return 10**9 // rate


def page_of(backing: str) -> int:
    """Return the bytes of a page of a backing; raise UserError where there is no such one."""
    one_of("backing", backing, BACKINGS)
    return BACKINGS[backing].page


def one_of(what: str, value: str, known: Collection[str], where: str = "") -> None:
    """Raise UserError unless a name is known; `where` is the place that knows it."""
    if value not in known:
        raise no_such(what, value, known, also=f" {where}" if where else "")


def between(what: str, value: float, least: float, most: float) -> None:
    """Raise UserError unless a number lies within bounds, both of them allowed."""
    if not least <= value <= most:
        raise UserError(f"{what} {value} must lie between {least} and {most}")
