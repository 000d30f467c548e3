"""What a descriptor stands for: which file was opened how, its copies and its seals."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from zaplock.model.files import SEAL_EXEC, SEAL_SEAL
from zaplock.programs import monitors
from zaplock.programs.dialects import UNKNOWN_NAME
from zaplock.programs.file_tables import FileTables
from zaplock.programs.recorded_world import LiveSpace, StraceWorld
from zaplock.programs.recording import UNKNOWN, TracedCall
from zaplock.programs.spaces import MONITOR
from zaplock.programs.text import (
    CONSTANTS,
    descriptor,
    field,
    known_flags,
    number,
    quoted,
    without_comments,
)


def _kind_of_opened(call: TracedCall) -> str:
    """Return the kind of a file that the call alone tells, "" for none."""
    with suppress(ValueError, IndexError):
        if call.name == "memfd_create" and number(call.arguments[1]) & CONSTANTS["MFD_HUGETLB"]:
            return "hugetlb"
    return ""


def opened(world: StraceWorld, live: LiveSpace, call: TracedCall) -> None:
    """Remember what a new descriptor stands for, and how it was opened."""
    if call.result < 0 or call.result == UNKNOWN:
        return
    name = call.name
    told = _path_of(call) if name == "pidfd_open" else call.opened or _path_of(call)
    file = world.new_file(told, kind=_kind_of_opened(call))
    mode = _mode_of(call)
    if name == "memfd_create":
        world.set_seals(file, _seals_of_new(call))
    world.set_mode(file, mode)
    files = live.known.files.put(call.pid, call.result, file)
    modes = {**dict(live.known.modes), file: mode}
    live.known = replace(live.known, files=files, modes=tuple(modes.items()))
    if name == "userfaultfd":
        monitors.opened(live, file)


_PATHS = {"open": 0, "creat": 0, "memfd_create": 0, "openat": 1, "openat2": 1}
_FLAGS = {"open": 1, "openat": 2, "openat2": 2}


def _path_of(call: TracedCall) -> str:
    """Return the path that a call names; that of memory begins with memfd:."""
    if call.name == "pidfd_open":
        return f"pid:{''.join(call.arguments[:1]).split('<')[0]}"
    if call.name not in _PATHS:
        return MONITOR
    path = UNKNOWN_NAME  # -e raw: where it lies
    with suppress(ValueError, IndexError):
        path = quoted(call.arguments[_PATHS[call.name]])
    return f"memfd:{path}" if call.name == "memfd_create" else path


def _mode_of(call: TracedCall) -> int:
    """Return how a call opens its file (O_ACCMODE); what is no file can be read and written."""
    if call.name == "creat":
        return 1
    if call.name not in _FLAGS:
        return 2
    told = without_comments("".join(call.arguments[_FLAGS[call.name] :][:1]))
    mode = 0
    for part in (field(told, "flags") or told).split("|"):  # O_CLOEXEC and others don't matter
        with suppress(ValueError):
            mode |= number(part) & 3
    return mode


def _seals_of_new(call: TracedCall) -> int:
    """Return the seals of a memfd at its beginning."""
    with suppress(ValueError, IndexError):
        flags = number(call.arguments[1])
        if flags & CONSTANTS["MFD_NOEXEC_SEAL"]:
            return SEAL_EXEC
        return 0 if flags & CONSTANTS["MFD_ALLOW_SEALING"] else SEAL_SEAL
    return 0


def _controlled(world: StraceWorld, live: LiveSpace, call: TracedCall) -> None:
    """Follow what fcntl does with a descriptor: another one for its file, or seals."""
    with suppress(ValueError, IndexError):
        command = number(call.arguments[1])
        if command in (CONSTANTS["F_DUPFD"], CONSTANTS["F_DUPFD_CLOEXEC"]):
            _duplicated(world, live, call)
        elif command == CONSTANTS["F_ADD_SEALS"] and call.result == 0:
            file = live.known.files.file(call.pid, descriptor(call.arguments[0]))
            if file is not None:
                world.add_seals(file, number(call.arguments[2]))


def _duplicated(world: StraceWorld, live: LiveSpace, call: TracedCall) -> None:
    """A new descriptor stands for what an old one does; what it stood for before is closed."""
    if not 0 <= call.result < UNKNOWN:
        return
    try:
        old = live.known.files.file(call.pid, descriptor(call.arguments[0]))
    except (ValueError, IndexError):
        old = None
    _change(world, live, live.known.files.put(call.pid, call.result, old))


def _closed(world: StraceWorld, live: LiveSpace, call: TracedCall) -> None:
    with suppress(ValueError, IndexError):
        fd = descriptor(call.arguments[0])
        _change(world, live, live.known.files.closed(call.pid, fd, fd))


def _closed_range(world: StraceWorld, live: LiveSpace, call: TracedCall) -> None:
    with suppress(ValueError, IndexError):
        first, last = (number(argument) & 0xFFFF_FFFF for argument in call.arguments[:2])
        flags = number(call.arguments[2])
        files = live.known.files
        if call.result == 0 and flags & CONSTANTS["CLOSE_RANGE_UNSHARE"]:
            files = files.copied(call.pid, call.pid)
        if call.result == 0 and not flags & CONSTANTS["CLOSE_RANGE_CLOEXEC"]:
            files = files.closed(call.pid, first, last)
        _change(world, live, files)


def _unshared(world: StraceWorld, live: LiveSpace, call: TracedCall) -> None:
    with suppress(ValueError, IndexError):
        if call.result == 0 and known_flags(call.arguments[0]) & CONSTANTS["CLONE_FILES"]:
            _change(world, live, live.known.files.copied(call.pid, call.pid))


def _change(world: StraceWorld, live: LiveSpace, files: FileTables) -> None:
    """Have other descriptors, and let go of what nobody can ask any more."""
    before = set(live.known.files.files.values())
    live.known = replace(live.known, files=files)
    for file in before.difference(files.files.values()):
        monitors.release(world, live, file)


DESCRIPTORS = {
    "pidfd_open": opened, "open": opened, "openat": opened, "openat2": opened, "creat": opened,
    "memfd_create": opened, "userfaultfd": opened, "dup": _duplicated, "dup2": _duplicated,
    "dup3": _duplicated, "close": _closed, "close_range": _closed_range, "unshare": _unshared,
    "fcntl": _controlled,
}  # fmt: skip
