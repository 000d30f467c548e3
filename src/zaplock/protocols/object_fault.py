"""Page faults that find their mapping under the address space's mutex and fill under its object's.

So Zircon's do: the mutex of the address space is given back as soon as the object's is had, and who
unmaps waits for the object's with the other in its hands. The object's mutex is a VMA's lock here,
which the fault holds shared.

Source: zircon/kernel/vm/vm_mapping.cc PageFaultLockedObject, DestroyLocked (read in parts).
"""

from __future__ import annotations

from signal import SIGSEGV
from typing import TYPE_CHECKING

from zaplock.model.page_fault import MAJOR, USERFAULT
from zaplock.model.vma import find_vma, read_vma
from zaplock.protocols.fault import (
    RETRY,
    access_error,
    handle_mm_fault,
    needs_anon_vma,
    page_fault_mmap_lock,
)
from zaplock.protocols.locking import (
    mmap_read_lock_killable,
    mmap_read_unlock,
    vma_end_read,
    vma_start_read,
)
from zaplock.protocols.major_fault import wait_for_page
from zaplock.protocols.userfaultfd import handle_userfault

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
    vma = await read_vma(handle) if handle else None
    plain = vma is not None and vma.start <= address and not access_error(vma, write)
    if vma is None or not plain or await needs_anon_vma(cx, handle, vma, address, write):
        await mmap_read_unlock(cx)
        return await page_fault_mmap_lock(cx, address, write)
    locked = await vma_start_read(handle)
    await mmap_read_unlock(cx)
    if not locked:
        return await page_fault_mmap_lock(cx, address, write)
    result = await handle_mm_fault(cx, handle, vma, address, write)
    await vma_end_read(handle)
    if result == USERFAULT:
        await handle_userfault(cx, vma.uffd, address)
        return RETRY
    if result == MAJOR:
        await wait_for_page(vma, address)
        return RETRY
    return result
