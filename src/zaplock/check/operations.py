"""What the tasks of a scenario can do: the protocols, by the names that scenarios use.

Numbers are pages (see `check.scenarios`) and counts of pages. Every operation also says which
ranges it promises to have emptied when it returns, so that `check.invariants` can look.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from zaplock.check.scenarios import (
    BASE_PAGE,
    MOST_PAGES,
    PAGE_SHIFT,
    ScenarioOperation,
    address_of,
)
from zaplock.errors import UserError, no_such
from zaplock.model import words
from zaplock.model.flags import (
    MADV_DONTNEED,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_FIXED_NOREPLACE,
    MAP_PRIVATE,
    MAP_SHARED,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PROT_NONE,
    PROT_READ,
    PROT_WRITE,
)
from zaplock.model.step import Step, Task
from zaplock.protocols import (
    brk,
    driver,
    exit,
    fork,
    gup,
    madvise,
    major_fault,
    mmap,
    mprotect,
    mremap,
    mseal,
    pgste,
    proc,
    rmap,
    uprobes,
    user_access,
)
from zaplock.protocols.design import Cx, Protocol
from zaplock.protocols.served_calls import SERVED
from zaplock.protocols.tasks import clone_thread
from zaplock.protocols.userfaultfd import monitor
from zaplock.system_calls import SYSTEM_CALLS

STILL_THERE = -1

UFFD_CONTEXT = 1
"""The one userfaultfd of a scenario."""

HEAP_PAGE = 64
"""Where a scenario's heap begins."""

PROTECTIONS = {0: PROT_NONE, 1: PROT_READ, 3: PROT_READ | PROT_WRITE}


def length_of(pages: int) -> int:
    """Return the bytes of so many pages."""
    return pages << PAGE_SHIFT


@dataclass(frozen=True)
class OperationKind:
    """An operation: how to run it, its arguments by name, and whether it empties its range.

    signals: is it user code's access, which a signal may end? Others return errnos; -11 is either.
    leaves_no_trace: it promises that nothing has changed when it fails for want of memory.
    """

    run: Callable[..., Protocol]
    arguments: tuple[str, ...]
    summary: str
    empties: bool = False
    signals: bool = False
    leaves_no_trace: bool = False

    def start(self, cx: Cx, numbers: Sequence[int]) -> Protocol:
        """Return the started protocol."""
        return self.run(cx, *numbers)


def _munmap(cx: Cx, page: int, pages: int) -> Protocol:
    return cx.design.munmap(cx, address_of(page), length_of(pages))


def _mmap_fixed(cx: Cx, page: int, pages: int) -> Protocol:
    flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED
    prot = PROT_READ | PROT_WRITE
    return mmap.mmap(cx, address_of(page), length_of(pages), prot, flags)


async def _mmap_noreplace(cx: Cx, page: int, pages: int) -> int:
    flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE
    prot = PROT_READ | PROT_WRITE
    return min(0, await mmap.mmap(cx, address_of(page), length_of(pages), prot, flags))


async def _write_read(cx: Cx, page: int, tag: int) -> int:
    written = await user_access.write_memory(cx, address_of(page), tag)
    return await user_access.read_memory(cx, address_of(page)) if written >= 0 else written


async def _mmap_anywhere(cx: Cx, pages: int) -> int:
    flags = MAP_PRIVATE | MAP_ANONYMOUS
    placed = await mmap.mmap(cx, 0, length_of(pages), PROT_READ | PROT_WRITE, flags)
    return placed if placed < 0 else (placed >> PAGE_SHIFT) - BASE_PAGE


async def _mmap_once_gone(cx: Cx, page: int, pages: int) -> int:
    if await user_access.read_memory(cx, address_of(page)) >= 0:
        return STILL_THERE
    return await _mmap_anywhere(cx, pages)


async def _mmap_device(cx: Cx, page: int, pages: int, file: int) -> int:
    flags = MAP_SHARED | MAP_FIXED
    prot = PROT_READ | PROT_WRITE
    return await mmap.mmap(cx, address_of(page), length_of(pages), prot, flags, file)


def _dontneed(cx: Cx, page: int, pages: int) -> Protocol:
    return madvise.madvise(cx, address_of(page), length_of(pages), MADV_DONTNEED)


def _mremap(cx: Cx, page: int, pages: int, new_pages: int) -> Protocol:
    return mremap.mremap(cx, address_of(page), length_of(pages), length_of(new_pages))


