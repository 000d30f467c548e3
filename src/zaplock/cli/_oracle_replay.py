"""One saved sequence of `zaplock oracle`, step by step on both sides, or as a program in C."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from zaplock import outputs
from zaplock.cli._ending import next_step, wrote
from zaplock.cli._oracle_sides import bench_of, lent, scope_of, sides_text
from zaplock.cli._streams import while_read
from zaplock.errors import UserError
from zaplock.untrusted_names import shell_word

if TYPE_CHECKING:
    from zaplock.oracle.compare import Divergence
    from zaplock.oracle.ops import OracleStep

_NEEDS_THEME = {
    "ksm_scan": "ksm", "ksm_unmerge": "ksm", "ksm_zero_pages": "ksm", "ksm_most": "ksm",
    "fill_memory": "group", "fill_group": "group",
}  # fmt: skip
"""Operations that need what is lent to the sequences of a theme."""


def replay_saved(args: argparse.Namespace) -> int:
    """Run the sequence of --replay; 0 if both sides agree, 1 if not. With --c only write it."""
    from zaplock.oracle import compare, corpus, script
    from zaplock.oracle.bare_process import Lost
    from zaplock.oracle.modelops import lacks

    sequence, why = corpus.load(Path(args.replay))
    if args.c:
        return _write_c(Path(args.replay), Path(args.c))
    unknown = lacks(sequence)
    if unknown and not args.against_itself:
        raise UserError(
            f"{args.replay}: the model has no {', '.join(unknown)}: leave it out, or compare the "
            "kernel with itself (--against-itself)"
        )
    needed = {_NEEDS_THEME[op.name] for op in sequence if op.name in _NEEDS_THEME}
    needed |= corpus.themes_of(Path(args.replay)) | set(scope_of(args).themes if args.theme else ())
    with lent(() if args.kernel else needed), bench_of(args, needed) as bench:
        real: list[OracleStep] = []

        def run() -> Divergence | None:
            real[:], found = bench.compared(sequence)
            return found

        try:
            found, disturbed = bench.in_peace(sequence, run)
        except Lost as error:
            raise UserError(
                f"{args.replay}: {error}: make its ranges smaller, a sequence has 10 s"
            ) from None
    if disturbed:
        raise UserError(
            f"{args.replay} differs, but so may a machine at work ({disturbed} meanwhile): replay "
            "it with nobody beside"
        )
    saved = Path(args.save) / f"{Path(args.replay).stem}.py" if args.save and found else None
    if saved and found:
        outputs.write(saved, script.write(found), parents=True)
    with while_read():
        if why:
            print(f"kept because: {why}")
        for number, (op, step) in enumerate(zip(sequence, real, strict=True)):
            print(f"op{number} {op} = {compare.result_text(step.outcome.result)}")
        if found is None:
            print("both sides agree after every operation")
            next_step("zaplock oracle --seconds 60")
        else:
            print(f"they part after op{found.at}:", *found.differences, sep="\n  ")
            _say_next(args, saved)
    return 0 if found is None else 1


def _say_next(args: argparse.Namespace, saved: Path | None) -> None:
    """Say what to type next for a divergence: its script where it was saved, else how to save."""
    if saved:
        wrote(saved)
        next_step(f"python3 -I {shell_word(str(saved))}")
    else:
        which = f"{shell_word(args.replay)}{sides_text(args)}"
        next_step(f"zaplock oracle --replay {which} --save out/oracle")


def _write_c(source: Path, target: Path) -> int:
    """Write a sequence as a C program that shows the kernel's own accounting."""
    from zaplock.oracle import corpus, reproducer

    sequence, why = corpus.load(source)
    text = reproducer.write(sequence, why, source.stem)
    outputs.write(target, text)
    wrote(target)
    program = shell_word(target.stem)
    next_step(f"cc -o {program} {shell_word(str(target))} && ./{program}")
    return 0
