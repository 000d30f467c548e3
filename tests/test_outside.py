"""Who had the lock outside of a recorded call is named by its kernel stack, in every table."""

from __future__ import annotations

import pytest

from zaplock.advise.advice_by_kind import Means
from zaplock.advise.calls import from_recording
from zaplock.advise.costs import Costs
from zaplock.trace.analysis import Analysis, analyse
from zaplock.trace.handwritten import Log
from zaplock.trace.kernel_stacks import operation_of
from zaplock.trace.stack_reasons import StackReason
from zaplock.trace.stacks import KERNEL, NamedAddress, StackRow, in_order
from zaplock.trace.summary import NO_OPERATION, summarise
from zaplock.views.report_json import report_json
from zaplock.views.sentences import chain

MS = 1_000_000

READS = "seq_read_iter vfs_read ksys_read do_syscall_64 entry_SYSCALL_64_after_hwframe"


@pytest.mark.parametrize(
    ("stack", "operation"),
    [
        (f"smaps_pte_range walk_pgd_range show_smap {READS}", "read of smaps"),
        (f"smaps_pte_range smap_gather_stats show_smaps_rollup {READS}", "read of smaps_rollup"),
        ("clear_refs_pte_range clear_refs_write vfs_write ksys_write", "write of clear_refs"),
        ("walk_page_range pagemap_read vfs_read ksys_pread64", "read of pagemap"),
        ("__access_remote_vm proc_pid_cmdline_read vfs_read ksys_read", "read of cmdline"),
        ("__access_remote_vm mem_rw vfs_read ksys_pread64", "access to mem"),
        ("pin_user_pages_remote process_vm_rw_core __x64_sys_process_vm_readv", "process_vm_readv"),
        ("access_remote_vm ptrace_access_vm arch_ptrace __x64_sys_ptrace", "ptrace"),
        ("do_user_addr_fault exc_page_fault asm_exc_page_fault rep_movs vfs_read ksys_read",
         "read (kernel-mode fault)"),
        ("rwsem_down_read_slowpath do_user_addr_fault exc_page_fault asm_exc_page_fault",
         "page fault"),
        ("unmap_page_range unmap_vmas exit_mmap mmput do_exit get_signal", "exit"),
        ("hpage_collapse_scan_pmd khugepaged kthread ret_from_fork", "khugepaged"),
        ("cmp_and_merge_page ksm_scan_thread kthread", "ksmd"),
        ("populate_vma_page_range io_submit_sqes __do_sys_io_uring_enter", "io_uring"),
        ("copy_page_range dup_mmap copy_process kernel_clone __do_sys_clone", "clone"),
        ("something else", ""),
        ("", ""),
    ],
)  # fmt: skip
def test_a_stack_names_an_operation(stack: str, operation: str) -> None:
    assert operation_of(stack.split()) == operation


def convoy(*, taken_at: int) -> Analysis:
    """A reader holds the lock for 100 ms, a writer waits; one stack of the reader was taken."""
    log = Log()
    log.task(1, "mapper", 1, "server")
    log.task(9, "agent", 9, "agent")
    log.owner(7, 1)
    log.asked(10 * MS, tid=9, mm=7, write=False)
    log.acquired(10 * MS + 500, tid=9, mm=7, write=False)
    log.begin(20 * MS, tid=1, op="mmap", length=4096)
    log.asked(20 * MS + 1, tid=1, mm=7, write=True)
    log.released(110 * MS, tid=9, mm=7, write=False)
    log.acquired(110 * MS + 900, tid=1, mm=7, write=True)
    log.released(110 * MS + 2000, tid=1, mm=7, write=True)
    log.end(110 * MS + 2100, tid=1, op="mmap")
    functions = f"smaps_pte_range smap_gather_stats show_smaps_rollup {READS}".split()
    names = {(KERNEL, at): NamedAddress(text) for at, text in enumerate(functions, 1)}
    row = StackRow(taken_at, 9, 9, StackReason.SAMPLED, tuple(range(1, len(functions) + 1)), ())
    return analyse(log.events(), "6.18", stacks=in_order([row], names))


def test_the_readers_file_stands_everywhere() -> None:
    analysis = convoy(taken_at=50 * MS)
    summary = summarise(analysis)
    (worst,) = summary.explained
    assert worst.culprit is not None
    assert worst.culprit.operation == "read of smaps_rollup"
    assert (
        "agent (tid 9) in read of smaps_rollup, which held it shared" in chain(analysis, worst)[0]
    )
    assert summary.by_operation[0].name == "read of smaps_rollup"
    told = report_json(analysis, top=5)
    assert told["waits"][0]["blame"][0]["operation"] == "read of smaps_rollup"
    assert told["waits"][0]["operation"] == "mmap"
    assert told["holds"][0]["operation"] == "read of smaps_rollup"
    found = from_recording(summary, Costs(1 << 28, {}), least_ns=MS)
    (advice,) = found.advice
    assert advice.what == "read of smaps_rollup by agent (pid 9)"
    assert advice.means is Means.READER


def test_a_stack_from_another_time_names_nothing() -> None:
    analysis = convoy(taken_at=500 * MS)
    names = {group.name for group in summarise(analysis).by_operation}
    assert names == {NO_OPERATION, "mmap"}


def test_a_kernel_thread_is_named_by_itself_where_no_stack_was_taken() -> None:
    """Which does nothing else; a program of that name has an address space of its own."""

    def said(comm: str, *, own: bool = False) -> str:
        log = Log()
        log.task(1, "mapper", 1, "server")
        log.task(9, comm, 9, "")
        log.owner(7, 1)
        if own:
            log.owner(8, 9)
        log.asked(1 * MS, tid=9, mm=7, write=True)
        log.acquired(1 * MS + 500, tid=9, mm=7, write=True)
        log.begin(2 * MS, tid=1, op="mmap", length=4096)
        log.asked(2 * MS + 1, tid=1, mm=7, write=True)
        log.released(3 * MS, tid=9, mm=7, write=True)
        log.acquired(3 * MS + 100, tid=1, mm=7, write=True)
        log.released(3 * MS + 200, tid=1, mm=7, write=True)
        log.end(3 * MS + 300, tid=1, op="mmap")
        analysis = analyse(log.events(), "6.18")
        (blame, *_) = report_json(analysis, top=5)["waits"][0]["blame"]
        return str(blame["operation"])

    assert said("khugepaged") == "khugepaged"
    assert said("kdamond.3") == "DAMON"
    assert said("iou-wrk-1") == "io_uring"
    assert said("khugepaged", own=True) == said("backup") == "None"