def _mremap_move(cx: Cx, page: int, pages: int, new_page: int) -> Protocol:
    flags = MREMAP_MAYMOVE | MREMAP_FIXED
    length = length_of(pages)
    return mremap.mremap(cx, address_of(page), length, length, flags, address_of(new_page))


def _mprotect(cx: Cx, page: int, pages: int, prot: int) -> Protocol:
    return mprotect.mprotect(cx, address_of(page), length_of(pages), PROTECTIONS[prot])


def word_name(number: int) -> str:
    """Return what a word is called that operations know by its number."""
    return f"word {number}"


async def _returns(step: Step[int | None]) -> int:
    return await step or 0


def _word(make: Callable[..., Step[int | None]]) -> Callable[..., Protocol]:
    """Make an operation on a word of one step."""
    return lambda cx, number, *values: _returns(make(word_name(number), *values))


def _barrier(make: Callable[[], Step[None]]) -> Callable[[Cx], Protocol]:
    return lambda cx: _returns(make())


async def _serve(cx: Cx, file: int, mm: int) -> int:
    while True:
        page = await major_fault.read_request(file)
        await cx.design.proc_cmdline(cx, mm)
        await major_fault.answer_read(file, page)


async def _fork_see(cx: Cx, child: int, page: int, pages: int) -> int:
    if result := await fork.fork(cx, child):
        return result
    as_child = replace(cx, task=Task(cx.task.tid, child, cx.task.name, cx.task.cpu))
    seen = 0
    for at in range(page, page + pages):
        seen += await user_access.read_memory(as_child, address_of(at)) >= 0
    return seen


async def _revoke(cx: Cx, file: int) -> int:
    await rmap.unmap_mapping_range(cx, file, 0, 1 << 40)
    return 0


