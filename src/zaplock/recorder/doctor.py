"""What zaplock can see on this machine, and the one command that mends each thing it can't.

Each finding is a frozen value; a check never changes anything. `require` is for everybody who needs
one of these things: it raises the UserError that names the value and the way out.
"""

from __future__ import annotations

import os
import platform
import threading
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zaplock.errors import UserError
from zaplock.linux_version import find
from zaplock.recorder.layouts import read_layouts
from zaplock.recorder.lock_events import (
    BY_TRACEPOINTS,
    KPROBES,
    TRACEPOINTS,
    left_over_probes,
    probes,
    ways_here,
    without_any,
)
from zaplock.recorder.meanings import CONTENTION, FAULTS, MMAP_LOCK, SCHED, SYSCALLS
from zaplock.recorder.targets import check_namespace
from zaplock.recorder.tracefs import Instance, Tracefs, given, left_over, mounted, opened
from zaplock.untrusted_names import read_text


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing: whether it is there, what was seen, what it is for, and what mends it.

    `mend` is one command (or one step that is none); "" where nothing is to be mended.
    `needed` says that zaplock can't record without it.
    """

    name: str
    ok: bool
    seen: str
    use: str
    mend: str = ""
    needed: bool = False

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "ok": self.ok,
            "seen": self.seen,
            "use": self.use,
            "mend": self.mend,
            "needed": self.needed,
        }


_SUDO = "sudo zaplock doctor"
_SYS_PTRACE, _SYS_ADMIN, _PERFMON = 19, 21, 38
"""Capabilities, by their numbers in linux/capability.h."""
_LOOPS, _ROUNDS = 2_000, 5


def examine() -> list[Finding]:
    """Look at everything that zaplock uses on this machine, the needed things first."""
    about: list[Finding] = []
    may_open = True
    try:
        with opened() as tracefs:
            about = [
                _tracefs(tracefs),
                _lock_events(tracefs),
                *_events(tracefs),
                _instances(tracefs),
                _left_over(tracefs),
            ]
    except UserError as error:
        way_out = str(error).partition(": ")[2]
        way_out = way_out.replace("run the same command with sudo", _SUDO)
        about = [Finding("tracefs", False, str(error).partition(":")[0], "record", way_out, True)]
        may_open = False
    found = [_kernel(), _rights(may_open), _namespace(), *about]
    return [*found, _locked_down(), _ptrace(), _memory()]


def require(name: str) -> None:
    """Raise UserError with the way out unless the finding of that name is there."""
    for finding in examine():
        if finding.name == name and not finding.ok:
            raise UserError(f"{finding.name}: {finding.seen}; {finding.mend}")


def _kernel() -> Finding:
    release = platform.release()
    version = find(release)
    new = version is not None and version.carries("5.11")
    ok = platform.system() == "Linux" and (new or _has_kprobes())
    seen = f"{platform.system()} {release} on {platform.machine()}"
    use = "mmap_lock events (5.11), or kprobes"
    return Finding("kernel", ok, seen, use, "" if ok else without_any(release), True)


def _has_kprobes() -> bool:
    """Whether this kernel shows its locks by kprobes; False where that can't be seen."""
    try:
        with opened() as tracefs:
            return KPROBES in ways_here(tracefs)
    except UserError:
        return False


def _rights(may_open: bool) -> Finding:
    """Say what the user may; where tracefs can be opened all the same, only stacks need more."""
    admin = _may(_SYS_ADMIN)
    ok = admin or (may_open and _may(_PERFMON))
    seen = f"user {os.geteuid()}, CAP_SYS_ADMIN {'held' if admin else 'missing'}"
    use = "record --stacks" if may_open else "open tracefs"
    return Finding("root", ok, seen, use, "" if ok else _mend("SYS_ADMIN"), not may_open)


def _mend(capability: str) -> str:
    return _SUDO if os.geteuid() else given(capability)


def _namespace() -> Finding:
    try:
        check_namespace()
    except UserError as error:
        seen, _, mend = str(error).partition(": ")
        return Finding("host's pids", False, seen, "name the tasks of a trace", mend, True)
    return Finding("host's pids", True, "those of /proc", "name the tasks of a trace", needed=True)


def _may(capability: int) -> bool:
    """Say whether a capability is in our effective set."""
    for line in read_text("/proc/self/status").splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> capability & 1)
    return False


def _tracefs(tracefs: Tracefs) -> Finding:
    where = "opened privately (not mounted)" if tracefs.private else f"mounted at {mounted()}"
    return Finding("tracefs", True, where, "record", needed=True)


def _lock_events(tracefs: Tracefs) -> Finding:
    """Say in which way a recording will see locks, and what that costs whoever takes one."""
    use = "holds and waits: record --by"
    ways = ways_here(tracefs)
    if not ways:
        return Finding(
            "lock events",
            False,
            "neither tracepoints nor kprobes",
            use,
            without_any(platform.release()),
            True,
        )
    other = f"; {ways[1]} as well" if ways[1:] else ""
    try:
        cost_us = max(0.0, lock_cost(tracefs, ways[0]) / 1000)
    except UserError as error:
        seen, _, mend = str(error).partition(": ")
        return Finding("lock events", False, seen, use, mend, True)
    everywhere = ", of every rwsem in the kernel" if ways[0] == KPROBES else ""
    seen = f"by {ways[0]}: {cost_us:.2f} us for a lock and its unlock{everywhere}{other}"
    return Finding("lock events", True, seen, use, needed=True)


