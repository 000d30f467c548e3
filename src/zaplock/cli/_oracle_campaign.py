"""Campaigns of `zaplock oracle`: here, on a cluster, or in a guest; what they found is saved."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from zaplock.cli._ending import next_step
from zaplock.cli._oracle_sides import (
    CHANGES_MACHINE,
    checks_of_themes,
    lent,
    other_side,
    scope_of,
    sides_text,
)
from zaplock.cli._oracle_text import progress as progress_text
from zaplock.cli._output_files import save
from zaplock.untrusted_names import shell_word

if TYPE_CHECKING:
    from zaplock.oracle.compare import Divergence
    from zaplock.oracle.report import Report


def run_campaign(args: argparse.Namespace) -> Report:
    """Run sequences for --seconds where it is asked for; UserError where that can't be."""
    from zaplock.oracle.bare_process import check_machine, check_overcommit

    if args.kernel:
        return _guest_campaign(args)
    if args.cluster:
        return _cluster_campaign(args)
    check_machine()
    check_overcommit()
    with lent(args.theme or ()):
        return _campaign_here(args)


def _campaign_here(args: argparse.Namespace) -> Report:
    from zaplock.oracle import campaign

    other, scope = other_side(args), scope_of(args)
    reports = campaign.run(other, seconds=args.seconds, seed=args.seed, jobs=args.jobs, scope=scope)
    return _watched(reports)


def _cluster_campaign(args: argparse.Namespace) -> Report:
    """Run a campaign on the workers of a cluster."""
    from zaplock.executors import cluster_at
    from zaplock.oracle.campaign import run_on

    other, scope = other_side(args), scope_of(args)
    with cluster_at(args.cluster, args.jobs) as cluster:
        for check in checks_of_themes(args.theme or ()):
            cluster.each(check)
        return _watched(run_on(cluster, other, seconds=args.seconds, seed=args.seed, scope=scope))


def _guest_campaign(args: argparse.Namespace) -> Report:
    """Run a campaign on a guest's kernel."""
    from zaplock.oracle.guest_side import booted, guest_scope, run_in

    scope_of(args)  # are these themes?
    with booted(args.kernel, args.theme or ()) as side:
        print(f"{args.kernel} is {side.release}", file=sys.stderr)
        scope = guest_scope(side.release, args.theme or ())
        return _watched(run_in(side, seconds=args.seconds, seed=args.seed, scope=scope))


def _watched(reports: Iterator[Report]) -> Report:
    """Show the reports as they come; return the last."""
    from zaplock.cli._progress import counter
    from zaplock.oracle.report import Report

    report = Report()
    with counter("oracle") as show:
        for report in reports:
            show(progress_text(report))
    return report


def save_report(report: Report, args: argparse.Namespace) -> list[Path]:
    """Write every divergence as JSON and as a script, with the themes that its replay needs.

    Return the files. Raises UserError where the directory of --save can't be written into.
    """
    return save(Path(args.save), _to_save(report, args.theme or ()))


def _to_save(report: Report, themes: Collection[str]) -> Iterator[tuple[str, str]]:
    from zaplock.oracle import corpus, script

    needed = {theme for theme in themes if theme in CHANGES_MACHINE}
    for number, found in enumerate([*report.divergences, *report.once, *report.kernel_faults]):
        name = _saved_as(found, number)
        sequence = found.sequence[: found.at + 1]
        yield f"{name}.json", corpus.dump(sequence, "; ".join(found.differences), needed)
        yield f"{name}.py", script.write(found)


def _saved_as(found: Divergence, number: int) -> str:
    """Name the files of a divergence, the `number`-th of its report."""
    return f"{found.signature.split(':')[0]}-{number}"


def say_next(report: Report, args: argparse.Namespace) -> None:
    """Print what to type next, for what has been found and where it is."""
    found = [*report.divergences, *report.once, *report.kernel_faults]
    sides, themes = sides_text(args), "".join(f" --theme {theme}" for theme in args.theme or ())
    if found and not args.save:
        what = f"--seed {args.seed}{themes}{sides} --save out/oracle"
    elif found:
        first = Path(args.save) / f"{_saved_as(found[0], 0)}.json"
        what = f"--replay {shell_word(str(first))}{sides}"
    else:
        what = f"--seed {args.seed + 1} --seconds 60 --coverage{themes}{sides}"
    next_step(f"zaplock oracle {what}", aside=args.json)
