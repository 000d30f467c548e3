"""Every operation as the protocol that the design names for it, run to its end by one task.

What a system call does before it takes a lock and the protocols leave to their callers (copying a
vector of ranges, looking at a protection key) is here too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from errno import EBADF, EFAULT, EINVAL, EPERM
from signal import SIGSEGV
from typing import Any

from zaplock.advice import MADV_HWPOISON, MADV_SOFT_OFFLINE
from zaplock.engines.sequential import LockCall, call, run
from zaplock.model import flags as f
from zaplock.model.step import Task
from zaplock.model.vma import Vma, insert
from zaplock.oracle import ops, ring
from zaplock.oracle.composed_calls import MOST_COPIED
from zaplock.oracle.modelview import ModelView
from zaplock.oracle.ops import CallOutcome, returned
from zaplock.oracle.world import (
    HUGE_SEGMENT_FILE,
    MM,
    RLIMITS,
    SEGMENT_FILE,
    UFFD,
    World,
    environment_ring,
    populate_ring,
)
from zaplock.protocols import (
    clear_refs,
    exit,
    fallocate,
    fork,
    huge_files,
    kernel_access,
    ksm,
    madvise,
    memory_group,
    mempolicy,
    mincore,
    mmap,
    mprotect,
    pinned_access,
    prctl,
    rmap,
    shm,
    uffd_range,
    user_access,
)
from zaplock.protocols.design import Cx
from zaplock.protocols.locking import (
    mmap_read_lock,
    mmap_read_unlock,
    mmap_write_lock_killable,
    mmap_write_unlock,
)
from zaplock.protocols.seals import add_seals
from zaplock.protocols.served_calls import SERVED
from zaplock.protocols.uffd_fill import (
    uffdio_continue,
    uffdio_copy_page,
    uffdio_poison,
    uffdio_zeropage,
)
from zaplock.protocols.uffd_move import uffdio_move
from zaplock.protocols.userfaultfd import uffdio_writeprotect
from zaplock.system_calls import as_int

_MASK = (1 << 64) - 1

Operation = Callable[..., CallOutcome]


def _load(w: World, calls: Any, address: int) -> CallOutcome:
    address &= f.PAGE_MASK
    if address >= f.TASK_SIZE_4_LEVELS:
        return returned(w.signal_code(address, SIGSEGV, False))
    result = w.run(calls, user_access.read_memory, address)
    return returned(w.signal_code(address, -result, False) if result < 0 else result)


def _store(w: World, calls: Any, address: int, tag: int) -> CallOutcome:
    address &= f.PAGE_MASK
    if address >= f.TASK_SIZE_4_LEVELS:
        return returned(w.signal_code(address, SIGSEGV, True))
    result = w.run(calls, user_access.write_memory, address, tag)
    return returned(w.signal_code(address, -result, True) if result < 0 else 0)


def _setrlimit(w: World, calls: Any, resource: int, soft: int) -> CallOutcome:
    if soft > w.environment.limits[resource][1]:
        return returned(-EINVAL)
    w.limit(**{RLIMITS[resource]: soft})
    return returned(0)


def _mincore(w: World, calls: Any, address: int, length: int) -> CallOutcome:
    vector = ring.RING + ring.SCRATCH
    program = mincore.mincore(w.cx, address, length, vector)
    result, seen = run(w.machine, w.task, program, calls)
    return CallOutcome(result, seen if result == 0 else b"")


_PAGES_OF_RING = 2
"""Of an io_uring of one entry: its rings, and its entries."""
_INJECTED = (MADV_HWPOISON, MADV_SOFT_OFFLINE)
"""Advice that takes pages away for good: it is known, but never given a range here."""


def _refused_process_madvise(cx: Cx, advice: int) -> int:
    """Return what a kernel says to a process without CAP_SYS_NICE that advises itself, or 0."""
    if cx.design.advises_itself == "all":
        return 0
    if advice not in madvise.FOR_OTHERS:
        return -EINVAL
    return 0 if cx.design.advises_itself == "some" or cx.limits.can_ipc_lock else -EPERM


async def take_and_release_for(cx: Cx, advice: int) -> int:
    """Hold what an advice needs and do nothing: ranges are checked under the lock here."""
    if advice in (*madvise.POPULATES, *madvise.LOOKS, *madvise.GUARDS):
        await mmap_read_lock(cx)
        await mmap_read_unlock(cx)
    elif advice not in madvise.ZAPS:
        await take_and_release(cx)
    return 0


_MAX_RW_COUNT = 0x7FFF_F000


def _pkey_mprotect(
    w: World, calls: Any, addr: int, length: int, prot: int, key: int
) -> CallOutcome:
    """Key 0 is everybody's where the CPU has keys; others were never allocated, nor -1 ever is."""
    key = as_int(key)
    program = mprotect.mprotect(w.cx, addr, length, prot, key)
    if key == -1 or (key == 0 and w.environment.has_keys):
        return w.syscall(program, calls)
    program.close()
    refused = mprotect_refuses(addr, length, prot)
    if refused is None:
        run(w.machine, w.task, take_and_release(w.cx), calls)
    return returned(-22 if refused is None else refused)


