"""Record who takes and who waits for the mmap_lock, of a process, a command or everybody.

  zaplock record -p 4711                  a process, until Ctrl-C; foreign waiters (ps) included
  zaplock record -- ./server --port 80    a command and its children, from its first instruction
  zaplock record -d 10                    the whole system, for ten seconds
  zaplock record -p 4711 --stop-after-hold 50ms --keep 30s
                                          a flight recorder: runs for days in bounded memory and
                                          disk, stops after the first hold of 50 ms, and has kept
                                          the 30 seconds before it
  zaplock record -p 4711 --watch --stop-after-wait 20ms
                                          costs nothing while nobody waits; records the seconds
                                          that follow on the first wait of 20 ms

Needs root. The exit code is the command's own, as a shell has it. Everything that is switched on is
switched off again, also after Ctrl-C or SIGTERM; what a killed recorder left on is swept up by the
next start.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from zaplock.cli._ending import next_step, wrote
from zaplock.cli._json_text import print_json
from zaplock.cli._targets import add_targets, in_group, spelt, targets
from zaplock.errors import UserError
from zaplock.untrusted_names import shell_word

if TYPE_CHECKING:
    from zaplock.recorder.flight_limits import Flight
    from zaplock.recorder.instances_ahead import Ahead
    from zaplock.recorder.options import Options
    from zaplock.recorder.session import RecordingProgress


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    add_targets(parser)
    parser.add_argument("--children", action="store_true", help="and its children, with -p")
    parser.add_argument("-o", "--output", metavar="FILE", help="where to write (a new directory)")
    parser.add_argument(
        "-d", "--duration", metavar="TIME", help="stop after this time, such as 10s"
    )
    parser.add_argument("--faults", action="store_true", help="page faults of user mode as well")
    parser.add_argument(
        "--sched", action="store_true", help="who runs, sleeps and wakes, of everybody too"
    )
    parser.add_argument("--no-sched", action="store_true", help="leave it out, of a target too")
    parser.add_argument(
        "--contention", action="store_true", help="waits for the kernel's other locks as well"
    )
    parser.add_argument(
        "--stacks", action="store_true", help="the program's stacks as well (costs more)"
    )
    parser.add_argument(
        "--no-kernel-stacks", action="store_true", help="leave the kernel's stacks out"
    )
    parser.add_argument(
        "--hash-pointers", action="store_true", help="no addresses of the kernel in the recording"
    )
    parser.add_argument("--no-syscalls", action="store_true", help="leave the system calls out")
    parser.add_argument("--by", default="auto", metavar="WAY", help="how lock events are seen: "
        "tracepoints (5.11), kprobes or none (auto: the first that this kernel has)")  # fmt: skip
    parser.add_argument("--buffer", metavar="SIZE", help="the kernel's buffer for each CPU")
    parser.add_argument("--stop-after-hold", metavar="TIME", help="stop after a hold this long")
    parser.add_argument("--stop-after-wait", metavar="TIME", help="stop after a wait this long")
    parser.add_argument("--keep", metavar="TIME", help="keep this much before it (default 10s)")
    parser.add_argument(
        "--after", metavar="TIME", help="record this much after it (default 1s, --watch: 5s)"
    )
    parser.add_argument(
        "--watch",
        action="store_true",
        help="with -p: record nothing until a wait of --stop-after-wait (default 10ms)",
    )
    parser.add_argument(
        "--finish", metavar="FILE", help="decode what a recorder left that was killed"
    )
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND")


def run(args: argparse.Namespace) -> int:
    """Record, then say what to do next."""
    if args.finish:
        return _finish(args)
    from zaplock.recorder.scheduling import going_first

    with contextlib.ExitStack() as first:
        first.enter_context(going_first())
        return _run(args, first)


def _run(args: argparse.Namespace, first: contextlib.ExitStack) -> int:
    """Record what was asked for; `first` ends our going before others, once events are let in."""
    from zaplock.recorder.command import Command

    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    pids = targets(args)
    if command and pids:
        raise UserError(f"{spelt(args).strip()} and the command {command[0]!r}: give one of them")
    if args.children and not pids:
        raise UserError("--children needs -p (a command's children are always recorded)")
    if args.sched and args.no_sched:
        raise UserError("--sched and --no-sched: give one of them")
    if args.watch and len(pids) != 1:
        raise UserError("--watch needs -p PID: one process at a time can be watched")
    if not command:
        return _record(args, pids, first.close, lambda: True)
    with Command(command) as started:

        def begin() -> None:
            first.close()
            started.open()

        return _record(args, (started.pid,), begin, started.running) or started.exit_code


def _record(
    args: argparse.Namespace,
    pids: tuple[int, ...],
    started: Callable[[], None],
    running: Callable[[], bool],
) -> int:
    from zaplock.cli._meanwhile import Meanwhile
    from zaplock.recorder.instances_ahead import Ahead
    from zaplock.recorder.scheduling import import_numpy

    with (
        Ahead(0 if args.buffer else 2 if pids else 1) as ahead,
        Meanwhile(() if args.command else pids, aside=args.json) as meanwhile,
    ):

        def on() -> None:
            meanwhile.on()
            started()

        if args.watch:
            import_numpy()
        return _record_with(ahead, args, pids, on, running)


def _record_with(
    ahead: Ahead,
    args: argparse.Namespace,
    pids: tuple[int, ...],
    started: Callable[[], None],
    running: Callable[[], bool],
) -> int:
    from zaplock.recorder.session import record_to
    from zaplock.units import parse_duration

    path = args.output or time.strftime("zaplock-%Y%m%d-%H%M%S.zaplock")
    duration_ns = parse_duration(args.duration) if args.duration else None
    already: list[dict[str, Any]] = []
    flight = _flight(args)
    watched = pids if not args.command else ()
    with Signals() as signals, _Line(path, quiet=args.json, watching=args.watch) as line:

        def found(told: dict[str, Any]) -> None:
            already.extend(told["rows"])
            out = sys.stderr if args.json else sys.stdout
            with (
                line.aside(),
                contextlib.suppress(BrokenPipeError),
            ):
                print(*told["lines"], sep="\n", file=out, flush=True)

        def ended() -> bool:
            return signals.asked or not running() or _gone(watched)

        try:
            progress = record_to(
                path,
                _options(args, pids),
                ended=ended,
                duration_ns=duration_ns,
                flight=flight,
                ahead=ahead,
                started=started,
                found=found,
                report=line.show,
                command_line=tuple(sys.argv),
                target=_target(args, pids),
                hash_pointers=args.hash_pointers,
                decoder="zaplock.cli._decoding",
            )
        except KeyboardInterrupt:
            _say_what_waits(path)
            raise
    _say(args, path, progress, flight, already)
    return 0


def _finish(args: argparse.Namespace) -> int:
    """Decode what a killed recorder left."""
    from zaplock.recorder.session import decode_left

    if args.command or targets(args) or args.output:
        raise UserError(f"--finish {args.finish} decodes what was recorded: give nothing else")
    _say(args, args.finish, decode_left(args.finish), None, [])
    return 0


def _say_what_waits(path: str) -> None:
    """Say how to decode what a second signal did not wait for."""
    from zaplock.trace.new_recording import UNDECODED

    if os.path.exists(f"{path}/{UNDECODED}"):
        way = f"zaplock record --finish {shell_word(path)}"
        print(f"what was recorded waits to be decoded: {way}", file=sys.stderr)


def _gone(pids: tuple[int, ...]) -> bool:
    """Say whether there was a process to be recorded, and all of them have ended."""
    from zaplock.recorder.tracefs import start_time

    return bool(pids) and all(start_time(pid) is None for pid in pids)


def _options(args: argparse.Namespace, pids: tuple[int, ...]) -> Options:
    from zaplock.recorder.options import Options
    from zaplock.units import parse_size

    groups = ["mmap_lock"]
    groups += [] if args.no_syscalls else ["syscalls"]
    groups += [name for name in ("faults", "contention") if getattr(args, name)]
    # Of one target it is cheap (docs/recording.md); of a whole machine it may be much.
    sched = args.sched or (bool(pids) and not args.no_sched)
    groups += ["sched"] if sched else []
    return Options(
        pids=pids,
        children=args.children or in_group(args) or bool(args.command),
        groups=tuple(groups),
        stacks=args.stacks,
        kernel_stacks=not args.no_kernel_stacks,
        buffer_kb=parse_size(args.buffer) >> 10 if args.buffer else None,
        watch=args.watch,
        by=args.by,
    )


def _flight(args: argparse.Namespace) -> Flight | None:
    from zaplock.recorder.flight_limits import Flight
    from zaplock.units import parse_duration

    if not (args.stop_after_hold or args.stop_after_wait or args.watch):
        for name, value in {"--keep": args.keep, "--after": args.after}.items():
            if value is not None:
                raise UserError(
                    f"{name} {value!a} is for what ends a recording: give --stop-after-hold or "
                    f"--stop-after-wait, or leave {name} out"
                )
        return None
    if args.watch and args.stop_after_hold:
        raise UserError("--watch sees waits, not holds: give --stop-after-wait")
    wait = args.stop_after_wait or ("10ms" if args.watch else None)
    return Flight(
        hold_ns=parse_duration(args.stop_after_hold) if args.stop_after_hold else 0,
        wait_ns=parse_duration(wait) if wait else 0,
        keep_ns=parse_duration(args.keep or "10s"),
        after_ns=parse_duration(args.after or ("5s" if args.watch else "1s")),
    )


def _target(args: argparse.Namespace, pids: tuple[int, ...]) -> str:
    from zaplock.recorder.living_tasks import of_process

    if not pids:
        return "everybody"
    if args.command:
        return " ".join(args.command).removeprefix("-- ")
    named = {pid: of_process(pid) for pid in pids}
    return ", ".join(f"{own[0].process} ({pid})" if own else str(pid) for pid, own in named.items())


def _say(
    args: argparse.Namespace,
    path: str,
    progress: RecordingProgress,
    flight: Flight | None,
    already: list[dict[str, Any]],
) -> None:
    if args.json:
        outcome = {
            "file": path,
            "seconds": round(progress.seconds, 3),
            "events": progress.events,
            "lost_events": progress.lost_events,
            "notes": progress.notes,
            **({"found": already} if already else {}),
        }
        print_json(outcome)
    out = sys.stderr if args.json else sys.stdout
    for note in progress.notes:
        print(note, file=out)
    if flight and not progress.fired:
        kept = "nothing was recorded" if args.watch else "what is kept is the end"
        print(f"nothing lasted that long; {kept}", file=out)
    lost = f"; {progress.lost_events:,} events were lost: give a larger --buffer"
    print(
        f"{progress.events:,} events in {progress.seconds:.1f} s"
        f"{lost if progress.lost_events else ', none lost'}",
        file=out,
    )
    wrote(path, aside=args.json)
    next_step(f"zaplock report {shell_word(path)}", aside=args.json)


class Signals:
    """Turn Ctrl-C, SIGTERM and SIGHUP into a wish to end in good order.

    The second one doesn't wait for what is still to be decoded; `record --finish` does it later.
    The same one within `_ONE_NS` is no second: `timeout` sends it to the process and to its group.
    """

    _WHICH = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    _ONE_NS = 100_000_000

    def __init__(self) -> None:
        self.asked, self._came = False, (0, 0)

    def __enter__(self) -> Signals:
        self._before = {number: signal.signal(number, self._ask) for number in self._WHICH}
        return self

    def _ask(self, number: int, _frame: object) -> None:
        before, self._came = self._came, (number, time.monotonic_ns())
        same = before[0] == number and self._came[1] - before[1] < self._ONE_NS
        if self.asked and not same:
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


class _Line:
    """One line on stderr that tells how far the recording is; nothing where nobody looks."""

    def __init__(self, path: str, *, quiet: bool, watching: bool) -> None:
        self._watching = watching
        self._on = sys.stderr.isatty() and not quiet
        self._path = path

    def __enter__(self) -> _Line:
        self._status = None
        if self._on:
            from zaplock.views.console import Screen

            self._status = Screen(stderr=True).status("preparing")
            self._status.start()
        return self

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Make room for other output while the block lasts."""
        if self._status:
            self._status.stop()
        try:
            yield
        finally:
            if self._status:
                self._status.start()

    def show(self, progress: RecordingProgress) -> None:
        if self._status:
            from rich.text import Text

            if progress.decoding:
                self._status.update(f"writing: {progress.spool_bytes >> 20} MiB to decode")
                return
            if self._watching and not progress.fired:
                self._status.update(f"watching for {progress.seconds:.0f} s (Ctrl-C ends it)")
                return
            told = (
                f"recording to {self._path}: {progress.seconds:.0f} s, {progress.events:,} events, "
                f"{progress.lost_events:,} lost, {progress.spool_bytes >> 20} MiB to decode "
                "(Ctrl-C ends it)"
            )
            self._status.update(Text(told))

    def __exit__(self, *_: object) -> None:
        if self._status:
            self._status.stop()
