"""From a scenario and a design to the closed system that the engines explore."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

import msgspec

from zaplock.check import operations
from zaplock.check.invariants import Promises
from zaplock.check.maps_snapshot import NotesForReaders, SnapshotPerVma
from zaplock.check.mutations import Acts, Mutant, as_mutated
from zaplock.check.operations import HEAP_PAGE, READS_WORDS
from zaplock.check.own_operations import kinds_of as operations_of
from zaplock.check.own_operations import watched
from zaplock.check.scenarios import (
    BASE_PAGE,
    NAMES,
    OLD_TAG,
    WHEN_STARTED,
    InitialMapping,
    Scenario,
    ScenarioOperation,
    TaskSpec,
    address_of,
    creators,
    parse_operation,
)
from zaplock.check.shortage import with_shortage
from zaplock.check.watched_invariants import (
    BoundedHold,
    DiskApart,
    ReturnMeansGone,
    leaving_no_trace,
)
from zaplock.designs.rules_read import observe, observed_design, observed_rwsem, rules_read
from zaplock.engines.checking.configuration import Configuration, Rules, TaskProgram
from zaplock.engines.checking.memory import with_memory
from zaplock.errors import ProtocolError, UserError
from zaplock.model import flags as f
from zaplock.model.files import fill_cache, link_vma, new_file
from zaplock.model.filters import filtered
from zaplock.model.machine import Machine
from zaplock.model.mm import ResourceLimits
from zaplock.model.page_fault import populate_range
from zaplock.model.pagetable import translate
from zaplock.model.step import Task
from zaplock.model.vma import Vma, account
from zaplock.protocols import tasks
from zaplock.protocols.address_locks import under
from zaplock.protocols.arch_hooks import hook_arch_unmap
from zaplock.protocols.design import Cx, Design, Protocol
from zaplock.protocols.lazy_flush import ticks
from zaplock.protocols.saved_vmas import save_vma
from zaplock.protocols.tasks import beginning, settle_beginning
from zaplock.protocols.userfaultfd import open_userfaultfd

SETUP = Task(0, 1, "setup", cpu=0)
FILE_PAGES = 8
DEVICE = 9
"""The number of the device file that `device_fails_after` makes."""
MAY = f.VM_MAYREAD | f.VM_MAYWRITE | f.VM_MAYEXEC
PROT_FLAGS = {"r": f.VM_READ, "rw": f.VM_READ | f.VM_WRITE, "none": 0}
KIND_FLAGS = {
    "anon": f.VM_ACCOUNT,
    "heap": f.VM_ACCOUNT,
    "uffd": f.VM_ACCOUNT | f.VM_UFFD_MISSING,
    "stack": f.VM_ACCOUNT | f.VM_GROWSDOWN,
    "private-file": 0,
    "file": f.VM_SHARED | f.VM_MAYSHARE,
    "slow-file": f.VM_SHARED | f.VM_MAYSHARE,
    "served-file": f.VM_SHARED | f.VM_MAYSHARE,
    "shared": f.VM_SHARED | f.VM_MAYSHARE,
    "hugetlb": f.VM_SHARED | f.VM_MAYSHARE | f.VM_HUGETLB,
    "pfn": f.VM_SHARED | f.VM_MAYSHARE | f.VM_PFNMAP | f.VM_PAT | f.VM_IO | f.VM_DONTEXPAND,
}
FILE_KINDS = {
    "file": "disk", "private-file": "disk", "slow-file": "disk", "served-file": "disk",
    "shared": "shmem", "hugetlb": "hugetlb",
    "pfn": "device",
}  # fmt: skip
SLOW_KINDS = ("slow-file", "served-file")
"""Files whose pages are not in the page cache unless they are populated."""


def configuration(scenario: Scenario, design: Design) -> Configuration:
    """Make what the engines explore of a scenario under a design.

    A mutant that never does or asks for what was changed in it makes the check vacuous.
    """
    acts, running = Acts(), observe(design)
    mutated = observed_design(design)
    if not isinstance(mutated, Mutant):
        return _as_designed(scenario, design, design, acts)
    system = _as_designed(scenario, design, running, acts)
    name = f"a step or a rule that {mutated.name} has changed"
    return replace(system, happens={name: partial(_shows, mutated, running, acts)})


ASKED_BY_ENGINES = frozenset({"rwsem", "lazy_flush"})
"""The rules that are in force without a protocol that asks for them."""


def _shows(mutated: Mutant, running: Design, acts: Acts) -> bool:
    """Return whether a mutant's filter has done anything, or a rule was asked for that is other."""
    return acts.seen or not {*mutated.changed}.isdisjoint(rules_read(running) | ASKED_BY_ENGINES)


