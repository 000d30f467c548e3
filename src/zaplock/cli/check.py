"""Prove a locking protocol for a scenario, or show the interleaving that breaks it.

SCENARIO is one that zaplock ships (--list), a pair of operations such as munmap+fault, a .toml
file, or FILE.py:NAME for one of your own, as operations, invariants and mutations can be
(docs/authors.md). Every interleaving of its tasks is explored, with the design's own protocols and
locks, and every rule is watched in every state, once with any waiter next to a lock and once with
the fair queue of the design's kernel. Memory is sequentially consistent, but for the words of
scenarios that say otherwise (--memory).

Exit code: 0 proved, 1 broken, 3 not exhausted or vacuous, 2 bad input, 4 the code of a design or
operation fails, or keeps state where no checker can see it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from zaplock.cli._designs import design_names
from zaplock.cli._ending import next_step
from zaplock.cli._json_text import print_json
from zaplock.cli._output_files import require_files
from zaplock.errors import UserError


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `zaplock check`."""
    parser.add_argument(
        "scenario", nargs="?", help="a scenario, a pair of operations, a .toml, or FILE.py:NAME"
    )
    parser.add_argument("--design", action="append", default=[], metavar="NAME",
                        help="designs by comma, FILE.py:NAME, DESIGN/MUTATION, or a group of "
                        "zaplock designs; again for more (default: all shipped ones)")  # fmt: skip
    for kind in ("operation", "invariant"):
        parser.add_argument(
            f"--{kind}", action="append", default=[], metavar="FILE.py:NAME",
            help=f"add an {kind} of your own to the scenario; again for more",
        )  # fmt: skip
    parser.add_argument(
        "--explore", action="store_true",
        help="go through the states by hand: choose who moves, see locks and changes, go back; "
        "with --replay TOKEN from where that ends",
    )  # fmt: skip
    parser.add_argument(
        "--list",
        action="store_true",
        help="list scenarios, operations, invariants and mutations",
    )
    parser.add_argument("--all", action="store_true", help="every scenario under every design")
    parser.add_argument("--releases", action="store_true",
                        help="with --all: under every Linux release that differs from the one "
                        "before it, backports included")  # fmt: skip
    parser.add_argument("--mutations", action="store_true", help="try every mutant of every design")
    parser.add_argument("--queue", choices=("both", "any", "fair"), default="both",
                        help="who may be next to a lock: any waiter, whom the fair queue of the "
                        "design's kernel lets in, or both rules (default)")  # fmt: skip
    parser.add_argument(
        "--failing-allocations",
        type=int,
        metavar="N",
        nargs="?",
        const=1,
        help="any N allocations may fail (1 where no number is given)",
    )
    parser.add_argument("--memory", choices=("sc", "tso", "relaxed"),
                        help="what stands between a CPU and the words that a SCENARIO's tasks "
                        "reach without a lock: nothing, x86's store buffers, or what lets reads "
                        "be early and writes late (default: as the scenario says)")  # fmt: skip
    parser.add_argument(
        "--replay", metavar="TOKEN", help="run a counterexample again, step by step"
    )
    parser.add_argument("--timed", action="store_true",
                        help="with --replay: the same schedule in the timed engine")  # fmt: skip
    parser.add_argument("--html", metavar="FILE", help="draw the counterexample as a page")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="use N cores")
    parser.add_argument("--cluster", default="", metavar="ADDRESS",
                        help="work on the cluster of this Dask scheduler")  # fmt: skip
    parser.add_argument("--sample", type=int, metavar="RUNS", help="try random runs instead")
    parser.add_argument("--pct", type=int, metavar="DEPTH", help="with --sample: PCT of this depth")
    parser.add_argument("--seed", type=int, help="with --sample (default 0)")
    parser.add_argument("--exact", action="store_true", help="store whole states: slow, for trust")
    parser.add_argument(
        "--unreached",
        action="store_true",
        help="list the lines of zaplock's protocols that no interleaving runs, too",
    )
    parser.add_argument(
        "--disk", metavar="DIR", help="keep states in DIR that don't fit into memory"
    )
    parser.add_argument("--max-states", type=int, default=20_000_000, metavar="N")
    parser.add_argument("--max-seconds", type=float, default=600.0, metavar="S")
    parser.add_argument("--max-memory", type=int, default=6144, metavar="MIB")


def run(args: argparse.Namespace) -> int:
    """Do what was asked for: check, replay, explore or list."""
    from zaplock.check.verdicts import Added
    from zaplock.cli._check_all import every_mutant, every_scenario
    from zaplock.cli._check_one import one_scenario
    from zaplock.cli._check_replay import replay
    from zaplock.cli._explore import explore

    _check_arguments(args)
    if args.list:
        return _list(args.json)
    if args.mutations:
        return every_mutant(args)
    added = Added(tuple(args.operation), tuple(args.invariant), args.failing_allocations)
    if args.explore:
        return explore(args, added)
    if args.replay:
        return replay(args, added)
    if args.all:
        return every_scenario(args, added)
    return one_scenario(args, added)


