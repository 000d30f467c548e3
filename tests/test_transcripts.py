"""What README and docs show is what zaplock prints.

A transcript is a block that shows `$ zaplock ...` and, below it, what that prints. Each command is
run (or, where it needs root, another kernel or minutes, only parsed), and what is shown must come
in its output, in this order. So a transcript may leave lines out. Figures that differ from run to
run (seconds, line numbers) are left out of the comparison, as are measured rows.
"""

from __future__ import annotations

import argparse
import contextlib
import doctest
import pkgutil
import re
import runpy
import shlex
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import pytest

from zaplock import cli
from zaplock.cli import main
from zaplock.cli._overview import SUMMARIES

VERBS = {module.name for module in pkgutil.iter_modules(cli.__path__)}
ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = (
    ROOT / "README.md",
    *sorted(DOCS.glob("*.md")),
    *sorted(DOCS.glob("verbs/*.md")),
    *sorted(DOCS.glob("users/*.md")),
)
LONG = re.compile(r"check (--all|expand)|e5-2680-320g|--kernel|\bmeasure\b|record|why|top\b")
"""Commands that take minutes, ask root or a guest, or are run elsewhere: these are parsed only."""
TWO = re.compile(r"^\w+ before\.zaplock")
"""Commands on the recordings that docs/examples/two_recordings.py makes."""
RUN_IN = {"authors.md": ROOT / "docs" / "examples"}
"""Where a page says that its commands are run, if not at the root."""
VARYING = (
    (re.compile(r"\b\d+\.\d{3} s\b"), "TIME"),
    (re.compile("─+"), ""),
    (re.compile(r"\.py:\d+\)"), ".py:LINE)"),
    (re.compile(r"audited: .* % of the time"), "audited"),
)


class Transcript(NamedTuple):
    """A command that a page shows, and the lines that it shows of what it prints."""

    page: str
    command: str
    shown: tuple[str, ...]


def blocks(text: str) -> list[list[str]]:
    """List the blocks of a page: fenced ones, and those that are indented by four blanks."""
    fenced = [part.splitlines()[1:] for part in re.findall(r"^```.*?^```", text, re.M | re.S)]
    rest = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    indented = re.findall(r"(?:^(?: {4}.*)?\n)+", rest, re.M)
    return [block[:-1] for block in fenced] + [block.splitlines() for block in indented]


def transcripts() -> list[Transcript]:
    """Find every command that the pages show with what it prints."""
    found = []
    for page in PAGES:
        for block in blocks(page.read_text()):
            block = [line.replace("$ sudo zaplock", "$ zaplock") for line in block]
            commands = [k for k, line in enumerate(block) if line.strip().startswith("$ zaplock")]
            for begin, end in zip(commands, [*commands[1:], len(block)]):
                shown = tuple(line.strip() for line in block[begin + 1 : end] if line.strip())
                found.append(Transcript(page.name, block[begin].strip()[10:], shown))
    return found


def flat(text: str) -> str:
    """Bring a text into the form in which transcripts are compared: one line, without varieties."""
    for pattern, instead in VARYING:
        text = pattern.sub(instead, text)
    return " ".join(text.split())


def mentioned() -> list[tuple[str, str]]:
    """List every command that the pages name in running text."""
    pattern = re.compile(r"`(?:sudo )?zaplock ([a-z]+(?: [^`]*)?)`")
    return sorted(
        {(page.name, " ".join(found.split())) for page in PAGES
         for found in pattern.findall(page.read_text())}
    )  # fmt: skip


