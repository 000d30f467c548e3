"""Whether two processes have one address space: a vfork's child and its parent, a clone(CLONE_VM).

kcmp(2) tells it without the mmap_lock and without the kernel's pointers (CONFIG_KCMP). Where it
can't be asked, processes count as apart.
"""

from __future__ import annotations

import ctypes
import os
from typing import Final

_NUMBER: Final = {"x86_64": 312, "aarch64": 272}
_KCMP_VM: Final = 1


def share_mm(one: int, other: int) -> bool:
    """Say whether two living processes have the same address space."""
    number = _NUMBER.get(os.uname().machine)
    if number is None or one == other:
        return one == other
    libc = ctypes.CDLL(None, use_errno=True)
    nothing = ctypes.c_ulong(0)
    return bool(libc.syscall(number, one, other, _KCMP_VM, nothing, nothing) == 0)
