"""Limits of recorded programs and of their machine: what sets them, and whether it may.

A limit is a process's own: a child that runs in its maker's memory (vfork) sets another one.
Source: kernel/sys.c do_prlimit, prlimit64.
"""

from __future__ import annotations

import re
from dataclasses import replace
from errno import EFAULT, EINVAL, EPERM

from zaplock.model import flags as f
from zaplock.programs.arguments import NotRecorded
from zaplock.programs.recorded_world import LiveSpace, StraceWorld
from zaplock.programs.recording import TracedCall
from zaplock.programs.text import CONSTANTS, LIMITS, field, number

_RLIMITS = {resource: f"rlimit_{name}" for resource, name in LIMITS.items()}
MACHINES = ("mappings", "memory", "huge_pages", "lowest")
_STACK = CONSTANTS["RLIMIT_STACK"]


def set_limit(world: StraceWorld, live: LiveSpace, resource: int, soft: int) -> None:
    """Set a limit; whether it binds who may lock memory at all is told by the next mlock."""
    name = _RLIMITS.get(resource)
    if name:
        world.limit(live, **{name: min(soft, 1 << 63)})
        live.known = replace(live.known, given=live.known.given | {name})


def set_hard_limit(world: StraceWorld, live: LiveSpace, resource: int, hard: int) -> None:
    """Set a hard limit: how far a limit may be raised, and that of RLIMIT_DATA binds, too."""
    if resource == CONSTANTS["RLIMIT_DATA"]:
        world.limit(live, rlimit_data_hard=min(hard, 1 << 63))
    hards = {**dict(live.known.hard_limits), resource: hard}
    live.known = replace(live.known, hard_limits=tuple(hards.items()))


def begin_with(world: StraceWorld, live: LiveSpace, resource: int, soft: int) -> None:
    """Set a limit that a process has; that of the stack which was there first has laid it out."""
    set_limit(world, live, resource, soft)
    if resource == _STACK and live.known.first_stack_limit is None:
        live.known = replace(live.known, first_stack_limit=min(soft, 1 << 63))


def forget_limits(world: StraceWorld, live: LiveSpace, call: TracedCall) -> None:
    """Take all limits for what nobody has told, where a call has set one of this process."""
    is_others = call.name == "prlimit64" and not is_own(live, call)
    if is_others or call.pid in live.traced.visitors:
        return
    world.limit(live, **dict.fromkeys(_RLIMITS.values(), 1 << 63))
    given = live.known.given - {*_RLIMITS.values()}
    live.known = replace(live.known, given=given, hard_limits=())


def limit_machine(world: StraceWorld, live: LiveSpace, name: str, value: int) -> None:
    """Set a limit of the machine: mappings, bytes of memory or huge pages, the lowest address."""
    if name == "mappings":
        world.limit(live, max_map_count=value)
    elif name == "lowest":
        world.limit(live, mmap_min_addr=value)
    elif name == "memory":
        world.limit(live, overcommit_pages=value >> f.PAGE_SHIFT)
    else:
        reserved = int(world.machine.globals.get("hugetlb_reserved", 0))
        world.machine.globals.put("hugetlb_free", value // f.PMD_SIZE + reserved)
    live.known = replace(live.known, given=live.known.given | {name})


def asks_only(world: StraceWorld, live: LiveSpace, call: TracedCall) -> bool:
    """Return whether a call sets no limit; what it was told of a limit is known from then on."""
    at = 1 if call.name == "prlimit64" else 0
    if at == 0 or call.arguments[2:3] not in (("NULL",), ("0",), ("0x0",)):
        return False
    told = call.arguments[3] if len(call.arguments) > 3 else ""
    soft, hard = field(told, "rlim_cur"), field(told, "rlim_max")
    if (
        soft
        and hard
        and call.result == 0
        and is_own(live, call)
        and call.pid not in live.traced.visitors
    ):
        resource = number(call.arguments[1])
        begin_with(world, live, resource, number(soft))
        set_hard_limit(world, live, resource, number(hard))
    return True


def setrlimit(world: StraceWorld, live: LiveSpace, call: TracedCall) -> int:
    """Set a limit of the caller's: 0, or a negative errno."""
    at = 0 if call.name == "setrlimit" else 1
    told, resource = call.arguments[at + 1], number(call.arguments[at])
    if at and not is_own(live, call):
        raise NotRecorded("it sets a limit of another process")
    soft, hard = field(told, "rlim_cur"), field(told, "rlim_max")
    if not (soft and hard):
        if world.sees_paths:  # what the recorder could not read the kernel could not either
            return -EFAULT
        raise NotRecorded("which limit was set is not in the recording")
    if number(soft) > number(hard):
        return -EINVAL
    if call.pid in live.traced.visitors:
        raise NotRecorded("which limits a process has that runs in another's memory is not known")
    highest = dict(live.known.hard_limits).get(resource)
    if highest is None and call.result == -EPERM:
        raise NotRecorded("its hard limit and CAP_SYS_RESOURCE are not in the recording")
    if highest is not None and number(hard) > highest and live.known.raises_limits is False:
        return -EPERM
    set_limit(world, live, resource, number(soft))
    set_hard_limit(world, live, resource, number(hard))
    if live.known.first_stack_limit is None and resource == _STACK:
        live.known = replace(live.known, first_stack_limit=-1)
    return 0


def is_own(live: LiveSpace, call: TracedCall) -> bool:
    """Return whether prlimit64 is about the caller's process, whichever of its threads is named."""
    told = re.match(r"-?\d+", call.arguments[0])
    threads = live.traced.pids - live.traced.visitors
    own = {0, call.pid} | (threads if call.pid in threads else set())
    return told is not None and int(told[0]) in own
