"""Memory policies of VMAs: mbind and set_mempolicy_home_node.

All that maps show of a policy is that a VMA merges with no neighbour of another one. Which policy a
VMA has stands in its flags, above those that the kernel has, by a number that `Policies` gives out.
One node is taken for granted, the one of which most machines consist: all memory is on it, so no
page ever has to move.

MPOL_MF_STRICT with a mask that lacks the node: every page that is mapped is misplaced, and the call
fails at the first. Not modelled: MPOL_MF_MOVE with such a mask (pages move then, and some can't).

Source: mm/mempolicy.c (do_mbind, queue_pages_test_walk, queue_folios_pte_range; as in 6.1).
"""

from __future__ import annotations

from errno import EFAULT, EINVAL, EIO, ENOENT, EOPNOTSUPP, EPERM
from itertools import zip_longest
from typing import TYPE_CHECKING, NamedTuple

from zaplock.model.flags import PAGE_MASK, PAGE_SHIFT, page_align
from zaplock.model.pagetable import ABSENT
from zaplock.model.rwsem import down_write
from zaplock.model.step import Task, step
from zaplock.model.vma import overlapping, vma_of
from zaplock.protocols.locking import mmap_write_unlock
from zaplock.protocols.mprotect import apply_to_range, modify_vma

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.model.vma import Vma
    from zaplock.protocols.design import Cx

DEFAULT, PREFERRED, BIND, INTERLEAVE, LOCAL, PREFERRED_MANY, WEIGHTED_INTERLEAVE = range(7)
STATIC_NODES, RELATIVE_NODES, NUMA_BALANCING = 1 << 15, 1 << 14, 1 << 13
MPOL_MF_STRICT, MPOL_MF_MOVE, MPOL_MF_MOVE_ALL = 1, 2, 4
MODE_FLAGS = STATIC_NODES | RELATIVE_NODES | NUMA_BALANCING
NODES = 1
"""The nodes with memory, as a mask."""
NO_NODE = -1
_MASK = (1 << 64) - 1
_SHIFT = 44
EVERY_POLICY = ((1 << 16) - 1) << _SHIFT
_SUPPORTED_BITS = 1024


class Policy(NamedTuple):
    """What tells one policy from another; `asked` is the mask as it was given, if that is kept."""

    mode: int
    shape: int
    nodes: int
    asked: int
    home_node: int = NO_NODE


class Policies:
    """The policies of a machine by number, from 1 on; equal ones have one number."""

    def __init__(self) -> None:
        self._numbers: dict[Policy, int] = {}
        self._all: list[Policy] = []

    def bits(self, policy: Policy | None) -> int:
        """Return the flags of VMAs that have a policy, 0 for none."""
        if policy is None:
            return 0
        if policy not in self._numbers:
            self._all.append(policy)
            self._numbers[policy] = len(self._all)
        return self._numbers[policy] << _SHIFT

    def of(self, vma: Vma) -> Policy | None:
        """Return the policy of a VMA, None if it has none of its own."""
        number = (vma.flags & EVERY_POLICY) >> _SHIFT
        return self._all[number - 1] if number else None


async def mbind(
    cx: Cx, policies: Policies, start: int, length: int, told: int, nodes: int, how: int
) -> int:
    """Give every mapping of a range a policy: 0 or an errno.

    told: the mode with its flags. nodes: the mask (from bit 1024 on there is no node), or the
    negative errno with which it could not be read.
    """
    length = page_align(length & _MASK) & _MASK
    mode, shape = told & 0xFFFF_FFFF & ~MODE_FLAGS, told & MODE_FLAGS
    if not is_mode(cx, told):
        return -EINVAL
    if nodes < 0:
        return nodes
    if nodes >> _SUPPORTED_BITS or how & ~(MPOL_MF_STRICT | MPOL_MF_MOVE | MPOL_MF_MOVE_ALL):
        return -EINVAL
    if how & MPOL_MF_MOVE_ALL and not cx.limits.can_ipc_lock:  # CAP_SYS_NICE: both or none
        return -EPERM
    end = start + length
    if start & ~PAGE_MASK or end >> 64:
        return -EINVAL
    if end == start:
        return 0
    if mode == PREFERRED and not nodes and not shape & (STATIC_NODES | RELATIVE_NODES):
        mode = LOCAL
    if not _takes(mode, shape, nodes):
        return -EINVAL
    await down_write(cx.mmap_lock)
    strict = how == MPOL_MF_STRICT and not nodes & NODES
    result = await _bind(cx, policies, start, end, mode, shape, nodes, strict)
    await mmap_write_unlock(cx)
    return result


