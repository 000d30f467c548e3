"""A file of a user's own: design, operation, invariant, scenario, mutation (docs/authors.md)."""

from __future__ import annotations

import ast
import io
import json
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import zaplock.author as author
from zaplock.check.own_operations import OwnInvariant, OwnOperation
from zaplock.check.verdicts import check, find_design, find_scenario
from zaplock.cli import main
from zaplock.errors import UserError

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "docs" / "examples"
GUIDE = (ROOT / "docs" / "authors.md").read_text()
CODE = re.findall(r"^```python\n(.*?)^```", GUIDE, re.M | re.S)
TRANSCRIPTS = re.findall(r"^```\n\$ ([^\n]*)\n(.*?)^```", GUIDE, re.M | re.S)
FIGURES = re.compile(r" *\d+\.\d+ s\b|\d+ % of the time|\d+ positions and \d+ steps|(?<=\.py):\d+")
"""What another run need not repeat: times, lines, and how much an audit came to."""


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = main(["check", *argv])
    out = capsys.readouterr()
    return code, out.out, out.err


# The guide


@pytest.mark.parametrize("number", range(len(CODE)))
def test_what_the_guide_shows_stands_in_its_files(number: int) -> None:
    files = [file.read_text() for file in EXAMPLES.glob("*_buffers.py")]
    assert any(CODE[number] in text for text in files)


