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
import json
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zaplock import outputs
from zaplock.cli._designs import design_names
from zaplock.cli._ending import next_step, wrote
from zaplock.errors import UserError

if TYPE_CHECKING:
    from concurrent.futures import ProcessPoolExecutor

    from zaplock.check.counterexample import Story
    from zaplock.check.matrix import Cell, Killed
    from zaplock.check.scenarios import Scenario
    from zaplock.check.verdicts import Added, CheckResult
    from zaplock.protocols.design import Design


def configure(parser: argparse.ArgumentParser) -> None:
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
    parser.add_argument("--list", action="store_true", help="list scenarios and operations")
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
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="use N processes")
    parser.add_argument("--sample", type=int, metavar="RUNS", help="try random runs instead")
    parser.add_argument("--pct", type=int, metavar="DEPTH", help="with --sample: PCT of this depth")
    parser.add_argument("--seed", type=int, default=0, help="with --sample (default 0)")
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
    _check_arguments(args)
    if args.list:
        return _list(args.json)
    if args.explore:
        from zaplock.cli._explore import explore

        return explore(args, _added(args))
    if args.replay:
        return _replay(args)
    if args.mutations:
        return _mutations(args)
    if args.all:
        return _matrix(args)
    return _check(args)


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
            raise UserError(f"{name} {value} is not above 0")
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
    if args.disk and (args.exact or args.jobs > 1 or args.sample):
        raise UserError("--disk is for one process: leave --jobs, --exact and --sample out")
    if args.disk and not Path(args.disk).is_dir():
        raise UserError(f"--disk {args.disk!a} is no directory: make it, or name another")
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
    if args.timed and not args.replay:
        raise UserError("--timed needs --replay TOKEN: check first, then replay what it prints")


def _added(args: argparse.Namespace) -> Added:
    from zaplock.check.verdicts import Added

    return Added(tuple(args.operation), tuple(args.invariant), args.failing_allocations)


def _next(args: argparse.Namespace, command: str) -> None:
    next_step(command, aside=args.json)


def _list(as_json: bool) -> int:
    from zaplock.check.operations import KINDS
    from zaplock.check.pairs import SIDES
    from zaplock.check.scenarios import litmus_tests, shipped_scenarios

    litmus = {name: one.summary for name, one in litmus_tests().items()}
    scenarios = {name: one.summary for name, one in shipped_scenarios().items()}
    operations = {
        " ".join([name, *(argument.upper() for argument in kind.arguments)]): kind.summary
        for name, kind in KINDS.items()
    }
    if as_json:
        print(
            json.dumps(
                {
                    "scenarios": scenarios,
                    "litmus": litmus,
                    "pairs": list(SIDES),
                    "operations": operations,
                }
            )
        )
    else:
        from zaplock.views.grid import Grid, words
        from zaplock.views.screen import Screen

        console = Screen()
        for kind, told in (
            ("scenario", scenarios),
            ("litmus test of memory (--memory)", litmus),
            ("operation of a .toml scenario", operations),
        ):
            console.print(Grid((words(kind), words("what happens in it")), list(told.items())))
            print()
        print(f"pairs, such as munmap+fault, of: {', '.join(SIDES)}")
    next_step("zaplock check expand", aside=as_json)
    return 0


# One scenario


def _check(args: argparse.Namespace) -> int:
    from zaplock.check.tokens import replaying
    from zaplock.check.verdicts import EXIT_CODES, find_design, find_scenario
    from zaplock.designs import SHIPPED

    scenario = find_scenario(args.scenario, _added(args), args.memory)
    names = args.design or list(SHIPPED)
    designs = [find_design(name) for name in names]
    found = [
        replace(_one(args, scenario, design), reference=name)
        for name, design in zip(names, designs)
    ]
    stories = [_story(scenario, design, one) for design, one in zip(designs, found)]
    again = [replaying(one.token, one.reference, args.scenario, _added(args)) for one in found]
    _write_html(args, found, stories, again)
    if args.json:
        objects = [_as_json(one, story) for one, story in zip(found, stories)]
        print(json.dumps(objects[0] if len(objects) == 1 else objects, indent=2))
    else:
        _print_verdicts(scenario, found, stories, sampled=args.sample is not None)
    _next(args, next((a for a, one in zip(again, found) if one.token), "zaplock check --all"))
    verdicts = {one.verdict for one in found}
    return 1 if "broken" in verdicts else max(EXIT_CODES[verdict] for verdict in verdicts)


