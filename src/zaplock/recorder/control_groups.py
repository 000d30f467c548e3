"""Where a controller of control groups is mounted, and in which group of it a task is.

Not covered: groups outside of the cgroup namespace that zaplock is in.
"""

from __future__ import annotations

import re
from pathlib import Path


def hierarchy(controller: str) -> tuple[Path, str] | None:
    """Find where a controller is: its mount, and its name ("" for version 2); None: nowhere."""
    with open("/proc/self/mountinfo", errors="surrogateescape") as file:
        mounts = [line.split() for line in file]
    unified = None
    for fields in mounts:
        kind, options, where = fields[fields.index("-") + 1], fields[-1], _plain(fields[4])
        if kind == "cgroup" and controller in options.split(","):
            return Path(where), controller
        if kind == "cgroup2":
            unified = Path(where)
    return (unified, "") if unified else None


def _plain(path: str) -> str:
    return re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), path)


def group_of(task: str, controller: str) -> str | None:
    """Return the cgroup of a task, given as its directory in /proc; None where it has ended."""
    try:
        lines = Path(task, "cgroup").read_text(errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == controller or controller in controllers.split(","):
            return path
    return None


class Freezer:
    """The freezer of version 1, which stops a task that sleeps where it sleeps.

    Nothing on its stack tells of that. A task whose group (version 2) is frozen shows so itself.
    """

    def __init__(self) -> None:
        found = hierarchy("freezer")
        self._mount = found[0] if found and found[1] else None

    def keeps(self, task: str) -> bool:
        """Say whether it keeps a task from running, given as its directory in /proc."""
        group = group_of(task, "freezer") if self._mount else None
        if not group or not self._mount:
            return False
        try:
            state = (self._mount / group.lstrip("/") / "freezer.state").read_text()
        except OSError:  # it has gone, or this is the group at the top
            return False
        return state.strip() in ("FROZEN", "FREEZING")
