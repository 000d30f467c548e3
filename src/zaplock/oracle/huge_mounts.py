"""Mounts of hugetlbfs with shares of the pool (size=, min_size=) that nobody else sees.

A mount is made with fsopen and fsmount (Linux 5.2) and never attached anywhere: it is a descriptor,
which the bare process has too, and goes with the last of them. So no namespace is needed, and
whatever ends a run gives it all back. Each bare process has mounts of its own.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from zaplock.errors import UserError
from zaplock.oracle import ops
from zaplock.oracle.bare_process import check_root
from zaplock.oracle.huge_pool import SIZE, huge_pages
from zaplock.oracle.rights import way_out

_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
_CLOEXEC, _SET_STRING, _CREATE = 1, 1, 6
_LOWEST = 64  # none of the small descriptors that a bare process uses itself
_lent: list[bool] = []


def are_lent() -> bool:
    """Return whether bare processes are to have mounts."""
    return bool(_lent)


@contextmanager
def pages_and_mounts() -> Iterator[None]:
    """Let the pool have pages, and each bare process mounts. Raises UserError where it can't."""
    check_root("hugetlbfs", "mounts of hugetlbfs")
    with huge_pages(theme="hugetlbfs"):
        HugeMounts().close()  # says why, where they can't be had
        _lent.append(True)
        try:
            yield
        finally:
            _lent.pop()


class HugeMounts:
    """The mounts of ops.MOUNTS, as `descriptors` of their roots."""

    def __init__(self) -> None:
        """Make them; raises UserError where the kernel refuses."""
        try:
            self.descriptors = tuple(_mount(share) for share in ops.MOUNTS)
        except OSError as error:
            raise UserError(
                f"can't mount hugetlbfs ({error.strerror}): {way_out()}, on Linux 5.2 or newer, or "
                "leave the theme hugetlbfs out"
            ) from None

    def lacking(self) -> str:
        """Say how many pages of a mount are in use, which has no files; "" where none are."""
        for number, (mount, share) in enumerate(zip(self.descriptors, ops.MOUNTS, strict=True)):
            used = share.most - os.fstatvfs(mount).f_bfree if share.most >= 0 else 0
            if used:
                return f"{used} of {share.most} huge pages of mount {number}"
        return ""

    def close(self) -> None:
        """Let go of them."""
        for mount in self.descriptors:
            os.close(mount)


def _mount(share: ops.Share) -> int:
    """Make one mount; return a descriptor of its root."""
    options = {"pagesize": SIZE}
    if share.most >= 0:
        options["size"] = share.most * SIZE
    if share.least >= 0:
        options["min_size"] = share.least * SIZE
    context = _call(_FSOPEN, b"hugetlbfs", _CLOEXEC)
    try:
        for name, value in options.items():
            _call(_FSCONFIG, context, _SET_STRING, name.encode(), str(value).encode(), 0)
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
