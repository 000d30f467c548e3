"""mmap: find a place, clear it, put a VMA there, map what must be mapped at once.

Everything runs under the exclusive lock, also the teardown of what lay there before (MAP_FIXED):
that is why mapping over a big range stalls everybody where munmap does not. Only MAP_POPULATE and
MAP_LOCKED fault their pages in afterwards, under read.

Sources: mm/mmap.c do_mmap, mmap_region (4.9 to 6.1), mm/vma.c __mmap_region (6.12 on).
"""

from __future__ import annotations

from errno import (
    EAGAIN,
    EBADF,
    EINTR,
    EINVAL,
    ENOMEM,
    EOPNOTSUPP,
)
from typing import TYPE_CHECKING

from zaplock.model.files import File, get_file, put_file
from zaplock.model.flags import (
    MAP_ABOVE4G,
    MAP_ANONYMOUS,
    MAP_DROPPABLE,
    MAP_FIXED,
    MAP_FIXED_NOREPLACE,
    MAP_HUGE_MASK,
    MAP_HUGE_SHIFT,
    MAP_HUGETLB,
    MAP_NONBLOCK,
    MAP_POPULATE,
    MAP_STACK,
    MAP_TYPE,
    PAGE_MASK,
    PAGE_SHIFT,
    PMD_SIZE,
    PUD_SIZE,
    VM_ACCOUNT,
    VM_DONTDUMP,
    VM_DONTEXPAND,
    VM_DROPPABLE,
    VM_HUGETLB,
    VM_IO,
    VM_LOCKED,
    VM_LOCKED_MASK,
    VM_NORESERVE,
    VM_PAT,
    VM_PFNMAP,
    VM_SHARED,
    VM_SPECIAL,
    VM_SYNC,
    VM_WRITE,
    page_align,
)
from zaplock.model.huge_pool import KIND_OF, most_to_have, promise, reserve, unpromised
from zaplock.model.mm import Pte
from zaplock.model.pagetable import alloc_tables, install
from zaplock.model.references import born_dirty
from zaplock.model.step import Task, step
from zaplock.model.vma import (
    Vma,
    account,
    can_merge,
    change,
    find_vmas,
    following,
    insert,
    merge_around,
    previous,
    read_vma,
    remove,
    vma_of,
    zero_name,
)
from zaplock.protocols.after_unlock import unmap_complete
from zaplock.protocols.commit import charge_commit, may_commit, may_expand_vm, uncharge
from zaplock.protocols.ksm import become_mergeable, mergeable_flags
from zaplock.protocols.locking import (
    mmap_write_lock_killable,
    mmap_write_unlock,
    start_write_merging,
)
from zaplock.protocols.placement import get_unmapped_area, huge_flags, huge_size_of
from zaplock.protocols.populate import mm_populate
from zaplock.protocols.rmap_changes import RmapChange
from zaplock.protocols.saved_vmas import close, save_vma
from zaplock.protocols.shortage import no_memory
from zaplock.protocols.teardown import floor_and_ceiling, remove_vma, unmap_region
from zaplock.protocols.tombstones import gave_way
from zaplock.protocols.vm_flags import mmap_flags

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.protocols.design import Cx, UnmapEvents


