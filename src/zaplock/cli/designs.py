"""List the designs, show what one decides, or what changed between two.

  zaplock designs                       all that have a name, by groups
  zaplock designs rfc-v6                one design against the one it stands on or came after
  zaplock designs 5.15 6.6              the changes of Linux between two releases: release, commit,
                                        subject, what it did, which rules it set
  zaplock designs linux-6.18 mine.py:M  any two designs: the changes between, and the rules in which
                                        they differ

A name is a shipped design, a release (5.15, 6.6.30, 6.6.y with every backport of its series), or
FILE.py:NAME for your own.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from zaplock.errors import UserError

if TYPE_CHECKING:
    from zaplock.designs import Change, Design


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="*", metavar="NAME", help="none, one design, or two")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(args: argparse.Namespace) -> int:
    if len(args.name) > 2:
        raise UserError(f"{len(args.name)} names given: name one design, or two to compare")
    if not args.name:
        _list(args.json)
        next_ = "zaplock designs linux-4.9 linux-6.18"
    elif len(args.name) == 1:
        _show_one(_design(args.name[0]), args.json)
        next_ = f"zaplock compare --design {_design(args.name[0]).name}"
    else:
        _show_two(_design(args.name[0]), _design(args.name[1]), args.json)
        next_ = f"zaplock compare --design {','.join(map(_loadable, args.name))}"
    print(f"next: {next_}", file=sys.stderr if args.json else sys.stdout)
    return 0


def _loadable(name: str) -> str:
    return f"linux-{name}" if name[:1].isdigit() else name


def _design(name: str) -> Design:
    from zaplock.designs import load

    return load(_loadable(name))


def _list(as_json: bool) -> None:
    from textwrap import fill

    from zaplock.designs import load
    from zaplock.designs.catalogue import GROUPS
    from zaplock.designs.linux import NEWEST, OLDEST

    groups = {group: [load(name) for name in names()] for group, names in GROUPS.items()}
    if as_json:
        rows = [
            {"group": group, "design": one.name, "kernel": one.kernel, "summary": one.summary}
            for group, designs in groups.items()
            for one in designs
        ]
        print(json.dumps(rows, indent=2))
        return
    for group, designs in groups.items():
        print(f"{group}:")
        for one in designs:
            print(fill(one.summary, 100, initial_indent=f"  {one.name:<34} ",
                       subsequent_indent=" " * 37, break_long_words=False))  # fmt: skip
    print(f"and every release from {OLDEST} to {NEWEST}: linux-5.15, linux-6.6.30, linux-6.6.y;")
    print("a group's name stands for all of its designs: --design proposals")


def _show_one(design: Design, as_json: bool) -> None:
    """Show a design against the one it was made from, or came after."""
    from zaplock.designs.history import predecessor

    other = predecessor(design)
    if as_json:
        told = {"design": design.name, "differs_from": other.name, "rules": _rules(design, other)}
        print(json.dumps(told))
        return
    print(f"{design.name} ({design.kernel}): {design.summary}\n")
    _print_rules(design, other)


def _rules(design: Design, other: Design) -> dict[str, dict[str, str]]:
    from zaplock.designs import differences

    return {
        field: {"value": value, "before": before}
        for field, value, before in differences(design, other)
    }


def _print_rules(design: Design, other: Design) -> None:
    from zaplock.designs import differences

    print(f"{'against ' + other.name:<28} {'here':<26} there")
    for field, value, before in differences(design, other):
        print(f"  {field:<26} {value:<26} {before}")


def _show_two(first: Design, second: Design, as_json: bool) -> None:
    from zaplock.designs.history import changes_between, is_stock

    gained, lost = changes_between(first, second)
    own = not (is_stock(first) and is_stock(second))
    if as_json:
        told = {
            "from": first.name,
            "to": second.name,
            "gained": [one.to_json() for one in gained],
            "lost": [one.to_json() for one in lost],
            "rules": _rules(second, first),
        }
        print(json.dumps(told, indent=2))
        return
    if gained:
        print(f"{second.name} has, and {first.name} has not:\n")
        _print_changes(gained)
    if lost:
        print(f"{first.name} has, and {second.name} has not:\n")
        _print_changes(lost)
    if not gained and not lost:
        print(f"No change of the table lies between {first.name} and {second.name}.\n")
    if own:
        _print_rules(second, first)


def _print_changes(changes: list[Change]) -> None:
    from textwrap import fill

    for one in changes:
        print(f"{one.since:<6} {one.commit or '(id not known)'}  {one.subject}")
        print(fill(one.what, 100, initial_indent=" " * 7, subsequent_indent=" " * 7))
        rules = "; ".join(f"{rule}: {value}" for rule, value in one.to_json()["rules"].items())
        print(f"       {rules or 'no rule of the model'}")
        if one.backported:
            print(f"       also in {', '.join(one.backported)} and later of these series")
        if one.doubt:
            print(fill(f"doubt: {one.doubt}", 100, initial_indent=" " * 7,
                       subsequent_indent=" " * 7))  # fmt: skip
        print()
