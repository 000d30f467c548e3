"""Measure what this machine's memory management costs and keep it as a cost profile.

Real experiments in processes of their own: unmaps, faults, forks, VMA operations, wake-ups. Each
unit is the median of repeated rounds; the file keeps the spread. Other verbs then take it with
--profile this-machine. With --check, the profile's predictions are laid beside measured munmaps.

With --kernel it is another real kernel in QEMU whose munmap is measured, in time that is a count of
instructions; a CPU quota (--cpu-max) is then predicted and measured on that kernel as well:

  zaplock calibrate --kernel debian:6.12 --cpu-max 10000/100000 --output guest.toml
  zaplock calibrate --check anonymous:320M --kernel debian:6.12 --cpu-max 10000/100000 \\
    --profile guest.toml
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from zaplock.cli._designs import parse_cpu_max
from zaplock.cli._ending import next_step, options, wrote
from zaplock.cli._json_text import print_json
from zaplock.cli._lists import items
from zaplock.errors import UserError
from zaplock.units import duration, format_size, number, parse_size, size

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from zaplock.lab.profiles import Profile
    from zaplock.measure.calibrate import Calibration
    from zaplock.trace.quotas import CpuMax
    from zaplock.trace.teardown_outcome import TeardownOutcome

CHECKS = "anonymous:1G,2G,4G,8G zero:16G,80G,320G"
"""What --check measures by default: backing and sizes."""
_ROUNDS, _SCALE = 5, 512


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `zaplock calibrate`."""
    add = parser.add_argument
    add("--output", metavar="FILE", help="where to write the profile (default: your own profiles)")
    add(
        "--rounds",
        type=int,
        default=_ROUNDS,
        metavar="N",
        help="repeat every experiment N times (5)",
    )
    add("--scale", type=int, default=_SCALE, metavar="MIB", help="MiB of an ordinary experiment "
        "(512: the largest then takes 4 GiB; give less on a small machine)")  # fmt: skip
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
    add("--kernel", metavar="KERNEL", help="of this kernel, in an exact guest: a vmlinuz, or "
        "debian:6.1; what isn't measured there is in proportion to --profile")  # fmt: skip
    add("--cpu-max", metavar="QUOTA/PERIOD", help="with --check or --kernel: under so many us of "
        "CPU time in each period, as cpu.max of a cgroup has it, such as 10000/100000")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Calibrate, check or list."""
    if args.units:
        return _list_units(args.json)
    if args.kernel and (args.rounds, args.scale) != (_ROUNDS, _SCALE):
        raise UserError(
            "--rounds and --scale are for this machine: an exact guest says the same every time"
        )
    if args.check:
        return _check(args)
    if args.cpu_max and not args.kernel:
        raise UserError("--cpu-max is for --check, or for a guest's profile (--kernel)")
    return _calibrate(args)


def _list_units(as_json: bool) -> int:
    from zaplock.lab.profiles import UNITS
    from zaplock.views.console import Screen
    from zaplock.views.grid import Grid, words

    if as_json:
        print_json({"units": UNITS})
    else:
        Screen().print(Grid((words("unit"), words("what")), tuple(UNITS.items())))
    next_step("zaplock calibrate", "measure them on this machine", aside=as_json)
    return 0


def _calibrate(args: argparse.Namespace) -> int:
    from rich.progress import Progress

    from zaplock.lab import profiles
    from zaplock.views.console import Screen

    name = f"{args.kernel.replace(':', '-')}.toml" if args.kernel else "this-machine.toml"
    path = Path(args.output) if args.output else profiles.user_directory() / Path(name).name
    profiles.require_writable(path)
    with Progress(console=Screen(stderr=True), transient=True) as bar:
        task = bar.add_task(f"measuring {args.kernel or 'this machine'}", total=None)

        def progress(done: int, of: int) -> None:
            bar.update(task, completed=done, total=of)

        found = _measured(args, progress)
    profile = as_profile(found, path.stem, _source(args, found))
    profiles.save(profile, path)
    if args.json:
        print_json({"file": str(path), **_plain(profile)})
    else:
        _show(profile, path)
    name = profile.name if not args.output else str(path)
    next_step(
        f"zaplock calibrate --check{_of_guest(args)}{options({'--profile': name})}",
        "predicted against measured",
        aside=args.json,
    )
    return 0


def _of_guest(args: argparse.Namespace) -> str:
    if not args.kernel:
        return ""
    return f" anonymous:320M{options({'--kernel': args.kernel, '--cpu-max': args.cpu_max})}"


def _measured(args: argparse.Namespace, progress: Callable[[int, int], None]) -> Calibration:
    from zaplock.lab.profiles import DEFAULT, load
    from zaplock.measure import calibrate
    from zaplock.measure.guest import calibration

    if not args.kernel:
        return calibrate.calibrate(rounds=args.rounds, scale_mib=args.scale, progress=progress)
    base = load(args.profile or DEFAULT)
    cpu_max = parse_cpu_max(args.cpu_max) if args.cpu_max else None
    return calibration.calibrate(
        args.kernel, base.costs, base.name, cpu_max=cpu_max, progress=progress
    )


def _source(args: argparse.Namespace, found: Calibration) -> str:
    if args.kernel:
        given = options({"--kernel": args.kernel, "--cpu-max": args.cpu_max})
        return f"zaplock calibrate{given}: whole munmaps in exact guests"
    return (
        f"zaplock calibrate --rounds {found.rounds} --scale {found.scale_mib}: median of "
        f"{found.rounds} rounds of real experiments, CPU time"
    )


def as_profile(found: Calibration, name: str, source: str) -> Profile:
    """Turn a calibration into a profile that says how it was made."""
    from zaplock.lab.profiles import Profile

    return Profile(
        name=name,
        description=f"measured on {found.cpu}, Linux {found.kernel}",
        source=source,
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
    from zaplock.views.console import Screen
    from zaplock.views.grid import Grid, figure, words

    rows = []
    for unit in UNITS:
        low, high = profile.spread.get(unit, (profile[unit], profile[unit]))
        note = "not measured" if _is_guess(profile, unit) else ""
        spread = f"{number(low, 4)} to {number(high, 4)} ns"
        rows.append((unit, f"{number(profile[unit], 4)} ns", spread, note))
    columns = (words("unit"), figure("cost"), figure("spread", rank=1), words("note", rank=2))
    Screen().print(Grid(columns, rows, f"{profile.name}: {profile.description}"))
    wrote(path)


def _is_guess(profile: Profile, unit: str) -> bool:
    return "not measured" in profile.notes.get(unit, "")


def cases(text: str) -> list[tuple[str, int]]:
    """Read `backing:SIZE,SIZE backing:SIZE` into pairs of backing and bytes."""
    from zaplock.experiment import BACKINGS

    found = []
    for part in text.split():
        backing, _, sizes = part.partition(":")
        if backing not in BACKINGS or not sizes:
            known = ", ".join(BACKINGS)
            raise UserError(f"--check {part!r} is not BACKING:SIZE,SIZE with one of {known}")
        found += [(backing, parse_size(size)) for size in items(f"--check {backing}:", sizes)]
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
    predicted_cpu_ns: int
    """Without what a quota adds to the caller's wait."""

    @property
    def error(self) -> float:
        """How far the prediction lies above the measured median: 0.1 is 10 % above."""
        return self.predicted_ns / self.measured_ns - 1

    @property
    def cpu_error(self) -> float:
        """The same against the CPU time of the measured call, which the run queue doesn't reach."""
        return self.predicted_cpu_ns / self.cpu_ns - 1

    def cells(self) -> list[str]:
        """Return the cells of a row of the table."""
        low, high = duration(self.least_ns), duration(self.greatest_ns)
        times = (self.predicted_ns, self.measured_ns, self.cpu_ns)
        spans = [duration(span_ns) for span_ns in times]
        errors = (f"{self.error:+.1%}", f"{self.cpu_error:+.1%}")
        return [self.backing, size(self.size), *spans, f"{low} to {high}", *errors]