async def mmap(
    cx: Cx, address: int, length: int, prot: int, flags: int, file: int = 0, offset: int = 0
) -> int:
    """The mmap system call: the address, or a negative errno."""
    error = mmap_arguments(flags, file, offset)
    if error:
        return error
    if flags & MAP_HUGETLB:
        size = 0 if flags & MAP_ANONYMOUS else await size_of_huge_file(file)
        if not size and not flags & MAP_ANONYMOUS:
            return -EINVAL
        size = size or huge_size_of(flags)
        if size not in KIND_OF:
            return -EINVAL
        length = (length + size - 1 & -size) % (1 << 64)
        flags = flags & ~(MAP_HUGE_MASK << MAP_HUGE_SHIFT) | huge_flags(size)
        file = 0 if flags & MAP_ANONYMOUS else file
    if cx.design.mmap is not None:
        return await cx.design.mmap(cx, address, length, prot, flags, file, offset)
    events: UnmapEvents = []
    held: tuple[int, ...] = ()
    while True:
        if await mmap_write_lock_killable(cx):
            return -EINTR
        fixed = flags & (MAP_FIXED | MAP_FIXED_NOREPLACE)
        waited = (
            await gave_way(cx, address, address + page_align(length), unmaps=True) if fixed else 0
        )
        if not waited:
            if flags & MAP_HUGETLB and fixed:
                held = await hold_huge_files(cx.mm, address, address + length)
            placed, populate = await do_mmap(
                cx, address, length, prot, flags, file, offset >> PAGE_SHIFT, events
            )
            waited = await gave_way(cx) if placed == -ENOMEM else 0
        if waited and held:
            await let_go_of_files(held)
            held = ()
        if waited < 0:
            return waited
        if not waited:
            break
    await mmap_write_unlock(cx)
    await unmap_complete(cx, events)
    if populate and placed >= 0:
        await mm_populate(cx, placed, placed + page_align(length))
    if held:
        await let_go_of_files(held)
    return placed


@step
def size_of_huge_file(m: Machine, _task: Task, file: int) -> int:
    """Return how many bytes a page of a file of hugetlbfs has, 0 for any other file."""
    return m.files[file].huge_size if m.files[file].kind == "hugetlb" else 0


@step
def reserve_huge_pages(
    m: Machine, _task: Task, length: int, vm_flags: int, file: int, pgoff: int, size: int
) -> int:
    """Reserve what a mapping of huge pages may need, or return why hugetlbfs refuses it.

    That is its offset, or its pool; a machine without a pool has plenty of 2 MiB pages and none of
    1 GiB. Shared memory without a file reserves with the file that it gets (link_new_vma).
    """
    if (pgoff << PAGE_SHIFT) % size:
        return -EINVAL
    if vm_flags & VM_NORESERVE:
        return 0
    left = unpromised(m, size)
    left = 0 if left is None and size == PUD_SIZE else left
    if left is None:
        return 0
    wanted = length // size
    if not vm_flags & VM_SHARED:
        share = m.files[file].subpool if file else 0
        return 0 if reserve(m, size, share, wanted) else -ENOMEM
    if not file:
        return 0 if wanted <= left else -ENOMEM
    backing = m.files[file]
    share = backing.subpool
    has = len(backing.promised) + m.page_cache(file).total(0, 1 << 52) // (size >> PAGE_SHIFT)
    if wanted > has + most_to_have(m, share, left):
        return -ENOMEM
    lacking = lacking_pages(m, file, pgoff, length)
    if not reserve(m, size, share, len(lacking)):
        return -ENOMEM
    m.files.put(file, change(backing, promised=(*backing.promised, *lacking)))
    return 0


