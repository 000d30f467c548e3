"""A memory cgroup for as long as a run needs it: the bare processes are in it, and nobody else.

Both hierarchies are known: v1's `memory` and v2. What a process of the group may charge is bounded,
and nothing of it goes to swap. The group is removed at the end, however the run ends (see `kept`);
whoever should still be in it then is what a bare process has left, and is killed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zaplock.errors import UserError
from zaplock.oracle.kept import kept

LIMIT = 64 << 20
"""Bytes: far more than a sequence of the generator uses besides what it fills on purpose."""
IN_GUESTS = {
    "memory.max": LIMIT, "memory.high": LIMIT - (2 << 20), "memory.swap.max": 0,
    "memory.oom.group": 0,
}  # fmt: skip
"""What a guest's group is given, of v2. Who is beyond memory.high is made to sleep, the more the
further beyond: here for tenths of a second before it is killed."""

_GROUP = """
import os, signal, time
path, settings = sys.argv[1], dict(zip(sys.argv[2::2], sys.argv[3::2]))
def remove():
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
def take():
    os.mkdir(path)
    try:
        for name, value in settings.items():
            if os.path.exists(os.path.join(path, name)):
                with open(os.path.join(path, name), 'w') as file:
                    file.write(value)
    except OSError:
        os.rmdir(path)
        raise
    return 1
keep(take, lambda _got: remove())
"""

_joined: list[Path] = []


def joined() -> Path | None:
    """Return the group that bare processes are to be in, None for where they are anyway."""
    return _joined[-1] if _joined else None


def limit_pages() -> int:
    """Return how many pages that group may charge, 0 where there is no group."""
    return LIMIT >> 12 if _joined else 0


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
    """Make a group whose processes may charge LIMIT bytes. Raises UserError where it can't be."""
    check_group()
    where = hierarchy()
    assert where is not None
    path = where / f"zaplock-oracle-{os.getpid()}"
    names = ("memory.limit_in_bytes", "memory.max", "memory.memsw.limit_in_bytes")
    settings = [part for name in names for part in (name, str(LIMIT))]
    with kept(_GROUP, path, *settings, "memory.swap.max", "0") as got:
        if got < 0:
            raise UserError(
                f"can't make {path} ({os.strerror(-got)}): be root, or leave the theme group out"
            )
        _joined.append(path)
        try:
            yield path
        finally:
            _joined.pop()
