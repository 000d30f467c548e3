"""What a kernel stack says of an mmap_lock: stacks as real kernels print them."""

import pytest

from zaplock import advice
from zaplock.trace.kernel_functions import THREADS_END, USEREVENT, USERFAULT
from zaplock.trace.kernel_stacks import (
    advice_of,
    functions,
    has_mappers,
    may_have_a_vmas_lock,
    meaning,
    operation_of,
    syscall_of,
    waits_for_mappers,
)
from zaplock.trace.madvise import POPULATES, advised
from zaplock.trace.sleep_reasons import FROZEN_FILES, reason_of

NEW, OLD = (6, 18), (5, 10)

MUNMAP_6_18 = """
[<0>] unmap_page_range+0x6fb/0x1460
[<0>] unmap_vmas+0x94/0x180
[<0>] vms_clear_ptes.part.0+0xc6/0x150
[<0>] vms_complete_munmap_vmas+0x12e/0x1d0
[<0>] do_vmi_align_munmap+0x1b5/0x230
[<0>] do_vmi_munmap+0xcc/0x1a0
[<0>] __vm_munmap+0xaf/0x180
[<0>] __x64_sys_munmap+0x17/0x30
[<0>] do_syscall_64+0x71/0x280
[<0>] entry_SYSCALL_64_after_hwframe+0x76/0x7e
"""

# As a hung-task report prints it, with the scheduler's own functions.
HUNG_PS = """
 __schedule+0x23c/0x810
 schedule+0x2f/0x80
 rwsem_down_read_slowpath+0x2ef/0x500
 down_read_killable+0x47/0xa0
 __access_remote_vm+0x4d/0x3b0
 proc_pid_cmdline_read+0x197/0x4b0
 vfs_read+0xbb/0x360
 __x64_sys_read+0x66/0xe0
"""


def said(stack: str, *, asleep: bool = True, kernel: tuple[int, int] = NEW) -> tuple[str, str, str]:
    names = functions(stack) if "\n" in stack else tuple(stack.split(" < "))
    found = meaning(names, asleep=asleep, kernel=kernel)
    return found.does, found.mode, found.operation


def test_a_munmap_past_its_downgrade_has_the_lock_shared() -> None:
    assert said(MUNMAP_6_18, asleep=False) == ("holds", "shared", "munmap")


def test_a_munmap_before_its_page_work_has_it_exclusively() -> None:
    stack = "vms_gather_munmap_vmas < do_vmi_align_munmap < do_vmi_munmap < __vm_munmap"
    assert said(stack, asleep=False) == ("holds", "exclusive", "munmap")


def test_an_mmap_over_something_never_downgrades() -> None:
    stack = "unmap_vmas < vms_clear_ptes < __mmap_region < do_mmap < vm_mmap_pgoff"
    assert said(stack, asleep=False) == ("holds", "exclusive", "mmap")


@pytest.mark.parametrize(
    ("stack", "mode", "operation"),
    [
        ("vm_mmap_pgoff < do_syscall_64", "exclusive", "mmap"),
        ("__vm_munmap < __x64_sys_munmap", "exclusive", "munmap"),
        ("__do_sys_brk < do_syscall_64", "exclusive", "brk"),
        ("do_mprotect_pkey < __x64_sys_mprotect", "exclusive", "mprotect"),
        ("dup_mmap < dup_mm < copy_process < kernel_clone < __do_sys_clone", "exclusive", "clone"),
        ("lock_mm_and_find_vma < do_user_addr_fault < exc_page_fault", "shared", "page fault"),
        ("m_start < seq_read_iter < vfs_read < ksys_read", "shared", "read"),
        ("clear_refs_write < vfs_write < ksys_write", "exclusive", "write of clear_refs"),
        ("process_vm_rw_core < process_vm_rw", "shared", "process_vm_readv"),
        (
            "lock_mm_and_find_vma < do_user_addr_fault < exc_page_fault < asm_exc_page_fault < "
            "rep_stos_alternative < vfs_read < ksys_read < __x64_sys_read",
            "shared",
            "read (kernel-mode fault)",
        ),
    ],
)
def test_who_sleeps_in_the_function_that_asks_waits(stack: str, mode: str, operation: str) -> None:
    assert said(stack) == ("waits", mode, operation)


def test_the_slow_path_says_the_mode_where_the_stack_has_it() -> None:
    assert said(HUNG_PS) == ("waits", "shared", "read of cmdline")
    old = "call_rwsem_down_write_failed_killable < down_write_killable < vm_mmap_pgoff < SyS_mmap"
    assert said(old, kernel=(4, 9)) == ("waits", "exclusive", "mmap")


