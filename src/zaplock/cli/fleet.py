"""Ask a whole fleet: who makes whom wait, what changed, and what would cure most of it.

STORE is a folder or a URL that fsspec knows (s3://bucket/fleet), as `zaplock agent --store` writes.

  zaplock fleet report STORE               who makes others wait, worst waits, which hosts differ
  zaplock fleet ask STORE "SELECT ..."     SQL (DuckDB) over the views waits and recordings
  zaplock fleet replay STORE --kernel 5.15 --to linux-6.18
                                           what those hosts would be spared by another kernel
  zaplock fleet advise STORE               what to do first: what surely spares most
  zaplock fleet simulate STORE --hosts 1000 --days 7
                                           a made-up fleet with known causes, by the simulator
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from zaplock.cli._ending import next_step, wrote
from zaplock.cli._json_text import print_json
from zaplock.cli._rows import add_top
from zaplock.untrusted_names import cell, shell_word

if TYPE_CHECKING:
    from zaplock.executors import Executor
    from zaplock.fleet.replaying import FleetReplay
    from zaplock.views.grid import Grid

_ASK_ROWS = 1000


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `zaplock fleet`."""
    verbs = parser.add_subparsers(dest="question", metavar="QUESTION", required=True)

    def verb(name: str, summary: str, *, works: bool = True) -> argparse.ArgumentParser:
        made = verbs.add_parser(name, help=summary, description=summary)
        made.add_argument("store", metavar="STORE", help="a folder or a URL")
        if name != "simulate":
            made.add_argument("--day", action="append", metavar="YYYY-MM-DD",
                              help="of this day alone; may be repeated")  # fmt: skip
        made.add_argument("--json", action="store_true", help="print JSON instead of tables")
        if works:
            made.add_argument("--jobs", type=int, default=1, metavar="N", help="processes (1)")
            made.add_argument("--cluster", default="", metavar="ADDRESS",
                              help="work on the cluster of this Dask scheduler")  # fmt: skip
        return made

    made = verb("report", "who makes others wait, where, since when; which hosts differ")
    add_top(made, 10)
    made.add_argument("--html", metavar="PAGE", help="write one page that works offline")
    made = verb("ask", "a question in SQL, answered by DuckDB", works=False)
    made.add_argument("sql", metavar="SQL", help="over the views waits and recordings")
    made.add_argument("--csv", action="store_true", help="print CSV")
    for name, summary in (
        ("replay", "what another kernel would spare, or another way of freeing"),
        ("advise", "what to do first: what surely spares most"),
    ):
        made = verb(name, summary)
        made.add_argument("--to", action="append", metavar="DESIGN",
                          help="another kernel's design (linux-6.18); may be repeated")  # fmt: skip
        made.add_argument("--kernel", default="", metavar="SERIES",
                          help="of hosts that run this kernel, such as 5.15")  # fmt: skip
        made.add_argument("--most", type=int, default=10, metavar="N",
                          help="recordings of each unit and kernel, worst first (10)")  # fmt: skip
        add_top(made, 20, "rows")
    made = verb("simulate", "write the store of a made-up fleet with known causes")
    made.add_argument("--hosts", type=int, default=100, metavar="N", help="how many (100)")
    made.add_argument("--days", type=int, default=1, metavar="N", help="how many (1)")
    made.add_argument("--first-day", default="", metavar="YYYY-MM-DD", help="the first of them")
    made.add_argument("--seed", type=int, default=1, metavar="N", help="the same gives the same")


def run(args: argparse.Namespace) -> int:
    """Answer the question."""
    for day in getattr(args, "day", None) or ():
        _require_day(day)
    answers = {"report": _report, "ask": _ask, "replay": _replay, "advise": _advise,
               "simulate": _simulate}  # fmt: skip
    following = answers[args.question](args)
    next_step(following, aside=_for_programs(args))
    return 0


def _for_programs(args: argparse.Namespace) -> bool:
    return args.json or getattr(args, "csv", False)


def _require_day(text: str) -> None:
    from zaplock.fleet.simulate import days_of

    days_of(1, text)


def _workers(args: argparse.Namespace) -> AbstractContextManager[Executor]:
    from zaplock.executors import executor

    return executor(args.jobs, args.cluster)


