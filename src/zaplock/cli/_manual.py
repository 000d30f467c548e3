"""The verbs as manual pages and as completions of the shells, from their parsers.

    python -m zaplock.cli._manual FOLDER      writes them; building a wheel does so, too

The pages are in man(7)'s own macros; the completions are shtab's, where it is installed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from zaplock.cli import parser_of, whole_parser
from zaplock.cli._overview import QUESTIONS, SUMMARIES
from zaplock.version import __version__

COMPLETIONS = {
    "bash": "share/bash-completion/completions/zaplock",
    "zsh": "share/zsh/site-functions/_zaplock",
    "tcsh": "share/tcsh/zaplock.csh",
}
"""Where each shell looks, below a prefix."""


def write(folder: Path) -> dict[Path, list[Path]]:
    """Write all pages and completions; return the files by the folder that they belong in.

    Completions are left out where shtab isn't installed.
    """
    texts = {Path("share/man/man1/zaplock.1"): overview_page()}
    texts |= {Path(f"share/man/man1/zaplock-{verb}.1"): page(verb) for verb in SUMMARIES}
    texts |= {Path(place): text for place, text in completions().items()}
    by_folder: dict[Path, list[Path]] = {}
    for place, text in texts.items():
        file = folder / place
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, "utf-8")
        by_folder.setdefault(place.parent, []).append(file)
    return by_folder


def completions() -> dict[str, str]:
    """Return the completion of each shell, by its place; nothing without shtab."""
    try:
        import shtab
    except ImportError:
        return {}
    parser = whole_parser()
    return {place: shtab.complete(parser, shell) for shell, place in COMPLETIONS.items()}


def page(verb: str) -> str:
    """Return the manual page of a verb."""
    parser = parser_of(verb)
    lines = [
        _head(f"zaplock-{verb}"),
        ".SH NAME",
        f"zaplock-{verb} \\- {_plain(SUMMARIES[verb])}",
        ".SH SYNOPSIS",
        _plain(" ".join(parser.format_usage().removeprefix("usage: ").split())),
        ".SH DESCRIPTION",
        *_paragraphs(parser.description or ""),
    ]
    for group in parser._action_groups:
        if group._group_actions:
            lines.append(f".SH {_plain((group.title or 'options').upper())}")
            for action in group._group_actions:
                lines += _argument(parser, action)
    lines += [
        ".SH EXIT STATUS",
        "0: done; 2: bad input, told in one line; 128 and a signal's number: ended by it.",
        ".SH SEE ALSO",
        ".BR zaplock (1)",
    ]
    return "\n".join(lines) + "\n"


def overview_page() -> str:
    """Return the page of the command itself: the questions, and all verbs."""
    lines = [
        _head("zaplock"),
        ".SH NAME",
        "zaplock \\- who holds a process's address\\-space lock, and who waits for it",
        ".SH SYNOPSIS",
        "zaplock VERB [options]",
        ".SH QUESTIONS",
    ]
    for question, command in QUESTIONS:
        lines += [".TP", f".B {_plain(command)}", _plain(question)]
    lines.append(".SH VERBS")
    for verb, summary in SUMMARIES.items():
        lines += [".TP", f".BR zaplock\\-{verb} (1)", _plain(summary)]
    return "\n".join(lines) + "\n"


def _head(name: str) -> str:
    return f'.TH {name.upper()} 1 "" "zaplock {__version__}" "User Commands"'


def _argument(parser: argparse.ArgumentParser, action: argparse.Action) -> list[str]:
    formatter = parser._get_formatter()
    told = formatter._format_action_invocation(action)
    said = formatter._expand_help(action) if action.help else ""
    return [".TP", f".B {_plain(told)}", _plain(said) or "\\&"]


def _paragraphs(text: str) -> list[str]:
    """Set indented lines as they are, the others as paragraphs."""
    lines: list[str] = []
    for block in text.strip().split("\n\n"):
        as_it_is = block.startswith("    ")
        body = [_plain(line) for line in block.splitlines()]
        lines += [".PP", *([".nf", *body, ".fi"] if as_it_is else body)]
    return lines[1:]


def _plain(text: str) -> str:
    """Escape what roff would take for its own."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")
    return f"\\&{text}" if text.startswith(".") else text


if __name__ == "__main__":
    write(Path(sys.argv[1]))
