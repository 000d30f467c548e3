"""mbind and set_mempolicy_home_node as a recording shows them."""

from __future__ import annotations

from errno import EFAULT, EINVAL

from zaplock.programs.recorded_world import LiveSpace, StraceWorld
from zaplock.programs.recording import TracedCall
from zaplock.programs.text import number
from zaplock.protocols import mempolicy

_MASK = (1 << 64) - 1
_MOST_BITS = 4096 * 8


def mbind(world: StraceWorld, live: LiveSpace, call: TracedCall) -> int:
    """Run an mbind; return 0 or an errno. Raises ValueError where an argument can't be read."""
    start, length, told = (number(argument) for argument in call.arguments[:3])
    how = number(call.arguments[5]) & 0xFFFF_FFFF
    cx = world.cx(live)
    nodes = _nodes_of(call, number(call.arguments[4]) - 1 & _MASK)
    if nodes is None:
        if mempolicy.is_mode(cx, told):
            raise ValueError("the mask of nodes is not in the recording")
        nodes = 0
    program = mempolicy.mbind(cx, world.policies, start, length, told, nodes, how)
    return world.run(live, program)


def follow_mbind(world: StraceWorld, live: LiveSpace, call: TracedCall) -> None:
    """Give a range the policy that it has after an mbind which asked for pages, too.

    Where pages are to be moved it has that before one is found that can't be. Where none are, the
    first page on a wrong node ends the call. Source: mm/mempolicy.c do_mbind.
    """
    how = number(call.arguments[5]) & 0xFFFF_FFFF
    if call.result == 0 or how & (mempolicy.MPOL_MF_MOVE | mempolicy.MPOL_MF_MOVE_ALL):
        told = (*call.arguments[:5], str(how & ~mempolicy.MPOL_MF_STRICT))
        mbind(world, live, call._replace(arguments=told))


def _nodes_of(call: TracedCall, most_bits: int) -> int | None:
    """Return the mask that strace shows as [0x1], or a negative errno; None where it is lost."""
    told = call.arguments[3]
    if told == "NULL" or not most_bits or told == "0x0":
        return 0
    if told == "{}" and call.result != -EINVAL:  # as 4.x wrote NULL
        return 0
    if most_bits > _MOST_BITS:
        return -EINVAL
    if not told.startswith(("[", "{")) or "..." in told:  # where it is, or cut by -s
        return -EFAULT if call.result == -EFAULT else None
    words = [number(word) for word in told.strip("[]{}").split(",") if word.strip()]
    return sum(word << 64 * place for place, word in enumerate(words)) & (1 << most_bits) - 1


def home_node(world: StraceWorld, live: LiveSpace, call: TracedCall) -> int:
    """Run a set_mempolicy_home_node; return 0 or an errno."""
    start, length, node, flags = (number(argument) for argument in call.arguments[:4])
    node = node if node < 1 << 63 else -1  # strace shows -1 as a huge number
    program = mempolicy.set_mempolicy_home_node(
        world.cx(live), world.policies, start, length, node, flags
    )
    return world.run(live, program)
