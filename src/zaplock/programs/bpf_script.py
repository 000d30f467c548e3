"""A script for bpftrace that records what the replay reads, in strace's words.

bpftrace's text is what its script prints, so it is ours that is read: each call as one that begins
and one that ends, with the thread and the time in front. CPUs write by themselves, so the lines
have to be put in order. What lies behind a pointer is told of paths, limits and the flags of clone3
only; the ranges of process_madvise are not.
"""

from __future__ import annotations

from zaplock.programs.spelling import PLAIN
from zaplock.programs.text import CONSTANTS
from zaplock.system_calls import SYSTEM_CALLS

PATHS = {"execve": 0, "open": 0, "openat": 1, "creat": 0, "memfd_create": 0}
"""Calls with a path, and which argument it is."""
NUMBERED = ("clone", "clone3", "fcntl", "mbind")
"""Calls that are read as numbers, too, as far as they have none of their own in user memory."""
FLAGS = {"clone3": 0}
"""Calls whose flags are what one of their arguments points to, and which."""
LIMITS = {"setrlimit": 1, "prlimit64": 2}
"""Calls that set a limit, and which argument points to it."""

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
    probes = [*map(_probes, calls), *map(_limit_probes, LIMITS), _name_probes()]
    return _HEAD + "".join(probes)


def _probes(name: str) -> str:
    call = SYSTEM_CALLS[name]
    shown, values = [], []
    for k, argument in enumerate(call.arguments):
        value = f"args->args[{k}]"
        if PATHS.get(name) == k:
            shown.append('\\"%s\\"')
            values.append(f"str(uptr({value}))")
        elif FLAGS.get(name) == k:
            shown.append("{flags=0x%lx}")
            values.append(_word(k))
        else:
            shown.append("%d" if argument == "file" else "0x%lx")
            values.append(f"(int32){value}" if argument == "file" else value)
    entered = _begins(name, shown, values)
    return _enters(name, f"  {entered}") + _ends(name)


def _limit_probes(name: str) -> str:
    """Tell which limit is set, if one is: prlimit64 asks only where it is given none."""
    limit = LIMITS[name]
    before = ["args->args[0]"] if limit == 1 else ["(int32)args->args[0]", "args->args[1]"]
    shown = ["%d"] * limit
    told = _begins(
        name, [*shown, "{rlim_cur=%llu, rlim_max=%llu}"], [*before, _word(limit), _word(limit, 8)]
    )
    none = _begins(name, [*shown, "NULL"], before)
    body = f"  if (args->args[{limit}] != 0) {{\n    {told}\n  }} else {{\n    {none}\n  }}"
    return _enters(name, body) + _ends(name)


def _name_probes() -> str:
    """Tell which name prctl gives a mapping, if it does."""
    values = [f"args->args[{k}]" for k in range(5)]
    named = _begins("prctl", ["0x%lx"] * 4 + ['\\"%s\\"'], [*values[:4], f"str(uptr({values[4]}))"])
    other = _begins("prctl", ["0x%lx"] * 5, values)
    names = f"{values[0]} == {CONSTANTS['PR_SET_VMA']:#x} && {values[4]} != 0"
    body = f"  if ({names}) {{\n    {named}\n  }} else {{\n    {other}\n  }}"
    return _enters("prctl", body) + _ends("prctl")


def _word(argument: int, beyond: int = 0) -> str:
    """Return eight bytes of what an argument points to."""
    at = f"args->args[{argument}]" + (f" + {beyond}" if beyond else "")
    return f"*(uint64*)uptr({at})"


def _begins(name: str, shown: list[str], values: list[str]) -> str:
    told = ", ".join([_WHEN, *values])
    return f'printf("%d %llu.%09llu {name}({", ".join(shown)} <unfinished ...>\\n", {told});'


def _enters(name: str, body: str) -> str:
    return f"tracepoint:raw_syscalls:sys_enter {_filter(name)} {{\n{body}\n}}\n"


def _ends(name: str) -> str:
    return (
        f"tracepoint:raw_syscalls:sys_exit {_filter(name)} {{\n"
        f'  printf("%d %llu.%09llu <... {name} resumed>) = %ld\\n", {_WHEN}, args->ret);\n}}\n'
    )


def _filter(name: str) -> str:
    return f"/@traced[tid] && args->id == {SYSTEM_CALLS[name].number}/"
