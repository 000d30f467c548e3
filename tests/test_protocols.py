"""Protocols under the sequential engine: what each design does, told step by step."""

import ast
from errno import EAGAIN, EFAULT, EINTR, EINVAL, ENOMEM
from pathlib import Path
from signal import SIGBUS, SIGSEGV

import pytest

from zaplock import AddressSpace
from zaplock.designs import SHIPPED, Cx, load
from zaplock.designs.linux import design_of
from zaplock.engines.sequential import LockCall, run
from zaplock.errors import UserError
from zaplock.model import flags as f
from zaplock.model.check import check
from zaplock.model.files import new_file
from zaplock.model.machine import Machine
from zaplock.model.mm import ResourceLimits
from zaplock.model.step import StepKind, Task
from zaplock.model.violations import Invariant, Violation
from zaplock.model.vma import find_vma, read_vma
from zaplock.protocols.exit import exit_process, mark_oom_victim
from zaplock.protocols.gup import copy_from_user
from zaplock.protocols.madvise import madvise
from zaplock.protocols.mlock import mlock
from zaplock.protocols.mmap import mmap
from zaplock.protocols.proc import proc_pid_maps, proc_pid_smaps
from zaplock.protocols.rmap import truncate
from zaplock.protocols.uprobes import BREAKPOINT, uprobe_register, uprobe_unregister
from zaplock.protocols.user_access import write_memory
from zaplock.protocols.userfaultfd import monitor, open_userfaultfd, set_uffd

PAGE = f.PAGE_SIZE
MIB = 1 << 20
EVERY = list(SHIPPED)
DYING = [name for name, design in SHIPPED.items() if design.tombstones]
DOWNGRADES = [name for name, design in SHIPPED.items() if design.munmap_downgrades]
ANONYMOUS = f.MAP_PRIVATE | f.MAP_ANONYMOUS | f.MAP_FIXED
EXCLUSIVE = ["down_write", "up_write"]
DOWNGRADED = ["down_write", "downgrade_write", "up_read"]
TWICE = EXCLUSIVE + EXCLUSIVE


def locks_of(design: str, downgrades: bool) -> list[str]:
    """Return how an unmap holds the lock; with tombstones it comes back for the border tables."""
    return TWICE if design in DYING else DOWNGRADED if downgrades else EXCLUSIVE


def stack_below(space: AddressSpace) -> int:
    """Map a stack that grows down, 16 pages, far from everything; return its start."""
    flags = f.MAP_PRIVATE | f.MAP_ANONYMOUS | f.MAP_GROWSDOWN | f.MAP_FIXED
    return space.mmap(16 * PAGE, 0x7000_0000_0000, flags=flags)


@pytest.mark.parametrize("design", EVERY)
def test_munmap_holds_the_lock_as_its_kernel_does(design: str) -> None:
    space = AddressSpace(design)
    heap = space.mmap(64 * MIB, populate=True)
    space.munmap(heap, 64 * MIB)
    assert space.locks == locks_of(design, design in DOWNGRADES)


@pytest.mark.parametrize("design", EVERY)
def test_mapping_over_a_populated_range_is_exclusive_in_every_kernel(design: str) -> None:
    space = AddressSpace(design)
    heap = space.mmap(64 * MIB, populate=True)
    flags = f.MAP_PRIVATE | f.MAP_ANONYMOUS | f.MAP_FIXED
    assert space.mmap(64 * MIB, heap, flags=flags) == heap
    assert space.locks == EXCLUSIVE
    assert space.counters()["rss_anon"] == 0


@pytest.mark.parametrize("design", EVERY)
def test_a_shrinking_heap_downgrades_since_4_20(design: str) -> None:
    space = AddressSpace(design)
    start = space.counters()["brk"]
    space.brk(start + MIB)
    space.write(start, 7)
    assert space.brk(start) == start
    assert space.locks == locks_of(design, load(design).brk_downgrades)
    space.check()


@pytest.mark.parametrize("design", EVERY)
def test_only_those_kernels_avoid_a_growable_neighbour_where_stacks_grow_under_read(
    design: str,
) -> None:
    space = AddressSpace(design)
    stack = stack_below(space)
    space.munmap(stack, 8 * PAGE)
    careful = design in ("linux-5.10", "linux-6.1")
    downgrades = design in DOWNGRADES and not careful
    assert space.locks == locks_of(design, downgrades)


