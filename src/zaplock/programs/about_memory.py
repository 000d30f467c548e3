"""Which recorded calls are about memory, and what they set up that no recording shows."""

from __future__ import annotations

import errno
from contextlib import suppress

from zaplock.model import flags as f
from zaplock.model.mm import LIMITED_TASK_SIZE, NARROW_TASK_SIZE
from zaplock.programs.arguments import numbers
from zaplock.programs.calls import CALLS
from zaplock.programs.recorded_world import LiveSpace, StraceWorld
from zaplock.programs.recording import UNKNOWN, TracedCall
from zaplock.programs.spaces import OF_32_BITS, is_of_monitor
from zaplock.programs.text import (
    ADDR_LIMIT_3GB,
    CONSTANTS,
    LIMITS,
    READ_IMPLIES_EXEC,
    number,
)

UNMODELLED = {"map_shadow_stack", "uselib", *OF_32_BITS}
"""Calls that change mappings, or what can be done with them, and that the model lacks."""

_PRCTLS = ("PR_SET_VMA", "PR_SET_MDWE", "PR_SET_MEMORY_MERGE")


def is_about_memory(call: TracedCall) -> bool:
    """Return whether a call is about mappings at all."""
    if call.name == "prctl":
        try:
            option = number(call.arguments[0])
        except (ValueError, IndexError):
            return any(a.startswith(_PRCTLS) for a in call.arguments[:1])
        return option in map(CONSTANTS.get, _PRCTLS)
    if call.name == "arch_prctl":
        with suppress(ValueError, IndexError):  # others have no number here
            return number(call.arguments[0]) in MAPS_VDSO
        return False
    if call.name == "ioctl":
        return is_of_monitor(call)
    if call.name in ("setrlimit", "prlimit64"):
        with suppress(ValueError, IndexError):  # others have no number here
            return number(call.arguments[call.name == "prlimit64"]) in LIMITS
        return False
    return call.name in CALLS or call.name in UNMODELLED


MAPS_VDSO = tuple(CONSTANTS[f"ARCH_MAP_VDSO_{kind}"] for kind in ("X32", "32", "64"))

_ASKS = 0xFFFF_FFFF
"""What personality is given to change nothing; all above its 32 bits is cut off."""


def personality_of(call: TracedCall) -> int | None:
    """Return which of the flags that decide about memory hold from here on; None as before.

    Names of other personalities have no numbers here: they don't matter.
    """
    told = "".join(call.arguments[:1])
    if call.result < 0:
        return None
    with suppress(ValueError):
        persona = number(told) & _ASKS
        return None if persona == _ASKS else persona
    names = {"READ_IMPLIES_EXEC": READ_IMPLIES_EXEC, "ADDR_LIMIT_3GB": ADDR_LIMIT_3GB}
    return sum(flag for name, flag in names.items() if name in told)


def take_personality(world: StraceWorld, live: LiveSpace, call: TracedCall) -> None:
    """Take what holds at once of a new personality; the rest is for what is executed next.

    Of a 32-bit program that is how far addresses go, too. Source: asm/page_64_types.h TASK_SIZE.
    """
    persona = personality_of(call)
    if persona is None:
        return
    world.limit(live, implies_exec=bool(persona & READ_IMPLIES_EXEC))
    if live.known.limits.is_narrow:
        size = LIMITED_TASK_SIZE if persona & ADDR_LIMIT_3GB else NARROW_TASK_SIZE
        world.limit(live, task_size=size)


def unseen(call: TracedCall) -> str:
    """Return why what differs from here on may come of what a call has set up, "" for others."""
    if call.name == "io_uring_setup" and 0 <= call.result < UNKNOWN:
        return "what its io_uring is asked to do (IORING_OP_MADVISE) is not in the recording"
    if call.name == "shmat" and call.result == -errno.EFAULT:  # by ipc, of 32-bit calls
        return "where a segment lies whose address could not be told is not in the recording"
    with suppress(ValueError, IndexError):  # most options have no number here
        of_mm = call.name == "prctl" and number(call.arguments[0]) == CONSTANTS["PR_SET_MM"]
        if of_mm and call.result == 0:
            return "the model has no PR_SET_MM, which says where the heap is"
    return ""


def grows(call: TracedCall) -> str:
    """Return why what differs behind a call may come of how its mapping has grown, "" for others.

    It grows when it is touched, which is no call; zaplock's recorder tells what was written.
    """
    with suppress(ValueError, IndexError):
        if call.name == "mmap" and call.result >= 0 and numbers(call, 4)[3] & f.MAP_GROWSDOWN:
            return "how far a mapping that grows down has grown is not in the recording"
    return ""
