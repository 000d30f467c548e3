"""What a user's file imports to write a design, an operation, an invariant or a scenario.

These names stay: a file that uses nothing else goes on working with later versions (docs/authors.md
takes you through them, docs/examples/registered_buffers.py uses most). `zaplock.protocols` has more
to build on, function by function as Linux has it; that follows the kernel and may change with it.

Steps. `step` makes a function `(machine, task, *args)` one atomic transition that a protocol, an
`async` function of a `Cx`, awaits. Nobody else runs inside a step, anybody may between two.

    `Cx`        who runs: `cx.task`, `cx.mm`, `cx.design`, `cx.mmap_lock`
    `Step`      what is awaited; `SleepStep(ns)` lets time pass, `WaitStep` waits for something
    `Machine`   what a step changes: `m.mm(1).ptes`, `m.vmas`, ...; `m.new_handle(task, kind)`
                gives a name for what a task makes, which nothing had before
    `Task`      `task.tid`, `task.mm`, `task.name`, `task.cpu`
    `Violation` of an `Invariant`: what a step raises that finds one of zaplock's rules broken

State. `OwnCells(name, default)` is state of your own, a counter for instance: `read`, `write`,
`add` and `wait_for` are steps for protocols; `get` and `put` are for the bodies of steps.

Locks. `LockClass(name)` is a class of locks of your own, `cx.mmap_lock` the one of the address
space (a `Lock` is a name and a number). Steps for any of them: `down_read`, `down_read_killable`,
`down_read_trylock`, `down_write`, `down_write_killable`, `down_write_trylock`, `downgrade_write`,
`up_read`, `up_write`; `hand_over_read(lock, tid)` makes a shared hold another task's, who ends it.
The mmap_lock as the design takes it: `mmap_read_lock`, `mmap_read_lock_killable`,
`mmap_read_unlock`, `mmap_write_lock_killable`, `mmap_write_downgrade`, `mmap_write_unlock`. A lock
may also be one of ranges: `lock_range(lock, start, end, write)` waits for what overlaps and
conflicts, in the order of asking; `unlock_range` gives the same range back. One lock is either a
semaphore or a lock of ranges, not both.

Memory and system calls. `read_memory`, `write_memory`, `get_user_pages`, `put_page`; `mmap`,
`madvise`, `mprotect`, `mremap`, `brk`, `fork`, with the constants in `flags`; munmap and the fault
are the design's, `cx.design.munmap` and `cx.design.page_fault`.

Munmap in pieces, to put together otherwise: `munmap_addr_sanity`, `lookup_and_split`,
`prepare_events`, `count_locked`, `floor_and_ceiling`, `detach_vmas_to_be_unmapped`, `add_counter`,
`unmap_region`, `remove_vma_list`, `userfaultfd_unmap_complete`; `find_vma` and `read_vma`.

Addresses. `address_of(page)` is the address of a scenario's page and `page_of(address)` its
number; page 0 is the virtual page `BASE_PAGE`. `length_of(pages)` is in bytes, `page_align(length)`
rounds up to whole pages.

Designs. A `Design` is a record: `replace(SHIPPED["linux-6.18"], name="mine", munmap=...)`, or of
any release: `replace(linux("6.6.30"), ...)`.

Scenarios. `Scenario`, `InitialMapping` and `TaskSpec` say what is mapped and who does what;
`OwnOperation` and `OwnInvariant` are what you add; `Mutation` is what has to break it, by a `Rule`
on its steps such as `Skip("step")`, `SkipLock("class", write=True)` or
`Postpone("step", after="other")`.

Tasks. A scenario's `TaskSpec` may be of another address space (`mm`), be killed, go on for ever
(`daemon`): a kernel thread is a daemon that does an operation of your own. One that `begins` "when
started" waits for `start_task(name)`: a worker for work that is left to it; `task_id(name)` is its
id. In a `zaplock.Lab` any program is a thread, and `bystander(name, does=...)` one whose stalls are
counted; `system_call(cx, "munmap", work, address, length)` does `work` as a call that recordings
name.
"""

