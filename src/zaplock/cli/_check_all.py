"""Check all scenarios under all designs, or all mutants of the designs."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from zaplock.cli._ending import next_step
from zaplock.cli._json_text import print_json
from zaplock.cli._streams import while_read
from zaplock.untrusted_names import shell_word

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from zaplock.check.matrix import Cell, Killed
    from zaplock.check.verdicts import Added


def every_scenario(args: argparse.Namespace, added: Added) -> int:
    """Check every scenario under every design, and compare the verdicts with history."""
    from zaplock.check.matrix import matrix, unexpected
    from zaplock.check.verdicts import EXIT_CODES, find_design
    from zaplock.cli._progress import counter
    from zaplock.designs import SHIPPED
    from zaplock.designs.linux import releases_that_differ
    from zaplock.engines.checking.exhaustive import SearchLimits

    releases = [design.name for design in releases_that_differ()] if args.releases else []
    designs = args.design or releases or list(SHIPPED)
    for name in designs:
        find_design(name)
    limits = SearchLimits(args.max_states, args.max_seconds, args.max_memory << 20)
    with counter("check --all") as show, _executor(args) as executor:
        cells = matrix(
            executor, designs=designs, queue=args.queue, limits=limits, added=added,
            progress=lambda done, total: show(f"{done} of {total} scenarios", done / total),
        )  # fmt: skip
    strange = unexpected(cells)
    one = (strange or cells)[0]
    design = ["--design", one.design] if args.design else []
    with while_read():
        if args.json:
            print_json([_cell_json(cell) for cell in cells])
        else:
            _print_matrix(cells, designs)
        again = " ".join(map(shell_word, ["zaplock", "check", one.scenario, *design]))
        next_step(again, aside=args.json)
    verdicts = {cell.verdict for cell in strange}
    if "broken" in verdicts:
        return 1
    return max(3, *(EXIT_CODES[one] for one in verdicts)) if strange else 0


@contextmanager
def _executor(args: argparse.Namespace) -> Iterator[Executor | None]:
    """Lend so many processes, or the cluster's; none for one job."""
    if args.cluster:
        from zaplock.executors import cluster_at

        with cluster_at(args.cluster, args.jobs) as cluster:
            yield cluster.futures()
    elif args.jobs == 1:
        yield None
    else:
        from zaplock.workers import pool

        with pool(args.jobs, "fork") as processes:
            yield processes


def _cell_json(cell: Cell) -> dict[str, Any]:
    return {
        "scenario": cell.scenario, "design": cell.design, "verdict": cell.verdict,
        "invariants": list(cell.invariants), "states": cell.states,
        "seconds": round(cell.seconds, 6), "why": cell.why, "known_bug": cell.known or None,
        "agrees_with_history": cell.agrees, "shared": cell.shared,
    }  # fmt: skip


def _print_matrix(cells: list[Cell], designs: list[str]) -> None:
    from zaplock.views.console import Screen
    from zaplock.views.matrix import MOST_COLUMNS, history, summary, table

    drawn = table if len(designs) <= MOST_COLUMNS else history
    console = Screen()
    print(*summary(cells), "", sep="\n")
    console.print(drawn(cells, designs))


def every_mutant(args: argparse.Namespace) -> int:
    """Check whether every mutant of every design is noticed."""
    from zaplock.check.matrix import mutation_score
    from zaplock.cli._progress import counter

    with counter("check --mutations") as show, _executor(args) as executor:
        found = mutation_score(
            executor,
            args.design,
            lambda done, total: show(f"{done} of {total} mutants", done / total),
        )
    with while_read():
        if args.json:
            print_json([_killed_json(one) for one in found])
        else:
            from zaplock.views.console import Screen
            from zaplock.views.matrix import mutation_summary, mutation_table

            print(f"{mutation_summary(found)}\n")
            Screen().print(mutation_table(found))
        next_step(
            "zaplock check munmap-fault-gup --design linux-6.18/no-detached-recheck",
            aside=args.json,
        )
    return 0 if all(one.is_right for one in found) else 1


def _killed_json(one: Killed) -> dict[str, Any]:
    return {
        "design": one.design, "mutation": one.mutation, "summary": one.summary,
        "scenario": one.scenario or None, "invariant": one.invariant or None,
        "equivalent": one.equivalent or None, "acted": one.acted,
    }  # fmt: skip
