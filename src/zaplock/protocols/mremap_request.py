"""What an mremap asks for and gives back, and what its arguments alone are refused for.

Source: mm/mremap.c check_mremap_params (6.17); mremap_to and the call itself (to 6.16).
"""

from __future__ import annotations

from errno import EINVAL
from typing import TYPE_CHECKING, NamedTuple

from zaplock.model.flags import (
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PAGE_MASK,
    VM_HUGETLB,
    VM_LOCKED,
)
from zaplock.model.vma import Vma

if TYPE_CHECKING:
    from zaplock.protocols.design import Cx

KNOWN = MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP
WORD = 1 << 64
"""Where addresses and lengths begin anew."""


class Request(NamedTuple):
    """What is asked for; lengths and addresses in bytes, lengths in whole pages."""

    address: int
    old_length: int
    new_length: int
    flags: int
    new_address: int

    @property
    def implies_move(self) -> bool:
        """Whether the flags ask for a move, and so for a new address."""
        return bool(self.flags & (MREMAP_FIXED | MREMAP_DONTUNMAP))


class MremapResult(NamedTuple):
    """The address or a negative errno, what do_munmap left of the lock, what to populate."""

    value: int
    unmapped: int = 0
    populate: tuple[int, int] | None = None


def mremap_arguments(cx: Cx, r: Request) -> int:
    """Check what needs no lock: 0 or -EINVAL (check_mremap_params)."""
    task_size = cx.limits.task_size
    if r.flags & ~KNOWN or r.address & ~PAGE_MASK or not 0 < r.new_length <= task_size:
        return -EINVAL
    if not r.implies_move:
        return 0
    if r.new_address > task_size - r.new_length or r.new_address & ~PAGE_MASK:
        return -EINVAL
    if not r.flags & MREMAP_MAYMOVE:
        return -EINVAL
    if r.flags & MREMAP_DONTUNMAP and r.old_length != r.new_length:
        return -EINVAL
    old_end, new_end = (r.address + r.old_length) % WORD, r.new_address + r.new_length
    return -EINVAL if old_end > r.new_address and new_end > r.address else 0


def is_malformed(r: Request) -> bool:
    """Return whether a request is refused before anything is looked up, in every kernel."""
    if r.flags & ~KNOWN or r.address & ~PAGE_MASK or not r.new_length:
        return True
    if r.implies_move and not r.flags & MREMAP_MAYMOVE:
        return True
    return bool(r.flags & MREMAP_DONTUNMAP and r.old_length != r.new_length)


def align_hugetlb(vma: Vma, r: Request) -> Request:
    """Round the lengths to huge pages where a mapping has such; the largest one to 0."""
    if not vma.flags & VM_HUGETLB:
        return r
    rounded = (
        (length + vma.huge_size - 1) & -vma.huge_size for length in (r.old_length, r.new_length)
    )
    old, new = (length % WORD for length in rounded)
    return r._replace(old_length=old, new_length=new)


def is_aligned_for_hugetlb(vma: Vma, r: Request) -> bool:
    """Return whether huge pages can be remapped so; they can't grow, for want of reservations."""
    unaligned = (r.address | r.new_address) % vma.huge_size
    return not unaligned and r.new_length <= r.old_length


def populate_range(vma: Vma, r: Request, target: int) -> tuple[int, int] | None:
    """Return what a locked mapping has grown by, to be faulted in."""
    if not vma.flags & VM_LOCKED or r.new_length <= r.old_length:
        return None
    return target + r.old_length, target + r.new_length
