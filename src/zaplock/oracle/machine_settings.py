"""What others may change under a campaign: how huge pages are made, what ksmd merges, and so on.

The model knows one machine, so a sequence that differs after such a change says nothing about it.
What only says how fast something is done is no such setting.

A setting that was changed and changed back shows no other value: so writes are watched, too
(inotify; such a file's mtime is no sign, it moves only where the writer truncates it). Every file
that is watched is held open, else the kernel may forget which one it was.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

from zaplock.errors import UserError
from zaplock.model.shared_folios import POLICIES

MM = Path("/sys/kernel/mm")
VM = Path("/proc/sys/vm")
FOLDERS = (MM / "transparent_hugepage", MM / "ksm", MM / "lru_gen", MM / "swap")
SYSCTLS = tuple(
    VM / name
    for name in (
        "overcommit_memory", "overcommit_ratio", "overcommit_kbytes", "max_map_count",
        "mmap_min_addr", "legacy_va_layout", "unprivileged_userfaultfd", "memfd_noexec",
        "admin_reserve_kbytes", "user_reserve_kbytes",
    )
)  # fmt: skip
"""Of the many there, those that a result hangs on."""
_PACE = ("pages_to_scan", "millisecs", "advisor")
_IN_MODIFY = 2
Settings = Mapping[str, str]
"""From a setting's name, below /sys/kernel/mm or /proc/sys, to its value."""


def read_settings(
    folders: tuple[Path, ...] = FOLDERS, sysctls: tuple[Path, ...] = SYSCTLS
) -> Settings:
    """Read every setting that this kernel has."""
    return {name: _value(path) for name, path in settings_in(folders, sysctls).items()}


@cache
def settings_in(folders: tuple[Path, ...], sysctls: tuple[Path, ...]) -> dict[str, str]:
    """Find the settings; they are looked for once, since that takes longer than all the rest."""
    paths = [
        (folder.parent, Path(place, name))
        for folder in folders
        for place, _, names in os.walk(folder)
        for name in names
    ]
    paths += [(path.parent.parent, path) for path in sysctls if os.access(path, os.R_OK)]
    return {str(path.relative_to(base)): str(path) for base, path in paths if is_setting(path)}


def is_setting(path: Path) -> bool:
    """Return whether a file can be read and written to, and changes what is done."""
    mode = path.stat().st_mode
    return bool(mode & 0o200 and mode & 0o400) and not any(word in path.name for word in _PACE)


def _value(path: str) -> str:
    """Return a setting's value: of several to choose from, the one in brackets."""
    with open(path, encoding="ascii") as file:
        text = file.read().strip()
    return text.partition("[")[2].partition("]")[0] or text


HUGE_FAULTS = ("never", "madvise", "always")
"""Values of transparent_hugepage/enabled, which the model knows all."""
_PMD_SIZES = "hugepages-2048kB"


def huge_faults(folder: Path = MM / "transparent_hugepage") -> int:
    """Return which of HUGE_FAULTS holds, "never" where a kernel has no such pages."""
    own = folder / _PMD_SIZES / "enabled"  # since 6.8
    for path in (own, folder / "enabled"):
        if path.exists() and (value := _value(str(path))) != "inherit":
            return HUGE_FAULTS.index(value)
    return 0


def shared_huge(folder: Path = MM / "transparent_hugepage") -> int:
    """Return which of POLICIES shmem_enabled is, "never" where a kernel has no such pages."""
    path = folder / "shmem_enabled"
    return POLICIES.index(_value(str(path))) if path.exists() else 0


def check_settings(folder: Path = MM / "transparent_hugepage") -> None:
    """Raise UserError where huge pages are made in a way that the model does not know."""
    wanted: dict[Path, tuple[str, ...]] = {
        folder / "use_zero_page": ("1",),
        folder / "shmem_enabled": ("never", "deny", "advise"),  # else the ring is huge, too
    }
    for size in folder.glob("hugepages-*"):
        is_whole = size.name == _PMD_SIZES
        wanted[size / "shmem_enabled"] = ("inherit",) if is_whole else ("never",)
        wanted[size / "enabled"] = ("inherit", *HUGE_FAULTS) if is_whole else ("never",)
    for path, known in sorted(wanted.items()):
        if path.exists() and (value := _value(str(path))) not in known:
            raise UserError(
                f"{path} is {value} and the oracle's model knows only {known[0]}: as root, "
                f"echo {known[0]} > {path} for as long as it runs"
            )


def changes(before: Settings, now: Settings) -> str:
    """Say in words what has another value than before; "" where nothing has."""
    return ", ".join(
        f"{name} went from {before.get(name, 'nothing')} to {now.get(name, 'nothing')}"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    )


class Writes:
    """Which files of sysfs and /proc/sys are written to, by whomever on this machine."""

    def __init__(self, files: Mapping[str, str]) -> None:
        """Watch files, by name; raises UserError where no watch can be had."""
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise UserError(
                f"can't watch the machine's settings ({os.strerror(ctypes.get_errno())}): raise "
                "fs.inotify.max_user_instances, or end who uses so many"
            )
        self._names: dict[int, str] = {}
        self._held: list[int] = []
        for name, path in files.items():
            watch = libc.inotify_add_watch(self._fd, os.fsencode(path), _IN_MODIFY)
            if watch < 0:
                self.close()
                raise UserError(
                    f"can't watch {path} ({os.strerror(ctypes.get_errno())}): raise "
                    "fs.inotify.max_user_watches"
                )
            self._names[watch] = name
            self._held.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        self._seen: list[str] = []

    def seen(self) -> list[str]:
        """Return the names of all that was written so far, in order."""
        while True:
            try:
                data = os.read(self._fd, 1 << 16)
            except BlockingIOError:
                return self._seen
            at = 0
            while at < len(data):
                watch, _, _, length = struct.unpack_from("iIII", data, at)
                at += 16 + length
                self._seen.append(self._names.get(watch, "more than could be noted"))

    def note(self, name: str) -> None:
        """Count something else as written to, after all that was before."""
        self.seen().append(name)

    def close(self) -> None:
        """Watch no more."""
        for fd in (self._fd, *self._held):
            os.close(fd)


def written(names: Iterable[str]) -> str:
    """Say in words what was written to."""
    return ", ".join(f"{name} was written to" for name in sorted({*names}))