from __future__ import annotations

from dataclasses import replace

from zaplock.check.mutations import Mutation, Postpone, Skip, SkipLock
from zaplock.check.operations import length_of
from zaplock.check.own_operations import OwnInvariant, OwnOperation
from zaplock.check.scenarios import (
    BASE_PAGE,
    InitialMapping,
    Scenario,
    TaskSpec,
    address_of,
    page_of,
)
from zaplock.designs import SHIPPED, Cx, Design
from zaplock.designs.linux import linux
from zaplock.lab.bystanders import system_call
from zaplock.model import flags
from zaplock.model.filters import Rule
from zaplock.model.flags import page_align
from zaplock.model.machine import Machine
from zaplock.model.rwsem import (
    Lock,
    down_read,
    down_read_killable,
    down_read_trylock,
    down_write,
    down_write_killable,
    down_write_trylock,
    downgrade_write,
    hand_over_read,
    up_read,
    up_write,
)
from zaplock.model.spans import lock_range, unlock_range
from zaplock.model.step import SleepStep, Step, Task, WaitStep, step
from zaplock.model.violations import Invariant, Violation
from zaplock.model.vma import find_vma, read_vma
from zaplock.protocols.brk import brk
from zaplock.protocols.fork import fork
from zaplock.protocols.gup import get_user_pages, put_page
from zaplock.protocols.locking import (
    mmap_read_lock,
    mmap_read_lock_killable,
    mmap_read_unlock,
    mmap_write_downgrade,
    mmap_write_lock_killable,
    mmap_write_unlock,
)
from zaplock.protocols.madvise import madvise
from zaplock.protocols.mmap import mmap
from zaplock.protocols.mprotect import mprotect
from zaplock.protocols.mremap import mremap
from zaplock.protocols.munmap import (
    count_locked,
    lookup_and_split,
    munmap_addr_sanity,
    prepare_events,
)
from zaplock.protocols.own_state import LockClass, OwnCells
from zaplock.protocols.tasks import start_task, task_id
from zaplock.protocols.teardown import (
    add_counter,
    detach_vmas_to_be_unmapped,
    floor_and_ceiling,
    remove_vma_list,
    unmap_region,
)
from zaplock.protocols.user_access import read_memory, write_memory
from zaplock.protocols.userfaultfd import userfaultfd_unmap_complete

__all__ = [
    "BASE_PAGE",
    "SHIPPED",
    "Cx",
    "Design",
    "InitialMapping",
    "Invariant",
    "Lock",
    "LockClass",
    "Machine",
    "Mutation",
    "OwnCells",
    "OwnInvariant",
    "OwnOperation",
    "Postpone",
    "Rule",
    "Scenario",
    "Skip",
    "SkipLock",
    "SleepStep",
    "Step",
    "Task",
    "TaskSpec",
    "Violation",
    "WaitStep",
    "add_counter",
    "address_of",
    "brk",
    "count_locked",
    "detach_vmas_to_be_unmapped",
    "down_read",
    "down_read_killable",
    "down_read_trylock",
    "down_write",
    "down_write_killable",
    "down_write_trylock",
    "downgrade_write",
    "find_vma",
    "flags",
    "floor_and_ceiling",
    "fork",
    "get_user_pages",
    "hand_over_read",
    "length_of",
    "linux",
    "lock_range",
    "lookup_and_split",
    "madvise",
    "mmap",
    "mmap_read_lock",
    "mmap_read_lock_killable",
    "mmap_read_unlock",
    "mmap_write_downgrade",
    "mmap_write_lock_killable",
    "mmap_write_unlock",
    "mprotect",
    "mremap",
    "munmap_addr_sanity",
    "page_align",
    "page_of",
    "prepare_events",
    "put_page",
    "read_memory",
    "read_vma",
    "remove_vma_list",
    "replace",
    "start_task",
    "step",
    "system_call",
    "task_id",
    "unlock_range",
    "unmap_region",
    "up_read",
    "up_write",
    "userfaultfd_unmap_complete",
    "write_memory",
]
