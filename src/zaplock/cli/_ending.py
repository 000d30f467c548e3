"""How every verb ends: which files it wrote, and the command that comes next."""

from __future__ import annotations

import shutil
import sys
from os import PathLike, fspath


def wrote(path: str | PathLike[str], *, aside: bool = False) -> None:
    """Say that a file was written; `aside`: on standard error, beside JSON."""
    print(f"Wrote {fspath(path)}", file=sys.stderr if aside else sys.stdout)


def next_step(command: str, why: str = "", *, aside: bool = False) -> None:
    """Say which command leads on, and what for; `aside`: on standard error, beside JSON.

    On a narrow terminal the command is folded as a shell takes it.
    """
    from zaplock.views.fold import fold_command

    out = sys.stderr if aside else sys.stdout
    line = f"next: {command}   ({why})" if why else f"next: {command}"
    width = shutil.get_terminal_size().columns if out.isatty() else len(line)
    if len(line) <= width:
        print(line, file=out)
        return
    print(*fold_command(command, width, prompt="next: "), sep="\n", file=out)
    if why:
        print(f"      ({why})", file=out)
