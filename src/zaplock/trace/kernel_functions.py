"""Which functions of the kernel ask for an mmap_lock, run under it, or have let go of it.

Functions are named as in the kernels that have them, 4.4 to 6.18; a name that a kernel lacks does
no harm. What a whole stack says by them is in `kernel_stacks`.
"""

from __future__ import annotations

from zaplock import advice
from zaplock.trace.event_kinds import PAGE_FAULT
from zaplock.trace.madvise import POPULATES

READ, WRITE, EITHER = "shared", "exclusive", ""

ASKS = {
    **dict.fromkeys(
        (
            "vm_mmap_pgoff", "__vm_munmap", "vm_munmap", "vm_brk_flags", "do_mprotect_pkey",
            "do_mremap", "do_mlock", "apply_mlockall_flags", "do_shmat", "ksys_shmdt", "do_mbind",
            "do_mseal", "mlock_fixup", "__do_sys_brk", "__do_sys_mremap", "__do_sys_munlock",
            "__do_sys_munlockall", "__do_sys_mlockall", "__do_sys_remap_file_pages",
            "__do_sys_mseal", "__do_sys_pkey_alloc", "__do_sys_pkey_free", "__do_sys_prctl",
            "prctl_set_mm", "prctl_set_vma", "prctl_set_mm_map", "map_vdso", "map_vdso_once",
        ),
        (WRITE, ""),
    ),
    **dict.fromkeys(
        ("do_madvise", "madvise_lock", "do_process_madvise", "replace_mm_exe_file"), (EITHER, "")
    ),
    **dict.fromkeys(
        (
            "__do_sys_mincore", "__do_sys_msync", "__mm_populate", "do_pages_move",
            "do_pages_stat", "kernel_move_pages", "do_migrate_pages", "process_vm_rw_core",
            "process_vm_rw_single_vec", "__do_sys_process_mrelease", "do_get_mempolicy",
            "add_page_for_migration", "add_folio_for_migration", "kernel_get_mempolicy",
            "migrate_to_node", "madvise_do_behavior", "madvise_vma_behavior", "madvise_collapse",
            "get_user_pages", "get_user_pages_remote", "get_futex_key", "fault_in_user_writeable",
            "fault_in_safe_writeable", "vdso_join_timens",
            "tcp_zerocopy_receive", "xdp_umem_create", "kvm_host_page_size",
            "proc_pid_ksm_stat",
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
    "lock_next_vma": (READ, ""), "lock_next_vma_under_mmap_lock": (READ, ""),
    "query_matching_vma": (READ, ""), "get_dump_page": (READ, "core dump"),
    "dump_user_range": (READ, "core dump"), "begin_new_exec": (READ, ""),
    "show_smaps_rollup": (READ, "read of smaps_rollup"), "pagemap_read": (READ, ""),
    "do_pagemap_scan": (READ, ""), "clear_refs_write": (WRITE, "write of clear_refs"),
    "proc_map_files_readdir": (READ, ""),
    **dict.fromkeys(
        ("proc_map_files_lookup", "map_files_get_link", "map_files_d_revalidate"),
        (READ, "look-up in map_files"),
    ),
    "dump_vma_snapshot": (WRITE, "core dump"),
    "userfaultfd_register": (WRITE, "UFFDIO_REGISTER"),
    "userfaultfd_unregister": (WRITE, "UFFDIO_UNREGISTER"),
    "userfaultfd_release": (WRITE, "close of a userfaultfd"),
    "userfaultfd_release_all": (WRITE, "close of a userfaultfd"),
    "mfill_atomic": (READ, "UFFDIO_COPY"), "mwriteprotect_range": (READ, "UFFDIO_WRITEPROTECT"),
    "uffd_mfill_lock": (READ, ""), "uffd_move_lock": (READ, "UFFDIO_MOVE"),
    "uffd_lock_vma": (READ, ""), "userfaultfd_release_new": (WRITE, "close of a userfaultfd"),
    "collapse_huge_page": (EITHER, "khugepaged"),
    "khugepaged_scan_mm_slot": (READ, "khugepaged"),
    "collapse_scan_mm_slot": (READ, "khugepaged"), "__khugepaged_exit": (WRITE, "exit"),
    "khugepaged": (READ, "khugepaged"), "ksm_scan_thread": (READ, "ksmd"),
    "scan_get_next_rmap_item": (READ, "ksmd"), "unmerge_and_remove_all_rmap_items": (READ, "ksmd"),
    "break_cow": (READ, "ksmd"), "try_to_merge_with_ksm_page": (READ, "ksmd"),
    "__ksm_exit": (WRITE, "exit"), "ksm_enable_merge_any": (WRITE, ""),
    "register_for_each_vma": (WRITE, "uprobe registration"),
    **dict.fromkeys(("__create_xol_area", "arch_uprobe_optimize"), (WRITE, "uprobe hit")),
    "find_active_uprobe_rcu": (READ, "uprobe hit"),
    "__oom_reap_task_mm": (READ, "oom_reaper"),
    "oom_reap_task_mm": (READ, "oom_reaper"), "task_numa_work": (READ, "NUMA balancing"),
    "io_sqe_buffer_register": (READ, ""), "hva_to_pfn_slow": (READ, "KVM page fault"),
    "hva_to_pfn": (READ, "KVM page fault"), "async_pf_execute": (READ, "KVM page fault"),
    "binder_alloc_free_page": (READ, ""), "binder_alloc_new_buf": (READ, ""),
    "mmu_notifier_register": (WRITE, "mmu_notifier_register"),
    "account_locked_vm": (WRITE, ""), "aio_setup_ring": (WRITE, ""), "ioctx_alloc": (WRITE, ""),
    "__do_sys_set_mempolicy_home_node": (WRITE, ""), "mpol_rebind_mm": (WRITE, "cpuset change"),
    "cpuset_migrate_mm_workfn": (READ, "cpuset change"),
    "mem_cgroup_move_charge": (READ, "cgroup change"),
    "mem_cgroup_move_task": (READ, "cgroup change"),
    "unuse_mm": (READ, "swapoff"), "try_to_unuse": (READ, "swapoff"),
    "__do_sys_swapoff": (READ, "swapoff"),
    "acct_collect": (READ, "exit"),
    "damon_va_prepare_access_checks": (READ, "DAMON"), "damon_va_check_accesses": (READ, "DAMON"),
    "damon_va_mkold": (READ, "DAMON"), "damon_va_young": (READ, "DAMON"),
    "damon_va_three_regions": (READ, "DAMON"), "damos_madvise": (READ, "DAMON"),
    "task_vma_seq_get_next": (READ, "BPF iterator"), "copy_remote_vm_str": (READ, "BPF program"),
    "perf_event_addr_filters_apply": (READ, "perf address filter"),
    "trace_user_stack_print": (READ, "print of a trace"),
    "amdgpu_ttm_tt_get_user_pages": (READ, ""), "svm_range_set_attr": (WRITE, ""),
}  # fmt: skip
"""Who asks for the lock: function, mode, what for ("": the system call's own name).

All that call an mmap_lock's tracepoint in 6.18 are here, read from its machine code, but those that
only try, those whose lock nobody else has yet (of an exec's new address space), and vfs_coredump,
which also sleeps for other reasons. The entry of a call stands under `__do_sys_`.
"""

THREADS_END = "an execve that waits until its other threads have ended"
"""What a task does that sleeps in begin_new_exec beside other threads (de_thread, inlined).

Alone in its process it waits there for the lock of its old memory (exec_mmap, inlined).
"""

HAS = {
    **dict.fromkeys(
        (
            "do_vmi_munmap", "do_vmi_align_munmap", "do_mas_munmap", "do_mas_align_munmap",
            "__do_munmap", "do_munmap", "do_mmap", "mmap_region", "__mmap_region", "mmap_pgoff",
            "do_brk_flags", "mprotect_fixup", "change_protection", "move_vma", "move_page_tables",
            "mremap_to", "mremap_at", "copy_vma", "apply_vma_lock_flags", "mlock_vma_pages_range",
            "copy_page_range", "vma_modify", "vma_modify_flags", "__split_vma", "vma_merge",
            "do_mbind_range", "mbind_range", "unmerge_ksm_pages", "__ksm_add_vma",
            "madvise_set_anon_name", "set_anon_vma_name", "mlock_pte_range",
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
            "hmm_range_fault", "handle_mm_fault", "folio_walk_start", "walk_page_range",
            "walk_page_range_mm",
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
"""Who has it, being inside: function, mode, what for."""

WALKS_VMAS = frozenset({"m_start", "m_next", "proc_get_vma"})
FILES_OF_VMAS = frozenset({"maps", "smaps", "numa_maps"})
"""The files that go from VMA to VMA by these functions, all of them by the same."""

INSIDE_OF = {
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
    "mlock_fixup": (WRITE, ""),
    "apply_mlockall_flags": (WRITE, ""),
    "do_pages_stat": (READ, ""),
    "do_pages_stat_array": (READ, ""),
    "__access_remote_vm": (READ, ""),
    "access_remote_vm": (READ, ""),
}
"""These mean what they do only below (called by) one that asks; the mode is of the holder."""

ZAPS = frozenset(
    {
        "unmap_region", "vms_clear_ptes", "unmap_vmas", "unmap_page_range", "unmap_single_vma",
        "free_pgtables", "tlb_finish_mmu", "vms_complete_munmap_vmas",
    }
)  # fmt: skip
"""After a downgrade: the page work of `DOWNGRADES`, which let go of the exclusive lock before."""

EXIT_ZAPS = frozenset({"unmap_vmas", "unmap_single_vma", "unmap_page_range"})
EXIT_ZAPS_SHARED = (6, 1)
"""From here on exit_mmap unmaps under the shared lock, and frees page tables and VMAs under the
exclusive one (bf3980c85212); before, all of it is under the exclusive one."""

DOWNGRADES = frozenset({"__vm_munmap", "__do_sys_brk", "do_mremap", "__do_sys_mremap", "mremap"})

LETS_GO = frozenset(
    {
        "vfs_fallocate", "vfs_fadvise",  # of madvise: MADV_REMOVE, MADV_WILLNEED
        "alloc_charge_folio", "alloc_charge_hpage", "khugepaged_alloc_page",
        "collapse_file", "hpage_collapse_scan_file", "collapse_scan_file", "khugepaged_scan_file",
        "lru_cache_disable", "generic_fadvise",
        "filemap_fault", "__folio_lock_or_retry", "__lock_page_or_retry",  # they may have
    }
)  # fmt: skip
"""These have let go of the lock, whoever called them; so have those of `UNANSWERED`."""

KEEPS = frozenset({"__access_remote_vm", "access_remote_vm"})
"""Whoever faults a page in for these keeps the lock until the page is there, however long that
takes: they can't come again (`get_user_pages_remote` without `locked`)."""

READS_PAGES = frozenset({"filemap_fault", "__folio_lock_or_retry", "__lock_page_or_retry"})
"""A page fault that waits in these waits for a file system, or for swap.

The first time that it comes so far it lets go of the lock; if it came a second time, it keeps it.
"""

SINCE = {"exit_mmap": (5, 17)}  # 64591e8605d6
"""From this release on under the mmap_lock, before it under none."""

UNTIL = {
    **dict.fromkeys(("show_map", "show_map_vma"), (6, 17)),  # 5631da56c9a8
    **dict.fromkeys(
        ("mfill_atomic", "mfill_atomic_pte", "mfill_atomic_copy", "mfill_atomic_zeropage",
         "mfill_atomic_continue", "mfill_atomic_poison", "move_pages"), (6, 9)),
    "handle_mm_fault": (6, 4),  # 5e31275cc997; later ones may have the lock, mostly they haven't
}  # fmt: skip
"""Until this release under the mmap_lock, from it on under the locks of the VMAs."""

CALLERS = {
    "mwriteprotect_range": READ, "migrate_to_node": READ, "do_mbind": WRITE,
    "clear_refs_write": WRITE, "mlock_fixup": WRITE, "apply_mlockall_flags": WRITE,
    "ksm_del_vmas": WRITE, "unmerge_and_remove_all_rmap_items": READ,
}  # fmt: skip
"""Whatever is above these on the stack has the lock in their mode."""

ADVISED_ZAPS = frozenset(
    {
        "madvise_dontneed_free", "madvise_dontneed_single_vma", "madvise_free_single_vma",
        "zap_page_range_single", "zap_page_range_single_batched", "zap_page_range",
    }
)  # fmt: skip
"""MADV_DONTNEED and MADV_FREE at work."""

ZAP_UNDER_VMA_LOCK = (6, 17)
"""From here on MADV_DONTNEED and MADV_FREE take the lock of their VMA (a6fde7add78d)."""

GUARDS_UNDER_VMA_LOCK = (6, 19)
"""And from here on the guards (2ab7f1bbafc9)."""

ADVICE = {
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
    **dict.fromkeys(("madvise_populate", "faultin_page_range"), POPULATES),
}  # fmt: skip
"""Which advice an madvise gives, where nobody saw it called."""

USERFAULT = "a page fault that its userfaultfd monitor has to answer"
"""What a task does that sleeps in `handle_userfault`."""

USEREVENT = "a call of which its userfaultfd monitor has to be told"
"""What a task does that sleeps in `userfaultfd_event_wait_completion`."""

UNANSWERED = (USERFAULT, USEREVENT)

SERVES_FUSE = "serving a FUSE file system"
"""What a process does that has /dev/fuse open, where somebody waits for the answer of one."""

FROZEN = "frozen with its cgroup"

HALTED = {
    "do_signal_stop": "stopped by a signal",
    "ptrace_stop": "stopped by its tracer", "ptrace_signal": "stopped by its tracer",
    "do_freezer_trap": FROZEN, "__refrigerator": FROZEN,
    "coredump_task_exit": "kept until the core of its process is written",
    "mem_cgroup_oom_synchronize": "out of memory in its cgroup",
    "seccomp_do_user_notification": "waiting for the answer of a seccomp listener",
}  # fmt: skip
"""What a task is that runs no program until somebody lets it, by what it sleeps in."""

DUMPED = frozenset({"coredump_task_exit", "do_exit"})
"""What a thread sleeps in while another one writes their core; the first is often inlined.

In do_exit a task of a process that dumps no core waits for its mmap_lock (exit_mm, inlined).
"""

MAPPERS_TAKEN = frozenset(
    {
        "__mmap_region", "mmap_region", "vma_link", "vma_link_file", "__vma_link_file",
        "unlink_file_vma", "unlink_file_vma_batch_process", "unlink_file_vma_batch_final",
        "free_pgtables", "vma_prepare", "__split_vma", "vma_merge", "commit_merge", "vma_shrink",
        "copy_vma", "__vma_adjust", "vma_adjust",
    }
)  # fmt: skip
"""Whoever sleeps directly in these waits for the lock of a file's mappings (i_mmap_rwsem)."""

MAPPERS_HELD = frozenset(
    {
        "unmap_mapping_range", "unmap_mapping_pages", "unmap_mapping_folio", "unmap_mapping_page",
        "unmap_mapping_range_tree", "hugetlb_vmdelete_list", "rmap_walk_file",
        "retract_page_tables",
    }
)  # fmt: skip
"""Whoever is in these has the lock of some file's mappings: a truncation, a punched hole."""

RETURNS = frozenset(
    {"exit_to_user_mode_loop", "irqentry_exit_to_user_mode", "exit_to_user_mode_prepare",
     "prepare_exit_to_usermode", "exit_to_usermode_loop", "arch_do_signal_or_restart", "do_signal",
     "do_notify_resume", "get_signal"}
)  # fmt: skip
"""On the way back to user mode: what a task came for (a fault, a call) is done below these."""

CALLS = {
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
"""Inlined or tail-called system calls: what remains on the stack."""

OF_KERNEL_THREADS = frozenset({"khugepaged", "ksmd", "oom_reaper"})

ON_OTHERS = OF_KERNEL_THREADS | {
    "DAMON", "swapoff", "cpuset change", "cgroup change", "uprobe registration", "BPF iterator",
    "BPF program", "perf address filter", "print of a trace", "look-up in map_files",
}  # fmt: skip
"""These take the lock of whoever it is: nothing tells whose."""

WORK = {
    "mem_rw": "access to mem", "proc_pid_cmdline_read": "read of cmdline",
    "get_mm_cmdline": "read of cmdline", "environ_read": "read of environ",
    "pagemap_read": "read of pagemap", "do_pagemap_scan": "PAGEMAP_SCAN",
    "io_wq_worker": "io_uring", "io_submit_sqes": "io_uring", "__do_sys_io_uring_enter": "io_uring",
    "khugepaged": "khugepaged", "ksm_scan_thread": "ksmd", "oom_reaper": "oom_reaper",
    "task_numa_work": "NUMA balancing", "dump_vma_snapshot": "core dump",
    "vfs_coredump": "core dump", "do_coredump": "core dump", "kdamond_fn": "DAMON",
    "__do_sys_swapoff": "swapoff", "__mmu_notifier_register": "mmu_notifier_register",
}  # fmt: skip
"""Whose work it is that takes the lock, where no system call's name tells."""

FAULTS = frozenset(
    {"exc_page_fault", "asm_exc_page_fault", "do_user_addr_fault", "__do_page_fault",
     "do_page_fault", "do_mem_abort", "el1_abort"}
)  # fmt: skip
