"""mmap: find a place, clear it, put a VMA there, map what must be mapped at once.

Everything runs under the exclusive lock, also the teardown of what lay there before (MAP_FIXED):
that is why mapping over a big range stalls everybody where munmap does not. Only MAP_POPULATE and
MAP_LOCKED fault their pages in afterwards, under read.

Sources: mm/mmap.c do_mmap, mmap_region (4.9 to 6.1), mm/vma.c __mmap_region (6.12 on).
"""

from __future__ import annotations

from errno import (
    EACCES,
    EAGAIN,
    EBADF,
    EEXIST,
    EINTR,
    EINVAL,
    ENODEV,
    ENOMEM,
    EOPNOTSUPP,
    EOVERFLOW,
    EPERM,
)
from typing import TYPE_CHECKING

from zaplock.model.files import File
from zaplock.model.flags import (
    MAP_32BIT,
    MAP_ANONYMOUS,
    MAP_DENYWRITE,
    MAP_DROPPABLE,
    MAP_EXECUTABLE,
    MAP_FIXED,
    MAP_FIXED_NOREPLACE,
    MAP_GROWSDOWN,
    MAP_HUGETLB,
    MAP_LOCKED,
    MAP_NONBLOCK,
    MAP_NORESERVE,
    MAP_POPULATE,
    MAP_PRIVATE,
    MAP_SHARED,
    MAP_SHARED_VALIDATE,
    MAP_STACK,
    MAP_SYNC,
    MAP_TYPE,
    PAGE_MASK,
    PAGE_SHIFT,
    PAGE_SIZE,
    PMD_SIZE,
    PROT_EXEC,
    PROT_READ,
    PROT_WRITE,
    VM_ACCOUNT,
    VM_DONTDUMP,
    VM_DONTEXPAND,
    VM_DROPPABLE,
    VM_EXEC,
    VM_GROWSDOWN,
    VM_HUGETLB,
    VM_IO,
    VM_LOCKED,
    VM_LOCKED_MASK,
    VM_MAYEXEC,
    VM_MAYREAD,
    VM_MAYSHARE,
    VM_MAYWRITE,
    VM_NOHUGEPAGE,
    VM_NORESERVE,
    VM_PFNMAP,
    VM_READ,
    VM_SHARED,
    VM_SPECIAL,
    VM_SYNC,
    VM_WIPEONFORK,
    VM_WRITE,
    page_align,
)
from zaplock.model.mm import AddressSpace, Pte
from zaplock.model.pagetable import alloc_tables, install
from zaplock.model.step import Task, step
from zaplock.model.vma import (
    Vma,
    account,
    change,
    fits_limits,
    following,
    insert,
    lookup,
    merge_around,
    overlapping,
    previous,
    remove,
    vma_of,
)
from zaplock.protocols.locking import mmap_write_lock_killable, mmap_write_unlock
from zaplock.protocols.populate import mm_populate
from zaplock.protocols.teardown import floor_and_ceiling, remove_vma, unmap_region
from zaplock.protocols.userfaultfd import userfaultfd_unmap_complete

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.protocols.design import Cx, UnmapEvents

ZERO_DEVICE = -1
"""Stands for /dev/zero where a private mapping of it looks for a new place."""

LEGACY_FLAGS = (
    MAP_TYPE | MAP_FIXED | MAP_ANONYMOUS | MAP_32BIT | MAP_GROWSDOWN | MAP_DENYWRITE
    | MAP_EXECUTABLE | MAP_LOCKED | MAP_NORESERVE | MAP_POPULATE | MAP_NONBLOCK | MAP_STACK
    | MAP_HUGETLB
)  # fmt: skip


async def mmap(
    cx: Cx, address: int, length: int, prot: int, flags: int, file: int = 0, offset: int = 0
) -> int:
    """The mmap system call: the address, or a negative errno."""
    error = mmap_arguments(flags, file, offset)
    if error:
        return error
    if flags & MAP_HUGETLB:
        length = (length + PMD_SIZE - 1) & -PMD_SIZE
        if not flags & MAP_NORESERVE and not await hugetlb_fits(length):
            return -ENOMEM
    events: UnmapEvents = []
    if await mmap_write_lock_killable(cx):
        return -EINTR
    placed, populate = await do_mmap(
        cx, address, length, prot, flags, file, offset >> PAGE_SHIFT, events
    )
    await mmap_write_unlock(cx)
    await userfaultfd_unmap_complete(cx, events)
    if populate and placed >= 0:
        await mm_populate(cx, placed, placed + page_align(length))
    return placed


