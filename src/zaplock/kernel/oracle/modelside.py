"""The model as a side of the comparison: design linux-6.18 under the sequential engine.

Every operation is the protocol that the design names, run to its end by one task. A snapshot is
read straight from the state; nothing of the real side flows in but its environment (where mappings
go, what the limits are, and the ring, which the model maps too).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from signal import SIGBUS, SIGSEGV
from typing import Any

import msgspec

from zaplock.designs.linux import LINUX_6_18
from zaplock.engines.sequential import LockCall, run
from zaplock.kernel.oracle import ops, ring
from zaplock.kernel.oracle.generate import THEMES, Scope
from zaplock.kernel.oracle.modelview import View
from zaplock.kernel.oracle.ops import Environment, Op, Outcome, Ref, Snapshot, Step
from zaplock.kernel.oracle.program import arguments_of, uses_file
from zaplock.kernel.oracle.real import RealSide
from zaplock.model import flags as f
from zaplock.model.files import cached_frame, disk_tag, fill_cache, new_file
from zaplock.model.frames import change_frames
from zaplock.model.machine import Machine
from zaplock.model.mm import Limits, Pte
from zaplock.model.pagetable import alloc_tables, install
from zaplock.model.step import Task
from zaplock.model.vma import Vma, insert, lookup
from zaplock.protocols import (
    access,
    brk,
    exit,
    fork,
    madvise,
    mincore,
    mlock,
    mmap,
    mprotect,
    mremap,
    mseal,
    msync,
    remap_pages,
    rmap,
    uffd_range,
)
from zaplock.protocols.design import Cx, Design
from zaplock.protocols.fault import access_error
from zaplock.protocols.locking import (
    mmap_read_lock,
    mmap_read_unlock,
    mmap_write_lock_killable,
    mmap_write_unlock,
)

WRITES = frozenset({"store", "pread", "pwrite", "ftruncate", "madvise", "process_madvise"})
"""Operations that can change what a page holds without changing what is mapped where."""

MM = 1
NOTHING = Snapshot((), b"", b"", (0,) * len(ops.COUNTERS))
RING_FILE = 99
UFFD = 1
_MASK = (1 << 64) - 1
_CANONICAL = 1 << 47

COVERED = Scope(
    without=frozenset({"pread", "pwrite"}),
    themes=tuple(theme for theme in THEMES if theme != "crowd"),  # slow: asked for by name
)


def model_side(real: RealSide) -> ModelSide:
    """Make the model side for what the real side found out about its process."""
    return ModelSide(real.environment)


def limits_of(environment: Environment) -> Limits:
    """Return the model's limits for a real process without capabilities."""
    return Limits(
        task_size=environment.task_size,
        mmap_base=environment.mmap_base,
        mmap_min_addr=environment.mmap_min_addr,
        mmap_min_hint=environment.mmap_min_hint,
        max_map_count=environment.max_map_count,
        rlimit_memlock=environment.memlock_limit,
        rlimit_stack=environment.stack_limit,
        can_ipc_lock=False,
        overcommit_pages=environment.overcommit_pages,
    )


class ModelSide:
    """Run sequences on the model, each in a fresh machine."""

    def __init__(self, environment: Environment, design: Design = LINUX_6_18) -> None:
        self.environment = environment
        self.design = design
        self.lock_calls: list[list[LockCall]] | None = None

    def close(self) -> None:
        """Nothing to give back."""

    def run(self, sequence: Sequence[Op]) -> list[Step]:
        """Run a sequence in a fresh address space; return every operation's step."""
        world = World(self.environment, self.design, any(map(needs_files, sequence)))
        results: list[int] = []
        steps = []
        world.view.end = ops.CROWD if ops.is_crowded(sequence) else 1 << 63
        for index, op in enumerate(sequence):
            arguments = [
                (results[a.op] + a.delta) & _MASK if isinstance(a, Ref) else a for a in op.args
            ]
            calls: list[LockCall] | None = None if self.lock_calls is None else []
            try:
                outcome = world.apply(index, op.name, arguments, calls)
            except Exception as error:
                told = f"{type(error).__name__}: {error}"
                steps.append(Step(Outcome(ops.BROKEN, told.encode()), NOTHING))
                return steps
            if self.lock_calls is not None and calls is not None:
                self.lock_calls.append(calls)
            results.append(outcome.result)
            steps.append(Step(outcome, world.snapshot(op.name in WRITES)))
        return steps


