"""Where a mapping goes: at a fixed address, at the hint, or into the highest gap.

Source: mm/mmap.c __get_unmapped_area, arch/x86/kernel/sys_x86_64.c, mm/vma.c unmapped_area_topdown.
"""

from __future__ import annotations

from errno import (
    EEXIST,
    EINVAL,
    ENOMEM,
    EPERM,
)
from typing import TYPE_CHECKING

from zaplock.model.flags import (
    MAP_32BIT,
    MAP_ABOVE4G,
    MAP_FIXED,
    MAP_FIXED_NOREPLACE,
    MAP_HUGE_MASK,
    MAP_HUGE_SHIFT,
    MAP_HUGETLB,
    MAP_SHARED,
    PAGE_MASK,
    PAGE_SHIFT,
    PAGE_SIZE,
    PMD_SHIFT,
    PMD_SIZE,
    VM_GROWSDOWN,
)
from zaplock.model.mm import Mm
from zaplock.model.shared_folios import policy_of
from zaplock.model.step import Task, step
from zaplock.model.vma import (
    Vma,
    following,
    lookup,
    overlapping,
    previous,
    tombstones_over,
)

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.model.mm import ResourceLimits


def huge_flags(size: int) -> int:
    """Return the flags of mmap for huge pages of so many bytes."""
    return MAP_HUGETLB | size.bit_length() - 1 << MAP_HUGE_SHIFT


def huge_size_of(flags: int) -> int:
    """Return how many bytes the huge pages have that flags of mmap ask for."""
    return 1 << (flags >> MAP_HUGE_SHIFT & MAP_HUGE_MASK or PMD_SHIFT)


ZERO_DEVICE = -1
"""Stands for /dev/zero where a private mapping of it looks for a new place."""


@step
def get_unmapped_area(
    m: Machine,
    task: Task,
    mm: int,
    address: int,
    length: int,
    flags: int,
    file: int = 0,
    pgoff: int = 0,
    aligns: str = "devices",
    rounds_down: bool = False,
) -> int:
    """Return where a mapping goes: at a fixed address, at the hint, or in a gap.

    Gaps are searched top-down, with MAP_ABOVE4G down to 4 GiB; for MAP_32BIT bottom-up in the
    second gigabyte. What could hold huge
    pages is aligned to them (`aligns`: "files" of file systems that ask for it, "memory" too, of
    whole huge pages, or "devices" too: private mappings of /dev/zero), by asking for a gap that is
    one huge page longer. `rounds_down`: a hint for huge pages of hugetlb, to 6.12.
    """
    space = m.mm(mm)
    limits = space.limits
    if space.count("map_count") > limits.max_map_count or length > limits.task_size:
        return -ENOMEM
    huge = flags & MAP_HUGETLB
    size = huge_size_of(flags)
    if huge and (length % size or (flags & MAP_FIXED and address % size)):
        return -EINVAL
    if flags & MAP_FIXED:
        return fixed_area(m, space, address, length, flags)
    address &= PAGE_MASK
    if huge:
        found = huge_area(m, space, address, length, flags, size, rounds_down)
    else:
        found = area_of_pages(m, space, address, length, flags, file, pgoff, aligns)
    return found if found <= limits.task_size - length else -ENOMEM  # it may have shrunk since exec


def area_of_pages(
    m: Machine,
    space: Mm,
    address: int,
    length: int,
    flags: int,
    file: int,
    pgoff: int,
    aligns: str,
) -> int:
    """Return where a mapping of small pages goes, at the hint or in a gap."""
    is_narrow = space.limits.is_narrow
    if wants_huge_alignment(m, address, length, flags, file, pgoff, aligns, is_narrow):
        padded = unaligned_area(m, space, address, length + PMD_SIZE, flags)
        if padded == address and address:
            return address
        if padded >= 0:
            shift = ((pgoff << PAGE_SHIFT if file else 0) - padded) % PMD_SIZE
            return padded + (shift or PMD_SIZE)
    found = unaligned_area(m, space, address, length, flags)
    if is_shared_memory(m, flags, file):
        backing = m.files[file] if file > 0 and m.files[file].kind == "shmem" else None
        offset = (pgoff << PAGE_SHIFT) % PMD_SIZE if file else 0
        if found >= 0 and policy_of(m, backing) != "never":
            return shared_huge_area(m, space, address, length, flags, offset, found)
    return found