KINDS: dict[str, OperationKind] = {
    "munmap": OperationKind(
        _munmap, ("page", "pages"), "the munmap system call", empties=True, leaves_no_trace=True
    ),
    "mmap-fixed": OperationKind(
        _mmap_fixed,
        ("page", "pages"),
        "mmap(MAP_FIXED) over what is there",
        True,
        leaves_no_trace=True,
    ),
    "mmap-noreplace": OperationKind(
        _mmap_noreplace,
        ("page", "pages"),
        "mmap(MAP_FIXED_NOREPLACE): 0, or EEXIST where something is mapped",
        leaves_no_trace=True,
    ),
    "mmap-anywhere": OperationKind(
        _mmap_anywhere,
        ("pages",),
        "mmap where there is room; gives the page where it went",
        leaves_no_trace=True,
    ),
    "mmap-once-gone": OperationKind(
        _mmap_once_gone,
        ("page", "pages"),
        "read a page; if it is gone, mmap where there is room, else give -1",
    ),
    "mmap-device": OperationKind(
        _mmap_device, ("page", "pages", "file"), "map a device, which may fail"
    ),
    "read": OperationKind(
        lambda cx, page: user_access.read_memory(cx, address_of(page)),
        ("page",),
        "read memory as user code does, faulting where it must",
        signals=True,
    ),
    "write": OperationKind(
        lambda cx, page, tag: user_access.write_memory(cx, address_of(page), tag),
        ("page", "tag"),
        "write memory as user code does; below a stack this grows it",
        signals=True,
    ),
    "write-read": OperationKind(
        _write_read,
        ("page", "tag"),
        "write memory and read it again: what is there then",
        signals=True,
    ),
    "dontneed": OperationKind(_dontneed, ("page", "pages"), "madvise(MADV_DONTNEED)", empties=True),
    "mremap": OperationKind(
        _mremap,
        ("page", "pages", "new_pages"),
        "grow or shrink a mapping in place",
        leaves_no_trace=True,
    ),
    "mremap-move": OperationKind(
        _mremap_move,
        ("page", "pages", "new_page"),
        "move a mapping",
        True,
        leaves_no_trace=True,
    ),
    "brk": OperationKind(
        lambda cx, pages: brk.brk(cx, address_of(HEAP_PAGE + pages)),
        ("pages",),
        "let the heap be so many pages long",
        leaves_no_trace=True,
    ),
    "mprotect": OperationKind(
        _mprotect, ("page", "pages", "prot"), "mprotect to 0 none, 1 read, 3 both"
    ),
    "mseal": OperationKind(
        lambda cx, page, pages: mseal.mseal(cx, address_of(page), length_of(pages), 0),
        ("page", "pages"),
        "mseal",
    ),
    "gup": OperationKind(
        lambda cx, page: gup.copy_from_user(cx, address_of(page)),
        ("page",),
        "pin a page of one's own, read and release it (direct I/O)",
    ),
    "proc": OperationKind(
        lambda cx, mm: cx.design.proc_cmdline(cx, mm), ("mm",), "read /proc/PID/cmdline of `mm`"
    ),
    "peek": OperationKind(
        lambda cx, mm, page: proc.access_remote_vm(cx, mm, address_of(page)),
        ("mm", "page"),
        "read a page of another address space, as process_vm_readv does; 0 where there is none",
    ),
    "peek-range": OperationKind(
        lambda cx, mm, page, pages: proc.read_remote(
            cx, mm, address_of(page), address_of(page + pages)
        ),
        ("mm", "page", "pages"),
        "read pages of another address space in one call; gives how many are there in a row",
    ),
    "serve": OperationKind(
        _serve,
        ("file", "mm"),
        "answer reads of a served file; looks at /proc/PID/cmdline of `mm` before each",
    ),
    "pgste": OperationKind(
        lambda cx, page: pgste.look_at_pgste(cx, address_of(page)),
        ("page",),
        "look at the entry of a guest page, as KVM on s390 does: 1 if it maps something",
    ),
    "maps": OperationKind(
        lambda cx, mm: proc.proc_pid_maps(cx, mm), ("mm",), "read /proc/PID/maps"
    ),
    "smaps": OperationKind(
        lambda cx, mm: proc.proc_pid_smaps(cx, mm), ("mm",), "read /proc/PID/smaps"
    ),
    "truncate": OperationKind(
        lambda cx, file, pages: rmap.truncate(cx, file, length_of(pages)),
        ("file", "pages"),
        "cut a file to so many pages",
    ),
    "revoke": OperationKind(
        _revoke,
        ("file",),
        "a driver takes its pages back from all mappings (unmap_mapping_range)",
    ),
    "ioctl": OperationKind(
        lambda cx, file, page: driver.ioctl(cx, file, address_of(page), False),
        ("file", "page"),
        "a driver maps a page in the VMA that it has saved, as binder does; ESRCH without one",
    ),
    "ioctl-looking-up": OperationKind(
        lambda cx, file, page: driver.ioctl(cx, file, address_of(page), True),
        ("file", "page"),
        "a driver maps a page in the VMA that it finds; ESRCH without one",
    ),
    "shrink": OperationKind(
        driver.shrink, ("file",), "a driver's shrinker takes pages back, if it gets the lock"
    ),
    "fork": OperationKind(
        fork.fork, ("child",), "fork into the address space `child`", leaves_no_trace=True
    ),
    "fork-see": OperationKind(
        _fork_see,
        ("child", "page", "pages"),
        "fork, and read as the child: how many of the pages are there",
    ),
    "clone": OperationKind(clone_thread, (), "create a thread: one more user of the memory"),
    "exit": OperationKind(
        exit.exit_process, (), "give the address space up; the last user takes it down"
    ),
    "oom-reap": OperationKind(exit.oom_reap_task_mm, ("mm",), "the oom reaper takes `mm`'s pages"),
    "process-mrelease": OperationKind(exit.process_mrelease, ("mm",), "process_mrelease of `mm`"),
    "monitor": OperationKind(
        lambda cx, context, events: monitor(cx, context, 77, events),
        ("context", "events"),
        "be a userfaultfd monitor for so many events",
    ),
    "uprobe": OperationKind(
        lambda cx, file, page: uprobes.uprobe_register(cx, file, length_of(page)),
        ("file", "page"),
        "install a uprobe at a page of a file",
    ),
    "read-once": OperationKind(_word(words.READ_ONCE), ("word",), "read a word (READ_ONCE)"),
    "write-once": OperationKind(
        _word(words.WRITE_ONCE), ("word", "value"), "write a word (WRITE_ONCE)"
    ),
    "load-acquire": OperationKind(_word(words.smp_load_acquire), ("word",), "smp_load_acquire"),
    "store-release": OperationKind(
        _word(words.smp_store_release), ("word", "value"), "smp_store_release"
    ),
    "xchg": OperationKind(
        _word(words.xchg), ("word", "value"), "write a word and give what it was, fully ordered"
    ),
    "add-return": OperationKind(
        _word(words.atomic_add_return),
        ("word", "value"),
        "add to a word and give what it is then, fully ordered",
    ),
    "mb": OperationKind(_barrier(words.smp_mb), (), "smp_mb, a full barrier"),
    "rmb": OperationKind(_barrier(words.smp_rmb), (), "smp_rmb, between reads"),
    "wmb": OperationKind(_barrier(words.smp_wmb), (), "smp_wmb, between writes"),
}


