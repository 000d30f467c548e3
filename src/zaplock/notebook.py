"""For scripts and notebooks: compare designs, or try a program of one's own, in a few lines.

    >>> from zaplock import compare
    >>> result = compare("80G", designs=["linux-4.9", "rfc-v6"], measure=False)
    >>> [(row.design, round(row.exclusive_hold_ns / 1e9, 2)) for row in result.rows[:2]]
    [('linux-4.9', 2.49), ('rfc-v6', 0.0)]

A result has its table as a polars frame, draws itself in a notebook and explains itself in words.
`report(path)` is a recording, understood; `prove(scenario, design)` a verdict with what shows it.

    >>> from zaplock import Lab
    >>> lab = Lab("rfc-v6")
    >>> heap = lab.map("1G")
    >>> lab.thread("db", lambda cx: cx.design.munmap(cx, heap, 1 << 30))
    >>> lab.bystander("proc")
    >>> lab.run().stalls["proc"].count
    31
"""

from __future__ import annotations

import html
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

from zaplock import outputs
from zaplock.designs import Design, load
from zaplock.experiment import page_of, period_of
from zaplock.lab import profiles
from zaplock.lab.compare import BLOCKS, Comparison
from zaplock.lab.compare import compare as compare_designs
from zaplock.lab.experiment import SimulatedExperiment
from zaplock.lab.lab import Laboratory as _Lab
from zaplock.lab.lab import Observation
from zaplock.scratch import Scratch
from zaplock.trace.recording_file import Manifest, write
from zaplock.units import duration, parse_duration, parse_size
from zaplock.views import outcomes

if TYPE_CHECKING:
    import polars
    from rich.console import RenderableType

    from zaplock.check.verdicts import CheckResult
    from zaplock.trace.analysis import Analysis
    from zaplock.trace.summary import Summary
    from zaplock.trace.teardown_outcome import TeardownOutcome

Designs = Sequence["str | Design"]


HTML_WIDTH = 110
"""Of what is drawn for a notebook as on a terminal, in cells."""


@dataclass(frozen=True, repr=False)
class Picture:
    """A drawing that a notebook shows; `svg` is its text."""

    svg: str

    def __repr__(self) -> str:
        return f"Picture({len(self.svg)} characters of SVG)"

    def _repr_svg_(self) -> str:
        return self.svg

    def save(self, path: str | Path) -> None:
        """Write the drawing as SVG."""
        outputs.write(path, self.svg)


@dataclass(frozen=True, repr=False)
class ComparisonResult(Comparison):
    """A comparison that draws and explains itself. Times are nanoseconds, lengths bytes."""

    def __repr__(self) -> str:
        return "\n".join([outcomes.title(self), *self.sentences])

    @property
    def sentences(self) -> list[str]:
        """Say who stalls, because of whom, and under which design no more."""
        return outcomes.sentences(self)

    @overload
    def plot(self) -> Picture: ...
    @overload
    def plot(self, path: str | Path) -> None: ...
    def plot(self, path: str | Path | None = None) -> Picture | None:
        """Return a drawing of who holds the lock and who waits, or write it to a file.

        `path` ends in .svg, .png or .html. Raises UserError for another end, where the file can't
        be written, and without the extra `plots`.
        """
        from zaplock.views.timeline import plot_comparison

        if path is not None:
            plot_comparison(self, Path(path))
            return None
        with Scratch("plot") as directory:
            file = directory / "plot.svg"
            plot_comparison(self, file)
            return Picture(file.read_text())

    def _repr_html_(self) -> str:
        tables = "".join(self._table(block) for block in self.blocks)
        said = "".join(f"<p>{html.escape(line)}</p>" for line in self.sentences)
        return f"<h4>{html.escape(outcomes.title(self))}</h4>{said}{tables}"

    def _table(self, block: Sequence[str]) -> str:
        rows = [outcomes.cells(row, block) for row in self.block(block)]
        return _table(("design", *outcomes.columns(block)), rows, outcomes.heading(block))


