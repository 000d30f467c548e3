"""Which vm_flags a mapping gets, and where it is refused for what it asks.

Source: mm/mmap.c do_mmap, include/linux/mman.h calc_vm_flag_bits.
"""

from __future__ import annotations

from errno import (
    EACCES,
    EAGAIN,
    EINVAL,
    ENODEV,
    EOPNOTSUPP,
    EOVERFLOW,
    EPERM,
)
from typing import TYPE_CHECKING

from zaplock.model.files import File
from zaplock.model.flags import (
    MAP_32BIT,
    MAP_ABOVE4G,
    MAP_ANONYMOUS,
    MAP_DENYWRITE,
    MAP_DROPPABLE,
    MAP_EXECUTABLE,
    MAP_FIXED,
    MAP_GROWSDOWN,
    MAP_HUGE_SHIFT,
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
    PAGE_SHIFT,
    PMD_SHIFT,
    PROT_EXEC,
    PROT_READ,
    PROT_WRITE,
    PUD_SHIFT,
    VM_DONTDUMP,
    VM_DONTEXPAND,
    VM_DROPPABLE,
    VM_EXEC,
    VM_GROWSDOWN,
    VM_HUGETLB,
    VM_LOCKED,
    VM_MAYEXEC,
    VM_MAYREAD,
    VM_MAYSHARE,
    VM_MAYWRITE,
    VM_NOHUGEPAGE,
    VM_NORESERVE,
    VM_READ,
    VM_SHARED,
    VM_SYNC,
    VM_WIPEONFORK,
    VM_WRITE,
)
from zaplock.model.mm import Mm
from zaplock.model.step import Task, step

if TYPE_CHECKING:
    from zaplock.model.machine import Machine

LEGACY_FLAGS = (
    MAP_TYPE | MAP_FIXED | MAP_ANONYMOUS | MAP_32BIT | MAP_GROWSDOWN | MAP_DENYWRITE
    | MAP_EXECUTABLE | MAP_LOCKED | MAP_NORESERVE | MAP_POPULATE | MAP_NONBLOCK | MAP_STACK
    | MAP_HUGETLB | (PMD_SHIFT | PUD_SHIFT) << MAP_HUGE_SHIFT
)  # fmt: skip


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
    stacks_nohugepage: bool,
    droppable: bool,
    above_4g: bool = False,
) -> int:
    """Return the vm_flags of a mapping, or a negative errno where it may not be.

    `droppable`, `above_4g`: there are MAP_DROPPABLE and MAP_ABOVE4G.
    """
    space = m.mm(mm)
    vm_flags = space.count("def_flags") | VM_MAYREAD | VM_MAYWRITE | VM_MAYEXEC
    vm_flags |= prot_flags(prot)
    vm_flags |= VM_GROWSDOWN if flags & MAP_GROWSDOWN else 0
    vm_flags |= VM_LOCKED if flags & MAP_LOCKED else 0
    vm_flags |= VM_SYNC if flags & MAP_SYNC else 0
    if flags & MAP_STACK and stacks_nohugepage:
        vm_flags |= VM_NOHUGEPAGE
    if flags & MAP_LOCKED and not may_mlock(space):
        return -EPERM
    if vm_flags & VM_LOCKED and not mlock_fits(space, length):
        return -EAGAIN
    kind = flags & MAP_TYPE
    backing = m.files[file] if file else HUGE_FILE if flags & MAP_HUGETLB else None
    if space.limits.implies_exec and prot & PROT_READ and not (backing and backing.noexec):
        vm_flags |= VM_EXEC
    if backing and not fits_file(backing.kind, pgoff, length):
        return -EOVERFLOW
    if backing:
        checked = flags & ~MAP_ABOVE4G if above_4g else flags
        vm_flags = file_flags(kind, checked, vm_flags, prot, backing)
        if backing.secret and vm_flags > 0 and not mlock_fits(space, length):
            return -EAGAIN
    else:
        known = kind != MAP_DROPPABLE or droppable
        vm_flags = anonymous_flags(kind, flags, vm_flags) if known else -EINVAL
    if vm_flags > 0 and flags & MAP_NORESERVE and m.globals.get("overcommit", 0) != 2:
        vm_flags |= VM_NORESERVE
    if vm_flags > 0 and flags & MAP_HUGETLB:
        vm_flags |= VM_HUGETLB | VM_DONTEXPAND
    return -EACCES if vm_flags > 0 and gains_exec(space, vm_flags, vm_flags) else vm_flags