def needs_files(op: Op) -> bool:
    """Return whether an operation names one of the files."""
    return "file" in arguments_of(op.name) and uses_file(op)


class World:
    """One machine with one process like the bare one: the ring, the files, nothing else."""

    def __init__(self, environment: Environment, design: Design, uses_files: bool) -> None:
        self.environment = environment
        self.machine = Machine(limits=limits_of(environment))
        self.task = Task(1, MM, "oracle")
        self.cx = Cx(design, self.task, limits=self.machine.limits)
        self.space = self.machine.mm(MM)
        self.space.counters.put("brk", environment.start_brk)
        self.space.counters.put("start_brk", environment.start_brk)
        self.space.counters.put("data_length", environment.data_length)
        self.machine.events.put(("uffd_features", UFFD), "sigbus")
        if uses_files:
            self._files()
        self._ring(environment)
        self.view = View(self.machine, MM, environment.ring)
        self.view.set_baseline()

    def _files(self) -> None:
        for slot, name in enumerate(ops.FILES):
            pages = ops.FILE_PAGES[slot]
            kind = {"disk": "disk", "zero": "zero"}.get(name, "shmem")
            new_file(self.machine, slot + 1, kind, pages * f.PAGE_SIZE, name)
            written = [page for page in range(pages) if page not in ops.HOLES[slot]]
            if not written:
                continue
            first = fill_cache(self.machine, self.task, slot + 1, written[0], written[-1] + 1)
            for page in written:
                frame = first + page
                self.machine.content.set(frame, frame + 1, disk_tag(slot + 1, page))
                self.machine.dirty.set(frame, frame + 1, True)

    def _ring(self, environment: Environment) -> None:
        """Map and populate the ring as the bare process has it."""
        length = environment.ring_length
        new_file(self.machine, RING_FILE, "shmem", length, "ring")
        flags = f.VM_ACCESS_FLAGS | f.VM_SHARED | f.VM_MAYSHARE | f.VM_SEALED
        flags |= f.VM_MAYREAD | f.VM_MAYWRITE | f.VM_MAYEXEC
        vma = Vma(MM, environment.ring, environment.ring + length, flags, 0, RING_FILE)
        insert(self.machine, self.task, vma)
        fill_cache(self.machine, self.task, RING_FILE, 0, vma.nr_pages)
        self.space.add("total_vm", vma.nr_pages)
        populate_ring(self.machine, self.task, MM, environment)

    def apply(
        self, index: int, name: str, arguments: list[int], calls: list[LockCall] | None = None
    ) -> Outcome:
        """Run one operation to its end."""
        if name == "store":
            arguments = [*arguments, ops.store_tag(index)]
        return _OPERATIONS[name](self, calls, *arguments)

    def syscall(self, program: Any, calls: list[LockCall] | None) -> Outcome:
        """Run a protocol."""
        return Outcome(run(self.machine, self.task, program, calls))

    def snapshot(self, written: bool = True) -> Snapshot:
        """Read what the real side observes; `written`: some page's content may have changed."""
        return self.view.snapshot(written)

    def limit(self, **changed: int) -> None:
        """Change limits, as setrlimit does."""
        limits = msgspec.structs.replace(self.space.limits, **changed)
        self.space.limits = self.machine.limits = limits
        self.cx = Cx(self.cx.design, self.task, limits=limits)

    def next_child(self) -> int:
        """Return a number for the address space of the next child."""
        return MM + 1 + sum(1 for mm in self.machine.mms if mm != MM)

    def signal_code(self, address: int, signal: int, write: bool) -> int:
        """Encode a fault as the real side does: which signal, with which si_code."""
        if signal == SIGBUS:
            return -(SIGBUS << 16 | 2)
        canonical = address < _CANONICAL or address >= (1 << 64) - _CANONICAL
        if not canonical:
            return -(SIGSEGV << 16 | 128)
        handle = lookup(self.machine, self.space, address)
        vma = self.machine.vmas[handle] if handle else None
        if not isinstance(vma, Vma) or vma.start > address:
            return -(SIGSEGV << 16 | 1)
        # Only a guard is fatal where the VMA allows the access; it passes for unmapped.
        return -(SIGSEGV << 16 | (2 if access_error(vma, write) else 1))