def _one(args: argparse.Namespace, scenario: Scenario, design: Design) -> CheckResult:
    from zaplock.check.verdicts import check, sample_check
    from zaplock.cli._progress import counter
    from zaplock.engines.checking.exhaustive import SearchLimits

    limits = SearchLimits(args.max_states, args.max_seconds, args.max_memory << 20)
    with counter(f"{scenario.name} under {design.name}") as show:
        if args.sample is not None:
            return sample_check(
                scenario, design, args.sample, seed=args.seed, depth=args.pct,
                fair=args.queue == "fair",
                limits=limits, progress=lambda runs, s: show(f"{runs} runs, {s:.0f} s"),
            )  # fmt: skip
        return check(
            scenario, design, limits, queue=args.queue, jobs=args.jobs, exact=args.exact,
            disk=Path(args.disk) if args.disk else None, unreached=args.unreached,
            progress=lambda p: show(
                f"{p.states} states, {p.states / max(p.seconds, 1e-3):.0f}/s, "
                f"frontier {p.frontier}, depth {p.depth}"
            ),
        )  # fmt: skip


def _story(scenario: Scenario, design: Design, found: CheckResult) -> Story | None:
    from zaplock.check.counterexample import tell
    from zaplock.check.verdicts import closed_system

    if found.schedule is None:
        return None
    system = closed_system(scenario, design, found.fair)
    does = ["; ".join(spec.do) for spec in scenario.task]
    return tell(system, found.schedule, does, found.groups, found.cycle)


def _as_json(found: CheckResult, story: Story | None) -> dict[str, Any]:
    from zaplock.views.counterexample import steps

    return {
        "scenario": found.scenario,
        "design": found.design,
        "verdict": found.verdict,
        "invariant": found.violation.invariant.name if found.violation else None,
        "message": found.violation.message if found.violation else None,
        "invariants": list(found.invariants),
        "queues": list(found.queues),
        "queue": "fair" if found.fair else "any",
        "memory": found.memory,
        "failing_allocations": found.failing,
        "unmet": list(found.unmet),
        "never_run": list(found.never_run),
        "audit": {
            "positions": found.audit.positions,
            "steps": found.audit.steps,
            "seconds": round(found.audit.seconds, 6),
            "whole": found.audit.whole,
        },
        "states": found.states,
        "seconds": round(found.seconds, 6),
        "why": found.why,
        "preemptions": found.preemptions,
        "token": found.token or None,
        "steps": steps(story) if story else [],
    }


def _print_verdicts(
    scenario: Scenario,
    found: list[CheckResult],
    stories: list[Story | None],
    *,
    sampled: bool,
) -> None:
    from zaplock.views.counterexample import WIDTH, text
    from zaplock.views.grid import Grid, figure, words
    from zaplock.views.screen import Screen

    columns = (
        words("design"),
        words("verdict"),
        figure("runs" if sampled else "states"),
        figure("time", rank=1),
        words("broken rules"),
    )
    memory = "" if scenario.memory == "sc" else f" (memory: {scenario.memory})"
    times = scenario.failing_allocations
    shortage = f" (failing allocations: up to {times})" if times else ""
    print(f"{scenario.name}: {scenario.summary}{memory}{shortage}\n")
    console = Screen()
    width = min(WIDTH, console.width)
    console.print(Grid(columns, [_verdict(one) for one in found]))
    for line in _notes(found):
        print(line)
    told: dict[tuple[Any, ...], str] = {}
    for one, story in zip(found, stories):
        if story is None:
            continue
        key = (story.rows, story.message)
        if key in told:
            print(f"\n{one.design} breaks in the same way as {told[key]}\n\ntoken: {one.token}")
            continue
        told[key] = one.design
        length = len(one.groups or one.schedule or ())
        title = (
            f"the easiest counterexample under {one.design}: {length} steps, "
            f"{one.preemptions} preemption{'s' if one.preemptions != 1 else ''}"
        )
        print(f"\n{text(story, title, width)}\n\ntoken: {one.token}")


