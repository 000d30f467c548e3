"""One machine with one process like the bare one: the ring, the files, nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from signal import SIGBUS, SIGSEGV
from typing import Any

import msgspec

from zaplock.engines.sequential import LockCall, call, run
from zaplock.model import flags as f
from zaplock.model import huge_pool, references
from zaplock.model.dirty import soil_file
from zaplock.model.files import SEAL_SEAL, cached_frame, disk_tag, fill_cache, new_file
from zaplock.model.frames import change_frames
from zaplock.model.machine import Machine
from zaplock.model.mm import Mm, Pte, ResourceLimits, change_limits, unmapped_base
from zaplock.model.pagetable import alloc_tables, install
from zaplock.model.shared_folios import set_sizes
from zaplock.model.step import Task
from zaplock.model.vma import Vma, insert, lookup
from zaplock.oracle import ops
from zaplock.oracle.modelview import ModelView
from zaplock.oracle.ops import CallOutcome, Environment, returned
from zaplock.protocols.design import Cx, Design
from zaplock.protocols.fault import access_error
from zaplock.protocols.mempolicy import Policies

MM = 1
RING_FILE, SEGMENT_FILE, HUGE_SEGMENT_FILE = 99, 98, 97
UFFD = 1
_CANONICAL = 1 << 47


RLIMITS = {
    ops.RLIMIT_AS: "rlimit_as",
    ops.RLIMIT_DATA: "rlimit_data",
    ops.RLIMIT_MEMLOCK: "rlimit_memlock",
    ops.RLIMIT_STACK: "rlimit_stack",
}


def limits_of(environment: Environment) -> ResourceLimits:
    """Return the model's limits for a real process without capabilities."""
    soft = {RLIMITS[resource]: limit for resource, (limit, _) in environment.limits.items()}
    return ResourceLimits(
        task_size=environment.task_size,
        mmap_base=environment.mmap_base,
        legacy_base=unmapped_base(environment.task_size),
        mmap_min_addr=environment.mmap_min_addr,
        mmap_min_hint=environment.mmap_min_hint,
        max_map_count=environment.max_map_count,
        can_ipc_lock=False,
        overcommit_pages=environment.overcommit_pages,
        rlimit_as=soft["rlimit_as"],
        rlimit_data=soft["rlimit_data"],
        rlimit_memlock=soft["rlimit_memlock"],
        rlimit_stack=soft["rlimit_stack"],
    )


