"""What somebody meets who imports zaplock, completes a word, lacks a package, reads a man page."""

from __future__ import annotations

import builtins
import importlib
import inspect
import json
import re
import subprocess
import sys
import tomllib
import typing
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
from outside import project

import zaplock
from zaplock import buffers, extras, notebook, release
from zaplock.cli import WITH_SCHEMA, _manual, main, parser_of
from zaplock.cli._json_schemas import DOCUMENTS
from zaplock.cli._overview import SUMMARIES, glossary
from zaplock.errors import UserError
from zaplock.lab.lab import Observation
from zaplock.trace.teardown_outcome import OutcomeDetail, Stalls, TeardownOutcome

ROOT = Path(__file__).parent.parent
SCREEN = 80 * 24
HEAVY = {"altair", "distributed", "duckdb", "fsspec", "polars", "prometheus_client", "vl_convert"}


def members(home: type | object, names: list[str]) -> Iterator[tuple[str, object]]:
    """Give what a user can call or read: functions, and methods, properties, fields of classes."""
    for name in names:
        found = getattr(home, name)
        if not inspect.isclass(found):
            yield name, found
            continue
        yield name, found.__init__
        for key, one in vars(found).items():
            if not key.startswith("_"):
                yield f"{name}.{key}", one.fget if isinstance(one, property) else one
        for key, kind in inspect.get_annotations(found).items():
            yield f"{name}.{key}", kind


def types_of(one: object) -> str:
    if callable(one) and not isinstance(one, type):
        return str(getattr(inspect.unwrap(one), "__annotations__", {}))
    return str(one)


def face() -> list[tuple[str, object]]:
    own = [name for name in zaplock.__all__ if inspect.isclass(getattr(zaplock, name))]
    return [
        *members(zaplock, own),
        *members(notebook, notebook.__all__),
        *members(release, release.__all__),
        *members(buffers, buffers.__all__),
        *((cls.__name__ + "." + key, kind) for cls in (Stalls, TeardownOutcome, OutcomeDetail)
          for key, kind in cls.__annotations__.items()),
    ]  # fmt: skip


def test_no_type_of_the_public_face_is_any() -> None:
    overloaded = {"empty", "borrowed"}  # a checker sees the overloads, which name their types
    any_typed = [
        name for name, one in face() if name not in overloaded and "Any" in types_of(one).split("'")
    ]
    assert len(face()) > 80
    assert any_typed == []
    for name in overloaded:
        seen = typing.get_overloads(getattr(buffers.arrays, name))
        assert len(seen) == 3
        assert not any("Any" in str(one.__annotations__) for one in seen)


def test_what_there_is_is_named_and_explained() -> None:
    assert dir(zaplock) == sorted(zaplock.__all__)
    for name in zaplock.__all__:
        assert name in str(zaplock.__doc__) or name == "__version__"
        assert getattr(zaplock, name).__doc__, name
    for name, one in face():
        if inspect.isfunction(one) and one.__name__ != "__init__":
            assert one.__doc__, f"{name} has no docstring"


def test_the_help_of_release_names_the_default_that_it_has() -> None:
    bound = inspect.signature(release).parameters["max_stall_ns"].default
    assert f"max_stall_ns={bound:_}," in inspect.getdoc(release).partition("\n")[0]  # type: ignore[union-attr]