def parse(command: str) -> None:
    """Read a command as the command line does."""
    verb, *arguments = shlex.split(command.split(" | ")[0].split(" >")[0])
    assert verb in VERBS, f"there is no verb {verb}"
    module = import_module(f"zaplock.cli.{verb}")
    parser = argparse.ArgumentParser(prog=f"zaplock {verb}")
    module.configure(parser)
    if "--help" not in arguments:
        parser.parse_args(arguments)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where the two recordings of the pages are, made as they say."""
    place = tmp_path_factory.mktemp("recordings")
    with contextlib.chdir(place):
        runpy.run_path(str(DOCS / "examples" / "two_recordings.py"))
    return place


def test_every_verb_has_its_page_with_an_example() -> None:
    pages = {one.page: one for one in transcripts()}
    for verb in SUMMARIES:
        assert f"zaplock {verb}" in (DOCS / "verbs" / f"{verb}.md").read_text()
        assert pages[f"{verb}.md"].command.partition(" ")[0] == verb


def test_every_page_can_be_reached_from_the_first() -> None:
    """By the links of pages alone, as somebody goes who knows nothing."""
    todo, seen = [DOCS / "index.md"], set[Path]()
    while todo:
        page = todo.pop()
        if page in seen or not page.exists():
            continue
        seen.add(page)
        links = re.findall(r"\]\(([\w./-]+\.md)", page.read_text())
        if page.name == "commands.md":
            links += [f"../verbs/{verb}.md" for verb in SUMMARIES]
        todo += [(page.parent / link).resolve() for link in links]
    assert {page for page in PAGES if page.parent != ROOT} - seen == set()


def test_pages_show_something() -> None:
    assert len(transcripts()) > 10
    assert len(mentioned()) > 30


@pytest.mark.parametrize("one", transcripts(), ids=lambda one: f"{one.page}:{one.command[:60]}")
def test_a_transcript_is_what_zaplock_prints(
    one: Transcript,
    recordings: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    two = TWO.search(one.command)
    if not two and (LONG.search(one.command) or one.shown in ((), ("...",))):
        parse(one.command)
        return
    monkeypatch.setattr("zaplock.advise.costs.LENGTHS", (16 << 20,))  # no transcript shows these
    monkeypatch.chdir(recordings if two else RUN_IN.get(one.page, ROOT))
    measured = one.command.startswith("compare") and "--no-measure" not in one.command
    main([*shlex.split(one.command), *(["--no-measure"] if measured else [])])
    printed = capsys.readouterr()
    output, at = flat(printed.out + printed.err), 0
    for line in one.shown:
        if line == "..." or line.startswith("this kernel"):
            continue
        wanted = flat(line)
        at = output.find(wanted, at)
        assert at >= 0, f"{one.page} shows {line!r}, and that does not come (in this place)"
        at += len(wanted)


@pytest.mark.parametrize(("page", "command"), mentioned())
def test_a_command_of_the_text_can_be_typed(page: str, command: str) -> None:
    """What stands in backticks is a command, where it has no gap ("...") and no choice in it."""
    if "..." in command or "[" in command:
        pytest.skip("not a whole command")
    if command.startswith("help ") and command != "help WORD":
        assert main(command.split()) == 0
    if command.startswith("help "):
        return
    verb, *arguments = re.sub(r"\b(PID|N)\b", "1", command).split()
    if arguments:
        parse(" ".join([verb, *arguments]))
    assert verb in VERBS, f"there is no verb {verb}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_of_python_do_what_they_show(page: Path) -> None:
    text = page.read_text()
    examples = doctest.DocTestParser().get_doctest(text, {}, page.name, str(page), 0)
    failed = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(examples)
    assert not failed.failed


SOURCE = ROOT / "src"
WITH_EXAMPLES = [path for path in sorted(SOURCE.rglob("*.py")) if "\n    >>> " in path.read_text()]


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda path: path.stem)
def test_examples_in_docstrings_do_what_they_show(path: Path) -> None:
    """The notebook's are what `help(zaplock.compare)` and the pages of the library show."""
    module = import_module(".".join(path.relative_to(SOURCE).with_suffix("").parts))
    assert doctest.testmod(module, optionflags=doctest.ELLIPSIS).failed == 0
