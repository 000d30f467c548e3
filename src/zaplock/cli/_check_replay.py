"""Replay a counterexample by its token, in the checking or in the timed engine."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from zaplock import outputs
from zaplock.cli._ending import next_step, wrote
from zaplock.cli._json_text import print_json
from zaplock.cli._streams import while_read

if TYPE_CHECKING:
    from zaplock.check.tokens import Token
    from zaplock.check.verdicts import Added


def replay(args: argparse.Namespace, added: Added) -> int:
    """Run the schedule of a token again, step by step or timed, and show it."""
    from zaplock.check.counterexample import tell
    from zaplock.check.tokens import read_token, replaying
    from zaplock.views.console import Screen
    from zaplock.views.counterexample import WIDTH, steps, text

    token = read_token(args.replay, args.design, args.scenario or "", added)
    again = replaying(args.replay, token.reference, token.scenario.name, added)
    does = ["; ".join(spec.do) for spec in token.scenario.task]
    story = tell(token.system(), token.schedule, does, token.groups, token.cycle)
    title = f"{token.scenario.name} under {token.design.name}, replayed"
    with while_read():
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
            print_json(told)
        else:
            print(text(story, title, min(WIDTH, Screen().width)))
        next_step(f"{again} --html story.html", aside=args.json)
    return exit_code_of(story.invariant)


def exit_code_of(invariant: str) -> int:
    """Return the exit code of a run that has broken an invariant, "" for none."""
    return {"": 0, "CODE_RUNS": 4}.get(invariant, 1)


def _replay_timed(args: argparse.Namespace, token: Token) -> int:
    from zaplock.check.timed_schedule import replay_timed

    lines, violation = replay_timed(token)
    with while_read():
        _print_timed(args, token, lines, violation)
    return 1 if violation else 0


def _print_timed(
    args: argparse.Namespace, token: Token, lines: Sequence[tuple[int, str, str]], violation: str
) -> None:
    if args.json:
        rows = [{"at_ns": at, "task": task, "step": step} for at, task, step in lines]
        print_json({"token": args.replay, "violation": violation or None, "steps": rows})
    else:
        for at, task, step in lines:
            print(f"{at:>12} ns  {task:<16} {step}")
        print(violation or "no rule is broken")
    next_step(f"zaplock compare --design {token.design.name.partition('/')[0]}", aside=args.json)