def is_shared_memory(m: Machine, flags: int, file: int) -> bool:
    """Return whether a mapping is of a file in memory, or of shared memory that has none yet."""
    kind = m.files[file].kind if file > 0 else ""
    return kind == "shmem" or (kind in ("", "zero") and bool(flags & MAP_SHARED))


def shared_huge_area(
    m: Machine, space: Mm, address: int, length: int, flags: int, offset: int, found: int
) -> int:
    """Return where a mapping goes so that its file's huge pages fit (shmem_get_unmapped_area).

    offset: where in a huge page it begins. found: where it would go without that.
    """
    too_short = length < PMD_SIZE or (offset and offset + length < 2 * PMD_SIZE)
    if found == address or too_short or found % PMD_SIZE == offset:
        return found
    inflated = unaligned_area(m, space, address, length + PMD_SIZE - PAGE_SIZE, flags)
    if inflated < 0:
        return found
    aligned = inflated + (offset - inflated) % PMD_SIZE
    return aligned if aligned <= space.limits.task_size - length else found


def wants_huge_alignment(
    m: Machine,
    address: int,
    length: int,
    flags: int,
    file: int,
    pgoff: int,
    aligns: str,
    is_narrow: bool,
) -> bool:
    """Return whether a mapping is placed so that huge pages fit (thp_get_unmapped_area).

    Nothing is where addresses have 32 bits (4ef9ad19e176, Linux 6.8).
    """
    if is_narrow:
        return False
    if not file and (flags & MAP_SHARED or address or length % PMD_SIZE):
        return False
    kind = "zero" if file == ZERO_DEVICE else m.files[file].kind if file else ""
    if (not file and aligns == "files") or (kind == "zero" and aligns != "devices"):
        return False
    if file and kind != "disk" and (kind != "zero" or flags & MAP_SHARED):
        return False
    offset = pgoff << PAGE_SHIFT if file else 0
    first = (offset + PMD_SIZE - 1) & -PMD_SIZE
    return offset + length >= first + PMD_SIZE


def unaligned_area(m: Machine, space: Mm, address: int, length: int, flags: int) -> int:
    """Return the hint where it is free, or else a gap (arch_get_unmapped_area of x86-64).

    MAP_32BIT means nothing to a 32-bit program (find_start_end).
    """
    limits = space.limits
    flags &= ~MAP_32BIT if limits.is_narrow else ~0
    top = 0x8000_0000 if flags & MAP_32BIT else limits.task_size
    if length > top:
        return -ENOMEM
    if address and address <= top - length and is_clear(m, space, address, length):
        return address
    if flags & MAP_32BIT:
        return lowest_gap(m, space, length, 0x4000_0000, top)
    if limits.bottom_up:
        return lowest_gap(m, space, length, limits.mmap_base, top)
    found = highest_gap(m, space, length, limits.mmap_base, lowest(flags, limits))
    if found >= 0 or not limits.legacy_base:
        return found
    return lowest_gap(m, space, length, limits.legacy_base, top)


def huge_area(
    m: Machine, space: Mm, address: int, length: int, flags: int, size: int, rounds_down: bool
) -> int:
    """Return where huge pages of hugetlb go: at the hint, rounded up, or aligned in a gap.

    `rounds_down`: so the hint was rounded to 6.12, to 0 even, where nothing may be mapped; and
    MAP_32BIT meant nothing.
    """
    flags &= ~MAP_32BIT if rounds_down else ~0
    hint = address & -size if rounds_down else (address + size - 1) & -size
    top = 0x8000_0000 if flags & MAP_32BIT else space.limits.task_size
    if length > top:
        return -ENOMEM
    if address and not hint and rounds_down and is_clear(m, space, hint, length):
        return -EPERM
    if hint and hint <= top - length and is_clear(m, space, hint, length):
        return hint
    padding = size - PAGE_SIZE
    if flags & MAP_32BIT:
        found = lowest_gap(m, space, length + padding, 0x4000_0000, top)
        return (found + padding) & -size if found >= 0 else found
    low = 0 if rounds_down else lowest(flags, space.limits)
    padded = highest_gap(m, space, length + padding, space.limits.mmap_base, low)
    if padded < 0:
        return padded
    found = padded + padding
    return found - found % size