def test_a_racing_reader_of_the_unmapped_range_gets_sigsegv() -> None:
    space = AddressSpace("rfc-v6")
    heap = space.mmap(MIB)
    space.write(heap, 41)
    space.munmap(heap, MIB)
    with pytest.raises(OSError, match=f"signal {int(SIGSEGV)}"):
        space.read(heap)


def test_unmapping_the_middle_splits_and_keeps_both_ends() -> None:
    space = AddressSpace()
    heap = space.mmap(9 * PAGE)
    for page in range(9):
        space.write(heap + page * PAGE, page + 1)
    space.munmap(heap + 3 * PAGE, 3 * PAGE)
    assert [(vma.start - heap) // PAGE for vma in space.maps()] == [0, 6]
    assert space.read(heap + 2 * PAGE) == 3
    assert space.read(heap + 6 * PAGE) == 7
    space.check()


@pytest.mark.parametrize("design", EVERY)
@pytest.mark.parametrize(
    ("start", "length"),
    [(1, PAGE), (0, 0), (f.TASK_SIZE_4_LEVELS + PAGE, PAGE), (0, 1 << 60), (PAGE, (1 << 64) - 1)],
)
def test_munmap_refuses_ranges_that_cannot_be(design: str, start: int, length: int) -> None:
    space = AddressSpace(design)
    with pytest.raises(OSError) as refused:
        space.munmap(start, length)
    assert refused.value.errno == EINVAL


@pytest.mark.parametrize("design", EVERY)
def test_a_hole_in_the_middle_needs_room_below_max_map_count(design: str) -> None:
    space = AddressSpace(design, limits=ResourceLimits(max_map_count=1))
    heap = space.mmap(3 * PAGE)
    with pytest.raises(OSError) as refused:
        space.munmap(heap + PAGE, PAGE)
    assert refused.value.errno == ENOMEM
    space.munmap(heap, PAGE)
    space.check()


@pytest.mark.parametrize("design", EVERY)
def test_a_killed_waiter_leaves_munmap_with_eintr(design: str) -> None:
    space = AddressSpace(design)
    heap = space.mmap(PAGE)
    other = Task(9, 1, "holder")
    run(space.machine, other, hold_for_write(1))
    space.machine.signals.put(1, "SIGKILL")
    with pytest.raises(OSError) as refused:
        space.munmap(heap, PAGE)
    assert refused.value.errno == EINTR


async def hold_for_write(mm: int) -> None:
    from zaplock.model.rwsem import down_write

    await down_write(("mmap_lock", mm))


@pytest.mark.parametrize("advice", [f.MADV_DONTNEED, f.MADV_FREE])
@pytest.mark.parametrize("release", ["6.15", "6.16", "6.17"])
def test_the_peak_is_noted_where_an_advice_comes_to_pages_and_not_where_it_is_refused(
    release: str, advice: int
) -> None:
    """Whether one gather is for each VMA or for all (43c4cfde7e37, 01bef02bf930)."""
    space = AddressSpace(design_of(release).design)
    space.machine.globals.put("peaks", 1)
    at = space.mmap(2 * PAGE)
    for page in (at, at + PAGE):
        run(space.machine, space.task, write_memory(space.cx, page, 7))
    assert run(space.machine, space.task, mlock(space.cx, at, PAGE)) == 0
    locked = madvise(space.cx, at, PAGE, advice)
    assert run(space.machine, space.task, locked) == -EINVAL
    assert space.counters().get("hiwater_rss", 0) == 0
    given = madvise(space.cx, at + PAGE, PAGE, advice)
    assert run(space.machine, space.task, given) == 0
    assert space.counters()["hiwater_rss"] == 2


@pytest.mark.parametrize("design", EVERY)
def test_a_driver_mapping_that_fails_half_way_is_undone(design: str) -> None:
    space = AddressSpace(design)
    device = new_file(space.machine, 7, "device", MIB, fails_after=3)
    before = space.counters()
    work = mmap(space.cx, 0, 8 * PAGE, f.PROT_READ, f.MAP_SHARED, device, 0)
    assert run(space.machine, space.task, work) == -EAGAIN
    assert space.maps() == []
    after = space.counters()
    marks = ("hiwater_vm", "hiwater_rss", "lock_seq")
    assert {k: v for k, v in after.items() if k not in marks} == {
        k: v for k, v in before.items() if k not in marks
    }
    space.check()


@pytest.mark.parametrize("design", EVERY)
def test_a_locked_range_is_taken_out_of_locked_vm(design: str) -> None:
    space = AddressSpace(design)
    heap = space.mmap(8 * PAGE, populate=True)
    space.mlock(heap, 8 * PAGE)
    assert space.counters()["locked_vm"] == 8
    space.munmap(heap, 4 * PAGE)
    assert space.counters()["locked_vm"] == 4
    space.check()


def hugetlb_vma_after_unmap(design: str, downgraded: bool) -> int:
    """Unmap a hugetlb mapping and return the flags that its VMA had when it was freed."""
    space = AddressSpace(design)
    pool = new_file(space.machine, 3, "hugetlb", 2 * f.PMD_SIZE)
    space.machine.globals.put("hugetlb_free", 2)
    flags = f.MAP_SHARED | f.MAP_HUGETLB
    address = space.mmap(f.PMD_SIZE, flags=flags, file=pool)
    space.write(address, 5)
    handle = run(space.machine, space.task, _find(address))
    seen: list[int] = []
    watch_flags(space, handle, seen)
    if downgraded:
        space.munmap(address, f.PMD_SIZE)
    else:
        space.mmap(f.PMD_SIZE, address, flags=f.MAP_PRIVATE | f.MAP_ANONYMOUS | f.MAP_FIXED)
    return seen[-1]


async def _find(address: int) -> int:
    return await find_vma(1, address)


def watch_flags(space: AddressSpace, handle: int, seen: list[int]) -> None:
    """Note the flags of a VMA at each of its writes."""
    put = space.machine.vmas.put

    class Watched(type(space.machine.vmas)):  # type: ignore[misc]
        __slots__ = ()

        def put(self, key: int, value: object) -> None:
            if key == handle and hasattr(value, "flags"):
                seen.append(value.flags)
            put(key, value)  # type: ignore[arg-type]

    space.machine.vmas.__class__ = Watched  # type: ignore[assignment]


def test_the_posted_rfc_never_clears_mayshare_for_its_other_callers() -> None:
    assert hugetlb_vma_after_unmap("rfc-v6-posted", downgraded=False) & f.VM_MAYSHARE
    assert not hugetlb_vma_after_unmap("rfc-v6", downgraded=False) & f.VM_MAYSHARE
    for design in EVERY:
        kept = hugetlb_vma_after_unmap(design, downgraded=True) & f.VM_MAYSHARE
        assert bool(kept) is not SHIPPED[design].clears_mayshare, design


def test_uprobes_are_private_copies_and_are_forgotten_with_their_mapping() -> None:
    space = AddressSpace("rfc-v6")
    text = space.file(4 * PAGE, "disk")
    address = space.mmap(4 * PAGE, prot=f.PROT_READ | f.PROT_EXEC, flags=f.MAP_PRIVATE, file=text)
    tracer = Cx(space.design, Task(2, 2, "perf"))
    assert run(space.machine, tracer.task, uprobe_register(tracer, text, PAGE)) == 1
    assert space.read(address + PAGE) == BREAKPOINT
    assert space.counters()["rss_anon"] == 1
    assert run(space.machine, tracer.task, uprobe_unregister(tracer, text, PAGE)) == 1
    assert space.read(address + PAGE) == 0
    run(space.machine, tracer.task, uprobe_register(tracer, text, PAGE))
    space.munmap(address, 4 * PAGE)
    assert space.machine.mm(1).count("recalc_uprobes") == 1
    space.check()


def test_without_a_monitor_an_unmap_event_would_wait_for_ever() -> None:
    space = AddressSpace("linux-6.18")
    heap = space.mmap(4 * PAGE)
    open_userfaultfd(space.machine, 1, tells_unmaps=True)
    handle = run(space.machine, space.task, _find(heap))
    run(space.machine, space.task, _register(handle))
    with pytest.raises(Violation) as stuck:
        space.munmap(heap, 4 * PAGE)
    assert stuck.value.invariant is Invariant.NO_DEADLOCK
    watcher = Cx(space.design, Task(3, 1, "monitor"))
    assert run(space.machine, watcher.task, monitor(watcher, 1, 9, 1)) == 1


async def _register(handle: int) -> None:
    await set_uffd(handle, 1, f.VM_UFFD_MISSING)


def test_truncation_takes_the_pages_from_every_mapping() -> None:
    space = AddressSpace()
    file = space.file(4 * PAGE)
    shared = space.mmap(4 * PAGE, flags=f.MAP_SHARED, file=file)
    other = space.mmap(4 * PAGE, flags=f.MAP_SHARED, file=file)
    space.write(shared + 3 * PAGE, 8)
    assert space.read(other + 3 * PAGE) == 8
    run(space.machine, space.task, truncate(space.cx, file, PAGE))
    with pytest.raises(OSError, match=f"signal {int(SIGBUS)}"):
        space.read(other + 3 * PAGE)
    space.check()


def test_readers_of_proc_see_what_is_mapped_and_resident() -> None:
    for design in EVERY:
        space = AddressSpace(design)
        heap = space.mmap(16 * PAGE)
        space.write(heap, 1)
        ps = Cx(space.design, Task(5, 5, "ps"))
        assert run(space.machine, ps.task, proc_pid_maps(ps, 1)) == 1
        assert run(space.machine, ps.task, proc_pid_smaps(ps, 1)) == 1


def test_direct_io_pins_a_page_reads_it_and_lets_it_go() -> None:
    space = AddressSpace()
    heap = space.mmap(PAGE)
    space.write(heap, 77)
    assert run(space.machine, space.task, copy_from_user(space.cx, heap)) == 77
    assert run(space.machine, space.task, copy_from_user(space.cx, heap + PAGE)) == -EFAULT
    space.check()


def test_a_handle_of_a_freed_vma_is_recognised() -> None:
    space = AddressSpace()
    heap = space.mmap(PAGE)
    handle = run(space.machine, space.task, _find(heap))
    space.munmap(heap, PAGE)
    with pytest.raises(Violation, match="which main freed") as used:
        run(space.machine, space.task, _read(handle))
    assert used.value.invariant is Invariant.USE_AFTER_FREE


async def _read(handle: int) -> object:
    return await read_vma(handle)


def test_320_gigabytes_are_a_handful_of_runs() -> None:
    space = AddressSpace("linux-4.9")
    huge = space.mmap(320 << 30, populate=True)
    assert space.counters()["pgtables_bytes"] > 320 << 21
    assert len(space.machine.mm(1).ptes) == 1
    space.munmap(huge, 320 << 30)
    assert space.counters()["pgtables_bytes"] == 0
    space.check()


def test_a_design_that_does_not_exist_is_a_clear_error(tmp_path: Path) -> None:
    own = tmp_path / "mine.py"
    own.write_text(
        "from dataclasses import replace\nfrom zaplock.designs.linux import LINUX_6_18\n"
        "MINE = replace(LINUX_6_18, name='mine')\nnot_one = 3\n"
    )
    assert load(f"{own}:MINE").name == "mine"
    for name in ("linux-9.9", f"{own}:not_one", f"{own}:absent", f"{tmp_path}/none.py:A"):
        with pytest.raises(UserError) as refused:
            load(name)
        assert "\n" not in str(refused.value)


def test_every_step_is_awaited() -> None:
    """A step that is called and not awaited would silently not happen."""
    source = Path(__file__).parent.parent / "src" / "zaplock" / "protocols"
    for path in source.glob("*.py"):
        module = __import__(f"zaplock.protocols.{path.stem}", fromlist=["x"])
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                called = getattr(node.value.func, "id", "")
                value = getattr(module, called, None)
                assert not isinstance(value, StepKind), f"{path.name}:{node.lineno} {called}"


CMDLINE = {"linux-4.9": 3, "linux-4.18": 2, "linux-5.10": 2, "linux-6.1": 2, "linux-6.18": 2}


@pytest.mark.parametrize(("design", "times"), CMDLINE.items())
def test_a_reader_of_cmdline_takes_the_lock_as_often_as_the_kernel(design: str, times: int) -> None:
    space = AddressSpace(design)
    space.machine.mm(1).counters.put("arg_start", space.mmap(PAGE))
    calls: list[LockCall] = []
    run(
        space.machine, Task(9, 2), space.design.proc_cmdline(Cx(space.design, Task(9, 2)), 1), calls
    )
    assert [call.action for call in calls] == ["down", "up"] * times
    assert not any(call.write for call in calls)


EXITS = {
    "linux-4.9": ("R", "R"),
    "linux-4.14": ("R", "R W"),
    "linux-4.17": ("R", "R W"),
    "linux-5.16": ("R", "R W"),
    "linux-5.17": ("R W", "R W"),
    "linux-6.0": ("R W", "R W"),
    "linux-6.1": ("R R W", "R R W"),
}


@pytest.mark.parametrize("design", EXITS)
@pytest.mark.parametrize("victim", [False, True])
def test_an_exit_takes_the_lock_for_write_only_where_the_kernel_does(
    design: str, victim: bool
) -> None:
    space = AddressSpace(design)
    space.mmap(PAGE)
    if victim:
        run(space.machine, Task(9, 2), mark_oom_victim_of(1))
    calls: list[LockCall] = []
    run(space.machine, space.task, exit_process(space.cx), calls)
    taken = [
        "RW"[call.write] for call in calls if call.action == "down" and call.name == "mmap_lock"
    ]
    assert " ".join(taken) == EXITS[design][victim]
    space.check()


async def mark_oom_victim_of(mm: int) -> bool:
    return await mark_oom_victim(mm)


def test_books_are_checked_for_real() -> None:
    space = AddressSpace()
    space.mmap(PAGE)
    space.machine.mm(1).add("total_vm", 1)
    with pytest.raises(Violation, match="total_vm is 2, a recount gives 1"):
        check(space.machine)


def test_a_counter_that_does_not_exist_is_no_zero() -> None:
    space = AddressSpace().machine.mm(1)
    with pytest.raises(KeyError, match="an mm has no counter 'lockd_vm'; it has total_vm"):
        space.count("lockd_vm")  # type: ignore[arg-type]
    with pytest.raises(KeyError, match="lockd_vm"):
        space.add("lockd_vm", 1)  # type: ignore[arg-type]


@pytest.mark.parametrize(("design", "left"), [("linux-6.18", 4), ("linux-7.3", 0)])
def test_what_dontunmap_leaves_in_locked_vm_is_in_the_one_set_of_books(
    design: str, left: int
) -> None:
    space = AddressSpace(design)
    start = space.mmap(4 * PAGE)
    space.mlock(start, 4 * PAGE)
    flags = f.MREMAP_MAYMOVE | f.MREMAP_DONTUNMAP
    moved = space.mremap(start, 4 * PAGE, 4 * PAGE, flags=flags)
    space.check()
    space.munmap(moved, 4 * PAGE)
    space.munmap(start, 4 * PAGE)
    space.check()
    assert space.counters()["locked_vm"] == left


def test_five_levels_reach_further_and_count_their_tables_alike() -> None:
    limits = ResourceLimits(
        task_size=f.TASK_SIZE_5_LEVELS, mmap_base=f.TASK_SIZE_5_LEVELS - (1 << 40)
    )
    machine = Machine(limits=limits, levels=5)
    machine.mm(1).add("users", 1)
    task = Task(1, 1)
    cx = Cx(load("linux-6.18"), task, limits=limits)
    work = mmap(cx, 1 << 50, PAGE, f.PROT_READ | f.PROT_WRITE, ANONYMOUS | f.MAP_POPULATE)
    assert run(machine, task, work) == 1 << 50
    assert machine.mm(1).count("pgtables_bytes") == 3 * PAGE
    assert len(machine.mm(1).tables) == 4
    check(machine)
    assert run(machine, task, cx.design.munmap(cx, 1 << 50, PAGE)) == 0
    assert machine.mm(1).count("pgtables_bytes") == 0
    check(machine)