MDWE_REFUSES, MDWE_NO_INHERIT = 1, 2


def gains_exec(space: Mm, old: int, new: int) -> bool:
    """Return whether PR_SET_MDWE forbids these flags (map_deny_write_exec).

    Nothing may be written to and executed, and what could not be executed never can be.
    """
    if not space.count("mdwe") & MDWE_REFUSES or not new & VM_EXEC:
        return False
    return bool(new & VM_WRITE) or not old & VM_EXEC


@step
def denies_write_exec(m: Machine, _task: Task, mm: int, old: int, new: int) -> bool:
    """Ask `gains_exec` of an address space."""
    return gains_exec(m.mm(mm), old, new)


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


HUGE_FILE = File("hugetlb", 0, "anon_hugepage")
"""What an anonymous mapping of huge pages maps, as far as its flags are concerned."""


def file_flags(kind: int, flags: int, vm_flags: int, prot: int, backing: File) -> int:
    """Return the vm_flags of a file mapping, or a negative errno."""
    known = LEGACY_FLAGS | (MAP_SYNC if backing.kind == "disk" else 0)
    if kind == MAP_SHARED_VALIDATE and flags & ~known:
        return -EOPNOTSUPP  # ext4 knows MAP_SYNC, and refuses it later where there is no DAX
    if kind in (MAP_SHARED, MAP_SHARED_VALIDATE):
        if prot & PROT_WRITE and not backing.writable:
            return -EACCES
        vm_flags |= VM_SHARED | VM_MAYSHARE
        if not backing.writable:
            vm_flags &= ~(VM_MAYWRITE | VM_SHARED)
    elif kind != MAP_PRIVATE:
        return -EINVAL
    if not backing.readable:
        return -EACCES
    if backing.noexec:
        if vm_flags & VM_EXEC:
            return -EPERM
        vm_flags &= ~VM_MAYEXEC
    if backing.kind == "none":
        return -ENODEV
    if backing.secret:
        return secret_flags(vm_flags)
    if vm_flags & VM_GROWSDOWN:
        return -EINVAL
    return sealed_flags(backing, vm_flags)


def secret_flags(vm_flags: int) -> int:
    """Return the flags of a mapping of memfd_secret, or a negative errno (secretmem_mmap)."""
    if not vm_flags & VM_MAYSHARE or vm_flags & VM_GROWSDOWN:
        return -EINVAL
    return vm_flags | VM_LOCKED | VM_DONTDUMP


def sealed_flags(backing: File, vm_flags: int) -> int:
    """Return what a write seal leaves of the flags of a mapping, or -EPERM (check_write_seal)."""
    if not backing.is_write_sealed or not vm_flags & VM_SHARED:
        return vm_flags
    return -EPERM if vm_flags & VM_WRITE else vm_flags & ~VM_MAYWRITE


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


def may_mlock(space: Mm) -> bool:
    """Return whether a process may lock memory at all (can_do_mlock)."""
    return space.limits.can_ipc_lock or space.limits.rlimit_memlock > 0


def mlock_fits(space: Mm, length: int) -> bool:
    """Return whether RLIMIT_MEMLOCK allows `length` more bytes."""
    if space.limits.can_ipc_lock:
        return True
    pages = space.count("locked_vm") + (length >> PAGE_SHIFT)
    return pages <= space.limits.rlimit_memlock >> PAGE_SHIFT
