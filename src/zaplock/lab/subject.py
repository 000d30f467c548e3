"""The process under study, ready for its munmap: a mapping with every page present, and the rest.

The VMAs are made by the design's own system calls, run one after the other before the clock starts.
The pages are then put in at once, as runs: 320 GB of them are a handful of cells. Nothing of this
costs virtual time.
"""

from __future__ import annotations

from collections.abc import Coroutine
from itertools import pairwise
from typing import Any

from zaplock.engines import sequential
from zaplock.errors import UserError
from zaplock.experiment import HUGE, PAGE, Experiment
from zaplock.model.files import fill_cache, new_file
from zaplock.model.flags import (
    MADV_DONTFORK,
    MADV_HUGEPAGE,
    MADV_NOHUGEPAGE,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_HUGETLB,
    MAP_NORESERVE,
    MAP_PRIVATE,
    MAP_SHARED,
    PAGE_SHIFT,
    PROT_READ,
    PROT_WRITE,
)
from zaplock.model.frames import alloc_frames, change_frames
from zaplock.model.machine import Machine
from zaplock.model.mm import Pte
from zaplock.model.pagetable import alloc_tables, install
from zaplock.model.step import Task
from zaplock.protocols.address_locks import under
from zaplock.protocols.design import Cx
from zaplock.protocols.madvise import madvise
from zaplock.protocols.mlock import mlock
from zaplock.protocols.mmap import mmap
from zaplock.protocols.user_access import write_memory

MM = 1
ARGUMENTS = 1 << 30
"""Where the process's command line is: a page of its own, present."""
FAULTS = 1 << 36
FAULTS_LENGTH = 1 << 38
"""Where the fault bystander finds fresh pages; the first one is present."""
ADVISED = 1 << 31
PROTECTED = 1 << 32
MAPPING = 1 << 40
"""Where the mapping under study begins."""
FILE = 1

_PRIVATE = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED


def prepare(machine: Machine, cx: Cx, experiment: Experiment) -> None:
    """Map what the experiment needs into mm 1 of an empty machine."""

    def do(work: Coroutine[Any, Any, int]) -> int:
        return sequential.run(machine, cx.task, under(cx.design, work))

    for start, length in (
        (ARGUMENTS, PAGE),
        (FAULTS, FAULTS_LENGTH),
        (ADVISED, PAGE),
        (PROTECTED, PAGE),
    ):
        _require(do(_map(cx, start, length, _PRIVATE)), length)
        # The first fault of a VMA makes its anon_vma, under the mmap_lock on every kernel.
        assert do(write_memory(cx, start, 1)) == 0
    machine.mm(MM).counters.put("arg_start", ARGUMENTS)
    length, backing = experiment.length, experiment.backing
    machine.globals.put("hugetlb_free", length // HUGE)
    _require(do(_map_backing(machine, cx, length, backing)), length)
    if backing in ("anonymous", "zero", "thp"):
        advice = MADV_HUGEPAGE if backing == "thp" else MADV_NOHUGEPAGE
        assert do(madvise(cx, MAPPING, length, advice)) == 0
    for start, end in _every_second_piece(experiment):
        assert do(madvise(cx, start, end - start, MADV_DONTFORK)) == 0
    populate(machine, cx.task, length, backing)
    if experiment.locked:
        assert do(mlock(cx, MAPPING, length)) == 0


def _require(address: int, length: int) -> None:
    if address < 0:
        raise UserError(f"size {length} does not fit the address space: at most 127T can be mapped")


async def _map(cx: Cx, start: int, length: int, flags: int, file: int = 0) -> int:
    return await mmap(cx, start, length, PROT_READ | PROT_WRITE, flags, file)


async def _map_backing(machine: Machine, cx: Cx, length: int, backing: str) -> int:
    if backing == "file":
        new_file(machine, FILE, "shmem", length, "memfd:zaplock")
        return await _map(cx, MAPPING, length, MAP_SHARED | MAP_FIXED, FILE)
    huge = MAP_HUGETLB if backing == "hugetlb" else 0
    return await _map(cx, MAPPING, length, _PRIVATE | huge)


def _every_second_piece(experiment: Experiment) -> list[tuple[int, int]]:
    """Cut the mapping into VMAs as `zaplock measure` does: by flags that keep them apart."""
    unit, count = experiment.page, experiment.nr_vmas
    pieces = experiment.length // unit
    edges = [MAPPING + pieces * i // count * unit for i in range(count + 1)]
    return list(pairwise(edges))[1::2]


def populate(machine: Machine, task: Task, length: int, backing: str) -> None:
    """Make every page of the mapping present, as faults on all of them would leave it."""
    space, first, last = machine.mm(MM), MAPPING >> PAGE_SHIFT, MAPPING + length >> PAGE_SHIFT
    alloc_tables(machine, task, space, first, last, 2 if backing == "hugetlb" else 1)
    if backing == "zero":
        pte = Pte("zero", 0)
    elif backing == "file":
        frame = fill_cache(machine, task, FILE, 0, last - first)
        change_frames(machine, task, frame, frame + last - first, refs=1)
        pte = Pte("shmem", frame - first, True)
    else:
        kind = "anon" if backing == "anonymous" else backing
        pte = Pte(kind, alloc_frames(machine, task, kind, last - first) - first, True)
    install(machine, task, space, first, last, pte)
    machine.globals.put("hugetlb_reserved", 0)  # all that was is mapped
