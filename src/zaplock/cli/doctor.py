"""List what zaplock can see on this machine, and the one command that mends each missing thing.

The exit code is 0 if zaplock can record here, 1 if something that it needs is missing.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zaplock.recorder.doctor import Finding


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(args: argparse.Namespace) -> int:
    """Examine and tell."""
    import json
    import sys

    from zaplock.recorder.doctor import examine

    findings = examine()
    able = all(finding.ok for finding in findings if finding.needed)
    if args.json:
        print(json.dumps({"able": able, "findings": [one.to_json() for one in findings]}, indent=2))
    else:
        _table(findings)
    following = "zaplock record -d 5s" if able else "zaplock doctor (after mending)"
    print(f"Next: {following}", file=sys.stderr if args.json else sys.stdout)
    return 0 if able else 1


def _table(findings: list[Finding]) -> None:
    from rich.table import Table

    from zaplock.views.screen import Screen

    table = Table(box=None, pad_edge=False)
    for column in ("", "what", "seen", "what for", "mended by"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        mark = "ok" if finding.ok else ("MISSING" if finding.needed else "no")
        table.add_row(mark, finding.name, finding.seen, finding.use, finding.mend)
    Screen(soft_wrap=False).print(table)
