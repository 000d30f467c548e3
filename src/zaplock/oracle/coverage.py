"""What has been exercised: (operation, outcome, feature of the state) triples, counted.

An outcome is "ok", an errno or a signal; a feature is what the operation met at its address (no
mapping, an anonymous, shared or file mapping, and which of the flags that change its course). So a
report can say what never happened, which a count of operations can't.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from operator import itemgetter

from zaplock.oracle import ops
from zaplock.oracle.ops import ObservedVma, Op, OracleStep, Ref, Snapshot, arguments_of

TELLING = ("lo", "gd", "hg", "sl", "um", "uw", "ui", "dc", "wf", "dp", "dd", "nh")
Key = tuple[str, str, str]

_ADDRESS = {
    name: arguments_of(name).index("addr")
    for name in (*ops.CALLS, *ops.ACCESSES)
    if "addr" in arguments_of(name)
}


class Coverage:
    """Counts of keys; adds up over jobs."""

    def __init__(self) -> None:
        self.counts: Counter[Key] = Counter()
        self._features: dict[tuple[str, str, str, bool], str] = {}

    def add(self, sequence: Sequence[Op], steps: Sequence[OracleStep], before: Snapshot) -> None:
        """Count every operation of a run."""
        results = [step.outcome.result for step in steps]
        vmas, met = before.vmas, list[Key]()
        for (name, arguments), result, step in zip(sequence, results, steps, strict=True):
            at, feature = _ADDRESS.get(name), ""
            if at is not None:
                value = arguments[at]
                if isinstance(value, Ref):
                    value = results[value.op] + value.delta
                feature = self._feature(vma_at(vmas, value))
            met.append((name, "ok" if result >= 0 else _failure(result), feature))
            vmas = step.snapshot.vmas
        self.counts.update(met)

    def _feature(self, vma: ObservedVma | None) -> str:
        if vma is None:
            return "hole"
        seen = vma.perms, vma.name, vma.flags, vma.figures[0] > 0
        return self._features.get(seen) or self._describe(*seen)

    def _describe(self, perms: str, name: str, flags: str, is_present: bool) -> str:
        if len(self._features) > 50_000:
            self._features.clear()
        kind = "shared" if perms[3] == "s" else "private"
        backing = "file" if name and not name.startswith("shared") else "anon"
        present = "" if is_present else "-empty"
        telling = [flag for flag in flags.split() if flag in TELLING]
        text = "+".join([f"{kind}-{backing}{present}", *telling])
        self._features[perms, name, flags, is_present] = text
        return text

    def merge(self, counts: Counter[Key]) -> None:
        """Add the counts of another run."""
        self.counts.update(counts)

    def outcomes(self) -> dict[str, Counter[str]]:
        """Sum over features: for each operation how often it had each outcome."""
        summed: dict[str, Counter[str]] = {}
        for (name, outcome, _), count in self.counts.items():
            summed.setdefault(name, Counter())[outcome] += count
        return summed


@lru_cache(maxsize=1000)
def _failure(result: int) -> str:
    """Name what is no success: an errno, or a signal with its code."""
    caught = ops.signalled(result)
    if caught:
        return f"{_SIGNALS.get(caught[0], caught[0])}/{_CODES.get(caught, caught[1])}"
    return ops.ERRNO_NAMES.get(-result, str(-result))


_SIGNALS = {11: "SIGSEGV", 7: "SIGBUS"}
_CODES = {(11, 1): "MAPERR", (11, 2): "ACCERR", (11, 128): "KERNEL", (7, 2): "ADRERR",
          (7, 4): "MCEERR_AR"}  # fmt: skip


_START = itemgetter(ObservedVma._fields.index("start"))


def vma_at(vmas: tuple[ObservedVma, ...], address: int) -> ObservedVma | None:
    """Return the VMA that contains an address."""
    index = bisect_right(vmas, address, key=_START) - 1
    return vmas[index] if index >= 0 and address < vmas[index].end else None
