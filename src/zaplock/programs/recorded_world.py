"""The address spaces of a recording on one machine of the model, and what is known beside maps.

What a trace does not show is taken for granted only until it shows: files are on a disk whose file
system places them for huge pages, a process may lock memory and has no limits, mappings go down
from where the dynamic linker ends. Where a result tells otherwise, that is learnt (`Known`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from zaplock.designs.linux import LINUX_6_18
from zaplock.engines.sequential import run as run_protocol
from zaplock.model import flags as f
from zaplock.model.files import SEAL_EXEC, new_file, truncate_pagecache
from zaplock.model.huge_pool import promise
from zaplock.model.machine import Machine
from zaplock.model.mm import (
    LIMITED_TASK_SIZE,
    NARROW_TASK_SIZE,
    ResourceLimits,
    change_limits,
    unmapped_base,
)
from zaplock.model.step import Task
from zaplock.model.vma import (
    Vma,
    account,
    anon_vma_prepare,
    change,
    device_of,
    insert,
    lookup,
    opened_as,
    overlapping,
    vma_of,
    zero_name,
)
from zaplock.programs.file_kinds import (
    SPECIAL,
    is_driver,
    is_secret,
    kind_of,
    kind_of_special,
    label,
)
from zaplock.programs.file_tables import NO_FILES, Facts, FileTables
from zaplock.programs.filters import SeccompFilters
from zaplock.programs.ipc_namespaces import IpcNamespaces
from zaplock.programs.recording import Area
from zaplock.programs.spaces import TracedSpace
from zaplock.protocols import fork
from zaplock.protocols.design import Cx
from zaplock.protocols.fault import expand_stack
from zaplock.protocols.mempolicy import Policies
from zaplock.protocols.rmap import unmap_mapping_range
from zaplock.protocols.seals import OF_CODE
from zaplock.protocols.served_calls import SERVED

Segment = tuple[str, int]
"""A segment of System V: its IPC namespace, and its id there."""
LONG = 1 << 40
RING = "[aio]"
LINKERS = ("ld-", "ld.so", "ld64.so", "ld-linux")
_PLENTY = 1 << 30


@dataclass(frozen=True, slots=True)
class Cloud:
    """Addresses [start, end) of which nothing is known since a call that could not be followed."""

    start: int
    end: int
    why: str

    def meets(self, start: int, end: int) -> bool:
        """Return whether a range overlaps or touches these addresses."""
        return start <= self.end and self.start <= end


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a space beside the model's state; replaced as a whole, so kept with a mark.

    `unknown`: why nothing can be compared any more, "" while it can. `doubt`: why what differs may
    be the recording's fault. `heap`, `base`: is it known
    where the heap, and where mappings begin? `files`: the file behind each open descriptor.
    `modes`: how each file was opened (O_ACCMODE), where that was seen. `segments`: shared memory
    by namespace and id. `monitors`: whose address space each userfaultfd watches. `given`: which
    limits and capabilities the recording tells. `crossing`: threads whose calls have another
    width than the addresses (32-bit calls of a 64-bit program, or 64-bit ones of a 32-bit program).
    `keys`: which protection keys are allocated (None: not known) of `most_keys`. `hard_limits`: by
    resource; `raises_limits`: whether it may raise them (CAP_SYS_RESOURCE). `first_stack_limit`:
    under which RLIMIT_STACK it was laid out, -1 where that was set before anybody told it.
    """

    limits: ResourceLimits
    unknown: str = ""
    heap: bool = False
    base: bool = True
    clouds: tuple[Cloud, ...] = ()
    given: frozenset[str] = frozenset()
    doubt: str = ""
    modes: tuple[tuple[int, int], ...] = ()
    files: FileTables = NO_FILES
    segments: tuple[tuple[Segment, int], ...] = ()
    monitors: tuple[tuple[int, int], ...] = ()
    crossing: frozenset[int] = frozenset()
    keys: frozenset[int] | None = None
    most_keys: int = 0
    hard_limits: tuple[tuple[int, int], ...] = ()
    raises_limits: bool | None = None
    first_stack_limit: int | None = None

    def without_clouds(self, start: int, end: int) -> Known:
        """Return what is known when a range is known again."""
        clouds = []
        for cloud in self.clouds:
            parts = ((cloud.start, min(cloud.end, start)), (max(cloud.start, end), cloud.end))
            clouds += [Cloud(low, high, cloud.why) for low, high in parts if low < high]
        return replace(self, clouds=tuple(clouds))

    def cloud_over(self, start: int, end: int) -> Cloud | None:
        """Return what hides a part of a range, if anything does."""
        return next((c for c in self.clouds if start < c.end and c.start < end), None)


