"""The preload library: compiled, tried here, and the environment that loads it into a program."""

from __future__ import annotations

import os
import re
import resource
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from zaplock.compiled.build import built
from zaplock.errors import UserError
from zaplock.release.pace import DEFAULT_BOUND_NS, SHORTEST_BOUND_NS

SOURCES: Final = Path(__file__).parent
FLAGS: Final = ("-O2", "-Wall", "-pthread", "-Wl,--no-as-needed", "-ldl")
SHARED: Final = (*FLAGS, "-shared", "-fPIC", "-fvisibility=default")
FROM: Final = 16 << 20
"""From which size on a free goes by pieces: 16 MiB hold a lock for half a millisecond."""
SMALLEST: Final = 64 << 10
_TRIED: Final = 64 << 10
_LIMIT_S: Final = 20


@dataclass(frozen=True)
class ReleaseSettings:
    """From how many bytes on, how long anybody should wait at most, and who does the work.

    In the background at most `most_waiting` bytes are on their way at once: who frees more works
    itself, so that a program can't fill the machine with what it has freed.
    """

    smallest: int = FROM
    max_stall_ns: int = DEFAULT_BOUND_NS
    background: bool = False
    most_waiting: int = 1 << 30

    def __post_init__(self) -> None:
        if self.smallest < SMALLEST:
            raise UserError(
                f"--from {self.smallest} is less than {SMALLEST} bytes: cutting so little up costs "
                "more than it gives"
            )
        if self.max_stall_ns < SHORTEST_BOUND_NS:
            raise UserError(
                f"--max-stall {self.max_stall_ns} ns is less than {SHORTEST_BOUND_NS} ns (0.1 ms): "
                "waking a waiter takes a part of that"
            )

    def spelt(self) -> str:
        """Write them as the library reads them, with how many seccomp filters it will find."""
        return (
            f"from={self.smallest},stall={self.max_stall_ns},background={int(self.background)},"
            f"most={self.most_waiting},filters={_nr_filters()}"
        )


def environment(settings: ReleaseSettings, of: dict[str, str]) -> dict[str, str]:
    """Return an environment whose programs free by pieces: `of`, with the library loaded last.

    Raises UserError without a compiler, and where the library can't work here.
    """
    path = library()
    others = [one for one in re.split(r"[ :]+", of.get("LD_PRELOAD", "")) if one]
    loaded = ":".join([*(one for one in others if one != str(path)), str(path)])
    _try({**of, "LD_PRELOAD": str(path)})
    return {**of, "LD_PRELOAD": loaded, "ZAPLOCK_RELEASE": settings.spelt()}


def library() -> Path:
    """Return the compiled library, compiling it on first use."""
    path = built(
        SOURCES / "release.c", SHARED, beside=SOURCES, kept="preload", named="the preload library"
    )
    if re.search(r"[\s:$]", str(path)):
        raise UserError(
            f"the cache {path.parent} has a blank, a colon or a dollar in its name, which "
            "LD_PRELOAD can't take: set ZAPLOCK_CACHE to another folder of yours"
        )
    return path


def _try(environment: dict[str, str]) -> None:
    """Raise UserError unless the library gives memory back by pieces in a program here."""
    trial = built(SOURCES / "trial.c", FLAGS, beside=SOURCES, kept="preload", named="its trial")
    settings = ReleaseSettings(smallest=_TRIED).spelt()
    done = subprocess.run(
        [trial], env={**environment, "ZAPLOCK_RELEASE": settings}, capture_output=True,
        timeout=_LIMIT_S,
    )  # fmt: skip
    if done.returncode:
        raise UserError(f"memory can't be given back by pieces here: {_reason(done.returncode)}")


def _reason(code: int) -> str:
    if code < 0:
        return f"the sandbox ended the trial by signal {-code} (seccomp); run it outside"
    if code == 2:
        return "the library was not loaded; set ZAPLOCK_CACHE to a folder that is not noexec"
    if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        return "addresses are limited (ulimit -v), and moving memory takes some; lift the limit"
    if Path("/proc/sys/vm/overcommit_memory").read_text().strip() == "2":
        return "vm.overcommit_memory is 2, and moving memory takes promises; set it to 0 or 1"
    return f"it needs Linux 5.7 and /proc; this is {os.uname().release}"


def _nr_filters() -> int:
    """Count this process's seccomp filters as the library does: -1 where there are, uncounted."""
    status = Path("/proc/self/status").read_text()
    mode = re.search(r"^Seccomp:\t(\d)", status, re.M)
    number = re.search(r"^Seccomp_filters:\t(\d+)", status, re.M)
    if mode is None:
        return -1
    if mode[1] == "0":
        return 0
    return int(number[1]) if number else -1
