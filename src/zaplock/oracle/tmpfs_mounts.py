"""Mounts of tmpfs that give their files huge pages (huge=), and that nobody else sees.

As mounts of hugetlbfs (huge_mounts) they are attached nowhere, and go with the last descriptor of
theirs. So shared memory has huge pages in one run without a setting of the whole machine.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from zaplock.errors import UserError
from zaplock.oracle import ops
from zaplock.oracle.bare_process import check_root
from zaplock.oracle.detached_mounts import mount
from zaplock.oracle.rights import way_out

_lent: list[bool] = []


def are_lent() -> bool:
    """Return whether bare processes are to have mounts."""
    return bool(_lent)


@contextmanager
def tmpfs_mounts() -> Iterator[None]:
    """Let each bare process have mounts. Raises UserError where it can't."""
    check_root("shmem-huge", "mounts of tmpfs")
    TmpfsMounts().close()  # says why, where they can't be had
    _lent.append(True)
    try:
        yield
    finally:
        _lent.pop()


class TmpfsMounts:
    """The mounts of ops.TMPFS_MOUNTS, as `descriptors` of their roots."""

    def __init__(self) -> None:
        """Make them; raises UserError where the kernel refuses."""
        try:
            self.descriptors = tuple(
                mount("tmpfs", {"huge": huge, "size": str(ops.TMPFS_SIZE)})
                for huge in ops.TMPFS_MOUNTS
            )
        except OSError as error:
            raise UserError(
                f"can't mount tmpfs with huge= ({error.strerror}): {way_out()}, on Linux 5.2 or "
                "newer that has huge pages, or leave the theme shmem-huge out"
            ) from None

    def close(self) -> None:
        """Let go of them."""
        for descriptor in self.descriptors:
            os.close(descriptor)
