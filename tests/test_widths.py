"""Every verb's answer and tables at 40, 80, 120 and 200 columns: no figure is cut, no word broken.

What a pipe gets is the measure: it has no width, so there everything stands whole. At each width
every line fits, and every figure and every word is one that the pipe got, too.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING
from unittest.mock import patch

import pytest
from rich.cells import cell_len
from scenes import crowd, database

from zaplock.cli import main
from zaplock.cli._overview import SUMMARIES
from zaplock.cli._streams import guarded
from zaplock.designs import load
from zaplock.trace import recording_file
from zaplock.trace.analysis import analyse
from zaplock.trace.summary import summarise

if TYPE_CHECKING:
    from zaplock.check.counterexample import Story
    from zaplock.check.scenarios import Scenario
    from zaplock.check.verdicts import CheckResult
    from zaplock.lab.compare import Comparison
    from zaplock.replay.replay import Replay

WIDTHS = (40, 80, 120, 200)
FIGURE = re.compile(r"(?<![\w.,/-])[+-]?\d[\d,.]*(?: (?:[num]?s|[KMGT]iB|B|%)(?!\w))?")
PAINT = re.compile(r"\x1b\[[\d;]*m")
OWN = {"a", "wider", "terminal", "has", "also:", "held:", "\\"}
"""Words that only a narrow terminal is told."""

Show = Callable[[], object]


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def shown(show: Show, monkeypatch: pytest.MonkeyPatch, width: int | None = None) -> list[str]:
    """Return the lines that are printed to a terminal of a width, or to a pipe (None)."""
    out: io.StringIO = io.StringIO() if width is None else Terminal()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", io.StringIO())
        patch.delenv("COLUMNS", raising=False)
        patch.setenv("TERM", "xterm")
        if width is not None:
            patch.setenv("COLUMNS", str(width))
        with guarded():
            show()
    return PAINT.sub("", out.getvalue()).splitlines()


def pieces(lines: list[str]) -> set[str]:
    """Return the words of an output; a list that has no blanks (`read|write`) is several."""
    words = re.split(r"[\s|]+", " ".join(line for line in lines if set(line) - set("─- ")))
    return {word.strip("(),") for word in words if set(word) != {"#"}}


def figures(lines: list[str]) -> set[str]:
    return {found for line in lines for found in FIGURE.findall(line)}


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two recordings in a directory of their own, so that their names are short."""
    folder = tmp_path_factory.mktemp("golden")
    here = Path.cwd()
    os.chdir(folder)
    about = recording_file.Manifest(source="test", kernel="6.18.0", clock="mono")
    recording_file.write("db.zaplock", database(), about)
    recording_file.write("crowd.zaplock", crowd(3000), about)
    assert main(["fleet", "simulate", "store", "--hosts", "3", "--seed", "1"]) == 0
    yield folder
    os.chdir(here)


