"""What a recording does not tell and a result teaches: where mappings begin, what a call may be.

`otherwise` yields what a call may be besides what is assumed of it; a result that one of these
gives teaches it. What nothing teaches is refused (`unrecorded`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from errno import EINVAL

import msgspec

from zaplock.model import flags as f
from zaplock.programs import monitors
from zaplock.programs.arguments import numbers
from zaplock.programs.calls import CALLS, hole_above, mapped_file, mmap_call
from zaplock.programs.huge_places import PLACED_FOR_HUGE_PAGES, placed_for_huge_pages
from zaplock.programs.recorded_world import (
    LiveSpace,
    StraceWorld,
    linker_of,
    without_linker,
)
from zaplock.programs.recording import TracedCall
from zaplock.programs.segments import segment_of, shmat_call
from zaplock.programs.text import CONSTANTS, number
from zaplock.programs.unrecorded import LOCKING

Attempt = Callable[[], int]
_WORD = 0xFFFF_FFFF


def otherwise(world: StraceWorld, live: LiveSpace, call: TracedCall) -> Iterator[Attempt]:
    """Yield what the call may be beside what was assumed; each is undone by the caller."""
    if call.name == "mmap" and call.result >= 0:
        yield from _other_mmaps(world, live, call)
    if call.name == "brk" and (world.sees_narrow_calls or call.pid in live.known.crossing):
        # strace cuts what 32-bit calls return
        yield lambda: CALLS["brk"](world, live, call) & _WORD
    if call.name in PLACED_FOR_HUGE_PAGES and call.result > 0:
        yield lambda: placed_for_huge_pages(world, live, call)
    if call.name == "prctl" and call.result == -EINVAL and "no names" not in live.known.given:
        yield lambda: _without_names(world, live, call)
    if call.name == "ioctl" and call.result == 0:
        yield lambda: monitors.ioctl(world, live, call, watches_any=True)
    if call.name == "shmat" and call.result >= 0:
        yield lambda: _fills_its_hole(world, live, call)
    if call.name == "shmat" and call.result == -EINVAL:
        yield lambda: _of_a_removed_segment(world, live, call)
    if call.name in LOCKING and "rlimit_memlock" in live.known.given:
        yield lambda: _without_privilege(world, live, call)


def _other_mmaps(world: StraceWorld, live: LiveSpace, call: TracedCall) -> Iterator[Attempt]:
    flags = numbers(call, 4)[3]
    if not flags & f.MAP_ANONYMOUS:
        yield lambda: _of_a_socket(world, live, call)
        yield lambda: _not_for_huge_pages(world, live, call)
    if flags & f.MAP_32BIT and LOW <= call.result < 2 * LOW:
        yield lambda: _anywhere_low(world, live, call)
    if call.result < live.known.limits.mmap_min_addr:
        yield lambda: _as_root(world, live, call)
    if not live.known.limits.bottom_up and linker_of(live.traced.begin):
        yield lambda: _bottom_up(world, live, call)


def _not_for_huge_pages(world: StraceWorld, live: LiveSpace, call: TracedCall) -> int:
    """The file system of a file does not place mappings for huge pages."""
    file = mapped_file(world, live, call)
    backing = world.machine.files.get(file)
    if backing is not None and backing.kind == "disk":
        world.machine.files.put(file, msgspec.structs.replace(backing, kind="shmem"))
    return mmap_call(world, live, call)


def _of_a_socket(world: StraceWorld, live: LiveSpace, call: TracedCall) -> int:
    """A socket maps its ring, if it has one."""
    file = mapped_file(world, live, call)
    backing = world.machine.files.get(file)
    if backing is not None and backing.kind == "none" and file in world.drivers:
        world.machine.files.put(file, msgspec.structs.replace(backing, kind="shmem"))
    return mmap_call(world, live, call)


LOW, RANDOM = 1 << 30, 1 << 25


def _anywhere_low(world: StraceWorld, live: LiveSpace, call: TracedCall) -> int:
    """The search for a place below 2 GiB goes up from a random page, another one each time.

    What is laid for huge pages lies in a hole that is 2 MiB longer.
    Source: arch/x86/kernel/sys_x86_64.c find_start_end; mm/huge_memory.c __thp_get_unmapped_area.
    """
    length, last = f.page_align(numbers(call, 2)[1]), LOW + RANDOM - f.PAGE_SIZE
    if _low_hole(world, live, min(call.result, last), length) == call.result:
        return mmap_call(world, live, call, call.result)
    offset, lowest = number(call.arguments[5]), max(LOW, call.result - f.PMD_SIZE + f.PAGE_SIZE)
    for start in range(min(lowest, last), min(call.result, last) + 1, f.PAGE_SIZE):
        hole = _low_hole(world, live, start, length + f.PMD_SIZE)
        if length >= f.PMD_SIZE and hole + (offset - hole) % f.PMD_SIZE == call.result:
            return mmap_call(world, live, call, call.result)
    return -EINVAL


def _low_hole(world: StraceWorld, live: LiveSpace, first: int, length: int) -> int:
    """Return where the first hole of a length begins, from an address on."""
    for vma in world.vmas(live):
        if first + length <= vma.start:
            break
        first = max(first, vma.end)
    return first


def _as_root(world: StraceWorld, live: LiveSpace, call: TracedCall) -> int:
    """With CAP_SYS_RAWIO the lowest pages can be mapped."""
    world.limit(live, mmap_min_addr=0)
    return mmap_call(world, live, call)


def _bottom_up(world: StraceWorld, live: LiveSpace, call: TracedCall) -> int:
    go_up(world, live)
    return mmap_call(world, live, call)


def go_up(world: StraceWorld, live: LiveSpace) -> None:
    """The legacy layout: mappings go up from where the kernel has begun, if that is known."""
    first = linker_of(live.traced.begin) or without_linker(live.traced.begin)
    base = first[0] if first else live.known.limits.mmap_base
    world.limit(live, bottom_up=True, mmap_base=base)


def _without_names(world: StraceWorld, live: LiveSpace, call: TracedCall) -> int:
    """The kernel was built without names for mappings (CONFIG_ANON_VMA_NAME)."""
    if number(call.arguments[0]) != CONSTANTS["PR_SET_VMA"]:
        return 0
    live.known = replace(live.known, given=live.known.given | {"no names"})
    return -EINVAL


def _without_privilege(world: StraceWorld, live: LiveSpace, call: TracedCall) -> int:
    """RLIMIT_MEMLOCK binds whoever has not CAP_IPC_LOCK."""
    world.limit(live, can_ipc_lock=False)
    return CALLS[call.name](world, live, call)


def _fills_its_hole(world: StraceWorld, live: LiveSpace, call: TracedCall) -> int:
    """A segment of unknown size that the kernel placed fills the hole up to the next mapping."""
    length = hole_above(world, live, call.result)
    if length <= 0:
        return -EINVAL
    at = shmat_call(world, live, call, length)
    live.known = replace(live.known, doubt=live.known.doubt or _NO_SIZE)
    return at


_NO_SIZE = "the size of the segment is not in the recording"


def _of_a_removed_segment(world: StraceWorld, live: LiveSpace, call: TracedCall) -> int:
    """A segment that was removed (IPC_RMID) goes with the last mapping of it.

    Source: ipc/shm.c do_shm_rmid, shm_may_destroy.
    """
    named, file = segment_of(world, live, call)
    is_removed = world.removed.get(named, call.line) < call.line
    mapped = {vma.file for vma in world.vmas(live)}
    return -EINVAL if is_removed and file not in mapped else 0


def take_base(live: LiveSpace, call: TracedCall) -> bool:
    """Learn from the first mapping that the kernel places where mappings begin."""
    if call.name != "mmap" or call.result < 0 or live.known.base:
        return False
    if call.pid in live.known.crossing:
        return False
    address, length, _, flags = numbers(call, 4)
    if address or flags & (f.MAP_FIXED | f.MAP_FIXED_NOREPLACE | f.MAP_32BIT):
        return False
    goes_up = live.known.limits.bottom_up
    base = call.result if goes_up else call.result + f.page_align(length)
    limits = msgspec.structs.replace(live.known.limits, mmap_base=base)
    live.known = replace(live.known, base=True, limits=limits)
    return True


def may_begin_there(live: LiveSpace) -> bool:
    """Return whether the kernel may have drawn the place where mappings begin.

    Of a static program nothing else tells it: below the stack's gap lies a random number of pages.
    In the legacy layout it lies that far above a third of all. Source: arch/x86/mm/mmap.c
    mmap_base, mmap_legacy_base, with CONFIG_ARCH_MMAP_RND_BITS' default of 28.
    """
    limits = live.known.limits
    if limits.bottom_up:
        above = limits.mmap_base - limits.legacy_base
        return 0 <= above < _MMAP_RANDOM << f.PAGE_SHIFT
    stack = live.known.first_stack_limit
    if stack is None or stack < 0:
        return False
    gaps = (stack + _STACK_GUARD, stack + _STACK_GUARD + _STACK_RANDOM)
    least, most = (max(128 << 20, min(gap, f.TASK_SIZE_4_LEVELS // 6 * 5)) for gap in gaps)
    lowest = f.TASK_SIZE_4_LEVELS - most - ((_MMAP_RANDOM - 1) << f.PAGE_SHIFT)
    return lowest - f.PAGE_SIZE < limits.mmap_base <= f.TASK_SIZE_4_LEVELS - least


_STACK_GUARD, _STACK_RANDOM, _MMAP_RANDOM = 256 << 12, 0x3F_FFFF << 12, 1 << 28