def _verdict(one: CheckResult) -> tuple[str, ...]:
    return one.design, one.verdict, f"{one.states:,}", f"{one.seconds:.3f} s", _what(one)


def _what(one: CheckResult) -> str:
    """Name the rules that were broken and in which queue, or why there is no verdict."""
    if one.violation is None:
        return one.why
    queue = "" if one.fair not in (True,) or "any" not in one.queues else " (fair queue)"
    unexplained = "" if one.schedule is not None else f": {one.violation.message}"
    return ", ".join(one.invariants) + queue + unexplained


def _notes(found: list[CheckResult]) -> list[str]:
    """Tell what "proved" leaves open, and what the audits were."""
    lines = []
    for title, field in (
        ("expected, and never seen", "unmet"),
        ("lines that no interleaving ran", "never_run"),
    ):
        by_what: dict[tuple[str, ...], list[str]] = {}
        for one in found:
            if getattr(one, field):
                by_what.setdefault(getattr(one, field), []).append(one.design)
        for what, designs in by_what.items():
            lines.append(f"  {title} under {', '.join(designs)}: {'; '.join(what)}")
    audit = sum((one.audit for one in found[1:]), start=found[0].audit)
    if audit.positions or audit.steps:
        seconds = sum(one.seconds for one in found)
        share = 100 * audit.seconds / max(seconds, 1e-9)
        lines.append(
            f"  audited: {audit.positions} positions and {audit.steps} steps again, "
            f"{'all' if audit.whole else 'a sample'}, {share:.0f} % of the time"
        )
    return ["", *lines] if lines else []


def _write_html(
    args: argparse.Namespace,
    found: list[CheckResult],
    stories: list[Story | None],
    again: list[str],
) -> None:
    if not args.html:
        return
    from zaplock.views.counterexample_html import page

    broken = [(one, story, a) for one, story, a in zip(found, stories, again) if story is not None]
    if not broken:
        print("nothing is broken, so there is nothing to draw", file=sys.stderr)
        return
    one, story, command = broken[0]
    outputs.write(args.html, page(story, f"{one.scenario} under {one.design}", command))
    wrote(args.html, aside=args.json)


# A replay


def _replay(args: argparse.Namespace) -> int:
    from zaplock.check.counterexample import tell
    from zaplock.check.tokens import read_token, replaying
    from zaplock.views.counterexample import WIDTH, steps, text
    from zaplock.views.screen import Screen

    token = read_token(args.replay, args.design, args.scenario or "", _added(args))
    again = replaying(args.replay, token.reference, token.scenario.name, _added(args))
    does = ["; ".join(spec.do) for spec in token.scenario.task]
    story = tell(token.system(), token.schedule, does, token.groups, token.cycle)
    title = f"{token.scenario.name} under {token.design.name}, replayed"
    if args.html:
        from zaplock.views.counterexample_html import page

        outputs.write(args.html, page(story, title, again))
        wrote(args.html, aside=args.json)
    if args.timed:
        return _replay_timed(args, token)
    if args.json:
        told = {
            "token": args.replay,
            "invariant": story.invariant or None,
            "message": story.message or None,
            "steps": steps(story),
        }
        print(json.dumps(told, indent=2))
    else:
        print(text(story, title, min(WIDTH, Screen().width)))
    _next(args, f"{again} --html story.html")
    return exit_code_of(story.invariant)


def exit_code_of(invariant: str) -> int:
    """Return the exit code of a run that has broken an invariant, "" for none."""
    return {"": 0, "CODE_RUNS": 4}.get(invariant, 1)


def _replay_timed(args: argparse.Namespace, token: Any) -> int:
    from zaplock.check.timed_schedule import replay_timed

    lines, violation = replay_timed(token)
    if args.json:
        rows = [{"at_ns": at, "task": task, "step": step} for at, task, step in lines]
        print(json.dumps({"token": args.replay, "violation": violation or None, "steps": rows}))
    else:
        for at, task, step in lines:
            print(f"{at:>12} ns  {task:<16} {step}")
        print(violation or "no rule is broken")
    _next(args, f"zaplock compare --design {token.design.name.partition('/')[0]}")
    return 1 if violation else 0