def _check(args: argparse.Namespace) -> int:
    from zaplock.lab.profiles import THIS_MACHINE, load

    if args.kernel and args.check == CHECKS:
        raise UserError("--check in a guest needs a list of its own, such as 'anonymous:320M'")
    wanted = cases(args.check)
    profile = load(args.profile or THIS_MACHINE)
    repeat = 1 if args.kernel else args.repeat  # an exact guest says the same every time
    rows = [_compare(profile, backing, length, args, repeat) for backing, length in wanted]
    if args.json:
        plain = [{**asdict(row), "error": row.error, "cpu_error": row.cpu_error} for row in rows]
        print_json({"profile": profile.name, "repeat": repeat, "rows": plain})
    else:
        _show_checked(rows)
    worst = max(abs(row.error) for row in rows)
    busy = max(abs(row.cpu_error) for row in rows)
    summing_up = f"worst error {worst:.1%} ({busy:.1%} of CPU time)"
    print(summing_up, file=sys.stderr if args.json else sys.stdout)
    given = options({"--profile": profile.name, "--cpu-max": args.cpu_max})
    next_step(f"zaplock compare 80G{given}", aside=args.json)
    return 0


def _compare(
    profile: Profile, backing: str, length: int, args: argparse.Namespace, repeat: int
) -> Checked:
    cpu_max = parse_cpu_max(args.cpu_max) if args.cpu_max else None
    if sys.stderr.isatty():
        print(f"measuring {format_size(length)} {backing}, {repeat} times", file=sys.stderr)
    if args.kernel:
        release, rows = _in_guest(args.kernel, backing, length, cpu_max)
    else:
        release, rows = os.uname().release, _here(backing, length, repeat, cpu_max)
    return checked(profile, release, rows, cpu_max)


