"""Bringing the model to where the kernel is, where a call went another way than the model's.

Where that can't be done, what the call has touched is hidden by a cloud: nothing is said of it.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from errno import EIO

from zaplock.model import flags as f
from zaplock.programs import inferred, keys, policies, unrecorded
from zaplock.programs.arguments import numbers
from zaplock.programs.calls import CALLS, mmap_call
from zaplock.programs.ranges import ranges_of
from zaplock.programs.recorded_world import Cloud, LiveSpace, StraceWorld
from zaplock.programs.recording import TracedCall
from zaplock.programs.text import number


def cloud_over(live: LiveSpace, call: TracedCall) -> Cloud | None:
    """Return what hides a part of what a call is about, if anything does."""
    if not live.known.clouds:
        return None
    found = (live.known.cloud_over(low, high) for low, high in ranges_of(call))
    return next((cloud for cloud in found if cloud is not None), None)


def follow_in_cloud(world: StraceWorld, live: LiveSpace, call: TracedCall) -> None:
    """Hide what a call in a cloud has touched; of what it has replaced all is known again."""
    mark = world.mark(live)
    with suppress(ValueError, IndexError):
        if _replaces(call) and CALLS[call.name](world, live, call) == call.result:
            for low, high in ranges_of(call):
                live.known = live.known.without_clouds(low, high)
            return
    world.undo(live, mark)
    for low, high in ranges_of(call):
        hide(live, low, high, f"a cloud since line {call.line}")


def follow(world: StraceWorld, live: LiveSpace, call: TracedCall) -> None:
    """Bring the model to where the kernel is after a call whose result it did not give."""
    if call.name == "brk":
        _follow_brk(world, live, call)
    elif call.name == "mbind" and call.result in (0, -EIO):
        policies.follow_mbind(world, live, call)
    elif call.name == "pkey_alloc" and call.result >= 0:
        keys.take(live, call.result)
    elif (
        call.result >= 0
        and not unrecorded.depends_on_pages(call)
        and not _placed(world, live, call)
    ):
        why = f"what line {call.line} did is not known"
        for low, high in ranges_of(call):
            hide(live, low, high, why)


def _placed(world: StraceWorld, live: LiveSpace, call: TracedCall) -> bool:
    """Map at the place that the kernel chose."""
    if call.name == "shmat":
        told = (call.arguments[0], hex(call.result), *call.arguments[2:])
        with suppress(ValueError):  # a segment of which nothing is known
            return CALLS["shmat"](world, live, call._replace(arguments=told)) >= 0
    if call.name == "mremap" and len(call.arguments) == 4:
        hinted = call._replace(arguments=(*call.arguments, hex(call.result)))
        is_hinted = numbers(call, 4)[3] & f.MREMAP_DONTUNMAP
        return bool(is_hinted) and CALLS["mremap"](world, live, hinted) == call.result
    if call.name != "mmap":
        return False
    return mmap_call(world, live, call, call.result) == call.result


def _follow_brk(world: StraceWorld, live: LiveSpace, call: TracedCall) -> None:
    space = world.machine.mm(live.mm)
    moved = call._replace(arguments=(hex(call.result),))
    if CALLS["brk"](world, live, moved) != call.result:
        low, high = sorted((space.count("brk"), call.result))
        space.counters.put("brk", call.result)
        hide(live, low & -4096, f.page_align(high), f"the heap since line {call.line}")


def attached(world: StraceWorld, live: LiveSpace, call: TracedCall) -> bool:
    """Follow an shmat whose size is told by where it lies alone."""
    if call.name != "shmat":
        return False
    mark = world.mark(live)
    with suppress(ValueError):
        for attempt in inferred.otherwise(world, live, call):
            if attempt() == call.result:
                return True
            world.undo(live, mark)
    return False


def stand_in(world: StraceWorld, live: LiveSpace, call: TracedCall) -> list[tuple[int, int]]:
    """Map memory where the kernel has mapped a file of which nothing is known."""
    ranges = ranges_of(call)
    with suppress(ValueError, IndexError):
        flags = numbers(call, 4)[3] & f.MAP_POPULATE | f.MAP_PRIVATE | f.MAP_ANONYMOUS
        told = (*call.arguments[:3], str(flags), "-1", "0")
        if mmap_call(world, live, call._replace(arguments=told), call.result) >= 0:
            return ranges
    return []


def hide(live: LiveSpace, low: int, high: int, why: str) -> None:
    """Say of a range that nothing is known of it."""
    live.known = replace(live.known, clouds=(*live.known.clouds, Cloud(low, high, why)))


def _replaces(call: TracedCall) -> bool:
    """Return whether nothing is left of what was at the addresses of a call that went well."""
    return call.name == "munmap" or (
        call.name == "mmap" and bool(numbers(call, 4)[3] & f.MAP_FIXED)
    )


def why_hidden(live: LiveSpace, call: TracedCall, got: int) -> str:
    """Return why nothing is known of the place that the model has chosen, "" where it is known."""
    if call.name not in ("mmap", "mremap", "shmat") or got <= 0:
        return ""
    at = {"mmap": 1, "mremap": 2}.get(call.name)
    length = f.page_align(number(call.arguments[at])) if at else f.PAGE_SIZE
    cloud = live.known.cloud_over(got, got + length)
    return cloud.why if cloud else ""
