"""Mounts that are attached nowhere: a descriptor, which goes with the last process that has it.

Made with fsopen and fsmount (Linux 5.2), so no namespace is needed, and whatever ends a run gives
it all back.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
from collections.abc import Mapping

_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
_CLOEXEC, _SET_STRING, _CREATE = 1, 1, 6
_LOWEST = 64  # none of the small descriptors that a bare process uses itself


def mount(kind: str, options: Mapping[str, str]) -> int:
    """Make a mount of a kind of file system; return a descriptor of its root. Raises OSError."""
    context = _call(_FSOPEN, kind.encode(), _CLOEXEC)
    try:
        for name, value in options.items():
            _call(_FSCONFIG, context, _SET_STRING, name.encode(), value.encode(), 0)
        _call(_FSCONFIG, context, _CREATE, None, None, 0)
        low = _call(_FSMOUNT, context, _CLOEXEC, 0)
    finally:
        os.close(context)
    try:
        return fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, _LOWEST)
    finally:
        os.close(low)


def _call(number: int, *arguments: int | bytes | None) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    passed = (ctypes.c_long(one) if isinstance(one, int) else one for one in arguments)
    result = int(libc.syscall(ctypes.c_long(number), *passed))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
