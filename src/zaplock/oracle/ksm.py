"""ksmd as a run needs it: at rest until a sequence asks for it, then quick; given back as it was.

ksmd is the machine's (see `kept`). It merges pages of other processes, too, while it runs, and
everything that it has merged is undone at the end. So runs of zaplock take turns (`MergingTurn`):
a sequence that has ksmd scan, and one that makes memory mergeable, never go at the same time. Of
other processes with mergeable memory `mergers` tells.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from errno import EAGAIN
from pathlib import Path

from zaplock import advice
from zaplock.errors import UserError
from zaplock.oracle.kept import kept
from zaplock.oracle.ops import KSM_WRITES, Op, advice_of
from zaplock.oracle.rights import way_out

KSM = Path("/sys/kernel/mm/ksm")
SETTINGS = {
    "smart_scan": 0,  # else what did not merge is passed over for a while (6.7)
    "use_zero_pages": 0,  # unless a sequence sets it, as the next one
    "max_page_sharing": 256,
    "sleep_millisecs": 0,
    "pages_to_scan": 1_000_000,
}
"""How ksmd is set meanwhile, as far as a kernel has these."""
HASTE = -15
"""The nice value of ksmd meanwhile: it is 5, and beside much work a scan takes over a second."""
WRITTEN = ("run", "use_zero_pages", "max_page_sharing")
"""Settings that sequences write to."""

_SET = """
import fcntl, mmap, os
own = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
folder, haste, settings = sys.argv[1], int(sys.argv[2]), dict(zip(sys.argv[3::2], sys.argv[4::2]))
def is_ksmd(pid):
    try:
        with open('/proc/' + pid + '/comm') as file:
            return file.read().strip() == 'ksmd'
    except OSError:  # it has ended meanwhile
        return False
ksmd = [int(pid) for pid in os.listdir('/proc') if pid.isdigit() and is_ksmd(pid)]
nice = {pid: os.getpriority(os.PRIO_PROCESS, pid) for pid in ksmd}
def write(name, value):
    with open(os.path.join(folder, name), 'w') as file:
        file.write(value)
def read(name):
    with open(os.path.join(folder, name)) as file:
        return file.read().strip()
there = {name: read(name) for name in settings if os.path.exists(os.path.join(folder, name))}
alone = open(os.path.join(folder, 'pages_to_scan'))
def take():
    fcntl.flock(alone, fcntl.LOCK_EX | fcntl.LOCK_NB)
    try:
        for name in there:
            write(name, settings[name])
        for pid in nice:
            os.setpriority(os.PRIO_PROCESS, pid, haste)
        own.madvise(12)  # ksmd scans only where somebody has mergeable memory
    except OSError:
        give_back(0)
        raise
    return os.getpid()
def give_back(_number):
    for value in ('2', '0'):
        write('run', value)
    for name, value in there.items():
        write(name, value)
    for pid, value in nice.items():
        os.setpriority(os.PRIO_PROCESS, pid, value)
keep(take, give_back)
"""


def check_ksm() -> None:
    """Raise UserError where ksmd can't be had, or has work to do already."""
    if os.geteuid():
        raise UserError("theme ksm starts ksmd, which only root may do: run it as root")
    try:
        busy = [name for name in ("run", "pages_shared") if int((KSM / name).read_text())]
    except FileNotFoundError:
        raise UserError(
            f"there is no {KSM}: theme ksm needs a kernel with CONFIG_KSM, so leave it out"
        ) from None
    if busy:
        value = (KSM / busy[0]).read_text().strip()
        raise UserError(
            f"{KSM / busy[0]} is {value} and theme ksm needs 0, since it starts and stops ksmd: "
            f"echo 2 > {KSM}/run, then echo 0, if nobody needs it"
        )


@contextmanager
def ksmd() -> Iterator[None]:
    """Have ksmd ready, and at rest. Raises UserError where it can't be set."""
    pairs = (part for pair in SETTINGS.items() for part in pair)
    with kept(_SET, KSM, HASTE, *pairs) as got:
        if got == -EAGAIN:
            raise UserError(
                "another run of zaplock has ksmd, which does one thing at a time: wait for its "
                "end, or leave the theme ksm out"
            )
        if got < 0:
            raise UserError(
                f"can't set {KSM} ({os.strerror(-got)}): {way_out()}, with advisor_mode none, or "
                "leave the theme ksm out"
            )
        _keepers.append(got)
        try:
            yield
        finally:
            _keepers.remove(got)


_keepers: list[int] = []
"""Processes of ours that have a mergeable page, so that ksmd scans at all."""


def mergers() -> Iterator[str]:
    """Name the other processes that ksmd may merge memory of, or has."""
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) not in _keepers and _is_mergeable(name):
            try:
                comm = Path(f"/proc/{name}/comm").read_text().strip()
            except OSError:  # it has ended, but was there
                comm = "?"
            yield f"{comm} ({name})"


def _is_mergeable(pid: str) -> bool:
    """Tell by ksm_stat (6.1): older kernels say only what was scanned, newer ones all."""
    try:
        told = Path(f"/proc/{pid}/ksm_stat").read_text().split()
    except OSError:
        return False
    fields = dict(zip(told[::2], told[1::2], strict=False))
    return fields.get("ksm_mergeable:") == "yes" or fields.get("ksm_rmap_items", "0") != "0"


def scans(sequence: Sequence[Op]) -> bool:
    """Return whether a sequence has ksmd work."""
    return any(op.name == "ksm_scan" or op.name in KSM_WRITES for op in sequence)


def makes_mergeable(sequence: Sequence[Op]) -> bool:
    """Return whether a sequence may have memory that ksmd would merge."""
    return any(
        op.name == "set_memory_merge" or advice_of(op) == advice.MADV_MERGEABLE for op in sequence
    )


class MergingTurn:
    """Whose turn it is, of all runs of zaplock on a machine: locks on two files of KSM's.

    Who has ksmd scan waits until nobody else has mergeable memory, and who comes later waits
    behind that (the gate), so that nobody waits for ever. Without KSM there is nothing to wait for.
    """

    def __init__(self, folder: Path = KSM) -> None:
        """Open the files; nothing is locked yet."""
        names = ("sleep_millisecs", "run") if folder.exists() else ()
        self._files = [os.open(folder / name, os.O_RDONLY | os.O_CLOEXEC) for name in names]

    @contextmanager
    def of(self, sequence: Sequence[Op]) -> Iterator[None]:
        """Wait for the turn of a sequence, and have it for the block."""
        alone = scans(sequence)
        if not self._files or not (alone or makes_mergeable(sequence)):
            yield
            return
        gate, turn = self._files
        fcntl.flock(gate, fcntl.LOCK_EX)
        try:
            fcntl.flock(turn, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        finally:
            fcntl.flock(gate, fcntl.LOCK_UN)
        try:
            yield
        finally:
            fcntl.flock(turn, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the files."""
        for fd in self._files:
            os.close(fd)
