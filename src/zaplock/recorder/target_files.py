"""Open a file that a recorded process names, though the process may be hostile.

Whoever is recorded chooses its paths, and zaplock is root. So a path is resolved inside the
process's own root (openat2(2), RESOLVE_IN_ROOT: no link leads out of a container), nothing but a
regular file is opened (a FIFO would hang, a device might do something), and only one that belongs
to the process's user or to root, or that is the very file that the process has mapped. Sizes are
limited by the readers.

Not covered: a file system in user space (FUSE) that never answers; `symbols` stops waiting for it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

_OPENAT2 = 437  # one number on every architecture
_RESOLVE_NO_MAGICLINKS, _RESOLVE_IN_ROOT = 0x02, 0x10
_O_PATH = 0o10000000
_HOW = struct.Struct("=QQQ")


def user_of(pid: int) -> int | None:
    """Say whose a process is (effective user), None where it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
        return next(int(line.split()[2]) for line in lines if line.startswith("Uid:"))
    except (OSError, StopIteration):
        return None


@contextlib.contextmanager
def opened(
    root: str, path: str, *, users: frozenset[int], inode: int = 0, follow: bool = True
) -> Iterator[int | None]:
    """Give a descriptor of a file of a process, None where it is not to be had or trusted.

    `root` is what the process calls "/" ("/proc/PID/root"); `users` beside root may own the file;
    anybody may whose file has that `inode`. Without `follow` the last part may be no link.
    """
    place = _placed(root, path, follow)
    file = None
    try:
        if place is not None and _trusted(place, users, inode):
            # Through /proc, so that what is opened is what was looked at.
            with contextlib.suppress(OSError):
                file = os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
        yield file
    finally:
        for descriptor in (place, file):
            if descriptor is not None:
                os.close(descriptor)


def _trusted(place: int, users: frozenset[int], inode: int) -> bool:
    about = os.fstat(place)
    ours = about.st_uid == 0 or about.st_uid in users or (inode and about.st_ino == inode)
    return stat.S_ISREG(about.st_mode) and bool(ours)


def _placed(root: str, path: str, follow: bool) -> int | None:
    """Open a path inside a root as a mere place (O_PATH): nothing is done to the file."""
    flags = _O_PATH | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    how = _HOW.pack(flags, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
    name = os.fsencode(path)
    if b"\0" in name or not name.startswith(b"/"):
        return None
    try:
        top = os.open(root, _O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        found = int(libc.syscall(_OPENAT2, top, name, how, len(how)))
    finally:
        os.close(top)
    return found if found >= 0 else None


def part(file: int, offset: int, size: int, most: int) -> bytes:
    """Read `size` bytes of a file; fewer where it ends; none where more than `most` are asked."""
    if not 0 <= size <= most or offset < 0 or offset > 1 << 62:
        return b""
    taken = []
    while size > 0:
        try:
            piece = os.pread(file, min(size, 1 << 24), offset)
        except (OSError, OverflowError):
            break
        if not piece:
            break
        taken.append(piece)
        offset, size = offset + len(piece), size - len(piece)
    return b"".join(taken)
