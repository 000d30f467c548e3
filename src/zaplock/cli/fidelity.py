"""Do the designs do what real kernels do? Measure both, lay them side by side.

On every kernel at hand (this machine's, and Debian's 6.1 and 6.12 in QEMU with instruction-counted
time) one mapping is taken down in each way, beside readers alone and beside readers with a queued
writer. Read from its lock events (the mmap_lock tracepoints, or kprobes): the modes in which the
lock is held, who waits behind whom, and the longest wait as a share of the teardown. The same is
read from the simulated events of the design of that version. Guests are also made to wait so long
that khungtaskd reports somebody. docs/kernels.md tells what an image must have to be judged.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from zaplock import outputs
from zaplock.cli._designs import judged
from zaplock.cli._ending import next_step, wrote
from zaplock.cli._json_text import print_json
from zaplock.cli._lists import items
from zaplock.cli._streams import while_read
from zaplock.errors import UserError, no_such
from zaplock.units import parse_size
from zaplock.untrusted_names import visible

if TYPE_CHECKING:
    from zaplock.designs import Design
    from zaplock.lab.fidelity import Agreement, HungTasks
    from zaplock.measure.guest.experiment import GuestPlan, GuestRun


HOST = "host"
KERNELS = f"{HOST},debian:6.1,debian:6.12"
_GUEST_PERIOD_NS, _HOST_PERIOD_NS = 1_000_000, 200_000
_SHORTER_PERIODS_NS = {"hugetlb": 200_000}  # 64 huge pages are soon gone
_LIMIT_S, _HUNG_LIMIT_S = 180.0, 900.0
_SLOW_SHIFT = 7  # 128 ns an instruction: a second of waiting is soon over
_HUNG_NS = 3_000_000_000


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `zaplock fidelity`."""
    add = parser.add_argument
    add("--kernels", default=KERNELS, metavar="LIST", help="which kernels: host, debian:6.1 or the "
        "path of a bzImage; KERNEL=DESIGN judges one as another design than its release's, such as "
        f"PATH=rfc-v6 ({KERNELS})")  # fmt: skip
    add("--teardowns", metavar="LIST", help="munmap, fixed, growsdown, brk, mremap, exit; munmap "
        "of locked, hugetlb, vmas (many), zero (pages) (all)")  # fmt: skip
    add("--waiters", action="store_true", help="instead of the teardowns: who waits behind whom "
        "beside a munmap among readers of maps, smaps, smaps_rollup and environ, a thread that "
        "starts others, and one that forks")  # fmt: skip
    add("--by", default="auto", choices=("auto", "tracepoints", "kprobes", "function_graph"),
        help="how lock events are seen (auto: tracepoints where there are any, else kprobes, else "
        "function_graph, which a host has from 6.13 on)")  # fmt: skip
    add("--guest-size", default="128M", metavar="SIZE", help="what a guest maps (128M)")
    add("--host-size", default="2G", metavar="SIZE", help="what this machine maps (2G)")
    add("--no-hung", action="store_true", help="leave the hung tasks out")
    add("--write", metavar="FILE", help="write the section into FILE, in place of the one before "
        "(docs/fidelity.md has them)")  # fmt: skip
    add("--json", action="store_true", help="print JSON instead of a table")


@dataclass(slots=True)
class _Survey:
    """What was found so far; `skipped` tells which kernels could not be had, and why."""

    rows: list[Agreement] = field(default_factory=list)
    hung: list[HungTasks] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def add(self, other: _Survey) -> None:
        """Add what was found of another kernel."""
        self.rows += other.rows
        self.hung += other.hung
        self.skipped += other.skipped

    @property
    def agrees(self) -> bool:
        """Whether nothing differs; what was not seen doesn't."""
        teardowns = [one.agrees for one in self.rows]
        return False not in [*teardowns, *(one.agrees for one in self.hung)]


def run(args: argparse.Namespace) -> int:
    """Measure, compare and print; 1 where a design disagrees with its kernel."""
    from zaplock.cli import _fidelity_text as text
    from zaplock.cli._busy import busy
    from zaplock.views.console import Screen

    kernels, teardowns = _names(args)
    if args.waiters and args.teardowns:
        raise UserError(f"--teardowns {args.teardowns} has no place beside --waiters: leave one")
    with busy("getting ready") as say:
        found = _surveyed(args, kernels, teardowns, say)
    if not found.rows:
        raise UserError(_why_nothing(found.skipped))
    if args.waiters:
        wrote_into = _write(args, text.waiters_section(found.rows, found.skipped), text.WAITERS)
    else:
        wrote_into = _write(args, text.section(found.rows, found.hung, found.skipped))
    with while_read():
        if args.json:
            print_json(text.as_json(found.rows, found.hung, found.skipped))
        else:
            print("\n".join([*text.sentences(found.rows, found.hung), *found.skipped, ""]))
            Screen().print((text.waiters_table if args.waiters else text.table)(found.rows))
        if wrote_into:
            wrote(wrote_into, aside=args.json)
        next_step("zaplock measure --kernel debian:6.12 1G --exact", aside=args.json)
    return 0 if found.agrees else 1


