"""Every pair of operations on one range: 17 of them, so 153 scenarios, made and not written.

Each operation says what it needs of the range (a file, a heap, a userfaultfd, ...) and what it does
there; a pair gets the range that suits both, and two tasks. What a reader may see beside an
operation stands here too: the old content or a signal, unless the operation is one that replaces
content by design.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations_with_replacement

from zaplock.check.operations import HEAP_PAGE
from zaplock.check.scenarios import InitialMapping, Kind, Scenario, TaskSpec

PAGES = 4
CHILD = 10
Do = tuple[str, ...]


@dataclass(frozen=True)
class PairMember:
    """One side of a pair.

    do: (first page of the range, what a reader may see, number of the task) -> operations.
    wants: the kind of range it needs, "" for any. seen: what a reader beside it may see of page 1
    apart from the old content. foreign: runs in another process. pins: ... and holds a share of the
    address space while it works (mmget). stack: needs one above the range.
    """

    do: Callable[[int, str, int], Do]
    wants: Kind | str = ""
    seen: str = ""
    foreign: bool = False
    pins: bool = False
    stack: bool = False
    daemon: bool = False


def _reading(base: int, seen: str, _task: int) -> Do:
    return (f"read {base + 1} -> old {seen}", f"write {base + 2} 7 -> 0 SIGSEGV SIGBUS")


def _without_signals(seen: str) -> str:
    """Leave the signals out: a system call gives -EFAULT where an access would be killed."""
    return " ".join(word for word in seen.split() if not word.startswith("SIG"))


def _growing(base: int, _seen: str, _task: int) -> Do:
    return (f"write {base + 5} 7 -> 0 SIGSEGV", f"write {base + 3} 8 -> 0 SIGSEGV SIGBUS")


SIDES: dict[str, PairMember] = {
    "munmap": PairMember(lambda at, _seen, _task: (f"munmap {at} 4",), seen="SIGSEGV"),
    "mmap-fixed": PairMember(lambda at, _seen, _task: (f"mmap-fixed {at} 4",), seen="0"),
    "fault": PairMember(_reading),
    "grow": PairMember(_growing, stack=True),
    "dontneed": PairMember(lambda at, _seen, _task: (f"dontneed {at} 2",), seen="0"),
    "mremap": PairMember(
        lambda at, _seen, task: (f"mremap-move {at} 4 {at + 16 * (task + 1)}",), seen="SIGSEGV"
    ),
    "brk": PairMember(lambda _at, _seen, _task: ("brk 1",), "heap", seen="SIGSEGV"),
    "mprotect": PairMember(lambda at, _seen, _task: (f"mprotect {at} 2 1",)),
    "mlock": PairMember(lambda at, _seen, _task: (f"mlock {at} 2",)),
    "gup": PairMember(
        lambda at, seen, _task: (f"gup {at + 1} -> old EFAULT {_without_signals(seen)}",)
    ),
    "proc": PairMember(lambda _at, _seen, _task: ("proc 1",), foreign=True, pins=True),
    "truncate": PairMember(
        lambda _at, _seen, _task: ("truncate 1 0",), "file", seen="SIGBUS", foreign=True
    ),
    "fork": PairMember(lambda _at, _seen, task: (f"fork {CHILD + task}",)),
    "exit": PairMember(lambda _at, _seen, _task: ()),
    "oom-reap": PairMember(lambda _at, _seen, _task: ("oom-reap 1",), seen="0", foreign=True),
    "monitor": PairMember(
        lambda _at, _seen, _task: ("monitor 1 3",), "uffd", seen="77", daemon=True
    ),
    "uprobe": PairMember(
        lambda _at, _seen, _task: ("uprobe 1 1",),
        "private-file",
        seen="0xcc",
        foreign=True,
        pins=True,
    ),
}
"""The sides, in the order in which the matrix shows them."""


def pair_names() -> list[str]:
    """List the pairs as "munmap+fault"."""
    return ["+".join(pair) for pair in combinations_with_replacement(SIDES, 2)]


def pair(name: str) -> Scenario:
    """Make the scenario of a pair."""
    left, right = name.split("+")
    sides = SIDES[left], SIDES[right]
    kind = _kind_of_range(sides)
    base = HEAP_PAGE if kind == "heap" else 0
    seen = " ".join(side.seen for side in sides if side.seen)
    leaving = "exit" in (left, right)
    tasks = tuple(_task(side, number, base, seen, leaving) for number, side in enumerate(sides))
    return Scenario(
        summary=f"{left} beside {right}, on one range",
        name=name,
        map=_maps(sides, kind, base),
        task=tasks,
        cmdline=base + 1,
    )


def _kind_of_range(sides: tuple[PairMember, PairMember]) -> Kind:
    wants = {side.wants for side in sides}
    for kind in ("private-file", "file", "heap", "uffd"):
        if kind in wants:
            return kind
    return "anon"


def _maps(
    sides: tuple[PairMember, PairMember], kind: Kind, base: int
) -> tuple[InitialMapping, ...]:
    maps = [InitialMapping((base, base + PAGES), kind, populated=(base, base + 2))]
    wants = {side.wants for side in sides}
    if "heap" in wants and kind != "heap":
        maps.append(InitialMapping((HEAP_PAGE, HEAP_PAGE + PAGES), "heap"))
    if "uffd" in wants and kind != "uffd":
        maps.append(InitialMapping((128, 130), "uffd"))
    if any(side.stack for side in sides):
        maps.append(InitialMapping((base + 6, base + 8), "stack"))
    return tuple(maps)


def _task(side: PairMember, number: int, base: int, seen: str, leaving: bool) -> TaskSpec:
    do = side.do(base, seen, number)
    foreign = side.foreign and not (leaving and side.pins)
    if leaving and not (foreign or side.daemon):
        do = (*do, "exit")
    cached = () if side.foreign or side.daemon else (base + 1,)
    mm = 2 + number if foreign else 1
    return TaskSpec(do, name="AB"[number], mm=mm, daemon=side.daemon, cached=cached)
