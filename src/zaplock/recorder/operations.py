"""The system calls that change or walk an address space, and where each says its range.

The arguments are given by position, as in the kernel's SYSCALL_DEFINE lines, since the names in
the `format` files have changed (madvise's `len_in`) while their order is part of the call itself.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Operation:
    """One system call; the positions of its arguments, None where it has no such one."""

    name: str
    address: int | None = None
    length: int | None = None
    detail: int | None = None


OPERATIONS = (
    Operation("munmap", 0, 1),
    Operation("mmap", 0, 1, 3),  # detail: flags
    Operation("mremap", 0, 1, 2),  # detail: the new length
    Operation("brk", 0),
    Operation("madvise", 0, 1, 2),
    Operation("mprotect", 0, 1, 2),
    Operation("pkey_mprotect", 0, 1, 2),
    Operation("mlock", 0, 1),
    Operation("mlock2", 0, 1, 2),
    Operation("munlock", 0, 1),
    Operation("mlockall", detail=0),
    Operation("munlockall"),
    Operation("msync", 0, 1, 2),
    Operation("mincore", 0, 1),
    Operation("mbind", 0, 1, 2),
    Operation("mseal", 0, 1, 2),
    Operation("remap_file_pages", 0, 1),
    Operation("shmat", 1, None, 2),
    Operation("shmdt", 0),
    Operation("process_madvise", None, None, 3),  # its ranges are in user memory: not seen
    Operation("process_mrelease", detail=0),
    Operation("execve"),
    Operation("execveat"),
    Operation("exit", detail=0),
    Operation("exit_group", detail=0),
    Operation("clone", detail=0),
    Operation("clone3"),  # its flags are in user memory: not seen
    Operation("fork"),
    Operation("vfork"),
)

NAMES = tuple(operation.name for operation in OPERATIONS)
CLONES = frozenset({"clone", "clone3", "fork", "vfork"})
"""They return twice; the second time in the new task, with 0."""
