"""Compile a C source once, into the cache.

A program's name there is a hash of its sources and of the command, so that a changed source is a
new program and nothing is ever stale; its own SHA-256 is kept beside it and checked each time.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from zaplock.compiled import cache
from zaplock.errors import UserError
from zaplock.scratch import Scratch

_LIMIT_S = 120
_WAY_OUT = "install one with 'apt-get install gcc libc6-dev'"


def compiler() -> str | None:
    """Return the C compiler: $CC, else gcc or cc."""
    return next(filter(None, map(shutil.which, [os.environ.get("CC", ""), "gcc", "cc"])), None)


def built(main: Path, flags: tuple[str, ...], *, beside: Path, kept: str, named: str) -> Path:
    """Return what a C source makes, compiling it on first use.

    It may include the C files of the folder `beside`; `kept` is the cache's folder, `named` what it
    is in a message. Raises UserError without a compiler.
    """
    program = _place_of(main, flags, beside, kept)
    if not _is_whole(program):
        _compile(main, flags, beside, program, named)
    return program


def already_built(main: Path, flags: tuple[str, ...], *, beside: Path, kept: str) -> Path | None:
    """Return what `built` would, if that has been made before, else None; compile nothing.

    Raises UserError where the cache can't be used.
    """
    program = _place_of(main, flags, beside, kept)
    return program if _is_whole(program) else None


def _place_of(main: Path, flags: tuple[str, ...], beside: Path, kept: str) -> Path:
    return cache.folder(kept) / f"{main.stem}-{_fingerprint(main, flags, beside)}"


def _is_whole(program: Path) -> bool:
    """Say whether it is what was compiled, to the last byte."""
    try:
        return _sum_of(program) == _sum_file(program).read_text("ascii", "replace")
    except OSError:
        return False


def _sum_of(program: Path) -> str:
    return hashlib.sha256(program.read_bytes()).hexdigest()


def _sum_file(program: Path) -> Path:
    return program.with_name(f"sha256-{program.name}")


def _fingerprint(main: Path, flags: tuple[str, ...], beside: Path) -> str:
    digest = hashlib.sha256(" ".join(flags).encode())
    for source in sorted({*beside.glob("*.c"), main}):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def _compile(main: Path, flags: tuple[str, ...], beside: Path, program: Path, named: str) -> None:
    cc = compiler()
    if cc is None:
        raise UserError(f"{named} needs a C compiler: {_WAY_OUT}")
    with Scratch("compiled", program.parent) as scratch:
        made = scratch / program.name
        command = [cc, *flags, f"-I{beside}", "-o", str(made), str(main)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S)
        if done.returncode:
            reason = (done.stderr.strip() or "no message").splitlines()[0]
            raise UserError(f"{cc} can't compile {named} ({reason}): {_WAY_OUT}")
        made.rename(program)
        _sum_file(program).write_text(_sum_of(program))
