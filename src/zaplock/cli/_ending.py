"""How every verb ends: which files it wrote, and the command that comes next."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from os import PathLike, fspath

from zaplock.cli._streams import write_whole
from zaplock.untrusted_names import shell_word


def wrote(path: str | PathLike[str], *, aside: bool = False) -> None:
    """Say that a file was written; `aside`: on standard error, beside JSON."""
    print(f"Wrote {fspath(path)}", file=sys.stderr if aside else sys.stdout)


def options(given: Mapping[str, object]) -> str:
    """Spell options as they were given, so that the next command is about the same.

    >>> options({"--design": ["a", "b c"], "--cpus": 4, "--seed": None, "--locked": True})
    " --design a --design 'b c' --cpus 4 --locked"
    """
    words = []
    for name, value in given.items():
        for one in value if isinstance(value, list) else [value]:
            if one is True:
                words.append(f" {name}")
            elif one is not None and one is not False:
                words.append(f" {name} {shell_word(str(one))}")
    return "".join(words)


def next_step(command: str, why: str = "", *, aside: bool = False) -> None:
    """Say which command leads on, and what for; `aside`: on standard error, beside JSON.

    On a narrow terminal the command is folded as a shell takes it.
    """
    out = sys.stderr if aside else sys.stdout
    line = f"next: {command}   ({why})" if why else f"next: {command}"
    width = shutil.get_terminal_size().columns if out.isatty() else len(line)
    if len(line) <= width:
        print(line, file=out)
        return
    from zaplock.views.fold_lines import fold_command

    lines = "".join(f"{line}\n" for line in fold_command(command, width, prompt="next: "))
    write_whole(out, lines)
    if why:
        print(f"      ({why})", file=out)
