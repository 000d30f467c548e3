"""Mounts of hugetlbfs with shares of the pool (size=, min_size=) that nobody else sees.

A mount is never attached anywhere (detached_mounts): it is a descriptor, which the bare process has
too, and goes with the last of them. Each bare process has mounts of its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from zaplock.errors import UserError
from zaplock.oracle import ops
from zaplock.oracle.bare_process import check_root
from zaplock.oracle.detached_mounts import mount
from zaplock.oracle.huge_pool import SIZE, huge_pages
from zaplock.oracle.rights import way_out

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
        for number, (root, share) in enumerate(zip(self.descriptors, ops.MOUNTS, strict=True)):
            used = share.most - os.fstatvfs(root).f_bfree if share.most >= 0 else 0
            if used:
                return f"{used} of {share.most} huge pages of mount {number}"
        return ""

    def close(self) -> None:
        """Let go of them."""
        for root in self.descriptors:
            os.close(root)


def _mount(share: ops.Share) -> int:
    """Make one mount; return a descriptor of its root."""
    options = {"pagesize": SIZE}
    if share.most >= 0:
        options["size"] = share.most * SIZE
    if share.least >= 0:
        options["min_size"] = share.least * SIZE
    return mount("hugetlbfs", {name: str(value) for name, value in options.items()})