def _why_nothing(reasons: list[str]) -> str:
    """Return why nothing was compared; of several reasons each is a line of its own before."""
    if len(reasons) == 1:
        return reasons[0]
    for reason in reasons:
        print(visible(reason), file=sys.stderr)
    return f"nothing was compared: each of {len(reasons)} reasons is a line above"


@dataclass(frozen=True, slots=True)
class _Judged:
    """A kernel by its name, and the design that it is told to be (None: that of its release)."""

    name: str
    design: Design | None = None

    def shown(self, release: str) -> str:
        """Name it in tables: a file by the release that is in it."""
        return release if "/" in self.name else self.name


def _surveyed(
    args: argparse.Namespace,
    kernels: list[_Judged],
    teardowns: list[str],
    say: Callable[[str], None],
) -> _Survey:
    """Compare all kernels: this machine's alone, since its time is real, and guests side by side.

    A guest's time is counted in instructions, so what else runs changes nothing of what it shows.
    """
    from zaplock.workers import pool

    guests = [kernel for kernel in kernels if kernel.name != HOST]
    parts = {
        number: _one(args, kernel, teardowns, say)
        for number, kernel in enumerate(kernels)
        if kernel.name == HOST
    }
    jobs = min(len(guests), len(os.sched_getaffinity(0)))
    if jobs > 1:
        say(f"{', '.join(kernel.name for kernel in guests)}: {jobs} at once")
        with pool(jobs, "spawn") as workers:
            done = [workers.submit(_one, args, kernel, teardowns) for kernel in guests]
            surveys = iter([one.result() for one in done])
    else:
        surveys = iter([_one(args, kernel, teardowns, say) for kernel in guests])
    found = _Survey()
    for number in range(len(kernels)):
        found.add(parts[number] if number in parts else next(surveys))
    return found


def _silent(_now: str) -> None:
    """Say nothing: who works for another process has no terminal."""


def _one(
    args: argparse.Namespace,
    kernel: _Judged,
    teardowns: list[str],
    say: Callable[[str], None] = _silent,
) -> _Survey:
    """Compare one kernel; where it can't be had, tell why."""
    found = _Survey()
    try:
        if args.waiters:
            _survey_waiters(args, kernel, found, say)
        else:
            _survey(args, kernel, teardowns, found, say)
    except UserError as error:
        found.skipped.append(f"{kernel.name} left out: {error}")
    return found


def _survey(
    args: argparse.Namespace,
    kernel: _Judged,
    teardowns: list[str],
    found: _Survey,
    tell: Callable[[str], None],
) -> None:
    """Compare all cases of one kernel, and tell which of its features are missing."""
    from zaplock.measure.guest import features

    lacks: tuple[str, ...] = ()
    first = True
    for teardown, writer in _cases(teardowns):
        beside = "with a queued writer" if writer else "readers alone"
        tell(f"{kernel.name}: {teardown}, {beside}")
        try:
            done = _done(_plan(args, kernel.name, teardown, writer))
            lacks = features.missing(done.capsule, args.by)
            found.rows.append(_compared(kernel, teardown, writer, done))
        except UserError as error:
            if first:
                raise
            found.skipped.append(f"{kernel.name}, {teardown}, {beside}: {error}")
        first = False
    if lacks:
        shown = kernel.shown(done.capsule.facts["release"])
        found.skipped.append(f"{shown} has no {', no '.join(lacks)}: see docs/kernels.md")
    if kernel.name != HOST and not args.no_hung:
        tell(f"{kernel.name}: waiting for khungtaskd")
        try:
            found.hung.append(_hung(args, kernel))
        except UserError as error:
            found.skipped.append(f"{kernel.name}, hung tasks: {error}")


def _survey_waiters(
    args: argparse.Namespace, kernel: _Judged, found: _Survey, tell: Callable[[str], None]
) -> None:
    """Compare what the other bystanders of one kernel wait for, group by group."""
    from dataclasses import replace

    from zaplock.lab.fidelity import WAITERS

    first = True
    for beside in WAITERS:
        names = ", ".join(beside)
        tell(f"{kernel.name}: munmap beside {names}")
        plan = _plan(args, kernel.name, "munmap", False)
        try:
            done = _done(replace(plan, bystanders=beside, from_begin=True))
            found.rows.append(_compared(kernel, "munmap", False, done, beside))
        except UserError as error:
            if first:
                raise
            found.skipped.append(f"{kernel.name}, munmap beside {names}: {error}")
        first = False


