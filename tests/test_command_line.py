"""What zaplock says to people who don't know it yet, or who misspell."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pkgutil
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from zaplock import cli
from zaplock.cli import _progress, main, parser_of
from zaplock.cli._designs import parse_designs
from zaplock.cli._ending import next_step
from zaplock.cli._overview import QUESTIONS, SUMMARIES
from zaplock.cli._progress import counter
from zaplock.cli._streams import guarded
from zaplock.untrusted_names import shell_word


def test_zaplock_alone_asks_what_people_come_with(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    said = capsys.readouterr().out
    for question, command in QUESTIONS:
        assert f"{question}\n      {command}" in said
        words = [word for word in shlex.split(command) if word != "sudo"]
        assert words[0] == "zaplock"
        assert words[1] in SUMMARIES
    assert all(len(line) <= 80 for line in said.splitlines())


def test_every_verb_has_a_line_and_every_line_a_verb(capsys: pytest.CaptureFixture[str]) -> None:
    modules = {module.name for module in pkgutil.iter_modules(cli.__path__)}
    assert set(SUMMARIES) == {name for name in modules if not name.startswith("_")}
    assert main(["--help"]) == 0
    said = capsys.readouterr().out.splitlines()
    for verb, summary in SUMMARIES.items():
        assert any(line.split() == [verb, *summary.split()] for line in said)
    assert all(len(line) <= 85 for line in said)


def test_help_of_a_verb(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["help", "designs"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("usage: zaplock designs")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (["recrod"], "no verb 'recrod' (did you mean record?); there are advise"),
        (["help", "recrod"], "no verb 'recrod' (did you mean record?)"),
        (["designs", "--jsno"], "no option '--jsno' (did you mean --json?)"),
        (["measure", "4K", "8K"], "'8K' is one argument too many"),
        (["compare", "4K", "--backing", "zeor"], "no backing 'zeor' (did you mean zero?)"),
        (["compare", "4K", "--bystanders", "prok"], "no bystander 'prok' (did you mean proc?)"),
        (["compare", "4K", "--design", "rfcv6"], "no design 'rfcv6' (did you mean rfc-v6?)"),
        (["compare", "4K", "--profile", "epyc"], "no profile 'epyc'"),
        (["check", "munmap-falt"], "no scenario 'munmap-falt' (did you mean munmap-f"),
        (["check", "munmap-falt"], "or FILE.py:NAME for your own: see 'zaplock check --list'"),
        (
            ["check", "expand", "--design", "linux-6.18/no-lok"],
            "no mutation 'no-lok' of linux-6.18 (did you mean no-",
        ),
        (["oracle", "--theme", "hug"], "no theme 'hug' (did you mean huge?); there are huge, "),
        (["oracle", "--theme", "hug"], " others: see 'zaplock oracle --help'"),
    ],
)
def test_who_misspells_is_asked_what_was_meant(
    typed: list[str], meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _code(typed) == 2
    said = capsys.readouterr().err
    assert meant in said
    assert said.count("\n") == 1


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="recording needs root")
@pytest.mark.parametrize(("command", "code"), [("exit 3", 3), ("kill -TERM $$", 143), ("", 0)])
def test_record_ends_as_its_command_ends(
    command: str, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["record", "-o", str(tmp_path / "a"), "--", "sh", "-c", command]) == code
    assert "zaplock report" in capsys.readouterr().out


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="recording needs root")
def test_what_was_recorded_is_json_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(tmp_path / "a")
    assert main(["record", "--json", "-o", file, "--", "true"]) == 0
    assert json.loads(capsys.readouterr().out)["file"] == file


@pytest.mark.parametrize("asked", [[], ["--help"], ["help", "convoy"]])
def test_what_is_no_verb_minds_its_output_as_a_verb_does(
    asked: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A disk that is full is one line; whoever has stopped reading has seen what they wanted."""
    with open("/dev/full", "w", buffering=1) as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(asked) == 2
        monkeypatch.undo()
        with contextlib.suppress(OSError):
            full.close()
    assert capfd.readouterr().err == "zaplock: the disk is full: free some space\n"
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w", buffering=1) as unread:
        monkeypatch.setattr(sys, "stdout", unread)
        assert main(asked) == 0
    assert capfd.readouterr().err == ""


def test_a_closed_output_is_said_in_one_line() -> None:
    command = [sys.executable, "-m", "zaplock", "designs"]
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *command], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "zaplock: standard output is closed: open it, or send it to a file\n"


