"""Make docs/speed.md and its drawing from the runs that were kept.

python -m bench.page
"""

from __future__ import annotations

from typing import Any

from bench.figures import ROOT, BenchRun, read_runs, slower_pythons

PAGE = ROOT / "docs" / "speed.md"
DRAWING = PAGE.with_suffix(".svg")
HEAD = """# How fast it is

`make bench` measures zaplock beside others in the same run and prints one table: the timed engine
beside [SimPy](https://simpy.readthedocs.io) and [salabim](https://www.salabim.org) on a
reader/writer lock (the same events at the same times), the checker beside
[Spin](https://spinroot.com) on the same protocol and on two cores beside one, the oracle beside
ctypes and smaps, the recorder beside `perf trace` and strace, its memory beside `perf record`'s,
its decoder beside `trace_pipe` and a loop of struct, a report beside `perf script`, start-up beside
Python's own, and the time until `why` watches beside what the kernel alone needs for that. It takes
some minutes on two CPUs; what can't be measured on a machine is named below the table.

While it records, the recorder may hold 40 MiB; with more its row fails.

A ratio says how many times as fast as the peer zaplock is; of memory, how many times as small. Both
sides are timed in turns, so a ratio is worth more than the two figures that it is made of. A run is
kept in `bench/results` (JSON, with commit and machine) if the tree is a commit's and the machine
was not busy before. Where a ratio is a tenth lower than the last kept one of the same machine, and
again when it is measured once more, the run is not kept and the exit status is 1;
`make bench ACCEPT="why"` keeps it with the reason. Another release of the kernel counts as another
machine.

This page is made from the kept runs by `python -m bench.page`.
"""


def text(runs: list[BenchRun]) -> str:
    """Return the page: for each machine its last run, and what was accepted."""
    lines = [HEAD]
    if runs:
        lines += ["![Ratios over commits](speed.svg)", ""]
    for name in sorted({run.machine.name for run in runs}):
        own = [run for run in runs if run.machine.name == name]
        lines += _machine(own)
    return "\n".join(lines)


def _machine(runs: list[BenchRun]) -> list[str]:
    last = runs[-1]
    machine, versions = last.machine, sorted({one.python for one in last.figures})
    lines = [f"## {machine.cpu}, {machine.cpus} CPUs, Linux {machine.kernel}", ""]
    lines += [f"Commit {last.commit[:12]}, {last.taken[:10]}, load {last.load:g} before.", ""]
    lines += ["| | beside | unit | zaplock | peer | " + " | ".join(
        f"ratio, {version}" for version in versions) + " |"]  # fmt: skip
    lines += ["|---|---|---|" + "---:|" * (2 + len(versions))]
    found = {one.key: one for one in last.figures}
    for row, peer in dict.fromkeys((one.row, one.peer) for one in last.figures):
        ratios = [found.get((row, peer, version)) for version in versions]
        first = next(one for one in ratios if one is not None)
        cells = [row, peer, first.unit, _amount(first.ours), _amount(first.theirs)]
        cells += [f"{one.ratio:.2f}" if one else "" for one in ratios]
        lines += ["| " + " | ".join(cells) + " |"]
    lines += [""]
    lines += [f"- {told}." for told in slower_pythons(last.figures)]
    lines += [f"- Not measured: {what}: {why}" for what, why in last.left_out.items()]
    lines += [f"- {run.commit[:12]}, a ratio fell: {run.accepted}" for run in runs if run.accepted]
    return [*lines, ""]


def _amount(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def drawing(runs: list[BenchRun]) -> Any:
    """Return a chart: a small one for each pair of figures, ratios over commits."""
    import altair

    rows = [
        {"what": f"{one.row} / {one.peer}", "ratio": one.ratio, "commit": run.commit[:8],
         "side": f"Python {one.python}, {run.machine.cpus} CPUs, {run.machine.cpu}"}
        for run in runs for one in run.figures
    ]  # fmt: skip
    commits = list(dict.fromkeys(run.commit[:8] for run in runs))
    colour = altair.Color("side:N", title=None, legend=altair.Legend(orient="bottom", columns=1,
                                                                     labelLimit=0))  # fmt: skip
    x = altair.X("commit:N", sort=commits, title=None)
    y = altair.Y("ratio:Q", title="times the peer", scale=altair.Scale(zero=True))
    lines = altair.Chart(altair.Data(values=rows), width=220, height=110).mark_line(point=True)
    what = altair.Facet("what:N", title=None, sort=list(dict.fromkeys(row["what"] for row in rows)))
    small = lines.encode(x=x, y=y, color=colour).facet(what, columns=3)
    return small.resolve_scale(y="independent")


def write() -> None:
    """Write the page and its drawing."""
    runs = read_runs()
    PAGE.write_text(text(runs))
    if runs:
        drawing(runs).save(str(DRAWING))


if __name__ == "__main__":
    write()