async def take_and_release(cx: Cx) -> int:
    """Hold the lock for write and do nothing: so far a call with a key that is none gets."""
    await mmap_write_lock_killable(cx)
    await mmap_write_unlock(cx)
    return 0


def mprotect_refuses(addr: int, length: int, prot: int) -> int | None:
    """Return what mprotect says before it takes the lock, None if it would go on."""
    grows = prot & (f.PROT_GROWSDOWN | f.PROT_GROWSUP)
    if grows == f.PROT_GROWSDOWN | f.PROT_GROWSUP or addr & ~f.PAGE_MASK:
        return -22
    if not length:
        return 0
    end = (addr + f.page_align(length)) & _MASK
    if end <= addr:
        return -12
    return -22 if prot & ~mprotect.KNOWN_PROT else None


def _uring_register(w: World, calls: Any, address: int, length: int) -> CallOutcome:
    locked = _PAGES_OF_RING if w.cx.design.rings_are_locked else 0
    return w.syscall(pinned_access.register_buffer(w.cx, address, length, locked), calls)


def _mbind(
    w: World, calls: Any, start: int, length: int, mode: int, nodes: int, flags: int
) -> CallOutcome:
    told = w.cx, w.policies, start, length, as_int(mode), nodes, as_int(flags)
    program = mempolicy.mbind(*told)
    return w.syscall(program, calls)


def _set_home_node(
    w: World, calls: Any, start: int, length: int, node: int, flags: int
) -> CallOutcome:
    program = mempolicy.set_mempolicy_home_node(w.cx, w.policies, start, length, node, flags)
    return w.syscall(program, calls)


def _shmat(w: World, calls: Any, address: int, flags: int) -> CallOutcome:
    return w.syscall(shm.shmat(w.cx, SEGMENT_FILE, address, as_int(flags)), calls)


def _huge_shmat(w: World, calls: Any, address: int, flags: int) -> CallOutcome:
    if HUGE_SEGMENT_FILE not in w.machine.files:
        return returned(-EINVAL)  # it could not be made, so its id is an errno
    return w.syscall(shm.shmat(w.cx, HUGE_SEGMENT_FILE, address, as_int(flags)), calls)


def _shmdt(w: World, calls: Any, address: int) -> CallOutcome:
    return w.syscall(shm.shmdt(w.cx, address), calls)


def _clear_refs(w: World, calls: Any, kind: int) -> CallOutcome:
    """Write a number, and a 4 behind one that clears accessed bits, as the bare process does."""
    outcome = w.syscall(clear_refs.clear_refs(w.cx, kind), calls)
    if kind in clear_refs.REFERENCED_BITS:
        w.syscall(clear_refs.clear_refs(w.cx, clear_refs.SOFT_DIRTY), calls)
    return outcome


def _fill_memory(w: World, calls: Any, size: int, how: int) -> CallOutcome:
    limit = w.environment.group_pages
    return _in_child(w, calls, lambda cx: memory_group.fill_memory(cx, size, how, limit))


def _fill_group(w: World, calls: Any, size: int) -> CallOutcome:
    """The member beside the child has nothing that anybody else sees, and is not made here."""
    limit, kills_all = w.environment.filled_pages, w.environment.kills_all
    return _in_child(w, calls, lambda cx: memory_group.fill_group(cx, size, limit, kills_all))


def _in_child(w: World, calls: Any, program: Callable[[Cx], Any]) -> CallOutcome:
    """Fork, let the child run a program to its end, and return what that returned."""
    child = w.next_child()
    if result := run(w.machine, w.task, fork.fork(w.cx, child), calls):
        return returned(result)
    task = Task(2, child, "child")
    cx = Cx(w.cx.design, task, limits=w.cx.limits)
    signal = run(w.machine, task, program(cx))
    run(w.machine, task, exit.exit_process(cx))
    return returned(signal)


