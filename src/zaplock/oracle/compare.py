"""Where two runs of one sequence part: the first operation, and what differs after it."""

from __future__ import annotations

import signal
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from zaplock.oracle import ops
from zaplock.oracle.ops import COUNTERS, FIGURES, CallOutcome, ObservedVma, Op, OracleStep, Snapshot
from zaplock.oracle.windows import UNMAP_ALL

SIDES = ("kernel", "model")
MOST = 12  # lines of differences that are worth showing


class Divergence(NamedTuple):
    """Operation number `at` of a sequence, and in words what differs after it."""

    sequence: tuple[Op, ...]
    at: int
    differences: tuple[str, ...]

    @property
    def signature(self) -> str:
        """Name the kind of fault: what tells two divergences apart when they are counted."""
        kinds = sorted({line.split(" ", 1)[0] for line in self.differences})
        if kinds == ["leftover"]:
            kinds = sorted({" ".join(line.split()[:2]) for line in self.differences})
        return f"{self.sequence[self.at].name}: {', '.join(kinds)}"


def first_divergence(
    sequence: Sequence[Op], real: Sequence[OracleStep], model: Sequence[OracleStep]
) -> Divergence | None:
    """Return the first operation after which two runs differ, None if there is none."""
    shown: Snapshot | None = None
    expected: Snapshot | None = None
    for index, (ours, theirs) in enumerate(zip(real, model, strict=False)):
        outcome, snapshot = ours
        awaited, other = theirs
        if not (outcome == awaited or same_outcome(outcome, awaited)) or not (
            # What both sides know to be as before was compared before.
            (snapshot is shown and other is expected) or alike(snapshot, other)
        ):
            told = tuple(differences(ours, theirs))[:MOST]
            return Divergence(tuple(sequence), index, told or ("unequal in no field",))
        shown, expected = snapshot, other
    if len(real) == len(model):
        return None
    return Divergence(tuple(sequence), min(len(real), len(model)), ("length of the runs",))


def same_outcome(ours: CallOutcome, theirs: CallOutcome) -> bool:
    """Return whether an operation has returned, and shown, the same on both sides."""
    if ours.result != theirs.result or ours.seen != theirs.seen:
        return False
    if ours.child is None or theirs.child is None:
        return ours.child is theirs.child
    return alike(ours.child, theirs.child)


def alike(ours: Snapshot, theirs: Snapshot) -> bool:
    """Return whether two snapshots agree: in all, and their peaks as far as these are known."""
    vmas, regions, tags, counters, (low, high) = ours
    other_vmas, other_regions, other_tags, other_counters, (other_low, other_high) = theirs
    return (
        vmas == other_vmas
        and regions == other_regions
        and tags == other_tags
        and counters == other_counters
        and low <= other_high
        and other_low <= high
    )


def differences(real: OracleStep, model: OracleStep) -> Iterator[str]:
    """Tell in words what differs between two steps; the first word says what kind it is."""
    if model.outcome.result == ops.BROKEN:
        yield f"broke the model: {model.outcome.seen.decode()}"
        return
    if real.outcome.result != model.outcome.result:
        yield _two("result", result_text(real.outcome.result), result_text(model.outcome.result))
    if real.outcome.seen != model.outcome.seen:
        yield _two("mincore", real.outcome.seen.hex(), model.outcome.seen.hex())
    yield from _snapshots("", real.snapshot, model.snapshot)
    ours, theirs = real.outcome.child, model.outcome.child
    if ours is not None and theirs is not None:
        yield from _snapshots("child-", ours, theirs)
    elif ours != theirs:
        yield "child: only one side has forked"


def result_text(result: int) -> str:
    """Spell out a result: an errno by its name, a signal by its name and code."""
    caught = ops.signalled(result)
    if caught:
        return f"{signal.Signals(caught[0]).name} (code {caught[1]})"
    if result < 0:
        return ops.ERRNO_NAMES.get(-result, str(result))
    return hex(result) if result > 9 else str(result)


def _two(what: str, ours: object, theirs: object) -> str:
    return f"{what} kernel {ours}, model {theirs}"


