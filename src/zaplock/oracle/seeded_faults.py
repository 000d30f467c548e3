"""Faults put into the model on purpose, one rule at a time: would the oracle notice?

Each fault takes one rule away or turns it round: a merge rule, a flag, an errno, an accounting
term, a lock mode. `inject` puts it in for the time of a `with` block. Steps are changed in place,
so everybody who awaits them is concerned; plain functions are replaced wherever they were imported.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from zaplock.model import (
    dirty,
    file_fault,
    files,
    folios,
    frames,
    page_copy,
    page_fault,
    pagetable,
    pinned_pages,
    shared_folios,
    shared_huge,
    vma,
)
from zaplock.model import flags as f
from zaplock.model import ksm as merged_pages
from zaplock.model.mm import change_limits
from zaplock.model.step import StepKind
from zaplock.oracle.campaign import Bench, slice_seed
from zaplock.oracle.modelside import ModelSide
from zaplock.protocols import (
    brk,
    clear_refs,
    collapse_file,
    fault,
    fork,
    ksm,
    madvise,
    memory_group,
    mincore,
    move_tables,
    move_vma,
    mprotect,
    mremap,
    mseal,
    msync,
    munmap,
    placement,
    populate,
    reclaim_advice,
    seals,
    teardown,
    uffd_move,
    vm_flags,
    zap_range,
)

Change = Callable[[Any], Any]
"""From the function as it is to the function with the fault."""


class Fault(NamedTuple):
    """One fault: its name, which rule it breaks, where, and how."""

    name: str
    rule: str
    where: Any
    attribute: str
    change: Change


def _always(value: Any) -> Change:
    return lambda _original: lambda *_args, **_kw: value


def _but(change: Callable[[Any], Any]) -> Change:
    """Let the result be changed."""
    return lambda original: lambda *args, **kw: change(original(*args, **kw))


def _async_nothing(value: Any = None) -> Change:
    async def nothing(*_args: Any, **_kw: Any) -> Any:
        return value

    return lambda _original: nothing


def _without_flag(flag: int) -> Change:
    return _but(lambda flags: flags & ~flag if flags > 0 else flags)


def _files_alike(original: Any) -> Any:
    return lambda m, left, right: original(m, left, vma.change(right, file=left.file))


def _offsets_alike(original: Any) -> Any:
    def merge(m: Any, left: Any, right: Any) -> Any:
        return original(m, left, vma.change(right, pgoff=left.pgoff + left.nr_pages))

    return merge


def _flags_alike(original: Any) -> Any:
    return lambda m, left, right: original(m, left, vma.change(right, flags=left.flags))


def _no_hiwater(original: Any) -> Any:
    def write(m: Any, task: Any, mm: int, counter: str, value: int) -> None:
        if counter != "hiwater_vm":
            original(m, task, mm, counter, value)

    return write


def _stacks_are_data(original: Any) -> Any:
    return lambda space, flags, file, pages: original(space, flags & ~f.VM_GROWSDOWN, file, pages)


def _keeps_content(original: Any) -> Any:
    return lambda m, task, space, vpn, tag=0: original(m, task, space, vpn, 0)


def _merges_with_all(_original: Any) -> Any:
    return lambda m, task, space, handle: vma.merge_around(m, task, handle)


def _advice(number: int) -> Change:
    return lambda original: (
        {key: value for key, value in original.items() if key != number} | {number: (0, 0)}
    )


def _top_down(original: Any) -> Any:
    def area(m: Any, space: Any, address: int, length: int, flags: int) -> Any:
        return original(m, space, address, length, flags & ~f.MAP_32BIT)

    return area


def _unlimited(limit: str) -> Change:
    def change(original: Any) -> Any:
        def fits(space: Any, flags: int, pages: int) -> Any:
            kept = space.limits
            change_limits(space, vma.change(kept, **{limit: 1 << 63}))
            try:
                return original(space, flags, pages)
            finally:
                change_limits(space, kept)

        return fits

    return change


def _errno(wrong: int, right: int) -> Change:
    return _but(lambda result: wrong if result == right else result)


def _on_fault_too(original: Any) -> Any:
    def populated(cx: Any, handle: int, area: Any, low: int, high: int) -> Any:
        return original(
            cx, handle, vma.change(area, flags=area.flags & ~f.VM_LOCKONFAULT), low, high
        )

    return populated


def _stays_locked(original: Any) -> Any:
    def keep(m: Any, task: Any, mm: int, new: int, address: int, length: int, leaks: bool) -> None:
        handle = vma.lookup(m, m.mm(mm), address)
        flags = m.vmas[handle].flags
        original(m, task, mm, new, address, length, leaks)
        m.vmas.put(handle, vma.change(m.vmas[handle], flags=flags))

    return keep


FAULTS: tuple[Fault, ...] = (
    Fault("merge-nothing", "equal neighbours are one VMA", vma, "can_merge", _always(False)),
    Fault("merge-other-files", "only the same file merges", vma, "can_merge", _files_alike),
    Fault("merge-other-offsets", "offsets must go on", vma, "can_merge", _offsets_alike),
    Fault("merge-other-flags", "flags must be equal", vma, "can_merge", _flags_alike),
    Fault("merge-anon-vmas", "two anon_vmas don't merge", vma, "anon_vmas_agree", _always(True)),
    Fault("anon-vma-alone", "a first fault shares a neighbour's anon_vma", vma,
          "reusable_anon_vma", _always(0)),
    Fault("heap-merges", "the heap merges with itself only", brk, "merge_with_heap",
          _merges_with_all),
    Fault("no-noreserve", "MAP_NORESERVE is VM_NORESERVE", vm_flags.mmap_flags, "run",
          _without_flag(f.VM_NORESERVE)),
    Fault("no-sync", "MAP_SYNC is VM_SYNC", vm_flags.mmap_flags, "run", _without_flag(f.VM_SYNC)),
    Fault("stack-huge", "MAP_STACK is VM_NOHUGEPAGE", vm_flags.mmap_flags, "run",
          _without_flag(f.VM_NOHUGEPAGE)),
    Fault("32bit-top-down", "MAP_32BIT is searched bottom-up", placement, "unaligned_area",
          _top_down),
    Fault("no-guard-gap", "mappings keep away from a stack", placement, "start_with_gap",
          lambda _original: lambda space, area: area.start),
    Fault("no-rlimit-as", "RLIMIT_AS bounds total_vm", vma, "fits_limits",
          _unlimited("rlimit_as")),
    Fault("no-rlimit-data", "RLIMIT_DATA bounds data_vm", vma, "fits_limits",
          _unlimited("rlimit_data")),
    Fault("no-rlimit-memlock", "RLIMIT_MEMLOCK bounds locked_vm", vm_flags, "mlock_fits",
          _always(True)),
    Fault("no-rlimit-stack", "RLIMIT_STACK bounds a stack", fault, "stack_fits", _always(True)),
    Fault("empty-munmap", "a length of 0 is EINVAL", munmap, "munmap_addr_sanity",
          lambda original: lambda cx, start, length: original(cx, start, length or 4096)),
    Fault("seal-is-nothing", "sealed memory stays", seals.any_sealed, "run", _always(False)),
    Fault("seal-holes", "a range with holes can't be sealed", mseal.is_all_mapped, "run",
          _always(True)),
    Fault("mprotect-uncharged", "memory that becomes writable is charged",
          mprotect.charge_writable, "run", _always(0)),
    Fault("mremap-errno", "a locked growth beyond the limit is EAGAIN", mremap.growth_limits,
          "run", _errno(-12, -11)),
    Fault("mremap-hiwater", "a move does not raise VmPeak", teardown.write_counter, "run",
          _no_hiwater),
    Fault("dontunmap-locked", "what DONTUNMAP leaves is unlocked", move_vma.keep_empty, "run",
          _stays_locked),
    Fault("mremap-leaves-tables", "page tables exist at the new place",
          move_tables.alloc_moved_tables, "run", _always(None)),
    Fault("dontfork-ignored", "MADV_DONTFORK is VM_DONTCOPY", madvise, "FLAG_ADVICE",
          _advice(f.MADV_DONTFORK)),
    Fault("dontneed-keeps", "MADV_DONTNEED zaps", zap_range, "zap_page_range_single",
          _async_nothing()),
    Fault("tables-kept", "MADV_DONTNEED frees the tables it has emptied",
          zap_range.reclaim_tables, "run", _always(None)),
    Fault("wipeonfork-ignored", "VM_WIPEONFORK is not copied", fork, "needs_copy",
          _always(True)),
    Fault("fork-empty-tables", "a child has its parent's tables", fork.copy_tables, "run",
          _always(None)),
    Fault("no-fault-around", "a read fault maps its neighbours", page_fault, "maps_around",
          _always(False)),
    Fault("copy-loses-content", "a copy on write keeps the content", page_copy, "map_new",
          _keeps_content),
    Fault("page-tables-leak", "munmap frees page tables", teardown.free_pgd_range, "run",
          _always(None)),
    Fault("munmap-keeps-locked", "munmap takes its pages out of locked_vm",
          munmap.count_locked, "run", _always(0)),
    Fault("no-peak", "VmPeak remembers", teardown.raise_hiwater_vm, "run", _always(None)),
    Fault("stacks-are-data", "stacks are counted apart from data", vma, "account_parts",
          _stacks_are_data),
    Fault("onfault-populates", "MLOCK_ONFAULT does not populate", populate,
          "populate_vma_page_range", _on_fault_too),
    Fault("mincore-blind", "mincore looks into the page cache", mincore, "is_at_hand",
          lambda _original: lambda m, area, vpn, _index: m.mm(area.mm).ptes.at(vpn) is not None),
    Fault("truncate-keeps", "truncation drops cached pages", files.truncate_pagecache, "run",
          _always(None)),
    Fault("mlock-counts-nothing", "mlock counts locked_vm", teardown.add_counter, "run",
          _always(None)),
    Fault("zeros-kept", "splitting a huge page gives pages of zeros back", folios, "_map_zero_page",
          _always(None)),
    Fault("huge-anywhere", "a huge page fits only where it is aligned", move_tables,
          "split_entries", lambda _original: lambda _m, _low, pte: pte),
    Fault("read-needs-no-anon-vma", "populating huge pages for reading gives an anon_vma",
          populate, "meets_huge_pages", _always(False)),
    Fault("memory-merge-later", "what is mapped under PR_SET_MEMORY_MERGE is mergeable", ksm,
          "mergeable_flags", lambda _original: lambda _space, flags, *_rest: flags),
    Fault("msync-locked", "MS_INVALIDATE of locked memory is EBUSY", msync, "MS_INVALIDATE",
          lambda _original: 0),
)  # fmt: skip

OF_THEMES: dict[str, tuple[Fault, ...]] = {
    "uffd-huge": (
        Fault("shared-pages-move", "what a fork has shared can't be moved", uffd_move, "may_leave",
              _always(True)),
        Fault("folio-moves-in-parts", "a huge page is split with the first page that is moved",
              uffd_move, "is_in_folio", _always(False)),
        Fault("small-move-of-huge", "a huge page moves whole onto no page table", uffd_move,
              "move_huge", _always(512)),
    ),
    "collapse-file": (
        Fault("tables-stay", "a collapse takes the page tables of all mappings away",
              collapse_file, "retract", _always(None)),
        Fault("one-page-at-a-time", "a fault maps a huge page of a file by one entry", file_fault,
              "map_huge", _always(False)),
        Fault("holes-cut-nothing", "a hole cuts the huge page that it is in", files, "cut_at",
              _always(None)),
        Fault("splits-remap", "a huge entry of a file is lost with a part of it", pagetable,
              "unmap_huge", _always(None)),
    ),
    "shmem-huge": (
        Fault("no-folios", "a mount's policy makes huge pages", shared_folios, "new_order",
              _always(0)),
        Fault("ends-anywhere", "within_size heeds where a file ends", shared_folios, "_end",
              _always(0)),
        Fault("placed-anywhere", "what may have huge pages lies where they fit", placement,
              "shared_huge_area", lambda _original: lambda *given: given[-1]),
        Fault("filled-is-there", "what fallocate makes is not there until somebody uses it",
              shared_huge, "is_fallocated", _always(False)),
        Fault("nothing-beyond-the-end", "a cut spares what fallocate has filled beyond the end",
              files, "kept_pages", lambda _original: lambda backing: -(-backing.size >> 12)),
        Fault("watched-writes-pass", "what a userfaultfd watches is read as read-only", file_fault,
              "stays_writable", _always(True)),
    ),
    "lazyfree": (
        Fault("free-does-nothing", "what MADV_FREE was given for is lazily free",
              reclaim_advice.mark_free, "run", _always(None)),
        Fault("written-stays-free", "who writes to a page keeps it", pagetable, "write_entry",
              _always(None)),
        Fault("touched-stays-free", "populating to write keeps pages", populate, "soil_touched",
              _always(None)),
    ),
    "references": (
        Fault("clears-nothing", "clear_refs clears accessed bits", clear_refs.clear_young, "run",
              _always(None)),
        Fault("uses-unnoticed", "a CPU that uses an entry marks it", pagetable, "use_entry",
              _always(None)),
        Fault("touch-unnoticed", "who populates marks pages as used", populate, "mark_touched",
              _always(None)),
        Fault("unmapped-unnoticed", "a file's page is marked when a used entry of it goes",
              pagetable, "mark_accessed", _always(None)),
        Fault("one-by-one", "mprotect changes the small entries of a huge page together", mprotect,
              "use_batches", _always(None)),
    ),
    "dirty": (
        Fault("reads-write", "what was only read of a file is clean", dirty, "unwritten",
              lambda _original: lambda m, pte: pte),
        Fault("forgets-entries", "what a dirty entry of a file knows goes to the page when it goes",
              dirty, "tell_page", _always(None)),
        Fault("writes-unnoticed", "a CPU that writes through an entry makes it dirty", pagetable,
              "write_entry", _always(None)),
        Fault("touched-stays-clean", "populating to write makes a file's page dirty", populate,
              "mark_dirty", _always(None)),
        Fault("nothing-soils", "populating to write makes anonymous pages dirty", frames, "soil",
              _always(None)),
    ),
    "group": (
        Fault("nobody-is-killed", "who outgrows a memory cgroup is killed",
              memory_group.charged_pages, "run", _always(-(1 << 40))),
    ),
    "ksm": (
        Fault("merged-is-reused", "a write copies a merged page", page_copy, "is_own",
              lambda _original: lambda frame: frame.maps == 1),
        Fault("moves-keep-merged", "what moves, and what is unmergeable, has pages of its own",
              ksm.unmerge_ksm_pages, "run", _always(None)),
        Fault("pins-keep-merged", "who pins a merged page gets a copy",
              pinned_pages, "unshare_page", _always(None)),
        Fault("pins-hold-nothing", "pages that a call has pinned hold their huge page",
              pinned_pages, "is_held", _always(False)),
        Fault("any-zero-page", "a zero page that ksmd has put somewhere is known by that",
              merged_pages, "ScanRules",
              lambda original: lambda *rules: original(*rules)._replace(marks_zeros=False)),
        Fault("merged-before-zero", "use_zero_pages comes before what is merged", merged_pages,
              "ScanRules",
              lambda original: lambda *rules: original(*rules)._replace(zeros_first=False)),
        Fault("all-share-one", "no more than max_page_sharing pages are one", ksm.share_at_most,
              "run", _always(0)),
        Fault("own-pages-only", "pages of several processes are one", merged_pages,
              "mergeable_vmas", _but(lambda vmas: [v for v in vmas if v.mm == vmas[-1].mm])),
        Fault("zeros-stay-huge", "a huge page that ksmd splits gives its zeros back", merged_pages,
              "ScanRules",
              lambda original: lambda *rules: original(*rules)._replace(finds_zeros=False)),
    ),
}  # fmt: skip
"""Faults that only these themes can find, on a machine that has what they need."""


@contextmanager
def inject(fault_: Fault) -> Iterator[None]:
    """Put a fault into the model; take it out again at the end of the block."""
    original = getattr(fault_.where, fault_.attribute)
    changed = fault_.change(original)
    if isinstance(fault_.where, StepKind):
        places = [(fault_.where, fault_.attribute)]
    else:
        places = list(_users(original, fault_.attribute))
    for owner, name in places:
        setattr(owner, name, changed)
    try:
        yield
    finally:
        for owner, name in places:
            setattr(owner, name, original)


def _users(original: Any, attribute: str) -> Iterator[tuple[Any, str]]:
    """Find every module of the model that has imported a function by its name."""
    for name, module in list(sys.modules.items()):
        ours = name.startswith(("zaplock.model", "zaplock.protocols"))
        if ours and getattr(module, attribute, None) is original:
            yield module, attribute


HANG_S = 3.0
"""A broken model may go round in circles: that is found too."""


class Detection(NamedTuple):
    """How a fault was found: after how many operations and seconds, by what divergence."""

    fault: Fault
    operations: int
    seconds: float
    signature: str


def hunt(bench: Bench, fault_: Fault, seed: int = 1, limit_s: float = 60.0) -> Detection:
    """Run slices with a fault in the model until a divergence; `signature` "" if there is none.

    A divergence counts only if it is gone when the fault is: otherwise it is the model's own.
    """
    began, operations, number = time.monotonic(), 0, 0
    if isinstance(bench.model, ModelSide):
        bench.model.limit_s = HANG_S
    while time.monotonic() - began < limit_s:
        with inject(fault_):
            report = bench.slice(slice_seed(seed, number), sequences=4, shrinking=False)
        operations += report.operations
        number += 1
        for divergence in report.divergences:
            if bench.diverge(divergence.sequence) is None:
                seconds = time.monotonic() - began
                return Detection(fault_, operations, seconds, divergence.signature)
    return Detection(fault_, operations, time.monotonic() - began, "")
