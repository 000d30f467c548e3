"""Replay a recording: would another kernel, or another way of freeing, have avoided these stalls?

FILE is a recording (zaplock record, import, or a simulation). Each thread's operations on the
chosen process's mmap_lock are done again in virtual time, each at its recorded begin or when the
thread's previous one has ended, at its recorded cost: under the design of the recorded kernel (the
replay's own error, printed first), under other designs, and with memory freed in other ways:

  munmap             as the program did
  dontneed           MADV_DONTNEED of the whole range, then munmap of the empty one
  dontneed-chunks    the same in chunks of 2 MiB, or of another size: dontneed-chunks:16M
  munmap-chunks      one munmap for each chunk
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from zaplock import outputs
from zaplock.cli._designs import parse_designs
from zaplock.cli._ending import next_step, options, wrote
from zaplock.cli._json_text import print_json
from zaplock.cli._lists import items_of_all
from zaplock.errors import UserError, no_such
from zaplock.units import parse_size
from zaplock.untrusted_names import shell_word

if TYPE_CHECKING:
    from zaplock.lab.profiles import Profile
    from zaplock.replay.other_ways import Way
    from zaplock.replay.replay import Replay


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `zaplock replay`."""
    add = parser.add_argument
    add("file", metavar="FILE", help="a recording")
    add("--design", action="append", metavar="NAME", help="of `zaplock designs`, or FILE.py:NAME "
        "for your own; several by commas or by repeating (default: all)")  # fmt: skip
    add("--free-by", action="append", metavar="WAY", help="munmap, dontneed, dontneed-chunks[:2M] "
        "or munmap-chunks[:2M], for munmaps longer than a chunk; may be repeated (default: as "
        "recorded under every design, and every way under the recorded kernel's)")  # fmt: skip
    add("-p", "--pid", type=int, metavar="PID", help="the process (default: where most is waited)")
    add("--mm", metavar="ADDRESS", help="the mm instead, as the recording has it")
    add("--recorded-under", metavar="NAME", help="the design that stands for the recorded kernel "
        "(default: by the release in the recording)")  # fmt: skip
    add("--profile", metavar="NAME", help="costs of what the recording doesn't show (default: this "
        "machine's, if it is calibrated, else e5-2680-rfc)")  # fmt: skip
    add("--json", action="store_true", help="print JSON instead of tables")
    add(
        "--plot",
        metavar="FILE",
        help="draw holds and waits: FILE.svg, .png, or .html: "
        "a page with the answer, the tables and a timeline of all runs",
    )


def run(args: argparse.Namespace) -> int:
    """Read, replay, print."""
    from zaplock.cli._progress import counter
    from zaplock.cli.report import load as load_recording
    from zaplock.designs import load
    from zaplock.replay.replay import replay

    ways, designs, mm = _ways(args.free_by), parse_designs(args.design), _mm(args.mm)
    recorded = load(args.recorded_under) if args.recorded_under else None
    profile = _profile(args.profile)
    if args.plot is not None:
        outputs.require_picture(args.plot)
    analysis = load_recording(args.file)
    with counter("replaying") as show:
        found = replay(
            analysis, profile, recorded=recorded, designs=designs, ways=ways, pid=args.pid, mm=mm,
            progress=show,
        )  # fmt: skip
    if args.plot:
        from zaplock.cli._busy import busy
        from zaplock.views.replayed import plot

        with busy(f"drawing {args.plot}"):
            plot(found, Path(args.plot))
        wrote(args.plot, aside=args.json)
    if args.json:
        print_json(found.to_json())
    else:
        _print(found)
    next_step(*_next(args), aside=args.json)
    return 0


def _ways(texts: list[str] | None) -> list[Way] | None:
    from zaplock.replay.other_ways import WAYS, Way

    if texts is None:
        return None
    ways = []
    for text in items_of_all("--free-by", texts):
        name, colon, chunk = text.partition(":")
        if name not in WAYS:
            raise no_such("way of freeing memory", text, WAYS)
        if colon and not name.endswith("chunks"):
            raise UserError(f"way {text!r} has no chunks: leave out {colon + chunk!r}")
        ways.append(Way(name, parse_size(chunk)) if colon else Way(name))
    return ways


def _mm(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return int(text, 0)
    except ValueError:
        raise UserError(f"mm {text!r} is no address: give it as 0x... or leave it out") from None


def _profile(name: str | None) -> Profile:
    from zaplock.lab import profiles

    if name is None:
        calibrated = profiles.THIS_MACHINE in profiles.available()
        name = profiles.THIS_MACHINE if calibrated else profiles.DEFAULT
    return profiles.load(name)


def _print(found: Replay) -> None:
    from zaplock.views import replayed as view
    from zaplock.views.console import Screen

    print(view.title(found))
    for line in view.answer(found):
        print(f"- {line}")
    print()
    Screen().print(view.table(found))
    print("", *view.ending(found), sep="\n")


def _next(args: argparse.Namespace) -> tuple[str, str]:
    file = shell_word(args.file)
    if args.plot is None:
        given = {
            "--design": args.design, "--free-by": args.free_by, "-p": args.pid, "--mm": args.mm,
            "--recorded-under": args.recorded_under, "--profile": args.profile,
        }  # fmt: skip
        return f"zaplock replay {file}{options(given)} --plot replay.svg", "who holds, who waits"
    return f"zaplock diff {file} AFTER.zaplock", "record again when it is mended: did it help"
