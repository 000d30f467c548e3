"""What `zaplock oracle` prints: a campaign's report, as text and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from zaplock.cli._ending import next_step
from zaplock.cli._json_text import print_json
from zaplock.cli._streams import while_read
from zaplock.errors import UserError
from zaplock.programs.recording import HOW

if TYPE_CHECKING:
    from zaplock.oracle.compare import Divergence
    from zaplock.oracle.report import Report
    from zaplock.programs.replay import StraceVerdict


def print_verdict(verdict: StraceVerdict, path: Path, as_json: bool) -> int:
    """Print what a recorded program showed; 0 if all that was compared agrees, 1 if not.

    Raises UserError where nothing could be compared.
    """
    if as_json:
        document = {
            "calls": verdict.calls, "agreeing": verdict.agreeing, "differing": verdict.differing,
            "refused": len(verdict.refused), "reasons": dict(verdict.reasons),
            "maps": verdict.maps, "differing_maps": verdict.differing_maps,
            "unknown_borders": verdict.unknown_borders,
            "maps_not_compared": verdict.maps_not_compared,
        }  # fmt: skip
        print_json(document)
    left = [*verdict.reasons, *verdict.maps_not_compared]
    if not verdict.calls + verdict.maps:
        told = left[0] if left else "it has no call that is about memory"
        raise UserError(f"{path}: nothing could be compared: {told}; {HOW}")
    if as_json:
        return 0 if verdict.agrees else 1
    with while_read():
        for line in [*verdict.differing, *verdict.differing_maps]:
            print(line)
        for why, count in verdict.reasons.most_common():
            print(f"refused {count:,}: {why}")
        for why in verdict.maps_not_compared:
            print(f"maps not compared: {why}")
        print(
            f"{verdict.agreeing:,} of {verdict.calls:,} compared return values agree, "
            f"{len(verdict.differing_maps)} differences in {verdict.maps:,} mappings, "
            f"{len(verdict.refused):,} calls refused" + borders_text(verdict.unknown_borders)
        )
        next_step("zaplock oracle --seconds 60")
    return 0 if verdict.agrees else 1


def print_table(verdicts: Iterable[tuple[Path, StraceVerdict]], as_json: bool) -> int:
    """Print a row for each recorded program; 0 if all that was compared agrees, else 1."""
    head = ("recording", "calls compared", "calls differ", "calls refused", "mappings compared",
            "mappings differ")  # fmt: skip
    rows: list[tuple[str, Sequence[int]]] = []
    agrees = True
    for path, verdict in verdicts:
        counts = (verdict.calls, len(verdict.differing), len(verdict.refused), verdict.maps,
                  len(verdict.differing_maps))  # fmt: skip
        rows.append((path.stem, counts))
        agrees = agrees and verdict.agrees
    if as_json:
        keys = ("compared", "differing", "refused", "maps", "differing_maps")
        document = {name: dict(zip(keys, counts, strict=True)) for name, counts in rows}
        print_json(document)
        return 0 if agrees else 1
    from zaplock.views.console import Screen
    from zaplock.views.grid import Grid, figure, words

    sums = [sum(counts) for counts in zip(*(counts for _, counts in rows), strict=True)]
    cells = [(name, *(f"{n:,}" for n in counts)) for name, counts in (*rows, ("all", sums))]
    with while_read():
        Screen().print(Grid((words(head[0]), *map(figure, head[1:])), cells))
    return 0 if agrees else 1


def borders_text(count: int) -> str:
    """Tell of borders that the recording can't settle."""
    if not count:
        return ""
    return f"; {count} borders of mappings depend on which pages were written, which isn't recorded"


def progress(report: Report) -> str:
    """Say how far a campaign has come."""
    rate = report.operations / report.seconds if report.seconds else 0.0
    return (
        f"{report.operations:,} operations, {rate:,.0f}/s a job, {len(report.coverage):,} kinds, "
        f"{(report.signatures + report.once_signatures).total()} divergences"
    )


