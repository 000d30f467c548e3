"""`zaplock fidelity` in print: the table, the sentences, and the section of docs/fidelity.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from zaplock.lab.fidelity import TOLERANCE, phases, waiting
from zaplock.units import duration

if TYPE_CHECKING:
    from zaplock.lab.fidelity import Agreement, HungTasks
    from zaplock.trace.teardown_verdict import TeardownVerdict
    from zaplock.views.grid import Grid

TEARDOWNS, WAITERS = "kernels beside their designs", "who waits beside a munmap"
"""The sections of docs/fidelity.md that are written here."""


def marks(section: str) -> tuple[str, str]:
    """Return the lines between which a section stands."""
    by = "zaplock fidelity --waiters" if section == WAITERS else "zaplock fidelity"
    return f"<!-- begin: {section} (written by {by}) -->", f"<!-- end: {section} -->"


BEGIN, END = marks(TEARDOWNS)
COLUMNS = ("kernel", "design", "teardown", "writer", "lock", "who waits", "longest wait", "")
_LETTER = {"exclusive": "W", "shared": "R"}


def cells(row: Agreement) -> tuple[str, ...]:
    """Return a row's cells; where measured and predicted differ, both are shown."""
    return (
        row.kernel,
        row.design,
        row.teardown,
        "queued" if row.queued_writer else "",
        _both(_modes(row.measured), _modes(row.predicted)),
        _both(_waits(row.measured) if row.seen else "not seen", _waits(row.predicted)),
        f"{_worst(row, row.measured):.3f} / {_worst(row, row.predicted):.3f}",
        {True: "agree", False: "DIFFER", None: _unjudged(row)}[row.agrees],
    )


def _unjudged(row: Agreement) -> str:
    return "not seen" if row.timed else "not judged"


def _both(measured: str, predicted: str) -> str:
    return measured if measured == predicted else f"{measured} (predicted: {predicted})"


def _modes(seen: TeardownVerdict) -> str:
    return ", ".join(_LETTER[mode] for mode in phases(seen)) or "not seen"


def _waits(seen: TeardownVerdict) -> str:
    """Write "fault, proc behind mmap + teardown; mmap behind teardown"."""
    by_cause: dict[str, list[str]] = {}
    for name, behind in waiting(seen).items():
        by_cause.setdefault(" + ".join(behind) or "nobody seen", []).append(name)
    said = [f"{', '.join(names)} behind {cause}" for cause, names in by_cause.items()]
    return "; ".join(said) or "nobody"


def _worst(row: Agreement, seen: TeardownVerdict) -> float:
    return max(seen.ratio(name) for name in row.bystanders)


def table(rows: Sequence[Agreement]) -> Grid:
    """Draw the comparison."""
    from zaplock.views.grid import Grid, figure, words

    drawn = []
    for row in rows:
        kernel, _, teardown, writer, *rest = cells(row)
        drawn.append([kernel, f"{teardown} + writer" if writer else teardown, *rest])
    columns = (words("kernel"), words("teardown"), words("lock"), words("who waits"))
    verdict = (figure("longest wait", rank=1), words("verdict"))
    return Grid((*columns, *verdict), drawn, "measured / predicted")


def sentences(rows: Sequence[Agreement], hung: Sequence[HungTasks]) -> list[str]:
    """Say in words how well they agree."""
    looked = [row for row in rows if row.seen and (row.timed or row.agrees is False)]
    said = []
    if looked:
        agreeing = sum(row.agrees is True for row in looked)
        worst = max(row.worst_difference for row in looked)
        said.append(
            f"{agreeing} of {len(looked)} teardowns agree in modes, in who waits behind whom, and "
            f"in the share of the teardown that each waits within {TOLERANCE:.0%} (worst: "
            f"{worst:.1%})."
        )
    said += _not_seen([row for row in rows if not row.seen and row.timed])
    said += _too_short([row for row in rows if row.agrees is None and not row.timed])
    said += decided(rows)
    for one in hung:
        measured, predicted = (
            ", ".join(names) or "nobody" for names in (one.measured, one.predicted)
        )
        verb = "as predicted" if one.agrees else f"predicted: {predicted}"
        said.append(f"{one.kernel}: khungtaskd reports {measured}, {verb}.")
        if one.other_lines:
            said.append("Its messages differ in (-: the kernel's, +: the model's):")
            said += [f"    {line}" for line in one.other_lines]
        elif one.measured_message:
            said.append("Its messages are the model's, line by line.")
        said += one.in_between
    return said


def _not_seen(rows: Sequence[Agreement]) -> list[str]:
    if not rows:
        return []
    kernels = ", ".join(dict.fromkeys(row.kernel for row in rows))
    alike = sum(row.ratios for row in rows)
    return [
        f"{kernels}: the lock was not seen in {len(rows)} teardowns, so modes and waits are not "
        f"compared; in {alike} of them the bystanders stalled as predicted."
    ]