Operation = Callable[..., Outcome]


def _mmap(
    w: World, calls: Any, addr: int, length: int, prot: int, flags: int, file: int, offset: int
) -> Outcome:
    slot = file + 1 if 0 <= file < len(ops.FILES) else 0
    return w.syscall(mmap.mmap(w.cx, addr, length, prot, flags, slot, offset), calls)


def _load(w: World, calls: Any, address: int) -> Outcome:
    address &= f.PAGE_MASK
    if address >= f.TASK_SIZE_4_LEVELS:
        return Outcome(w.signal_code(address, SIGSEGV, False))
    result = run(w.machine, w.task, access.read_memory(w.cx, address), calls)
    return Outcome(w.signal_code(address, -result, False) if result < 0 else result)


def _store(w: World, calls: Any, address: int, tag: int) -> Outcome:
    address &= f.PAGE_MASK
    if address >= f.TASK_SIZE_4_LEVELS:
        return Outcome(w.signal_code(address, SIGSEGV, True))
    result = run(w.machine, w.task, access.write_memory(w.cx, address, tag), calls)
    return Outcome(w.signal_code(address, -result, True) if result < 0 else 0)


def _setrlimit(w: World, calls: Any, resource: int, soft: int) -> Outcome:
    w.limit(**{_RLIMITS[resource]: soft})
    return Outcome(0)


_RLIMITS = {
    ops.RLIMIT_AS: "rlimit_as",
    ops.RLIMIT_DATA: "rlimit_data",
    ops.RLIMIT_MEMLOCK: "rlimit_memlock",
    ops.RLIMIT_STACK: "rlimit_stack",
}


def _ftruncate(w: World, calls: Any, file: int, length: int) -> Outcome:
    if not 0 <= file < len(ops.FILES):
        return Outcome(-9)
    if ops.FILES[file] == "zero":
        return Outcome(-22)
    return w.syscall(rmap.truncate(w.cx, file + 1, length), calls)


def _mincore(w: World, calls: Any, address: int, length: int) -> Outcome:
    vector = ring.RING + ring.SCRATCH
    program = mincore.mincore(w.cx, address, length, vector)
    result, seen = run(w.machine, w.task, program, calls)
    return Outcome(result, seen if result == 0 else b"")


def _process_madvise(w: World, calls: Any, address: int, length: int, advice: int) -> Outcome:
    if length >= 1 << 63:
        return Outcome(-22)
    if length > f.TASK_SIZE_4_LEVELS or address > f.TASK_SIZE_4_LEVELS - length:
        return Outcome(-14)
    if length == 0:
        run(w.machine, w.task, take_and_release_for(w.cx, advice), calls)
        return Outcome(0)
    length = min(length, _MAX_RW_COUNT)
    if address & ~f.PAGE_MASK or not madvise.is_known(advice):
        run(w.machine, w.task, take_and_release_for(w.cx, advice), calls)
        return Outcome(-22)
    result = run(w.machine, w.task, madvise.madvise(w.cx, address, length, advice), calls)
    return Outcome(result or length)


async def take_and_release_for(cx: Cx, advice: int) -> int:
    """Hold what an advice needs and do nothing: ranges are checked under the lock here."""
    if advice in (*madvise.POPULATES, *madvise.LOOKS, *madvise.GUARDS):
        await mmap_read_lock(cx)
        await mmap_read_unlock(cx)
    elif advice not in madvise.ZAPS:
        await take_and_release(cx)
    return 0


_MAX_RW_COUNT = 0x7FFF_F000


