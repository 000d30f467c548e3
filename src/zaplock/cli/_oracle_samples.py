"""What `zaplock oracle` compares beside outcomes: faults put in, lock sequences, Committed_AS."""

from __future__ import annotations

import argparse
import sys

from zaplock.cli._ending import next_step
from zaplock.cli._json_text import print_json
from zaplock.cli._oracle_sides import other_side, scope_of
from zaplock.cli._streams import while_read


def self_test(args: argparse.Namespace) -> int:
    """Put each fault into the model and see whether it is found within --seconds."""

    from zaplock.oracle import seeded_faults
    from zaplock.oracle.campaign import Bench

    bench = Bench(other_side(args), scope_of(args))
    of_themes = [
        one for theme in args.theme or () for one in seeded_faults.OF_THEMES.get(theme, ())
    ]
    rows = []
    try:
        for fault in of_themes or seeded_faults.FAULTS:
            found = seeded_faults.hunt(bench, fault, args.seed, args.seconds)
            told = found.signature or "NOT FOUND"
            text = (
                f"{fault.name:<22} {found.operations:>8,} operations {found.seconds:6.1f} s  {told}"
            )
            print(text, file=sys.stderr if args.json else sys.stdout, flush=True)
            rows.append((fault, found))
    finally:
        bench.close()
    missed = [fault.name for fault, found in rows if not found.signature]
    if args.json:
        document = [
            {"fault": fault.name, "rule": fault.rule, "operations": found.operations,
             "seconds": round(found.seconds, 2), "found_as": found.signature or None}
            for fault, found in rows
        ]  # fmt: skip
        print_json(document)
    else:
        print(f"{len(rows) - len(missed)} of {len(rows)} faults found", *missed, sep="\n  missed: ")
        next_step("zaplock oracle --seconds 60 --coverage")
    return 1 if missed else 0


def compare_samples(args: argparse.Namespace, flag: str) -> int:
    """Compare lock sequences, or Committed_AS, for so many seconds."""
    import time

    from zaplock.oracle import committed, lock_sequences
    from zaplock.oracle.campaign import slice_seed
    from zaplock.oracle.modelside import ModelSide
    from zaplock.oracle.real import RealSide

    scope, real = scope_of(args), RealSide()
    model = ModelSide(real.environment)
    operations = lock_operations = number = 0
    differing: list[lock_sequences.Difference] = []
    deadline = time.monotonic() + args.seconds
    try:
        while time.monotonic() < deadline:
            seed = slice_seed(args.seed, number)
            number += 1
            if flag == "locks":
                found = lock_sequences.sample(real, model, seed, scope)
                lock_operations += found.lock_operations
                operations += found.operations
                differing += found.differences
            else:
                charges = committed.sample(real, model, seed, scope)
                operations += charges.operations
                differing += charges.differences
    finally:
        real.close()
    told = [f"{d.sequence[d.at]}: kernel {d.kernel}, model {d.model}" for d in differing]
    what = f"{lock_operations:,} lock operations" if flag == "locks" else "Committed_AS"
    counts = {"operations": operations, "lock_operations": lock_operations}
    with while_read():
        if args.json:
            print_json({**counts, "differing": told})
        else:
            print(*told[:10], sep="\n", end="\n" if told else "")
            print(f"{what} of {operations:,} operations compared, {len(told)} sequences differ")
        next_step(f"zaplock oracle --{flag} --seed {args.seed + 1}", aside=args.json)
    return 1 if told else 0