def _as_designed(scenario: Scenario, design: Design, running: Design, acts: Acts) -> Configuration:
    """Make the system; its protocols run under `running`, which is the design or stands for it."""
    if scenario.part:
        from zaplock.check.below_the_grain import part_configuration

        return watched(part_configuration(scenario, running), scenario)
    if not scenario.task:
        raise UserError(f"scenario {scenario.name!r} has no tasks; give it some [[task]]")
    limits = limits_of(scenario)
    programs = tuple(
        _program(number, spec, running, scenario, limits, acts)
        for number, spec in enumerate(scenario.task)
    )
    build = partial(build_machine, scenario, limits)
    tasks = tuple(program.task for program in programs)
    promises = Promises(scenario, tasks, build, design.tombstones or design.cuts, design.lazy_flush)
    system = Configuration(
        build,
        programs,
        Rules(scenario.fair, observed_rwsem(design)),
        always=promises.always(),
        at_task_end=promises.at_task_end(),
        at_end=promises.at_end(),
        sometimes=promises.sometimes(),
        sometimes_at_end=promises.sometimes_at_end(),
    )
    system = _with_words(system, scenario)
    if design.lazy_flush:
        system = with_ticks(system)
    if scenario.failing_allocations:
        system = with_shortage(system, scenario.failing_allocations)
    return watched(system, scenario)


def with_ticks(system: Configuration) -> Configuration:
    """Return the system with the ticks of its CPUs, of each address space, as daemons."""
    last = max(program.task.tid for program in system.programs)
    spaces = sorted({program.task.mm for program in system.programs})
    daemons = [
        TaskProgram(Task(last + at, mm, f"ticks of mm {mm}"), partial(ticks, mm), daemon=True)
        for at, mm in enumerate(spaces, 1)
    ]
    return replace(system, programs=(*system.programs, *daemons))


def _with_words(system: Configuration, scenario: Scenario) -> Configuration:
    """Put the words that the tasks reach into memory of the scenario's kind."""
    known = operations_of(scenario)
    named = [[parse_operation(text) for text in spec.do] for spec in scenario.task]
    words = {*scenario.words, *operations.words_of(chain.from_iterable(named), known)}
    if not words:
        if scenario.memory == "sc":
            return system
        raise UserError(
            f"scenario {scenario.name!r}: memory {scenario.memory!r} changes nothing, since no "
            "task reads or writes a word; name those that your design uses: words = [...]"
        )
    reading = [[operation for operation in does if operation.name in READS_WORDS] for does in named]
    readers = {
        str(program.task): tuple(sorted({*scenario.words, *operations.words_of(does, known)}))
        for program, does in zip(system.programs, reading)
    }
    return with_memory(system, scenario.memory, dict.fromkeys(words, 0), readers)


def limits_of(scenario: Scenario) -> ResourceLimits:
    """Return small limits, so that a scenario can reach them."""
    small = ResourceLimits(max_map_count=scenario.max_map_count, stack_guard_gap=1 << 12)
    if scenario.room is None:
        return small
    low, high = map(address_of, scenario.room)
    return msgspec.structs.replace(small, mmap_min_addr=low, mmap_base=high)


def _program(
    number: int,
    spec: TaskSpec,
    design: Design,
    scenario: Scenario,
    limits: ResourceLimits,
    acts: Acts,
) -> TaskProgram:
    name = spec.name or NAMES[number]
    task = Task(number + 1, spec.mm, name, cpu=number + 1)
    cx = Cx(design, task, scenario.grain, limits, scenario.failing_allocations > 0)
    steps = [parse_operation(text) for text in spec.do]
    files = {mapping.file for mapping in scenario.map if mapping.kind in FILE_KINDS}
    files |= {DEVICE} if scenario.device_fails_after is not None else set()
    spaces = {task.mm for task in scenario.task} | {mapping.mm for mapping in scenario.map}
    spaces |= {1, *_children(scenario)}
    known = operations_of(scenario)
    kinds = tuple(operations.kind_of(operation, known) for operation in steps)
    for operation, kind in zip(steps, kinds):
        operations.check(operation, kind, files, spaces)

    def start(operation: ScenarioOperation, kind: operations.OperationKind) -> Protocol:
        return watched_protocol(cx, operation, kind, scenario, acts)

    created = creators(scenario)

    async def once() -> tuple[int, ...]:
        results: list[int] = []
        if spec.begins and not await beginning(name):
            return ()
        for at, (operation, kind) in enumerate(zip(steps, kinds)):
            results.append(a_number(await start(operation, kind), operation, design))
            if (name, at) in created:
                await settle_beginning(created[name, at], results[-1] >= 0)
        return tuple(results)

    async def again() -> None:
        at = 0
        while True:
            given = await start(steps[at], kinds[at])  # alone: a loop closes at a bare `await`
            a_number(given, steps[at], design)
            del given
            at = (at + 1) % len(steps)

    body: Callable[[], Coroutine[Any, Any, Any]] = again if spec.again else once
    return TaskProgram(task, body, spec.daemon or spec.again)


