"""Let the real kernel judge the model: random sequences of memory-management calls run on both
sides, and after every operation result, maps, residency, contents and counters are compared.

Every divergence is shrunk to a few operations; --save keeps it as JSON and as a script that runs on
its own. With --against-itself a second process of the real kernel is the other side: what differs
then is what the kernel itself does not repeat. --replay FILE runs one saved sequence, step by step;
--strace FILE runs a recorded program (tests/fixtures/strace/record.py) through the model.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zaplock.errors import UserError

if TYPE_CHECKING:
    from zaplock.kernel.oracle.campaign import Report, SideMaker
    from zaplock.kernel.oracle.compare import Divergence

SUMMARY = "let the real kernel judge the model, operation by operation"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("--seconds", type=float, default=20.0, help="how long to run (20)")
    parser.add_argument("--seed", type=int, default=1, help="equal seeds give equal runs (1)")
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side (1)")
    parser.add_argument("--theme", action="append", help="only sequences of this theme; repeatable")
    parser.add_argument("--against-itself", action="store_true", help="kernel against kernel")
    parser.add_argument("--save", metavar="DIR", help="keep every divergence as JSON and script")
    parser.add_argument("--replay", metavar="FILE", help="run one saved sequence, step by step")
    parser.add_argument("--strace", metavar="FILE", help="replay a recorded program")
    parser.add_argument("--coverage", action="store_true", help="print every outcome's count")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def run(args: argparse.Namespace) -> int:
    """Run the oracle; exit code 0 if both sides agreed throughout, 1 if not."""
    if args.strace:
        return _strace(args)
    if args.replay:
        return _replay(args)
    if not 0 < args.seconds <= 86_400:
        raise UserError(f"--seconds {args.seconds} is not between 0 and 86400: give such a number")
    if not 1 <= args.jobs <= 256:
        raise UserError(f"--jobs {args.jobs} is not between 1 and 256: give such a number")
    report = _campaign(args)
    if args.json:
        _print_json(report, args)
    else:
        _print(report, args)
    _say_next(report, args)
    return 0 if report.agrees else 1


def _other_side(args: argparse.Namespace) -> SideMaker:
    from zaplock.kernel.oracle import campaign

    if args.against_itself:
        return campaign.against_itself
    from zaplock.kernel.oracle.modelside import model_side

    return model_side


def _scope(args: argparse.Namespace) -> Any:
    from dataclasses import replace

    from zaplock.kernel.oracle.generate import EVERYTHING, THEMES

    scope = EVERYTHING
    if not args.against_itself:
        from zaplock.kernel.oracle.modelside import COVERED

        scope = COVERED
    for theme in args.theme or ():
        if theme not in THEMES:
            raise UserError(f"no theme {theme!r}; the themes are {', '.join(THEMES)}")
    return replace(scope, themes=tuple(args.theme)) if args.theme else scope


def _campaign(args: argparse.Namespace) -> Report:
    from rich.console import Console
    from rich.progress import Progress, TextColumn, TimeElapsedColumn

    from zaplock.kernel.oracle import campaign
    from zaplock.kernel.oracle.child import check_machine, check_overcommit

    check_machine()
    check_overcommit()
    other, scope = _other_side(args), _scope(args)
    report = campaign.Report()
    columns = (TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("starting")
        for report in campaign.run(
            other, seconds=args.seconds, seed=args.seed, jobs=args.jobs, scope=scope
        ):
            progress.update(task, description=_progress(report))
    if args.save:
        _save(report, Path(args.save))
    return report


def _progress(report: Report) -> str:
    rate = report.operations / report.seconds if report.seconds else 0.0
    return (
        f"{report.operations:,} operations, {rate:,.0f}/s a job, {len(report.coverage):,} kinds, "
        f"{sum(report.signatures.values())} divergences"
    )


def _save(report: Report, directory: Path) -> None:
    from zaplock.kernel.oracle import record, script

    try:
        directory.mkdir(parents=True, exist_ok=True)
        for number, found in enumerate([*report.divergences, *report.kernel_faults]):
            name = f"{found.signature.split(':')[0]}-{number}"
            sequence = found.sequence[: found.at + 1]
            text = record.dump(sequence, "; ".join(found.differences))
            (directory / f"{name}.json").write_text(text)
            (directory / f"{name}.py").write_text(script.write(found))
    except OSError as error:
        raise UserError(
            f"can't write into {directory}: {error.strerror}; give --save a directory of yours"
        ) from None


def _print(report: Report, args: argparse.Namespace) -> None:
    from rich.console import Console

    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(_summary(report))
    for found in report.divergences:
        _print_divergence(console, "DIVERGENCE", found, report.signatures[found.signature])
    for found in report.kernel_faults:
        count = report.kernel_signatures[found.signature]
        _print_divergence(console, "THE KERNEL'S OWN ACCOUNTING", found, count)
    for line in report.lost[:3]:
        console.print(f"LOST {line}")
    if args.coverage:
        _print_coverage(console, report)


def _summary(report: Report) -> str:
    rate = report.operations / report.seconds if report.seconds else 0.0
    return (
        f"{report.operations:,} operations in {report.sequences:,} sequences, each compared in "
        f"full: {rate:,.0f} a second and job; {len(report.coverage):,} kinds of (operation, "
        f"outcome, state); {sum(report.signatures.values())} divergences of "
        f"{len(report.signatures)} kinds, "
        f"{len(report.unrepeatable)} that did not repeat, {len(report.lost)} lost sequences, "
        f"{sum(report.kernel_signatures.values())} faults of the kernel's own accounting"
    )


def _print_divergence(console: Any, title: str, found: Divergence, count: int) -> None:
    console.print(f"\n{title} ({count} times) {found.signature}")
    for number, op in enumerate(found.sequence[: found.at + 1]):
        console.print(f"  op{number} {op}")
    for line in found.differences:
        console.print(f"    {line}")


def _print_coverage(console: Any, report: Report) -> None:
    from zaplock.kernel.oracle.coverage import Coverage

    coverage = Coverage()
    coverage.merge(report.coverage)
    console.print()
    for name, outcomes in sorted(coverage.outcomes().items()):
        counts = ", ".join(f"{outcome} {count:,}" for outcome, count in sorted(outcomes.items()))
        console.print(f"{name:<18} {counts}")


def _print_json(report: Report, args: argparse.Namespace) -> None:
    import json

    outcomes: dict[str, Counter[str]] = {}
    for (name, outcome, _), count in report.coverage.items():
        outcomes.setdefault(name, Counter())[outcome] += count
    document = {
        "seed": args.seed,
        "operations": report.operations,
        "sequences": report.sequences,
        "seconds": round(report.seconds, 3),
        "divergences": [_as_json(d, report.signatures[d.signature]) for d in report.divergences],
        "kernel_faults": [
            _as_json(d, report.kernel_signatures[d.signature]) for d in report.kernel_faults
        ],
        "unrepeatable": report.unrepeatable,
        "lost": report.lost,
        "outcomes": outcomes,
        "kinds": len(report.coverage),
    }
    print(json.dumps(document, indent=1))


def _as_json(found: Divergence, count: int) -> dict[str, object]:
    return {
        "signature": found.signature,
        "count": count,
        "operations": [str(op) for op in found.sequence[: found.at + 1]],
        "differences": list(found.differences),
    }


def _say_next(report: Report, args: argparse.Namespace) -> None:
    stream = sys.stderr if args.json else sys.stdout
    if (report.divergences or report.kernel_faults) and not args.save:
        print(f"next: zaplock oracle --seed {args.seed} --save out/oracle", file=stream)
    elif args.save and (report.divergences or report.kernel_faults):
        print(f"next: zaplock oracle --replay {args.save}/NAME.json", file=stream)
    else:
        print(f"next: zaplock oracle --seed {args.seed + 1} --seconds 60 --coverage", file=stream)


def _replay(args: argparse.Namespace) -> int:
    from zaplock.kernel.oracle import campaign, compare, record, script

    sequence, why = record.load(Path(args.replay))
    bench = campaign.Bench(_other_side(args))
    try:
        real = bench.real.run(sequence)
        found = compare.first_divergence(sequence, real, bench.model.run(sequence))
    finally:
        bench.close()
    if why:
        print(f"kept because: {why}")
    for number, (op, step) in enumerate(zip(sequence, real, strict=True)):
        print(f"op{number} {op} = {compare.result_text(step.outcome.result)}")
    if found is None:
        print("both sides agree after every operation")
        print("next: zaplock oracle --seconds 60")
        return 0
    print(f"they part after op{found.at}:", *found.differences, sep="\n  ")
    path = Path(args.replay).with_suffix(".py")
    path.write_text(script.write(found))
    print(f"next: python3 {path}")
    return 1


def _strace(args: argparse.Namespace) -> int:
    from zaplock.kernel.oracle import replay

    return replay.run(Path(args.strace), as_json=args.json)
