"""The bits of Linux's interfaces, by their own names (x86-64)."""

from __future__ import annotations

from zaplock.advice import *  # noqa: F403  (MADV_*)

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT
PAGE_MASK = ~(PAGE_SIZE - 1)
PMD_SHIFT, PUD_SHIFT = 21, 30
PMD_SIZE, PUD_SIZE = 1 << PMD_SHIFT, 1 << PUD_SHIFT
PAGES_PER_PMD = PMD_SIZE // PAGE_SIZE

VM_READ, VM_WRITE, VM_EXEC, VM_SHARED = 0x1, 0x2, 0x4, 0x8
VM_MAYREAD, VM_MAYWRITE, VM_MAYEXEC, VM_MAYSHARE = 0x10, 0x20, 0x40, 0x80
VM_GROWSDOWN, VM_UFFD_MISSING, VM_PFNMAP = 0x100, 0x200, 0x400
VM_MAYBE_GUARD = 0x800
VM_UFFD_WP, VM_LOCKED, VM_IO = 0x1000, 0x2000, 0x4000
VM_SEQ_READ, VM_RAND_READ, VM_DONTCOPY, VM_DONTEXPAND = 0x8000, 0x10000, 0x20000, 0x40000
VM_LOCKONFAULT, VM_ACCOUNT, VM_NORESERVE, VM_HUGETLB = 0x80000, 0x100000, 0x200000, 0x400000
VM_SYNC, VM_PAT, VM_WIPEONFORK, VM_DONTDUMP = 0x800000, 0x1000000, 0x2000000, 0x4000000
VM_SOFTDIRTY, VM_MIXEDMAP, VM_HUGEPAGE, VM_NOHUGEPAGE = (
    0x8000000,
    0x10000000,
    0x20000000,
    0x40000000,
)
VM_MERGEABLE, VM_DROPPABLE, VM_GROWSUP, VM_SEALED = 0x80000000, 1 << 40, 1 << 41, 1 << 42
VM_PKEY_SHIFT = 32  # four bits: the memory protection key
VM_PKEY_MASK = 15 << VM_PKEY_SHIFT
VM_UFFD_MINOR = 1 << 43

VM_ACCESS_FLAGS = VM_READ | VM_WRITE | VM_EXEC
VM_SPECIAL = VM_IO | VM_DONTEXPAND | VM_PFNMAP | VM_MIXEDMAP
VM_LOCKED_MASK = VM_LOCKED | VM_LOCKONFAULT
VM_STICKY = VM_SOFTDIRTY | VM_MAYBE_GUARD  # no obstacle to a merge: what is merged has them too
VM_UFFD_FLAGS = VM_UFFD_MISSING | VM_UFFD_WP | VM_UFFD_MINOR

VM_NAMES = {
    value: name.removeprefix("VM_").lower()
    for name, value in list(globals().items())
    if name.startswith("VM_") and isinstance(value, int) and value and not value & (value - 1)
    and not name.startswith("VM_PKEY_")
}  # fmt: skip

PROT_NONE, PROT_READ, PROT_WRITE, PROT_EXEC = 0, 1, 2, 4
PROT_GROWSDOWN, PROT_GROWSUP = 0x01000000, 0x02000000

MAP_SHARED, MAP_PRIVATE, MAP_SHARED_VALIDATE, MAP_DROPPABLE = 1, 2, 3, 8
MAP_TYPE = 0xF
MAP_FIXED, MAP_ANONYMOUS, MAP_32BIT, MAP_GROWSDOWN = 0x10, 0x20, 0x40, 0x100
MAP_DENYWRITE, MAP_EXECUTABLE, MAP_LOCKED, MAP_NORESERVE = 0x800, 0x1000, 0x2000, 0x4000
MAP_POPULATE, MAP_NONBLOCK, MAP_STACK, MAP_HUGETLB = 0x8000, 0x10000, 0x20000, 0x40000
MAP_HUGE_SHIFT = 26
MAP_SYNC, MAP_FIXED_NOREPLACE = 0x80000, 0x100000

MREMAP_MAYMOVE, MREMAP_FIXED, MREMAP_DONTUNMAP = 1, 2, 4

MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT = 1, 2, 4
MLOCK_ONFAULT = 1

EHWPOISON = 133
"""An errno that Python has no name for."""

TASK_SIZE_4_LEVELS = (1 << 47) - PAGE_SIZE
TASK_SIZE_5_LEVELS = (1 << 56) - PAGE_SIZE


def page_align(length: int) -> int:
    """Round up to whole pages."""
    return (length + PAGE_SIZE - 1) & PAGE_MASK


def names(flags: int) -> str:
    """Spell out vm_flags, lowest bit first, such as "read|write|mayread"."""
    return "|".join(name for bit, name in VM_NAMES.items() if flags & bit) or "none"
