"""The maps of a recording beside those of the model, line by line.

Whether two neighbours are one mapping can depend on which pages were written before they met, which
a trace doesn't tell (unless the recorder did): such borders are counted and not compared. The
stack grows by faults, so where it begins is not compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

from zaplock.model import flags as f
from zaplock.programs.dialects import UNKNOWN_NAME
from zaplock.programs.file_kinds import label
from zaplock.programs.recorded_world import LiveSpace, StraceWorld
from zaplock.programs.recording import Area


class MapsVerdict(NamedTuple):
    """Lines compared, what differs in words, borders that can't be known, why lines were left."""

    compared: int
    differing: list[str]
    borders: int
    hidden: list[str]


def compare_maps(
    world: StraceWorld, live: LiveSpace, areas: tuple[Area, ...], knows_writes: bool
) -> MapsVerdict:
    """Compare what a recorder saw of a space with what the model has."""
    recorded = [a for a in areas if a.start < f.TASK_SIZE_4_LEVELS]
    stack = live.stack_end or next((a.end for a in areas if a.name == "[stack]"), 0)
    kernel = [_plain(a, stack) for a in recorded]
    model = [_plain(a, stack) for a in world.areas(live)]
    places = {(a.start, a.end, a.perms, a.offset): a.name for a in kernel}
    model = [
        a._replace(name=places.get((a.start, a.end, a.perms, a.offset), a.name))
        if a.name.removeprefix("memfd:") == UNKNOWN_NAME
        else a
        for a in model
    ]
    hidden: list[str] = []
    moved = renamed(world, kernel, model)
    if moved:
        told = f"{len(moved)} mappings: their file has another name now, and who gave it that"
        hidden.append(f"{told} is not in the recording (rename)")
        kernel = [a for a in kernel if a._replace(name="") not in moved]
        model = [a for a in model if a._replace(name="") not in moved]
    for cloud in live.known.clouds:
        before = len(kernel)
        kernel = [a for a in kernel if not cloud.meets(a.start, a.end)]
        model = [a for a in model if not cloud.meets(a.start, a.end)]
        if len(kernel) < before:
            hidden.append(f"{before - len(kernel)} mappings: {cloud.why}")
    borders = 0
    if not knows_writes:
        kernel, model, borders = without_unknown_borders(kernel, model)
    ours, theirs = set(map(shown, kernel)), set(map(shown, model))
    differing = [f"only the kernel has {text}" for text in sorted(ours - theirs)]
    differing += [f"only the model has {text}" for text in sorted(theirs - ours)]
    return MapsVerdict(len(kernel), differing, borders, hidden)


def renamed(world: StraceWorld, kernel: list[Area], model: list[Area]) -> set[Area]:
    """List, without names, mappings that are equal but for the name of a file that nobody opened.

    A file may get another name while it is mapped; one in memory keeps that of its making.
    """
    names = {world.machine.files[file].name for file in world.machine.files}
    places = {a._replace(name=""): a.name for a in kernel}
    found = ((a, places.get(a._replace(name=""), a.name)) for a in model if a.name)
    return {
        a._replace(name="")
        for a, name in found
        if name not in ("", a.name, *names) and not name.startswith(_KEPT)
    }


_KEPT = ("memfd:", "SYSV", "[")


def _plain(item: Area, stack: int) -> Area:
    """Leave out the kernel's own names, and where the stack begins."""
    kept = item.name.startswith(("[anon:", "[anon_shmem:"))
    name = item.name if kept else label(item.name)
    name = "" if name.startswith("[") and not kept else name
    if item.end == stack:
        return Area(-1, item.end, item.perms, 0, "[stack]")
    return Area(item.start, item.end, item.perms, item.offset, name)


def shown(item: Area) -> str:
    """Write an area as a line."""
    start = "stack" if item.start < 0 else f"{item.start:x}"
    return f"{start}-{item.end:x} {item.perms} {item.offset:08x} {item.name}".rstrip()


def without_unknown_borders(
    kernel: list[Area], model: list[Area]
) -> tuple[list[Area], list[Area], int]:
    """Join neighbours where only one side has a border that written pages may account for."""
    ours = {a.start for a in kernel}
    theirs = {a.start for a in model}
    doubtful = {
        right.start
        for side, other in ((kernel, theirs), (model, ours))
        for left, right in pairwise(side)
        if right.start not in other and may_be_one(left, right)
    }
    return list(joined(kernel, doubtful)), list(joined(model, doubtful)), len(doubtful)


def may_be_one(left: Area, right: Area) -> bool:
    """Return whether nothing but different anon_vmas keeps two private mappings apart."""
    if left.end != right.start or left.start < 0 or "s" in left.perms:
        return False
    follows = not left.name or left.offset + left.end - left.start == right.offset
    return (left.perms, left.name) == (right.perms, right.name) and follows


def joined(areas: list[Area], borders: set[int]) -> Iterator[Area]:
    """Join what meets at these borders."""
    last: Area | None = None
    for item in areas:
        if last is not None and item.start in borders and may_be_one(last, item):
            last = last._replace(end=item.end)
            continue
        if last is not None:
            yield last
        last = item
    if last is not None:
        yield last
