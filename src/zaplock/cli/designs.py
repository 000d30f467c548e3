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
from typing import TYPE_CHECKING

from zaplock.cli._ending import next_step
from zaplock.cli._json_text import print_json
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
        next_ = f"zaplock compare --design {','.join(dict.fromkeys(map(_loadable, args.name)))}"
    next_step(next_, aside=args.json)
    return 0


def _loadable(name: str) -> str:
    return f"linux-{name}" if name[:1].isdigit() else name


def _design(name: str) -> Design:
    from zaplock.designs import load

    return load(_loadable(name))


def _list(as_json: bool) -> None:
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
        print_json(rows)
        return
    from zaplock.views.console import Screen
    from zaplock.views.grid import Grid, words

    screen = Screen()
    columns = (words("design"), words("kernel", rank=1), words("what it does"))
    for group, designs in groups.items():
        screen.print(f"{group}:")
        screen.print(Grid(columns, [(one.name, one.kernel, one.summary) for one in designs]))
    print(f"and every release from {OLDEST} to {NEWEST}: linux-5.15, linux-6.6.30, linux-6.6.y;")
    print("a group's name stands for all of its designs: --design proposals")


def _show_one(design: Design, as_json: bool) -> None:
    """Show a design against the one it was made from, or came after."""
    from zaplock.designs.history import predecessor

    other = predecessor(design)
    if as_json:
        told = {"design": design.name, "differs_from": other.name, "rules": _rules(design, other)}
        print_json(told)
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
    from zaplock.views.console import Screen
    from zaplock.views.grid import Grid, words

    rows = [
        (field, value, before, _set_by(field))
        for field, value, before in differences(design, other)
    ]
    sides = (words(design.name), words(other.name))
    Screen().print(Grid((words("rule"), *sides, words("changed by", rank=1)), rows))


def _set_by(rule: str) -> str:
    """Name the changes of Linux that set a rule, "" where none does: it is a proposal's own."""
    from zaplock.designs import CHANGES

    rows = [one for one in CHANGES if rule in one.rules]
    return "; ".join(f"{one.since} {one.commit or ''} {one.subject}" for one in rows)


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
        print_json(told)
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
    for one in changes:
        print(f"{one.since:<6} {one.commit or '(id not known)'}  {one.subject}")
        print(f"       {one.what}")
        rules = "; ".join(f"{rule}: {value}" for rule, value in one.to_json()["rules"].items())
        print(f"       {rules or 'no rule of the model'}")
        if one.backported:
            print(f"       also in {', '.join(one.backported)} and later of these series")
        if one.doubt:
            print(f"       doubt: {one.doubt}")
        print()