def test_a_spinner_turns_on_the_spot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its control reaches the terminal as it is; what is said beside it is shown plainly."""
    from zaplock.cli._busy import busy

    err = Terminal()
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setenv("TERM", "xterm")
    with guarded(), busy("looking"):
        print("a comm of \x01", file=sys.stderr)
    assert "looking" in err.getvalue()
    assert "\x1b[?25l" in err.getvalue()  # the cursor is hidden
    assert "\\x1b" not in err.getvalue()
    assert "a comm of \\x01" in err.getvalue()


def verb(command: str) -> Show:
    return lambda: main(command.split())


@cache
def compared() -> Comparison:
    from zaplock.lab import profiles
    from zaplock.lab.compare import compare
    from zaplock.lab.experiment import SimulatedExperiment

    designs = [load(name) for name in ("linux-4.9", "rfc-v6", "linux-6.18-dying")]
    blocks = [("fault", "proc", "mmap", "fork", "mprotect")]
    return compare(
        designs, SimulatedExperiment(length=16 << 10), profiles.load("e5-2680-rfc"), blocks=blocks
    )


def of_compare() -> None:
    from zaplock.cli.compare import _print

    assert compared().brk1
    _print(compared())


@cache
def replayed() -> Replay:
    from zaplock.lab import profiles
    from zaplock.replay.replay import replay

    profile = profiles.load("e5-2680-rfc")
    return replay(analyse(database(), "6.18.0"), profile, designs=[load("linux-4.9")])


def of_replay() -> None:
    from zaplock.cli.replay import _print

    _print(replayed())


def of_why() -> None:
    from zaplock.views.live import why_lines

    print(*why_lines(summarise(analyse(database(), "6.18.0")), seconds=5), sep="\n")


def of_top() -> None:
    from zaplock.views.console import Screen
    from zaplock.views.report_text import live_screen

    Screen().print(live_screen(summarise(analyse(crowd(2000), "6.18.0")), top=8))


def of_advice() -> None:
    from zaplock.advise.calls import from_recording
    from zaplock.advise.costs import Costs
    from zaplock.cli.advise import _print

    costs = Costs(1 << 30, {"munmap": 90_000_000, "dontneed": 80_000_000, "touch": 1})
    told = from_recording(summarise(analyse(database(), "6.18.0")), costs, least_ns=1000)
    assert told.advice
    _print(SimpleNamespace(top=5, least="1us"), told, list(told.advice), costs)  # type: ignore[arg-type]


def of_measure() -> None:
    from zaplock.cli.measure import headline, sentences, table
    from zaplock.trace.teardown_outcome import Stalls, TeardownOutcome
    from zaplock.views.console import Screen

    rows = []
    for times in (1, 3):
        stalls = {
            name: Stalls(412 * times, 12_345, 123_456 * times, 2_190_000 * times)
            for name in ("fault", "proc")
        }
        idle = {name: one.to_json() for name, one in stalls.items()}
        rows.append(
            TeardownOutcome(
                design="this kernel, 6.18.44",
                bystanders=tuple(stalls),
                munmap_ns=1_010_000_000 * times,
                exclusive_hold_ns=6180,
                shared_hold_ns=1_000_000_000 * times,
                stalls=stalls,
                extra={"backing": "zero", "size": 1 << 30, "teardown": "munmap", "idle": idle},
            )
        )
    print(headline(rows), *sentences(rows), sep="\n")
    Screen().print(table(rows))


def of_calibration() -> None:
    from zaplock.cli.calibrate import Checked, _show, _show_checked
    from zaplock.lab import profiles

    _show(profiles.load("e5-2680-rfc"), Path("mine.toml"))
    took_ns = (2_485_692_000, 2_300_000_000, 2_299_000_000, 2_298_000_000, 10_123_000_000)
    _show_checked([Checked("zero", 80 << 30, *took_ns, took_ns[0])])


def of_fidelity() -> None:
    from test_fidelity import row

    from zaplock.cli import _fidelity_text as text
    from zaplock.views.console import Screen

    print(*text.sentences([row()], []), sep="\n")
    Screen().print(text.table([row()]))


@cache
def checked() -> tuple[Scenario, CheckResult, Story]:
    from zaplock.check.counterexample import tell
    from zaplock.check.verdicts import check, closed_system, find_design, find_scenario

    scenario, design = find_scenario("expand"), find_design("rfc-v6")
    found = check(scenario, design)
    assert found.schedule is not None
    system = closed_system(scenario, design, found.fair)
    return scenario, found, tell(system, found.schedule, ("munmap", "grow"), found.groups)


def of_a_check() -> None:
    from zaplock.cli._check_one import _print_verdicts

    scenario, found, story = checked()
    _print_verdicts(scenario, [found], [story], sampled=False)


def of_the_matrix() -> None:
    from zaplock.check.matrix import Cell, Killed
    from zaplock.cli._check_all import _print_matrix
    from zaplock.views.console import Screen
    from zaplock.views.matrix import mutation_table

    designs = ["linux-4.9", "linux-4.18", "rfc-v6-posted", "linux-6.18-dying"]
    cells = [Cell("munmap-dontneed-fault", name, "proved", 1_234_567, 1.5) for name in designs]
    _print_matrix(cells, designs)
    Screen().print(
        mutation_table(
            [Killed("linux-6.18", "no-detached-recheck", "looks once", "munmap+fault", "PTE")]
        )
    )


def of_the_oracle() -> None:
    from zaplock.cli._oracle_text import print_report, print_table
    from zaplock.oracle.report import Report
    from zaplock.programs.replay import StraceVerdict

    report = Report()
    report.operations, report.sequences, report.seconds = 1_234_567, 12_345, 321.0
    print_report(report, with_coverage=True)
    verdict = StraceVerdict()
    verdict.agreeing = 12_345
    print_table([(Path("firefox-esr.strace"), verdict)], as_json=False)


def of_scale() -> None:
    from zaplock.cli.scale import _print
    from zaplock.lab.scale import MachineOfTheirs, Point

    points = [
        Point(design, "anon-faults", cpus, 1_234_567.0 * cpus)
        for design in ("linux-4.9", "linux-6.18-dying")
        for cpus in (1, 2, 16, 128)
    ]
    _print(points, [], "linux-4.9", MachineOfTheirs(78))


def of_record() -> None:
    from zaplock.cli.record import _say
    from zaplock.recorder.session import RecordingProgress

    progress = RecordingProgress(12.3, 1_234_567, 42)
    _say(SimpleNamespace(json=False, watch=False), "db.zaplock", progress, None, [])  # type: ignore[arg-type]


def of_import() -> None:
    shutil.rmtree("imported.zaplock", ignore_errors=True)
    main(["import", str(TRACE), "-o", "imported.zaplock"])


def of_doctor() -> None:
    with patch("zaplock.recorder.doctor.lock_cost", lambda *_: 1463.0):  # else as measured
        main(["doctor"])


def help_of(name: str) -> Show:
    def ask() -> None:
        with contextlib.suppress(SystemExit):
            main([*name.split(), "--help"])

    return ask


TRACE = Path(__file__).parent / "fixtures" / "recorder" / "ftrace-6.18.txt"
FLEET = ("fleet", "fleet report", "fleet ask", "fleet replay", "fleet advise", "fleet simulate")

VERBS: dict[str, Show] = {
    "alone": lambda: main([]),
    "help": lambda: main(["--help"]),
    "compare": of_compare,
    "report": verb("report db.zaplock"),
    "report of a crowd": verb("report crowd.zaplock"),
    "replay": of_replay,
    "diff": verb("diff db.zaplock crowd.zaplock"),
    "check": of_a_check,
    "check --list": verb("check --list"),
    "check --all": of_the_matrix,
    "designs": verb("designs"),
    "a design": verb("designs linux-5.10"),
    "two designs": verb("designs 6.5 6.6"),
    "doctor": of_doctor,
    "units": verb("calibrate --units"),
    "calibrate": of_calibration,
    "why": of_why,
    "top": of_top,
    "advise": of_advice,
    "measure": of_measure,
    "fidelity": of_fidelity,
    "oracle": of_the_oracle,
    "scale": of_scale,
    "record": of_record,
    "import": of_import,
    "fleet report": verb("fleet report store"),
    **{f"help {name}": help_of(name) for name in (*SUMMARIES, *FLEET)},
}


def test_every_verb_is_looked_at() -> None:
    """Of `agent` and `run` only their help, since they say nothing else."""
    looked_at = {name.removeprefix("help ").split()[0] for name in VERBS}
    assert looked_at >= SUMMARIES.keys()
    answers = {name.split()[0] for name in VERBS if not name.startswith("help ")}
    assert SUMMARIES.keys() - answers == {"agent", "run"}


@pytest.mark.parametrize("name", VERBS)
def test_nothing_is_cut_at_any_width(
    name: str, golden: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = shown(VERBS[name], monkeypatch)
    assert whole
    assert not [line for line in whole if "…" in line]
    for width in WIDTHS:
        lines = shown(VERBS[name], monkeypatch, width)
        wide = [line for line in lines if cell_len(line) > width and " " in line.strip()]
        assert not wide, f"at {width} columns"
        assert not [line for line in lines if "…" in line], f"at {width} columns"
        cut = figures(lines) - figures(whole)
        assert not cut, f"at {width} columns"
        broken = pieces(lines) - pieces(whole) - OWN
        assert not broken, f"at {width} columns"