def test_a_project_outside_runs_as_it_is_typed(tmp_path: Path) -> None:
    project.frees()
    project.compares(tmp_path)
    project.tries(tmp_path)
    project.proves()
    project.reads(tmp_path / "seen.zaplock")
    assert {"who.svg", "seen.html"} <= {file.name for file in tmp_path.iterdir()}


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a simulated run is recorded."""
    return tmp_path_factory.mktemp("results") / "seen.zaplock"


@pytest.fixture(scope="module", autouse=True)
def results(seen: Path) -> dict[str, object]:
    """One result of each kind, as a notebook would show it."""
    lab = zaplock.Lab("linux-4.18")
    heap = lab.map("64M")
    lab.thread("<db>", lambda cx: cx.design.munmap(cx, heap, 64 << 20))
    lab.bystander("proc")
    run = lab.run()
    run.save(seen)
    comparison = zaplock.compare("64M", designs=["linux-4.18"], bystanders=[("proc",)])
    return {
        "comparison": comparison,
        "run": run,
        "recording": zaplock.report(seen),
        "verdict": zaplock.prove("expand", "linux-4.20"),
        "analysis": run.analysis,
        "plain run": Observation(run.design, run.events, {}, run.stalls, (), run.duration_ns),
        "holds": run.analysis.holds,
    }


def test_a_result_prints_on_one_screen(results: dict[str, object]) -> None:
    for kind, result in results.items():
        if kind != "verdict":
            assert len(repr(result)) < SCREEN, kind
    assert repr(results["verdict"]).startswith("expand under linux-4.20: broken")


def test_a_result_draws_itself_and_strangers_names_are_no_markup(
    results: dict[str, object],
) -> None:
    for kind in ("comparison", "run", "recording", "verdict"):
        drawn = results[kind]._repr_html_()  # type: ignore[attr-defined]
        assert 200 < len(drawn) < 50_000, kind
        assert "<db>" not in drawn
    assert "&lt;db&gt;" in results["recording"]._repr_html_()  # type: ignore[attr-defined]
    assert "31 us" not in repr(results["recording"])


CELLS = """
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

shell = InteractiveShell.instance()
shell.run_line_magic("load_ext", "zaplock")
with capture_output() as seen:
    maps = "from mmap import mmap\\nm = mmap(-1, 1 << 24)\\nm.close()"
    ended = shell.run_cell("%%zaplock -o told\\n" + maps)
assert ended.success, ended
print(seen.stdout + seen.stderr, repr(shell.user_ns.get("told")), shell.user_ns["m"].closed)
with capture_output() as seen:
    assert not shell.run_cell("%%zaplock\\n1 / 0").success
    assert not shell.run_cell("%%zaplock nonsense\\nm = 7").success
assert shell.user_ns["m"] != 7
"""


def test_a_cell_of_a_notebook_is_recorded() -> None:
    """In a real IPython; without root it says why not, and the cell has run all the same."""
    pytest.importorskip("IPython")
    ended = subprocess.run([sys.executable, "-c", CELLS], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.rstrip().endswith("True")
    recorded = "events in" in ended.stdout or "none lost" in ended.stdout
    assert recorded or "the cell was not recorded: " in ended.stdout


def test_the_core_imports_no_package_of_an_extra() -> None:
    code = (
        "import sys, zaplock.cli, zaplock.author, zaplock.notebook, zaplock.recorder.session\n"
        "import zaplock.trace.reading, zaplock.views.report_text, zaplock.replay.replay\n"
        "import zaplock.agent.main_loop, zaplock.advise.calls, zaplock.check.verdicts\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_every_extra_is_in_the_project_and_every_package_in_its_extra() -> None:
    about = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    offered = about["optional-dependencies"]
    told = {"IPython": "ipython", "google": "perfetto", "vl_convert": "vl-convert-python"}
    for package, extra in extras.EXTRAS.items():
        names = [one.partition(">")[0] for one in offered[extra]]
        assert told.get(package, package) in names, (package, extra)
    page = (ROOT / "docs" / "installing.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.M)) == set(offered) - {"dev"}


@pytest.mark.parametrize(
    ("package", "arguments", "extra"),
    [
        ("altair", ["compare", "1M", "--no-measure", "--plot", "x.svg"], "plots"),
        ("polars", ["report", "seen.zaplock", "--csv", "out"], "frames"),
        ("polars", ["fleet", "report", "store"], "fleet"),
        ("perfetto", ["report", "seen.zaplock", "--perfetto", "x.pftrace"], "perfetto"),
    ],
)
def test_who_lacks_a_package_is_told_the_extra(
    package: str,
    arguments: list[str],
    extra: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    lab = zaplock.Lab("linux-6.18")
    heap = lab.map("1M")
    lab.thread("db", lambda cx: cx.design.munmap(cx, heap, 1 << 20))
    lab.run().save("seen.zaplock")
    real = builtins.__import__

    def lacking(name: str, *rest: object) -> object:
        if name.partition(".")[0] == package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *rest)  # type: ignore[arg-type]

    for module in [one for one in sys.modules if one.startswith("zaplock.fleet")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(builtins, "__import__", lacking)
    assert main(arguments) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.endswith(f"needs {package}, which isn't here: pip install 'zaplock[{extra}]'")


def test_an_import_that_fails_for_another_reason_goes_on() -> None:
    with pytest.raises(ModuleNotFoundError, match="nothing_of_ours"), extras.needed("this"):
        importlib.import_module("nothing_of_ours")
    with pytest.raises(UserError, match=r"a picture needs altair.*zaplock\[plots\]"), extras.needed(
        "a picture"
    ):  # fmt: skip
        raise ModuleNotFoundError("No module named 'altair'", name="altair")


def schema_of(verb: str, capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    with pytest.raises(SystemExit):
        main([verb, "--json-schema"])
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize("verb", WITH_SCHEMA)
def test_every_verb_that_prints_json_has_a_schema(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever document a test lets a verb print is held against it (conftest.py)."""
    schema = schema_of(verb, capsys)
    assert schema["$id"] == f"urn:zaplock:{verb}:1"
    jsonschema.Draft202012Validator.check_schema(schema)
    for nonsense in ("nonsense", {"nonsense": 1}, [[]]):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(nonsense, schema)


