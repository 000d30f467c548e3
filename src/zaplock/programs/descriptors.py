"""What a descriptor stands for: which file was opened how, its copies and its seals."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from zaplock.model.files import SEAL_EXEC, SEAL_SEAL
from zaplock.programs import monitors
from zaplock.programs.dialects import UNKNOWN_NAME
from zaplock.programs.recorded_world import LiveSpace, StraceWorld
from zaplock.programs.recording import UNKNOWN, TracedCall
from zaplock.programs.text import CONSTANTS, descriptor, field, number, quoted, without_comments


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
    files = {**dict(live.known.files), call.result: file}
    modes = {**dict(live.known.modes), file: mode}
    live.known = replace(live.known, files=tuple(files.items()), modes=tuple(modes.items()))
    if name == "userfaultfd":
        monitors.opened(live, file)


_PATHS = {"open": 0, "creat": 0, "memfd_create": 0, "openat": 1, "openat2": 1}
_FLAGS = {"open": 1, "openat": 2, "openat2": 2}


def _path_of(call: TracedCall) -> str:
    """Return the path that a call names; that of memory begins with memfd:."""
    if call.name == "pidfd_open":
        return f"pid:{''.join(call.arguments[:1]).split('<')[0]}"
    if call.name not in _PATHS:
        return monitors.NAME
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
            file = dict(live.known.files).get(descriptor(call.arguments[0]))
            if file is not None:
                world.add_seals(file, number(call.arguments[2]))


def _duplicated(_world: StraceWorld, live: LiveSpace, call: TracedCall) -> None:
    files = dict(live.known.files)
    try:
        old = files.get(descriptor(call.arguments[0]))
    except (ValueError, IndexError):
        return
    if old is not None and 0 <= call.result < UNKNOWN:
        files[call.result] = old
        live.known = replace(live.known, files=tuple(files.items()))


def _closed(_world: StraceWorld, live: LiveSpace, call: TracedCall) -> None:
    files = dict(live.known.files)
    try:
        files.pop(descriptor(call.arguments[0]), None)
    except (ValueError, IndexError):
        return
    live.known = replace(live.known, files=tuple(files.items()))


DESCRIPTORS = {
    "pidfd_open": opened, "open": opened, "openat": opened, "openat2": opened, "creat": opened,
    "memfd_create": opened, "userfaultfd": opened, "dup": _duplicated, "dup2": _duplicated,
    "dup3": _duplicated, "close": _closed, "fcntl": _controlled,
}  # fmt: skip