def _crowd(w: World, calls: Any, room: int) -> CallOutcome:
    """Fill the address space with mappings, as the bare process does."""
    count = w.environment.max_map_count - 1 - room
    flags = f.VM_MAYREAD | f.VM_MAYWRITE | f.VM_MAYEXEC | f.VM_NORESERVE
    for page in range(count):
        start = ops.CROWD + page * f.PAGE_SIZE
        prot = f.VM_READ if page % 2 else 0
        area = Vma(MM, start, start + f.PAGE_SIZE, flags | prot, start >> f.PAGE_SHIFT)
        insert(w.machine, w.task, area)
    w.space.add("total_vm", count)
    return returned(0)


def _fork(w: World, calls: Any) -> CallOutcome:
    """Fork, let the child look at itself, and let it exit."""
    child = w.next_child()
    result = run(w.machine, w.task, fork.fork(w.cx, child), calls)
    if result:
        return returned(result)
    if environment_ring(w, child):
        populate_ring(w.machine, w.task, child, w.environment)
    seen = ModelView(w.machine, child, w.environment.ring, w.view).snapshot()
    task = Task(2, child, "child")
    run(w.machine, task, exit.exit_process(Cx(w.cx.design, task, limits=w.cx.limits)))
    return CallOutcome(0, b"", seen)


def _into_child(w: World, calls: Any) -> CallOutcome:
    """Fork, and go on as the child; the parent keeps what it has."""
    child = w.next_child()
    result = run(w.machine, w.task, fork.fork(w.cx, child), calls)
    if not result:
        if environment_ring(w, child):
            populate_ring(w.machine, w.task, child, w.environment)
        w.become(child)
    return returned(result)


def apply(
    w: World, index: int, name: str, arguments: Sequence[int], calls: list[LockCall] | None = None
) -> CallOutcome:
    """Run one operation; lock operations are appended to `calls` where that is given."""
    if name in ops.WRITERS:
        arguments = [*arguments, ops.store_tag(index)]
    return OPERATIONS[name](w, calls, *arguments)


def _simple(make: Callable[..., Any]) -> Operation:
    def operation(w: World, calls: Any, *arguments: Any) -> CallOutcome:
        if calls is None:
            return returned(call(w.machine, w.task, make, w.cx, *arguments))
        return returned(w.run(calls, make, *arguments))

    return operation


async def _start_mmap(
    cx: Cx, addr: int, length: int, prot: int, flags: int, file: int, offset: int
) -> int:
    slot = file + 1 if ops.is_slot(file) else 0
    if file in ops.HUGE_FILES and not flags & f.MAP_ANONYMOUS:
        flags |= f.MAP_HUGETLB  # what it maps are huge pages, said or not
    return await mmap.mmap(cx, addr, length, prot, flags, slot, offset)


async def _start_munmap(cx: Cx, start: int, length: int) -> int:
    return await cx.design.munmap(cx, start, length)


async def _huge_room(cx: Cx, file: int) -> int:
    return await huge_files.room_left(file + 1)


async def _start_fallocate(cx: Cx, file: int, mode: int, offset: int, length: int) -> int:
    if file == ops.DISK_SLOT:
        raise ValueError(f"file {file} is on a disk, which may refuse (`lacks`)")
    if not ops.is_slot(file):
        return -EBADF
    return await fallocate.fallocate(cx, file + 1, mode, offset, length)


async def _start_truncate(cx: Cx, file: int, length: int) -> int:
    if not ops.is_slot(file):
        return -EBADF
    if file in (ops.ZERO_SLOT, ops.READ_ONLY_SLOT):
        return -EINVAL
    if file in ops.HUGE_FILES and length % ops.HUGE_FILES[file][1]:
        return -EINVAL
    return await rmap.truncate(cx, file + 1, length)


async def _start_pread(cx: Cx, file: int, address: int, length: int, offset: int) -> int:
    if not ops.is_slot(file):
        return -EINVAL if offset >> 63 else -EBADF
    return await kernel_access.pread(cx, file + 1, address, length, offset)


async def _start_pwrite(cx: Cx, file: int, address: int, length: int, offset: int) -> int:
    if not ops.is_slot(file) or file == ops.READ_ONLY_SLOT:
        return -EINVAL if offset >> 63 else -EBADF
    return await kernel_access.pwrite(cx, file + 1, address, length, offset)