def is_mode(cx: Cx, told: int) -> bool:
    """Return whether there is such a mode with such flags (sanitize_mpol_flags)."""
    mode, shape = told & 0xFFFF_FFFF & ~MODE_FLAGS, told & MODE_FLAGS
    if mode > (WEIGHTED_INTERLEAVE if cx.design.interleaves_by_weight else PREFERRED_MANY):
        return False
    if shape & STATIC_NODES and shape & RELATIVE_NODES:
        return False
    balanced = (BIND, PREFERRED_MANY) if cx.design.balances_preferred else (BIND,)
    return not shape & NUMA_BALANCING or mode in balanced


def _takes(mode: int, shape: int, nodes: int) -> bool:
    """Return whether a mode goes with a mask (mpol_new)."""
    if mode == DEFAULT:
        return not nodes
    if mode == LOCAL:
        return not nodes and not shape
    return bool(nodes)


async def _bind(
    cx: Cx,
    policies: Policies,
    start: int,
    end: int,
    mode: int,
    shape: int,
    nodes: int,
    strict: bool,
) -> int:
    """Set the policy under the lock; `strict`: only where no page is mapped yet."""
    policy = None
    if mode == LOCAL:
        policy = Policy(LOCAL, 0, 0, 0)
    elif mode != DEFAULT:
        if not (nodes & NODES or shape & RELATIVE_NODES):
            return -EINVAL  # mpol_set_nodemask: no node of these has memory
        asked = nodes if shape & (STATIC_NODES | RELATIVE_NODES) else 0
        policy = Policy(mode, shape, NODES, asked)
    if refused := await look_over(cx.mm, start, end, policy is None, strict and policy is not None):
        return refused
    bits = policies.bits(policy)

    async def visit(handle: int, vma: Vma, low: int, high: int) -> int:
        return await _replace(cx, handle, vma, low, high, bits)

    error, _ = await apply_to_range(cx, start, end, visit)
    return error


@step
def look_over(
    m: Machine, task: Task, mm: int, start: int, end: int, with_holes: bool, strict: bool
) -> int:
    """Look at what a range maps (queue_pages_range): 0, -EFAULT for holes, -EIO for pages.

    `with_holes`: these are no error, but nothing at all is. `strict`: a page that is mapped is one;
    a mapping is asked for the hole behind it before its pages are looked at.
    """
    space = m.mm(mm)
    found = [vma_of(m, task, handle) for handle in overlapping(m, space, start, end)]
    if with_holes:
        return 0 if found else -EFAULT
    at = start
    for vma, behind in zip_longest(found, found[1:]):
        if vma.start > at or (vma.end < end and (behind is None or behind.start > vma.end)):
            return -EFAULT
        low, at = max(vma.start, start) >> PAGE_SHIFT, min(vma.end, end)
        if strict and any(
            pte.kind not in _NOWHERE for _, _, pte in space.ptes.overlapping(low, at >> PAGE_SHIFT)
        ):
            return -EIO
    return 0 if found else -EFAULT


_NOWHERE = ABSENT | {"zero", "zero_thp"}
"""Kinds of entries whose pages count as on no node."""


async def _replace(cx: Cx, handle: int, vma: Vma, low: int, high: int, bits: int) -> int:
    """Give part of a VMA another policy (mbind_range); 0 or an errno."""
    if vma.flags & EVERY_POLICY == bits:
        return 0
    flags = vma.flags & ~EVERY_POLICY | bits
    return min(0, await modify_vma(cx, handle, low, high, flags, sets_all=False))


async def set_mempolicy_home_node(
    cx: Cx, policies: Policies, start: int, length: int, node: int, flags: int
) -> int:
    """Prefer a node in the policies that mappings of a range have already: 0 or an errno.

    -ENOENT where none has one; -EOPNOTSUPP at the first whose mode is neither BIND nor
    PREFERRED_MANY.
    """
    length = page_align(length & _MASK) & _MASK
    end = start + length
    if start & ~PAGE_MASK or flags or node < 0 or not NODES >> node & 1 or end >> 64:
        return -EINVAL
    if end == start:
        return 0
    found = False

    async def visit(handle: int, vma: Vma, low: int, high: int) -> int:
        nonlocal found
        policy = policies.of(vma)
        if policy is None:
            return 0
        if policy.mode not in (BIND, PREFERRED_MANY):
            return -EOPNOTSUPP
        found = True
        return await _replace(
            cx, handle, vma, low, high, policies.bits(policy._replace(home_node=node))
        )

    await down_write(cx.mmap_lock)
    error, _ = await apply_to_range(cx, start, end, visit)
    await mmap_write_unlock(cx)
    return error or (0 if found else -ENOENT)
