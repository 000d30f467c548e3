"""Below the grain of the address space: the semaphore's words and queue, the tree's nodes."""

from __future__ import annotations

from zaplock.check import maple_nodes, rwsem_counter, rwsem_queue, vma_refcount
from zaplock.check.rwsem_order import leaving_writer_and_reader
from zaplock.check.scenarios import Scenario
from zaplock.engines.checking.configuration import Configuration, TaskProgram
from zaplock.errors import UserError
from zaplock.model.machine import Machine
from zaplock.model.rwsem import RwsemPolicy
from zaplock.model.step import Task
from zaplock.protocols.design import Design, Protocol

OVERTAKERS = {"rwsem-writers": (True,), "rwsem-readers": (False, False)}
"""Who asks for the lock again and again, for write or not, while a writer and a reader wait."""


def part_configuration(scenario: Scenario, design: Design) -> Configuration:
    """Make the closed system of a scenario that is no address space."""
    if scenario.part == "rwsem":
        return reader_count(design.rwsem.counts_first)
    if scenario.part in ("rwsem-acquire", "rwsem-sleep"):
        return leaving_writer_and_reader(design, scenario.memory, scenario.part == "rwsem-sleep")
    if scenario.part == "stack-rot":
        return stack_rot(design)
    if scenario.part in OVERTAKERS:
        return overtaken(OVERTAKERS[scenario.part], design.rwsem)
    if scenario.part == "rwsem-leavers":
        return leavers(design.rwsem)
    if scenario.part == "vma-reuse":
        return vma_reuse(design)
    raise UserError(f"scenario {scenario.name!r}: there is no part {scenario.part!r}")


def stack_rot(design: Design) -> Configuration:
    """A stack grows; another task looks an address up at the same time.

    Kernels before 6.1 change their rbtree in place, so nothing is freed when a stack grows.
    """
    grower, reader = Task(1, 1, "grow"), Task(2, 1, "lookup")
    maple = design.tree == "maple"
    under_write = design.stack_growth == "write"

    def build() -> Machine:
        m = Machine()
        maple_nodes.plant(m, ((0, 4), (12, 16)))
        return m

    def grow() -> Protocol:
        if maple:
            return maple_nodes.expand_stack(11, under_write)
        return maple_nodes.find_vma(11)

    return Configuration(
        build, (TaskProgram(grower, grow), TaskProgram(reader, lambda: maple_nodes.find_vma(13)))
    )


def reader_count(counts_first: bool) -> Configuration:
    """A writer inside leaves; two readers queue for it, a second writer spins."""
    tasks = [Task(number + 1, 1, name) for number, name in enumerate(
        ("leaving writer", "reader", "other reader", "spinning writer")
    )]  # fmt: skip

    def build() -> Machine:
        m = Machine()
        rwsem_counter.held_by_writer(m, 1, ((2, False), (3, False)))
        return m

    return Configuration(
        build,
        (
            TaskProgram(tasks[0], lambda: rwsem_counter.leaving_writer(counts_first)),
            TaskProgram(tasks[1], lambda: rwsem_counter.queued_reader(tasks[1], counts_first)),
            TaskProgram(tasks[2], lambda: rwsem_counter.queued_reader(tasks[2], counts_first)),
            TaskProgram(tasks[3], lambda: rwsem_counter.spinning_writer(counts_first)),
        ),
    )


def overtaken(others: tuple[bool, ...], policy: RwsemPolicy) -> Configuration:
    """A writer and a reader ask once for a lock that others ask for again and again."""
    programs = [
        _holder(number, name, for_write, policy)
        for number, (name, for_write) in enumerate((("writer", True), ("reader", False)), 1)
    ]
    for number, for_write in enumerate(others, len(programs) + 1):
        kind = "writer" if for_write else "reader"
        programs.append(_holder(number, f"{kind} {number}, again", for_write, policy, True))
    return Configuration(Machine, tuple(programs))


def _holder(
    tid: int, name: str, for_write: bool, policy: RwsemPolicy, again: bool = False
) -> TaskProgram:
    task = Task(tid, 1, name)
    hold = rwsem_queue.hold_again_and_again if again else rwsem_queue.hold_once
    return TaskProgram(task, lambda: hold(task, for_write, policy), daemon=again)


def leavers(policy: RwsemPolicy) -> Configuration:
    """A writer holds the lock; three wait, of whom two are killed: first, in the middle or last."""
    names = ("holder", "killed writer", "killed reader", "writer")
    tasks = [Task(number, 1, name) for number, name in enumerate(names, 1)]

    def build() -> Machine:
        m = Machine()
        rwsem_queue.write(m, rwsem_queue.QueuedRwsem(writer=1))
        return m

    return Configuration(
        build,
        (
            TaskProgram(tasks[0], lambda: rwsem_queue.end_hold(True, policy)),
            TaskProgram(tasks[1], lambda: rwsem_queue.hold_unless_killed(tasks[1], True, policy)),
            TaskProgram(tasks[2], lambda: rwsem_queue.hold_unless_killed(tasks[2], False, policy)),
            TaskProgram(tasks[3], lambda: rwsem_queue.hold_once(tasks[3], True, policy)),
        ),
    )


def vma_reuse(design: Design) -> Configuration:
    """A VMA is looked up and unmapped; another process takes its memory, unmaps and exits."""
    tasks = [Task(1, 1, "lookup"), Task(2, 1, "munmap"), Task(3, 2, "other process")]
    reuse = design.vma_reuse

    def build() -> Machine:
        m = Machine()
        vma_refcount.begin(m)
        return m

    ours, shared = vma_refcount.OURS, vma_refcount.SHARED
    return Configuration(
        build,
        (
            TaskProgram(tasks[0], lambda: vma_refcount.look_up(design.vma_locks, reuse)),
            TaskProgram(tasks[1], lambda: vma_refcount.unmap(ours, shared, reuse)),
            TaskProgram(tasks[2], lambda: vma_refcount.map_unmap_and_exit(reuse)),
        ),
    )
