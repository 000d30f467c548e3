"""Measure what this machine's memory management costs and keep it as a cost profile.

Real experiments in processes of their own: unmaps, faults, forks, VMA operations, wake-ups. Each
unit is the median of repeated rounds; the file keeps the spread. Other verbs then take it with
--profile this-machine. With --check, the profile's predictions are laid beside measured munmaps.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from zaplock.cli._ending import next_step, wrote
from zaplock.units import duration, format_size, parse_size, size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zaplock.lab.profiles import Profile
    from zaplock.measure.calibrate import Calibration

CHECKS = "anonymous:1G,2G,4G,8G zero:16G,80G,320G"
"""What --check measures by default: backing and sizes."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `zaplock calibrate`."""
    add = parser.add_argument
    add("--output", metavar="FILE", help="where to write the profile (default: your own profiles)")
    add("--rounds", type=int, default=5, metavar="N", help="repeat every experiment N times (5)")
    add("--scale", type=int, default=512, metavar="MIB", help="MiB of an ordinary experiment (512: "
        "the largest then takes 4 GiB; give less on a small machine)")  # fmt: skip
    add("--json", action="store_true", help="print the profile as JSON, too")
    add("--units", action="store_true", help="list the units of a profile and end")
    add(
        "--check",
        nargs="?",
        const=CHECKS,
        metavar="LIST",
        help=f"measure nothing new: compare the profile with real munmaps (default {CHECKS!r})",
    )
    add("--profile", default=None, metavar="NAME", help="profile to check (this-machine)")
    add("--repeat", type=int, default=5, metavar="N", help="with --check: median of N munmaps (5)")


def run(args: argparse.Namespace) -> int:
    """Calibrate, check or list."""
    if args.units:
        return _list_units(args.json)
    if args.check:
        return _check(args)
    return _calibrate(args)


def _list_units(as_json: bool) -> int:
    from zaplock.lab.profiles import UNITS
    from zaplock.views.grid import Grid, words
    from zaplock.views.screen import Screen

    if as_json:
        print(json.dumps({"units": UNITS}, indent=2))
    else:
        Screen().print(Grid((words("unit"), words("what")), tuple(UNITS.items())))
    next_step("zaplock calibrate", "measure them on this machine", aside=as_json)
    return 0


def _calibrate(args: argparse.Namespace) -> int:
    from rich.progress import Progress

    from zaplock.lab import profiles
    from zaplock.measure.calibrate import calibrate
    from zaplock.views.screen import Screen

    path = Path(args.output) if args.output else profiles.user_directory() / "this-machine.toml"
    profiles.require_writable(path)
    with Progress(console=Screen(stderr=True), transient=True) as bar:
        task = bar.add_task("measuring this machine", total=None)

        def progress(done: int, of: int) -> None:
            bar.update(task, completed=done, total=of)

        found = calibrate(rounds=args.rounds, scale_mib=args.scale, progress=progress)
    profile = as_profile(found, path.stem)
    profiles.save(profile, path)
    if args.json:
        print(json.dumps({"file": str(path), **_plain(profile)}, indent=2))
    else:
        _show(profile, path)
    name = profile.name if not args.output else str(path)
    next_step(
        f"zaplock calibrate --check --profile {name}", "predicted against measured", aside=args.json
    )
    return 0


def as_profile(found: Calibration, name: str) -> Profile:
    """Turn a calibration into a profile that says how it was made."""
    from zaplock.lab.profiles import Profile

    return Profile(
        name=name,
        description=f"measured on {found.cpu}, Linux {found.kernel}",
        source=(
            f"zaplock calibrate --rounds {found.rounds} --scale {found.scale_mib}: median of "
            f"{found.rounds} rounds of real experiments, CPU time"
        ),
        kernel=found.kernel,
        cpu=found.cpu,
        costs=dict(found.costs),
        spread=dict(found.spread),
        notes=dict(found.notes),
    )


def _plain(profile: Profile) -> dict[str, object]:
    import msgspec

    plain: dict[str, object] = msgspec.to_builtins(profile)
    return plain