@dataclass(slots=True, eq=False)
class LiveSpace:
    """A space of the recording as an address space of the model."""

    traced: TracedSpace
    mm: int
    known: Known
    stack_end: int = 0
    joints: set[int] = field(default_factory=set)


class StraceWorld:
    """The machine, its files, and how to go back to where it was.

    `sees_seals`, `sees_limits`, `sees_closes`, `sees_execs`, `sees_paths`: whether mseal,
    setrlimit, close, execve and the path of every descriptor would be in the recording, and
    `sees_cuts`: whether whatever cuts mappings would be; `has_narrow_calls`: what 32-bit programs
    do; `sees_narrow_calls`: some of that is. `drivers`:
    files whose mappings their drivers decide about. `filters`: what may forbid calls.
    """

    def __init__(self) -> None:
        self.sees_seals = self.sees_limits = self.sees_closes = self.sees_paths = False
        self.sees_execs = self.sees_narrow_calls = self.sees_cuts = False
        self.has_narrow_calls = True
        self.machine = Machine(limits=ResourceLimits())
        self.machine.globals.put("hugetlb_free", _PLENTY)
        self.files: dict[str, int] = {}
        self.segments: dict[Segment, int] = {}
        self.guessed: set[Segment] = set()
        self.namespaces: IpcNamespaces | None = None
        self.removed: dict[Segment, int] = {}
        """In which line each segment was removed (IPC_RMID)."""
        self.drivers: set[int] = set()
        self._rings: dict[int, int] = {}
        self.filters = SeccompFilters(())
        self.policies = Policies()
        self.machine.store.start_journal(hashes=False)

    def mark(self, live: LiveSpace) -> tuple[Any, Known, int]:
        """Return where the machine and what is known of a space stand."""
        return self.machine.store.mark(), live.known, len(self.files)

    def undo(self, live: LiveSpace, mark: tuple[Any, Known, int]) -> None:
        """Go back to a mark."""
        self.machine.store.undo(mark[0])
        live.known = mark[1]
        while (
            len(self.files) > mark[2]
        ):  # the last that were opened: the machine has forgotten them
            self.files.popitem()

    def open_space(self, traced: TracedSpace) -> LiveSpace:
        """Make the address space that a recording begins with."""
        linker = linker_of(traced.begin)
        size = task_size(traced.begin)
        limits = ResourceLimits(
            task_size=size,
            mmap_base=mmap_base(traced.begin, linker),
            mmap_min_addr=0x1000,
            can_ipc_lock=True,
            legacy_base=unmapped_base(size),
        )
        stack = next((a.end for a in traced.begin if a.name == "[stack]"), 0)
        known = Known(
            limits,
            traced.unknown or foreign(traced.begin, sees_narrow=self.has_narrow_calls),
            base=bool(linker or without_linker(traced.begin)),
            doubt=traced.doubt,
        )
        live = LiveSpace(traced, traced.number, known, stack)
        self.use(live)
        space, task = self.machine.mm(live.mm), Task(1, live.mm)
        for item in traced.begin:
            if item.start >= f.TASK_SIZE_4_LEVELS:
                continue
            file, opened = self.attached(item)
            if not file and item.name and not item.name.startswith("["):
                file = self.file(item.name)
            is_zero = file and self.machine.files[file].kind == "zero" and "s" not in item.perms
            anonymous, file = (file, 0) if is_zero else (0, file)
            pgoff = (item.offset if file or anonymous else item.start) >> f.PAGE_SHIFT
            vma = Vma(
                live.mm, item.start, item.end, vm_flags(item), pgoff, file,
                name=zero_name(anonymous) if anonymous else "", anon_name=anon_name(item.name),
                ops=opened or kind_of_special(item.name),
            )  # fmt: skip
            insert(self.machine, task, vma)
            account(space, vma.flags, vma.nr_pages)
        heap = [a for a in traced.begin if a.name == "[heap]"]
        if heap:
            space.counters.put("start_brk", heap[0].start)
            space.counters.put("brk", heap[-1].end)
        return live

    def copy_space(self, parent: LiveSpace, traced: TracedSpace, maker: int) -> LiveSpace:
        """Fork: the child begins as its parent is, with its maker's descriptors."""
        mm, task = traced.number, Task(1, parent.mm)
        self.use(parent)
        run_protocol(self.machine, task, fork.fork(self.cx(parent), mm))
        hidden = (
            Cloud(vma.start, vma.end, "whether a fork copies a driver's mapping is not recorded")
            for vma in self.vmas(parent)
            if vma.file in self.drivers
        )
        doubt = parent.known.doubt or traced.doubt
        clouds, files = (*parent.known.clouds, *hidden), parent.known.files.forked(maker)
        known = replace(parent.known, clouds=clouds, doubt=doubt, files=files)
        return LiveSpace(traced, mm, known, parent.stack_end, set(parent.joints))

    def take_copied(self, live: LiveSpace, area: Area, *, is_there: bool) -> None:
        """Note whether a fork has copied a driver's mapping."""
        live.known = live.known.without_clouds(area.start, area.end)
        if not is_there:
            length = area.end - area.start
            self.run(live, SERVED["munmap"](self.cx(live), area.start, length))

    def use(self, live: LiveSpace) -> None:
        """Let the machine have the limits of a space."""
        self.machine.limits = live.known.limits
        change_limits(self.machine.mm(live.mm), live.known.limits)

    def cx(self, live: LiveSpace) -> Cx:
        """Return the context in which protocols run."""
        return Cx(LINUX_6_18, Task(1, live.mm), limits=live.known.limits)

    def run(self, live: LiveSpace, program: Any) -> int:
        """Run a protocol in a space; return its result."""
        self.use(live)
        result = run_protocol(self.machine, Task(1, live.mm), program)
        return int(result[0] if isinstance(result, tuple) else result)

    def limit(self, live: LiveSpace, **limits: Any) -> None:
        """Change limits of a space."""
        live.known = replace(
            live.known, limits=msgspec.structs.replace(live.known.limits, **limits)
        )

    def file(self, path: str) -> int:
        """Return the file of a path, which is opened once."""
        if path not in self.files:
            self.files[path] = self.new_file(path)
        return self.files[path]

    def new_file(self, path: str, size: int = LONG, kind: str = "") -> int:
        """Open a file anew: what is opened twice does not merge."""
        handle = len(self.machine.files) + 1
        (self.drivers.add if is_driver(path) else self.drivers.discard)(handle)
        secret = is_secret(path)
        kind = kind or ("shmem" if secret else kind_of(path))
        return new_file(self.machine, handle, kind, size, label(path), secret=secret, noexec=secret)

    def is_closed(self, argument: str) -> bool:
        """Return whether a descriptor stands for nothing: else its path would be beside it."""
        return self.sees_paths and "<" not in argument

    def set_length(self, live: LiveSpace, at: int, length: int) -> None:
        """Note how many bytes the file has that is mapped at an address, -1 where nobody knows.

        What was mapped beyond is not any more: the file was cut.
        """
        for vma in self.vmas(live):
            if vma.start == at and vma.file and vma.file not in self.drivers:
                backing = self.machine.files[vma.file]
                size = length if length >= 0 else LONG
                self.machine.files.put(vma.file, msgspec.structs.replace(backing, size=size))
                if size < backing.size:
                    self.run(live, _drop_beyond(self.cx(live), vma.file, size))
        if length < 0:
            live.known = replace(live.known, given=live.known.given | {"no lengths"})

    def rename(self, file: int, path: str) -> None:
        """Give a file that is open its new name, in all mappings of it."""
        backing = self.machine.files[file]
        self.machine.files.put(file, msgspec.structs.replace(backing, name=label(path)))

    def set_mode(self, file: int, mode: int) -> None:
        """Note how a file was opened (O_ACCMODE)."""
        backing = self.machine.files[file]
        changed = msgspec.structs.replace(backing, writable=mode == 2, readable=mode != 1)
        self.machine.files.put(file, changed)

    def see(self, file: int, facts: Facts) -> None:
        """Note what the recorder saw of a file that is about to be mapped."""
        self.set_mode(file, facts.mode)
        backing = self.machine.files[file]
        kind, size = ("hugetlb", facts.huge) if facts.huge else (backing.kind, backing.huge_size)
        changed = msgspec.structs.replace(
            backing, kind=kind, huge_size=size, noexec=backing.noexec or facts.noexec,
            stacked=facts.stacked,
            seals=backing.seals if facts.seals is None else facts.seals,
        )  # fmt: skip
        self.machine.files.put(file, changed)

    def set_seals(self, file: int, seals: int) -> None:
        """Note which seals a file has."""
        backing = self.machine.files[file]
        self.machine.files.put(file, msgspec.structs.replace(backing, seals=seals))

    def add_seals(self, file: int, seals: int) -> None:
        """Note that a file was sealed."""
        held = self.machine.files[file].seals
        is_code = seals & SEAL_EXEC and not held & SEAL_EXEC
        self.set_seals(file, held | seals | (OF_CODE if is_code else 0))

    def attached(self, item: Area) -> tuple[int, str]:
        """Return the segment of an area, and by which opening it is mapped: (0, "") for none.

        Areas of one shmat lie as far from each other as their offsets do.
        """
        found = self.namespaces.of(0, 0) if self.namespaces else None
        file = self.segments.get((found or "", item.inode)) if item.inode else None
        is_segment = file is not None and item.name.startswith("/SYSV")
        return (file or 0, opened_as(item.start - item.offset)) if is_segment else (0, "")

    def new_segment(self, size: int, key: int = 0, huge_size: int = 0) -> int:
        """Make a segment of System V shared memory, of huge pages where their size is given."""
        handle = len(self.machine.files) + 1
        name = f"SYSV{key:08x}"
        if huge_size:
            size += -size % huge_size
            promised = tuple(range(size // huge_size))  # they are reserved when it is made
            promise(self.machine, huge_size, len(promised))
            return new_file(
                self.machine, handle, "hugetlb", size, name,
                counts_mappings=True, huge_size=huge_size, promised=promised,
            )  # fmt: skip
        return new_file(self.machine, handle, "shmem", size, name, counts_mappings=True)

    def new_ring(self, live: LiveSpace) -> int:
        """Make the file of an io_setup's ring."""
        handle = len(self.machine.files) + 1
        self.drivers.discard(handle)
        self._rings[handle] = live.mm
        return new_file(self.machine, handle, "shmem", LONG, RING, noexec=True)

    def is_ring_of(self, live: LiveSpace, file: int) -> bool:
        """Return whether a file is a ring that this space has made, not one it has from a fork."""
        is_ring = bool(file) and self.machine.files[file].name == RING
        return is_ring and self._rings.get(file) == live.mm

    def touch(self, live: LiveSpace, areas: tuple[Area, ...]) -> None:
        """Note which mappings have an anon_vma from here on, and which stacks have grown."""
        space = self.machine.mm(live.mm)
        for item in areas:
            self._grow(live, item)
            for handle in overlapping(self.machine, space, item.start, item.end):
                vma = self.machine.vmas[handle]
                assert isinstance(vma, Vma)
                if not vma.anon_vma and not vma.flags & f.VM_SHARED:
                    anon_vma_prepare.run(self.machine, Task(1, live.mm), handle)

    def seal(self, live: LiveSpace, areas: tuple[Area, ...]) -> None:
        """Note what was sealed before a program began."""
        for item in areas:
            for handle in overlapping(self.machine, self.machine.mm(live.mm), item.start, item.end):
                vma = vma_of(self.machine, Task(1, live.mm), handle)
                self.machine.vmas.put(handle, change(vma, flags=vma.flags | f.VM_SEALED))

    def _grow(self, live: LiveSpace, written: Area) -> None:
        """Let stacks grow down over what was written where nothing is mapped."""
        space, task = self.machine.mm(live.mm), Task(1, live.mm)
        at = written.start
        while at < written.end and (handle := lookup(self.machine, space, at)):
            vma = vma_of(self.machine, task, handle)
            if at < vma.start <= written.end and vma.flags & f.VM_GROWSDOWN:
                expand_stack.run(self.machine, task, handle, at)
            at = vma.end

    def vmas(self, live: LiveSpace) -> Iterator[Vma]:
        """List the mappings of a space in order."""
        tree = self.machine.mm(live.mm).tree
        for start in tree.order:
            vma = self.machine.vmas[tree.data[start]]
            assert isinstance(vma, Vma)
            yield vma

    def areas(self, live: LiveSpace) -> list[Area]:
        """List the mappings of a space as maps would."""
        found = []
        for vma in self.vmas(live):
            name = self.machine.files[vma.file].name if vma.file else device_of(vma.name)
            shared = "_shmem" if vma.file else ""
            name = f"[anon{shared}:{vma.anon_name}]" if vma.anon_name else label(name)
            offset = vma.pgoff << f.PAGE_SHIFT if vma.file or device_of(vma.name) == "zero" else 0
            found.append(Area(vma.start, vma.end, perms(vma.flags), offset, name))
        return found


async def _drop_beyond(cx: Cx, file: int, size: int) -> int:
    """Unmap and drop what a file had beyond its new end."""
    await unmap_mapping_range(cx, file, f.page_align(size), 1 << 63)
    await truncate_pagecache(file, size)
    return 0


NARROW = "its addresses have 32 bits, and this recording has 64-bit calls only: record it again"
WIDE = "its addresses have more than 47 bits (another architecture, or 5-level page tables)"


def task_size(areas: Iterable[Area]) -> int:
    """Return how far addresses go of a program that begins with these maps.

    Its stack lies at their end, but for at most 16 MiB of chance in a 32-bit program.
    """
    last = max((area.end for area in areas if area.name != "[vsyscall]"), default=1 << 33)
    if last > 1 << 32:
        return f.TASK_SIZE_4_LEVELS
    return LIMITED_TASK_SIZE if last <= LIMITED_TASK_SIZE else NARROW_TASK_SIZE


def foreign(areas: Sequence[Area], *, sees_narrow: bool) -> str:
    """Return why maps are none of a process that the model could be, "" where they may be.

    `sees_narrow`: the recording has 32-bit calls.
    """
    if task_size(areas) <= NARROW_TASK_SIZE and not sees_narrow:
        return NARROW
    ends = [area.end for area in areas if area.name != "[vsyscall]"]
    wide = ends and max(ends) > f.TASK_SIZE_4_LEVELS
    return f"{WIDE}: the model is x86-64 with 4 levels" if wide else ""


def anon_name(name: str) -> str:
    """Return the name that PR_SET_VMA gave a mapping, as maps shows it."""
    for prefix in ("[anon:", "[anon_shmem:"):
        if name.startswith(prefix):
            return name[len(prefix) : -1]
    return ""


def linker_of(begin: tuple[Area, ...]) -> tuple[int, int] | None:
    """Return where the dynamic linker lies: the first mapping whose place the kernel chose."""
    parts = [a for a in begin if label(a.name).startswith(LINKERS)]
    return (parts[0].start, max(a.end for a in parts)) if parts else None


def without_linker(begin: tuple[Area, ...]) -> tuple[int, int] | None:
    """Return between which addresses lies what the kernel has mapped first of a static program.

    That is the program, if it can be anywhere, and the vdso, unless it lies above the stack, as
    older kernels have it. A program of 2 MiB is placed for huge pages, and the vdso above it.
    """
    stack = next((a.start for a in begin if a.name == "[stack]"), 0)
    below = [a for a in begin if a.end <= stack]
    special = [a.start for a in below if a.name in SPECIAL]
    if not special or linker_of(begin):
        return None
    base = unmapped_base(f.TASK_SIZE_4_LEVELS)
    lowest = min(a.start for a in below if a.start >= min(special[0], base))
    return lowest, max(a.end for a in below)


def mmap_base(begin: tuple[Area, ...], linker: tuple[int, int] | None) -> int:
    """Return where mappings that go down begin."""
    first = without_linker(begin)
    if first is not None:
        return first[1]
    below = [a for a in begin if a.start > 1 << 46 and a.name not in (*SPECIAL, "[stack]")]
    if linker and linker[0] < 1 << 46:
        below = [a for a in begin if a.end <= linker[1]]
    end = linker[1] if linker else ResourceLimits().mmap_base
    for item in sorted(below):  # what continues the linker, its own bss for example
        end = item.end if item.start <= end <= item.end else end
    return max([end, *(a.end for a in below)]) if below else end


def perms(flags: int) -> str:
    """Write vm_flags as maps does."""
    letters = zip("rwx", (f.VM_READ, f.VM_WRITE, f.VM_EXEC), strict=True)
    shared = "s" if flags & f.VM_MAYSHARE else "p"
    return "".join(letter if flags & bit else "-" for letter, bit in letters) + shared


def vm_flags(item: Area) -> int:
    """Return the vm_flags that a line of maps stands for."""
    flags = f.VM_MAYREAD | f.VM_MAYWRITE | f.VM_MAYEXEC
    flags |= f.VM_READ if "r" in item.perms else 0
    flags |= f.VM_WRITE if "w" in item.perms else 0
    flags |= f.VM_EXEC if "x" in item.perms else 0
    if "s" in item.perms:
        return flags | f.VM_SHARED | f.VM_MAYSHARE
    flags |= f.VM_ACCOUNT if "w" in item.perms else 0
    flags |= f.VM_GROWSDOWN if item.name == "[stack]" else 0
    if item.name == "[vdso]":
        return flags | f.VM_DONTEXPAND
    if item.name in SPECIAL:  # vvar: lib/vdso/datastore.c
        flags &= ~(f.VM_MAYWRITE | f.VM_MAYEXEC)
        flags |= f.VM_PFNMAP | f.VM_IO | f.VM_DONTEXPAND | f.VM_DONTDUMP
    return flags
