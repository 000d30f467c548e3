"""CLONE_UNTRACED, which a recorder must not let through, and without which its caller finds itself.

A child that no tracer gets has our filter all the same, and so none of the calls that it stops at:
they are ENOSYS. LeakSanitizer makes such a child, which then loops, and its maker waits for ever.
Source: clone(2), seccomp(2).
"""

from __future__ import annotations

import struct
from contextlib import suppress
from typing import NamedTuple

from zaplock.programs import ptrace as p

_CLONE_UNTRACED = 0x80_0000


class Flags(NamedTuple):
    """What a thread has asked for: in its first argument, or in memory at `address` (clone3).

    `is_narrow`: in a 32-bit call.
    """

    value: int
    address: int
    is_narrow: bool = False


def asked(tid: int, name: str, arguments: tuple[int, ...], *, is_narrow: bool) -> Flags | None:
    """Return the flags of a call that would make a child without its tracer, else None."""
    flags = Flags(arguments[0] if name == "clone" else 0, 0, is_narrow)
    if name == "clone3":
        unread = suppress(OSError, OverflowError, struct.error)
        with unread, open(f"/proc/{tid}/mem", "rb", buffering=0) as memory:
            memory.seek(arguments[0])
            flags = Flags(struct.unpack("<Q", memory.read(8))[0], arguments[0])
    return flags if flags.value & _CLONE_UNTRACED else None


def take_away(tid: int, flags: Flags) -> None:
    """Let a stopped thread ask for a child that is traced."""
    _put(tid, flags._replace(value=flags.value & ~_CLONE_UNTRACED))


def give_back(tid: int, flags: Flags) -> None:
    """Let a stopped thread, or its child, find what it had asked for."""
    _put(tid, flags)


def _put(tid: int, flags: Flags) -> None:
    if not flags.address:
        p.set_first_argument(tid, flags.value, is_narrow=flags.is_narrow)
        return
    with suppress(OSError), open(f"/proc/{tid}/mem", "r+b", buffering=0) as memory:
        memory.seek(flags.address)
        memory.write(struct.pack("<Q", flags.value))