def _of_a_range(name: str) -> OperationKind:
    """Make the operation of a system call that works on a range: pages, then its other numbers."""
    rest = SYSTEM_CALLS[name].arguments[2:]

    def run(cx: Cx, page: int, pages: int, *others: int) -> Protocol:
        return SERVED[name](cx, address_of(page), length_of(pages), *others)

    return OperationKind(run, ("page", "pages", *rest), f"the {name} system call")


KINDS |= {
    name: _of_a_range(name)
    for name in SERVED
    if name not in KINDS
    and SYSTEM_CALLS[name].arguments[:2] == ("addr", "length")
    and "file" not in SYSTEM_CALLS[name].arguments
}


def kind_of(
    operation: ScenarioOperation, kinds: Mapping[str, OperationKind] = KINDS
) -> OperationKind:
    """Return what an operation's name stands for; raises UserError for a wrong one."""
    kind = kinds.get(operation.name)
    if kind is None:
        raise no_such("operation", operation.name, kinds, listed="'zaplock check --list'")
    if len(operation.numbers) != len(kind.arguments):
        wanted = " ".join([operation.name, *(name.upper() for name in kind.arguments)])
        given = " ".join([operation.name, *map(str, operation.numbers)])
        raise UserError(f"operation {given!r} is written {wanted!r}")
    return kind


def check(
    operation: ScenarioOperation,
    kind: OperationKind,
    files: Collection[int],
    spaces: Collection[int],
) -> None:
    """Raise UserError unless an operation's numbers stand for what a scenario has.

    `files` and `spaces` are the numbers of its files and of its address spaces.
    """
    for name, number in zip(kind.arguments, operation.numbers):
        if name in _KNOWN:
            allowed: Collection[int] = _KNOWN[name]
        elif name in ("file", "mm", "child"):
            allowed = files if name == "file" else spaces
        else:
            allowed = range(MOST_PAGES + 1)
        if number not in allowed:
            given = " ".join([operation.name, *map(str, operation.numbers)])
            there = f"0 to {MOST_PAGES}" if isinstance(allowed, range) else sorted(allowed)
            raise UserError(f"operation {given!r}: its {name} {number} is not among {there}")
    if operation.name in KINDS:  # one of the user's own may give either
        _check_words(operation, kind.signals)


def _check_words(operation: ScenarioOperation, signals: bool) -> None:
    """Refuse a signal where an errno comes back, and the reverse: the numbers are the same."""
    for word in operation.words:
        if word.startswith("SIG") and not signals:
            raise UserError(
                f"{describe_words(operation)}: no signal ends {operation.name}; name an errno "
                "(such as EFAULT)"
            )
        if word.startswith("E") and signals:
            raise UserError(
                f"{describe_words(operation)}: {operation.name} gives no errno; name a signal "
                "(SIGSEGV or SIGBUS)"
            )


def describe_words(operation: ScenarioOperation) -> str:
    """Write an operation with its results as a scenario does."""
    left = " ".join([operation.name, *map(str, operation.numbers)])
    return f"operation {f'{left} -> ' + ' '.join(operation.words)!r}"


MOST_WORDS = 8
_KNOWN = {
    "prot": tuple(PROTECTIONS), "context": (UFFD_CONTEXT,), "word": tuple(range(MOST_WORDS)),
}  # fmt: skip
READS_WORDS = ("read-once", "load-acquire")
"""Operations that read a word otherwise than atomically."""


def words_of(
    operations: Iterable[ScenarioOperation], kinds: Mapping[str, OperationKind] = KINDS
) -> set[str]:
    """Return the words that operations name."""
    return {
        word_name(number)
        for operation in operations
        for name, number in zip(kind_of(operation, kinds).arguments, operation.numbers)
        if name == "word"
    }


def emptied(operation: ScenarioOperation, kind: OperationKind) -> tuple[int, int] | None:
    """Return (first page, page behind the last) that the operation promises to empty, or None."""
    if not kind.empties:
        return None
    page, pages = operation.numbers[:2]
    return page, page + pages
