"""Each recorded call as what the model does for it.

A `Handler` gets the space and the call, runs the protocol and returns the model's result. It raises
ValueError where an argument can't be read (or IndexError where it isn't there).
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from dataclasses import replace

from zaplock.model import flags as f
from zaplock.programs import keys, limits, monitors, segments
from zaplock.programs.arguments import NotRecorded, numbers
from zaplock.programs.dialects import UNKNOWN_NAME
from zaplock.programs.file_kinds import label
from zaplock.programs.file_tables import Facts
from zaplock.programs.policies import home_node, mbind
from zaplock.programs.recorded_world import LiveSpace, StraceWorld
from zaplock.programs.recording import TracedCall
from zaplock.programs.text import CONSTANTS, descriptor, file_of, number, quoted
from zaplock.protocols import (
    brk,
    ksm,
    madvise,
    mincore,
    mmap,
    mprotect,
    mremap,
    prctl,
    shm,
)
from zaplock.protocols.placement import huge_size_of
from zaplock.protocols.served_calls import SERVED
from zaplock.system_calls import SYSTEM_CALLS

Handler = Callable[[StraceWorld, LiveSpace, TracedCall], int]
_MASK = (1 << 64) - 1


def _by_its_numbers(name: str) -> Handler:
    make, count = SERVED[name], len(SYSTEM_CALLS[name].arguments)
    return lambda world, live, call: world.run(live, make(world.cx(live), *numbers(call, count)))


def mapped_file(world: StraceWorld, live: LiveSpace, call: TracedCall) -> int:
    """Return the file that an mmap maps, 0 where its descriptor stands for none."""
    path, number_ = file_of(call.arguments[4]), descriptor(call.arguments[4])
    if world.is_closed(call.arguments[4]):
        return 0
    facts = live.known.files.facts_for(call.pid, number_)
    if facts is not None:
        return _seen_file(world, live, call, path, facts)
    known = live.known.files.file(call.pid, number_)
    if known is not None and (not path or label(path) == world.machine.files[known].name):
        return known
    if known is not None and path and world.sees_closes:
        world.rename(known, path)
        return known
    if not path and number_ >= 0 and call.result != -errno.EBADF:
        if call.result >= 0:
            raise NotRecorded("which file a descriptor stands for is not in the recording")
        path = UNKNOWN_NAME
    return world.file(path) if path else 0


def _seen_file(
    world: StraceWorld, live: LiveSpace, call: TracedCall, path: str, facts: Facts
) -> int:
    """Return the file that the recorder saw behind a descriptor.

    It is the one that was seen opened unless that has another inode, or another name and was never
    mapped; else somebody has put it there unseen (SCM_RIGHTS, pidfd_getfd, an execve, io_uring).
    """
    if facts.mode > 2:
        return 0
    tables = live.known.files
    file = tables.file(call.pid, facts.descriptor)
    if file is not None:
        inode, name = tables.inodes.get(file), world.machine.files[file].name
        if (inode or facts.inode) != facts.inode or (inode is None and label(path) != name):
            file = None
        elif label(path) != name:
            world.rename(file, path)
    if file is None:
        file = world.new_file(path)
        tables = tables.put(call.pid, facts.descriptor, file)
    world.see(file, facts)
    modes = {**dict(live.known.modes), file: facts.mode}
    tables = tables.of_inode(file, facts.inode)
    live.known = replace(live.known, files=tables, modes=tuple(modes.items()))
    return file


def mmap_call(world: StraceWorld, live: LiveSpace, call: TracedCall, at: int | None = None) -> int:
    """Run an mmap, where `at` is given at that place."""
    address, length, prot, flags = numbers(call, 4)
    if at is not None:
        address, flags = at, (flags | f.MAP_FIXED) & ~f.MAP_FIXED_NOREPLACE
    anonymous = flags & f.MAP_ANONYMOUS and not flags & f.MAP_HUGETLB
    file = 0 if anonymous else mapped_file(world, live, call)
    if file and not flags & f.MAP_HUGETLB and world.machine.files[file].kind == "hugetlb":
        flags |= f.MAP_HUGETLB
    offset = number(call.arguments[5]) & _MASK
    return world.run(live, mmap.mmap(world.cx(live), address, length, prot, flags, file, offset))


def unknown_target(call: TracedCall) -> bool:
    """Return whether a call moves to a place that only its result tells (ltrace)."""
    is_short = call.name == "mremap" and len(call.arguments) == 4
    return is_short and bool(numbers(call, 4)[3] & f.MREMAP_FIXED)


def _mremap(world: StraceWorld, live: LiveSpace, call: TracedCall) -> int:
    """mremap has a fifth argument only where it moves."""
    values = numbers(call, min(5, max(4, len(call.arguments))))
    if unknown_target(call):
        values.append(max(call.result, 0))
    return world.run(live, mremap.mremap(world.cx(live), *values))


def _mprotect(world: StraceWorld, live: LiveSpace, call: TracedCall) -> int:
    start, length, prot = numbers(call, 3)
    return world.run(live, mprotect.mprotect(world.cx(live), start, length, prot))


_REMOTE = (f.MADV_COLD, f.MADV_PAGEOUT, f.MADV_WILLNEED, f.MADV_COLLAPSE)
_SELVES = (-10000, -10001, -10002)
_MOST_RANGES = 1024


def _process_madvise(world: StraceWorld, live: LiveSpace, call: TracedCall) -> int:
    """Advise range by range, and return how many bytes were done."""
    advice, done = number(call.arguments[3]), 0
    ranges = re.findall(r"iov_base=(\w+), iov_len=(\d+)", call.arguments[1])
    count = number(call.arguments[2])
    if number(call.arguments[4]) or count > _MOST_RANGES:
        return -errno.EINVAL
    if len(ranges) != count and world.sees_paths:
        return -errno.EFAULT  # what the recorder could not read the kernel could not either
    if len(ranges) != count:
        raise NotRecorded("not every range of its vector is in the recording")
    spans = [(number(base), int(told)) for base, told in ranges]
    if any(length >> 63 for _, length in spans):
        return -errno.EINVAL
    if any(start + length >= f.TASK_SIZE_4_LEVELS for start, length in spans):
        return -errno.EFAULT
    fd = descriptor(call.arguments[0])
    if (fd < 0 and fd not in _SELVES) or (fd >= 0 and world.is_closed(call.arguments[0])):
        return -errno.EBADF
    owner = pidfd_owner(world, live, call)
    if fd >= 0 and not owner and is_no_process(file_of(call.arguments[0])):
        return -errno.EBADF
    if owner < 0:
        return -errno.ESRCH
    if owner and owner not in live.traced.pids:
        if advice not in _REMOTE and call.result == -errno.EINVAL:
            return -errno.EINVAL
        raise NotRecorded("it advises another process")
    for start, length in spans:
        result = world.run(live, madvise.madvise(world.cx(live), start, length, advice))
        if result:
            return done or result
        done += length
    return done


def is_no_process(path: str) -> bool:
    """Return whether a descriptor's path is told and none of a pidfd's; /proc/PID was one once."""
    return bool(path) and not path.startswith(("pid:", "anon_inode:[pidfd]", "/proc/"))


def pidfd_owner(world: StraceWorld, live: LiveSpace, call: TracedCall) -> int:
    """Return whose process a pidfd stands for: 0 where that is not known, -1 where it is gone."""
    file = live.known.files.file(call.pid, descriptor(call.arguments[0]))
    told = file_of(call.arguments[0]), world.machine.files[file].name if file else ""
    found = (path.removeprefix("pid:") for path in told if path.startswith("pid:"))
    return next((int(pid) for pid in found if pid.isdigit() or pid == "-1"), 0)


def _io_setup(world: StraceWorld, live: LiveSpace, call: TracedCall) -> int:
    """The kernel maps a ring whose size hangs on the CPUs: it fills its hole, as all is placed.

    Source: fs/aio.c aio_setup_ring.
    """
    if not call.arguments[1].startswith(("[", "{")):
        if world.sees_paths or not number(call.arguments[1]):
            return -errno.EFAULT
        raise NotRecorded("where the ring of io_setup lies is not in the recording")
    inside = call.arguments[1].strip("[]{}")
    if call.result:
        events, held = number(call.arguments[0]), number(inside)
        if held or not 0 < events * 2 % (1 << 32) <= _MOST_EVENTS:
            return -errno.EINVAL
        raise NotRecorded("which contexts of io_setup there may be is not in the recording")
    at = number(inside)
    length = hole_above(world, live, at)
    if length <= 0:
        return -errno.ENOMEM
    file = world.new_ring(live)
    flags, prot = f.MAP_SHARED, f.PROT_READ | f.PROT_WRITE
    got = world.run(live, mmap.mmap(world.cx(live), 0, length, prot, flags, file, 0))
    return 0 if got == at else -errno.ENOMEM


_MOST_EVENTS = 0x1000_0000 // 32  # of the size of struct io_event


def _io_destroy(world: StraceWorld, live: LiveSpace, call: TracedCall) -> int:
    (at,) = numbers(call, 1)
    for vma in world.vmas(live):
        if vma.start == at and world.is_ring_of(live, vma.file):
            return world.run(live, SERVED["munmap"](world.cx(live), at, vma.end - at))
    return -errno.EINVAL


def hole_above(world: StraceWorld, live: LiveSpace, at: int) -> int:
    """Return how many bytes there are from an address up to the next mapping."""
    above = [vma.start for vma in world.vmas(live) if vma.end > at]
    return min([*above, live.known.limits.mmap_base]) - at


def page_size(flags: int) -> int:
    """Return how many bytes the pages have that the flags of an mmap ask for."""
    return huge_size_of(flags) if flags & f.MAP_HUGETLB else f.PAGE_SIZE


def _mincore(world: StraceWorld, live: LiveSpace, call: TracedCall) -> int:
    """strace shows what the vector holds instead of where it is, if the call went well."""
    where = call.arguments[2]
    vector = None if where.startswith("[") else number(where)
    start, length = numbers(call, 2)
    return world.run(live, mincore.mincore(world.cx(live), start, length, vector, False))


def _brk(world: StraceWorld, live: LiveSpace, call: TracedCall) -> int:
    """The first brk that is seen tells where the heap ends, if the maps don't."""
    (wanted,) = numbers(call, 1)
    space = world.machine.mm(live.mm)
    if not live.known.heap:
        live.known = replace(live.known, heap=True)
        if not space.count("start_brk"):
            if not may_begin_heap(live, call.result):
                raise NotRecorded("where the heap begins was learnt from this call")
            space.counters.put("start_brk", call.result)
            space.counters.put("brk", call.result)
        elif f.page_align(call.result) == space.count("brk"):
            space.counters.put("brk", call.result)
    return world.run(live, brk.brk(world.cx(live), wanted))