def test_a_task_that_runs_in_such_a_function_does_not_wait() -> None:
    assert said("vm_mmap_pgoff < do_syscall_64", asleep=False)[0] == ""


def test_a_wait_for_another_rwsem_is_no_wait_for_this_one() -> None:
    stack = "rwsem_down_write_slowpath < down_write < ext4_file_write_iter < vfs_write < ksys_write"
    assert said(stack) == ("", "", "write")


@pytest.mark.parametrize(
    ("stack", "mode", "operation"),
    [
        ("smaps_pte_range < walk_pgd_range < smap_gather_stats < show_smap < seq_read_iter",
         "shared", "read of smaps"),
        ("smaps_pte_range < walk_page_vma < show_smaps_rollup < seq_read", "shared",
         "read of smaps_rollup"),
        ("clear_refs_pte_range < walk_page_range < clear_refs_write < vfs_write < ksys_write",
         "exclusive", "write of clear_refs"),
        ("copy_page_range < dup_mmap < copy_process < __do_sys_clone", "exclusive", "clone"),
        ("unmap_page_range < unmap_vmas < exit_mmap < mmput < do_exit", "shared", "exit"),
        ("folio_wait_bit < populate_vma_page_range < __mm_populate < do_mlock < __x64_sys_mlock",
         "shared", "mlock"),
        ("mlock_pte_range < walk_pgd_range < walk_page_range_mm < mlock_fixup < "
         "apply_mlockall_flags < __do_sys_mlockall", "exclusive", "mlockall"),
        ("vm_normal_page < folio_walk_start < do_pages_stat < kernel_move_pages < "
         "__x64_sys_move_pages", "shared", "move_pages"),
        ("huge_pte_offset < __walk_page_range < walk_page_range_mm < do_pagemap_scan < "
         "__x64_sys_ioctl", "shared", "PAGEMAP_SCAN"),
        ("find_vma < pagemap_pte_hole < walk_pgd_range < walk_page_range_mm < pagemap_read < "
         "vfs_read < ksys_read", "shared", "read of pagemap"),
        ("break_ksm < unmerge_ksm_pages < ksm_del_vmas < ksm_disable_merge_any < __do_sys_prctl",
         "exclusive", "prctl"),
    ],
)  # fmt: skip
def test_who_is_deeper_inside_has_it(stack: str, mode: str, operation: str) -> None:
    assert said(stack) == ("holds", mode, operation)


@pytest.mark.parametrize(
    ("kernel", "unmaps", "frees"),
    [
        (NEW, ("holds", "shared", "exit"), ("holds", "exclusive", "exit")),
        ((6, 0), ("holds", "exclusive", "exit"), ("holds", "exclusive", "exit")),
        ((5, 16), ("", "", "exit"), ("", "", "exit")),
    ],
)
def test_an_exit_frees_its_page_tables_exclusively(
    kernel: tuple[int, int], unmaps: tuple[str, str, str], frees: tuple[str, str, str]
) -> None:
    """What /proc shows of an exit on 6.18; and no lock at all before 64591e8605d6 (5.17)."""
    end = "exit_mmap < __mmput < do_exit < do_group_exit"
    assert said(f"zap_pte_range < unmap_vmas < {end}", asleep=False, kernel=kernel) == unmaps
    assert said(f"unlink_anon_vmas < free_pgtables < {end}", asleep=False, kernel=kernel) == frees


BRINGS = "request_wait_answer < fuse_do_readfolio < filemap_fault < __do_fault < handle_mm_fault"


def test_who_reads_anothers_memory_keeps_the_lock_while_a_page_is_brought() -> None:
    """access_remote_vm can't come again for the page, so it doesn't let go of the lock for it."""
    reads = "__get_user_pages < get_user_pages_remote < __access_remote_vm < mem_rw < vfs_read"
    assert said(f"{BRINGS} < {reads}") == ("holds", "shared", "access to mem")
    assert said("__pi_memcpy < __access_remote_vm < mem_rw < vfs_read", asleep=False)[0] == "holds"


