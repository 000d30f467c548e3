"""From a long failing sequence to a short one: delta debugging, then simpler arguments.

Removing an operation must not change what the others mean: a `Ref` to a removed operation becomes
the number that it stood for in the original run. What counts as failing is the caller's; it should
be the same kind of fault, or the shrinker walks from one fault to another.

Source: A. Zeller and R. Hildebrandt, "Simplifying and Isolating Failure-Inducing Input" (2002).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from zaplock.oracle import ring
from zaplock.oracle.ops import FILES, TAKES_FILE, Argument, Op, Ref

Fails = Callable[[tuple[Op, ...]], bool]
_MASK = (1 << 64) - 1
MOST_RUNS = 600


def shrink(sequence: Sequence[Op], results: Sequence[int], fails: Fails) -> tuple[Op, ...]:
    """Return a sub-sequence with simpler arguments that still fails.

    `results` are the original run's, for what `Ref`s stand for. `fails` is called at most MOST_RUNS
    times; the sequence itself must fail.
    """
    budget = _Budget(fails)
    kept = _fewer(list(range(len(sequence))), lambda k: budget(keep(sequence, results, k)))
    short = keep(sequence, results, kept)
    return _without_idle(_simpler(short, budget), budget)


class _Budget:
    """Ask `fails` a bounded number of times; after that nothing fails."""

    def __init__(self, fails: Fails) -> None:
        self._fails, self._left = fails, MOST_RUNS

    def __call__(self, sequence: tuple[Op, ...]) -> bool:
        self._left -= 1
        return self._left >= 0 and self._fails(sequence)


def keep(sequence: Sequence[Op], results: Sequence[int], kept: Sequence[int]) -> tuple[Op, ...]:
    """Keep the operations with these numbers; what they refer to is renumbered or spelled out."""
    new_number = {old: new for new, old in enumerate(kept)}

    def moved(argument: Argument) -> Argument:
        if not isinstance(argument, Ref):
            return argument
        if argument.op in new_number:
            return Ref(new_number[argument.op], argument.delta)
        return (results[argument.op] + argument.delta) & _MASK

    return tuple(
        Op(sequence[k].name, tuple(moved(argument) for argument in sequence[k].args)) for k in kept
    )


def _fewer(numbers: list[int], fails: Callable[[list[int]], bool]) -> list[int]:
    """Remove ever smaller pieces while what is left fails (ddmin's complements)."""
    pieces = 2
    while len(numbers) > 1:
        size = max(1, len(numbers) // pieces)
        for begin in range(0, len(numbers), size):
            rest = numbers[:begin] + numbers[begin + size :]
            if rest and fails(rest):
                numbers, pieces = rest, max(pieces - 1, 2)
                break
        else:
            if size == 1:
                break
            pieces = min(pieces * 2, len(numbers))
    return numbers


def _simpler(sequence: tuple[Op, ...], fails: Fails) -> tuple[Op, ...]:
    """Try smaller lengths, fewer flags and plainer numbers, one argument at a time."""
    for index, op in enumerate(sequence):
        for k, value in enumerate(op.args):
            if isinstance(value, Ref) or op.name in ("load", "store"):
                continue  # where in a page an access lies is no matter of taste
            is_file = TAKES_FILE.get(op.name) == k  # others may be on mounts that nobody has lent
            for candidate in (c for c in _plainer(value) if not is_file or c < len(FILES)):
                changed = list(sequence[index].args)
                changed[k] = candidate
                trial = (*sequence[:index], Op(op.name, tuple(changed)), *sequence[index + 1 :])
                if fails(trial):
                    sequence = trial
                    break
    return sequence


def _without_idle(sequence: tuple[Op, ...], fails: Fails) -> tuple[Op, ...]:
    """Leave out what simpler arguments have made idle and nobody refers to."""
    for index in reversed(range(len(sequence))):
        named = {a.op for op in sequence for a in op.args if isinstance(a, Ref)}
        if index not in named and len(sequence) > 1:
            trial = keep(sequence, (), [k for k in range(len(sequence)) if k != index])
            sequence = trial if fails(trial) else sequence
    return sequence


def _plainer(value: int) -> list[int]:
    """List simpler numbers than this one, the simplest first."""
    candidates = [0, 1, ring.PAGE, 2 * ring.PAGE]
    if 0 < value < 1 << 20:
        candidates += [value & ~(1 << bit) for bit in range(20) if value >> bit & 1]
    return [candidate for candidate in candidates if abs(candidate) < abs(value)]