def _here(backing: str, length: int, repeat: int, cpu_max: CpuMax | None) -> list[TeardownOutcome]:
    from zaplock.measure.measure import measure

    return measure(
        length, backing=backing, bystanders=(), repeat=repeat, trace=False, cpu_max=cpu_max
    )


def _in_guest(
    kernel: str, backing: str, length: int, cpu_max: CpuMax | None
) -> tuple[str, list[TeardownOutcome]]:
    from zaplock.measure.guest.calibration import plan_of
    from zaplock.measure.guest.experiment import run
    from zaplock.measure.guest.rows import outcome

    done = run(plan_of(kernel, backing, length, cpu_max))
    return done.capsule.facts["release"], [outcome(done)]


def checked(
    profile: Profile, release: str, rows: Sequence[TeardownOutcome], cpu_max: CpuMax | None
) -> Checked:
    """Lay what the design of a kernel's release makes of a profile beside measured munmaps.

    Without a quota it is the plain formula; with one, the timed engine under that design.
    """
    from zaplock.lab.profiles import predict
    from zaplock.measure.measure import summary

    middle = summary(rows)
    backing, length = middle.extra["backing"], middle.extra["size"]
    low, high = middle.extra["spread"]["munmap_ns"]
    cpu_ns = middle.extra["cpu_ns"]
    assert cpu_ns is not None, "a run on a real kernel has its CPU time"
    return Checked(
        backing, length, predicted(profile, release, backing, length, cpu_max),
        middle.munmap_ns, cpu_ns, low, high, predict(profile, length, backing),
    )  # fmt: skip


def predicted(
    profile: Profile, release: str, backing: str, length: int, cpu_max: CpuMax | None
) -> int:
    """Return how long a munmap's caller waits for it, in nanoseconds."""
    from zaplock.designs.linux import design_of
    from zaplock.lab.experiment import SimulatedExperiment
    from zaplock.lab.profiles import predict
    from zaplock.lab.teardown import run

    if cpu_max is None:
        return predict(profile, length, backing)
    experiment = SimulatedExperiment(length, backing=backing, bystanders=(), cpu_max=cpu_max)
    return run(design_of(release).design, experiment, profile).outcome.munmap_ns


def _show_checked(rows: Sequence[Checked]) -> None:
    from zaplock.views.console import Screen
    from zaplock.views.grid import Grid, figure, words

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