@pytest.mark.parametrize(
    ("stack", "operation"),
    [
        (f"{BRINGS} < do_user_addr_fault < exc_page_fault", "page fault"),
        (f"{BRINGS} < __get_user_pages < populate_vma_page_range < do_mlock < __x64_sys_mlock",
         "mlock"),
        ("zap_pte_range < zap_page_range_single_batched < madvise_vma_behavior < do_madvise",
         "madvise"),
        ("clear_page_erms < handle_mm_fault < do_user_addr_fault < exc_page_fault", ""),
    ],
)  # fmt: skip
def test_a_stack_may_leave_open_whether_it_has_the_lock(stack: str, operation: str) -> None:
    """A second fault on the same page keeps the lock; so does an madvise over several VMAs."""
    found = meaning(stack.split(" < "), asleep=True, kernel=NEW)
    assert (found.does, found.operation, found.perhaps) == ("", operation, True)


def test_madvise_frees_under_its_vmas_lock_from_6_17_on() -> None:
    stack = "unmap_page_range < zap_page_range_single_batched < madvise_dontneed_free < do_madvise"
    assert said(stack, asleep=False, kernel=(6, 17)) == ("", "", "madvise")
    assert said(stack, asleep=False, kernel=(6, 16)) == ("holds", "shared", "madvise")


def test_a_fault_that_waits_for_its_monitor_has_let_go() -> None:
    stack = "handle_userfault < do_anonymous_page < __handle_mm_fault < handle_mm_fault"
    assert said(stack) == ("", "", USERFAULT)


@pytest.mark.parametrize(
    ("stack", "is_"),
    [
        ("do_signal_stop < get_signal < arch_do_signal_or_restart", "stopped by a signal"),
        ("ptrace_stop < get_signal < arch_do_signal_or_restart", "stopped by its tracer"),
        ("ptrace_stop < ptrace_do_notify < ptrace_notify < do_syscall_64", "stopped by its tracer"),
        ("do_freezer_trap < get_signal", "frozen with its cgroup"),
        ("__refrigerator < get_signal", "frozen with its cgroup"),
        (
            "coredump_task_exit < do_exit < get_signal",
            "kept until the core of its process is written",
        ),
        (
            "mem_cgroup_oom_synchronize < pagefault_out_of_memory < exc_page_fault",
            "out of memory in its cgroup",
        ),
    ],
)
def test_a_task_that_is_halted_waits_for_no_lock(stack: str, is_: str) -> None:
    assert said(stack) == ("", "", is_)


def test_a_killed_thread_waits_for_the_lock_unless_a_core_is_written() -> None:
    """Both sleep in do_exit, into which compilers inline exit_mm and coredump_task_exit."""
    stack = "do_exit < do_group_exit < get_signal < arch_do_signal_or_restart < do_syscall_64"
    assert said(stack) == ("waits", "shared", "exit")
    dumped = meaning(stack.split(" < "), asleep=True, kernel=NEW, dumps_core=True)
    assert dumped.operation == "kept until the core of its process is written"


def test_who_may_have_the_lock_of_a_files_mappings() -> None:
    truncates = ["unmap_page_range", "unmap_mapping_range", "shmem_setattr", "do_truncate"]
    assert has_mappers(truncates)
    assert not has_mappers(truncates[1:]), "asleep in that function it waits for it itself"
    assert waits_for_mappers(["__schedule", "__mmap_region", "do_mmap"])
    assert not waits_for_mappers(["alloc_pages_noprof", "__mmap_region", "do_mmap"])


def test_what_a_signal_brings_after_a_fault_is_not_the_fault() -> None:
    """A core is written on the way back to user mode, in the frame of the fault that ended it."""
    back = "vfs_coredump < get_signal < irqentry_exit_to_user_mode < asm_exc_page_fault"
    stack = f"__get_user_pages < get_dump_page < dump_user_range < elf_core_dump < {back}"
    assert said(stack, asleep=False) == ("holds", "shared", "core dump")
    ending = "unmap_page_range < exit_mmap < mmput < do_exit < do_group_exit < get_signal"
    whole = f"{ending} < irqentry_exit_to_user_mode < asm_exc_page_fault"
    assert said(whole, asleep=False) == ("holds", "shared", "exit")


def test_a_populate_is_one_of_two() -> None:
    stack = "clear_page_erms < handle_mm_fault < __get_user_pages < faultin_page_range < do_madvise"
    number = advice_of(stack.split(" < "))
    assert number is not None
    assert advised("madvise", number) == "madvise(MADV_POPULATE_READ or MADV_POPULATE_WRITE)"


def test_a_stack_that_tells_nothing_means_nothing() -> None:
    assert said("do_epoll_wait < __x64_sys_epoll_wait") == ("", "", "epoll_wait")
    assert meaning((), asleep=True, kernel=NEW) == meaning(["schedule"], asleep=True, kernel=NEW)
    assert syscall_of(["foo", "bar"]) == ""


