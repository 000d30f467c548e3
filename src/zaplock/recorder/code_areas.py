"""What code a process has mapped, by its /proc/PID/maps; without numpy, for the recorder."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from zaplock.recorder.target_files import user_of

PATIENCE_S = 2.0
"""So long a process's maps are waited for: its lock may be held for minutes."""

ALWAYS_NS, NEVER_NS = -(1 << 62), 1 << 62


@dataclass(frozen=True, slots=True)
class CodeArea:
    """Mapped code: where, of which file from which offset on, and when the process had it."""

    start: int
    end: int
    offset: int
    path: str
    inode: int
    since_ns: int = ALWAYS_NS
    until_ns: int = NEVER_NS


def areas_of(pid: int) -> list[CodeArea]:
    """Read what code a process has mapped now; nothing of one that has ended."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        bounds, rights, offset, _, inode, *path = line.split(maxsplit=5)
        if "x" in rights:
            start, end = (int(bound, 16) for bound in bounds.split("-"))
            name = path[0].removesuffix(" (deleted)") if path else ""
            found.append(CodeArea(start, end, int(offset, 16), name, int(inode)))
    return found


def code_of(pids: Iterable[int]) -> list[tuple[int, int | None, list[CodeArea]]]:
    """Ask whose some processes are and what code they have; who doesn't answer soon stays out.

    It takes their mmap_lock (before 6.17), so it is asked by a thread that nobody waits for.
    """
    found = list[tuple[int, int | None, list[CodeArea]]]()

    def ask() -> None:
        for pid in wanted:
            found.append((pid, user_of(pid), areas_of(pid)))

    wanted = list(pids)
    asker = threading.Thread(target=ask, daemon=True)
    asker.start()
    asker.join(PATIENCE_S)
    return found.copy()
