"""What /proc tells of a thread: its process, that one's parent, and if it waits for a child."""

from __future__ import annotations

from zaplock.untrusted_names import read_text


def leader(tid: int) -> int:
    """Return the process that a thread is of."""
    return int(read_text(f"/proc/{tid}/status").partition("\nTgid:")[2].split()[0])


def parent(tid: int) -> int:
    """Return the parent of the process that a thread is of."""
    return int(read_text(f"/proc/{tid}/status").partition("\nPPid:")[2].split()[0])


def waits_for_child(pid: int) -> bool:
    """Return whether a process is in a call that waits for a child or a tracee."""
    try:
        return read_text(f"/proc/{pid}/syscall").split(" ")[0] in _WAITING
    except OSError:
        return False


_WAITING = ("61", "247")  # wait4, waitid
