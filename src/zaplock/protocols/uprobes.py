"""uprobes: a breakpoint in the text of every process that maps a file.

Installing one finds the mappings by the file's rmap, then takes each mm's lock for write, looks the
VMA up again and gives the page a private copy with the breakpoint in it. An unmap only notes that
the mm's probes have to be counted anew.

Source: kernel/events/uprobes.c register_for_each_vma, install_breakpoint, uprobe_munmap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zaplock.model.fault_results import PUNCHED
from zaplock.model.file_changes import punch_is_over
from zaplock.model.files import i_mmap_lock
from zaplock.model.flags import PAGE_SHIFT, VM_SHARED
from zaplock.model.frames import write_frame
from zaplock.model.page_fault import fault_at_once
from zaplock.model.pagetable import alloc_tables
from zaplock.model.rwsem import down_read, down_write, up_read, up_write
from zaplock.model.step import Task, step
from zaplock.model.vma import anon_vma_prepare, change, lookup, vma_of

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.protocols.design import Cx

BREAKPOINT = 0xCC


async def uprobe_register(cx: Cx, file: int, offset: int) -> int:
    """Install a uprobe at a byte offset of a file; returns in how many mappings."""
    await set_uprobe(file, offset)
    return await in_each_mapping(cx, file, offset, BREAKPOINT)


async def uprobe_unregister(cx: Cx, file: int, offset: int) -> int:
    """Remove a uprobe; returns from how many mappings."""
    await set_uprobe(file, -1)
    return await in_each_mapping(cx, file, offset, 0)


@step
def set_uprobe(m: Machine, _task: Task, file: int, offset: int) -> None:
    """Note the probe with its file, so that later mappings get it too."""
    m.files.put(file, change(m.files[file], uprobe=offset))


async def in_each_mapping(cx: Cx, file: int, offset: int, opcode: int) -> int:
    """Write an opcode into every mapping of an offset; returns how many there were."""
    await down_read(i_mmap_lock(file))
    places = await build_map_info(file, offset)
    await up_read(i_mmap_lock(file))
    written = 0
    for mm, address in places:
        await down_write(("mmap_lock", mm))
        while (result := await write_opcode(mm, file, address, opcode)) == PUNCHED:
            await punch_is_over(file)
        written += result
        await up_write(("mmap_lock", mm))
    return written


@step
def build_map_info(m: Machine, task: Task, file: int, offset: int) -> tuple[tuple[int, int], ...]:
    """List (mm, address) of every private mapping of an offset."""
    places = []
    for handle in m.i_mmap(file):
        vma = vma_of(m, task, handle)
        address = vma.start + offset - (vma.pgoff << PAGE_SHIFT)
        if vma.start <= address < vma.end and not vma.flags & VM_SHARED:
            places.append((vma.mm, address))
    return tuple(sorted(places))


@step
def write_opcode(m: Machine, task: Task, mm: int, file: int, address: int, opcode: int) -> int:
    """Look the VMA up again and write to a private copy of its page: 1, or 0 if it is gone.

    PUNCHED where there is a hole to be waited for first.
    """
    space = m.mm(mm)
    handle = lookup(m, space, address)
    if not handle:
        return 0
    vma = vma_of(m, task, handle)
    if vma.start > address or vma.file != file:
        return 0
    anon_vma_prepare.run(m, task, handle)
    vpn = address >> PAGE_SHIFT
    alloc_tables(m, task, space, vpn, vpn + 1)
    if result := fault_at_once(m, task, vma_of(m, task, handle), address, True):
        return PUNCHED if result == PUNCHED else 0
    pte = space.ptes.at(vpn)
    assert pte is not None
    m.spend("uprobe")
    write_frame(m, task, vpn + pte.delta, opcode)
    return 1
