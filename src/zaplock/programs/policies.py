"""mbind: a memory policy of its own keeps a mapping from merging with others.

That is all that maps show of a policy. Which one a VMA has stands in its flags, above those that
the kernel has. One node is taken for granted, the one of which most machines consist.

Source: mm/mempolicy.c.
"""

from __future__ import annotations

from errno import EFAULT, EINVAL, EPERM
from typing import Any

from zaplock.model import flags as f
from zaplock.programs.recorded_world import LiveSpace, StraceWorld
from zaplock.programs.recording import TracedCall
from zaplock.programs.text import number
from zaplock.protocols.design import Cx
from zaplock.protocols.locking import mmap_write_lock_killable, mmap_write_unlock
from zaplock.protocols.mprotect import apply_to_range, modify_vma

DEFAULT, PREFERRED, BIND, INTERLEAVE, LOCAL, PREFERRED_MANY, WEIGHTED_INTERLEAVE = range(7)
STATIC_NODES, RELATIVE_NODES, NUMA_BALANCING = 1 << 15, 1 << 14, 1 << 13
STRICT, MOVE, MOVE_ALL = 1, 2, 4
_MODE_FLAGS = STATIC_NODES | RELATIVE_NODES | NUMA_BALANCING
_MASK = (1 << 64) - 1
_SHIFT = 44
_EVERY_POLICY = ((1 << 16) - 1) << _SHIFT
_NODES = 1  # nodes with memory, as a mask
_MOST_BITS = 4096 * 8


def mbind(world: StraceWorld, live: LiveSpace, call: TracedCall) -> int:
    """Run an mbind; return 0 or an errno. Raises ValueError where an argument can't be read."""
    start, length, told = (number(argument) for argument in call.arguments[:3])
    length = f.page_align(length & _MASK) & _MASK
    mode, shape = told & 0xFFFF_FFFF & ~_MODE_FLAGS, told & _MODE_FLAGS
    how = number(call.arguments[5]) & 0xFFFF_FFFF
    most_bits = number(call.arguments[4]) - 1 & _MASK
    if mode > WEIGHTED_INTERLEAVE or (shape & STATIC_NODES and shape & RELATIVE_NODES):
        return -EINVAL
    if shape & NUMA_BALANCING and mode not in (BIND, PREFERRED_MANY):
        return -EINVAL
    nodes = _nodes_of(call, most_bits)
    if nodes < 0:
        return nodes
    if how & ~(STRICT | MOVE | MOVE_ALL):
        return -EINVAL
    if how & MOVE_ALL and not live.known.limits.can_ipc_lock:  # CAP_SYS_NICE: both or none
        return -EPERM
    end = start + length
    if start & ~f.PAGE_MASK or end < start or end >> 64:
        return -EINVAL
    if end == start:
        return 0
    policy = _policy(mode, shape, nodes)
    if policy is None:
        return -EINVAL
    if _has_hole(world, live, start, end):
        return -EFAULT
    bits = world.policy_number(policy) << _SHIFT if policy else 0
    return world.run(live, _set_policy(world.cx(live), start, end, bits))


def _nodes_of(call: TracedCall, most_bits: int) -> int:
    """Return the mask that strace shows as [0x1], or a negative errno (get_nodes)."""
    told = call.arguments[3]
    if told == "NULL" or not most_bits or told == "0x0":
        return 0
    if most_bits > _MOST_BITS:
        return -EINVAL
    if not told.startswith("["):  # what could not be read is shown as where it is
        if call.result != -EFAULT:
            raise ValueError("the mask of nodes is not in the recording")
        return -EFAULT
    words = [number(word) for word in told.strip("[]").split(",") if word.strip()]
    nodes = sum(word << 64 * place for place, word in enumerate(words)) & (1 << most_bits) - 1
    return -EINVAL if nodes >> 1024 else nodes


def _policy(mode: int, shape: int, nodes: int) -> tuple[int, ...] | None:
    """Return what tells one policy from another: () for none at all, None where it is refused."""
    if mode == DEFAULT:
        return None if nodes else ()
    if mode == PREFERRED and not nodes:
        mode = LOCAL
    if mode == LOCAL:
        return None if nodes or shape else (LOCAL, 0, 0, 0)
    if not nodes or not (nodes & _NODES or shape & RELATIVE_NODES):
        return None
    kept = nodes if shape & (STATIC_NODES | RELATIVE_NODES) else 0
    return mode, shape, nodes & _NODES, kept


def _has_hole(world: StraceWorld, live: LiveSpace, start: int, end: int) -> bool:
    """Return whether a range is not mapped everywhere (queue_pages_test_walk)."""
    at = start
    for vma in world.vmas(live):
        if vma.start <= at < vma.end:
            at = vma.end
    return at < end


async def _set_policy(cx: Cx, start: int, end: int, bits: int) -> int:
    async def visit(handle: int, vma: Any, low: int, high: int) -> int:
        part = await modify_vma(cx, handle, low, high, vma.flags & ~_EVERY_POLICY | bits)
        return min(0, part)

    await mmap_write_lock_killable(cx)
    error, _ = await apply_to_range(cx, start, end, visit)
    await mmap_write_unlock(cx)
    return error