def _snapshots(prefix: str, real: Snapshot, model: Snapshot) -> Iterator[str]:
    if real.vmas != model.vmas:
        yield from _vmas(prefix, real.vmas, model.vmas)
    if real.regions != model.regions:
        yield from _pages(prefix, real.regions, model.regions)
    elif real.tags != model.tags:
        yield _two(f"{prefix}content", *map(_tag_list, _unequal(real, model)))
    for name, ours, theirs in zip(COUNTERS, real.counters, model.counters, strict=True):
        if ours != theirs:
            yield _two(f"{prefix}{name}", f"{ours} kB", f"{theirs} kB")
    if real.peak[0] > model.peak[1] or model.peak[0] > real.peak[1]:
        shown = (f"{low} to {high} kB" for low, high in (real.peak, model.peak))
        yield _two(f"{prefix}VmHWM", *shown)


def _vmas(
    prefix: str, real: tuple[ObservedVma, ...], model: tuple[ObservedVma, ...]
) -> Iterator[str]:
    theirs = {vma.start: vma for vma in model}
    for vma in real:
        other = theirs.pop(vma.start, None)
        if other is None:
            yield f"{prefix}maps only the kernel has {vma_text(vma)}"
        elif other != vma:
            yield from _one_vma(prefix, vma, other)
    for vma in theirs.values():
        yield f"{prefix}maps only the model has {vma_text(vma)}"


def _one_vma(prefix: str, real: ObservedVma, model: ObservedVma) -> Iterator[str]:
    for name in ("end", "perms", "offset", "name", "flags"):
        ours, theirs = getattr(real, name), getattr(model, name)
        if ours != theirs:
            shown = map(hex, (ours, theirs)) if isinstance(ours, int) else (ours, theirs)
            yield _two(f"{prefix}{name} of {real.start:#x}:", *shown)
    for name, ours, theirs in zip(FIGURES, real.figures, model.figures, strict=True):
        if ours != theirs:
            yield _two(f"{prefix}{name} of {real.start:#x}:", f"{ours} kB", f"{theirs} kB")


def vma_text(vma: ObservedVma) -> str:
    """Write a VMA as a line of maps."""
    return f"{vma.start:x}-{vma.end:x} {vma.perms} {vma.offset:08x} {vma.name or '-'} [{vma.flags}]"


def _pages(prefix: str, real: bytes, model: bytes) -> Iterator[str]:
    ours, theirs = set(_regions(real)), set(_regions(model))
    yield _two(
        f"{prefix}pages", _region_list(sorted(ours - theirs)), _region_list(sorted(theirs - ours))
    )


def _regions(packed: bytes) -> list[tuple[int, ...]]:
    return list(struct.iter_unpack("<3Q", packed))


def _region_list(regions: Sequence[tuple[int, ...]]) -> str:
    shown = (f"{start:x}-{end:x}:{categories:#x}" for start, end, categories in regions[:4])
    return "[" + " ".join(shown) + (" ...]" if len(regions) > 4 else "]")


def _unequal(real: Snapshot, model: Snapshot) -> tuple[list[int], list[int]]:
    return _tags(real.tags), _tags(model.tags)


def _tags(packed: bytes) -> list[int]:
    return [tag for (tag,) in struct.iter_unpack("<q", packed)]


def _tag_list(tags: Sequence[int]) -> str:
    shown = (f"{tag:#x}" for tag in tags[:8])
    return "[" + " ".join(shown) + (" ...]" if len(tags) > 8 else "]")


def leftovers(sequence: Sequence[Op], real: Sequence[OracleStep]) -> Divergence | None:
    """Return the kernel's own fault if, after everything was unmapped, a counter is not back at 0.

    This needs no model: it is the kernel's accounting against itself. The high-water marks stay.
    """
    ends = len(UNMAP_ALL)
    if tuple(sequence[-ends:]) != UNMAP_ALL:
        return None
    if any(step.outcome.result != 0 for step in real[-ends:]):
        return None
    after = real[-1].snapshot
    kept = [
        f"leftover {name} {value} kB"
        for name, value in zip(COUNTERS, after.counters, strict=True)
        if value and name != "VmPeak"
    ]
    kept += [f"leftover {vma_text(vma)}" for vma in after.vmas]
    return Divergence(tuple(sequence), len(sequence) - 1, tuple(kept)) if kept else None


__all__ = [
    "CallOutcome",
    "Divergence",
    "differences",
    "first_divergence",
    "leftovers",
    "result_text",
]