# All of them


def _matrix(args: argparse.Namespace) -> int:
    from zaplock.check.matrix import matrix, unexpected
    from zaplock.check.verdicts import EXIT_CODES, find_design
    from zaplock.cli._progress import counter
    from zaplock.designs import SHIPPED
    from zaplock.designs.linux import releases_that_differ
    from zaplock.engines.checking.exhaustive import SearchLimits

    releases = [design.name for design in releases_that_differ()] if args.releases else []
    designs = args.design or releases or list(SHIPPED)
    for name in designs:
        find_design(name)
    limits = SearchLimits(args.max_states, args.max_seconds, args.max_memory << 20)
    with counter("check --all") as show, _executor(args.jobs) as executor:
        cells = matrix(
            executor, designs=designs, queue=args.queue, limits=limits, added=_added(args),
            progress=lambda done, total: show(f"{done} of {total} scenarios", done / total),
        )  # fmt: skip
    if args.json:
        print(json.dumps([_cell_json(cell) for cell in cells], indent=1))
    else:
        _print_matrix(cells, designs)
    strange = unexpected(cells)
    one = (strange or cells)[0]
    design = ["--design", one.design] if args.design else []
    _next(args, shlex.join(["zaplock", "check", one.scenario, *design]))
    verdicts = {cell.verdict for cell in strange}
    if "broken" in verdicts:
        return 1
    return max(3, *(EXIT_CODES[one] for one in verdicts)) if strange else 0


@contextmanager
def _executor(jobs: int) -> Iterator[ProcessPoolExecutor | None]:
    """Lend so many processes, which end with the block or with this process, however that ends."""
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor as Pool

    from zaplock.engines.checking.children import die_with

    if jobs == 1:
        yield None
        return
    context = multiprocessing.get_context("fork")
    with Pool(jobs, context, die_with, (os.getpid(),)) as executor:
        try:
            yield executor
        except BaseException:
            for worker in multiprocessing.active_children():
                worker.kill()  # what it is at could take minutes
            raise


def _cell_json(cell: Cell) -> dict[str, Any]:
    return {
        "scenario": cell.scenario, "design": cell.design, "verdict": cell.verdict,
        "invariants": list(cell.invariants), "states": cell.states,
        "seconds": round(cell.seconds, 6), "why": cell.why, "known_bug": cell.known or None,
        "agrees_with_history": cell.agrees, "shared": cell.shared,
    }  # fmt: skip


def _print_matrix(cells: list[Cell], designs: list[str]) -> None:
    from zaplock.views.matrix import MOST_COLUMNS, history, summary, table
    from zaplock.views.screen import Screen

    drawn = table if len(designs) <= MOST_COLUMNS else history
    console = Screen()
    print(*summary(cells), "", sep="\n")
    console.print(drawn(cells, designs))


def _mutations(args: argparse.Namespace) -> int:
    from zaplock.check.matrix import mutation_score
    from zaplock.cli._progress import counter

    with counter("check --mutations") as show, _executor(args.jobs) as executor:
        found = mutation_score(
            executor,
            args.design,
            lambda done, total: show(f"{done} of {total} mutants", done / total),
        )
    if args.json:
        print(json.dumps([_killed_json(one) for one in found], indent=1))
    else:
        from zaplock.views.matrix import mutation_summary, mutation_table
        from zaplock.views.screen import Screen

        print(f"{mutation_summary(found)}\n")
        Screen().print(mutation_table(found))
    wrong = [one for one in found if not one.is_right]
    _next(args, "zaplock check munmap-fault-gup --design linux-6.18/no-detached-recheck")
    return 1 if wrong else 0


def _killed_json(one: Killed) -> dict[str, Any]:
    return {
        "design": one.design, "mutation": one.mutation, "summary": one.summary,
        "scenario": one.scenario or None, "invariant": one.invariant or None,
        "equivalent": one.equivalent or None,
    }  # fmt: skip
