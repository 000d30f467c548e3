"""get_user_pages: the kernel takes hold of user pages, slowly under the lock or fast without.

The fast walk runs with interrupts off: page tables can't go away under it, since who frees them
must wait for it (an IPI, or RCU). Its walk is one step here, which says the same; the slow one is
two (`protocols.table_walk`).

Source: mm/gup.c.
"""

from __future__ import annotations

from errno import EFAULT
from typing import TYPE_CHECKING

from zaplock.model.flags import PAGE_SHIFT
from zaplock.model.frames import ZERO_PFN, change_frames, read_frame
from zaplock.model.pagetable import ABSENT
from zaplock.model.rwsem import down_read, down_read_killable, up_read
from zaplock.model.step import Task, step
from zaplock.protocols.fault import fixup_user_fault
from zaplock.protocols.table_walk import FoundTable, entry_at, find_table

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.model.mm import Pte
    from zaplock.protocols.design import Cx


async def get_user_pages(cx: Cx, mm: int, address: int, write: bool) -> int:
    """Pin the page of an address under the mmap_lock: its frame, or -EFAULT."""
    lock = ("mmap_lock", mm)
    waits = down_read_killable if cx.design.fault_killable else down_read
    if await waits(lock):
        return -EFAULT
    frame = await pin_locked(cx, mm, address, write)
    await up_read(lock)
    return frame


async def process_vm_rw(cx: Cx, mm: int, address: int, write: bool) -> int:
    """Pin a page of another process for process_vm_readv and _writev: its frame, or -EFAULT.

    It waits uninterruptibly on every kernel, so khungtaskd reports it (mm/process_vm_access.c; seen
    on 6.1 and 6.12).
    """
    lock = ("mmap_lock", mm)
    await down_read(lock)
    frame = await pin_locked(cx, mm, address, write)
    await up_read(lock)
    return frame


async def pin_locked(cx: Cx, mm: int, address: int, write: bool) -> int:
    """Pin a page, faulting it in where it is absent; the caller holds the lock for read.

    It is looked for again after a fault, and faulted in once more if it has gone meanwhile, for as
    long as it goes (__get_user_pages, retry).
    """
    while not (frame := await follow_page_mask(cx, mm, address, write)):
        error = await fixup_user_fault(cx, mm, address, write, True)
        if error:
            return error
    return frame


async def follow_page_mask(cx: Cx, mm: int, address: int, write: bool) -> int:
    """Walk to the entry of an address inside its VMA, and pin what is there: the frame, or 0."""
    table = await find_table(cx, mm, address)
    return await follow_page_pte(table, address, write) if table is not None else 0


async def get_user_pages_fast(cx: Cx, address: int, write: bool) -> int:
    """Pin a page without the lock where it is mapped, else the slow way."""
    frame = await follow_page(cx.mm, address, write)
    return frame or await get_user_pages(cx, cx.mm, address, write)


@step
def follow_page(m: Machine, task: Task, mm: int, address: int, write: bool) -> int:
    """Walk the page tables and take a reference on what is there: the frame, or 0."""
    return pin_entry(m, task, m.mm(mm).ptes.at(address >> PAGE_SHIFT), address, write)


@step
def follow_page_pte(m: Machine, task: Task, table: FoundTable, address: int, write: bool) -> int:
    """Take a reference on what an entry maps, under the page-table lock: the frame, or 0.

    What has no page can't be pinned: -EFAULT.
    """
    pte = entry_at(m, task, table, address)
    if pte is not None and pte.kind == "pfn":
        m.spend("gup_page")
        return -EFAULT
    return pin_entry(m, task, pte, address, write)


def pin_entry(m: Machine, task: Task, pte: Pte | None, address: int, write: bool) -> int:
    """Take a reference on what an entry maps: the frame, or 0."""
    m.spend("gup_page")
    vpn = address >> PAGE_SHIFT
    if pte is None or pte.kind in (*ABSENT, "pfn") or (write and not pte.writable):
        return 0
    if pte.kind in ("zero", "zero_thp"):
        return ZERO_PFN
    frame = vpn + pte.delta
    hold_page(m, task, frame)
    return frame


def hold_page(m: Machine, task: Task, frame: int) -> None:
    """Take a reference on a page, whether or not it is mapped."""
    if frame == ZERO_PFN:
        return
    change_frames(m, task, frame, frame + 1, refs=1)
    m.pins.put(frame, m.pins.get(frame, 0) + 1)


@step
def read_page(m: Machine, task: Task, frame: int) -> int:
    """Read a pinned page through the kernel's own mapping."""
    return read_frame(m, task, frame)


@step
def put_page(m: Machine, task: Task, frame: int) -> None:
    """Give a reference back."""
    if frame == ZERO_PFN:
        return
    change_frames(m, task, frame, frame + 1, refs=-1)
    pins = m.pins[frame] - 1
    if pins:
        m.pins.put(frame, pins)
    else:
        m.pins.drop(frame)


async def copy_from_user(cx: Cx, address: int) -> int:
    """Pin, read and release a page of one's own, as direct I/O does: its tag, or -EFAULT."""
    frame = await get_user_pages_fast(cx, address, False)
    if frame < 0:
        return frame
    tag = await read_page(frame)
    await put_page(frame)
    return tag