@pytest.mark.parametrize(("command", "shown"), TRANSCRIPTS, ids=range(len(TRANSCRIPTS)))
def test_the_commands_of_the_guide_print_what_it_shows(
    command: str, shown: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(EXAMPLES)
    monkeypatch.syspath_prepend(EXAMPLES)
    fed, _, command = command.rpartition(" | ")
    lines = shlex.split(fed)[1].replace("\\n", "\n") if fed else ""
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    program, *words = shlex.split(command)
    if program == "python":
        runpy.run_path(words[0])
    else:
        main(words)
    printed = [FIGURES.sub("", line).rstrip() for line in capsys.readouterr().out.splitlines()]
    at = 0
    for part in FIGURES.sub("", shown).split("...\n"):
        wanted = [line.rstrip() for line in part.splitlines()]
        while printed[at : at + len(wanted)] != wanted:
            at += 1
            assert at < len(printed), f"not printed:\n{part}"
        at += len(wanted)


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.py")), ids=lambda file: file.stem)
def test_examples_import_the_face_for_authors_and_nothing_behind_it(file: Path) -> None:
    allowed = {"zaplock", "zaplock.author", "zaplock.trace.holds", "zaplock.units"}
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("zaplock"):
            assert node.module in allowed


@pytest.mark.parametrize("name", author.__all__)
def test_every_name_of_the_face_is_there_and_told_of(name: str) -> None:
    assert re.search(rf"\b{name}\b", str(author.__doc__))
    value = getattr(author, name)
    assert value.__doc__ or not callable(value)


# A file outside the tree


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    file = tmp_path / "mine.py"
    file.write_text((EXAMPLES / "registered_buffers.py").read_text())
    return file


def test_a_file_of_ones_own_is_proved_and_broken_without_one_step(
    capsys: pytest.CaptureFixture[str], mine: Path
) -> None:
    scenario, design = f"{mine}:REGISTERING", f"{mine}:REFUSING"
    code, out, _ = run(capsys, scenario, "--design", design, "--json")
    assert (code, json.loads(out)["verdict"]) == (0, "proved")
    mutant = f"{design}/{mine}:NO_LOCK"
    code, out, err = run(capsys, scenario, "--design", mutant, "--json")
    found = json.loads(out)
    assert (code, found["invariant"]) == (1, "BUFFER_STAYS_MAPPED")
    # Who replays it gives the files: a token may come from anybody.
    for given in ([], ["--design", mutant], [scenario]):
        code, _, said = run(capsys, *given, "--replay", found["token"])
        assert code == 2
        assert "if you trust that file" in said
    code, out, _ = run(capsys, scenario, "--replay", found["token"], "--design", mutant)
    assert code == 1
    assert "BUFFER_STAYS_MAPPED: page 0 is registered" in out
    assert f"zaplock check {scenario} --replay" in err


@pytest.mark.parametrize("how", [["--exact"], ["--jobs", "2"], ["--sample", "300", "--pct", "2"]])
def test_every_search_watches_an_invariant_of_ones_own(
    capsys: pytest.CaptureFixture[str], mine: Path, how: list[str]
) -> None:
    code, out, _ = run(
        capsys, f"{mine}:REGISTERING", "--design", f"{mine}:REFUSING/{mine}:NO_LOCK", "--json", *how
    )
    assert (code, json.loads(out)["invariant"]) == (1, "BUFFER_STAYS_MAPPED")


def test_a_toml_scenario_gets_operations_and_invariants_by_options(
    capsys: pytest.CaptureFixture[str], mine: Path
) -> None:
    toml = mine.with_suffix(".toml")
    toml.write_text(
        'summary = "x"\n[[map]]\npages = [0, 4]\n'
        '[[task]]\ndo = ["register 0 1"]\n[[task]]\ndo = ["munmap 0 4"]\n'
    )
    added = ["--operation", f"{mine}:REGISTER", "--invariant", f"{mine}:STAYS_MAPPED"]
    code, out, err = run(capsys, str(toml), "--design", "linux-6.18", "--json", *added)
    found = json.loads(out)
    assert (code, found["invariant"]) == (1, "BUFFER_STAYS_MAPPED")
    assert f"--operation {mine}:REGISTER --invariant {mine}:STAYS_MAPPED" in err
    code, out, _ = run(capsys, "--replay", found["token"], *added)
    assert code == 1
    code, _, err = run(capsys, str(toml), "--design", "linux-6.18")
    assert code == 2
    assert "no operation 'register'" in err


def test_a_mutation_of_ones_own_is_scored_as_zaplocks_are(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from zaplock.author import *\n"
        'NO_ZAP = Mutation(name="no-zap", summary="x", rule=lambda: Skip("zap_pte_range", False))\n'
    )
    code, out, _ = run(capsys, "--mutations", "--design", f"linux-6.18/{file}:NO_ZAP", "--json")
    found = json.loads(out)
    assert (code, len(found)) == (0, 1)
    assert found[0]["invariant"]


def test_an_invariant_that_watches_nothing_is_vacuous(
    capsys: pytest.CaptureFixture[str], mine: Path
) -> None:
    code, out, _ = run(
        capsys, "munmap+gup", "--design", "linux-6.18", "--json",
        "--invariant", f"{mine}:STAYS_MAPPED",
    )  # fmt: skip
    assert (code, json.loads(out)["verdict"]) == (3, "vacuous")
    assert json.loads(out)["why"] == "never: something for BUFFER_STAYS_MAPPED to watch"


# What goes wrong in such a file

WRONG = """
from zaplock.author import *

async def fails(cx, page):
    return {}[page]

async def nothing(cx, page):
    pass

def plain(cx, page):
    return 0

@step
def divide(m, task, by):
    return 1 // by

async def divides(cx, page):
    return await divide(page)

async def asserts(cx, start, length):
    assert length == 3, "three"
    return 0

async def busy(cx, start, length):
    return -16

def scenario(run, **fields):
    operation = OwnOperation(name="op", run=run, arguments=("page",), summary="x")
    tasks = [TaskSpec(["op 0"]), TaskSpec(["read 0 -> 0"])]
    return Scenario(summary="s", map=[InitialMapping((0, 2))], task=tasks,
                    operations=(operation,), **fields)

FAILS, NOTHING, PLAIN, DIVIDES = map(scenario, (fails, nothing, plain, divides))
NUMBER = Scenario(summary=3, task=[TaskSpec(["read 0"])])
WORD = Scenario(summary="x", task=[TaskSpec("read 0")])
LARGE = Scenario(summary="x", map=[InitialMapping((0, 1 << 20))], task=[TaskSpec(["read 0"])])
THREE = Scenario(summary="x", task=[TaskSpec(["read 0"])], operations=(3,))
ASSERTS = replace(SHIPPED["linux-6.18"], name="a", munmap=asserts)
BUSY = replace(SHIPPED["linux-6.18"], name="b", munmap=busy)
SYNC = replace(SHIPPED["linux-6.18"], name="c", munmap=lambda cx, start, length: 0)
NONE = replace(SHIPPED["linux-6.18"], name="d", munmap=None)
YES = OwnInvariant(name="YES", says="x", always=lambda m: True)
RAISES = OwnInvariant(name="RAISES", says="x", always=lambda m: m.nothing)
SOMETIMES = OwnInvariant(name="SOMETIMES", says="x", sometimes=lambda m: m.nothing)
NO_RULE = Mutation(name="m", summary="x", rule=lambda: 3)
NO_FIELD = Mutation(name="m", summary="x", changes=lambda d: {"nope": 1})
ELSEWHERE = Mutation(name="m", summary="x", where=lambda d: False)
"""
PAIR = ["munmap+fault", "--design"]


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["FILE:FAILS", "--design", "linux-6.18"], 4, "KeyError in fails (mine.py:5)"),
        (
            ["FILE:NOTHING", "--design", "linux-6.18"],
            4,
            "operation 'op' under linux-6.18 returned None",
        ),
        (["FILE:PLAIN", "--design", "linux-6.18"], 4, "what it runs gave 0 and no protocol"),
        (["FILE:DIVIDES", "--design", "linux-6.18"], 4, "ZeroDivisionError in divide"),
        (["FILE:NUMBER"], 2, "Expected `str`, got `int`"),
        (["FILE:WORD"], 2, "Expected `array`, got `str`"),
        (["FILE:LARGE"], 2, "must lie between 0 and 16384"),
        (["FILE:THREE"], 2, "operation 3 is no OwnOperation"),
        (["FILE:ASSERTS"], 2, "'ASSERTS' in 'FILE' is a Design, and has to be a Scenario"),
        (["FILE:GONE"], 2, "is not there, and has to be a Scenario; the file has FAILS, NOTHING"),
        ([*PAIR, "FILE:ASSERTS"], 1, "an assertion fails in asserts (mine.py:21): three"),
        ([*PAIR, "FILE:ASSERTS", "--exact"], 1, "an assertion fails in asserts"),
        ([*PAIR, "FILE:ASSERTS", "--jobs", "2"], 1, "an assertion fails in asserts"),
        ([*PAIR, "FILE:SYNC"], 4, "what it runs gave 0 and no protocol"),
        ([*PAIR, "FILE:NONE"], 2, "munmap is None, no protocol"),
        ([*PAIR, "linux-6.18", "--invariant", "FILE:YES"], 4, "returned True; return what is"),
        ([*PAIR, "linux-6.18", "--invariant", "FILE:RAISES"], 4, "AttributeError"),
        ([*PAIR, "linux-6.18", "--invariant", "FILE:SOMETIMES"], 4, "sometimes fails"),
        ([*PAIR, "linux-6.18", "--operation", "FILE:YES"], 2, "has to be an OwnOperation"),
        ([*PAIR, "linux-6.18", "--invariant", "mine"], 2, "such as mine.py:MINE for"),
        ([*PAIR, "linux-6.18", "--invariant", "gone.py:X"], 2, "does not exist"),
        ([*PAIR, "linux-6.18/FILE:NO_RULE"], 2, "its `rule` makes 3, no Rule"),
        ([*PAIR, "linux-6.18/FILE:NO_FIELD"], 2, "unexpected keyword argument 'nope'"),
        ([*PAIR, "linux-6.18/FILE:ELSEWHERE"], 2, "can't be made in linux-6.18"),
        (["--all", "--operation", "FILE:X"], 2, "are for one SCENARIO"),
        (["--mutations", "--invariant", "FILE:YES"], 2, "not for --mutations"),
    ],
)
def test_what_is_wrong_in_ones_own_code_is_told_and_no_traceback(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, argv: list[str], code: int, words: str
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(WRONG)
    argv = [word.replace("FILE", str(file)) for word in argv]
    found, out, err = run(capsys, *argv)
    assert found == code, out + err
    assert words.replace("FILE", str(file)) in out + err
    assert "Traceback" not in out + err
    assert code == 1 or "FILE:" in str(argv) or len(err.splitlines()) <= 2


@pytest.mark.parametrize(
    ("design", "words"),
    [
        ("ASSERTS", "AssertionError in asserts (mine.py:21): three"),
        ("BUSY", "returned -16 for the mapping under study"),
        ("SYNC", "TypeError"),
    ],
)
def test_a_comparison_tells_what_is_wrong_in_ones_own_munmap(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, design: str, words: str
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(WRONG)
    code = main(["compare", "1G", "--no-measure", "--design", f"{file}:{design}"])
    err = capsys.readouterr().err
    assert code in (2, 4)
    assert words in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1 +", "fails with SyntaxError in line 1"),
        ("\n1 / 0", "fails with ZeroDivisionError in line 2"),
        ("import sys\nsys.exit(7)", "fails with SystemExit in line 2"),
        ("from zaplock.author import nothing", "fails with ImportError in line 1"),
        ("from zaplock.author import *\nLockClass('mmap_lock')", "zaplock has one of that name"),
        ("from zaplock.author import *\nLockClass('My Lock')", "write its name in small letters"),
        ("from zaplock.author import *\nOwnCells('vmas', 0)", "zaplock has one of that name"),
        ("from zaplock.author import *\nOwnInvariant(name='NO_DEADLOCK', says='')", "none of"),
        ("from zaplock.author import *\nOwnInvariant(name='X', says='', always=lambda: 1)",
         "always has to take 1 arguments"),
        ("from zaplock.author import *\nOwnOperation(name='munmap', run=print, arguments=(), "
         "summary='')", "and none of zaplock's own ('zaplock check --list')"),
        ("from zaplock.author import *\nOwnOperation(name='x', run=lambda cx: 0, "
         "arguments=('page',), summary='')", "run has to take 2 arguments"),
    ],
)  # fmt: skip
def test_a_file_that_fails_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, words: str
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(text)
    code, _, err = run(capsys, f"{file}:X")
    assert code == 2
    assert words in err
    assert len(err.splitlines()) == 1