def lock_cost(tracefs: Tracefs, way: str) -> float:
    """Measure what recording by a way adds to one lock and unlock of an mmap_lock.

    Nanoseconds of CPU time with their fractions, as it is a mean.

    The least of some rounds of reads of our own pagemap, with the events on and off.
    """
    with Instance(tracefs, buffer_kb=1024) as instance:
        made = probes(tracefs, instance) if way == KPROBES else nullcontext(BY_TRACEPOINTS)
        with made as locks, open("/proc/self/pagemap", "rb") as file:
            instance.add("set_event_pid", str(threading.get_native_id()))
            off_ns = min(_reads_ns(file.fileno()) for _ in range(_ROUNDS))
            for event in locks.events:
                instance.enable(event)
            instance.start()
            on_ns = min(_reads_ns(file.fileno()) for _ in range(_ROUNDS))
            instance.stop()
            for event in locks.events:
                instance.disable(event)
    return (on_ns - off_ns) / _LOOPS


def _reads_ns(file: int) -> int:
    began_ns = time.thread_time_ns()
    for _ in range(_LOOPS):
        os.pread(file, 8, 0)
    return time.thread_time_ns() - began_ns


def _events(tracefs: Tracefs) -> list[Finding]:
    tracepoints = TRACEPOINTS in ways_here(tracefs) or not ways_here(tracefs)
    asked = (
        (
            "mmap_lock events",
            MMAP_LOCK,
            "the cheaper way, and --watch",
            without_any(platform.release()),
            tracepoints,
        ),
        (
            "system call events",
            SYSCALLS[:4],
            "which call holds the lock, on how much",
            "boot a kernel with CONFIG_FTRACE_SYSCALLS=y (or record --no-syscalls)",
            False,
        ),
        ("sched events", SCHED, "holders that sleep", "boot a kernel with CONFIG_TRACING=y", False),
        ("fault events", FAULTS, "stalls of page faults", "record without --faults", False),
        (
            "contention events",
            CONTENTION,
            "waits for other locks",
            "boot Linux 5.19 or newer (or record without --contention)",
            False,
        ),
    )
    return [_event_group(tracefs, *group) for group in asked]


def _event_group(
    tracefs: Tracefs, name: str, events: tuple[str, ...], use: str, mend: str, needed: bool
) -> Finding:
    try:
        have = {layout.event for layout in read_layouts(tracefs.path, events).events}
    except UserError as error:
        return Finding(name, False, str(error), use, mend, needed)
    missing = [event for event in events if event not in have]
    seen = f"no {', '.join(missing)}" if missing else f"{len(events)} of {len(events)}"
    return Finding(name, not missing, seen, use, mend if missing else "", needed)


def _instances(tracefs: Tracefs) -> Finding:
    use = "a buffer of zaplock's own"
    try:
        with Instance(tracefs, buffer_kb=64):
            return Finding("trace instance", True, "made and removed", use, needed=True)
    except UserError as error:
        seen, _, mend = str(error).partition(": ")
        return Finding("trace instance", False, seen, use, mend, True)


def _left_over(tracefs: Tracefs) -> Finding:
    use = "no event is left switched on"
    gone, unknown = left_over(tracefs)
    gone += left_over_probes(tracefs)
    if gone:
        sweeping = "sudo zaplock record -d 1s -o /tmp/swept.zaplock"
        return Finding("left-over instances", False, ", ".join(gone), use, sweeping)
    if unknown:
        # Of another pid namespace or an earlier zaplock: whether its owner lives isn't seen here.
        seen = f"held by nobody, whose owner isn't seen from here: {', '.join(unknown)}"
        paths = " ".join(f"/sys/kernel/tracing/instances/{name}" for name in unknown)
        return Finding("left-over instances", False, seen, use, f"sudo rmdir {paths}")
    return Finding("left-over instances", True, "none", use)


def _locked_down() -> Finding:
    """Lockdown in confidentiality mode forbids tracefs, also to root."""
    use = "tracefs is readable"
    try:
        text = Path("/sys/kernel/security/lockdown").read_text()
    except OSError:
        return Finding("lockdown", True, "no lockdown seen", use)
    mode = text[text.find("[") + 1 : text.find("]")]
    ok = mode != "confidentiality"
    mend = "" if ok else "boot with lockdown=integrity on the kernel's command line"
    return Finding("lockdown", ok, mode, use, mend, needed=True)


def _ptrace() -> Finding:
    """To find a target's mm, its pagemap is opened; cmdline serves where that is forbidden."""
    ok = _may(_SYS_PTRACE)
    seen = f"CAP_SYS_PTRACE {'held' if ok else 'missing'}"
    mend = "" if ok else _mend("SYS_PTRACE")
    return Finding("ptrace", ok, seen, "other users' processes with -p", mend)


def _memory() -> Finding:
    from zaplock.recorder.instances_ahead import chosen_buffer_kb

    size = chosen_buffer_kb()
    cpus = os.cpu_count() or 1
    seen = f"{size >> 10} MiB for each of {cpus} CPUs" if size >= 1024 else f"{size} KiB a CPU"
    ok = size >= 8192
    mend = "" if ok else "zaplock record --buffer 8M, if that much can be spared"
    return Finding("buffers", ok, seen, "2 million events a second without loss", mend)