@step
def hugetlb_fits(m: Machine, _task: Task, length: int) -> bool:
    """Return whether the pool has huge pages to reserve; a machine without a pool has plenty."""
    free = m.globals.get("hugetlb_free")
    return free is None or length <= free * PMD_SIZE


def mmap_arguments(flags: int, file: int, offset: int) -> int:
    """Check what needs no lock: 0 or a negative errno."""
    if offset & ~PAGE_MASK:
        return -EINVAL
    return -EBADF if not flags & MAP_ANONYMOUS and not file else 0


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
    if not flags & MAP_FIXED and 0 < address & PAGE_MASK < cx.limits.mmap_min_hint:
        address = page_align(cx.limits.mmap_min_hint)
    placed = await get_unmapped_area(cx.mm, address, length, flags, file, pgoff)
    if placed < 0:
        return placed, False
    vm_flags = await mmap_flags(cx.mm, placed, length, prot, flags, file, pgoff)
    if vm_flags < 0:
        return vm_flags, False
    if flags & MAP_ANONYMOUS and not flags & MAP_HUGETLB:
        pgoff = 0 if vm_flags & VM_SHARED else placed >> PAGE_SHIFT
    name = ""
    if file and await is_zero_device(file):
        name = "" if vm_flags & VM_SHARED else "zero"
        file = 0
    result = await mmap_region(cx, placed, length, vm_flags, file, pgoff, events, name)
    if result < 0:
        return result, False
    wanted = flags & (MAP_POPULATE | MAP_NONBLOCK) == MAP_POPULATE
    return placed, bool(vm_flags & VM_LOCKED or wanted)


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
) -> int:
    """Return where a mapping goes: at a fixed address, at the hint, or in a gap.

    Gaps are searched top-down; for MAP_32BIT bottom-up in the second gigabyte. What could hold huge
    pages is aligned to them (anonymous memory of whole huge pages since 6.7, files of file systems
    that ask for it), by asking for a gap that is one huge page longer.
    """
    space = m.mm(mm)
    limits = space.limits
    if space.count("map_count") > limits.max_map_count or length > limits.task_size:
        return -ENOMEM
    if flags & MAP_FIXED:
        return fixed_area(m, space, address, length, flags)
    address &= PAGE_MASK
    if wants_huge_alignment(m, address, length, flags, file, pgoff):
        padded = unaligned_area(m, space, address, length + PMD_SIZE, flags)
        if padded == address and address:
            return address
        if padded >= 0:
            shift = ((pgoff << PAGE_SHIFT if file else 0) - padded) % PMD_SIZE
            return padded + (shift or PMD_SIZE)
    return unaligned_area(m, space, address, length, flags)


def wants_huge_alignment(
    m: Machine, address: int, length: int, flags: int, file: int, pgoff: int
) -> bool:
    """Return whether a mapping is placed so that huge pages fit (thp_get_unmapped_area)."""
    if not file and (flags & MAP_SHARED or address or length % PMD_SIZE):
        return False
    kind = "zero" if file == ZERO_DEVICE else m.files[file].kind if file else ""
    if file and kind != "disk" and (kind != "zero" or flags & MAP_SHARED):
        return False
    offset = pgoff << PAGE_SHIFT if file else 0
    first = (offset + PMD_SIZE - 1) & -PMD_SIZE
    return offset + length >= first + PMD_SIZE


def unaligned_area(m: Machine, space: AddressSpace, address: int, length: int, flags: int) -> int:
    """Return the hint where it is free, or else a gap (arch_get_unmapped_area of x86-64)."""
    limits = space.limits
    top = 0x8000_0000 if flags & MAP_32BIT else limits.task_size
    if length > top:
        return -ENOMEM
    if address and address <= top - length and is_clear(m, space, address, length):
        return address
    if flags & MAP_32BIT:
        return lowest_gap(m, space, length, 0x4000_0000, top)
    return highest_gap(m, space, length, limits.mmap_base)