def test_a_toml_file_brings_no_code_of_its_own(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('summary = "x"\noperations = ["x"]\n[[task]]\ndo = ["read 0"]\n')
    code, _, err = run(capsys, str(file))
    assert code == 2
    assert "give them by --operation" in err


def test_a_design_and_a_scenario_of_one_file_share_its_classes(mine: Path) -> None:
    from zaplock.designs.own_files import named_in_file

    first = named_in_file(f"{mine}:REGISTER", OwnOperation, "an OwnOperation")
    assert named_in_file(f"{mine}:REGISTER", OwnOperation, "an OwnOperation") is first
    mine.write_text(mine.read_text() + "\n")
    assert named_in_file(f"{mine}:REGISTER", OwnOperation, "an OwnOperation") is not first
    with pytest.raises(UserError, match="the file has STAYS_MAPPED, IS_COUNTED"):
        named_in_file(f"{mine}:REGISTER", OwnInvariant, "an OwnInvariant")


# State by state


def explore(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], lines: str, *argv: str
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    return run(capsys, "--explore", *argv)


EXPAND = ("expand", "--design", "rfc-v6")


def test_a_bug_is_walked_into_by_hand_and_out_of_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = "munmap 12\nmunmap 3\ngrow!\nmunmap\nback\nback 4\nquit\nmunmap\n"
    code, out, err = explore(monkeypatch, capsys, lines, *EXPAND)
    states = out.split("\n> ")
    assert "BROKEN  NO_VMA_OVER_FREED_TABLES: grow puts a VMA over [p11, p12)" in states[3]
    assert "nobody moves any more: go back" in states[4]
    assert "BROKEN" not in states[5]
    assert "locks   mmap_lock: munmap D, grow R" in states[5]
    assert states[7].startswith("quit\nnext: zaplock check --explore --replay")
    assert (code, err) == (0, "")


def test_going_back_and_on_comes_to_the_same_state(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = "munmap 8\ngrow\nback 5\nmunmap 4\ngrow\n"
    _, out, _ = explore(monkeypatch, capsys, lines, "--json", *EXPAND)
    states = [json.loads(line) for line in out.splitlines()]
    assert states[2] == states[5]
    assert [one["step"] for one in states] == [0, 8, 9, 4, 8, 9]


def test_what_is_asked_for_while_exploring_is_json_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out, _ = explore(monkeypatch, capsys, "munmap\nsteps\nstate\ntoken\n", "--json", *EXPAND)
    asked = [json.loads(line) for line in out.splitlines()][2:]
    assert [list(one) for one in asked] == [["steps"], ["state"], ["token"]]


def test_a_token_is_explored_from_where_it_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out, _ = run(capsys, *EXPAND, "--json")
    token = json.loads(out)["token"]
    code, out, _ = explore(monkeypatch, capsys, "steps\ntoken\n", "--replay", token)
    assert code == 1, "what is left is broken"
    assert "expand_stack" in out
    again = re.search(r"^expand@rfc-v6~\S+$", out, re.M)
    assert again
    code, out, _ = run(capsys, "--replay", again[0])
    assert code == 1


def test_a_run_can_be_taken_to_its_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = explore(monkeypatch, capsys, "a!\nb!\n", "expand", "--design", "linux-6.18")
    assert code == 0
    assert "grow    has ended" in out
    assert "the end; results: munmap (0,), grow" in out


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("fly", "no command or task 'fly'; the tasks are a (munmap), b (grow)"),
        ("back soon", "'soon' is no number of steps"),
        ("a 0", "'0' is no number of steps"),
        ("a 99999999999", "is no number of steps"),
        ("", "let it go on until it has to wait or ends"),
        ("\x1b[31m", "no command or task '\\x1b[31m'"),
    ],
)
def test_a_wrong_command_says_what_there_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], line: str, words: str
) -> None:
    code, out, _ = explore(monkeypatch, capsys, f"{line}\n", *EXPAND)
    assert code == 0
    assert words in out


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "give one of"),
        (["--all"], "are for one SCENARIO"),
        (["expand", "--design", "rfc-v6", "--design", "linux-6.1"], "give --design once"),
        (["expand", "--replay", "ceiling@linux-4.20~a"], "is of the scenario 'ceiling'"),
    ],
)
def test_only_one_scenario_and_design_can_be_explored(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], argv: list[str], words: str
) -> None:
    code, _, err = explore(monkeypatch, capsys, "", *argv)
    assert code == 2
    assert words in err


