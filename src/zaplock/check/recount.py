"""The books of a machine, counted again from nothing when everything has ended.

Every counter of every address space against its VMAs, page-table entries and page-table pages;
every frame's references and mappings against who is there to hold them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from zaplock.model.flags import (
    PAGE_SHIFT,
    PAGE_SIZE,
    VM_ACCOUNT,
    VM_EXEC,
    VM_GROWSDOWN,
    VM_GROWSUP,
    VM_LOCKED,
    VM_SHARED,
    VM_WRITE,
)
from zaplock.model.machine import Machine
from zaplock.model.mm import Mm
from zaplock.model.pagetable import COUNTED, RSS
from zaplock.model.vma import Vma


def recount(m: Machine) -> list[str]:
    """Describe every difference between a counter and what there is to count."""
    return [
        *(error for space in m.mms.values() for error in _space(m, space)),
        *_commitments(m),
        *_cached(m),
        *_frames(m),
    ]


def _vmas(m: Machine, space: Mm) -> list[Vma]:
    found = []
    for start in space.tree:
        vma = m.vmas[space.tree[start]]
        assert isinstance(vma, Vma)
        found.append(vma)
    return found


def _space(m: Machine, space: Mm) -> Iterator[str]:
    vmas = _vmas(m, space)
    counted = {
        "total_vm": sum(vma.nr_pages for vma in vmas),
        "locked_vm": sum(vma.nr_pages for vma in vmas if vma.flags & VM_LOCKED),
        "map_count": len(vmas),
        "pgtables_bytes": PAGE_SIZE * _tables(space),
        "tlb_flush_pending": 0,
        **_resident(space),
        **_parts(vmas),
    }
    for name, value in counted.items():
        if space.count(name) != value:
            yield f"{name} of mm {space.mm} is {space.count(name)}, counted {value}"
    for handle in m.vmas:
        vma = m.vmas[handle]
        if isinstance(vma, Vma) and vma.mm == space.mm and not vma.attached:
            yield f"{vma} is out of the tree and was never freed"
    if vmas and space.count("users") <= 0:
        yield f"mm {space.mm} has no users left, but {len(vmas)} VMAs"
    yield from _outside(space, vmas)
    for low, high in space.teardown.data.values():
        yield f"[{low:#x}, {high:#x}) is still being torn down"
    for cut in space.cuts:
        yield f"the cut of VMAs {space.cuts[cut].handles} was never finished"
    for start in space.dying:
        yield f"the tombstone of [{start:#x}, {space.dying[start][0]:#x}) was never taken away"


def _parts(vmas: list[Vma]) -> dict[str, int]:
    """Count again what account_parts keeps: code, stacks and data."""
    parts = {"exec_vm": 0, "stack_vm": 0, "data_vm": 0}
    for vma in vmas:
        flags = vma.flags
        if flags & (VM_EXEC | VM_WRITE | VM_GROWSDOWN | VM_GROWSUP) == VM_EXEC:
            parts["exec_vm"] += vma.nr_pages
        elif flags & (VM_GROWSDOWN | VM_GROWSUP):
            parts["stack_vm"] += vma.nr_pages
        elif flags & (VM_WRITE | VM_SHARED) == VM_WRITE:
            parts["data_vm"] += vma.nr_pages
    return parts


def _tables(space: Mm) -> int:
    return sum(
        end - start
        for level, tables in space.tables.items()
        if level < 4
        for start, (end, _) in tables.data.items()
    )


def _resident(space: Mm) -> dict[str, int]:
    resident = dict.fromkeys(RSS.values(), 0)
    for start, (end, pte) in space.ptes.data.items():
        if pte.kind in RSS:
            resident[RSS[pte.kind]] += end - start
    return resident


def _outside(space: Mm, vmas: list[Vma]) -> Iterator[str]:
    for start, (end, _) in space.ptes.data.items():
        covered = sum(
            max(0, min(end << PAGE_SHIFT, vma.end) - max(start << PAGE_SHIFT, vma.start))
            for vma in vmas
        )
        if covered != (end - start) << PAGE_SHIFT:
            yield f"pages [{start:#x}, {end:#x}) of mm {space.mm} are mapped outside any VMA"


def _commitments(m: Machine) -> Iterator[str]:
    counted = sum(
        vma.nr_pages
        for space in m.mms.values()
        for vma in _vmas(m, space)
        if vma.flags & VM_ACCOUNT
    )
    for number, file in m.files.data.items():
        if file.refs > 0:
            counted += file.charged
            if file.charged_by_page:
                counted += sum(end - at for at, (end, _) in m.page_cache(number).data.items())
    counted += m.globals.get("committed_forgotten", 0)
    if m.globals.get("committed_as", 0) != counted:
        yield f"Committed_AS is {m.globals.get('committed_as', 0)}, counted {counted}"


def _cached(m: Machine) -> Iterator[str]:
    for file in m.files:
        pages = -(-m.files[file].size >> PAGE_SHIFT)
        for _, (end, _) in m.page_cache(file).data.items():
            if end > pages:
                yield f"the page cache of file {file} reaches to page {end}, the file to {pages}"


def _frames(m: Machine) -> Iterator[str]:
    refs: Counter[int] = Counter()
    maps: Counter[int] = Counter()
    for space in m.mms.values():
        for start, (end, pte) in space.ptes.data.items():
            if pte.kind in COUNTED:
                for vpn in range(start, end):
                    maps[vpn + pte.delta] += 1
                    refs[vpn + pte.delta] += 1
    for file in m.files:
        for start, (end, delta) in m.page_cache(file).data.items():
            for pgoff in range(start, end):
                refs[pgoff + delta] += 1
    for start, (end, frame) in m.frames.data.items():
        for pfn in range(start, end):
            if (refs[pfn], maps[pfn]) != (frame.refs, frame.maps):
                yield (
                    f"{frame.kind} frame {pfn:#x} counts {frame.refs} references and "
                    f"{frame.maps} mappings, found {refs[pfn]} and {maps[pfn]}"
                )
    dangling = [pfn for pfn in refs if m.frames.at(pfn) is None]
    for pfn in dangling:
        yield f"frame {pfn:#x} is mapped and was never allocated"