def watched_protocol(
    cx: Cx,
    operation: ScenarioOperation,
    kind: operations.OperationKind,
    scenario: Scenario,
    acts: Acts,
) -> Protocol:
    """Start an operation, with what its design does wrong and what watches it on its way."""
    design, task = cx.design, cx.task
    started = kind.start(cx, operation.numbers)
    if not inspect.iscoroutine(started):
        raise ProtocolError(
            f"operation {operation.name!r} under {design.name}: what it runs gave {started!r} and "
            "no protocol; write `async def`, and call what is one"
        )
    protocol = under(design, started)
    protocol = as_mutated(observed_design(design), protocol, operation.name, acts)
    if scenario.bounded_hold:
        protocol = filtered(protocol, BoundedHold(task))
    if scenario.disk_apart:
        protocol = filtered(protocol, DiskApart(task, cx.mmap_lock))
    if scenario.failing_allocations and kind.leaves_no_trace:
        brk = operation.name == "brk"  # which returns the old end where it fails
        wanted = address_of(HEAP_PAGE + operation.numbers[0]) if brk else None
        protocol = leaving_no_trace(protocol, cx, wanted)
    pages = operations.emptied(operation, kind)
    if design.tombstones and pages is not None:
        protocol = filtered(protocol, ReturnMeansGone(task, *pages))
    if operation.name == "maps":
        return filtered(protocol, SnapshotPerVma(operation.numbers[0], scenario.shown_once))
    if reads_maps(scenario):
        return filtered(protocol, NotesForReaders())
    return protocol


def a_number(result: Any, operation: ScenarioOperation, design: Design) -> int:
    """Return what an operation has returned; raises ProtocolError where that is no number."""
    if type(result) is not int:
        raise ProtocolError(
            f"operation {operation.name!r} under {design.name} returned {result!r}: return a "
            "number, 0 or more for what was done, a negative errno for what was not"
        )
    return result


def reads_maps(scenario: Scenario) -> bool:
    """Return whether a task of a scenario reads /proc/PID/maps."""
    texts = (text for spec in scenario.task for text in spec.do)
    return any(parse_operation(text).name == "maps" for text in texts)


def build_machine(scenario: Scenario, limits: ResourceLimits) -> Machine:
    """Make the machine in the scenario's initial state."""
    m = Machine(limits=limits, tracks_tlbs=True, gather_pages=scenario.batch)
    mms = {spec.mm for spec in scenario.task} | {mapping.mm for mapping in scenario.map}
    mms |= {1, *_children(scenario)}
    _touch_containers(m, scenario, mms)
    for mm in mms:
        leaving = sum(
            spec.mm == mm and "exit" in spec.do and not spec.begins for spec in scenario.task
        )
        if mm not in _children(scenario):
            m.mm(mm).counters.put("users", max(1, leaving))
    m.globals.put("hugetlb_free", 4)
    for mapping in scenario.map:
        _map(m, mapping)
    if scenario.brk is not None:
        m.mm(1).counters.put("brk", address_of(scenario.brk))
    if scenario.device_fails_after is not None:
        new_file(m, DEVICE, "device", 1 << 30, fails_after=scenario.device_fails_after)
    if scenario.arch_unmap is not None:
        low, high, first, last = map(address_of, scenario.arch_unmap)
        hook_arch_unmap(m, 1, (low, high, first, last))
    if scenario.cmdline is not None:
        m.mm(1).counters.put("arg_start", address_of(scenario.cmdline))
    for number, spec in enumerate(scenario.task):
        _prepare_task(m, number, spec)
    return m


def _children(scenario: Scenario) -> set[int]:
    forks = (parse_operation(text) for spec in scenario.task for text in spec.do)
    return {op.numbers[0] for op in forks if op.name in ("fork", "fork-see")}