class World:
    """One machine with one process like the bare one: the ring, the files, nothing else.

    `begin` makes the files and begins with them; what is done from then on the next one undoes.
    """

    task: Task
    cx: Cx
    policies: Policies
    space: Mm
    view: ModelView

    def __init__(self, environment: Environment, design: Design, tracks_tlbs: bool = False) -> None:
        self.environment, self.design = environment, design
        self._limits = limits_of(environment)
        self.machine = Machine(limits=self._limits, tracks_tlbs=tracks_tlbs)
        self._process()
        self.space.counters.put("brk", environment.start_brk)
        self.space.counters.put("start_brk", environment.start_brk)
        self.space.counters.put("data_length", environment.data_length)
        self.machine.globals.put("hugetlb_free", environment.hugetlb_pages)
        if environment.has_mounts:
            for number, share in enumerate(ops.MOUNTS, 1):
                kept = max(share.least, 0)
                free = self.machine.globals.get("hugetlb_free", 0) + kept
                self.machine.globals.put("hugetlb_free", free)
                of_mount = huge_pool.Subpool(
                    *share, leaks=design.kept_pages_leak, refusal=design.huge_refusal
                )
                huge_pool.mount(self.machine, number, f.PMD_SIZE, of_mount)
        self.machine.globals.put("thp", environment.huge_faults)
        self.machine.globals.put("shmem", environment.shared_huge)
        set_sizes(self.machine, environment.shared_sizes)
        self.machine.globals.put("gigantic_free", environment.gigantic_pages)
        self.machine.globals.put("dirty_bits", 1)
        swaps = not environment.group_pages  # that group may have nothing in swap
        self.machine.globals.put("swap_free", environment.swap_pages if swaps else 0)
        self.machine.uffd_modes.put(UFFD, "sigbus")
        size = ops.SEGMENT_PAGES * f.PAGE_SIZE
        new_file(self.machine, SEGMENT_FILE, "shmem", size, "SYSV00000000", counts_mappings=True)
        self._ring(environment)
        self._view = ModelView(self.machine, MM, environment.ring)
        self._view.shows_protection = environment.shows_protection
        self._view.set_baseline()
        self._kept = self.machine.store.keep()

    def begin(
        self,
        slots: Iterable[int],
        follows_references: bool = False,
        has_huge_segment: bool = False,
    ) -> None:
        """Have the files of these slots and else what there was at first; forget all views."""
        self.machine.store.begin_again(self._kept)
        self.machine.limits = self._limits
        self._process()
        change_limits(self.space, self._limits)
        if follows_references:
            self.machine.globals.put("references", 1)
        for slot in sorted(slots):
            self._file(slot)
        if has_huge_segment:
            self._huge_segment()
        self.view = self._view.afresh()

    def _process(self) -> None:
        """Be the process that there is at first."""
        self.task = Task(1, MM, "oracle")
        self.cx = Cx(self.design, self.task, limits=self._limits)
        self.policies = Policies()
        self.space = self.machine.mm(MM)

    def _file(self, slot: int) -> None:
        """Make a file and fill it, as the bare process does those that a sequence names."""
        if slot in ops.HUGE_FILES:
            name, huge_size = ops.HUGE_FILES[slot]
            share = ops.MOUNT_OF[slot] + 1 if slot in ops.MOUNT_OF else 0
            more: dict[str, object] = {"huge_size": huge_size, "subpool": share}
            new_file(self.machine, slot + 1, "hugetlb", 0, name, **more)
            return
        if slot in ops.TMPFS_FILES:
            made = ops.TMPFS_FILES[slot]
            more = {"huge": made.huge, "named": made.named, "seals": SEAL_SEAL}
            more |= {"charged_by_page": True, "most_pages": ops.TMPFS_SIZE >> f.PAGE_SHIFT}
            new_file(self.machine, slot + 1, "shmem", made.size, made.name, **more)
            return
        name = ops.FILES[slot]
        kind = {"disk": "disk", "zero": "zero"}.get(name, "shmem")
        by_page = kind == "shmem"
        size = ops.FILE_PAGES[slot] * f.PAGE_SIZE
        writable = slot != ops.READ_ONLY_SLOT
        new_file(
            self.machine, slot + 1, kind, size, name, charged_by_page=by_page, writable=writable
        )
        written = ops.written_pages(slot)
        if not written:
            return
        first = fill_cache(self.machine, self.task, slot + 1, written[0], written[-1] + 1)
        for page in written:
            frame = first + page
            self.machine.content.put(frame, (frame + 1, disk_tag(slot + 1, page)))
        soil_file(self.machine, first + written[0], first + written[-1] + 1)
        references.mark_accessed(self.machine, first + written[0], first + written[-1] + 1)

    def _huge_segment(self) -> None:
        """Make a segment of huge pages, which are reserved at once; none where the pool lacks them.

        (hugetlb_file_setup)
        """
        pages = ops.HUGE_SEGMENT_PAGES
        if huge_pool.reserve(self.machine, f.PMD_SIZE, 0, pages):
            new_file(
                self.machine, HUGE_SEGMENT_FILE, "hugetlb", pages * f.PMD_SIZE, "SYSV00000000",
                counts_mappings=True, promised=tuple(range(pages)),
            )  # fmt: skip

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

    def run(self, calls: list[LockCall] | None, make: Callable[..., Any], *arguments: Any) -> Any:
        """Run the protocol that `make(cx, *arguments)` is; return its result."""
        if calls is None:
            return call(self.machine, self.task, make, self.cx, *arguments)
        return run(self.machine, self.task, make(self.cx, *arguments), calls)

    def syscall(self, program: Any, calls: list[LockCall] | None) -> CallOutcome:
        """Run a protocol."""
        return returned(run(self.machine, self.task, program, calls))

    def limit(self, **changed: int) -> None:
        """Change limits, as setrlimit does."""
        limits = msgspec.structs.replace(self.space.limits, **changed)
        self.machine.limits = limits
        change_limits(self.space, limits)
        self.cx = Cx(self.cx.design, self.task, limits=limits)

    def become(self, mm: int) -> None:
        """Go on as the process of another address space: operations are its, and it is seen."""
        self.task = Task(self.task.tid + 2, mm, "child")
        self.space = self.machine.mm(mm)
        self.cx = Cx(self.cx.design, self.task, limits=self.cx.limits)
        end = self.view.end
        self.view = ModelView(self.machine, mm, self.environment.ring, self.view)
        self.view.end = end

    def next_child(self) -> int:
        """Return a number for the address space of the next child."""
        return MM + 1 + sum(1 for mm in self.machine.mms if mm != MM)

    def signal_code(self, address: int, signal: int, write: bool) -> int:
        """Encode a fault as the real side does: which signal, with which si_code."""
        if signal == SIGBUS:
            pte = self.space.ptes.at(address >> f.PAGE_SHIFT)
            poisoned = pte is not None and pte.kind == "poison"
            return -(SIGBUS << 16 | (self.environment.poison_code if poisoned else 2))
        canonical = address < _CANONICAL or address >= (1 << 64) - _CANONICAL
        if not canonical:
            return -(SIGSEGV << 16 | 128)
        handle = lookup(self.machine, self.space, address)
        vma = self.machine.vmas[handle] if handle else None
        if not isinstance(vma, Vma) or vma.start > address:
            return -(SIGSEGV << 16 | 1)
        # Only a guard is fatal where the VMA allows the access; it passes for unmapped.
        return -(SIGSEGV << 16 | (2 if access_error(vma, write) else 1))


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
