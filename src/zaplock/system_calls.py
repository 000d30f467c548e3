"""The system calls that zaplock knows: name, number, arguments, errors.

One catalogue for whoever reads, makes, models or judges calls: the recorder and the imports take
the traced ones and where each says its range; the oracle the numbers, the arguments and the errors
that the manual names; the checker and `AddressSpace` the arguments; the library calls their C
types; recorded programs the numbers and how many arguments there are.

An argument is named by its role: `addr` and `length` are the range that a call works on, `file` a
descriptor; all others are only names. Arguments are given by position, as in the kernel's
SYSCALL_DEFINE lines, since the names in the `format` files have changed (madvise's `len_in`) while
their order is part of the call itself. Numbers are x86-64's.

Source: arch/x86/entry/syscalls/syscall_64.tbl; man-pages 6.9, mseal(2) and process_madvise(2).
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any, Final, NamedTuple


class SystemCall(NamedTuple):
    """One call.

    arguments: their roles, in order. detail: the one that a report shows beside the range. traced:
    a recording has it. foreign: it works on another process's address space, so a recording takes
    everybody's. judged: the oracle makes it. errors: those that the manual names and a run of the
    oracle must show. out_of_reach: those that no run shows, each with the reason. ints: the
    arguments of which the kernel takes an int, whatever a register has above its 32 bits.
    """

    name: str
    number: int
    arguments: tuple[str, ...] = ()
    detail: str = ""
    traced: bool = True
    foreign: bool = False
    judged: bool = False
    errors: tuple[str, ...] = ()
    out_of_reach: Mapping[str, str] = {}
    ints: tuple[str, ...] = ()

    def position(self, role: str) -> int | None:
        """Return which argument has a role, None if there is no such one."""
        return self.arguments.index(role) if role in self.arguments else None

    @property
    def shown(self) -> dict[str, int | None]:
        """Which arguments a recording keeps: the range and the detail, by column."""
        columns = {"address": "addr", "length": "length", "detail": self.detail}
        return {column: self.position(role) for column, role in columns.items()}


def _call(name: str, number: int, arguments: str = "", detail: str = "", **more: Any) -> SystemCall:
    errors, ints = (tuple(more.pop(what, "").split()) for what in ("errors", "ints"))
    roles = tuple(arguments.split())
    return SystemCall(name, number, roles, detail, errors=errors, ints=ints, **more)


_FULL = "needs the kernel out of memory"
_OF_ONESELF = {
    "ENOMEM": _FULL,
    "EPERM": "one's own process is always allowed",
    "ESRCH": "the process is there",
}

_CALLS = (
    _call("munmap", 11, "addr length", judged=True, errors="EINVAL EPERM",
          out_of_reach={"ENOMEM": "needs max_map_count mappings"}),
    _call("mmap", 9, "addr length prot flags file offset", "flags", judged=True,
          errors="EACCES EAGAIN EBADF EEXIST EINVAL ENOMEM ENOTSUP EOVERFLOW EPERM",
          out_of_reach={
              "ENFILE": "needs the whole machine to be out of open files",
              "ENODEV": "every file of the oracle can be mapped",
              "ETXTBSY": "MAP_DENYWRITE has been ignored since 2.6",
          }),
    _call("mremap", 25, "addr length new_length flags new_addr", "new_length", judged=True,
          errors="EAGAIN EFAULT EINVAL ENOMEM EPERM"),
    _call("brk", 12, "addr", judged=True,
          out_of_reach={"ENOMEM": "the system call itself returns the old end instead"}),
    _call("madvise", 28, "addr length advice", "advice", judged=True, ints="advice",
          errors="EACCES EFAULT EINVAL ENOMEM EPERM",
          out_of_reach={
              "EAGAIN": "needs max_map_count mappings, or the kernel out of memory",
              "EBADF": "WILLNEED of anonymous memory, in kernels without swap",
              "EBUSY": "MADV_HWPOISON is left out, and MADV_COLLAPSE gives it when memory is short",
              "EHWPOISON": "needs broken memory",
              "EIO": "needs a failing disk",
          }),
    _call("mprotect", 10, "addr length prot", "prot", judged=True,
          errors="EACCES EINVAL ENOMEM EPERM"),
    _call("pkey_mprotect", 329, "addr length prot pkey", "prot", judged=True, ints="pkey",
          errors="EINVAL ENOMEM"),
    _call("mlock", 149, "addr length", judged=True, errors="EINVAL ENOMEM EPERM",
          out_of_reach={"EAGAIN": _FULL}),
    _call("mlock2", 325, "addr length flags", "flags", judged=True, ints="flags",
          errors="EINVAL ENOMEM EPERM"),
    _call("munlock", 150, "addr length", judged=True, errors="EINVAL ENOMEM"),
    _call("mlockall", 151, "flags", "flags", judged=True, ints="flags",
          errors="EINVAL ENOMEM EPERM"),
    _call("munlockall", 152, judged=True),
    _call("msync", 26, "addr length flags", "flags", judged=True, ints="flags",
          errors="EBUSY EINVAL ENOMEM"),
    _call("mincore", 27, "addr length vector", judged=True, errors="EFAULT EINVAL ENOMEM",
          out_of_reach={"EAGAIN": _FULL}),
    _call("mbind", 237, "addr length mode nodemask maxnode flags", "mode", judged=True,
          ints="mode flags",
          errors="EFAULT EINVAL EPERM",
          out_of_reach={"EIO": "no page is on a wrong node where there is one", "ENOMEM": _FULL}),
    _call("mseal", 462, "addr length flags", "flags", judged=True, errors="EINVAL ENOMEM",
          out_of_reach={"EPERM": "32-bit kernels only"}),
    _call("remap_file_pages", 216, "addr length prot pgoff flags", judged=True, errors="EINVAL"),
    _call("shmat", 30, "segment addr flags", "flags", ints="flags"),
    _call("shmdt", 67, "addr"),
    # The ranges of process_madvise are in user memory: not seen by a recording.
    _call("process_madvise", 440, "pidfd vector count advice flags", "advice", foreign=True,
          judged=True, ints="advice", errors="EFAULT EINVAL ENOMEM",
          out_of_reach={
              "EBADF": "the pidfd is always the process's own",
              "EPERM": "one's own process is always allowed (seals apart)",
              "ESRCH": "the process is there",
          }),
    _call("process_mrelease", 448, "pidfd flags", "pidfd", foreign=True),
    _call("execve", 59, "path argv envp"),
    _call("execveat", 322, "directory path argv envp flags"),
    _call("exit", 60, "status", "status"),
    _call("exit_group", 231, "status", "status"),
    _call("clone", 56, "flags stack parent_tid child_tid tls", "flags"),
    _call("clone3", 435, "arguments size"),  # its flags are in user memory: not seen
    _call("fork", 57,
          out_of_reach={
              "EAGAIN": "needs RLIMIT_NPROC, which concerns every process of the user",
              "ENOMEM": _FULL,
          }),
    _call("vfork", 58),
    _call("map_shadow_stack", 453, "addr length flags", "flags"),
    _call("set_mempolicy", 238, "mode nodemask maxnode", "mode"),
    _call("set_mempolicy_home_node", 450, "addr length home_node flags", "home_node", judged=True,
          errors="EINVAL ENOENT ENOTSUP"),
    _call("prctl", 157, "option arg2 arg3 arg4 arg5", "option"),
    _call("io_uring_register", 427, "fd opcode arg count", "opcode"),
    _call("process_vm_readv", 310, "pid local nr_local remote nr_remote flags", "pid",
          foreign=True, judged=True, errors="EFAULT EINVAL", out_of_reach=_OF_ONESELF),
    _call("process_vm_writev", 311, "pid local nr_local remote nr_remote flags", "pid",
          foreign=True, judged=True, errors="EFAULT EINVAL", out_of_reach=_OF_ONESELF),
    _call("ptrace", 101, "request pid where data", "request", foreign=True),
    _call("move_pages", 279, "pid count pages nodes status flags", "pid", foreign=True),
    _call("migrate_pages", 256, "pid maxnode old_nodes new_nodes", "pid", foreign=True),
    # Calls that a recording of the lock has no use for.
    _call("open", 2, "path flags mode", traced=False),
    _call("close", 3, "file", traced=False),
    _call("close_range", 436, "first last flags", traced=False),
    _call("io_uring_setup", 425, "entries parameters", traced=False),
    _call("ioctl", 16, "file command argument", traced=False),
    _call("userfaultfd", 323, "flags", traced=False),
    _call("pread64", 17, "file addr length offset", traced=False, judged=True),
    _call("pwrite64", 18, "file addr length offset", traced=False, judged=True),
    _call("shmget", 29, "key length flags", traced=False),
    _call("shmctl", 31, "segment command buffer", traced=False),
    _call("dup", 32, "file", traced=False),
    _call("dup2", 33, "file new", traced=False),
    _call("fcntl", 72, "file command argument", traced=False),
    _call("ftruncate", 77, "file length", traced=False, judged=True, errors="EBADF EINVAL EPERM",
          out_of_reach={
              "EFBIG": "lengths stay small, so that files fit into memory",
          }),
    _call("creat", 85, "path mode", traced=False),
    _call("setrlimit", 160, "resource limit", traced=False),
    _call("arch_prctl", 158, "option address", traced=False),
    _call("personality", 135, "persona", traced=False),
    _call("io_setup", 206, "nr_events context", traced=False),
    _call("io_destroy", 207, "context", traced=False),
    _call("get_mempolicy", 239, "mode nodemask maxnode where flags", traced=False),
    _call("openat", 257, "directory path flags mode", traced=False),
    _call("dup3", 292, "file new flags", traced=False),
    _call("prlimit64", 302, "pid resource limit old", traced=False),
    _call("setuid", 105, "uid", traced=False),
    _call("setreuid", 113, "uid effective", traced=False),
    _call("setresuid", 117, "uid effective saved", traced=False),
    _call("capset", 126, "header data", traced=False),
    _call("unshare", 272, "flags", traced=False),
    _call("setns", 308, "file kind", traced=False),
    _call("seccomp", 317, "operation flags arguments", traced=False),
    _call("memfd_create", 319, "name flags", traced=False),
    _call("pkey_alloc", 330, "flags rights", traced=False),
    _call("pkey_free", 331, "pkey", traced=False),
    _call("pidfd_open", 434, "pid flags", traced=False),
    _call("openat2", 437, "directory path how size", traced=False),
    _call("memfd_secret", 447, "flags", traced=False),
)  # fmt: skip

SYSTEM_CALLS: Final[Mapping[str, SystemCall]] = {call.name: call for call in _CALLS}

TRACED: Final = tuple(call for call in _CALLS if call.traced)
"""Calls that change or walk an address space; their order is that of codes in recordings."""
TRACED_NAMES: Final = tuple(call.name for call in TRACED)
FOREIGN: Final = tuple(call.name for call in TRACED if call.foreign)
CLONES: Final = frozenset({"clone", "clone3", "fork", "vfork"})
"""They return twice: the id of the new process or thread, and in that 0."""
BY_NUMBER: Final[Mapping[int, str]] = {call.number: call.name for call in _CALLS}


def as_int(word: int) -> int:
    """Return what the kernel sees of a register in which it takes an int."""
    return (word + (1 << 31)) % (1 << 32) - (1 << 31)


_TYPES: Final = {"addr": ctypes.c_void_p, "new_addr": ctypes.c_void_p, "vector": ctypes.c_void_p,
                 "length": ctypes.c_size_t, "new_length": ctypes.c_size_t,
                 "offset": ctypes.c_int64}  # fmt: skip
_RETURN_AN_ADDRESS: Final = ("mmap", "mremap", "shmat")
FAILED: Final = 2**64 - 1
"""MAP_FAILED: what those that return an address return for an error."""


def bind(libc: ctypes.CDLL, name: str) -> Any:
    """Return libc's function for a call with its C types set; calling it releases the GIL."""
    function = getattr(libc, name)
    function.restype = ctypes.c_void_p if name in _RETURN_AN_ADDRESS else ctypes.c_int
    arguments = SYSTEM_CALLS[name].arguments
    function.argtypes = [_TYPES.get(role, ctypes.c_int) for role in arguments]
    return function
