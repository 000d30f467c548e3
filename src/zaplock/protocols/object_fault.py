"""Page faults that find their mapping under the address space's mutex and fill under its object's.

So Zircon's do: the mapping is found under the first mutex, which is given back, and looked at again
under the second; who unmaps holds both, the first to the end. The object's mutex is a VMA's lock
here, which the fault holds shared.

Source: zircon/kernel/vm: vm_aspace.cc PageFaultInternal, vm_mapping.cc PageFaultLockedObject and
DestroyLocked (read in parts).
"""

from __future__ import annotations

from signal import SIGSEGV
from typing import TYPE_CHECKING

from zaplock.model.fault_results import FILE_WAITS, USERFAULT
from zaplock.model.vma import find_vma, read_vma
from zaplock.protocols.fault import (
    RETRY,
    access_error,
    answered,
    handle_mm_fault,
    needs_anon_vma,
    page_fault_mmap_lock,
)
from zaplock.protocols.locking import (
    mmap_read_lock_killable,
    mmap_read_unlock,
    still_covers,
    vma_end_read,
    vma_start_read,
)

if TYPE_CHECKING:
    from zaplock.protocols.design import Cx


async def page_fault_zircon(cx: Cx, address: int, write: bool) -> int:
    """Handle a fault: the mapping under the first lock, the page under the second.

    A stack that grows, a first write without an anon_vma and what ends in a signal hold the first
    to the end, as other faults do.
    """
    if await mmap_read_lock_killable(cx):
        return -SIGSEGV
    handle = await find_vma(cx.mm, address)
    await mmap_read_unlock(cx)
    if not handle or not await vma_start_read(handle):
        return await page_fault_mmap_lock(cx, address, write)
    vma = await read_vma(handle)
    plain = await still_covers(handle, address) and not access_error(vma, write)
    if not plain or await needs_anon_vma(cx, handle, vma, address, write):
        await vma_end_read(handle)
        return await page_fault_mmap_lock(cx, address, write)
    result = await handle_mm_fault(cx, handle, vma, address, write)
    await vma_end_read(handle)
    await answered(cx, vma, address, result)
    return RETRY if result in (USERFAULT, *FILE_WAITS) else result
