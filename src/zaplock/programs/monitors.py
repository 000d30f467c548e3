"""userfaultfd in a recording: which ranges it watches, since those merge with no others.

A userfaultfd watches the address space of whoever made it, also where a child that has inherited
it asks. Its ranges are let go when it is closed, or rather its last copy, and when no thread is in
a call with it any more (a monitor that reads): that is not followed, what differs then is refused.
"""

from __future__ import annotations

import errno
from dataclasses import replace

from zaplock.programs.recorded_world import LiveSpace, StraceWorld
from zaplock.programs.recording import TracedCall
from zaplock.programs.spaces import UNREGISTER
from zaplock.programs.text import descriptor, field, number
from zaplock.protocols import uffd_range


class Elsewhere(ValueError):
    """A userfaultfd watches another process's memory; `str` says what of it is not recorded."""


def opened(live: LiveSpace, file: int) -> None:
    """Note whose address space a new userfaultfd watches."""
    monitors = {**dict(live.known.monitors), file: live.mm}
    live.known = replace(live.known, monitors=tuple(monitors.items()))


def range_of(call: TracedCall) -> tuple[int, int]:
    """Return the range that an ioctl names. Raises ValueError where it can't be read."""
    if not call.arguments[2].startswith("{"):
        raise ValueError("which range the userfaultfd watches is not in the recording")
    start, length = (
        number(field(call.arguments[2], "start")),
        number(field(call.arguments[2], "len")),
    )
    return start, start + length


def ioctl(world: StraceWorld, live: LiveSpace, call: TracedCall, watches_any: bool = False) -> int:
    """Run a UFFDIO_REGISTER or _UNREGISTER; return 0 or an errno.

    `watches_any`: the userfaultfd may watch any mapping (UFFD_FEATURE_WP_ASYNC).
    """
    if world.is_closed(call.arguments[0]):
        return -errno.EBADF
    file = _monitor_of(live, call)
    owner = dict(live.known.monitors).get(file)
    if owner is None:
        if world.sees_paths:  # nobody has opened it: it came with a child (UFFD_EVENT_FORK)
            raise Elsewhere("which child the userfaultfd has come with is not in the recording")
        raise ValueError("the userfaultfd was opened before the recording began")
    if owner != live.mm:
        raise Elsewhere("the userfaultfd is one of another process")
    start, end = range_of(call)
    if call.arguments[1] == UNREGISTER:
        program = uffd_range.unregister(world.cx(live), start, end - start, watches_any)
        return world.run(live, program)
    mode = number(field(call.arguments[2], "mode"))
    program = uffd_range.register(world.cx(live), file, start, end - start, mode, watches_any)
    return world.run(live, program)


def _monitor_of(live: LiveSpace, call: TracedCall) -> int:
    """Return which userfaultfd a call is about: another process has it by a number of its own."""
    if call.pid in live.traced.pids:
        return live.known.files.file(call.pid, descriptor(call.arguments[0])) or 0
    made = [file for file, mm in live.known.monitors if mm == live.mm]
    if len(made) != 1:
        raise ValueError("which userfaultfd of several another process uses")
    return made[0]


def release(world: StraceWorld, live: LiveSpace, file: int) -> None:
    """Let go of what a userfaultfd watches when its last descriptor of this space is closed."""
    if dict(live.known.monitors).get(file) != live.mm or live.known.files.has(file):
        return
    if live.traced.has_foreign_monitor:
        told = "whether another process still has the userfaultfd that is closed is not recorded"
        live.known = replace(live.known, doubt=live.known.doubt or told)
        return
    if live.traced.threads.makers and not live.known.doubt:
        told = "whether another thread was still in a call with the userfaultfd that is closed is"
        live.known = replace(live.known, doubt=f"{told} not recorded")
    for vma in [vma for vma in world.vmas(live) if vma.uffd == file]:
        length = vma.end - vma.start
        world.run(live, uffd_range.unregister(world.cx(live), vma.start, length, True))
