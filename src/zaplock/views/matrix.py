"""The matrix of all scenarios under all designs, and the table of mutants, as text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce
from itertools import groupby
from operator import add

from zaplock.check.bugs import PROMISES
from zaplock.check.matrix import Cell, Killed, unexpected
from zaplock.views.grid import Grid, figure, words

SHORT = {"proved": "", "broken": "BROKEN", "not-exhausted": "not exh.", "vacuous": "vacuous",
         "failed": "FAILED"}  # fmt: skip


def table(cells: Sequence[Cell], designs: Sequence[str]) -> Grid:
    """Draw one row per scenario, one column per design: states where proved, else the verdict."""
    rows = [
        (scenario, *(_mark(row[name]) for name in designs), _rules(row.values()))
        for scenario, row in _by_scenario(cells).items()
    ]
    return Grid((words("scenario"), *map(figure, designs), words("broken rules", rank=1)), rows)


def _by_scenario(cells: Sequence[Cell]) -> dict[str, dict[str, Cell]]:
    by_row: dict[str, dict[str, Cell]] = {}
    for cell in cells:
        by_row.setdefault(cell.scenario, {})[cell.design] = cell
    return by_row


MOST_COLUMNS = 16
"""Of designs that `table` can show side by side."""


def history(cells: Sequence[Cell], designs: Sequence[str]) -> Grid:
    """Draw one row per scenario that breaks somewhere: in which runs of designs, and how."""
    rows, proved = [], 0
    for scenario, row in _by_scenario(cells).items():
        own = [row[name] for name in designs]
        if all(cell.verdict == "proved" and cell.agrees for cell in own):
            proved += 1
            continue
        rows.append((scenario, _spans(own), _rules(own)))
    rows.append(("others", f"proved under every one: {proved} scenarios", ""))
    title = f"{len(designs)} designs, {designs[0]} to {designs[-1]}"
    return Grid((words("scenario"), words("verdicts"), words("broken rules", rank=1)), rows, title)


def _spans(cells: Sequence[Cell]) -> str:
    """Write "broken under linux-4.20 to linux-5.4.9, linux-5.5", each verdict but "proved" once."""
    spans: dict[str, list[str]] = {}
    for word, run in groupby(cells, _word):
        names = [cell.design for cell in run]
        span = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
        spans.setdefault(word, []).append(span)
    spans.pop("proved", None)
    return "; ".join(f"{word} under {', '.join(names)}" for word, names in spans.items())


def _word(cell: Cell) -> str:
    return cell.verdict if cell.agrees else f"{cell.verdict} ?"


def _mark(cell: Cell) -> str:
    word = SHORT[cell.verdict]
    strange = "" if cell.agrees else " ?"
    return f"{word or f'{cell.states:,}'}{strange}"


def _rules(cells: Iterable[Cell]) -> str:
    names: dict[str, None] = {}
    for cell in cells:
        names.update(dict.fromkeys(cell.invariants))
    shown = list(names)
    return ", ".join(shown[:2]) + (f" and {len(shown) - 2} more" if len(shown) > 2 else "")


def summary(cells: Sequence[Cell]) -> list[str]:
    """Sum up: how many were proved, which known bugs showed, what history does not know."""
    proved = [cell for cell in cells if cell.verdict == "proved"]
    broken = [cell for cell in cells if cell.verdict == "broken" and cell.known]
    states = sum(cell.states for cell in cells if not cell.shared)
    bugs = sorted({cell.known for cell in broken if cell.known})
    lines = [
        f"{len(proved)} of {len(cells)} proved, {states} states in all",
        f"{len(broken)} broken by bugs that these kernels had: {', '.join(bugs) or 'none'}",
    ]
    for promise in PROMISES:
        about = [cell for cell in cells if cell.scenario in promise.scenarios]
        designs = dict.fromkeys(cell.design for cell in about)
        broken_by = {cell.design for cell in about if cell.verdict == "broken"}
        kept = [name for name in designs if name not in broken_by]
        if about:
            who = f"kept by {', '.join(kept)} alone" if kept else "kept by none"
            lines.append(f"the promise that {promise.says}: {who}")
    anew = [cell for cell in cells if not cell.shared]
    audit = reduce(add, (cell.audit for cell in anew))
    share = 100 * audit.seconds / max(1e-9, sum(cell.seconds for cell in anew))
    lines.append(
        f"audited: {audit.positions} positions and {audit.steps} steps again, {share:.0f} % of the "
        "time"
    )
    strange = unexpected(cells)
    lines += _strange(strange)
    lines.append("history agrees everywhere" if not strange else f"{len(strange)} need a look (?)")
    return lines


def _strange(cells: Sequence[Cell]) -> list[str]:
    """Tell of each cell in a line; of a mutant's scenarios that it does nothing in, in one."""
    lines: list[str] = []
    idle: dict[tuple[str, str], list[str]] = {}
    for cell in cells:
        what = ", ".join(cell.invariants) or cell.why
        if cell.verdict == "vacuous":
            idle.setdefault((cell.design, what), []).append(cell.scenario)
        else:
            lines.append(f"? {cell.scenario} under {cell.design}: {cell.verdict} {what}")
    for (design, what), names in idle.items():
        others = f" and {len(names) - 3} more" if len(names) > 3 else ""
        lines.append(f"? {', '.join(names[:3])}{others} under {design}: vacuous {what}")
    return lines


def mutation_table(found: Sequence[Killed]) -> Grid:
    """List the mutants, designs with the same outcome in one row."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for one in found:
        outcome = f"equivalent: {one.equivalent}" if one.equivalent else one.invariant
        if not one.is_right:
            missed = (
                "NOT FOUND" if one.acted else "NEVER TRIED: no scenario comes to what it changes"
            )
            outcome = missed if not one.scenario else f"breaks: {one.invariant}"
        key = (one.mutation, one.summary, one.scenario, outcome)
        rows.setdefault(key, []).append(one.design)
    columns = (words("mutation"), words("what it does wrong", rank=2), words("designs", rank=1))
    cells = [
        (name, what, ", ".join(designs), scenario, outcome)
        for (name, what, scenario, outcome), designs in rows.items()
    ]
    return Grid((*columns, words("broken in"), words("rule")), cells)


def mutation_summary(found: Sequence[Killed]) -> str:
    """Say how many mutants were broken."""
    equivalent = [one for one in found if one.equivalent]
    killed = [one for one in found if one.scenario and not one.equivalent]
    total = len(found) - len(equivalent)
    return (
        f"{len(killed)} of {total} mutants broken ({100 * len(killed) / max(1, total):.0f} %), "
        f"{len(equivalent)} more are equivalent"
    )