def _touch_containers(m: Machine, scenario: Scenario, mms: set[int]) -> None:
    # A container that a step makes on its way would cost that step a second run.
    for mm in mms:
        m.mm(mm)
    for number in range(len(scenario.task)):
        m.tlb(number + 1)
        m.walk_cache(number + 1)
    for number, spec in enumerate(scenario.task):
        if spec.begins:
            m.cells(tasks.BEGUN)
            if spec.begins == WHEN_STARTED:
                m.cells(tasks.IDS).put(spec.name or NAMES[number], number + 1)
    for mapping in scenario.map:
        if mapping.kind in FILE_KINDS:
            m.page_cache(mapping.file)
            m.i_mmap(mapping.file)


def _prepare_task(m: Machine, number: int, spec: TaskSpec) -> None:
    task = Task(number + 1, spec.mm, cpu=number + 1)
    if spec.killed:
        m.signals.put(task.tid, "SIGKILL")
    for page in spec.cached:
        if not translate(m, task, m.mm(spec.mm), BASE_PAGE + page, True):
            translate(m, task, m.mm(spec.mm), BASE_PAGE + page, False)


def _map(m: Machine, mapping: InitialMapping) -> None:
    first, last = mapping.pages
    start, end = address_of(first), address_of(last)
    flags = PROT_FLAGS[mapping.prot] | KIND_FLAGS[mapping.kind] | MAY
    flags |= f.VM_LOCKED if mapping.locked else 0
    file = mapping.file if mapping.kind in FILE_KINDS else 0
    if file:
        _make_file(m, mapping, file, last - first)
    space = m.mm(mapping.mm)
    uffd = operations.UFFD_CONTEXT if mapping.kind == "uffd" else 0
    anonymous = not file
    handle = m.new_handle(SETUP, "vma")
    pgoff = 0 if file else start >> f.PAGE_SHIFT
    anon_vma = m.new_handle(SETUP, "anon_vma") if anonymous and mapping.populated else 0
    vma = Vma(mapping.mm, start, end, flags, pgoff, file, anon_vma, uffd=uffd)
    m.vmas.put(handle, vma)
    space.tree.put(start, handle)
    space.add("map_count", 1)
    account(space, flags, last - first)
    if file:
        link_vma(m, file, handle)
        if mapping.kind == "pfn":
            save_vma(m, file, handle)
    if flags & f.VM_ACCOUNT:
        m.commit(last - first)
    if mapping.locked:
        space.add("locked_vm", last - first)
    if mapping.kind == "heap":
        space.counters.put("start_brk", start)
        space.counters.put("brk", end)
    if uffd:
        open_userfaultfd(m, operations.UFFD_CONTEXT, True)
    if mapping.populated:
        _populate(m, vma, *mapping.populated)


def _make_file(m: Machine, mapping: InitialMapping, file: int, pages: int) -> None:
    if file not in m.files:
        slow = mapping.kind in SLOW_KINDS
        new_file(
            m, file, FILE_KINDS[mapping.kind], max(pages, FILE_PAGES) << f.PAGE_SHIFT,
            read_ns=int(slow), served=mapping.kind == "served-file",
        )  # fmt: skip


def _populate(m: Machine, vma: Vma, first: int, last: int) -> None:
    low, high = BASE_PAGE + first, BASE_PAGE + last
    write = bool(vma.flags & f.VM_WRITE)
    plain = Vma(
        vma.mm, vma.start, vma.end, vma.flags & ~f.VM_UFFD_FLAGS, vma.pgoff, vma.file, vma.anon_vma
    )
    if vma.flags & f.VM_PFNMAP:
        _map_frames_of_device(m, vma, low, high)
        return
    if vma.file and not vma.flags & f.VM_HUGETLB:
        slow = m.files[vma.file].read_ns
        first_page = vma.pgoff_of(low << f.PAGE_SHIFT) if slow else vma.pgoff
        last_page = vma.pgoff_of(high << f.PAGE_SHIFT) if slow else vma.pgoff + vma.nr_pages
        fill_cache(m, SETUP, vma.file, first_page, last_page)
    if populate_range(m, SETUP, plain, low, high, write):
        raise UserError(f"pages {first} to {last} of the initial map can't be populated")
    for vpn in range(low, high):
        pte = m.mm(vma.mm).ptes.at(vpn)
        if pte is not None and pte.kind in ("anon", "file", "shmem"):
            frame = vpn + pte.delta
            m.content.set(frame, frame + 1, OLD_TAG + vpn - BASE_PAGE)


def _map_frames_of_device(m: Machine, vma: Vma, low: int, high: int) -> None:
    from zaplock.model.mm import Pte
    from zaplock.model.pagetable import alloc_tables, install

    alloc_tables(m, SETUP, m.mm(vma.mm), low, high)
    pte = Pte("pfn", (1 << 33) - low, bool(vma.flags & f.VM_WRITE))
    install(m, SETUP, m.mm(vma.mm), low, high, pte)