def lowest_gap(m: Machine, space: AddressSpace, length: int, at: int, top: int) -> int:
    """Return the lowest address from `at` on with `length` bytes free below `top`, or -ENOMEM."""
    while at + length <= top:
        handle = lookup(m, space, at)
        vma = m.vmas[handle] if handle else None
        assert vma is None or isinstance(vma, Vma)
        if vma is None or at + length <= start_with_gap(space, vma):
            return at
        at = vma.end
    return -ENOMEM


def fixed_area(m: Machine, space: AddressSpace, address: int, length: int, flags: int) -> int:
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


def is_clear(m: Machine, space: AddressSpace, address: int, length: int) -> bool:
    """Return whether a hint can be had, the guard gap of a stack above it included."""
    handle = lookup(m, space, address)
    if not handle:
        return True
    vma = m.vmas[handle]
    assert isinstance(vma, Vma)
    return address + length <= start_with_gap(space, vma)


def start_with_gap(space: AddressSpace, vma: Vma) -> int:
    """Return where a VMA begins, with the guard gap of one that grows down."""
    if vma.flags & VM_GROWSDOWN:
        return max(0, vma.start - space.limits.stack_guard_gap)
    return vma.start


def highest_gap(m: Machine, space: AddressSpace, length: int, top: int) -> int:
    """Return the highest address below `top` with `length` bytes free, or -ENOMEM.

    A place that is too near to a stack above it makes the search begin anew below that stack's
    guard gap, whatever lies in the gap (unmapped_area_topdown).
    """
    while True:
        found = highest_hole(m, space, length, top)
        if found < 0:
            return found
        above = following(space, found + length)
        vma = m.vmas[above] if above else None
        if not isinstance(vma, Vma) or start_with_gap(space, vma) >= found + length:
            return found
        top = start_with_gap(space, vma)


def highest_hole(m: Machine, space: AddressSpace, length: int, top: int) -> int:
    """Return the highest address below `top` with `length` bytes free, stacks or not."""
    while True:
        handle = previous(space, top)
        vma = m.vmas[handle] if handle else None
        assert vma is None or isinstance(vma, Vma)
        floor = vma.end if vma else space.limits.mmap_min_addr
        if top - floor >= length:
            return top - length
        if vma is None:
            return -ENOMEM
        top = vma.start


@step
def mmap_flags(
    m: Machine,
    task: Task,
    mm: int,
    address: int,
    length: int,
    prot: int,
    flags: int,
    file: int,
    pgoff: int,
) -> int:
    """Return the vm_flags of a mapping, or a negative errno where it may not be."""
    space = m.mm(mm)
    vm_flags = space.count("def_flags") | VM_MAYREAD | VM_MAYWRITE | VM_MAYEXEC
    vm_flags |= prot_flags(prot)
    vm_flags |= VM_GROWSDOWN if flags & MAP_GROWSDOWN else 0
    vm_flags |= VM_LOCKED if flags & MAP_LOCKED else 0
    vm_flags |= VM_SYNC if flags & MAP_SYNC else 0
    if flags & MAP_STACK:
        vm_flags |= VM_NOHUGEPAGE
    if flags & MAP_LOCKED and not may_mlock(space):
        return -EPERM
    if vm_flags & VM_LOCKED and not mlock_fits(space, length):
        return -EAGAIN
    kind = flags & MAP_TYPE
    if file and not fits_file(m.files[file].kind, pgoff, length):
        return -EOVERFLOW
    if file:
        vm_flags = file_flags(m, kind, flags, vm_flags, prot, file)
    else:
        vm_flags = anonymous_flags(kind, flags, vm_flags)
    if vm_flags > 0 and flags & MAP_NORESERVE and m.globals.get("overcommit", 0) != 2:
        vm_flags |= VM_NORESERVE
    if vm_flags > 0 and flags & MAP_HUGETLB:
        vm_flags |= VM_HUGETLB | VM_DONTEXPAND
    return vm_flags


def fits_file(kind: str, pgoff: int, length: int) -> bool:
    """Return whether a file of this kind can be as long as a mapping asks (file_mmap_ok)."""
    largest = LARGEST_FILE.get(kind, (1 << 63) - 1)
    return length <= largest and pgoff <= largest - length >> PAGE_SHIFT


LARGEST_FILE = {"zero": (1 << 64) - 1, "device": (1 << 64) - 1}
"""Bytes: devices have no end; for all else it is the largest offset of a file."""