def _check_arguments(args: argparse.Namespace) -> None:
    from zaplock.check.scenarios import MOST_FAILING

    one = bool(args.scenario or args.replay)  # a token's scenario may be given, too
    chosen = [one, args.all, args.mutations, args.list]
    if sum(chosen) != 1:
        raise UserError("give one of: a SCENARIO, --all, --mutations, --replay TOKEN, --list")
    positive = {"--jobs": args.jobs, "--max-states": args.max_states, "--sample": args.sample,
                "--pct": args.pct, "--max-seconds": args.max_seconds,
                "--max-memory": args.max_memory}  # fmt: skip
    for name, value in positive.items():
        if value is not None and value <= 0:
            raise UserError(f"{name} {value} is not above 0: give a larger number")
    for name, value, most in (("--jobs", args.jobs, 256), ("--pct", args.pct, 1000)):
        if value is not None and value > most:
            raise UserError(f"{name} {value} is above {most}: give a smaller number")
    if args.failing_allocations is not None and not 0 <= args.failing_allocations <= MOST_FAILING:
        raise UserError(
            f"--failing-allocations {args.failing_allocations} must lie between 0 and "
            f"{MOST_FAILING}"
        )
    if args.mutations and args.failing_allocations is not None:
        raise UserError("--failing-allocations is for a SCENARIO or --all, not for --mutations")
    if args.exact and (args.disk or args.jobs > 1 or args.cluster):
        raise UserError("--exact is for one process: leave --jobs, --cluster and --disk out")
    if args.sample and (args.disk or args.cluster):
        raise UserError("--sample keeps no states: leave --cluster and --disk out")
    if args.cluster and args.unreached:
        raise UserError("--unreached looks at this process's lines: leave --cluster out")
    if args.disk and not args.cluster and not Path(args.disk).is_dir():
        raise UserError(f"--disk {args.disk!a} is no directory: make it, or name another")
    if args.seed is not None and args.sample is None:
        raise UserError(f"--seed {args.seed} needs --sample RUNS: nothing else is drawn at random")
    if args.pct is not None and args.sample is None:
        raise UserError("--pct needs --sample RUNS: it is a way to draw random runs")
    one_only = {
        "--memory": args.memory,
        "--sample": args.sample,
        "--exact": args.exact,
        "--disk": args.disk,
        "--unreached": args.unreached,
        "--html": args.html,
    }
    if args.all or args.mutations:
        for name, value in one_only.items():
            if value:
                raise UserError(f"{name} is for one SCENARIO, not for --all or --mutations")
    if (args.all or args.mutations) and (args.operation or args.explore):
        raise UserError("--operation and --explore are for one SCENARIO")
    if args.mutations and args.invariant:
        raise UserError("--invariant is for a SCENARIO or --all, not for --mutations")
    args.design = design_names(args.design)
    if args.explore and len(args.design) > 1:
        raise UserError("--explore goes through one design: give --design once")
    if args.releases and (not args.all or args.design):
        raise UserError("--releases goes with --all, and instead of --design")
    require_files({"--html": args.html})
    if args.timed and not args.replay:
        raise UserError("--timed needs --replay TOKEN: check first, then replay what it prints")


def _list(as_json: bool) -> int:
    from zaplock.check.operations import KINDS
    from zaplock.check.own_operations import INVARIANTS
    from zaplock.check.pairs import SIDES
    from zaplock.check.scenarios import litmus_tests, shipped_scenarios
    from zaplock.check.shipped_mutations import MUTATIONS

    litmus = {name: one.summary for name, one in litmus_tests().items()}
    scenarios = {name: one.summary for name, one in shipped_scenarios().items()}
    operations = {
        " ".join([name, *(argument.upper() for argument in kind.arguments)]): kind.summary
        for name, kind in KINDS.items()
    }
    mutations = {one.name: one.summary for one in MUTATIONS}
    if as_json:
        document = {"scenarios": scenarios, "litmus": litmus, "pairs": list(SIDES)}
        print_json(
            {**document, "operations": operations, "invariants": INVARIANTS, "mutations": mutations}
        )
    else:
        from zaplock.views.console import Screen
        from zaplock.views.grid import Grid, words

        console = Screen()
        happens = "what happens in it"
        for kind, says, told in (
            ("scenario", happens, scenarios),
            ("litmus test of memory (--memory)", happens, litmus),
            ("operation of a .toml scenario", happens, operations),
            ("invariant", "what has to be so", INVARIANTS),
            ("mutation (--design NAME/MUTATION)", "what is done wrong", mutations),
        ):
            console.print(Grid((words(kind), words(says)), list(told.items())))
            print()
        print(f"pairs, such as munmap+fault, of: {', '.join(SIDES)}")
    next_step("zaplock check expand", aside=as_json)
    return 0
