"""ksmd as a run needs it: at rest until a sequence asks for it, then quick; given back as it was.

ksmd is the machine's (see `kept`). It merges pages of other processes, too, while it runs, and
everything that it has merged is undone at the end.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zaplock.errors import UserError
from zaplock.oracle.kept import kept

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

_SET = """
import mmap, os
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
def take():
    try:
        for name in there:
            write(name, settings[name])
        for pid in nice:
            os.setpriority(os.PRIO_PROCESS, pid, haste)
        own.madvise(12)  # ksmd scans only where somebody has mergeable memory
    except OSError:
        give_back(0)
        raise
    return len(there)
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
        if got < 0:
            raise UserError(
                f"can't set {KSM} ({os.strerror(-got)}): be root, with advisor_mode none, or leave "
                "the theme ksm out"
            )
        yield