def _beside(args: argparse.Namespace) -> TextIO:
    return sys.stderr if args.json else sys.stdout


def _names(args: argparse.Namespace) -> tuple[list[_Judged], list[str]]:
    from zaplock.lab.forecast import MAPPINGS, TEARDOWNS

    known = (*TEARDOWNS, *MAPPINGS)
    teardowns = items("--teardowns", args.teardowns) if args.teardowns else list(known)
    for name in teardowns:
        if name not in known:
            raise no_such("teardown", name, known)
    return [_Judged(*judged(one)) for one in items("--kernels", args.kernels)], teardowns


def _cases(teardowns: list[str]) -> Iterator[tuple[str, bool]]:
    for teardown in teardowns:
        yield teardown, False
        yield teardown, True


def _plan(args: argparse.Namespace, kernel: str, teardown: str, writer: bool) -> GuestPlan:
    from zaplock.lab.fidelity import READERS, WRITER
    from zaplock.lab.forecast import MAPPINGS
    from zaplock.measure.guest.experiment import GuestPlan

    on_host = kernel == HOST
    guest_period_ns = _SHORTER_PERIODS_NS.get(teardown, _GUEST_PERIOD_NS)
    length = parse_size(args.host_size if on_host else args.guest_size)
    mapping = dict(MAPPINGS.get(teardown, {}))
    if "nr_vmas" in mapping:
        mapping["nr_vmas"] = max(2, length >> 20)
    return GuestPlan(
        length=length,
        kernel=kernel,
        teardown="munmap" if teardown in MAPPINGS else teardown,
        locks=args.by,
        **mapping,
        bystanders=(*READERS, WRITER) if writer else READERS,
        period_ns=_HOST_PERIOD_NS if on_host else guest_period_ns,
        timeout_s=_LIMIT_S,
        exact=not on_host,
        nr_cpus=1,
    )


def _done(plan: GuestPlan) -> GuestRun:
    from zaplock.measure.guest import experiment, host

    return host.run(plan) if plan.kernel == HOST else experiment.run(plan)


def _compared(
    kernel: _Judged, teardown: str, writer: bool, done: GuestRun, beside: tuple[str, ...] = ()
) -> Agreement:
    from zaplock.lab import fidelity
    from zaplock.measure.guest import finished_run

    release = done.capsule.facts["release"]
    cpus = 8 if kernel.name == HOST else done.plan.nr_cpus
    seen, period_ns = finished_run.read(done), done.plan.period_ns
    return fidelity.compare(
        release, kernel.shown(release), teardown, writer, seen, period_ns, kernel.design, cpus,
        beside,
    )  # fmt: skip


def _hung(args: argparse.Namespace, kernel: _Judged) -> HungTasks:
    from dataclasses import replace

    from zaplock.lab import fidelity
    from zaplock.measure.guest import rows

    plan = replace(
        _plan(args, kernel.name, "munmap", True),
        bystanders=fidelity.HUNG_BYSTANDERS,
        shift=_SLOW_SHIFT,
        hung_task_timeout_s=1,
        timeout_s=_HUNG_LIMIT_S,
        traced=False,  # stacks as they are: 4.9 enters by other functions while it is traced
    )
    done = _hung_run(plan)
    messages = rows.hung_task_messages(done.capsule.text("kernel_log"))
    release = done.capsule.facts["release"]
    return fidelity.compare_hung(release, kernel.shown(release), messages, kernel.design)


def _hung_run(plan: GuestPlan) -> GuestRun:
    """Run a plan whose queued writer waits some hung-task timeouts: of so many bytes as that takes.

    khungtaskd looks once a second, and reports who has slept since it looked last. In time so slow
    the call itself may take long before it has the lock.
    Raises UserError where a guest of that size can't be had.
    """
    from dataclasses import replace

    from zaplock.lab.fidelity import WRITER
    from zaplock.measure.guest.experiment import stalls

    while True:
        done = _done(plan)
        waited_ns = stalls(done)[WRITER][0].max_ns
        if waited_ns >= _HUNG_NS:
            return done
        plan = replace(plan, length=plan.length * (_HUNG_NS // max(waited_ns, 1) + 1))


def _write(args: argparse.Namespace, section: str, title: str = "") -> Path | None:
    """Put a section into the file that was named; return which it was, None if there was none."""
    from zaplock.cli import _fidelity_text as text

    if not args.write:
        return None
    path = Path(args.write)
    try:
        old = path.read_text() if path.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} can't be read ({error}): name another file") from None
    outputs.write(path, text.with_section(old, section, title or text.TEARDOWNS))
    return path