def test_a_file_imports_its_neighbour_and_another_file_another_one(tmp_path: Path) -> None:
    for name, release in (("one", "4.9"), ("two", "6.1")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "helper.py").write_text(
            "from zaplock.author import SHIPPED\n"
            f"BASE = SHIPPED['linux-{release}']\n"
            "async def munmap(cx, start, length):\n"
            "    return await BASE.munmap(cx, start, length)\n"
        )
        (tmp_path / name / "own.py").write_text(
            "from dataclasses import replace\nfrom helper import BASE, munmap\n"
            "OWN = replace(BASE, name='own', munmap=munmap)\n"
        )
    designs = [find_design(f"{tmp_path / name / 'own.py'}:OWN") for name in ("one", "two")]
    assert [design.kernel for design in designs] == ["4.9", "6.1.37"]
    found = [check(find_scenario("munmap+fault"), design) for design in designs]
    assert [one.verdict for one in found] == ["proved", "proved"]
    assert found[0].states < found[1].states
    assert not list(tmp_path.rglob("__pycache__"))


MISSPELLED = {
    "SkipLock('mmap_lok', write=True)": "no class of locks 'mmap_lok' (did you mean mmap_lock?)",
    "Skip('zap_pte_rang')": "there is no step 'zap_pte_rang' (did you mean zap_pte_range?)",
    "Postpone('zap_pte_range', 'zapp')": "there is no step 'zapp'",
}


