"""For scripts and notebooks: compare designs, or try a program of one's own, in a few lines.

    >>> from zaplock import compare
    >>> result = compare("80G", designs=["linux-4.9", "rfc-v6"], measure=False)
    >>> [(row.design, round(row.exclusive_hold_ns / 1e9, 2)) for row in result.rows[:2]]
    [('linux-4.9', 2.49), ('rfc-v6', 0.0)]

A result has its table as a polars frame, draws itself in a notebook and explains itself in words.

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
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zaplock import outputs
from zaplock.designs import Design, load
from zaplock.experiment import page_of, period_of
from zaplock.lab import profiles
from zaplock.lab.compare import BLOCKS, Comparison
from zaplock.lab.compare import compare as compare_designs
from zaplock.lab.experiment import SimulatedExperiment
from zaplock.lab.lab import Laboratory as _Lab
from zaplock.lab.lab import Observation
from zaplock.units import parse_duration, parse_size
from zaplock.views import outcomes

if TYPE_CHECKING:
    from zaplock.trace.outcome import TeardownOutcome

Designs = Sequence["str | Design"]


@dataclass(frozen=True)
class Picture:
    """A drawing that a notebook shows; `svg` is its text."""

    svg: str

    def _repr_svg_(self) -> str:
        return self.svg

    def save(self, path: str | Path) -> None:
        """Write the drawing as SVG."""
        outputs.write(path, self.svg)


@dataclass(frozen=True)
class ComparisonResult(Comparison):
    """A comparison that draws and explains itself. Times are nanoseconds, lengths bytes."""

    @property
    def sentences(self) -> list[str]:
        """Say who stalls, because of whom, and under which design no more."""
        return outcomes.sentences(self)

    def plot(self, path: str | Path | None = None) -> Picture | None:
        """Draw who holds the lock and who waits; to FILE.svg, .png or .html if one is given."""
        from zaplock.views.timeline import plot_comparison

        if path is not None:
            plot_comparison(self, Path(path))
            return None
        with tempfile.TemporaryDirectory() as directory:
            file = Path(directory) / "plot.svg"
            plot_comparison(self, file)
            return Picture(file.read_text())

    def _repr_html_(self) -> str:
        tables = "".join(self._table(block) for block in self.blocks)
        said = "".join(f"<p>{html.escape(line)}</p>" for line in self.sentences)
        return f"<h4>{html.escape(outcomes.title(self))}</h4>{tables}{said}"

    def _table(self, block: Sequence[str]) -> str:
        head = "".join(f"<th>{name}</th>" for name in ("design", *outcomes.columns(block)))
        rows = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>"
            for cells in (outcomes.cells(row, block) for row in self.block(block))
        )
        caption = html.escape(outcomes.heading(block))
        return f"<table><caption>{caption}</caption><tr>{head}</tr>{rows}</table>"


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

    chosen = [load(one) if isinstance(one, str) else one for one in designs or SHIPPED.values()]
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

    def map(self, length: str | int, **options: Any) -> int:
        """Map a size such as "80G" with every page present; return the address."""
        page = page_of(options.get("backing", "anonymous"))
        return super().map(parse_size(str(length), page=page), **options)


__all__ = ["ComparisonResult", "Lab", "Observation", "Picture", "compare"]