@dataclass(frozen=True, repr=False)
class LabRun(Observation):
    """What a run of a `Lab` showed, drawing itself in a notebook."""

    @property
    def sentences(self) -> list[str]:
        """Say who waited for whom, worst first, and what the kernel would report as hung."""
        return _sentences(self.analysis)

    def save(self, path: str | Path) -> None:
        """Write a recording that `zaplock report`, `diff` and `replay` read.

        Raises UserError where something is already there, or it can't be written.
        """
        about = Manifest(source="simulation", kernel=self.design.kernel, notes=("simulated",))
        write(path, self.events, about)

    def _repr_html_(self) -> str:
        rows = [
            (name, str(one.count), *map(duration, (one.p50_ns, one.p99_ns, one.max_ns)))
            for name, one in self.stalls.items()
        ]
        head = ("bystander", "operations", "median stall", "99th percentile", "worst")
        took = f"{self.design.name}: {duration(self.duration_ns)} simulated"
        return f"<h4>{html.escape(took)}</h4>{_table(head, rows, 'stalls')}{_drawn(self.analysis)}"


@dataclass(frozen=True, repr=False)
class RecordedReport:
    """A recording, understood; `analysis` has its holds and waits as arrays.

    It prints as sentences, and draws itself in a notebook as `zaplock report` does on a terminal.
    """

    analysis: Analysis

    def __repr__(self) -> str:
        return "\n".join(self.sentences)

    @property
    def sentences(self) -> list[str]:
        """Say who waited for whom, worst first."""
        return _sentences(self.analysis)

    @property
    def holds(self) -> polars.DataFrame:
        """Every hold of an mmap_lock, a row each; times in nanoseconds."""
        return self.analysis.holds.frame()

    @property
    def waits(self) -> polars.DataFrame:
        """Every wait for an mmap_lock, a row each; times in nanoseconds."""
        return self.analysis.waits.frame()

    def save(self, path: str | Path) -> Path:
        """Write the page of `zaplock report --html`. Raises UserError where it can't be written."""
        from zaplock.views.html import write_html

        return write_html(_summary(self.analysis), Path(path))

    def _repr_html_(self) -> str:
        return _drawn(self.analysis)


@dataclass(frozen=True, repr=False)
class ScenarioVerdict:
    """What a check found; `result` has all its figures, `counterexample` the story, if any.

    verdict: "proved", "broken", "vacuous" (the scenario's events never happen) or "not-exhausted".
    """

    result: CheckResult
    counterexample: str = ""

    @property
    def verdict(self) -> str:
        """Say in a word what was found."""
        return self.result.verdict

    def __repr__(self) -> str:
        one = self.result
        line = f"{one.scenario} under {one.design}: {one.verdict} ({one.states:,} states)"
        return "\n\n".join(filter(None, [line, self.counterexample]))

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>"


def report(path: str | os.PathLike[str]) -> RecordedReport:
    """Read a recording (`zaplock record`, `zaplock import`, a simulation) and understand it.

    Raises UserError where there is none, a damaged one, or one that doesn't fit into memory.
    """
    from zaplock.trace.reading import read_analysis

    return RecordedReport(read_analysis(path))


def prove(
    scenario: str,
    design: str = "linux-6.18",
    *,
    queue: Literal["both", "any", "fair"] = "both",
    max_states: int = 10_000_000,
    max_seconds: float = 600.0,
) -> ScenarioVerdict:
    """Try every interleaving of a scenario under a design; see `zaplock check --help`.

    `scenario` is a name, a FILE.toml or FILE.py:NAME, `design` a name or FILE.py:NAME. Raises
    UserError for what there is not.
    """
    from zaplock.check import verdicts
    from zaplock.check.counterexample import tell
    from zaplock.engines.checking.exhaustive import SearchLimits
    from zaplock.views.counterexample import text

    chosen, under = verdicts.find_scenario(scenario), verdicts.find_design(design)
    limits = SearchLimits(max_states, max_seconds)
    found = verdicts.check(chosen, under, limits, queue=queue)
    if found.schedule is None:
        return ScenarioVerdict(found)
    system = verdicts.closed_system(chosen, under, found.fair)
    does = ["; ".join(spec.do) for spec in chosen.task]
    story = tell(system, found.schedule, does, found.groups, found.cycle)
    return ScenarioVerdict(found, text(story, "the easiest counterexample", HTML_WIDTH))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)

    body = "".join(f"<tr>{row(cells, 'td')}</tr>" for cells in rows)
    return (
        f"<table><caption>{html.escape(caption)}</caption>"
        f"<thead><tr>{row(head, 'th')}</tr></thead><tbody>{body}</tbody></table>"
    )


