"""Make docs/rivals.md from the records: each rival's source, locks, stalls and verdicts.

    zaplock check --all --design rivals --jobs 2 --json > verdicts.json
    python -m bench.gallery verdicts.json

What an operation locks is what its protocol asks for, run alone; stalls are those of compare.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections import Counter
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from zaplock.check.bugs import PROMISES, expected
from zaplock.designs import rivals as records
from zaplock.engines import sequential
from zaplock.lab import profiles
from zaplock.lab.experiment import SimulatedExperiment
from zaplock.lab.teardown import run
from zaplock.model.flags import MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, PROT_READ, PROT_WRITE
from zaplock.model.machine import Machine
from zaplock.model.rwsem import LockStep
from zaplock.model.spans import SpanEnd, SpanStep
from zaplock.model.step import Task
from zaplock.protocols.address_locks import holds_more, under
from zaplock.protocols.design import Cx, Design
from zaplock.protocols.mmap import mmap
from zaplock.protocols.user_access import write_memory
from zaplock.units import duration

PAGE = 4096
AT = 1 << 40
SIZE = 80 << 30
BESIDE = (("fault", "proc", "neighbour"), ("mmap", "clone"), ("mmap", "fork", "mprotect", "clone"))
FLAGS = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED
HEAD = """# Rivals

Address spaces of papers and of other systems, as designs beside Linux's: `--design rivals`, or one
by its name. This page is made from the records by `python -m bench.gallery`; what it says of
sources is the records' own (`src/zaplock/designs/rivals.py`). A rival has the rules of Linux
{newest} for all that it says nothing about, without per-VMA locks and without the downgrade of
munmap. So these are models of what is proposed, and not of those systems.

"Locks" is what a first fault, munmap of 2 pages of a mapping and mmap of 2 pages ask for. Stalls
are the worst beside a munmap of 80 GiB, every page mapped (e5-2680-rfc, 8 CPUs); `neighbour`
faults right behind that mapping, and so shares the page-table page that covers it. "Checked"
counts the scenarios and pairs of `zaplock check --all`.

How they scale: [scale.md](scale.md). Interval locks for a protocol of your own: `lock_range` and
`unlock_range` of `zaplock.author`.
"""


def locks(design: Design, machine: Machine, work: Coroutine[Any, Any, int]) -> str:
    """Run an operation alone and list what it locks, in order."""
    cx = Task(1, 1)
    asked = []

    async def watched() -> int:
        return await work

    program = under(design, watched())
    result: Any = None
    while True:
        try:
            step = program.send(result)
        except StopIteration:
            break
        if isinstance(step, LockStep | SpanStep | SpanEnd) and holds_more(step, 0) > 0:
            asked.append(repr(step))
        result = sequential.run(machine, cx, _one(step))
    return ", ".join(dict.fromkeys(asked)) or "nothing"


async def _one(step: Any) -> Any:
    return await step


def operations(design: Design) -> list[tuple[str, str]]:
    """List (operation, its locks)."""
    machine = Machine()
    cx = Cx(design, Task(1, 1))
    sequential.run(
        machine, cx.task, under(design, mmap(cx, AT, 6 * PAGE, PROT_READ | PROT_WRITE, FLAGS))
    )
    sequential.run(machine, cx.task, under(design, write_memory(cx, AT, 1)))
    return [
        ("fault", locks(design, machine, write_memory(cx, AT + PAGE, 1))),
        ("munmap", locks(design, machine, design.munmap(cx, AT + PAGE, 2 * PAGE))),
        ("mmap", locks(design, machine, mmap(cx, AT + PAGE, 2 * PAGE, PROT_READ, FLAGS))),
    ]


def stalls(design: Design) -> list[str]:
    """Say who stalls beside a big munmap, block by block."""
    profile = profiles.load(profiles.DEFAULT)
    told = []
    for block in BESIDE:
        row = run(design, SimulatedExperiment(SIZE, bystanders=block), profile).outcome
        worst = ", ".join(
            f"{name} {duration(row.stalls[name].max_ns) if row.stalls[name].max_ns else 'none'}"
            for name in block
        )
        told.append(f"| {', '.join(block)} | {worst} |")
    return told


def page(design: Design, source: str, verdicts: list[dict[str, Any]]) -> str:
    """Write the section of one design."""
    own = [cell for cell in verdicts if cell["design"] == design.name]
    counts = Counter(cell["verdict"] for cell in own)
    promises = {name: one.says for one in PROMISES for name in one.scenarios}
    broken = [cell for cell in own if cell["verdict"] == "broken"]
    unkept = sorted({promises[c["scenario"]] for c in broken if c["scenario"] in promises})
    known = ((cell["scenario"], expected(cell["scenario"], design)) for cell in broken)
    bugs = sorted(f"{name}: {bug.name} ({bug.source})" for name, bug in known if bug)
    lines = [f"## {design.name}", "", inspect.cleandoc(source), "", "| | locks |", "|---|---|"]
    lines += [f"| {name} | {asked} |" for name, asked in operations(design)]
    lines += ["", "| beside | worst stall |", "|---|---|", *stalls(design), ""]
    lines += [f"- Checked: {counts['proved']} of {len(own)} proved."]
    lines += [f"- Broken: {bug}." for bug in bugs]
    lines += [f"- Not promised: {says}." for says in unkept]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write docs/rivals.md."""
    verdicts = json.loads(Path(sys.argv[1]).read_text())
    made = zip(records.rivals().values(), records.MAKERS)
    pages = [page(design, str(maker.__doc__), verdicts) for design, maker in made]
    target = Path(__file__).parent.parent / "docs" / "rivals.md"
    target.write_text("\n".join([HEAD.format(newest=records.NEWEST), *pages]))


if __name__ == "__main__":
    main()