@pytest.mark.parametrize("rule", MISSPELLED)
def test_a_mutation_that_names_what_is_not_there_is_no_proof(
    rule: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # It would leave out nothing, and so be "proved".
    file = tmp_path / "mine.py"
    file.write_text(
        "from zaplock.author import *\n"
        f"M = Mutation(name='m', summary='x', rule=lambda: {rule})\n"
        "NOTHING = Mutation(name='m', summary='x')\n"
    )
    assert main(["check", "expand", "--design", f"linux-6.18/{file}:M"]) == 2
    assert MISSPELLED[rule] in capsys.readouterr().err
    assert main(["check", "expand", "--design", f"linux-6.18/{file}:NOTHING"]) == 2
    assert "changes nothing; give it `changes` or a `rule`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("stack_growth='raed'", "stack_growth is 'raed' (did you mean read?); it has to be one of"),
        ("vma_locks=1", "vma_locks is 1; it has to be one of False, True"),
        ("rwsem=replace(linux('6.18').rwsem, wakes='some')", "wakes is 'some'; it has to be one"),
    ],
)
def test_a_rule_that_is_misspelled_is_no_proof(
    change: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(f"from zaplock.author import *\nD = replace(linux('6.18'), {change})\n")
    assert main(["check", "expand", "--design", f"{file}:D"]) == 2
    assert said in capsys.readouterr().err


def test_a_text_is_no_lock_and_two_invariants_have_two_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from zaplock.author import *\n"
        "async def take(cx):\n"
        "    await down_read('mine')\n"
        "    return 0\n"
        "TAKE = OwnOperation(name='take', run=take, arguments=(), summary='x')\n"
        "RULE = OwnInvariant(name='R', says='x', always=lambda m: None)\n"
        "def scenario(*rules):\n"
        "    return Scenario(summary='x', map=[], task=[TaskSpec(['take'])], operations=(TAKE,),\n"
        "                    invariants=rules)\n"
        "LOCKING, TWICE = scenario(), scenario(RULE, RULE)\n"
    )
    assert main(["check", f"{file}:LOCKING", "--design", "linux-6.18"]) == 4
    assert "'mine' is no lock; make a class of locks" in capsys.readouterr().err
    assert main(["check", f"{file}:TWICE", "--design", "linux-6.18"]) == 2
    assert "has two invariants named 'R'" in capsys.readouterr().err