MADVISE = " < madvise_vma_behavior < madvise_do_behavior < do_madvise < __x64_sys_madvise"


@pytest.mark.parametrize(
    ("stack", "kernel", "does", "given"),
    [
        ("madvise_cold_or_pageout_pte_range < madvise_cold", NEW, "holds", advice.MADV_COLD),
        ("shrink_folio_list < reclaim_pages < madvise_pageout", NEW, "holds", advice.MADV_PAGEOUT),
        ("hpage_collapse_scan_pmd < madvise_collapse", NEW, "holds", advice.MADV_COLLAPSE),
        ("unmap_page_range < zap_page_range_single_batched", NEW, "", advice.MADV_DONTNEED),
        ("madvise_free_pte_range < madvise_free_single_vma", NEW, "", advice.MADV_FREE),
        ("madvise_free_pte_range < madvise_free_single_vma", OLD, "holds", advice.MADV_FREE),
        # A guard zaps as well, under the mmap_lock until 6.19.
        (
            "unmap_page_range < zap_page_range_single_batched < zap_page_range_single",
            NEW, "holds", advice.MADV_GUARD_INSTALL,
        ),
        (
            "unmap_page_range < zap_page_range_single_batched < zap_page_range_single",
            (6, 19), "", advice.MADV_GUARD_INSTALL,
        ),
        # The file is cut with the lock let go of.
        ("shmem_undo_range < shmem_fallocate < vfs_fallocate", NEW, "", advice.MADV_REMOVE),
        ("read_pages < vfs_fadvise", NEW, "", advice.MADV_WILLNEED),
        ("__get_user_pages < faultin_page_range", NEW, "holds", POPULATES),
    ],
)  # fmt: skip
def test_an_madvise_that_nobody_saw_called_is_told_by_its_functions(
    stack: str, kernel: tuple[int, int], does: str, given: int | None
) -> None:
    whole = stack + MADVISE
    assert said(whole, asleep=False, kernel=kernel)[0::2] == (does, "madvise")
    assert advice_of(whole.split(" < ")) == given


@pytest.mark.parametrize(
    ("stack", "kernel", "meant"),
    [
        ("mfill_atomic_copy < userfaultfd_ioctl < __x64_sys_ioctl", NEW, ("", "", "ioctl")),
        (
            "mfill_atomic_copy < userfaultfd_ioctl < __x64_sys_ioctl",
            (6, 6), ("holds", "shared", "UFFDIO_COPY"),
        ),
        (
            "change_protection < uffd_wp_range < mwriteprotect_range < userfaultfd_ioctl",
            NEW, ("holds", "shared", "UFFDIO_WRITEPROTECT"),
        ),
        (
            "unmap_page_range < unmap_vmas < vms_clear_ptes < do_vmi_align_munmap < ksys_shmdt",
            NEW, ("holds", "exclusive", "shmdt"),
        ),
        (
            "queue_folios_pte_range < queue_pages_range < do_mbind < kernel_mbind",
            NEW, ("holds", "exclusive", "mbind"),
        ),
        (
            "queue_folios_pte_range < queue_pages_range < migrate_to_node < kernel_migrate_pages "
            "< __x64_sys_migrate_pages",
            NEW, ("holds", "shared", "migrate_pages"),
        ),
        # An exec ends the old address space, an exit its own.
        (
            "unmap_vmas < exit_mmap < __mmput < exec_mmap < begin_new_exec < __x64_sys_execve",
            NEW, ("holds", "shared", "execve"),
        ),
        ("unmap_vmas < exit_mmap < __mmput < do_exit", NEW, ("holds", "shared", "exit")),
        (
            "__get_user_pages < get_dump_page < dump_user_range < elf_core_dump < vfs_coredump",
            NEW, ("holds", "shared", "core dump"),
        ),
        # khugepaged looks for a huge page without the lock, and copies into it with it.
        (
            "try_to_compact_pages < alloc_charge_folio < collapse_huge_page < khugepaged",
            NEW, ("", "", "khugepaged"),
        ),
        (
            "__collapse_huge_page_copy < collapse_huge_page < khugepaged",
            NEW, ("holds", "exclusive", "khugepaged"),
        ),
        ("memcmp_pages < cmp_and_merge_page < ksm_scan_thread", NEW, ("", "", "ksmd")),
        ("unuse_pte_range < unuse_mm < __do_sys_swapoff", NEW, ("holds", "shared", "swapoff")),
        # A fault has the mmap_lock until 6.4, and afterwards that of its VMA.
        (
            "clear_huge_page < handle_mm_fault < do_user_addr_fault < exc_page_fault",
            (6, 1), ("holds", "shared", "page fault"),
        ),
        (
            "clear_huge_page < handle_mm_fault < do_user_addr_fault < exc_page_fault",
            NEW, ("", "", ""),
        ),
        ("show_map_vma < show_map < seq_read < __x64_sys_read", NEW, ("", "", "read")),
        (
            "show_map_vma < show_map < seq_read < __x64_sys_read",
            OLD, ("holds", "shared", "read of maps"),
        ),
        (
            "userfaultfd_event_wait_completion < userfaultfd_unmap_complete < __vm_munmap",
            NEW, ("", "", USEREVENT),
        ),
    ],
)  # fmt: skip
def test_whoever_has_let_go_of_the_lock_has_it_no_longer(
    stack: str, kernel: tuple[int, int], meant: tuple[str, str, str]
) -> None:
    assert said(stack, asleep=False, kernel=kernel) == meant