def test_the_verbs_with_a_schema_are_those_that_take_json() -> None:
    takes = {
        verb for verb in SUMMARIES if re.search(r"--json\b(?!-)", parser_of(verb).format_help())
    }
    assert takes | {"fleet"} == set(WITH_SCHEMA) == set(DOCUMENTS)  # fleet's verbs take it


@pytest.mark.parametrize(
    "command",
    [
        "diff seen.zaplock seen.zaplock",
        "compare 1M 2M --no-measure --design linux-6.18 --bystanders none",
        "check expand --design linux-4.20,linux-6.18",
        "check --list",
        "calibrate --units",
        "designs",
        "designs linux-5.10",
    ],
)
def test_json_that_no_other_test_asks_for(
    command: str, seen: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(seen.parent)
    main([*command.split(), "--json"])
    told, schema = json.loads(capsys.readouterr().out), schema_of(command.split()[0], capsys)
    jsonschema.validate(told, schema)


def test_every_verb_has_a_manual_page_with_its_options(tmp_path: Path) -> None:
    written = [file for files in _manual.write(tmp_path).values() for file in files]
    pages = {file.name: file.read_text() for file in written if file.suffix == ".1"}
    assert pages.keys() == {"zaplock.1", *(f"zaplock-{verb}.1" for verb in SUMMARIES)}
    for verb in SUMMARIES:
        for option in parser_of(verb)._option_string_actions:
            assert option.replace("-", "\\-") in pages[f"zaplock-{verb}.1"], (verb, option)
    bash = tmp_path / _manual.COMPLETIONS["bash"]
    subprocess.run(["bash", "-n", bash], check=True)
    ask = f"source {bash}; COMP_WORDS=(zaplock rep); COMP_CWORD=1; _shtab_zaplock"
    ask += "; echo ${COMPREPLY[@]}"
    assert subprocess.check_output(["bash", "-c", ask], text=True).split() == ["replay", "report"]


def test_help_explains_verbs_and_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help", "convoy"]) == 0
    assert capsys.readouterr().out.startswith("convoy: readers behind a queued writer")
    assert main(["help", "convoi"]) == 2
    assert "(did you mean convoy?)" in capsys.readouterr().err
    assert len(glossary()) > 50
    with pytest.raises(SystemExit):
        main(["help", "report"])
    assert "longest holds" in capsys.readouterr().out


def test_the_workflow_runs_what_ci_runs_on_every_python_that_is_promised() -> None:
    text = (ROOT / ".github" / "workflows" / "tests.yml").read_text()
    about = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    known = [one.rpartition(" ")[2] for one in about["classifiers"] if "Python :: 3." in one]
    assert json.loads(text.partition("python: ")[2].splitlines()[0]) == known
    assert "bash .ci/run" in text
