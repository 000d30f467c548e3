"""One table of how fast zaplock is, each figure beside a peer's of the same run.

    make bench                                    # measure, compare, keep, draw
    make bench ACCEPT="the lock has a queue now"  # keep a ratio that fell, with its reason
    make bench ROWS="lock check"                  # some rows only; nothing is kept

Exit status 1: a ratio is a tenth lower than the last kept one of this machine, twice in a row; or a
row has failed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec
from rich.console import Console
from rich.table import Table

from bench import page
from bench.figures import (
    FALL,
    ROOT,
    BenchRun,
    Figure,
    commit_of_tree,
    fallen,
    keep,
    last_kept,
    pace,
    read_runs,
    slower_pythons,
    this_machine,
)
from bench.interpreters import MINORS, environment
from bench.rows import NOT_HERE, ONLY_COMPUTE, ROWS

OWN = sys.version_info[1]


class CannotMeasure(Exception):
    """A row can't be measured here; says why."""


class RowFailed(Exception):
    """A row ended with an error: (row, the error's last line)."""


def measured(row: str, python: str) -> list[Figure]:
    """Measure a row in a process of its own, which ends with this one, and all that it started."""
    command = [python, "-m", "bench.rows", row]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, cwd=ROOT, stdout=pipe, stderr=pipe, start_new_session=True
    ) as process:
        try:
            printed, said = process.communicate()
        except BaseException:
            process.send_signal(signal.SIGINT)
            process.wait()
            raise
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
    if process.returncode:
        told = said.decode(errors="replace").strip().splitlines()
        why = told[-1] if told else f"exit status {process.returncode}"
        raise CannotMeasure(why) if process.returncode == NOT_HERE else RowFailed(row, why)
    return msgspec.json.decode(printed.splitlines()[-1], type=list[Figure])


def measure_all(
    rows: Sequence[str], pythons: dict[int, str]
) -> tuple[list[tuple[str, Figure]], dict[str, str]]:
    """Return the figures, each with the row that measures it, and what could not be measured."""
    figures: list[tuple[str, Figure]] = []
    left_out: dict[str, str] = {}
    for row in rows:
        for minor, python in pythons.items():
            if minor != OWN and row not in ONLY_COMPUTE:
                continue
            print(f"{row}, Python 3.{minor} ...", file=sys.stderr, flush=True)
            try:
                figures += [(row, one) for one in measured(row, python)]
            except CannotMeasure as reason:
                left_out[row if minor == OWN else f"{row}, 3.{minor}"] = str(reason)
    return figures, left_out


def measure_again(
    figures: list[tuple[str, Figure]],
    before: dict[tuple[str, str, str], Figure],
    pythons: dict[int, str],
) -> list[tuple[str, Figure]]:
    """Measure what fell once more: another program may have been in the way."""
    fell = {now.key for now, _ in fallen([one for _, one in figures], before)}
    again = {(row, one.python) for row, one in figures if one.key in fell}
    better = {one.key: one for _, one in figures}
    for row, version in sorted(again):
        print(f"{row}, Python {version}, once more ...", file=sys.stderr, flush=True)
        with contextlib.suppress(CannotMeasure):
            for one in measured(row, pythons[int(version.split(".")[1])]):
                better[one.key] = max(one, better[one.key], key=lambda one: one.ratio)
    return [(row, better[one.key]) for row, one in figures]


def show(figures: list[Figure], before: dict[tuple[str, str, str], Figure]) -> None:
    """Print the table."""
    versions = sorted({one.python for one in figures})
    own = f"3.{OWN}"
    table = Table(box=None, header_style="bold", pad_edge=False)
    columns = ("", "beside", "unit", f"zaplock {own}", "peer", f"ratio {own}", "last kept")
    for name in columns:
        table.add_column(name, justify="left" if name in ("", "beside", "unit") else "right")
    others = [version for version in versions if version != own]
    for version in others:
        table.add_column(f"ratio {version}", justify="right")
        table.add_column(f"{version} to {own}", justify="right")
    found = {one.key: one for one in figures}
    for one in figures:
        if one.python != own:
            continue
        then = before.get(one.key)
        cells = [one.row, one.peer, one.unit, amount(one.ours), amount(one.theirs),
                 f"{one.ratio:.2f}", f"{then.ratio:.2f}" if then else ""]  # fmt: skip
        for version in others:
            other = found.get((one.row, one.peer, version))
            cells += (
                ["", ""] if other is None else [f"{other.ratio:.2f}", f"{pace(other, one):.2f}"]
            )
        table.add_row(*cells)
    Console(width=None if sys.stdout.isatty() else 170).print(table)


def amount(value: float) -> str:
    """Write a rate without, a time with decimals."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def main() -> int:
    """Measure, print, compare with what was kept, keep and draw."""
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m bench", description=__doc__, formatter_class=shape)
    parser.add_argument("rows", nargs="*", help=f"of {', '.join(ROWS)}; all, if none is given")
    parser.add_argument("--accept", default="", metavar="REASON", help="keep a ratio that fell")
    asked = parser.parse_args()
    unknown = [row for row in asked.rows if row not in ROWS]
    if unknown:
        parser.error(f"no row is named {unknown[0]!r}; there are {', '.join(ROWS)}")
    rows, machine, load = asked.rows or list(ROWS), this_machine(), os.getloadavg()[0]
    pythons = {minor: python for minor in MINORS if (python := environment(minor))}
    pythons.setdefault(OWN, sys.executable)
    missing = {f"Python 3.{minor}": "is not on this machine" for minor in MINORS
               if minor not in pythons}  # fmt: skip
    before = last_kept(read_runs(), machine)
    found, left_out = measure_all(rows, dict(sorted(pythons.items())))
    found = measure_again(found, before, pythons)
    figures, left_out = [one for _, one in found], {**missing, **left_out}
    show(figures, before)
    for told in slower_pythons(figures):
        print(told)
    for what, why in left_out.items():
        print(f"not measured: {what}: {why}")
    fell = fallen(figures, before)
    for now, then in fell:
        print(f"fell by over {FALL:.0%}: {now.row} beside {now.peer}, Python {now.python}: "
              f"{then.ratio:.2f} before, {now.ratio:.2f} now")  # fmt: skip
    commit, changed = commit_of_tree()
    if asked.rows:
        print("not kept: some rows only")
    elif load > machine.cpus:
        print(f"not kept: a load of {load:.1f} on {machine.cpus} CPUs before; once it is quiet")
    elif changed:
        print(f"not kept: {changed[0]} differs from commit {commit[:12]}; commit first")
    elif fell and not asked.accept:
        print('not kept: mend what fell, or say why: make bench ACCEPT="reason"')
    else:
        taken = datetime.now(UTC).isoformat(timespec="seconds")
        accepted = asked.accept if fell else ""
        run = BenchRun(commit, taken, machine, round(load, 1), tuple(figures), left_out, accepted)
        print(f"kept in {keep(run).relative_to(ROOT)}; docs/speed.md is drawn anew")
        page.write()
    return 1 if fell and not asked.accept else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(main())
    except RowFailed as error:
        sys.exit("{} has failed: {}".format(*error.args))
    except KeyboardInterrupt:
        sys.exit(130)