def _summary(analysis: Analysis) -> Summary:
    from zaplock.trace.summary import summarise

    return summarise(analysis)


def _sentences(analysis: Analysis) -> list[str]:
    from zaplock.views.sentences import answer, heading

    return [heading(analysis), *answer(_summary(analysis))]


def _drawn(analysis: Analysis) -> str:
    from zaplock.views.report_text import report_text

    return _as_html(report_text(_summary(analysis), top=10))


def _as_html(drawn: RenderableType) -> str:
    """Draw as on a terminal, in the colours of the page around it."""
    from zaplock.views.console import Screen

    screen = Screen(record=True, file=io.StringIO(), width=HTML_WIDTH)
    screen.print(drawn)
    text: str = screen.export_text()
    return f"<pre>{html.escape(text)}</pre>"


def compare(
    size: str | int = "80G",
    *,
    designs: Designs | None = None,
    bystanders: Sequence[Sequence[str]] = BLOCKS,
    profile: str | Path = profiles.DEFAULT,
    backing: str = "anonymous",
    rate: int | None = None,
    cpus: int = 8,
    locked: bool = False,
    vmas: int = 1,
    hung_task_timeout: str = "120s",
    seed: int = 1,
    measure: bool = False,
) -> ComparisonResult:
    """Tear `size` bytes down under each design; see `zaplock compare --help` for the arguments.

    `bystanders` is a list of blocks. With `measure` the kernel that runs is measured too, which
    takes as long as it takes. Raises UserError for what can't be.
    """
    from zaplock.designs import SHIPPED

    named = designs.split(",") if isinstance(designs, str) else designs
    chosen = [load(one) if isinstance(one, str) else one for one in named or SHIPPED.values()]
    experiment = SimulatedExperiment(
        length=parse_size(str(size), page=page_of(backing)),
        backing=backing,
        period_ns=None if rate is None else period_of(rate),
        cpus=cpus,
        locked=locked,
        nr_vmas=vmas,
        hung_task_timeout_ns=parse_duration(hung_task_timeout),
        seed=seed,
    )
    found = compare_designs(chosen, experiment, profiles.load(profile), blocks=bystanders)
    result = ComparisonResult(found.experiment, found.profile, found.blocks, found.runs)
    return replace(result, measured=_measured(result, rate)) if measure else result


def _measured(result: ComparisonResult, rate: int | None) -> tuple[TeardownOutcome, ...]:
    from zaplock.measure.measure import measure

    experiment = result.experiment
    return tuple(
        outcome
        for block in result.blocks
        for outcome in measure(
            experiment.length,
            backing="auto" if experiment.backing == "anonymous" else experiment.backing,
            bystanders=block,
            rate=rate or 1000,
            locked=experiment.locked,
            nr_vmas=experiment.nr_vmas,
        )
    )


class Lab(_Lab):
    """One simulated machine with one process under study (`zaplock.lab.lab`), by names and sizes.

    `design` is a name, FILE.py:NAME or a Design; `profile` a name or a path.
    """

    def __init__(
        self,
        design: str | Design = "linux-6.18",
        *,
        profile: str | Path = profiles.DEFAULT,
        cpus: int = 8,
        hung_task_timeout: str = "120s",
        seed: int = 1,
    ) -> None:
        super().__init__(
            load(design) if isinstance(design, str) else design,
            profiles.load(profile),
            cpus=cpus,
            hung_task_timeout_ns=parse_duration(hung_task_timeout),
            seed=seed,
        )

    def map(
        self,
        length: str | int,
        *,
        backing: str = "anonymous",
        locked: bool = False,
        nr_vmas: int = 1,
    ) -> int:
        """Map a size such as "80G" with every page present; return the address."""
        size = parse_size(str(length), page=page_of(backing))
        return super().map(size, backing=backing, locked=locked, nr_vmas=nr_vmas)

    def run(self) -> LabRun:
        """Let time pass until the last thread has ended. Raises Violation if a rule is broken."""
        seen = super().run()
        return LabRun(**{one.name: getattr(seen, one.name) for one in fields(seen)})


__all__ = [
    "ComparisonResult",
    "Lab",
    "LabRun",
    "Observation",
    "Picture",
    "RecordedReport",
    "ScenarioVerdict",
    "compare",
    "prove",
    "report",
]