@pytest.mark.parametrize(
    ("typed", "named"),
    [
        (["report", ""], "'report'"),
        (["replay", "", "--json"], "'replay'"),
        (["oracle", "--strace", ""], "'--strace'"),
        (["compare", "1G", "--design", ""], "'--design'"),
        (["record", "--output=", "--", "true"], "'--output'"),
    ],
)
def test_an_empty_argument_is_no_directory_but_a_variable_that_is_not_set(
    capsys: pytest.CaptureFixture[str], typed: list[str], named: str
) -> None:
    """zaplock report "$FILE" without FILE must not speak of the directory one is in."""
    assert main(typed) == 2
    told = capsys.readouterr().err
    assert f"the argument after {named} is empty" in told
    assert len(told.splitlines()) == 1


@pytest.mark.parametrize(
    ("typed", "rule"),
    [
        (
            ["compare", "1G", "--bystanders", "fault,,proc"],
            "--bystanders 'fault,,proc' has an empty",
        ),
        (["compare", "1G", "--bystanders", "none,proc"], "names somebody beside none"),
        (["measure", "16M", "--bystanders", "proc,"], "--bystanders 'proc,' has an empty item"),
        (["compare", "1G", "--design", "linux-6.3", "--design", "linux-6.3"], "2 times: give it"),
        (["check", "expand", "--design", ",linux-6.3"], "--design ',linux-6.3' has an empty item"),
        (["replay", "a", "--free-by", "munmap,munmap"], "--free-by has 'munmap' 2 times"),
        (["scale", "mmap1", "--cpus", "1,,2"], "--cpus '1,,2' has an empty item"),
        (["scale", "mmap1", "--cpus", "2,2"], "--cpus has '2' 2 times"),
        (["compare", "1G", "--rate", "1_000"], "'1_000' is not a whole number"),
        (["scale", "mmap1", "--cores", "9" * 30], "is more than 64 bits hold"),
        (["scale", "mmap1", "--single", "nan"], "'nan' is not a number such as 1.5"),
        (["scale", "mmap1", "--transfer", "7.5"], "'7.5' is not a whole number"),
        (["why", "-d", "-1s", "1"], "duration '-1s' is not a number of seconds"),
        (["why", "1", "--top", "0"], "--top 0 is less than 1"),
        (["top", "--top", "-3"], "--top -3 is less than 1"),
        (["scale", "mmap1", "--jobs", "100000"], "--jobs 100000 is more than 256"),
        (["check", "expand", "--disk", "d" * 300], "is longer than a name may be"),
    ],
)
def test_a_value_that_is_none_is_refused_with_its_rule(
    typed: list[str], rule: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is taken in silence for something else: an empty item may stand for a name."""
    assert _code(typed) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert rule in said.err


@pytest.mark.parametrize(
    ("typed", "partner"),
    [
        (["record", "--after", "2s", "-p", "1"], "--stop-after-hold"),
        (["record", "--keep", "2s", "-p", "1"], "--stop-after-hold"),
        (["scale", "mmap1", "--far", "90"], "--nodes"),
        (["scale", "mmap1", "--smt", "0.5"], "--cores"),
        (["check", "expand", "--seed", "7"], "--sample"),
        (["oracle", "--c", "a.c"], "--replay"),
        (["oracle", "--replay", "x.json", "--c", "a.c", "--kernel", "debian:6.12"], "--c"),
        (["oracle", "--threads", "--replay", "x.json", "--c", "a.c", "--json"], "--c"),
        (["oracle", "--threads", "--self-test", "--save", "out"], "--threads --self-test"),
        (["oracle", "--threads", "--replay", "x.json", "--self-test"], "--threads --replay"),
        (["oracle", "--threads", "--theme", "huge"], "--threads"),
        (["oracle", "--self-test", "--against-itself"], "--self-test"),
        (["oracle", "--locks", "--committed"], "--locks"),
        (["oracle", "--replay", "x.json", "--json"], "--replay"),
        (["oracle", "--strace", "x.strace", "--seed", "7"], "--strace"),
        (["oracle", "--bpftrace", "--json"], "--bpftrace"),
        (["oracle", "--trace", "--kernel", "debian:6.1"], "--trace"),
    ],
)
def test_an_option_that_would_change_nothing_names_the_one_that_it_is_for(
    typed: list[str], partner: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _code(typed) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert typed[-1 if typed[0] != "record" else 1] in said
    assert partner in said


@pytest.mark.parametrize(
    ("typed", "reason"),
    [
        (["report", "a.zaplock", "--html", "{}/file/x.html"], "can't be written"),
        (["report", "a.zaplock", "--csv", "{}/file"], "is no folder"),
        (["report", "a.zaplock", "--pprof", "{0}/new", "--folded", "{0}/new"], "name one file"),
        (["check", "expand", "--html", "/dev/full"], "is a device"),
        (["oracle", "--save", "{}/file/deeper/out"], "is no folder"),
        (["compare", "1G", "--plot", "{0}/a.svg", "--trace", "{0}/a.svg"], "name one file"),
    ],
)
def test_where_an_output_cannot_be_is_said_before_the_work(
    typed: list[str], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The recording is not even there: whoever waits for an answer learns of the output first."""
    (tmp_path / "file").write_text("mine")
    assert _code([word.format(tmp_path) for word in typed]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert reason in said.err
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [("file", "mine")]


@pytest.mark.parametrize("verb", [["report"], ["advise"], ["record", "--finish"]])
def test_a_recording_that_is_not_there_is_no_damaged_one(
    verb: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*verb, str(tmp_path / "a.zaplock")]) == 2
    assert "there is nothing of that name" in capsys.readouterr().err
    assert main([*verb, str(tmp_path)]) == 2
    assert "it has no manifest.json" in capsys.readouterr().err


def _code(typed: list[str]) -> int:
    try:
        return main(typed)
    except SystemExit as ended:
        return int(str(ended.code))


@pytest.mark.parametrize(
    "typed",
    [
        ["compare", "{}"],
        ["compare", "{}G"],
        ["why", "{}"],
        ["why", "1", "-d", "{}"],
        ["record", "--buffer", "{}", "--", "true"],
        ["designs", "{}"],
        ["designs", "6.6.{}"],
        ["designs", "--{}"],
        ["check", "{}"],
        ["check", "--replay", "{}"],
        ["scale", "pft", "--cpus", "{}"],
        ["report", "{}"],
        ["help", "{}"],
        ["{}"],
    ],
)
def test_a_value_of_5000_digits_does_not_fill_the_screen(
    typed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """It is told by its beginning; a path is told whole, since each of its parts is a name."""
    assert _code([word.format("9" * 5000) for word in typed]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "9" * 20 in said
    assert len(said) < 1600  # names of what there is
    path = "/".join(["", *(letter * 250 for letter in "abcd")])
    assert main(["report", path]) == 2
    assert path in capsys.readouterr().err


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    "name",
    ["a b.zaplock", "a long name of many words.zaplock", "it's", "a\nb\udcff\x85'c\\", "plain"],
)
@pytest.mark.parametrize("width", [24, 80])
def test_the_next_command_can_be_typed_as_it_is_shown(
    name: str, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a name has blanks, quotes or what can't be printed, and is folded."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", str(width))
    with guarded():
        next_step(f"printf %s/%s {shell_word(name)} {shell_word(name)}", "what for")
    shown = terminal.getvalue()
    assert "\\\n" in shown or width != 24
    command = re.sub(r" *\(what for\)\n$", "", shown.removeprefix("next: "))
    done = subprocess.run(["bash", "-c", command], capture_output=True, check=True,
                          env={**os.environ, "LC_ALL": "C.UTF-8"})  # fmt: skip
    assert done.stdout == os.fsencode(f"{name}/{name}")


@pytest.mark.parametrize(
    "typed",
    [
        ["designs"],
        ["designs", "5.15"],
        ["designs", "5.15", "6.6"],
        ["designs", "6.6", "linux-6.6"],
        ["check", "--list"],
        ["check", "munmap+fault", "--design", "linux-4.20"],
        ["compare", "4K", "--no-measure", "--design", "linux-6.18", "--bystanders", "none"],
        ["scale", "pft", "--cpus", "1,2", "--transfer", "7", "--nodes", "2", "--far", "100"],
        ["calibrate", "--units"],
        ["doctor"],
    ],
    ids=" ".join,
)
def test_the_next_command_is_one_that_is_taken(
    typed: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it does: what it was given is read, and lists of designs are looked up."""
    assert _code(typed) in (0, 1)
    command = capsys.readouterr().out.rpartition("next: zaplock ")[2].partition("   (")[0]
    verb, *words = shlex.split(command)
    parsed = parser_of(verb).parse_all(words)
    if designs := getattr(parsed, "design", None):
        assert parse_designs(designs)


def test_work_that_tells_nothing_of_itself_is_shown_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From `PATIENCE_S` on: a replay of a large recording says how far it is when it is over."""
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(_progress, "PATIENCE_S", 0.01)
    with counter("replaying"):
        deadline = time.monotonic() + 250
        while "replaying" not in terminal.getvalue():
            assert time.monotonic() < deadline
            time.sleep(0.01)
    monkeypatch.setattr(_progress, "PATIENCE_S", 3600)
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with counter("replaying") as show:
        show("1 of 2")
    assert terminal.getvalue() == "", "what is over at once needs no progress"