def may_begin_heap(live: LiveSpace, at: int) -> bool:
    """Return whether the kernel may have drawn the place where the heap begins.

    That is up to 1 GiB (32 MiB in 32 bits) behind the program's end, or where programs are loaded
    that an executed linker loads. Source: fs/binfmt_elf.c, arch/x86/kernel/process.c
    arch_randomize_brk.
    """
    is_narrow = live.known.limits.is_narrow
    ends = [area.end for area in live.traced.begin if not area.name.startswith("[")]
    loads = [_LOADS_NARROW] if is_narrow else [_LOADS]
    reach = (32 << 20) + f.PAGE_SIZE if is_narrow else (1 << 30) + f.PAGE_SIZE
    return not ends or any(0 <= at - place <= reach for place in (*ends, *loads))


_LOADS, _LOADS_NARROW = 0x5555_5555_4000, 0x40_0000
"""Where programs are loaded that can be anywhere (ELF_ET_DYN_BASE)."""


_OF_A_PROCESS = {
    CONSTANTS["PR_SET_MDWE"]: prctl.prctl_set_mdwe,
    CONSTANTS["PR_SET_MEMORY_MERGE"]: ksm.prctl_set_memory_merge,
}


def _prctl(world: StraceWorld, live: LiveSpace, call: TracedCall) -> int:
    option = number(call.arguments[0])
    if option in _OF_A_PROCESS:
        if any(map(number, call.arguments[2:5])):
            return -22
        asked = _OF_A_PROCESS[option](world.cx(live), number(call.arguments[1]))
        return world.run(live, asked)
    if "no names" in live.known.given:
        return -22
    start, length = number(call.arguments[2]), number(call.arguments[3])
    told = call.arguments[4]
    name = quoted(told) if told.startswith('"') else ""
    if not told.startswith('"') and number(told):
        raise NotRecorded("the name of the mapping is not in the recording")
    return world.run(live, prctl.set_vma_name(world.cx(live), start, length, name))


