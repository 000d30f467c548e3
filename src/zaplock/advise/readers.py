"""Who looks at a process from outside, and what to switch off there.

A reader of /proc/PID/smaps holds that process's lock while it walks its pages. The settings and
their public sources stand in docs/advice.md.
"""

from __future__ import annotations

import re
from typing import Final

from zaplock.advise.advice_by_kind import Kind, Means

READERS: Final = (
    (r"process-exporte", "start process-exporter with -gather-smaps=false"),
    (r"^alloy$|grafana-agent", "in prometheus.exporter.process: gather_smaps = false"),
    (r"^telegraf$", "leave the procstat plugin's memory maps out (its `properties`: no mmap)"),
    (r"^cadvisor$|^kubelet$", "keep referenced_memory in cadvisor's --disable_metrics"),
    (r"^atop$|atopacctd", "atop without -R (proportional set sizes)"),
    (r"^htop$", "hide htop's columns PSS and USS (M_PSS, M_PSSWP)"),
    (r"^smem$", "smem reads smaps of everybody: run it on demand only"),
    (r"^py-spy$", "py-spy with --nonblocking, at a lower --rate"),
    (r"process-agent|system-probe|^agent$", "in Datadog's agent: the process check less often"),
    (r"^(ps|top|pgrep|pidof|pkill|w|lsof)$", "ask for columns that need no cmdline (ps -o pid,comm"
     ",rss), and less often"),
    (r"^(gdb|lldb|strace|perf)$", "let the debugger go"),
    (r"^khugepaged$", "/sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs higher, "
     "or transparent huge pages off for this process (prctl PR_SET_THP_DISABLE)"),
    (r"^ksmd$", "/sys/kernel/mm/ksm/pages_to_scan lower, or no MADV_MERGEABLE"),
)  # fmt: skip
"""Names of programs (regular expressions) and what each of them can leave out."""

_ANYBODY: Final = (
    "switch off what reads its /proc/PID/smaps, smaps_rollup, pagemap, numa_maps or cmdline or "
    "writes its clear_refs, or do it less often; statm and status tell sizes without the lock"
)


def reader(process: str) -> Kind:
    """Say what to switch off in a program that held the lock of another process."""
    name = process.partition(" (")[0]
    for pattern, change in READERS:
        if re.search(pattern, name):
            return Kind("reader", Means.READER, change)
    return Kind("reader", Means.READER, _ANYBODY)
