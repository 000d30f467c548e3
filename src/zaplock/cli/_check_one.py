"""Check one scenario: the verdict under each design, with its easiest counterexample."""

from __future__ import annotations

import argparse
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zaplock import outputs
from zaplock.cli._ending import next_step, wrote
from zaplock.cli._json_text import print_json
from zaplock.cli._streams import while_read

if TYPE_CHECKING:
    from zaplock.check.counterexample import Story
    from zaplock.check.scenarios import Scenario
    from zaplock.check.verdicts import Added, CheckResult, SearchElsewhere
    from zaplock.executors import Cluster
    from zaplock.protocols.design import Design


def one_scenario(args: argparse.Namespace, added: Added) -> int:
    """Check a scenario under each design that was named, and show the verdicts."""
    from zaplock.check.tokens import replaying
    from zaplock.check.verdicts import EXIT_CODES, find_design, find_scenario
    from zaplock.designs import SHIPPED

    scenario = find_scenario(args.scenario, added, args.memory)
    names = args.design or list(SHIPPED)
    designs = [find_design(name) for name in names]

    def searching(name: str, cluster: Cluster | None) -> SearchElsewhere | None:
        if cluster is None:
            return None
        from zaplock.check.on_cluster import Asked, split_over

        return split_over(cluster, Asked(args.scenario, name, added, args.memory, _disk(args)))

    with _cluster(args) as cluster:
        found = [
            replace(_one(args, scenario, design, searching(name, cluster)), reference=name)
            for name, design in zip(names, designs)
        ]
    stories = [_story(scenario, design, one) for design, one in zip(designs, found)]
    again = [replaying(one.token, one.reference, args.scenario, added) for one in found]
    with while_read():
        _write_html(args, found, stories, again)
        if args.json:
            objects = [_as_json(one, story) for one, story in zip(found, stories)]
            print_json(objects[0] if len(objects) == 1 else objects)
        else:
            _print_verdicts(scenario, found, stories, sampled=args.sample is not None)
        next_step(
            next((a for a, one in zip(again, found) if one.token), "zaplock check --all"),
            aside=args.json,
        )
    verdicts = {one.verdict for one in found}
    return 1 if "broken" in verdicts else max(EXIT_CODES[verdict] for verdict in verdicts)


def _one(
    args: argparse.Namespace, scenario: Scenario, design: Design, elsewhere: SearchElsewhere | None
) -> CheckResult:
    from zaplock.check.verdicts import check, sample_check
    from zaplock.cli._progress import counter
    from zaplock.engines.checking.exhaustive import SearchLimits

    limits = SearchLimits(args.max_states, args.max_seconds, args.max_memory << 20)
    with counter(f"{scenario.name} under {design.name}") as show:
        if args.sample is not None:
            return sample_check(
                scenario, design, args.sample, seed=args.seed or 0, depth=args.pct,
                fair=args.queue == "fair",
                limits=limits, progress=lambda runs, s: show(f"{runs} runs, {s:.0f} s"),
            )  # fmt: skip
        return check(
            scenario, design, limits, queue=args.queue, jobs=args.jobs, exact=args.exact,
            disk=_disk(args), unreached=args.unreached, elsewhere=elsewhere,
            progress=lambda p: show(
                f"{p.states} states, {p.states / max(p.seconds, 1e-3):.0f}/s, "
                f"frontier {p.frontier}, depth {p.depth}"
            ),
        )  # fmt: skip


def _disk(args: argparse.Namespace) -> Path | None:
    return Path(args.disk) if args.disk else None


def _cluster(args: argparse.Namespace) -> AbstractContextManager[Cluster | None]:
    """Give the cluster that was asked for; None where this machine searches."""
    if not args.cluster:
        return nullcontext()
    from zaplock.executors import cluster_at

    return cluster_at(args.cluster, args.jobs)


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
    from zaplock.views.console import Screen
    from zaplock.views.counterexample import WIDTH, text
    from zaplock.views.grid import Grid, figure, words

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
