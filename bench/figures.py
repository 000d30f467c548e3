"""Figures of `make bench`: each one zaplock's beside a peer's of the same run, kept as JSON.

A machine drifts, and two machines differ; a ratio of two times that were taken in turns does so
much less. So what is compared over commits is the ratio, and only on the same machine.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import msgspec

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).with_name("results")
LESS = ("s", "MiB")
"""Units of which less is better."""
START, WORK = ("python -c",), ("SimPy", "salabim")
"""Peers that the Python runs which runs zaplock: what it loses on another one, they lose too."""
NOISE = 0.05
"""Two programs that lose as much differ by less than this."""
FALL = 0.1
"""A ratio that is lower by this part than the last kept one has fallen."""


class Figure(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What zaplock and a peer were measured at, in one unit.

    row: what is measured. unit: "s" or "MiB" (less is better), or something a second. python: of
    zaplock's side, as "3.11".
    """

    row: str
    peer: str
    unit: str
    ours: float
    theirs: float
    python: str

    @property
    def ratio(self) -> float:
        """How many times as fast as the peer zaplock is, or how many times as small."""
        return _times(self.unit, self.ours, self.theirs)

    @property
    def key(self) -> tuple[str, str, str]:
        """What the figures of two runs are matched by."""
        return self.row, self.peer, self.python


class BenchMachine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What decides how fast this machine is, and so whose figures can be compared."""

    cpu: str
    cpus: int
    kernel: str

    @property
    def name(self) -> str:
        """A name for files; another release of the kernel is another machine."""
        release = re.match(r"\d+\.\d+", self.kernel)
        words = f"{self.cpu} {self.cpus} cpus linux {release[0] if release else self.kernel}"
        return re.sub(r"[^a-z0-9.]+", "-", words.lower()).strip("-")


class BenchRun(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One run of `make bench`.

    commit: what was measured. taken: when (UTC, ISO 8601). load: the machine's load average before.
    left_out: rows that could not be measured, and why. accepted: why a ratio that fell was kept.
    """

    commit: str
    taken: str
    machine: BenchMachine
    load: float
    figures: tuple[Figure, ...]
    left_out: dict[str, str] = {}
    accepted: str = ""


def pace(one: Figure, other: Figure) -> float:
    """Return how many times as fast zaplock itself was in the first of two figures of one row."""
    return _times(one.unit, one.ours, other.ours)


def _times(unit: str, this: float, that: float) -> float:
    return that / this if unit in LESS else this / that


def slower_pythons(figures: Sequence[Figure]) -> list[str]:
    """Name the rows that another Python does a tenth slower than the oldest here, and why.

    Where that Python runs another program as slowly, it is the interpreter.
    """
    found: dict[tuple[str, str], tuple[Figure, Figure]] = {}
    oldest = {(one.row, one.peer): one for one in sorted(figures, key=_version, reverse=True)}
    for one in figures:
        first = oldest[one.row, one.peer]
        if pace(one, first) < 1 - FALL:
            found.setdefault((one.row, one.python), (one, first))
    return [
        f"{row} is {pace(one, first):.2f} times as fast on Python {python} as on {first.python}"
        f"{_reason(one, first, figures)}"
        for (row, python), (one, first) in found.items()
    ]


def _reason(slow: Figure, first: Figure, figures: Sequence[Figure]) -> str:
    """Say what else that Python runs so much slower than the oldest; "" if nothing is known."""
    likes = START if slow.peer.startswith(START) else WORK
    own = [one for one in figures if one.peer.startswith(likes)]
    before = {(one.row, one.peer): one for one in own if one.python == first.python}
    paces = [
        (_times(one.unit, one.theirs, before[one.row, one.peer].theirs), one.peer)
        for one in own
        if one.python == slow.python and (one.row, one.peer) in before
    ]
    if not paces:
        return ""
    slowest, peer = min(paces)
    if slowest <= pace(slow, first) + NOISE:
        return f": the interpreter is slower ({peer}: {slowest:.2f})"
    return f": more than anything else that it runs ({peer}: {slowest:.2f})"


def _version(figure: Figure) -> list[int]:
    return [int(part) for part in figure.python.split(".")]


def this_machine() -> BenchMachine:
    """Return what this machine is."""
    text = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^(?:model name|Model|cpu model)\s*:\s*(.+)$", text, re.MULTILINE)
    cpus = len(os.sched_getaffinity(0))
    return BenchMachine(model[1].strip() if model else platform.machine(), cpus, platform.release())


def commit_of_tree() -> tuple[str, list[str]]:
    """Return the commit that is checked out, and the files that differ from it.

    What a run of this itself writes is left out.
    """
    own = ("bench/results/", "docs/speed")
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    status = [*git, "status", "--porcelain", "--untracked-files=all"]
    changed = subprocess.run(status, check=True, capture_output=True, text=True).stdout
    files = [line[3:] for line in changed.splitlines()]
    return commit.stdout.strip(), [file for file in files if not file.startswith(own)]


def read_runs(folder: Path = RESULTS) -> list[BenchRun]:
    """Read the runs that were kept, the oldest first."""
    files = folder.glob("*/*.json")
    runs = [msgspec.json.decode(file.read_bytes(), type=BenchRun) for file in files]
    return sorted(runs, key=lambda run: run.taken)


def keep(run: BenchRun, folder: Path = RESULTS) -> Path:
    """Write a run down; return the file."""
    when = re.sub(r"[^0-9T]", "", run.taken)
    file = folder / run.machine.name / f"{when}-{run.commit[:12]}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(msgspec.json.format(msgspec.json.encode(run), indent=1) + b"\n")
    return file


def last_kept(runs: list[BenchRun], machine: BenchMachine) -> dict[tuple[str, str, str], Figure]:
    """Return each figure's last kept one on this machine."""
    own = [run for run in runs if run.machine.name == machine.name]
    return {figure.key: figure for run in own for figure in run.figures}


def fallen(
    figures: list[Figure], before: dict[tuple[str, str, str], Figure]
) -> list[tuple[Figure, Figure]]:
    """Return the figures whose ratio fell by a tenth, each with the last kept one."""
    pairs = [(figure, before[figure.key]) for figure in figures if figure.key in before]
    return [(now, then) for now, then in pairs if now.ratio < then.ratio * (1 - FALL)]