def lowest_gap(m: Machine, space: Mm, length: int, at: int, top: int) -> int:
    """Return the lowest address from `at` on with `length` bytes free below `top`, or -ENOMEM."""
    while at + length <= top:
        handle = lookup(m, space, at)
        vma = m.vmas[handle] if handle else None
        assert vma is None or isinstance(vma, Vma)
        if vma is not None and at + length > start_with_gap(space, vma):
            at = vma.end
            continue
        dying = tombstones_over(space, at, at + length)
        if not dying:
            return at
        at = space.dying[dying[-1]][0]
    return -ENOMEM


def fixed_area(m: Machine, space: Mm, address: int, length: int, flags: int) -> int:
    """Check a fixed address: itself, or -ENOMEM, -EINVAL, -EPERM, -EEXIST.

    An address so high that it looks like an errno is taken for one (IS_ERR_VALUE).
    """
    if address > (1 << 64) - PAGE_SIZE:
        return address - (1 << 64)
    if address > space.limits.task_size - length:
        return -ENOMEM
    if address & ~PAGE_MASK:
        return -EINVAL
    if address < space.limits.mmap_min_addr:
        return -EPERM
    if flags & MAP_FIXED_NOREPLACE and overlapping(m, space, address, address + length):
        return -EEXIST
    return address


def is_clear(m: Machine, space: Mm, address: int, length: int) -> bool:
    """Return whether a hint can be had, the guard gap of a stack above it included."""
    if tombstones_over(space, address, address + length):
        return False
    handle = lookup(m, space, address)
    if not handle:
        return True
    vma = m.vmas[handle]
    assert isinstance(vma, Vma)
    return address + length <= start_with_gap(space, vma)


def start_with_gap(space: Mm, vma: Vma) -> int:
    """Return where a VMA begins, with the guard gap of one that grows down."""
    if vma.flags & VM_GROWSDOWN:
        return max(0, vma.start - space.limits.stack_guard_gap)
    return vma.start


def lowest(flags: int, limits: ResourceLimits) -> int:
    """Return down to which address a gap is looked for from the top.

    32-bit calls have nothing above 4 GiB. Source: arch_get_unmapped_area_topdown.
    """
    return 1 << 32 if flags & MAP_ABOVE4G and not limits.is_narrow else 0


def highest_gap(m: Machine, space: Mm, length: int, top: int, low: int = 0) -> int:
    """Return the highest address in [low, top) with `length` bytes free, or -ENOMEM.

    A place that is too near to a stack above it makes the search begin anew below that stack's
    guard gap, whatever lies in the gap (unmapped_area_topdown).
    """
    while True:
        found = highest_hole(m, space, length, top, low)
        if found < 0:
            return found
        above = following(space, found + length)
        vma = m.vmas[above] if above else None
        if not isinstance(vma, Vma) or start_with_gap(space, vma) >= found + length:
            return found
        top = start_with_gap(space, vma)


def highest_hole(m: Machine, space: Mm, length: int, top: int, low: int) -> int:
    """Return the highest address in [low, top) with `length` bytes free, stacks or not."""
    while True:
        start, floor = occupied_below(m, space, top)
        if top - max(floor, low) >= length:
            return top - length
        if start <= low:
            return -ENOMEM
        top = start


def occupied_below(m: Machine, space: Mm, top: int) -> tuple[int, int]:
    """Return [start, end) of the nearest VMA or tombstone that starts below `top`.

    (0, the lowest address that may be mapped) where there is none.
    """
    start, end = 0, space.limits.mmap_min_addr
    handle = previous(space, top)
    if handle:
        vma = m.vmas[handle]
        assert isinstance(vma, Vma)
        start, end = vma.start, vma.end
    dying = space.dying.before(top)
    if dying is not None and dying >= start:
        start, end = dying, space.dying[dying][0]
    return start, end
