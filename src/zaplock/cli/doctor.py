"""List what zaplock can see on this machine, and the one command that mends each missing thing.

The exit code is 0 if zaplock can record here, 1 if something that it needs is missing.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from zaplock.cli._ending import next_step
from zaplock.cli._json_text import print_json
from zaplock.cli._streams import while_read

if TYPE_CHECKING:
    from zaplock.recorder.doctor import Finding


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(args: argparse.Namespace) -> int:
    """Examine and tell."""

    from zaplock.recorder.doctor import examine

    findings = examine()
    able = all(finding.ok for finding in findings if finding.needed)
    following = ("zaplock record -d 5s", "") if able else ("zaplock doctor", "after mending")
    with while_read():
        if args.json:
            told = {"able": able, "findings": [one.to_json() for one in findings]}
            print_json(told)
        else:
            _table(findings)
        next_step(*following, aside=args.json)
    return 0 if able else 1


def _table(findings: list[Finding]) -> None:
    from zaplock.views.console import Screen
    from zaplock.views.grid import Grid, words

    lacks = [one.name for one in findings if one.needed and not one.ok]
    print(f"zaplock can't record here: {', '.join(lacks)}" if lacks else "zaplock can record here")
    rows = [
        (
            "ok" if one.ok else "MISSING" if one.needed else "no",
            one.name,
            one.seen,
            one.use,
            one.mend,
        )
        for one in findings
    ]
    columns = (words(""), words("what"), words("seen"), words("what for", rank=1))
    print()
    Screen().print(Grid((*columns, words("mended by")), rows))
    print()
