"""`zaplock oracle --threads`: programs of threads and the exhaustive engine, and its self-test."""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zaplock.cli._ending import next_step, wrote
from zaplock.cli._json_text import print_json
from zaplock.cli._output_files import save
from zaplock.cli._streams import while_read
from zaplock.untrusted_names import shell_word

if TYPE_CHECKING:
    from zaplock.oracle.thread_campaign import ThreadReport
    from zaplock.oracle.threaded import ThreadedProgram

MOST_TOLD = 10


def run_threads(args: argparse.Namespace) -> int:
    """Run programs of threads for --seconds; 0 if the model allows every outcome, 1 if not."""
    from zaplock.cli._progress import counter
    from zaplock.designs.linux import design_of
    from zaplock.oracle import thread_campaign

    bench = thread_campaign.ThreadBench(design_of(platform.release()).design)
    report = thread_campaign.ThreadReport()
    try:
        with counter("oracle --threads") as show:
            for report in thread_campaign.run(bench, seconds=args.seconds, seed=args.seed):
                show(f"{report.programs:,} programs, {len(report.divergences)} divergences")
    finally:
        bench.close()
    with while_read():
        if args.json:
            print_json(_document(report, args.seed))
        else:
            _print(report)
    saved = save(Path(args.save), _to_save(report)) if args.save else []
    with while_read():
        for path in saved:
            wrote(path, aside=args.json)
        _say_next(args, saved, bool(report.divergences or report.lost))
    return 0 if report.agrees else 1


def _say_next(args: argparse.Namespace, saved: list[Path], found: bool) -> None:
    if saved:
        what = f"--replay {shell_word(str(saved[0]))}"
    elif found:
        what = f"--seed {args.seed} --seconds {args.seconds:g} --save out/oracle"
    else:
        what = f"--seed {args.seed + 1} --seconds 600"
    next_step(f"zaplock oracle --threads {what}", aside=args.json)


def _to_save(report: ThreadReport) -> Iterator[tuple[str, str]]:
    """Yield what is worth another run: the name of its file, and its text."""
    from zaplock.oracle import thread_files

    for number, found in enumerate(report.divergences):
        why = "; ".join((found.told, *found.differences))
        yield f"threads-{number}.json", thread_files.dump(found.threaded, why)
    for kind, told in (
        ("lost", report.lost), ("set-aside", report.set_aside), ("not-known", report.unknown),
    ):  # fmt: skip
        for number, one in enumerate(told):
            yield f"threads-{kind}-{number}.json", thread_files.dump(one.threaded, one.why)


def print_program(threaded: ThreadedProgram) -> None:
    """Print a program whole, an operation a line."""
    parts = {"set-up": threaded.setup}
    parts |= {f"thread {number}": part for number, part in enumerate(threaded.threads)}
    for name, operations in parts.items():
        print(f"  {name}: ", end="")
        print(*operations, sep="\n    ")


def _print(report: ThreadReport) -> None:
    from zaplock.oracle.thread_campaign import AGAIN

    for found in report.divergences[:MOST_TOLD]:
        again = f", again in {found.repeated} of {AGAIN} more runs" if found.outcome else ""
        print(f"DIVERGENCE{again}")
        print_program(found.threaded)
        print(f"  {found.told}")
        for line in found.differences:
            print(f"    {line}")
    if (more := len(report.divergences) - MOST_TOLD) > 0:
        print(f"and {more:,} divergences more")
    for title, told in (("lost", report.lost), ("set aside", report.set_aside),
                        ("not known", report.unknown)):  # fmt: skip
        print(*(f"{title}: {one}" for one in told[:MOST_TOLD]), sep="\n", end="\n" if told else "")
    allowed = report.outcomes["in order"] + report.outcomes["interleaved"]
    print(
        f"{report.programs:,} programs of threads, {report.runs:,} runs: "
        f"{sum(report.outcomes.values()):,} outcomes, {allowed:,} allowed "
        f"({report.outcomes['interleaved']:,} by no order of whole calls), "
        f"{len(report.divergences):,} divergences, {len(report.set_aside):,} set aside, "
        f"{len(report.unknown):,} not known, {len(report.lost):,} lost"
        f"{_dropped(report)}{_searched(report)}"
    )


def _dropped(report: ThreadReport) -> str:
    if not report.dropped:
        return ""
    return f"; {report.dropped:,} runs left out: a page of the process's own machinery was away"


def _searched(report: ThreadReport) -> str:
    if not report.explored:
        return ""
    return (
        f"; {report.explored:,} programs searched to the end: {report.seen:,} of the "
        f"{report.reached:,} outcomes that they have were seen"
    )


def _document(report: ThreadReport, seed: int) -> dict[str, Any]:
    return {
        "seed": seed, "programs": report.programs, "runs": report.runs,
        "operations": report.operations, "outcomes": dict(report.outcomes),
        "explored": report.explored, "outcomes_of_explored": report.reached,
        "seen_of_explored": report.seen,
        "divergences": [
            {"program": str(found.threaded), "told": found.told, "repeated": found.repeated,
             "differences": list(found.differences)}
            for found in report.divergences
        ],
        "set_aside": list(map(str, report.set_aside)), "dropped": report.dropped,
        "not_known": list(map(str, report.unknown)), "lost": list(map(str, report.lost)),
    }  # fmt: skip


def hunt_mutants(args: argparse.Namespace) -> int:
    """Judge by each mutant of the design, for --seconds each; 0 if every one is found."""
    from zaplock.check.mutations import as_mutated, mutate, mutations_of
    from zaplock.designs.linux import design_of
    from zaplock.oracle.thread_campaign import hunt

    design, rows = design_of(platform.release()).design, []
    for name, mutation in mutations_of(design).items():
        if mutation.equivalent:
            continue
        mutant = mutate(design, mutation)
        found = hunt(mutant, partial(as_mutated, mutant), args.seed, args.seconds)
        text = f"{name:<34} {found.programs:>6,} programs {found.seconds:6.1f} s  "
        told = found.told or "NOT FOUND"
        print(text + told[:100], file=sys.stderr if args.json else sys.stdout, flush=True)
        rows.append((name, found))
    missed = [name for name, found in rows if not found.told]
    if args.json:
        document = [
            {"mutation": name, "programs": found.programs, "seconds": round(found.seconds, 2),
             "found_as": found.told or None}
            for name, found in rows
        ]  # fmt: skip
        print_json(document)
    else:
        print(
            f"{len(rows) - len(missed)} of {len(rows)} mutants found", *missed, sep="\n  missed: "
        )
        next_step("zaplock check --mutations")
    return 1 if missed else 0