def test_a_collapse_that_was_asked_for_is_no_work_of_khugepaged() -> None:
    stack = ("collapse_huge_page", "hpage_collapse_scan_pmd", "madvise_collapse", "do_madvise")
    assert operation_of(stack) == "madvise"
    assert operation_of((*stack[:2], "khugepaged")) == "khugepaged"


@pytest.mark.parametrize(
    ("stack", "mode", "operation"),
    [
        ("__x64_sys_munlock < do_syscall_64", "exclusive", "munlock"),
        ("__x64_sys_mincore < do_syscall_64", "shared", "mincore"),
        ("__arm64_sys_munlockall < invoke_syscall", "exclusive", "munlockall"),
        ("lock_next_vma < proc_get_vma < seq_read_iter < vfs_read < ksys_read", "shared", "read"),
        ("migrate_to_node < do_migrate_pages < kernel_migrate_pages", "shared", ""),
        ("tcp_zerocopy_receive < do_tcp_getsockopt < __x64_sys_getsockopt", "shared", "getsockopt"),
        ("get_dump_page < dump_user_range < elf_core_dump < vfs_coredump", "shared", "core dump"),
    ],
)
def test_who_asks_in_a_function_that_others_are_inlined_into_waits(
    stack: str, mode: str, operation: str
) -> None:
    """Stacks of 6.18, whose machine code says which functions take the lock."""
    assert said(stack) == ("waits", mode, operation)


def test_an_execve_waits_for_its_threads_or_for_the_lock_of_its_old_memory() -> None:
    stack = ["begin_new_exec", "load_elf_binary", "bprm_execve", "__x64_sys_execve"]
    alone = meaning(stack, asleep=True, kernel=NEW, alone=True)
    assert (alone.does, alone.mode, alone.operation) == ("waits", "shared", "execve")
    beside = meaning(stack, asleep=True, kernel=NEW)
    assert (beside.does, beside.operation) == ("", THREADS_END)


def test_a_thread_that_a_seccomp_listener_keeps_is_told() -> None:
    stack = "seccomp_do_user_notification < __seccomp_filter < syscall_trace_enter"
    assert said(stack) == ("", "", "waiting for the answer of a seccomp listener")


@pytest.mark.parametrize(
    ("stack", "frozen"),
    [
        ("percpu_rwsem_wait < ext4_page_mkwrite < do_page_mkwrite < handle_mm_fault", True),
        ("percpu_rwsem_wait < __percpu_down_read < vfs_write < ksys_write", True),
        # A uprobe is being registered, a process is moved to another cgroup.
        ("percpu_rwsem_wait < dup_mm < copy_process < kernel_clone", False),
        ("percpu_rwsem_wait < cgroup_procs_write < kernfs_fop_write_iter < vfs_write", False),
    ],
)
def test_who_is_about_to_write_waits_for_a_frozen_file_system(stack: str, frozen: bool) -> None:
    assert (reason_of(tuple(stack.split(" < "))) == FROZEN_FILES) == frozen


def test_a_fault_has_its_vmas_lock_until_it_lets_go_of_it() -> None:
    fault = "do_wp_page < __handle_mm_fault < handle_mm_fault < exc_page_fault"
    assert may_have_a_vmas_lock(f"ext4_page_mkwrite < {fault}".split(" < "))
    assert not may_have_a_vmas_lock(f"handle_userfault < {fault}".split(" < "))
    assert not may_have_a_vmas_lock(f"filemap_fault < {fault}".split(" < "))
    assert may_have_a_vmas_lock(["unmap_page_range", "madvise_dontneed_single_vma", "do_madvise"])