def prot_flags(prot: int) -> int:
    """Return VM_READ, VM_WRITE and VM_EXEC for PROT_*."""
    return (
        (VM_READ if prot & PROT_READ else 0)
        | (VM_WRITE if prot & PROT_WRITE else 0)
        | (VM_EXEC if prot & PROT_EXEC else 0)
    )


def file_flags(m: Machine, kind: int, flags: int, vm_flags: int, prot: int, file: int) -> int:
    """Return the vm_flags of a file mapping, or a negative errno."""
    backing = m.files[file]
    if kind == MAP_SHARED_VALIDATE and flags & ~LEGACY_FLAGS:
        return -EOPNOTSUPP  # MAP_SYNC too: only files on persistent memory know it
    if kind in (MAP_SHARED, MAP_SHARED_VALIDATE):
        if prot & PROT_WRITE and not backing.writable:
            return -EACCES
        vm_flags |= VM_SHARED | VM_MAYSHARE
        if not backing.writable:
            vm_flags &= ~(VM_MAYWRITE | VM_SHARED)
        if backing.seals == "write" and prot & PROT_WRITE:
            return -EPERM
    elif kind != MAP_PRIVATE:
        return -EINVAL
    if backing.kind == "none":
        return -ENODEV
    return -EINVAL if vm_flags & VM_GROWSDOWN else vm_flags


def anonymous_flags(kind: int, flags: int, vm_flags: int) -> int:
    """Return the vm_flags of an anonymous mapping, or a negative errno."""
    if kind == MAP_SHARED:
        if vm_flags & VM_GROWSDOWN:
            return -EINVAL
        return vm_flags | VM_SHARED | VM_MAYSHARE
    if kind == MAP_DROPPABLE:
        if flags & (MAP_LOCKED | MAP_HUGETLB) or vm_flags & VM_GROWSDOWN:
            return -EINVAL
        return vm_flags | VM_DROPPABLE | VM_NORESERVE | VM_WIPEONFORK | VM_DONTDUMP
    return vm_flags if kind == MAP_PRIVATE else -EINVAL


def may_mlock(space: AddressSpace) -> bool:
    """Return whether a process may lock memory at all (can_do_mlock)."""
    return space.limits.can_ipc_lock or space.limits.rlimit_memlock > 0


def mlock_fits(space: AddressSpace, length: int) -> bool:
    """Return whether RLIMIT_MEMLOCK allows `length` more bytes."""
    if space.limits.can_ipc_lock:
        return True
    pages = space.count("locked_vm") + (length >> PAGE_SHIFT)
    return pages <= space.limits.rlimit_memlock >> PAGE_SHIFT


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
) -> int:
    """Clear the range, account for the new mapping and put it into the tree."""
    end = start + length
    error = await may_expand_vm(cx.mm, start, end, vm_flags)
    error = error or await may_commit(cx.mm, start, end, vm_flags)
    if error:
        return await refuse_after_gather(cx, start, end, events, error)
    result = await cx.design.do_munmap(cx, start, length, events, False)
    if result < 0:
        return -ENOMEM if result == -EINVAL else result
    charged = await charge_commit(cx.mm, vm_flags, length, file)
    if charged < 0:
        return charged
    if file and vm_flags & VM_SYNC and await is_on_disk(file):
        await uncharge(charged, length)
        return -EOPNOTSUPP  # only DAX can promise it; what was there before is gone by now
    handle = await link_new_vma(cx.mm, start, end, vm_flags | charged, file, pgoff, name)
    if file:
        error = await call_mmap(handle)
        if error:
            await undo_driver_mapping(cx, handle, start, end)
            return error
    await finish_mmap(handle)
    return start


async def refuse_after_gather(cx: Cx, start: int, end: int, events: UnmapEvents, error: int) -> int:
    """Return the error of a limit; from 6.12 on the old mappings are gathered, so split, before."""
    if not cx.design.gathers_first:
        return error
    from zaplock.protocols.munmap import vms_gather_munmap_vmas

    gathered, _ = await vms_gather_munmap_vmas(cx, start, end, events)
    return gathered if gathered < 0 else error


@step
def may_expand_vm(m: Machine, task: Task, mm: int, start: int, end: int, vm_flags: int) -> int:
    """Return 0, or -ENOMEM where RLIMIT_AS or RLIMIT_DATA would be passed."""
    space = m.mm(mm)
    replaced = sum(
        min(end, vma.end) - max(start, vma.start)
        for vma in (vma_of(m, task, handle) for handle in overlapping(m, space, start, end))
    )
    return 0 if fits_limits(space, vm_flags, end - start - replaced >> PAGE_SHIFT) else -ENOMEM


