"""A script for bpftrace that records what the replay reads, in strace's words.

bpftrace's text is what its script prints, so it is ours that is read: each call as one that begins
and one that ends, with the thread and the time in front. CPUs write by themselves, so the lines
have to be put in order. What lies behind a pointer is told of paths only; limits, ranges of
process_madvise and the flags of clone3 are not.
"""

from __future__ import annotations

from zaplock.programs.spelling import PLAIN
from zaplock.system_calls import SYSTEM_CALLS

PATHS = {"execve": 0, "open": 0, "openat": 1, "creat": 0, "memfd_create": 0}
"""Calls with a path, and which argument it is."""
NUMBERED = ("clone", "clone3", "fcntl", "prctl", "mbind")
"""Calls that are read as numbers, too, as far as they have none of their own in user memory."""

_HEAD = """\
// setarch -R bpftrace THIS -c PROGRAM | sort -s -k2,2n > CALLS
// setarch -R zaplock oracle --trace MAPS -- PROGRAM
// FILE is what stands in MAPS before the first call, then CALLS: zaplock oracle --strace FILE
BEGIN { @traced[cpid] = 1; }
tracepoint:sched:sched_process_fork /@traced[args->parent_pid]/ { @traced[args->child_pid] = 1; }
tracepoint:sched:sched_process_exit /@traced[tid]/ {
  printf("%d %llu.%09llu +++ exited with 0 +++\\n", tid, nsecs / 1000000000, nsecs % 1000000000);
  delete(@traced[tid]);
}
END { clear(@traced); }
"""
_WHEN = "tid, nsecs / 1000000000, nsecs % 1000000000"


def script() -> str:
    """Return the text of the script."""
    calls = (*PLAIN, *PATHS, *NUMBERED)
    return _HEAD + "".join(map(_probes, calls))


def _probes(name: str) -> str:
    call = SYSTEM_CALLS[name]
    shown, values = [], []
    for k, argument in enumerate(call.arguments):
        value = f"args->args[{k}]"
        if PATHS.get(name) == k:
            shown.append('\\"%s\\"')
            values.append(f"str(uptr({value}))")
        else:
            shown.append("%d" if argument == "file" else "0x%lx")
            values.append(f"(int32){value}" if argument == "file" else value)
    told = ", ".join([_WHEN, *values])
    number = f"/@traced[tid] && args->id == {call.number}/"
    return (
        f"tracepoint:raw_syscalls:sys_enter {number} {{\n"
        f'  printf("%d %llu.%09llu {name}({", ".join(shown)} <unfinished ...>\\n", {told});\n}}\n'
        f"tracepoint:raw_syscalls:sys_exit {number} {{\n"
        f'  printf("%d %llu.%09llu <... {name} resumed>) = %ld\\n", {_WHEN}, args->ret);\n}}\n'
    )
