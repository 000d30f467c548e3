"""What a task's kernel stack says of an mmap_lock: does it wait for one, has it one, and in what.

A stack is a list of the kernel's function names, innermost first, as /proc/PID/stack has them. The
kernel leaves its scheduler's functions out of those (the text section `.sched.text`, which holds
`schedule`, `down_read` and the rwsem's slow paths), so a task that sleeps in `down_write_killable`
shows the function that called it on top: asleep directly in `vm_mmap_pgoff` is waiting for the
mmap_lock, since that function sleeps for nothing else. Stacks from elsewhere (a trace, a hung-task
report) have those functions, and are read as well.

A task that is deeper inside has the lock: `unmap_page_range` runs under it in every kernel. Where a
function has let go of the lock (`handle_userfault`, a file's own work in MADV_REMOVE, khugepaged's
search for a free huge page), the task has it no longer.

Which function means what is in `kernel_functions`. Not covered: functions that a compiler has
inlined where no other line names the call, and locks of PREEMPT_RT kernels (an rwsem is another
structure there); which of MADV_DONTNEED and MADV_DONTNEED_LOCKED it is (told as the former), or of
MADV_POPULATE_READ and _WRITE (not told).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from zaplock import advice
from zaplock.trace.event_kinds import PAGE_FAULT
from zaplock.trace.kernel_functions import (
    ADVICE,
    ADVISED_ZAPS,
    ASKS,
    CALLERS,
    CALLS,
    DOWNGRADES,
    DUMPED,
    EXIT_ZAPS,
    EXIT_ZAPS_SHARED,
    FAULTS,
    FILES_OF_VMAS,
    GUARDS_UNDER_VMA_LOCK,
    HALTED,
    HAS,
    INSIDE_OF,
    KEEPS,
    LETS_GO,
    MAPPERS_HELD,
    MAPPERS_TAKEN,
    OF_KERNEL_THREADS,
    READ,
    READS_PAGES,
    RETURNS,
    SINCE,
    THREADS_END,
    UNTIL,
    USEREVENT,
    USERFAULT,
    WALKS_VMAS,
    WORK,
    WRITE,
    ZAP_UNDER_VMA_LOCK,
    ZAPS,
)

_SCHEDULER = re.compile(
    r"^(_*schedule|schedule_\w+|preempt_schedule\w*|_*cond_resched\w*|rwsem_\w+|_*down_(read|write)"
    r"\w*|call_rwsem_\w+|_*mmap_(read|write)_lock\w*|osq_lock|io_schedule\w*)$"
)
_RWSEM = re.compile(r"^(call_)?rwsem_down_(?P<mode>read|write)_(slowpath|failed)")
_SYSCALL = re.compile(r"^(?:__(?:x64|arm64|ia32|se|do|riscv|s390x?)_(?:compat_)?sys_|SyS_)(\w+)$")


@dataclass(frozen=True, slots=True)
class StackMeaning:
    """`does` is "waits", "holds" or ""; `operation` names what for, "" where nothing tells.

    `mode` is "shared", "exclusive" or "" (it depends on the call's arguments). `perhaps`: it may
    have the lock, shared, which the stack alone does not tell (a page fault, an madvise that frees:
    mostly these have their VMA's lock).
    """

    does: str
    mode: str
    operation: str
    perhaps: bool = field(default=False, repr=False)


def functions(text: str) -> tuple[str, ...]:
    """Read /proc/PID/stack: the names of the functions, innermost first.

    >>> functions("[<0>] unmap_vmas+0x94/0x180\\n[<0>] vms_clear_ptes.part.0+0xc6/0x150\\n")
    ('unmap_vmas', 'vms_clear_ptes')
    """
    names = []
    for line in text.splitlines():
        found = re.match(r"(?:\[<[0-9a-fx]++>\]\s++)?\??\s*+([A-Za-z_]\w*+)", line.strip())
        if found:
            names.append(found[1])
    return tuple(names)


def syscall_of(stack: Sequence[str]) -> str:
    """Name the system call that a stack is in, "" where no function tells.

    >>> syscall_of(["dup_mmap", "copy_process", "kernel_clone", "__do_sys_clone"])
    'clone'
    """
    for name in reversed(stack):
        found = _SYSCALL.match(name)
        if found:
            return found[1].removeprefix("new").removesuffix("_pgoff")
    for name in stack:
        if name in CALLS:
            return CALLS[name]
    return ""


def meaning(
    stack: Sequence[str],
    *,
    asleep: bool,
    kernel: tuple[int, int],
    dumps_core: bool = False,
    alone: bool = False,
) -> StackMeaning:
    """Say what a stack means; `asleep` is a task in state D or S, `kernel` its version.

    `dumps_core`: the core of its process is being written (CoreDumping in /proc/PID/status).
    `alone`: its process has no other thread.

    >>> meaning(["vm_mmap_pgoff", "do_syscall_64"], asleep=True, kernel=(6, 18))
    StackMeaning(does='waits', mode='exclusive', operation='mmap')
    >>> meaning(["unmap_vmas", "do_vmi_munmap", "__vm_munmap"], asleep=False, kernel=(6, 18))
    StackMeaning(does='holds', mode='shared', operation='munmap')
    """
    stack = _since_return(stack)
    call = syscall_of(stack)
    slow = next((found for name in stack if (found := _RWSEM.match(name))), None)
    inner = [name for name in stack if not _SCHEDULER.match(name)]
    if not inner:
        return StackMeaning("", "", call)
    if asleep and inner[0] in DUMPED and (dumps_core or inner[0] not in ASKS):
        return StackMeaning("", "", HALTED["coredump_task_exit"])
    if asleep and inner[0] == "begin_new_exec" and not alone:
        return StackMeaning("", "", THREADS_END)
    if slow or asleep:
        asks = ASKS.get(_SYSCALL.sub(r"__do_sys_\1", inner[0]))
        if asks:
            mode = {"read": READ, "write": WRITE}[slow["mode"]] if slow else asks[0]
            operation = _work(inner, call) or _own(asks[1], call)
            return StackMeaning("waits", mode, _asked_for(operation, call))
    return _holder(inner, call, kernel)


def _since_return(stack: Sequence[str]) -> Sequence[str]:
    """Leave out what a task came for, where it is on its way back to user mode already."""
    outermost = max((place for place, name in enumerate(stack) if name in RETURNS), default=None)
    return stack if outermost is None else stack[:outermost]


def _asked_for(operation: str, call: str) -> str:
    """A fault inside a system call is the kernel's own: on memory that the call was given."""
    if operation == PAGE_FAULT and call:
        return f"{call} (kernel-mode fault)"
    return operation or call


def _holder(inner: Sequence[str], call: str, kernel: tuple[int, int]) -> StackMeaning:
    names = set(inner)
    if "handle_userfault" in names:
        return StackMeaning("", "", USERFAULT)
    if "userfaultfd_event_wait_completion" in names:
        return StackMeaning("", "", USEREVENT)
    if halted := next((HALTED[name] for name in inner if name in HALTED), ""):
        return StackMeaning("", "", halted)
    operation = _work(inner, call) or _own(_outer(inner), call) or call
    if names & LETS_GO and not names & KEEPS:
        reads = bool(names & READS_PAGES)
        in_fault = reads and names & FAULTS
        return StackMeaning("", "", _asked_for(PAGE_FAULT, call) if in_fault else operation, reads)
    if names & ADVISED_ZAPS:
        under = GUARDS_UNDER_VMA_LOCK if _is_guard(advice_of(inner)) else ZAP_UNDER_VMA_LOCK
        by_vma = kernel >= under
        return StackMeaning("" if by_vma else "holds", "" if by_vma else READ, call, by_vma)
    for place, name in enumerate(inner):
        found = HAS.get(name) or (INSIDE_OF.get(name) if place else None)
        if found is None or not SINCE.get(name, kernel) <= kernel < UNTIL.get(name, (*kernel, 1)):
            continue
        if name == "handle_mm_fault" and names & FAULTS:
            operation = _asked_for(PAGE_FAULT, call)
        elif found[1] and not _outer(inner):
            operation = _work(inner, call) or _own(found[1], call)
        return StackMeaning("holds", _mode(found[0], inner, kernel), operation)
    return StackMeaning("", "", operation, "handle_mm_fault" in names)


def files_of(stack: Sequence[str]) -> frozenset[str]:
    """Name the files of /proc/PID that a stack may be about, where functions serve several.

    Source: fs/proc/task_mmu.c, whose m_start and m_next are those of maps, smaps and numa_maps.

    >>> sorted(files_of(["rwsem_down_read_slowpath", "m_start", "seq_read_iter", "ksys_read"]))
    ['maps', 'numa_maps', 'smaps']
    >>> files_of(["pagemap_read", "ksys_read"])
    frozenset()
    """
    return FILES_OF_VMAS if WALKS_VMAS.intersection(_since_return(stack)) else frozenset()


def waits_for_mappers(stack: Sequence[str]) -> bool:
    """Say whether a sleeping task waits for the lock of a file's mappings (i_mmap_rwsem).

    >>> waits_for_mappers(["__mmap_region", "do_mmap", "vm_mmap_pgoff"])
    True
    """
    inner = [name for name in stack if not _SCHEDULER.match(name)]
    return bool(inner) and inner[0] in MAPPERS_TAKEN


def has_mappers(stack: Sequence[str]) -> bool:
    """Say whether a task has the lock of some file's mappings: what truncates it, say.

    >>> has_mappers(["unmap_page_range", "unmap_mapping_range", "shmem_setattr", "do_truncate"])
    True
    """
    inner = [name for name in stack if not _SCHEDULER.match(name)]
    return bool(MAPPERS_HELD.intersection(inner[1:])) and inner[0] not in MAPPERS_HELD


def reads_a_page(stack: Sequence[str]) -> bool:
    """Say whether a page fault waits for a file system, or for swap, to bring a page."""
    return bool(READS_PAGES.intersection(_since_return(stack)))


def may_have_a_vmas_lock(stack: Sequence[str]) -> bool:
    """Say whether a task is in what is done under the lock of a VMA: a page fault, an madvise.

    >>> may_have_a_vmas_lock(["ext4_page_mkwrite", "do_wp_page", "handle_mm_fault"])
    True
    """
    names = set(_since_return(stack))
    under = "handle_mm_fault" in names or names & ADVISED_ZAPS
    return bool(under) and not names & (LETS_GO | {"handle_userfault"})


def _is_guard(number: int | None) -> bool:
    return number in (advice.MADV_GUARD_INSTALL, advice.MADV_GUARD_REMOVE)


def advice_of(stack: Sequence[str]) -> int | None:
    """Say which advice an madvise gives, by its kernel stack; None where no function tells.

    `madvise.POPULATES` is one of two.

    >>> advice_of(["madvise_cold_or_pageout_pte_range", "madvise_cold", "do_madvise"])
    20
    """
    inner = [name for name in stack if not _SCHEDULER.match(name)]
    for name, caller in pairwise(inner):
        if caller.startswith(("madvise_vma_behavior", "madvise_do_behavior", "do_madvise")):
            # Here both are inlined into their caller: a zap of one's own, or a guard's.
            if name.startswith("zap_page_range_single_batched"):
                return advice.MADV_DONTNEED
            if name == "zap_page_range_single" and "zap_page_range_single_batched" in inner:
                return advice.MADV_GUARD_INSTALL
    return next((ADVICE[name] for name in reversed(inner) if name in ADVICE), None)


def _outer(inner: Sequence[str]) -> str:
    """Prefer what the outermost function says: khugepaged, exit, a file of /proc."""
    for name in reversed(inner):
        operation = (INSIDE_OF.get(name) or ("", ""))[1]
        if operation:
            return operation
    return ""


def _own(operation: str, call: str) -> str:
    """A call that does what a kernel thread does is that call; so is an exec that ends an mm."""
    if call and (operation in OF_KERNEL_THREADS or call.startswith("execve")):
        return call
    return operation


def _mode(mode: str, inner: Sequence[str], kernel: tuple[int, int]) -> str:
    """A munmap that is past its downgrade has the lock shared; so has an exit that unmaps."""
    names = set(inner)
    if "exit_mmap" in names:
        return READ if kernel >= EXIT_ZAPS_SHARED and names & EXIT_ZAPS else WRITE
    above = next((CALLERS[name] for name in inner if name in CALLERS), None)
    if above is not None:
        return above
    downgrades = names & DOWNGRADES or any(name.endswith("_sys_brk") for name in inner)
    if mode == WRITE and names & ZAPS and downgrades and not {"do_mmap", "move_vma"} & names:
        return READ
    return mode


def operation_of(stack: Sequence[str]) -> str:
    """Name what a task was in, by its kernel stack; "" where no function tells.

    >>> operation_of(["smaps_pte_range", "show_smap", "seq_read_iter", "ksys_read"])
    'read of smaps'
    >>> operation_of(["do_user_addr_fault", "exc_page_fault", "copyout", "ksys_read"])
    'read (kernel-mode fault)'
    >>> operation_of(["get_dump_page", "vfs_coredump", "get_signal", "asm_exc_page_fault"])
    'core dump'
    """
    stack = _since_return(stack)
    call = syscall_of(stack)
    for place in range(len(stack) - 1, -1, -1):
        name = stack[place]
        if name in FAULTS:
            return f"{call} (kernel-mode fault)" if call else PAGE_FAULT
        found = (INSIDE_OF.get(name) or HAS.get(name) or ASKS.get(name) or ("", ""))[1]
        if operation := _own(WORK.get(name) or found, call):
            return operation
    return call


def _work(stack: Sequence[str], call: str) -> str:
    """Name whose work it is, by the outermost function that tells."""
    return next((_own(WORK[name], call) for name in reversed(stack) if name in WORK), "")