def print_report(report: Report, with_coverage: bool) -> None:
    """Print what a campaign found; `with_coverage`: each operation's outcomes and their counts."""
    print(_summary(report))
    if report.unsettled:
        print(_unsettled(report))
    for found in report.divergences:
        _print_divergence("DIVERGENCE", found, report.signatures[found.signature])
    for found in report.once:
        count = report.once_signatures[found.signature]
        _print_divergence("DIVERGENCE, NOT AGAIN", found, count)
    for found in report.kernel_faults:
        count = report.kernel_signatures[found.signature]
        _print_divergence("THE KERNEL'S OWN ACCOUNTING", found, count)
    for line in report.lost[:3]:
        print(f"LOST {line}")
    for line in report.late[:3]:
        print(f"LATE ONCE {line}")
    if with_coverage:
        _print_coverage(report)


def _summary(report: Report) -> str:
    rate = report.operations / report.seconds if report.seconds else 0.0
    return (
        f"{report.operations:,} operations in {report.sequences:,} sequences, each compared in "
        f"full: {rate:,.0f} a second and job; {len(report.coverage):,} kinds of (operation, "
        f"outcome, state); {sum(report.signatures.values())} divergences of "
        f"{len(report.signatures)} kinds, "
        f"{report.once_signatures.total()} more that did not come again, "
        f"{len(report.lost)} lost sequences, "
        f"{sum(report.kernel_signatures.values())} faults of the kernel's own accounting"
    )


def _unsettled(report: Report) -> str:
    """Say what was changed under the run, and what is not counted for that."""
    return (
        f"NOT COUNTED: {sum(report.unsettled.values()):,} operations, "
        f"{report.set_aside:,} sequences that differed: "
        f"{'; '.join(report.unsettled)} meanwhile: run it again with nobody beside"
    )


def _print_divergence(title: str, found: Divergence, count: int) -> None:
    print(f"\n{title} ({count} times) {found.signature}")
    for number, op in enumerate(found.sequence[: found.at + 1]):
        print(f"  op{number} {op}")
    for line in found.differences:
        print(f"    {line}")


def _print_coverage(report: Report) -> None:
    from zaplock.oracle import manual
    from zaplock.oracle.coverage import Coverage

    coverage = Coverage()
    coverage.merge(report.coverage)
    from zaplock.views.console import Screen
    from zaplock.views.grid import Grid, words

    rows = [
        (name, ", ".join(f"{outcome} {count:,}" for outcome, count in sorted(outcomes.items())))
        for name, outcomes in sorted(coverage.outcomes().items())
    ]
    print()
    Screen().print(Grid((words("operation"), words("outcomes")), rows))
    rare = manual.missing({name: dict(counts) for name, counts in coverage.outcomes().items()})
    if rare:
        print(f"fewer than {manual.LEAST} times: {', '.join(rare)}")


def print_report_json(report: Report, seed: int) -> None:
    """Print a campaign's report as one JSON object."""
    outcomes: dict[str, Counter[str]] = {}
    for (name, outcome, _), count in report.coverage.items():
        outcomes.setdefault(name, Counter())[outcome] += count
    document = {
        "seed": seed,
        "operations": report.operations,
        "sequences": report.sequences,
        "seconds": round(report.seconds, 3),
        "divergences": [_as_json(d, report.signatures[d.signature]) for d in report.divergences],
        "kernel_faults": [
            _as_json(d, report.kernel_signatures[d.signature]) for d in report.kernel_faults
        ],
        "unrepeatable": [_as_json(d, report.once_signatures[d.signature]) for d in report.once],
        "lost": report.lost,
        "late": report.late,
        "unsettled": dict(report.unsettled),
        "set_aside": report.set_aside,
        "outcomes": outcomes,
        "kinds": len(report.coverage),
    }
    print_json(document)


def _as_json(found: Divergence, count: int) -> dict[str, object]:
    return {
        "signature": found.signature,
        "count": count,
        "operations": [str(op) for op in found.sequence[: found.at + 1]],
        "differences": list(found.differences),
    }
