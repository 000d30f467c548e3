"""What a task sleeps on inside the kernel, by the functions on its stack.

Of the functions that the table knows the most telling decides. Names are those of kernels 5.11 to
6.18; a compiler may have added a suffix (.part.0, .isra.0).
"""

from __future__ import annotations

VMA_LOCK = "a VMA's lock"
RMAP_LOCK = "a file's i_mmap lock or an anon_vma's"
FROZEN_FILES = "a file system that is frozen (fsfreeze -u lets it go on)"
FUSE = "the answer of a FUSE file system"
NOT_KNOWN = "(not known on what)"

_REASONS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (VMA_LOCK, ("vma_start_write", "__vma_start_write", "__vma_enter_locked", "vma_start_read",
                "vma_start_write_killable", "lock_vma_under_rcu")),
    ("a userfaultfd monitor", ("handle_userfault", "userfaultfd_event_wait_completion",
                               "userfaultfd_unmap_complete")),
    ("memory reclaim", ("try_to_free_pages", "try_to_free_mem_cgroup_pages", "shrink_node",
                        "shrink_lruvec", "reclaim_throttle", "throttle_direct_reclaim",
                        "congestion_wait", "mem_cgroup_handle_over_high", "balance_pgdat",
                        "compaction_alloc", "try_to_compact_pages", "out_of_memory",
                        "mem_cgroup_oom_synchronize")),
    ("a page that is being migrated", ("migration_entry_wait", "migration_entry_wait_on_locked",
                                       "__migration_entry_wait", "pmd_migration_entry_wait")),
    (FUSE, ("request_wait_answer", "fuse_simple_request", "__fuse_simple_request",
            "fuse_request_send", "__fuse_request_send")),
    ("the answer of an NFS server", ("rpc_wait_bit_killable", "nfs_wait_bit_killable",
                                     "nfs_wait_on_request", "rpc_wait_for_completion_task")),
    ("swap", ("swap_read_folio", "swap_readpage", "do_swap_page", "swapin_readahead")),
    ("a file's pages (I/O)", ("filemap_fault", "filemap_read", "filemap_update_page",
                              "page_cache_ra_unbounded", "read_pages", "do_read_cache_folio",
                              "wait_on_page_writeback", "folio_wait_writeback", "write_cache_pages",
                              "file_write_and_wait_range", "filemap_write_and_wait_range",
                              "submit_bio_wait", "blk_mq_get_tag", "jbd2_log_wait_commit",
                              "__wait_on_buffer")),
    ("I/O", ("io_schedule", "io_schedule_timeout")),
    ("a page's lock", ("__folio_lock", "__folio_lock_killable", "__folio_lock_or_retry",
                       "folio_wait_bit", "folio_wait_bit_common", "__lock_page",
                       "__lock_page_killable", "wait_on_page_bit")),
    (RMAP_LOCK, ("unlink_file_vma", "unlink_file_vma_batch_process",
                                               "vma_link", "vma_prepare", "unlink_anon_vmas",
                                               "anon_vma_clone", "anon_vma_fork", "dup_mmap",
                                               "vma_link_file", "__vma_link_file")),
    ("an MMU notifier (a virtual machine or a device)", (
        "__mmu_notifier_invalidate_range_start", "mn_hlist_invalidate_range_start")),
    ("RCU (a grace period)", ("__wait_rcu_gp", "synchronize_rcu", "synchronize_rcu_expedited",
                              "synchronize_rcu_normal", "synchronize_srcu")),
    ("another CPU", ("wait_for_completion", "wait_for_common", "flush_work", "lru_add_drain_all",
                     "__lru_add_drain_all")),
    ("another kernel lock", ("rwsem_down_read_slowpath", "rwsem_down_write_slowpath",
                             "__mutex_lock", "mutex_lock", "mutex_lock_killable",
                             "__mutex_lock_slowpath", "percpu_rwsem_wait", "__down_common")),
)  # fmt: skip
_STARTS_WRITING = frozenset(
    {"vfs_write", "mnt_want_write", "mnt_want_write_file", "xfs_write_fault", "do_page_mkwrite",
     "__xfs_filemap_fault", "vfs_fallocate", "do_sys_ftruncate", "do_ftruncate", "io_write"}
)  # fmt: skip
"""Whoever sleeps in percpu_rwsem_wait directly below these, or below a file system's page_mkwrite,
is about to write to a file system that is frozen (sb_start_write, sb_start_pagefault, inlined)."""

_BY_FUNCTION = {name: reason for reason, names in _REASONS for name in names}
_PLAINER = {reason: place for place, (reason, _) in enumerate(_REASONS)}


def reason_of(kernel: tuple[str, ...]) -> str:
    """Say what a sleep was for, by its kernel stack; "" where the table knows none of it.

    Of several known functions the most telling decides: waiting for a page's lock inside of
    reclaim is reclaim. The table is in that order.
    """
    if _waits_for_a_thaw(kernel):
        return FROZEN_FILES
    names = {name.partition(".")[0] for name in kernel}
    found = {_BY_FUNCTION.get(name, "") for name in names} - {""}
    if not any(name.startswith("rwsem_down_") for name in names):
        found -= {RMAP_LOCK}
    return min(found, key=lambda reason: _PLAINER[reason], default="")


def _waits_for_a_thaw(kernel: tuple[str, ...]) -> bool:
    if "percpu_rwsem_wait" not in kernel:
        return False
    callers = kernel[kernel.index("percpu_rwsem_wait") + 1 :]
    below = next((name for name in callers if "percpu_down_read" not in name), "")
    return below.partition(".")[0] in _STARTS_WRITING or below.endswith("_page_mkwrite")