UNASKED = """
from zaplock.author import *

ONE, TWO = OwnCells("kept", 0), OwnCells("kept", 5)

async def both(cx):
    await ONE.write(1, 1)
    return await TWO.read(2)

async def add(cx):
    return await ONE.add(1, 1)

BOTH = OwnOperation(name="both", run=both, arguments=(), summary="x")
ADD = OwnOperation(name="add", run=add, arguments=(), summary="x")

def scenario(does, *invariants, **fields):
    return Scenario(summary="x", task=(TaskSpec((does,), **fields),), operations=(BOTH, ADD),
                    invariants=invariants)

TWICE = scenario("both")
ONE_IS_0 = OwnInvariant(name="R", says="x", always=lambda m: "1" if ONE.get(m, 1) else None)
LATE = scenario("add", ONE_IS_0)
AT_END = OwnInvariant(name="R", says="x", at_end=lambda m, results: "wrong")
AT_TASK_END = OwnInvariant(name="R", says="x", at_task_end=lambda m, task, results: "wrong")
NO_BOOL = scenario("add", OwnInvariant(name="R", says="x", sometimes=lambda m: 1))
NO_END, NO_TASK_END = (scenario("peek 1 0", one, again=True) for one in (AT_END, AT_TASK_END))
JUDGED = scenario("peek 1 0 -> 7", again=True)
FORBIDDEN = Scenario(summary="x", task=(TaskSpec(("peek 1 0",), again=True),),
                     forbidden=("A.1 == 0",))
"""


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("TWICE", 2, "cells 'kept' are made with two defaults, 0 and 5"),
        ("LATE", 1, "R: 1"),
        ("NO_BOOL", 4, "sometimes returned 1; return True or False"),
        ("NO_END", 3, "never: an end for R to judge"),
        ("NO_TASK_END", 3, "never: the end of a task for R to judge"),
        ("JUDGED", 2, "is done again and again"),
        ("FORBIDDEN", 3, "never: an end to judge"),
    ],
)
def test_what_was_never_asked_is_no_proof(
    name: str, code: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(UNASKED)
    found, out, err = run(capsys, f"{file}:{name}", "--design", "linux-6.18")
    assert (found, said in out + err) == (code, True), out + err


def test_a_default_is_frozen_and_an_operation_that_is_added_is_done(
    mine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=r"their default .* is a list"):
        author.OwnCells("kept", [])
    code, _, err = run(capsys, "munmap+fault", "--operation", f"{mine}:REGISTER")
    assert (code, "no task of 'munmap+fault' does 'register'" in err) == (2, True)


def test_who_stops_reading_a_verdict_gets_its_exit_code() -> None:
    command = [sys.executable, "-m", "zaplock", "check", "expand", "--design", "linux-4.20"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as checking:
        assert checking.stdout is not None
        checking.stdout.close()
        assert checking.wait() == 1