async def _start_add_seals(cx: Cx, file: int, seals: int) -> int:
    return await add_seals(cx, file + 1 if ops.is_slot(file) else 0, seals)


async def _start_readv(cx: Cx, address: int, length: int) -> int:
    return await pinned_access.process_vm(cx, address, length, None, MOST_COPIED)


async def _start_writev(cx: Cx, address: int, length: int, tag: int) -> int:
    return await pinned_access.process_vm(cx, address, length, tag, MOST_COPIED)


async def _start_process_madvise(cx: Cx, address: int, length: int, advice: int) -> int:
    advice = as_int(advice)
    if length >= 1 << 63:
        return -EINVAL
    if length > f.TASK_SIZE_4_LEVELS or address > f.TASK_SIZE_4_LEVELS - length:
        return -EFAULT
    refused = _refused_process_madvise(cx, advice)
    if length == 0:
        if not refused and cx.design.process_advice_first:
            is_there = advice in _INJECTED or madvise.is_known(cx.design, advice)
            refused = 0 if is_there else -EINVAL
        return refused or await take_and_release_for(cx, advice)
    if refused:
        return refused
    length = min(length, _MAX_RW_COUNT)
    if address & ~f.PAGE_MASK or not madvise.is_known(cx.design, advice):
        await take_and_release_for(cx, advice)
        return -EINVAL
    return await madvise.madvise(cx, address, length, advice) or length


async def _start_uffd_register(cx: Cx, start: int, length: int, mode: int) -> int:
    return await uffd_range.register(cx, UFFD, start, length, mode)


async def _start_uffd_copy(cx: Cx, start: int, mode: int, tag: int) -> int:
    return await uffdio_copy_page(cx, start, tag, mode)


async def _start_uffd_move(cx: Cx, start: int, length: int, source: int, mode: int) -> int:
    return await uffdio_move(cx, UFFD, start, length, source, mode)


PROTOCOLS: dict[str, Callable[..., Any]] = {
    **SERVED,
    "mmap": _start_mmap,
    "munmap": _start_munmap,
    "ftruncate": _start_truncate,
    "fallocate": _start_fallocate,
    "huge_room": _huge_room,
    "set_mdwe": prctl.prctl_set_mdwe,
    "set_thp_disable": prctl.prctl_set_thp_disable,
    "set_memory_merge": ksm.prctl_set_memory_merge,
    "ksm_scan": ksm.ksm_scan,
    "ksm_unmerge": ksm.ksm_unmerge,
    "ksm_zero_pages": ksm.set_ksm_zero_pages,
    "ksm_most": ksm.set_ksm_most,
    "pread": _start_pread,
    "pwrite": _start_pwrite,
    "add_seals": _start_add_seals,
    "process_vm_readv": _start_readv,
    "process_vm_writev": _start_writev,
    "process_madvise": _start_process_madvise,
    "uffd_register": _start_uffd_register,
    "uffd_unregister": uffd_range.unregister,
    "uffd_copy": _start_uffd_copy,
    "uffd_zeropage": uffdio_zeropage,
    "uffd_continue": uffdio_continue,
    "uffd_poison": uffdio_poison,
    "uffd_writeprotect": uffdio_writeprotect,
    "uffd_move": _start_uffd_move,
}
"""Operations that are one protocol and nothing else."""

OPERATIONS: dict[str, Operation] = {
    **{name: _simple(make) for name, make in PROTOCOLS.items()},
    "mincore": _mincore,
    "pkey_mprotect": _pkey_mprotect,
    "fork": _fork,
    "into_child": _into_child,
    "crowd": _crowd,
    "fill_memory": _fill_memory,
    "fill_group": _fill_group,
    "clear_refs": _clear_refs,
    "uring_register": _uring_register,
    "shmat": _shmat,
    "huge_shmat": _huge_shmat,
    "shmdt": _shmdt,
    "mbind": _mbind,
    "set_mempolicy_home_node": _set_home_node,
    "load": _load,
    "store": _store,
    "store_value": _store,
    "setrlimit": _setrlimit,
}


def lacks(sequence: Sequence[ops.Op]) -> list[str]:
    """Name what of a sequence the model does not have."""
    found = {op.name for op in sequence if op.name not in OPERATIONS}
    if any(op.name == "fallocate" and op.args[0] == ops.DISK_SLOT for op in sequence):
        found.add(f"fallocate of file {ops.DISK_SLOT}, which is on a disk")
    return sorted(found)