def lacking_pages(m: Machine, file: int, pgoff: int, length: int) -> list[int]:
    """List the huge pages in a range of a file that it neither has nor was promised."""
    backing = m.files[file]
    pages = backing.huge_size >> PAGE_SHIFT
    first, promised = pgoff // pages, frozenset(backing.promised)
    return [
        number
        for number in range(first, first + length // backing.huge_size)
        if number not in promised and m.page_cache(file).at(number * pages) is None
    ]


@step
def hold_huge_files(m: Machine, task: Task, mm: int, start: int, end: int) -> tuple[int, ...]:
    """Keep the files of huge pages that are mapped in a range, and what they have of their pool.

    A file that loses its last mapping goes when the system call returns (fput is a work of the
    task), so what it had is not there yet for the mapping in its place.
    """
    vmas = (vma_of(m, task, handle) for handle in find_vmas.run(m, task, mm, start, end))
    files = tuple(vma.file for vma in vmas if vma.flags & VM_HUGETLB and vma.file)
    for one in files:
        get_file(m, one)
    return files


@step
def let_go_of_files(m: Machine, task: Task, files: tuple[int, ...]) -> None:
    """Let files go as far as nobody else has them."""
    for one in files:
        put_file(m, task, one)


def mmap_arguments(flags: int, file: int, offset: int) -> int:
    """Check what needs no lock: 0 or a negative errno."""
    if offset & ~PAGE_MASK:
        return -EINVAL
    return -EBADF if not flags & MAP_ANONYMOUS and not file else 0


async def find_place(cx: Cx, address: int, length: int, flags: int, file: int, pgoff: int) -> int:
    """Return where a mapping goes, or an errno; a hint below the lowest one is rounded up."""
    if not flags & MAP_FIXED and 0 < address & PAGE_MASK < cx.limits.mmap_min_hint:
        address = page_align(cx.limits.mmap_min_hint)
    flags &= ~0 if cx.design.maps_above_4g else ~MAP_ABOVE4G
    aligns = cx.design.aligns_for_huge_pages
    down = (True,) if flags & MAP_HUGETLB and cx.design.huge_hints_round_down else ()
    return await get_unmapped_area(cx.mm, address, length, flags, file, pgoff, aligns, *down)


async def do_mmap(
    cx: Cx,
    address: int,
    length: int,
    prot: int,
    flags: int,
    file: int,
    pgoff: int,
    events: UnmapEvents,
) -> tuple[int, bool]:
    """Map under the exclusive lock: (address or error, whether to populate)."""
    if not length:
        return -EINVAL, False
    if flags & MAP_FIXED_NOREPLACE:
        flags |= MAP_FIXED
    length = page_align(length) % (1 << 64)
    if not length:
        return -ENOMEM, False
    if flags & MAP_ANONYMOUS and not flags & MAP_HUGETLB:
        file = 0
    placed = await find_place(cx, address, length, flags, file, pgoff)
    if placed < 0:
        return placed, False
    rules = (
        bool(flags & MAP_STACK) and cx.design.stacks_nohugepage,
        flags & MAP_TYPE == MAP_DROPPABLE and cx.design.droppable,
        *((True,) if flags & MAP_ABOVE4G and cx.design.maps_above_4g else ()),
    )
    vm_flags = await mmap_flags(cx.mm, placed, length, prot, flags, file, pgoff, *rules)
    if vm_flags < 0:
        return vm_flags, False
    if flags & MAP_ANONYMOUS and not flags & MAP_HUGETLB:
        pgoff = 0 if vm_flags & VM_SHARED else placed >> PAGE_SHIFT
    name = ""
    if file and await is_zero_device(file):
        name = "" if vm_flags & VM_SHARED else zero_name(file)
        file = 0
    if vm_flags & VM_HUGETLB and not file:
        name = "anon_hugepage"
    size = huge_size_of(flags) if vm_flags & VM_HUGETLB else PMD_SIZE
    result = await mmap_region(cx, placed, length, vm_flags, file, pgoff, events, name, size)
    if result < 0:
        return result, False
    wanted = flags & (MAP_POPULATE | MAP_NONBLOCK) == MAP_POPULATE
    return placed, bool(vm_flags & VM_LOCKED or wanted)


@step
def is_on_disk(m: Machine, _task: Task, file: int) -> bool:
    """Return whether a file is one of a file system on a disk."""
    return m.files[file].kind == "disk"


@step
def is_zero_device(m: Machine, _task: Task, file: int) -> bool:
    """Return whether a file is /dev/zero."""
    return m.files[file].kind == "zero"


async def mmap_region(
    cx: Cx,
    start: int,
    length: int,
    vm_flags: int,
    file: int,
    pgoff: int,
    events: UnmapEvents,
    name: str = "",
    huge_size: int = PMD_SIZE,
) -> int:
    """Clear the range, account for the new mapping and put it into the tree."""
    end = start + length
    error = await may_expand_vm(cx.mm, start, end, vm_flags)
    if cx.design.gathers_first:  # before, what is there is unmapped by the time that this shows
        error = error or await may_commit(cx.mm, start, end, vm_flags)
        error = error or (-ENOMEM if await no_memory(cx) else 0)
    if error:
        return await refuse_after_gather(cx, start, end, events, error)
    result = await cx.design.do_munmap(cx, start, length, events, False)
    if result < 0:
        in_time = cx.design.gathers_first or result != -EINVAL
        return result if in_time else -ENOMEM
    charged = await charge_commit(cx.mm, vm_flags, length, file, cx.design.gathers_first)
    if charged < 0:
        return charged
    if not cx.design.gathers_first and await no_memory(cx):
        await uncharge(charged, length)
        return -ENOMEM
    if file and vm_flags & VM_SYNC and await is_on_disk(file):
        await (forget_charge if cx.design.mmap_forgets_charge else uncharge)(charged, length)
        return -EOPNOTSUPP  # only DAX can promise it; what was there before is gone by now
    if vm_flags & VM_HUGETLB:
        error = await reserve_huge_pages(length, vm_flags, file, pgoff, huge_size)
        if error:
            return error
    forgets = bool(vm_flags & VM_HUGETLB) and not cx.design.zap_restores_reserve
    more = (huge_size, forgets) if forgets or huge_size != PMD_SIZE else ()  # a schedule shows them
    area = (start, end, vm_flags | charged, file, pgoff, name, *more)
    handle = await link_new_vma(cx.mm, *area)
    if file:
        error = await call_mmap(handle)
        if error:
            await undo_driver_mapping(cx, handle, start, end)
            return error
    await start_write_merging(cx, handle, start, end)
    if cx.design.merges:
        await finish_file(file, handle, cx.design.merges_anew or cx.design.tree == "rbtree")
    else:
        await count_locked_mmap(handle)
    return start


@step
def forget_charge(m: Machine, _task: Task, charged: int, length: int) -> None:
    """Leave a charge where it is after an error."""
    if charged:
        m.forget_commitment(length >> PAGE_SHIFT)


async def refuse_after_gather(cx: Cx, start: int, end: int, events: UnmapEvents, error: int) -> int:
    """Return the error of a limit; from 6.12 on the old mappings are gathered, so split, before."""
    if not cx.design.gathers_first:
        return error
    from zaplock.protocols.munmap import vms_gather_munmap_vmas

    gathered, _ = await vms_gather_munmap_vmas(cx, start, end, events)
    return gathered if gathered < 0 else error


@step
def link_new_vma(
    m: Machine,
    task: Task,
    mm: int,
    start: int,
    end: int,
    vm_flags: int,
    file: int,
    pgoff: int,
    name: str,
    huge_size: int = PMD_SIZE,
    forgets_reserve: bool = False,
) -> int:
    """Put a new VMA into the tree, counted; shared anonymous memory gets a file of its own.

    A private mapping of /dev/zero is anonymous memory that keeps its file: that `name` keeps it
    apart from its neighbours. `forgets_reserve`: a zap does not give it its reserve back.
    """
    pages = (end - start) // huge_size if vm_flags & VM_HUGETLB else 0
    reserves = bool(pages) and not vm_flags & VM_NORESERVE and unpromised(m, huge_size) is not None
    reserves = reserves and not (file and vm_flags & VM_SHARED)
    if pages and file and vm_flags & VM_WRITE:
        lengthen(m, file, (pgoff << PAGE_SHIFT) + end - start)
    if not file and vm_flags & VM_SHARED:
        name = name if vm_flags & VM_HUGETLB else ""
        file = m.new_handle(task, "file")
        charged = 0 if vm_flags & VM_NORESERVE else end - start >> PAGE_SHIFT
        huge = vm_flags & VM_HUGETLB
        charged = 0 if huge else charged
        first = (pgoff << PAGE_SHIFT) // huge_size
        promised = tuple(range(first, first + pages)) if reserves else ()
        promise(m, huge_size, len(promised))
        reserves = False  # the file does, for all who map it
        backing = (
            File(
                "hugetlb",
                # a mapping that may be written makes its file as long as it needs
                end - start + (pgoff << PAGE_SHIFT if vm_flags & VM_WRITE else 0),
                name,
                refs=0,
                counts_mappings=True,
                promised=promised,
                huge_size=huge_size,
            )
            if huge
            else File(
                "shmem",
                end - start,
                "/dev/zero",
                refs=0,
                charged=charged,
                charged_by_page=not charged,
            )
        )
        m.files.put(file, backing)
    vm_flags = mergeable_flags(m.mm(mm), vm_flags, "" if file else name)
    name = "" if file else name
    born = born_dirty(m, vm_flags)
    ops = "secret" if file and m.files[file].secret else ""
    vma = Vma(
        mm, start, end, born, pgoff, file,
        name=name, reserves=reserves, huge_size=huge_size, ops=ops,
    )  # fmt: skip
    if reserves and forgets_reserve:
        vma = change(vma, spent=())
    handle = insert(m, task, vma)
    account(m.mm(mm), vm_flags, vma.nr_pages)
    return handle


def lengthen(m: Machine, file: int, size: int) -> None:
    """Let a file have as many bytes as a mapping that may be written needs of it."""
    if m.files[file].size < size:
        m.files.put(file, change(m.files[file], size=size))


@step
def call_mmap(m: Machine, task: Task, handle: int) -> int:
    """Let a driver map its pages: 0, or its error after it has mapped some of them."""
    vma = vma_of(m, task, handle)
    file = m.files[vma.file]
    if file.kind != "device":
        return 0
    pages = vma.nr_pages if file.fails_after is None else min(file.fails_after, vma.nr_pages)
    flags = vma.flags | VM_PFNMAP | VM_PAT | VM_IO | VM_DONTEXPAND | VM_DONTDUMP
    m.vmas.put(handle, change(vma, flags=flags))
    save_vma(m, vma.file, handle)
    space, first = m.mm(vma.mm), vma.start >> PAGE_SHIFT
    if pages:
        alloc_tables(m, task, space, first, first + pages)
        delta = (1 << 33) - first
        install(m, task, space, first, first + pages, Pte("pfn", delta, bool(flags & VM_WRITE)))
    return 0 if file.fails_after is None else -EAGAIN


async def undo_driver_mapping(cx: Cx, handle: int, start: int, end: int) -> None:
    """Undo what a driver had mapped when it failed: the unmap_region that keeps its flags' work."""
    await unlink_failed(handle)
    bounds = await floor_and_ceiling(cx.mm, start, end)
    await unmap_region(cx, (handle,), start, end, bounds, False)
    await uncharge_failed(handle)
    await close(await read_vma(handle), handle)
    await remove_vma(handle)


@step
def unlink_failed(m: Machine, task: Task, handle: int) -> None:
    """Take the VMA of a failed mapping out of the tree again."""
    remove(m, task, handle)


@step
def uncharge_failed(m: Machine, task: Task, handle: int) -> None:
    """Take back what was counted for a mapping that failed."""
    vma = vma_of(m, task, handle)
    m.mm(vma.mm).add("total_vm", -vma.nr_pages)
    if vma.flags & VM_ACCOUNT:
        m.commit(-vma.nr_pages)


@step
def finish_mmap(m: Machine, task: Task, handle: int, merges_anew: bool) -> int:
    """Count a locked mapping, and merge the new VMA with its neighbours where it can be.

    From 6.1 to 6.11 the one behind comes first; if that has an anon_vma, the one before needs it.

    What can't be locked loses VM_LOCKED only after Linux has looked for a neighbour to merge with.
    """
    if not count_locked_mmap.run(m, task, handle):
        return handle
    vma = vma_of(m, task, handle)
    space = m.mm(vma.mm)
    behind, apart = following(space, vma.end), 0
    if behind and not merges_anew:
        other, before = vma_of(m, task, behind), previous(space, vma.start)
        first = can_merge(m, vma, other) and other.anon_vma and before
        apart = before if first and vma_of(m, task, before).anon_vma != other.anon_vma else 0
    stacked = bool(vma.file) and m.files[vma.file].stacked
    merged = handle if stacked else merge_around(m, task, handle, apart, new=True)
    become_mergeable(m, space, merged, vma.start, vma.end)
    return merged


finish_file = RmapChange(finish_mmap)


@step
def count_locked_mmap(m: Machine, task: Task, handle: int) -> bool:
    """Count a locked mapping; False, and it is not locked, where that can't be."""
    vma = vma_of(m, task, handle)
    if vma.flags & VM_LOCKED:
        if vma.flags & (VM_SPECIAL | VM_HUGETLB | VM_DROPPABLE):
            m.vmas.put(handle, change(vma, flags=vma.flags & ~VM_LOCKED_MASK))
            return False
        m.mm(vma.mm).add("locked_vm", vma.nr_pages)
    return True
