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

Functions are named as in the kernels that have them, 4.4 to 6.18; a name that a kernel lacks does
no harm. Not covered: functions that a compiler has inlined where no other line names the call, and
locks of PREEMPT_RT kernels (an rwsem is another structure there); which of MADV_DONTNEED and
MADV_DONTNEED_LOCKED it is (told as the former), or of MADV_POPULATE_READ and _WRITE (not told).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from zaplock import advice
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
    "userfaultfd_register": (WRITE, "UFFDIO_REGISTER"),
    "userfaultfd_unregister": (WRITE, "UFFDIO_UNREGISTER"),
    "userfaultfd_release": (WRITE, "close of a userfaultfd"),
    "userfaultfd_release_all": (WRITE, "close of a userfaultfd"),
    "mfill_atomic": (READ, "UFFDIO_COPY"), "mwriteprotect_range": (READ, "UFFDIO_WRITEPROTECT"),
    "uffd_mfill_lock": (READ, ""), "uffd_move_lock": (READ, "UFFDIO_MOVE"),
    "collapse_huge_page": (EITHER, "khugepaged"),
    "khugepaged_scan_mm_slot": (READ, "khugepaged"),
    "collapse_scan_mm_slot": (READ, "khugepaged"), "__khugepaged_exit": (WRITE, "exit"),
    "scan_get_next_rmap_item": (READ, "ksmd"), "unmerge_and_remove_all_rmap_items": (READ, "ksmd"),
    "break_cow": (READ, "ksmd"), "try_to_merge_with_ksm_page": (READ, "ksmd"),
    "__ksm_exit": (WRITE, "exit"), "ksm_enable_merge_any": (WRITE, ""),
    "register_for_each_vma": (WRITE, "uprobe registration"),
    "__oom_reap_task_mm": (READ, "oom_reaper"),
    "oom_reap_task_mm": (READ, "oom_reaper"), "task_numa_work": (READ, "NUMA balancing"),
    "io_sqe_buffer_register": (READ, ""), "hva_to_pfn_slow": (READ, "KVM page fault"),
    "binder_alloc_free_page": (READ, ""), "binder_alloc_new_buf": (READ, ""),
    "mmu_notifier_register": (WRITE, "mmu_notifier_register"),
    "account_locked_vm": (WRITE, ""), "aio_setup_ring": (WRITE, ""), "ioctx_alloc": (WRITE, ""),
    "__do_sys_set_mempolicy_home_node": (WRITE, ""), "mpol_rebind_mm": (WRITE, "cpuset change"),
    "cpuset_migrate_mm_workfn": (READ, "cpuset change"),
    "mem_cgroup_move_charge": (READ, "cgroup change"),
    "mem_cgroup_move_task": (READ, "cgroup change"),
    "unuse_mm": (READ, "swapoff"), "try_to_unuse": (READ, "swapoff"),
    "acct_collect": (READ, "exit"),
    "damon_va_prepare_access_checks": (READ, "DAMON"), "damon_va_check_accesses": (READ, "DAMON"),
    "damon_va_mkold": (READ, "DAMON"), "damon_va_young": (READ, "DAMON"),
    "damon_va_three_regions": (READ, "DAMON"), "damos_madvise": (READ, "DAMON"),
    "task_vma_seq_get_next": (READ, "BPF iterator"),
    "amdgpu_ttm_tt_get_user_pages": (READ, ""), "svm_range_set_attr": (WRITE, ""),
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
            "do_mbind_range", "mbind_range", "unmerge_ksm_pages", "__ksm_add_vma",
            "madvise_set_anon_name", "set_anon_vma_name",
        ),
        (WRITE, ""),
    ),
    **dict.fromkeys(
        (
            "populate_vma_page_range", "madvise_populate", "madvise_cold", "madvise_pageout",
            "madvise_cold_or_pageout_pte_range", "swapin_walk_pmd_entry",
            "madvise_remove", "mincore_pte_range", "do_mincore", "pin_user_pages_remote",
            "get_user_pages_remote", "get_user_page_vma_remote", "__get_user_pages",
            "remap_pfn_range", "move_pages_and_store_status", "queue_pages_range",
            "hmm_range_fault", "handle_mm_fault",
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
    "hpage_collapse_scan_pmd": (READ, "khugepaged"),
    "collapse_scan_pmd": (READ, "khugepaged"), "khugepaged_scan_pmd": (READ, "khugepaged"),
    "__collapse_huge_page_copy": (WRITE, "khugepaged"),
    "__collapse_huge_page_isolate": (WRITE, "khugepaged"),
    "__collapse_huge_page_swapin": (READ, "khugepaged"),
    "try_to_merge_one_page": (READ, "ksmd"),
    "oom_reap_task": (READ, "oom_reaper"),
    "change_prot_numa": (READ, "NUMA balancing"),
    "mm_take_all_locks": (WRITE, "mmu_notifier_register"),
    "mm_drop_all_locks": (WRITE, "mmu_notifier_register"),
    "get_dump_page": (READ, "core dump"), "unuse_pte_range": (READ, "swapoff"),
    "damon_mkold_pmd_entry": (READ, "DAMON"), "damon_young_pmd_entry": (READ, "DAMON"),
    "mfill_atomic_pte": (READ, "UFFDIO_COPY"), "mfill_atomic_copy": (READ, "UFFDIO_COPY"),
    "mfill_atomic_zeropage": (READ, "UFFDIO_ZEROPAGE"),
    "mfill_atomic_continue": (READ, "UFFDIO_CONTINUE"),
    "mfill_atomic_poison": (READ, "UFFDIO_POISON"), "uffd_wp_range": (READ, "UFFDIO_WRITEPROTECT"),
    "mem_cgroup_move_charge_pte_range": (READ, "cgroup change"),
    "mem_cgroup_count_precharge_pte_range": (READ, "cgroup change"),
}  # fmt: skip

# These mean what they do only below (called by) one that asks; the mode is of the holder.
_INSIDE_OF = {
    "dup_mmap": (WRITE, ""),
    "exit_mmap": (READ, "exit"),
    "show_smaps_rollup": (READ, "read of smaps_rollup"),
    "clear_refs_write": (WRITE, "write of clear_refs"),
    "__oom_reap_task_mm": (READ, "oom_reaper"),
    "userfaultfd_register": (WRITE, "UFFDIO_REGISTER"),
    "userfaultfd_unregister": (WRITE, "UFFDIO_UNREGISTER"),
    "userfaultfd_release_all": (WRITE, "close of a userfaultfd"),
    "mfill_atomic": (READ, "UFFDIO_COPY"),
    "mwriteprotect_range": (READ, "UFFDIO_WRITEPROTECT"),
    "move_pages": (READ, "UFFDIO_MOVE"),
    "register_for_each_vma": (WRITE, "uprobe registration"),
    "collapse_huge_page": (WRITE, "khugepaged"),
    "migrate_to_node": (READ, ""),
    "mpol_rebind_mm": (WRITE, "cpuset change"),
    "unuse_mm": (READ, "swapoff"),
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

# These have let go of the lock, whoever called them; so have those of `UNANSWERED`.
_LETS_GO = frozenset(
    {
        "vfs_fallocate", "vfs_fadvise",  # of madvise: MADV_REMOVE, MADV_WILLNEED
        "alloc_charge_folio", "alloc_charge_hpage", "khugepaged_alloc_page",
        "collapse_file", "hpage_collapse_scan_file", "collapse_scan_file", "khugepaged_scan_file",
        "lru_cache_disable", "generic_fadvise",
        "filemap_fault", "__folio_lock_or_retry", "__lock_page_or_retry",  # they may have
    }
)  # fmt: skip

# Until this release under the mmap_lock, from it on under the locks of the VMAs.
_UNTIL = {
    **dict.fromkeys(("show_map", "show_map_vma"), (6, 17)),  # 5631da56c9a8
    **dict.fromkeys(
        ("mfill_atomic", "mfill_atomic_pte", "mfill_atomic_copy", "mfill_atomic_zeropage",
         "mfill_atomic_continue", "mfill_atomic_poison", "move_pages"), (6, 9)),
    "handle_mm_fault": (6, 4),  # 5e31275cc997; later ones may have the lock, mostly they haven't
}  # fmt: skip

# Whatever is above these on the stack has the lock in their mode.
_CALLERS = {"mwriteprotect_range": READ, "migrate_to_node": READ, "do_mbind": WRITE}

# MADV_DONTNEED and MADV_FREE at work.
_ADVISED_ZAPS = frozenset(
    {
        "madvise_dontneed_free", "madvise_dontneed_single_vma", "madvise_free_single_vma",
        "zap_page_range_single", "zap_page_range_single_batched", "zap_page_range",
    }
)  # fmt: skip
_ZAP_UNDER_VMA_LOCK = (6, 17)
"""From here on MADV_DONTNEED and MADV_FREE take the lock of their VMA (a6fde7add78d)."""
_GUARDS_UNDER_VMA_LOCK = (6, 19)
"""And from here on the guards (2ab7f1bbafc9)."""

# Which advice an madvise gives, where nobody saw it called.
_ADVICE = {
    **dict.fromkeys(("madvise_cold", "madvise_cold_page_range"), advice.MADV_COLD),
    **dict.fromkeys(("madvise_pageout", "madvise_pageout_page_range"), advice.MADV_PAGEOUT),
    **dict.fromkeys(("madvise_free_single_vma", "madvise_free_pte_range"), advice.MADV_FREE),
    **dict.fromkeys(("madvise_willneed", "swapin_walk_pmd_entry", "vfs_fadvise"),
                    advice.MADV_WILLNEED),
    **dict.fromkeys(("madvise_remove", "vfs_fallocate"), advice.MADV_REMOVE),
    **dict.fromkeys(("unmerge_ksm_pages",), advice.MADV_UNMERGEABLE),
    **dict.fromkeys(("madvise_dontneed_single_vma",), advice.MADV_DONTNEED),
    **dict.fromkeys(("madvise_guard_install", "guard_install_pte_entry", "guard_install_set_pte"),
                    advice.MADV_GUARD_INSTALL),
    **dict.fromkeys(("madvise_guard_remove", "guard_remove_pte_entry"), advice.MADV_GUARD_REMOVE),
    "madvise_collapse": advice.MADV_COLLAPSE,
}  # fmt: skip

USERFAULT = "a page fault that its userfaultfd monitor has to answer"
"""What a task does that sleeps in `handle_userfault`."""
USEREVENT = "a call of which its userfaultfd monitor has to be told"
"""What a task does that sleeps in `userfaultfd_event_wait_completion`."""
UNANSWERED = (USERFAULT, USEREVENT)


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
    "ksys_shmdt": "shmdt", "do_shmat": "shmat", "kernel_mbind": "mbind",
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
            operation = _work(inner, call) or _own(asks[1], call)
            return StackMeaning("waits", mode, _asked_for(operation, call))
    return _holder(inner, call, kernel)


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
    operation = _work(inner, call) or _own(_outer(inner), call) or call
    if names & _LETS_GO:
        return StackMeaning("", "", operation)
    if names & _ADVISED_ZAPS:
        under = _GUARDS_UNDER_VMA_LOCK if _is_guard(advice_of(inner)) else _ZAP_UNDER_VMA_LOCK
        return StackMeaning("", "", call) if kernel >= under else StackMeaning("holds", READ, call)
    for place, name in enumerate(inner):
        found = _HAS.get(name) or (_INSIDE_OF.get(name) if place else None)
        if found is None or kernel >= _UNTIL.get(name, (*kernel, 1)):
            continue
        if name == "handle_mm_fault" and names & _FAULTS:
            operation = _asked_for(PAGE_FAULT, call)
        elif found[1] and not _outer(inner):
            operation = _work(inner, call) or _own(found[1], call)
        return StackMeaning("holds", _mode(found[0], inner), operation)
    return StackMeaning("", "", operation)


def _is_guard(number: int | None) -> bool:
    return number in (advice.MADV_GUARD_INSTALL, advice.MADV_GUARD_REMOVE)


def advice_of(stack: Sequence[str]) -> int | None:
    """Say which advice an madvise gives, by its kernel stack; None where no function tells.

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
    return next((_ADVICE[name] for name in reversed(inner) if name in _ADVICE), None)


def _outer(inner: Sequence[str]) -> str:
    """Prefer what the outermost function says: khugepaged, exit, a file of /proc."""
    for name in reversed(inner):
        operation = (_INSIDE_OF.get(name) or ("", ""))[1]
        if operation:
            return operation
    return ""


_OF_KERNEL_THREADS = frozenset({"khugepaged", "ksmd", "oom_reaper"})
ON_OTHERS = _OF_KERNEL_THREADS | {
    "DAMON", "swapoff", "cpuset change", "cgroup change", "uprobe registration"
}  # fmt: skip
"""These take the lock of whoever it is: nothing tells whose."""


def _own(operation: str, call: str) -> str:
    """A call that does what a kernel thread does is that call; so is an exec that ends an mm."""
    if call and (operation in _OF_KERNEL_THREADS or call.startswith("execve")):
        return call
    return operation


def _mode(mode: str, inner: Sequence[str]) -> str:
    """A munmap that is past its downgrade has the lock shared."""
    names = set(inner)
    above = next((_CALLERS[name] for name in inner if name in _CALLERS), None)
    if above is not None:
        return above
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
    "vfs_coredump": "core dump", "do_coredump": "core dump", "kdamond_fn": "DAMON",
    "__do_sys_swapoff": "swapoff", "__mmu_notifier_register": "mmu_notifier_register",
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
        if operation := _own(_WORK.get(name) or found, call):
            return operation
    return call


def _work(stack: Sequence[str], call: str) -> str:
    """Name whose work it is, by the outermost function that tells."""
    return next((_own(_WORK[name], call) for name in reversed(stack) if name in _WORK), "")
