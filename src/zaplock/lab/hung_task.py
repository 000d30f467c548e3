"""The kernel's hung-task message for a wait of the model, in the words of its release.

Only waits that the kernel's code path does uninterruptibly are told of
(`engines.timed.hung_tasks`). The form is that of check_hung_task (kernel/hung_task.c) and
sched_show_task (kernel/sched/core.c), which changed:

    until 5.9    "ps              D    0 14018      1 0x00000004"
    5.10         task:, state:, stack:, pid:, ppid: and flags: before the figures
    6.1          the figures are on the left
    6.6          tgid:
    6.15         task_flags:
    6.17         and behind the stack, who the likely owner of the semaphore is (seen missing in a
                 real 6.16, and there in a 7.3)

and stacks stand between "<TASK>" and "</TASK>" from 5.16 on; behind the kernel's part of them comes
what the program's registers hold, which is left out. Functions have no addresses here, and 4.9's
message lacks the stack's words. Where the kernel's compiler makes one function of two, the model
can't know. Not covered: the owner's own state and stack, which follow that last line.

No kernel says who stands in the queue between the two, though that one makes a reader wait for a
reader: `in_between` does, in zaplock's own words.
"""

from __future__ import annotations

from dataclasses import dataclass

from zaplock.engines.timed.hung_tasks import LongWait
from zaplock.lab.blocker import Blocker
from zaplock.linux_version import LinuxVersion, find

_OUTSIDE = ("write_memory", "syscall")
"""Where the kernel's part of a call chain ends: what is further out is the program's own."""
_CALLS = {
    "proc_pid_cmdline_read": "read",
    "proc_pid_cmdline": "read",
    "madvise": "madvise",
    "process_vm_rw": "process_vm_readv",
}
"""The system call that a function of the model serves."""
_NEWEST = "6.18"
TASK_FLAGS = 0x400000
"""PF_RANDOMIZE: what an ordinary program has."""


@dataclass(frozen=True, slots=True)
class HungTask:
    """Who the task is that a message is about, and which kernel writes it.

    `kernel` is a release and the first word of its version, `taint` what stands before it;
    `owner_pid` is the owner's of the semaphore, where the message tells it.
    """

    name: str
    pid: int
    kernel: str
    tgid: int = 0
    ppid: int = 1
    flags: int = 0
    taint: str = "Not tainted"
    task_flags: int = TASK_FLAGS
    owner_pid: int = 0


def kernel_chain(wait: LongWait) -> list[str]:
    """Name the functions of the model that a task waited in, the innermost first."""
    names = [wait.waits_for, *wait.chain]
    inside = (i for i, name in enumerate(names) if name in _OUTSIDE)
    return names[: next(inside, len(names))]


def functions(wait: LongWait, release: str) -> list[str]:
    """Name the kernel's functions that the task of a wait is in, as a release calls them."""
    version = find(release) or find(_NEWEST)
    assert version is not None
    waits_for, *chain = kernel_chain(wait)
    named = [one for name in chain for one in _named(name, version)]
    call = next((_CALLS[name] for name in chain if name in _CALLS), "")
    return [*_asleep(waits_for, version), *named, *_entry(call, version)]


def message(
    wait: LongWait,
    timeout_ns: int,
    release: str,
    about: HungTask | None = None,
    blocker: Blocker | None = None,
) -> str:
    """Return the lines that a kernel would log about one wait.

    `about` is whom and by which one, `blocker` who had the lock then.
    """
    about = about or HungTask(wait.name, wait.tid, f"{release} (zaplock model)", wait.tid)
    version = find(release) or find(_NEWEST)
    assert version is not None
    seconds = timeout_ns / 1e9
    return "\n".join(
        [
            f"INFO: task {about.name}:{about.pid} blocked for more than {seconds:g} seconds.",
            f"      {about.taint} {about.kernel}",
            '"echo 0 > /proc/sys/kernel/hung_task_timeout_secs" disables this message.',
            _task(about, version),
            "Call Trace:",
            *([" <TASK>"] if version.carries("5.16") else []),
            *(f" {function}" for function in functions(wait, release)),
            *([" </TASK>"] if version.carries("5.16") else []),
            *(_owner(wait, about, blocker) if blocker and version.carries("6.17") else []),
        ]
    )


def in_between(wait: LongWait, blocker: Blocker) -> str:
    """Say, as no kernel does, which writers make a reader wait for another; "" where none do."""
    if _mode(wait) == "writer" or blocker.holder.exclusive or not blocker.between:
        return ""
    writers = ", ".join(f"{one.name}:{one.tid}" for one in blocker.between)
    holder = blocker.holder
    return (
        f"(zaplock: {writers} <writer> queued in between; without it {wait.name}:{wait.tid} would "
        f"share the lock with {holder.name}:{holder.tid})"
    )


