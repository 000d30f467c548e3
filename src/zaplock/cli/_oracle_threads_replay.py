"""`zaplock oracle --threads --replay`: one saved program of threads, run again and again."""

from __future__ import annotations

import argparse
import platform
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zaplock import outputs
from zaplock.cli._ending import next_step, wrote
from zaplock.cli._json_text import print_json
from zaplock.cli._oracle_threads import print_program
from zaplock.cli._streams import while_read
from zaplock.errors import UserError
from zaplock.untrusted_names import shell_word

if TYPE_CHECKING:
    from zaplock.oracle.thread_replay import RunAgain
    from zaplock.oracle.threaded import ThreadedOutcome, ThreadedProgram


def replay_threads(args: argparse.Namespace) -> int:
    """Run the program of --replay for --seconds; 0 if every outcome is allowed, 1 if not.

    With --c only write it as a C program.
    """
    from zaplock.cli._progress import counter
    from zaplock.designs.linux import design_of
    from zaplock.oracle import thread_files, thread_replay
    from zaplock.oracle.bare_process import Lost
    from zaplock.oracle.thread_campaign import ThreadBench

    threaded, why = thread_files.load(Path(args.replay))
    if args.c:
        return _write_c(threaded, why, Path(args.replay), Path(args.c))
    bench = ThreadBench(design_of(platform.release()).design)
    seen: Counter[ThreadedOutcome] = Counter()
    try:
        with counter("oracle --threads") as show:
            for seen in thread_replay.outcomes(
                bench, threaded, seconds=args.seconds, seed=args.seed
            ):
                show(f"{seen.total():,} runs, {len(seen):,} outcomes")
        replayed = thread_replay.judged(bench, threaded, seen)
    except Lost as error:
        raise UserError(
            f"{args.replay}: {error}: does a thread wait for what no other does?"
        ) from None
    finally:
        bench.close()
    with while_read():
        if args.json:
            print_json(_document(threaded, why, replayed))
        else:
            _print(threaded, why, replayed)
        _say_next(args, threaded, replayed.agrees)
    return 0 if replayed.agrees else 1


def _print(threaded: ThreadedProgram, why: str, replayed: RunAgain) -> None:
    from zaplock.oracle.thread_outcomes import outcome_text

    if why:
        print(f"kept because: {why}")
    print_program(threaded)
    for one in replayed.seen:
        answer = one.answer.upper() if one.answer == "not allowed" else one.answer
        print(f"{one.times:>9,}  {answer:<11}  {outcome_text(one.outcome)}")
        for line in one.differences:
            print(f"{'':>24}{line}")
    for broken in replayed.violations:
        print(f"broke the model: {broken.invariant.name}: {broken.message}")
    answers = Counter(one.answer for one in replayed.seen)
    told = ", ".join(f"{count:,} {answer}" for answer, count in answers.most_common())
    print(f"{replayed.runs:,} runs: {len(replayed.seen):,} outcomes: {told}")


def _document(threaded: ThreadedProgram, why: str, replayed: RunAgain) -> dict[str, Any]:
    from zaplock.oracle.thread_outcomes import outcome_text

    return {
        "program": str(threaded), "why": why, "runs": replayed.runs,
        "outcomes": [
            {"outcome": outcome_text(one.outcome), "times": one.times, "answer": one.answer,
             "differences": list(one.differences)}
            for one in replayed.seen
        ],
        "broken_rules": [
            f"{broken.invariant.name}: {broken.message}" for broken in replayed.violations
        ],
    }  # fmt: skip


def _say_next(args: argparse.Namespace, threaded: ThreadedProgram, agrees: bool) -> None:
    """Say what to type next: for an outcome that is not allowed the program in C, if it can be."""
    from zaplock.oracle import thread_reproducer

    file = Path(args.replay)
    what = "--seconds 60"
    if not agrees:
        in_c = f"--c {shell_word(f'{file.stem}.c')}"
        further = "--seconds 600" if thread_reproducer.lacks(threaded) else in_c
        what = f"--replay {shell_word(str(file))} {further}"
    next_step(f"zaplock oracle --threads {what}", aside=args.json)


def _write_c(threaded: ThreadedProgram, why: str, source: Path, target: Path) -> int:
    from zaplock.oracle import thread_reproducer

    outputs.write(target, thread_reproducer.write(threaded, why, source.stem))
    wrote(target)
    program = shell_word(target.stem)
    command = f"cc -pthread -o {program} {shell_word(str(target))} && ./{program}"
    next_step(f"{command} | sort | uniq -c")
    return 0
