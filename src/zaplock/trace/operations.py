"""The system calls that change or walk an address space, and where each says its range.

One table for whatever reads them: the recorder from binary events, an import from text.

The arguments are given by position, as in the kernel's SYSCALL_DEFINE lines, since the names in
the `format` files have changed (madvise's `len_in`) while their order is part of the call itself.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TracedOperation:
    """One system call; the positions of its arguments, None where it has no such one."""

    name: str
    address: int | None = None
    length: int | None = None
    detail: int | None = None


OPERATIONS = (
    TracedOperation("munmap", 0, 1),
    TracedOperation("mmap", 0, 1, 3),  # detail: flags
    TracedOperation("mremap", 0, 1, 2),  # detail: the new length
    TracedOperation("brk", 0),
    TracedOperation("madvise", 0, 1, 2),
    TracedOperation("mprotect", 0, 1, 2),
    TracedOperation("pkey_mprotect", 0, 1, 2),
    TracedOperation("mlock", 0, 1),
    TracedOperation("mlock2", 0, 1, 2),
    TracedOperation("munlock", 0, 1),
    TracedOperation("mlockall", detail=0),
    TracedOperation("munlockall"),
    TracedOperation("msync", 0, 1, 2),
    TracedOperation("mincore", 0, 1),
    TracedOperation("mbind", 0, 1, 2),
    TracedOperation("mseal", 0, 1, 2),
    TracedOperation("remap_file_pages", 0, 1),
    TracedOperation("shmat", 1, None, 2),
    TracedOperation("shmdt", 0),
    TracedOperation("process_madvise", None, None, 3),  # its ranges are in user memory: not seen
    TracedOperation("process_mrelease", detail=0),
    TracedOperation("execve"),
    TracedOperation("execveat"),
    TracedOperation("exit", detail=0),
    TracedOperation("exit_group", detail=0),
    TracedOperation("clone", detail=0),
    TracedOperation("clone3"),  # its flags are in user memory: not seen
    TracedOperation("fork"),
    TracedOperation("vfork"),
    TracedOperation("map_shadow_stack", 0, 1, 2),
    TracedOperation("set_mempolicy", detail=0),
    TracedOperation("set_mempolicy_home_node", 0, 1, 2),
    TracedOperation("prctl", detail=0),
    TracedOperation("io_uring_register", detail=1),
    TracedOperation("process_vm_readv", detail=0),  # detail: whose memory
    TracedOperation("process_vm_writev", detail=0),
    TracedOperation("ptrace", detail=0),  # detail: what it asks for
    TracedOperation("move_pages", detail=0),
    TracedOperation("migrate_pages", detail=0),
)

FOREIGN = (
    "process_madvise",
    "process_mrelease",
    "process_vm_readv",
    "process_vm_writev",
    "ptrace",
    "move_pages",
    "migrate_pages",
)
"""Calls that work on another process's address space, so a recording takes everybody's."""

NAMES = tuple(operation.name for operation in OPERATIONS)
CLONES = frozenset({"clone", "clone3", "fork", "vfork"})
"""They return twice; the second time in the new task, with 0."""

X86_64 = {
    9: "mmap", 10: "mprotect", 11: "munmap", 12: "brk", 25: "mremap", 26: "msync", 27: "mincore",
    28: "madvise", 30: "shmat", 56: "clone", 57: "fork", 58: "vfork", 59: "execve", 60: "exit",
    67: "shmdt", 101: "ptrace", 149: "mlock", 150: "munlock", 151: "mlockall", 152: "munlockall",
    157: "prctl", 216: "remap_file_pages", 231: "exit_group", 237: "mbind", 238: "set_mempolicy",
    256: "migrate_pages", 279: "move_pages", 310: "process_vm_readv", 311: "process_vm_writev",
    322: "execveat", 325: "mlock2", 329: "pkey_mprotect", 427: "io_uring_register", 435: "clone3",
    440: "process_madvise", 448: "process_mrelease", 450: "set_mempolicy_home_node",
    453: "map_shadow_stack", 462: "mseal",
}  # fmt: skip
"""Numbers of these calls on x86-64 (arch/x86/entry/syscalls/syscall_64.tbl), which raw_syscalls
gives."""