def _show(profile: Profile, path: Path) -> None:
    from zaplock.lab.profiles import UNITS
    from zaplock.views.grid import Grid, figure, words
    from zaplock.views.screen import Screen

    rows = []
    for unit in UNITS:
        low, high = profile.spread.get(unit, (profile[unit], profile[unit]))
        note = "not measured" if _is_guess(profile, unit) else ""
        rows.append((unit, f"{profile[unit]:.4g} ns", f"{low:.4g} to {high:.4g} ns", note))
    columns = (words("unit"), figure("cost"), figure("spread", rank=1), words("note", rank=2))
    Screen().print(Grid(columns, rows, f"{profile.name}: {profile.description}"))
    wrote(path)


def _is_guess(profile: Profile, unit: str) -> bool:
    return "not measured" in profile.notes.get(unit, "")


def cases(text: str) -> list[tuple[str, int]]:
    """Read `backing:SIZE,SIZE backing:SIZE` into pairs of backing and bytes."""
    from zaplock.errors import UserError
    from zaplock.experiment import BACKINGS

    found = []
    for part in text.split():
        backing, _, sizes = part.partition(":")
        if backing not in BACKINGS or not sizes:
            known = ", ".join(BACKINGS)
            raise UserError(f"--check {part!r} is not BACKING:SIZE,SIZE with one of {known}")
        found += [(backing, parse_size(size)) for size in sizes.split(",")]
    return found


@dataclass(frozen=True, slots=True)
class Checked:
    """One prediction beside what was measured, in nanoseconds; `error` is relative."""

    backing: str
    size: int
    predicted_ns: int
    measured_ns: int
    cpu_ns: int
    least_ns: int
    greatest_ns: int

    @property
    def error(self) -> float:
        """How far the prediction lies above the measured median: 0.1 is 10 % above."""
        return self.predicted_ns / self.measured_ns - 1

    @property
    def cpu_error(self) -> float:
        """The same against the CPU time of the measured call, which the run queue doesn't reach."""
        return self.predicted_ns / self.cpu_ns - 1

    def cells(self) -> list[str]:
        """Return the cells of a row of the table."""
        low, high = duration(self.least_ns), duration(self.greatest_ns)
        times = (self.predicted_ns, self.measured_ns, self.cpu_ns)
        spans = [duration(span_ns) for span_ns in times]
        errors = (f"{self.error:+.1%}", f"{self.cpu_error:+.1%}")
        return [self.backing, size(self.size), *spans, f"{low} to {high}", *errors]


def _check(args: argparse.Namespace) -> int:
    from zaplock.lab.profiles import THIS_MACHINE, load

    wanted = cases(args.check)
    profile = load(args.profile or THIS_MACHINE)
    rows = [_compare(profile, backing, length, args.repeat) for backing, length in wanted]
    if args.json:
        plain = [{**asdict(row), "error": row.error, "cpu_error": row.cpu_error} for row in rows]
        print(json.dumps({"profile": profile.name, "repeat": args.repeat, "rows": plain}, indent=2))
    else:
        _show_checked(rows)
    worst = max(abs(row.error) for row in rows)
    busy = max(abs(row.cpu_error) for row in rows)
    summing_up = f"worst error {worst:.1%} ({busy:.1%} of CPU time)"
    print(summing_up, file=sys.stderr if args.json else sys.stdout)
    next_step(f"zaplock compare 80G --profile {profile.name}", aside=args.json)
    return 0


def _compare(profile: Profile, backing: str, length: int, repeat: int) -> Checked:
    from zaplock.lab.profiles import predict
    from zaplock.measure.measure import measure, summary

    if sys.stderr.isatty():
        print(f"measuring {format_size(length)} {backing}, {repeat} times", file=sys.stderr)
    outcomes = measure(length, backing=backing, bystanders=(), repeat=repeat, trace=False)
    middle = summary(outcomes)
    low, high = middle.extra["spread"]["munmap_ns"]
    predicted_ns, cpu_ns = predict(profile, length, backing), middle.extra["cpu_ns"]
    assert cpu_ns is not None, "a run on this kernel has its CPU time"
    return Checked(backing, length, predicted_ns, middle.munmap_ns, cpu_ns, low, high)


def _show_checked(rows: Sequence[Checked]) -> None:
    from zaplock.views.grid import Grid, figure, words
    from zaplock.views.screen import Screen

    columns = (
        words("backing"),
        figure("size"),
        figure("predicted"),
        figure("measured (median)"),
        figure("on CPU", rank=2),
        figure("range", rank=1),
        figure("error"),
        figure("error (CPU)", rank=3),
    )
    Screen().print(Grid(columns, [row.cells() for row in rows]))