def _report(args: argparse.Namespace) -> str:
    from zaplock import outputs
    from zaplock.cli._progress import counter
    from zaplock.fleet.report import report
    from zaplock.views.fleet_tables import answer, report_tables

    if args.html:
        outputs.require_writable(args.html)
    with _workers(args) as workers, counter("reading the store") as show:
        found = report(args.store, workers, days=args.day, progress=show)
    if args.html:
        from zaplock.views.fleet_page import write_page

        write_page(found, Path(args.html))
        wrote(args.html, aside=args.json)
    if args.json:
        print_json(found.to_json())
    elif not args.html:
        _print(answer(found), report_tables(found, args.top))
    store = shell_word(args.store)
    return f"xdg-open {shell_word(args.html)}" if args.html else f"zaplock fleet advise {store}"


def _ask(args: argparse.Namespace) -> str:
    from zaplock.cli._busy import busy
    from zaplock.fleet.ask import ask
    from zaplock.views.grid import Grid, words

    with busy("asking"):
        found = ask(args.store, args.sql, args.day)
    for caveat in found.caveats:
        print(f"{args.store}: {caveat}", file=sys.stderr)
    if args.json:
        print_json(found.to_json())
    elif args.csv:
        out = csv.writer(sys.stdout)
        out.writerow(found.columns)
        out.writerows([cell(str(value)) for value in row] for row in found.rows)
    else:
        rows = [[str(value) for value in row] for row in found.rows[:_ASK_ROWS]]
        more = len(found.rows) - len(rows)
        said = f"... and {more:,} more rows: --csv or --json gives all" if more > 0 else ""
        _print([], [Grid([words(name) for name in found.columns], rows, more=said)])
    return f"zaplock fleet report {shell_word(args.store)}"


def _replayed(args: argparse.Namespace, workers: Executor) -> FleetReplay:
    from zaplock.cli._designs import parse_designs
    from zaplock.cli._progress import counter
    from zaplock.fleet.replaying import replay_fleet
    from zaplock.lab import profiles

    designs = parse_designs(args.to) if args.to else []
    profile = profiles.load(profiles.DEFAULT)
    with counter("replaying") as show:
        return replay_fleet(
            args.store, workers, profile, designs=designs, kernel=args.kernel, most=args.most,
            days=args.day, progress=show,
        )  # fmt: skip


def _replay(args: argparse.Namespace) -> str:
    from zaplock.views.fleet_tables import replay_sentences, replay_table

    with _workers(args) as workers:
        found = _replayed(args, workers)
    if args.json:
        print_json(found.to_json())
    else:
        _print([], [replay_table(found, args.top)])
        _print(replay_sentences(found), [])
    return f"zaplock fleet advise {shell_word(args.store)}" + "".join(
        f" --to {shell_word(one)}" for one in args.to or ["linux-6.18"]
    )


def _advise(args: argparse.Namespace) -> str:
    from zaplock.fleet.advising import advise_fleet
    from zaplock.fleet.report import report
    from zaplock.views.fleet_tables import advice_table

    with _workers(args) as workers:
        replayed = _replayed(args, workers)
        advice = advise_fleet(report(args.store, workers, days=args.day), replayed)
    if args.json:
        print_json([one.to_json() for one in advice])
    else:
        _print(
            ["Spared is what sound replays stand for; at most is all that the cause makes wait."],
            [advice_table(advice, args.top)],
        )
    return f"zaplock fleet replay {shell_word(args.store)} --to linux-6.18"


def _simulate(args: argparse.Namespace) -> str:
    from zaplock.cli._progress import counter
    from zaplock.fleet.simulate import FIRST_DAY, days_of, simulate_fleet

    days = days_of(args.days, args.first_day or FIRST_DAY)
    with _workers(args) as workers, counter("simulating a fleet") as show:
        made = simulate_fleet(args.store, args.hosts, days, workers, seed=args.seed, progress=show)
    if args.json:
        print_json({name: getattr(made, name) for name in made.__slots__})
    else:
        print(
            f"{made.hosts:,} hosts, {made.waits:,} waits, {made.recordings:,} recordings; the "
            f"causes that were put in: {args.store}/truth.json"
        )
    return f"zaplock fleet report {shell_word(args.store)}"


def _print(lines: Iterable[str], tables: Iterable[Grid]) -> None:
    from zaplock.views.console import Said, Screen

    out = Screen()
    for line in lines:
        out.print(Said(line))
    for one in tables:
        if one.rows:
            out.print(one)
            out.print()
