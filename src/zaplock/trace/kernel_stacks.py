"""What a task's kernel stack says of an mmap_lock: does it wait for one, has it one, and in what.

A stack is a list of the kernel's function names, innermost first, as /proc/PID/stack has them. The
kernel leaves its scheduler's functions out of those (the text section `.sched.text`, which holds
`schedule`, `down_read` and the rwsem's slow paths), so a task that sleeps in `down_write_killable`
shows the function that called it on top: asleep directly in `vm_mmap_pgoff` is waiting for the
mmap_lock, since that function sleeps for nothing else. Stacks from elsewhere (a trace, a hung-task
report) have those functions, and are read as well.

A task that is deeper inside has the lock: `unmap_page_range` runs under it in every kernel. Where a
function lets go of the lock before it waits (`handle_userfault`, a page that is read from disk in a
fault), the task has it no longer.

Functions are named as in the kernels that have them, 4.4 to 6.18; a name that a kernel lacks does
no harm. Not covered: functions that a compiler has inlined where no other line names the call, and
locks of PREEMPT_RT kernels (an rwsem is another structure there).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from zaplock.trace.calls import PAGE_FAULT

_SCHEDULER = re.compile(
    r"^(_*schedule|schedule_\w+|preempt_schedule\w*|_*cond_resched\w*|rwsem_\w+|_*down_(read|write)"
    r"\w*|call_rwsem_\w+|_*mmap_(read|write)_lock\w*|osq_lock|io_schedule\w*)$"
)
_RWSEM = re.compile(r"^(call_)?rwsem_down_(?P<mode>read|write)_(slowpath|failed)")
_SYSCALL = re.compile(r"^(?:__(?:x64|arm64|ia32|se|do|riscv|s390x?)_(?:compat_)?sys_|SyS_)(\w+)$")

READ, WRITE, EITHER = "shared", "exclusive", ""


@dataclass(frozen=True, slots=True)
class StackMeaning:
    """`does` is "waits", "holds" or ""; `operation` names what for, "" where nothing tells.

    `mode` is "shared", "exclusive" or "" (it depends on the call's arguments).
    """

    does: str
    mode: str
    operation: str


# Who asks for the lock: function, mode, what for ("": the system call's own name).
_ASKS = {
    **dict.fromkeys(
        (
            "vm_mmap_pgoff", "__vm_munmap", "vm_munmap", "vm_brk_flags", "do_mprotect_pkey",
            "do_mremap", "do_mlock", "apply_mlockall_flags", "do_shmat", "ksys_shmdt", "do_mbind",
            "do_mseal", "mlock_fixup", "__do_sys_brk", "__do_sys_mremap", "__do_sys_munlock",
            "__do_sys_munlockall", "__do_sys_mlockall", "__do_sys_remap_file_pages",
            "__do_sys_mseal", "prctl_set_mm", "prctl_set_vma", "prctl_set_mm_map",
        ),
        (WRITE, ""),
    ),
    **dict.fromkeys(("do_madvise", "madvise_lock", "do_process_madvise"), (EITHER, "")),
    **dict.fromkeys(
        (
            "__do_sys_mincore", "__do_sys_msync", "__mm_populate", "do_pages_move",
            "kernel_move_pages", "do_migrate_pages", "process_vm_rw_core",
            "process_vm_rw_single_vec", "__do_sys_process_mrelease", "do_get_mempolicy",
            "add_page_for_migration", "add_folio_for_migration",
        ),
        (READ, ""),
    ),
    "dup_mmap": (WRITE, ""), "dup_mm": (WRITE, ""),
    "exit_mmap": (EITHER, "exit"), "exit_mm": (READ, "exit"), "do_exit": (READ, "exit"),
    "exec_mmap": (READ, ""), "setup_arg_pages": (WRITE, ""), "bprm_mm_init": (WRITE, ""),
    "alloc_bprm": (WRITE, ""), "get_arg_page": (READ, ""),
    "lock_mm_and_find_vma": (READ, PAGE_FAULT), "get_mmap_lock_carefully": (READ, PAGE_FAULT),
    "do_user_addr_fault": (READ, PAGE_FAULT), "__do_page_fault": (READ, PAGE_FAULT),
    "do_page_fault": (READ, PAGE_FAULT), "exc_page_fault": (READ, PAGE_FAULT),
    "upgrade_mmap_lock_carefully": (WRITE, PAGE_FAULT), "expand_stack": (WRITE, PAGE_FAULT),
    "fixup_user_fault": (READ, ""), "__get_user_pages_locked": (READ, ""),
    "__gup_longterm_locked": (READ, ""), "get_user_pages_unlocked": (READ, ""),
    "gup_fast_fallback": (READ, ""), "internal_get_user_pages_fast": (READ, ""),
    "faultin_page_range": (READ, ""), "faultin_vma_page_range": (READ, ""),
    "__access_remote_vm": (READ, ""), "access_remote_vm": (READ, ""),
    "m_start": (READ, ""), "m_next": (READ, ""), "proc_get_vma": (READ, ""),
    "lock_vma_range": (READ, ""), "query_vma_setup": (READ, ""), "do_procmap_query": (READ, ""),
    "show_smaps_rollup": (READ, "read of smaps_rollup"), "pagemap_read": (READ, ""),
    "do_pagemap_scan": (READ, ""), "clear_refs_write": (WRITE, "write of clear_refs"),
    "proc_map_files_lookup": (READ, ""), "proc_map_files_readdir": (READ, ""),
    "map_files_get_link": (READ, ""), "map_files_d_revalidate": (READ, ""),
    "dump_vma_snapshot": (WRITE, "core dump"),
    "userfaultfd_register": (WRITE, ""), "userfaultfd_unregister": (WRITE, ""),
    "userfaultfd_release": (WRITE, ""), "userfaultfd_release_all": (WRITE, ""),
    "mfill_atomic": (READ, ""), "mwriteprotect_range": (READ, ""),
    "collapse_huge_page": (EITHER, "khugepaged"),
    "khugepaged_scan_mm_slot": (READ, "khugepaged"),
    "collapse_scan_mm_slot": (READ, "khugepaged"), "__khugepaged_exit": (WRITE, "exit"),
    "scan_get_next_rmap_item": (READ, "ksmd"), "unmerge_and_remove_all_rmap_items": (READ, "ksmd"),
    "break_cow": (READ, "ksmd"), "try_to_merge_with_ksm_page": (READ, "ksmd"),
    "__ksm_exit": (WRITE, "exit"), "ksm_enable_merge_any": (WRITE, ""),
    "register_for_each_vma": (WRITE, ""), "__oom_reap_task_mm": (READ, "oom_reaper"),
    "oom_reap_task_mm": (READ, "oom_reaper"), "task_numa_work": (READ, "NUMA balancing"),
    "io_sqe_buffer_register": (READ, ""), "hva_to_pfn_slow": (READ, "KVM page fault"),
    "binder_alloc_free_page": (READ, ""), "binder_alloc_new_buf": (READ, ""),
}  # fmt: skip

# Who has it, being inside: function, mode, what for.
_HAS = {
    **dict.fromkeys(
        (
            "do_vmi_munmap", "do_vmi_align_munmap", "do_mas_munmap", "do_mas_align_munmap",
            "__do_munmap", "do_munmap", "do_mmap", "mmap_region", "__mmap_region", "mmap_pgoff",
            "do_brk_flags", "mprotect_fixup", "change_protection", "move_vma", "move_page_tables",
            "mremap_to", "mremap_at", "copy_vma", "apply_vma_lock_flags", "mlock_vma_pages_range",
            "copy_page_range", "vma_modify", "vma_modify_flags", "__split_vma", "vma_merge",
            "do_mbind_range", "mbind_range",
        ),
        (WRITE, ""),
    ),
    **dict.fromkeys(
        (
            "populate_vma_page_range", "madvise_populate", "madvise_cold", "madvise_pageout",
            "madvise_cold_or_pageout_pte_range", "swapin_walk_pmd_entry",
            "madvise_remove", "mincore_pte_range", "do_mincore", "pin_user_pages_remote",
            "get_user_pages_remote", "get_user_page_vma_remote", "__get_user_pages",
            "remap_pfn_range", "move_pages_and_store_status",
        ),
        (READ, ""),
    ),
    "madvise_collapse": (EITHER, ""), "madvise_vma_behavior": (EITHER, ""),
    "shift_arg_pages": (WRITE, ""),
    "clear_refs_pte_range": (WRITE, "write of clear_refs"),
    "clear_refs_test_walk": (WRITE, "write of clear_refs"),
    "show_smap": (READ, "read of smaps"), "show_map": (READ, "read of maps"),
    "show_numa_map": (READ, "read of numa_maps"), "gather_pte_stats": (READ, "read of numa_maps"),
    "smap_gather_stats": (READ, "read of smaps"), "smaps_pte_range": (READ, "read of smaps"),
    "show_map_vma": (READ, "read of maps"), "pagemap_pmd_range": (READ, "read of pagemap"),
    "pagemap_scan_pmd_entry": (READ, "PAGEMAP_SCAN"),
    "collapse_file": (READ, "khugepaged"), "hpage_collapse_scan_pmd": (READ, "khugepaged"),
    "collapse_scan_pmd": (READ, "khugepaged"), "khugepaged_scan_pmd": (READ, "khugepaged"),
    "__collapse_huge_page_copy": (READ, "khugepaged"),
    "__collapse_huge_page_swapin": (READ, "khugepaged"),
    "cmp_and_merge_page": (READ, "ksmd"),
    "oom_reap_task": (READ, "oom_reaper"),
    "change_prot_numa": (READ, "NUMA balancing"),
    "mfill_atomic_pte": (READ, ""), "mfill_atomic_copy": (READ, ""),
}  # fmt: skip

# These mean what they do only below (called by) one that asks; the mode is of the holder.
_INSIDE_OF = {
    "dup_mmap": (WRITE, ""),
    "exit_mmap": (READ, "exit"),
    "show_smaps_rollup": (READ, "read of smaps_rollup"),
    "clear_refs_write": (WRITE, "write of clear_refs"),
    "__oom_reap_task_mm": (READ, "oom_reaper"),
    "userfaultfd_register": (WRITE, ""),
    "userfaultfd_unregister": (WRITE, ""),
    "register_for_each_vma": (WRITE, ""),
    "collapse_huge_page": (WRITE, "khugepaged"),
    "setup_arg_pages": (WRITE, ""),
    "__do_sys_process_mrelease": (READ, ""),
}

# After a downgrade: the page work of these calls, where the call lets go of the exclusive lock.
_ZAPS = frozenset(
    {
        "unmap_region", "vms_clear_ptes", "unmap_vmas", "unmap_page_range", "unmap_single_vma",
        "free_pgtables", "tlb_finish_mmu", "vms_complete_munmap_vmas",
    }
)  # fmt: skip
_DOWNGRADES = frozenset({"__vm_munmap", "__do_sys_brk", "do_mremap", "__do_sys_mremap", "mremap"})

# MADV_DONTNEED and MADV_FREE at work.
_ADVISED_ZAPS = frozenset(
    {
        "madvise_dontneed_free", "madvise_dontneed_single_vma", "madvise_free_single_vma",
        "zap_page_range_single", "zap_page_range_single_batched", "zap_page_range",
    }
)  # fmt: skip
_ZAP_UNDER_VMA_LOCK = (6, 17)
"""From here on MADV_DONTNEED and MADV_FREE take the lock of their VMA (a6fde7add78d)."""

USERFAULT = "a page fault that its userfaultfd monitor has to answer"
"""What a task does that sleeps in `handle_userfault`."""


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
        if name in _CALLS:
            return _CALLS[name]
    return ""


# Inlined or tail-called system calls: what remains on the stack.
_CALLS = {
    "vm_mmap_pgoff": "mmap", "ksys_mmap_pgoff": "mmap", "__vm_munmap": "munmap",
    "do_mprotect_pkey": "mprotect", "do_madvise": "madvise", "do_mremap": "mremap",
    "do_mlock": "mlock", "do_process_madvise": "process_madvise", "kernel_clone": "clone",
    "ksys_read": "read", "ksys_pread64": "pread64", "ksys_write": "write", "do_readv": "readv",
    "process_vm_rw": "process_vm_readv", "bprm_execve": "execve", "do_execveat_common": "execve",
    "do_group_exit": "exit", "do_mbind": "mbind", "kernel_move_pages": "move_pages",
    "do_futex": "futex", "futex_wait": "futex", "ptrace_request": "ptrace",
    "arch_ptrace": "ptrace",
}  # fmt: skip


def meaning(stack: Sequence[str], *, asleep: bool, kernel: tuple[int, int]) -> StackMeaning:
    """Say what a stack means; `asleep` is a task in state D or S, `kernel` its version.

    >>> meaning(["vm_mmap_pgoff", "do_syscall_64"], asleep=True, kernel=(6, 18))
    StackMeaning(does='waits', mode='exclusive', operation='mmap')
    >>> meaning(["unmap_vmas", "do_vmi_munmap", "__vm_munmap"], asleep=False, kernel=(6, 18))
    StackMeaning(does='holds', mode='shared', operation='munmap')
    """
    call = syscall_of(stack)
    slow = next((found for name in stack if (found := _RWSEM.match(name))), None)
    inner = [name for name in stack if not _SCHEDULER.match(name)]
    if not inner:
        return StackMeaning("", "", call)
    if slow or asleep:
        asks = _ASKS.get(inner[0])
        if asks:
            mode = {"read": READ, "write": WRITE}[slow["mode"]] if slow else asks[0]
            return StackMeaning("waits", mode, _asked_for(asks[1], call))
    return _holder(inner, call, kernel)


def _asked_for(operation: str, call: str) -> str:
    """A fault inside a system call is the kernel's own: on memory that the call was given."""
    if operation == PAGE_FAULT and call:
        return f"{call} (kernel-mode fault)"
    return operation or call


def _holder(inner: Sequence[str], call: str, kernel: tuple[int, int]) -> StackMeaning:
    if "handle_userfault" in inner:
        return StackMeaning("", "", USERFAULT)
    if _ADVISED_ZAPS & set(inner):
        under_vma_lock = kernel >= _ZAP_UNDER_VMA_LOCK
        return StackMeaning("", "", call) if under_vma_lock else StackMeaning("holds", READ, call)
    for place, name in enumerate(inner):
        found = _HAS.get(name) or (_INSIDE_OF.get(name) if place else None)
        if found is None:
            continue
        mode, operation = found
        return StackMeaning("holds", _mode(mode, inner), _outer(inner) or operation or call)
    return StackMeaning("", "", _outer(inner) or call)


def _outer(inner: Sequence[str]) -> str:
    """Prefer what the outermost function says: khugepaged, exit, a file of /proc."""
    for name in reversed(inner):
        operation = (_INSIDE_OF.get(name) or ("", ""))[1]
        if operation:
            return operation
    return ""


def _mode(mode: str, inner: Sequence[str]) -> str:
    """A munmap that is past its downgrade has the lock shared."""
    names = set(inner)
    downgrades = names & _DOWNGRADES or any(name.endswith("_sys_brk") for name in inner)
    if mode == WRITE and names & _ZAPS and downgrades and not {"do_mmap", "move_vma"} & names:
        return READ
    return mode


# Whose work it is that takes the lock, where no system call's name tells.
_WORK = {
    "mem_rw": "access to mem", "proc_pid_cmdline_read": "read of cmdline",
    "get_mm_cmdline": "read of cmdline", "environ_read": "read of environ",
    "pagemap_read": "read of pagemap", "do_pagemap_scan": "PAGEMAP_SCAN",
    "io_wq_worker": "io_uring", "io_submit_sqes": "io_uring", "__do_sys_io_uring_enter": "io_uring",
    "khugepaged": "khugepaged", "ksm_scan_thread": "ksmd", "oom_reaper": "oom_reaper",
    "task_numa_work": "NUMA balancing", "dump_vma_snapshot": "core dump",
}  # fmt: skip
_FAULTS = frozenset(
    {"exc_page_fault", "asm_exc_page_fault", "do_user_addr_fault", "__do_page_fault",
     "do_page_fault", "do_mem_abort", "el1_abort"}
)  # fmt: skip


def operation_of(stack: Sequence[str]) -> str:
    """Name what a task was in, by its kernel stack; "" where no function tells.

    >>> operation_of(["smaps_pte_range", "show_smap", "seq_read_iter", "ksys_read"])
    'read of smaps'
    >>> operation_of(["do_user_addr_fault", "exc_page_fault", "copyout", "ksys_read"])
    'read (kernel-mode fault)'
    """
    call = syscall_of(stack)
    for place in range(len(stack) - 1, -1, -1):
        name = stack[place]
        if name in _FAULTS:
            return f"{call} (kernel-mode fault)" if call else PAGE_FAULT
        found = (_INSIDE_OF.get(name) or _HAS.get(name) or _ASKS.get(name) or ("", ""))[1]
        if operation := _WORK.get(name) or found:
            return operation
    return call