def _arch_prctl(world: StraceWorld, live: LiveSpace, call: TracedCall) -> int:
    """Map the vdso, where none of the kernel's own mappings is (ARCH_MAP_VDSO_64).

    Source: arch/x86/entry/vdso/vma.c map_vdso_once.
    """
    if any(vma.ops == "special" for vma in world.vmas(live)) and call.result != -errno.EINVAL:
        return -errno.EEXIST
    raise NotRecorded("the model has no ARCH_MAP_VDSO, or whether the kernel has is not recorded")


CALLS: dict[str, Handler] = {
    **{name: _by_its_numbers(name) for name in SERVED},
    "mmap": mmap_call,
    "mremap": _mremap,
    "mbind": mbind,
    "set_mempolicy_home_node": home_node,
    "mprotect": _mprotect,
    "pkey_mprotect": keys.protect,
    "pkey_alloc": keys.allocate,
    "pkey_free": keys.free,
    "process_madvise": _process_madvise,
    "brk": _brk,
    "io_setup": _io_setup,
    "io_destroy": _io_destroy,
    "mincore": _mincore,
    "ioctl": monitors.ioctl,
    "shmat": segments.shmat_call,
    "shmdt": lambda world, live, call: world.run(
        live, shm.shmdt(world.cx(live), *numbers(call, 1))
    ),
    "setrlimit": limits.setrlimit,
    "prlimit64": limits.setrlimit,
    "arch_prctl": _arch_prctl,
    "prctl": _prctl,
}
