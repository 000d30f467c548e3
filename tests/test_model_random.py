"""Random programs under every design: after each operation everything is recounted."""

import random

import pytest

from zaplock.designs import SHIPPED, Cx, Design
from zaplock.designs.linux import LINUX_6_18
from zaplock.engines.sequential import run
from zaplock.model import flags as f
from zaplock.model.check import check
from zaplock.model.files import new_file
from zaplock.model.machine import Machine
from zaplock.model.mm import ResourceLimits
from zaplock.model.step import Task
from zaplock.protocols.brk import brk
from zaplock.protocols.exit import exit_process
from zaplock.protocols.fork import fork
from zaplock.protocols.madvise import FLAG_ADVICE, POPULATES, ZAPS, madvise
from zaplock.protocols.mlock import mlock, mlockall, munlock, munlockall
from zaplock.protocols.mmap import mmap
from zaplock.protocols.mprotect import mprotect
from zaplock.protocols.mremap import mremap
from zaplock.protocols.rmap import truncate
from zaplock.protocols.user_access import read_memory, write_memory

BASE = 0x1000_0000
PAGES = 24
PAGE = f.PAGE_SIZE
PROTS = (0, 1, 3, 3, 3, 5, 7)
ADVICE = (*FLAG_ADVICE, *ZAPS, *POPULATES)


def place(rng: random.Random) -> int:
    return BASE + rng.randrange(PAGES) * PAGE + (rng.random() < 0.03)


def length(rng: random.Random) -> int:
    return rng.choice((1, 1, 2, 3, 4, 6, 8)) * PAGE - (100 if rng.random() < 0.1 else 0)


def mmap_flags(rng: random.Random) -> tuple[int, int]:
    flags = rng.choice((f.MAP_PRIVATE, f.MAP_PRIVATE, f.MAP_SHARED)) | f.MAP_FIXED
    file = rng.choice((0, 0, 1, 2))
    if not file:
        flags |= f.MAP_ANONYMOUS
    for extra in (f.MAP_POPULATE, f.MAP_LOCKED, f.MAP_NORESERVE, f.MAP_GROWSDOWN):
        flags |= extra if rng.random() < 0.1 else 0
    if rng.random() < 0.1:
        flags |= f.MAP_FIXED_NOREPLACE
    return flags, file


class Program:
    """A process that does one random thing after another."""

    def __init__(self, design: Design, seed: int) -> None:
        self.rng = random.Random(seed)
        self.m = Machine(
            limits=ResourceLimits(stack_guard_gap=4 * PAGE), tracks_tlbs=True, gather_pages=8
        )
        self.task = Task(1, 1, "program")
        self.cx = Cx(design, self.task, limits=self.m.limits)
        new_file(self.m, 1, "shmem", 8 * PAGE)
        new_file(self.m, 2, "disk", 8 * PAGE)
        space = self.m.mm(1)
        space.counters.put("users", 1)
        for counter in ("start_brk", "brk"):
            space.counters.put(counter, BASE + 64 * PAGE)
        self.children = 0

    def step(self) -> tuple[str, int]:
        rng, cx = self.rng, self.cx
        kind = rng.choice(
            ("mmap", "mmap", "mmap", "munmap", "munmap", "mremap", "mprotect", "madvise", "mlock",
             "munlock", "write", "write", "write", "read", "read", "brk", "truncate", "mlockall",
             "fork"))  # fmt: skip
        if kind == "mmap":
            flags, file = mmap_flags(rng)
            offset = rng.randrange(4) * PAGE if file else 0
            work = mmap(cx, place(rng), length(rng), rng.choice(PROTS), flags, file, offset)
        elif kind == "munmap":
            work = cx.design.munmap(cx, place(rng), length(rng))
        elif kind == "mremap":
            flags = rng.choice((0, 1, 1, 3, 3, 5))
            work = mremap(cx, place(rng), length(rng), length(rng), flags, place(rng))
        elif kind == "mprotect":
            work = mprotect(cx, place(rng), length(rng), rng.choice(PROTS))
        elif kind == "madvise":
            work = madvise(cx, place(rng), length(rng), rng.choice(ADVICE))
        elif kind == "mlock":
            work = mlock(cx, place(rng), length(rng), rng.randrange(2))
        elif kind == "munlock":
            work = munlock(cx, place(rng), length(rng))
        elif kind == "write":
            work = write_memory(cx, place(rng), rng.randrange(1, 1000))
        elif kind == "read":
            work = read_memory(cx, place(rng))
        elif kind == "brk":
            work = brk(cx, BASE + (64 + rng.randrange(8)) * PAGE + rng.randrange(3))
        elif kind == "truncate":
            work = truncate(cx, rng.choice((1, 2)), rng.randrange(9) * PAGE)
        elif kind == "mlockall":
            work = mlockall(cx, rng.choice((1, 2, 3, 7))) if rng.random() < 0.5 else munlockall(cx)
        else:
            return "fork", self.fork_and_exit()
        return kind, run(self.m, self.task, work)

    def fork_and_exit(self) -> int:
        self.children += 1
        mm = 100 + self.children
        result = run(self.m, self.task, fork(self.cx, mm))
        check(self.m)
        child = Task(50 + self.children, mm, "child")
        run(self.m, child, exit_process(Cx(self.cx.design, child, limits=self.m.limits)))
        return result


@pytest.mark.parametrize("design", SHIPPED.values(), ids=lambda d: d.name)
@pytest.mark.parametrize("seed", range(3))
def test_the_books_balance_after_every_operation(design: Design, seed: int) -> None:
    program = Program(design, seed)
    seen = set()
    for _ in range(400):
        seen.add((lambda kind, result: (kind, result if result < 0 else 0))(*program.step()))
        check(program.m)
    kinds = {kind for kind, _ in seen}
    assert {"mmap", "munmap", "mremap", "write", "fork"} <= {k for k, r in seen if r == 0} <= kinds
    run(program.m, program.task, exit_process(program.cx))
    check(program.m)
    space = program.m.mm(1)
    assert not space.tree.data
    assert not space.ptes.data
    assert space.count("pgtables_bytes") == 0
    assert program.m.globals.get("committed_as", 0) == 0


def test_the_books_balance_where_a_kernel_forgets_a_charge() -> None:
    """6.18: what a moving mremap cuts off stays committed; shared memory is charged by its file."""
    machine, task = Machine(), Task(1, 1)
    cx = Cx(LINUX_6_18, task)
    machine.mm(1).add("users", 1)
    run(machine, task, mmap(cx, 0x10000000, 4 * 4096, 3, 0x32))
    moved = run(machine, task, mremap(cx, 0x10000000, 4 * 4096, 4096, 3, 0x20000000))
    run(machine, task, mmap(cx, 0x30000000, 4 * 4096, 3, 0x31))
    assert moved == 0x20000000
    assert machine.globals["committed_as"] == 4 + 4
    check(machine)