@step
def may_commit(m: Machine, task: Task, mm: int, start: int, end: int, vm_flags: int) -> int:
    """Return 0, or -ENOMEM where so much memory could never be had, old mappings taken off."""
    if vm_flags & (VM_NORESERVE | VM_HUGETLB | VM_SHARED) or not vm_flags & VM_WRITE:
        return 0
    pages = end - start >> PAGE_SHIFT
    for handle in overlapping(m, m.mm(mm), start, end):
        vma = vma_of(m, task, handle)
        if vma.flags & VM_ACCOUNT:
            pages -= min(end, vma.end) - max(start, vma.start) >> PAGE_SHIFT
    return -ENOMEM if beyond_memory(m, pages) else 0


def beyond_memory(m: Machine, pages: int) -> bool:
    """Return whether heuristic overcommit refuses a promise of so many pages at once."""
    return m.globals.get("overcommit", 0) == 0 and pages > m.limits.overcommit_pages


@step
def uncharge(m: Machine, _task: Task, charged: int, length: int) -> None:
    """Take back a charge after an error."""
    if charged:
        m.globals.put("committed_as", m.globals.get("committed_as", 0) - (length >> PAGE_SHIFT))


@step
def charge_commit(m: Machine, task: Task, mm: int, vm_flags: int, length: int, file: int) -> int:
    """Charge Committed_AS for private writable memory: VM_ACCOUNT, 0, or -ENOMEM."""
    if vm_flags & (VM_NORESERVE | VM_HUGETLB):
        return 0
    shared_anonymous = vm_flags & VM_SHARED and not file
    if vm_flags & (VM_SHARED | VM_WRITE) != VM_WRITE and not shared_anonymous:
        return 0
    error = commit(m, length >> PAGE_SHIFT)
    return error or (0 if shared_anonymous else VM_ACCOUNT)


def commit(m: Machine, pages: int) -> int:
    """Promise memory: 0, or -ENOMEM beyond what can ever be had (heuristic overcommit)."""
    if beyond_memory(m, pages):
        return -ENOMEM
    m.globals.put("committed_as", m.globals.get("committed_as", 0) + pages)
    return 0


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
) -> int:
    """Put a new VMA into the tree, counted; shared anonymous memory gets a file of its own.

    A private mapping of /dev/zero is anonymous memory that keeps its file: that `name` keeps it
    apart from its neighbours.
    """
    if not file and vm_flags & VM_SHARED:
        file = m.new_handle(task, "file")
        charged = 0 if vm_flags & VM_NORESERVE else end - start >> PAGE_SHIFT
        m.files.put(file, File("shmem", end - start, "/dev/zero", refs=0, charged=charged))
    vma = Vma(mm, start, end, vm_flags, pgoff, file, name=name)
    handle = insert(m, task, vma)
    account(m.mm(mm), vm_flags, file, vma.nr_pages)
    return handle


@step
def call_mmap(m: Machine, task: Task, handle: int) -> int:
    """Let a driver map its pages: 0, or its error after it has mapped some of them."""
    vma = vma_of(m, task, handle)
    file = m.files[vma.file]
    if file.kind != "device":
        return 0
    pages = vma.nr_pages if file.fails_after is None else min(file.fails_after, vma.nr_pages)
    flags = vma.flags | VM_PFNMAP | VM_IO | VM_DONTEXPAND | VM_DONTDUMP
    m.vmas.put(handle, change(vma, flags=flags))
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
        m.globals.put("committed_as", m.globals.get("committed_as", 0) - vma.nr_pages)


@step
def finish_mmap(m: Machine, task: Task, handle: int) -> int:
    """Count a locked mapping, and merge the new VMA with its neighbours where it can be."""
    vma = vma_of(m, task, handle)
    if vma.flags & VM_LOCKED:
        if vma.flags & (VM_SPECIAL | VM_HUGETLB | VM_DROPPABLE):
            m.vmas.put(handle, change(vma, flags=vma.flags & ~VM_LOCKED_MASK))
        else:
            m.mm(vma.mm).add("locked_vm", vma.nr_pages)
    return merge_around(m, task, handle)
