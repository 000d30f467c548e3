"""Two memory cgroups for as long as a run needs them: the bare processes are in one of them.

Both hierarchies are known: v1's `memory` and v2. What a process of that group may charge is
bounded, and nothing of it goes to swap. The other group is beside it, for children that fill it: of
them some MiB may go to swap, where there is any, and where one outgrows that all are killed
(memory.oom.group, v2). So nothing of a bare process is ever reclaimed: what is reclaimed depends on
lists of pages. The groups are removed at the end, however the run ends (see `kept`); whoever should
still be in one then is what a bare process has left, and is killed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zaplock.errors import UserError
from zaplock.oracle.kept import kept
from zaplock.oracle.rights import way_out

LIMIT = 64 << 20
"""Bytes: far more than a sequence of the generator uses besides what it fills on purpose."""
SWAPPED = 32 << 20
"""Bytes of the other group that may be in swap."""
OF_PROCESSES = {
    "memory.limit_in_bytes": LIMIT, "memory.memsw.limit_in_bytes": LIMIT, "memory.max": LIMIT,
    "memory.swap.max": 0, "memory.oom.group": 0,
}  # fmt: skip
OF_CHILDREN = {
    "memory.limit_in_bytes": LIMIT, "memory.memsw.limit_in_bytes": LIMIT + SWAPPED,
    "memory.max": LIMIT, "memory.swap.max": SWAPPED, "memory.oom.group": 1,
}  # fmt: skip
"""What each group is given, of what its hierarchy has; the first two are v1's."""
IN_GUESTS = {"group": {**OF_PROCESSES, "memory.high": LIMIT - (2 << 20)}, "filled": OF_CHILDREN}
"""And in a guest. Who is beyond memory.high is made to sleep, the more the further beyond: here for
tenths of a second before it is killed."""
FILLED_IN_GUESTS = "/group/filled/cgroup.procs"
"""Where guest_driver.c has the other group."""

_GROUP = """
import json, os, signal, time
groups = json.loads(sys.argv[1])
def remove(path):
    deadline = time.monotonic() + 5
    while True:
        try:
            os.rmdir(path)
            return
        except FileNotFoundError:
            return
        except OSError:
            if time.monotonic() > deadline:
                with open(os.path.join(path, 'cgroup.procs')) as file:
                    for pid in map(int, file):
                        os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
def make(path, settings):
    os.mkdir(path)
    for name, value in settings.items():
        if os.path.exists(os.path.join(path, name)):
            with open(os.path.join(path, name), 'w') as file:
                file.write(str(value))
def give_back(_got):
    for path in groups:
        remove(path)
def take():
    try:
        for path, settings in groups.items():
            make(path, settings)
    except OSError:
        give_back(1)
        raise
    return 1
keep(take, give_back)
"""

_joined: list[Path] = []


def joined() -> Path | None:
    """Return the group that bare processes are to be in, None for where they are anyway."""
    return _joined[-1] if _joined else None


def limit_pages() -> int:
    """Return how many pages that group may charge, 0 where there is no group."""
    return LIMIT >> 12 if _joined else 0


def filled_by() -> str:
    """Return the file by which a process joins the other group, "" where there is none."""
    return str(_filled(_joined[-1]) / "cgroup.procs") if _joined else ""


def filled_pages(free_swap_pages: int) -> int:
    """Return how many pages the members of the other group may have, in memory and swap."""
    return (LIMIT >> 12) + min(SWAPPED >> 12, free_swap_pages)


def kills_all() -> bool:
    """Return whether all members of the other group are killed where one is."""
    return bool(_joined) and (_filled(_joined[-1]) / "memory.oom.group").exists()


def _filled(group: Path) -> Path:
    return group.with_name(f"{group.name}-filled")


def hierarchy(mounts: Path = Path("/proc/mounts")) -> Path | None:
    """Return where groups with a memory controller can be made: v1's mount, or v2's; None."""
    found = [line.split() for line in mounts.read_text().splitlines()]
    for _, where, kind, options, *_ in found:
        if kind == "cgroup" and "memory" in options.split(","):
            return Path(where)
    for _, where, kind, *_ in found:
        control = Path(where, "cgroup.subtree_control")
        if kind == "cgroup2" and control.exists() and "memory" in control.read_text().split():
            return Path(where)
    return None


def check_group() -> None:
    """Raise UserError where no group can be made."""
    if os.geteuid():
        raise UserError("theme group makes a memory cgroup, which only root may do: run it as root")
    if hierarchy() is None:
        raise UserError(
            "/proc/mounts has no cgroup hierarchy with a memory controller: theme group needs one, "
            "so mount it (mount -t cgroup -o memory ...), or leave the theme out"
        )


@contextmanager
def memory_group() -> Iterator[Path]:
    """Make a group whose processes may charge LIMIT bytes, and the other one beside it.

    Raises UserError where they can't be made.
    """
    check_group()
    where = hierarchy()
    assert where is not None
    path = where / f"zaplock-oracle-{os.getpid()}"
    groups = {str(path): OF_PROCESSES, str(_filled(path)): OF_CHILDREN}
    with kept(_GROUP, json.dumps(groups)) as got:
        if got < 0:
            raise UserError(
                f"can't make {path} ({os.strerror(-got)}): {way_out()}, or leave the theme group "
                "out"
            )
        _joined.append(path)
        try:
            yield path
        finally:
            _joined.pop()