def _owner(wait: LongWait, about: HungTask, blocker: Blocker) -> list[str]:
    """Write the line of debug_show_blocker (kernel/hung_task.c)."""
    holder = blocker.holder
    if not blocker.is_known:
        return [
            f"INFO: task {about.name}:{about.pid} is blocked on an rw-semaphore, but the owner is "
            "not found."
        ]
    owner = f"{holder.name}:{about.owner_pid or holder.tid} <{_modes(holder.exclusive)}>"
    return [
        f"INFO: task {about.name}:{about.pid} <{_mode(wait)}> blocked on an rw-semaphore likely "
        f"owned by task {owner}"
    ]


def _mode(wait: LongWait) -> str:
    return _modes("write" in wait.waits_for)


def _modes(exclusive: bool) -> str:
    return "writer" if exclusive else "reader"


def _task(about: HungTask, version: LinuxVersion) -> str:
    """Write the line of sched_show_task."""
    name, flags = f"{about.name:<15.15}", f"0x{about.flags:08x}"
    if not version.carries("5.10"):
        return f"{name} D{0:>5} {about.pid:>5} {about.ppid:>6} {flags}"
    if not version.carries("6.1"):
        figures = f"stack:{0:>5} pid:{about.pid:>5} ppid:{about.ppid:>6}"
        return f"task:{name} state:D {figures} flags:{flags}"
    tgid = f" tgid:{about.tgid or about.pid:<5}" if version.carries("6.6") else ""
    own = f" task_flags:0x{about.task_flags:04x}" if version.carries("6.15") else ""
    figures = f"stack:{0:<5} pid:{about.pid:<5}{tgid} ppid:{about.ppid:<6}{own}"
    return f"task:{name} state:D {figures} flags:{flags}"


def _asleep(waits_for: str, version: LinuxVersion) -> list[str]:
    """Name what a sleeper in the semaphore's queue is in."""
    mode = "write" if "write" in waits_for else "read"
    schedule = ["schedule"] if not version.carries("4.10") else ["__schedule", "schedule"]
    if version.carries("6.3", ("6.1.16",)):
        schedule.append("schedule_preempt_disabled")
    if not waits_for.startswith("down_"):
        return [*schedule, waits_for]
    slow = [*schedule, f"rwsem_down_{mode}_slowpath"]
    if waits_for == "down_read" and version.carries("5.3") and not version.carries("5.11"):
        return slow  # its last act is a jump there, so that it has no frame (seen in a real 5.10)
    if version.carries("5.2"):
        return [*slow, waits_for]
    failed = f"rwsem_down_{mode}_failed"
    return [*schedule, failed, f"call_{failed}", waits_for]


def _named(name: str, version: LinuxVersion) -> list[str]:
    """Give the kernel's functions for one of the model's."""
    if name == "page_fault_mmap_lock":
        return ["do_user_addr_fault"] if version.carries("5.1") else ["__do_page_fault"]
    if name == "user_fault":
        new = version.carries("5.8")
        return ["exc_page_fault", "asm_exc_page_fault"] if new else ["do_page_fault", "page_fault"]
    if name == "process_vm_rw":
        # 8b7457ef9a9e (4.10): it takes the lock itself
        unlocked = [] if version.carries("4.10") else ["__get_user_pages_unlocked"]
        return [*unlocked, "process_vm_rw_core", "process_vm_rw"]
    if name == "madvise":
        locks = ["madvise_lock"] if version.carries("6.15") else []
        return [*locks, "do_madvise"] if version.carries("5.6") else []
    if name in ("proc_pid_cmdline_read", "proc_pid_cmdline"):
        vfs = [] if version.carries("5.8") else ["__vfs_read"]
        ksys = ["ksys_read"] if version.carries("4.17") else []
        return ["proc_pid_cmdline_read", *vfs, "vfs_read", *ksys]
    inlined = ("advise_pages", "read_arguments", "_read_remote")
    return [] if name in inlined else [name]


def _entry(call: str, version: LinuxVersion) -> list[str]:
    """Name how a system call came into the kernel."""
    if not call:
        return []
    if not version.carries("4.17"):
        return [f"SyS_{call}", "entry_SYSCALL_64_fastpath"]
    return [f"__x64_sys_{call}", "do_syscall_64", "entry_SYSCALL_64_after_hwframe"]