def _too_short(rows: Sequence[Agreement]) -> list[str]:
    return [
        f"{row.kernel}, {row.teardown}{' beside a queued writer' if row.queued_writer else ''}: "
        f"it lasts {duration(row.measured.lasted_ns)} and a bystander comes every "
        f"{duration(row.period_ns)} only, so who waits is not judged; try a larger --guest-size or "
        "--host-size."
        for row in rows
    ]


def decided(rows: Sequence[Agreement]) -> list[str]:
    """Name, for each kernel, the changes of Linux that decided what was predicted for it."""
    by_design: dict[tuple[str, str, str], dict[str, None]] = {}
    for row in rows:
        changes = by_design.setdefault((row.kernel, row.design, row.note), {})
        changes.update((f"{one.since} {one.commit or one.subject}", None) for one in row.decided_by)
    return [
        f"{kernel} is predicted as {design}, decided by {', '.join(changes) or '4.9'}"
        + (f"; {note}." if note else ".")
        for (kernel, design, note), changes in by_design.items()
    ]


def _all_agree(found: Sequence[bool | None]) -> bool | None:
    """Return False where anything differs, else None where anything was not seen."""
    if False in found:
        return False
    return None if None in found else True


def as_json(
    rows: Sequence[Agreement], hung: Sequence[HungTasks], skipped: Sequence[str]
) -> dict[str, object]:
    """Return everything as plain values."""
    return {
        "tolerance": TOLERANCE,
        "agree": _all_agree([one.agrees for one in rows] + [one.agrees for one in hung]),
        "rows": [row.to_json() for row in rows],
        "hung_tasks": [one.to_json() for one in hung],
        "skipped": list(skipped),
    }


def section(rows: Sequence[Agreement], hung: Sequence[HungTasks], skipped: Sequence[str]) -> str:
    """Write the section of docs/fidelity.md, with its markers."""
    lines = [
        BEGIN,
        "## Real kernels beside the designs that stand for them",
        "",
        "Made by `zaplock fidelity` (root; QEMU for the guests). Read from lock events (the",
        "mmap_lock tracepoints, or kprobes where a kernel has none) and from the simulated events",
        "by the same code (`zaplock.trace.teardown_verdict`).",
        "W: the lock is held exclusively, R: shared. The longest wait is a share of the teardown's",
        "holds, measured / predicted. Guests run in instruction-counted time: their figures are",
        "the same each time.",
        "",
        "```text",
        *sentences(rows, hung),
        *skipped,
        "```",
        "",
        _markdown(COLUMNS),
        _markdown(["---"] * len(COLUMNS)),
        *(_markdown(cells(row)) for row in rows),
        "",
        *(line for one in hung for line in _messages(one)),
        END,
    ]
    return "\n".join(lines) + "\n"


def waiters_table(rows: Sequence[Agreement]) -> Grid:
    """Draw who waits for whom."""
    from zaplock.views.grid import Grid, figure, words

    columns = (words("kernel"), words("beside munmap"), words("who waits"))
    verdict = (figure("longest wait", rank=1), words("verdict"))
    return Grid((*columns, *verdict), [_waiter_cells(row) for row in rows], "measured / predicted")


def _waiter_cells(row: Agreement) -> list[str]:
    kernel, _, _, _, _, waits, longest, verdict = cells(row)
    return [kernel, ", ".join(row.bystanders), waits, longest, verdict]


def waiters_section(rows: Sequence[Agreement], skipped: Sequence[str]) -> str:
    """Write the other section: who waits behind whom beside a munmap."""
    begin, end = marks(WAITERS)
    columns = ("kernel", "beside munmap", "who waits", "longest wait", "")
    lines = [
        begin,
        "## Who waits behind whom beside a munmap",
        "",
        "Made by `zaplock fidelity --waiters`: readers of /proc/PID/maps, smaps, smaps_rollup and",
        "environ, a thread that starts others (clone: it maps a stack, protects its guard page and",
        "unmaps it), and one that forks, all from the munmap's begin on. The longest wait is a",
        "share of the munmap's holds, measured / predicted.",
        "",
        "```text",
        *sentences(rows, []),
        *skipped,
        "```",
        "",
        _markdown(columns),
        _markdown(["---"] * len(columns)),
        *(_markdown(_waiter_cells(row)) for row in rows),
        "",
        end,
    ]
    return "\n".join(lines) + "\n"


def _markdown(row: Sequence[str]) -> str:
    return f"| {' | '.join(row)} |"


def _messages(one: HungTasks) -> list[str]:
    if not one.measured_message:
        return []
    return [
        f"### {one.kernel}: a hung task in the kernel's words and in the model's",
        "",
        "```text",
        one.measured_message,
        "```",
        "",
        "```text",
        one.predicted_message,
        "```",
        "",
    ]


def with_section(document: str, new: str, section: str = TEARDOWNS) -> str:
    """Return the document with this section in place of the old one, or behind all else."""
    begin, end = marks(section)
    before, found, rest = document.partition(begin)
    if not found:
        return f"{document.rstrip()}\n\n{new}" if document.strip() else f"# Fidelity\n\n{new}"
    return before + new + rest.partition(end)[2].lstrip("\n")
