"""List the designs, or show one: what it does differently from its predecessor."""

from __future__ import annotations

import argparse
import json
import sys

SUMMARY = "list the designs, or show how one differs from its predecessor"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="a design, or FILE.py:NAME for your own")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(args: argparse.Namespace) -> int:
    from zaplock.designs import SHIPPED, load

    if args.name is None:
        rows = [
            {"design": d.name, "kernel": d.kernel, "summary": d.summary} for d in SHIPPED.values()
        ]
        if args.json:
            print(json.dumps(rows, indent=2))
        else:
            for row in rows:
                print(f"{row['design']:<14} {row['summary']}")
        print("next: zaplock designs rfc-v6", file=sys.stderr if args.json else sys.stdout)
        return 0
    load(args.name)
    return _show_one(args.name, args.json)


def _show_one(name: str, as_json: bool) -> int:
    from zaplock.designs import SHIPPED, differences, load

    design = load(name)
    order = list(SHIPPED.values())
    at = order.index(design) if design in order else len(order)
    previous = order[at - 1] if at else None
    changed = differences(design, previous) if previous else differences(design, order[-1])
    other = previous or order[-1]
    if as_json:
        rules = {field: {"value": value, "before": before} for field, value, before in changed}
        print(json.dumps({"design": design.name, "differs_from": other.name, "rules": rules}))
    else:
        print(f"{design.name} ({design.kernel}): {design.summary}\n")
        print(f"{'against ' + other.name:<28} {'here':<26} there")
        for field, value, before in changed:
            print(f"  {field:<26} {value:<26} {before}")
    next_ = f"next: zaplock compare --design {name}"
    print(next_, file=sys.stderr if as_json else sys.stdout)
    return 0
