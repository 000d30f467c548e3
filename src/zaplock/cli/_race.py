"""`zaplock measure --race`: how often a real kernel loses a race, and what check says of it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from zaplock.cli._ending import next_step
from zaplock.cli._json_text import print_json
from zaplock.cli._streams import while_read
from zaplock.errors import UserError
from zaplock.units import duration, parse_duration, parse_size

if TYPE_CHECKING:
    from zaplock.check.protection import Prediction, Protection
    from zaplock.check.verdicts import CheckResult
    from zaplock.measure.guest.race import RacePlan, RaceRun
    from zaplock.protocols.design import Design

_TRIES = 1000
_FOR_RACES = ("race", "tries", "kernel", "size", "guest_cpus", "timeout", "json")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of a race."""
    add = parser.add_argument_group("a race of two threads").add_argument
    add("--race", metavar="NAME", help="drive one and say how often it is lost: expand, ceiling, "
        "lost-update, missed-flush; with --kernel host, debian:6.1 or PATH[=DESIGN]")  # fmt: skip
    add("--tries", type=int, metavar="N", help=f"how often to try ({_TRIES})")


def run(args: argparse.Namespace) -> int:
    """Race and tell; 1 where check has proved that it can't be lost, and it was."""
    from zaplock.cli._busy import busy
    from zaplock.designs.linux import StandIn, design_of
    from zaplock.measure.guest import race

    plan, told = _plan(args)
    with busy(f"{plan.kernel}: getting ready") as say:
        done = race.run(plan, progress=lambda phase: say(f"{plan.kernel}: {phase}"))
        say("checking")
        stand_in = StandIn(told) if told else design_of(done.release)
        predicted = _predicted(plan.race, stand_in.design)
    with while_read():
        if args.json:
            print_json({**done.to_json(), "predicted": _plain(predicted)})
        else:
            print("\n".join(_sentences(done, predicted, stand_in.note)))
        next_step(f"zaplock check {plan.race} --design {stand_in.design.name}", aside=args.json)
    return int(bool(done.lost) and predicted.result.verdict == "proved")


def refuse_without_race(args: argparse.Namespace) -> None:
    """Raise UserError where an option of a race is given and no race."""
    if args.tries is not None:
        raise UserError("--tries is for a race: name it, such as --race expand")


def _plan(args: argparse.Namespace) -> tuple[RacePlan, Design | None]:
    from zaplock.cli._designs import judged
    from zaplock.measure.guest import race

    _refuse_others(args)
    if not args.kernel:
        raise UserError("--race: name the kernel, such as --kernel debian:6.1 or --kernel host")
    kernel, design = judged(args.kernel)
    plan = race.RacePlan(
        args.race,
        kernel,
        tries=_TRIES if args.tries is None else args.tries,
        length=parse_size(args.size) if args.size else race.LENGTH,
        nr_cpus=2 if args.guest_cpus is None else args.guest_cpus,
        timeout_s=parse_duration(args.timeout) / 1e9,
    )
    plan.check()
    return plan, design


def _refuse_others(args: argparse.Namespace) -> None:
    """Raise UserError where an option is given that a race would not heed."""
    from zaplock.cli import measure

    parser = argparse.ArgumentParser()
    measure.configure(parser)
    for name, usual in vars(parser.parse_args([])).items():
        if name not in _FOR_RACES and getattr(args, name) != usual:
            raise UserError(f"--{name.replace('_', '-')} is not for --race: leave it out")


def _predicted(name: str, design: Design) -> Prediction:
    from zaplock.check import protection
    from zaplock.check.verdicts import find_scenario

    return protection.predict(find_scenario(name), design)


def _sentences(done: RaceRun, predicted: Prediction, note: str) -> list[str]:
    from zaplock.measure.guest.race import RACES

    plan, result = done.plan, predicted.result
    complaints = done.complaints
    said = [
        f"{plan.race} on {plan.kernel}, Linux {done.release}: {RACES[plan.race]}.",
        f"lost in {done.lost:,} of {plan.tries:,} tries. The call took {duration(done.call_ns)}, "
        f"and the second thread saw the range gone {_when(done.seen_share)} (medians)."
        + (f" {done.refused:,} accesses were refused by a signal." if done.refused else ""),
    ]
    if complaints is None:
        said.append("the kernel's log can't be read here: what it says of it is not known.")
    else:
        said += [f"the kernel says: {text}" for text in dict.fromkeys(complaints)]
        said += [] if complaints else ["the kernel's log says nothing of it."]
    said.append(
        f"check, {result.design}: {result.verdict} ({result.states:,} states)" + _how(result)
    )
    said += [_why(one) for one in predicted.protections]
    said.append(_together(done, predicted))
    return [*said, f"({note})"] if note else said


def _when(share: float) -> str:
    return f"after {share:.0%} of it" if share < 0.95 else "at its end"


def _how(result: CheckResult) -> str:
    if result.violation is None:
        return "."
    return f": {result.violation.message}, in {len(result.schedule or ())} steps."


def _why(one: Protection) -> str:
    rules, steps = " and ".join(one.rules), len(one.broken.schedule or ())
    changes = ", ".join(
        f"{change.since} {change.commit or change.subject}" for change in one.changes
    )
    since = f" ({changes})" if changes else ""
    return (
        f"with {rules}{since} as in {one.release}, check breaks it in {steps} steps: "
        f"{'that keeps' if len(one.rules) == 1 else 'these keep'} this kernel from it."
    )


def _together(done: RaceRun, predicted: Prediction) -> str:
    if predicted.result.verdict == "proved":
        if done.lost:
            return "DIFFER: check has proved that it can't be lost."
        return "as predicted: it can't be lost."
    if done.lost:
        return "as predicted: it can be lost."
    return "not seen here, though it can be lost: more --tries, or a larger SIZE."


def _plain(predicted: Prediction) -> dict[str, object]:
    result = predicted.result
    return {
        "design": result.design,
        "verdict": result.verdict,
        "states": result.states,
        "violation": result.violation.message if result.violation else None,
        "steps": len(result.schedule) if result.schedule is not None else None,
        "protections": [
            {
                "rules": list(one.rules),
                "as_in": one.release,
                "changes": [change.to_json() for change in one.changes],
                "steps": len(one.broken.schedule or ()),
            }
            for one in predicted.protections
        ],
    }
