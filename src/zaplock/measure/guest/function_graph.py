"""The guest's function_graph, written in the layout of the RFC's own trace.

The kernel prints its function graph in columns (CPU, task, duration); the RFC shows the same facts
as trace-cmd prints them, one event a line:

    munmap_test-15002 [008]   594.380146: funcgraph_entry: !2485684 us |   unmap_region();
    munmap_test-15002 [008]   596.865836: funcgraph_exit:  !2485692 us | }

Only the functions that tear mappings down are traced, so that the tracer costs little; a kernel
that lacks one of them leaves it out. Durations contain what the tracer itself costs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_CALLS = {
    "munmap": "munmap",
    "growsdown": "munmap",
    "fixed": "mmap",
    "brk": "brk",
    "mremap": "mremap",
    "dontneed": "madvise",
    "exit": "exit_group",
}

FUNCTIONS = ",".join(
    (
        # 4.9 to 6.9 and, behind them, what 6.12 split them into
        "*vm_munmap*,*do_munmap*,do_mas*munmap,do_vmi*munmap,__split_vma,unmap_region,mmap_region",
        "vms_gather_munmap_vmas,vms_complete_munmap_vmas,vms_clear_ptes,zap_page_range*,exit_mmap",
        "downgrade_write,down_write_killable,up_read,up_write",
        "unmap_vmas,unmap_single_vma,free_pgtables,tlb_gather_mmu,tlb_finish_mmu,remove_vma",
    )
)
"""What the tracer follows: names, or patterns with *."""

_LINE = re.compile(
    r"\s*+(?P<time>\d++\.\d++) \|\s++(?P<cpu>\d++)\)\s++(?P<task>\S++)\s++\|\s*+"
    r"(?P<mark>[$@*#!+]?)\s*+(?:(?P<duration>[\d.]++) us)?\s*+\|(?P<call>  .*\S)"
)


def root(teardown: str) -> str:
    """Name the function at which the graph of a teardown begins: its system call.

    It is called __x64_sys_munmap from 4.17 on, SyS_munmap or sys_munmap before; a kernel knows one.
    """
    return ",".join(f"{prefix}_{_CALLS[teardown]}" for prefix in ("__x64_sys", "SyS", "sys"))


def rewrite(text: str) -> Iterator[str]:
    """Give the lines of the kernel's own function_graph text in the RFC's layout."""
    for line in text.splitlines():
        if match := _LINE.fullmatch(line.rstrip()):
            yield _rewritten(**match.groupdict())


def _rewritten(
    *, time: str, cpu: str, task: str, mark: str, duration: str | None, call: str
) -> str:
    what = "funcgraph_exit: " if call.strip().startswith("}") else "funcgraph_entry:"
    span = f"{mark.strip()}{duration} us" if duration else ""
    shown = "}" if what.startswith("funcgraph_exit") else call.strip()
    depth = " " * (len(call) - len(call.lstrip()) - 2)
    return f"{task:>20} [{int(cpu):03d}] {time:>14}: {what} {span:>14} | {depth}{shown}"
