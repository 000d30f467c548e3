"""What a call makes that makes a task: a thread, another process, one that shares its memory."""

from __future__ import annotations

from zaplock.programs import ptrace as p

_CLONE_VM, _CLONE_THREAD, _CLONE_NEWUSER = 0x100, 0x10000, 0x1000_0000
_CLONE_NEWIPC = 0x800_0000


def text_of(event: int, *, is_thread: bool) -> str:
    """Write the call of which only what it made is known."""
    if is_thread:
        return f"clone(flags={_CLONE_VM | _CLONE_THREAD:#x})"
    return "vfork()" if event == p.EVENT_VFORK else "fork()"


def shares_memory(told: str) -> bool:
    """Return whether what a call makes is in its maker's address space."""
    return told.startswith("vfork(") or bool(_flags(told) & _CLONE_VM)


def makes_thread(told: str) -> bool:
    """Return whether what a call makes is a thread of its maker's process."""
    return bool(_flags(told) & _CLONE_THREAD)


def makes_namespace(told: str) -> bool:
    """Return whether what a call makes has capabilities or segments of its own."""
    return bool(_flags(told) & (_CLONE_NEWUSER | _CLONE_NEWIPC))


def _flags(told: str) -> int:
    _, found, flags = told.partition("flags=")
    return int(flags.rstrip(")}").split("}")[0].split(",")[0], 16) if found else 0