def _pkey_mprotect(w: World, calls: Any, addr: int, length: int, prot: int, key: int) -> Outcome:
    """Without protection keys in the CPU only -1 is allowed, and that after the other checks."""
    program = mprotect.mprotect(w.cx, addr, length, prot)
    if key in (-1, _MASK):
        return w.syscall(program, calls)
    program.close()
    refused = mprotect_refuses(addr, length, prot)
    if refused is None:
        run(w.machine, w.task, take_and_release(w.cx), calls)
    return Outcome(-22 if refused is None else refused)


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


def environment_ring(w: World, mm: int) -> bool:
    """Return whether an address space has the ring mapped (a child may have lost it)."""
    return w.environment.ring in w.machine.mm(mm).tree


def populate_ring(m: Machine, task: Task, mm: int, environment: Environment) -> None:
    """Map every page of the ring, as one run instead of so many faults."""
    space, first = m.mm(mm), environment.ring >> f.PAGE_SHIFT
    last = first + (environment.ring_length >> f.PAGE_SHIFT)
    frame = cached_frame(m, task, RING_FILE, 0)
    alloc_tables(m, task, space, first, last)
    change_frames(m, task, frame, frame + last - first, refs=1)
    install(m, task, space, first, last, Pte("shmem", frame - first, True))


def _uffd(w: World, calls: Any, start: int, length: int, mode: int) -> Outcome:
    return w.syscall(uffd_range.register(w.cx, UFFD, start, length, mode), calls)


def _uffd_unregister(w: World, calls: Any, start: int, length: int) -> Outcome:
    return w.syscall(uffd_range.unregister(w.cx, start, length), calls)


def _crowd(w: World, calls: Any, room: int) -> Outcome:
    """Fill the address space with mappings, as the bare process does."""
    count = w.environment.max_map_count - 1 - room
    flags = f.VM_MAYREAD | f.VM_MAYWRITE | f.VM_MAYEXEC | f.VM_NORESERVE
    for page in range(count):
        start = ops.CROWD + page * f.PAGE_SIZE
        prot = f.VM_READ if page % 2 else 0
        area = Vma(MM, start, start + f.PAGE_SIZE, flags | prot, start >> f.PAGE_SHIFT)
        insert(w.machine, w.task, area)
    w.space.add("total_vm", count)
    return Outcome(0)


def _fork(w: World, calls: Any) -> Outcome:
    """Fork, let the child look at itself, and let it exit."""
    child = w.next_child()
    result = run(w.machine, w.task, fork.fork(w.cx, child), calls)
    if result:
        return Outcome(result)
    if environment_ring(w, child):
        populate_ring(w.machine, w.task, child, w.environment)
    seen = View(w.machine, child, w.environment.ring, w.view).snapshot()
    task = Task(2, child, "child")
    run(w.machine, task, exit.exit_process(Cx(w.cx.design, task, limits=w.cx.limits)))
    return Outcome(0, b"", seen)


def _simple(make: Callable[..., Any]) -> Operation:
    return lambda w, calls, *arguments: w.syscall(make(w.cx, *arguments), calls)


_OPERATIONS: dict[str, Operation] = {
    "mmap": _mmap,
    "munmap": lambda w, calls, *a: w.syscall(w.cx.design.munmap(w.cx, *a), calls),
    "mprotect": _simple(mprotect.mprotect),
    "madvise": _simple(madvise.madvise),
    "mlock": _simple(mlock.mlock),
    "mlock2": _simple(mlock.mlock),
    "munlock": _simple(mlock.munlock),
    "mlockall": _simple(mlock.mlockall),
    "munlockall": _simple(mlock.munlockall),
    "brk": _simple(brk.brk),
    "mremap": _simple(mremap.mremap),
    "mseal": _simple(mseal.mseal),
    "msync": _simple(msync.msync),
    "mincore": _mincore,
    "remap_file_pages": _simple(remap_pages.remap_file_pages),
    "pkey_mprotect": _pkey_mprotect,
    "process_madvise": _process_madvise,
    "fork": _fork,
    "crowd": _crowd,
    "uffd_register": _uffd,
    "uffd_unregister": _uffd_unregister,
    "load": _load,
    "store": _store,
    "setrlimit": _setrlimit,
    "ftruncate": _ftruncate,
}
