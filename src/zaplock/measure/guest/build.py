"""Compile the probe once, into the cache: one static program, for guests' init and for the host.

Its name there is a hash of its sources and of the command, so that a changed source is a new
program and nothing is ever stale; its own SHA-256 is kept beside it and checked each time. Static,
since the guest has no libraries.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from zaplock.errors import UserError
from zaplock.measure.guest import cache

SOURCES = Path(__file__).parent
MAIN = SOURCES / "probe.c"
FLAGS = ("-O2", "-static", "-no-pie", "-s", "-Wall", "-pthread")
_LIMIT_S = 120
_WAY_OUT = "install one with 'apt-get install gcc libc6-dev'"


def compiler() -> str | None:
    """Return the C compiler: $CC, else gcc or cc."""
    return next(filter(None, map(shutil.which, [os.environ.get("CC", ""), "gcc", "cc"])), None)


def probe() -> Path:
    """Return the compiled probe, compiling it on first use. Raises UserError without a compiler."""
    program = cache.folder("probe") / f"probe-{_fingerprint()}"
    if not _is_whole(program):
        _compile(program)
    return program


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


def _fingerprint() -> str:
    digest = hashlib.sha256(" ".join(FLAGS).encode())
    for source in sorted(SOURCES.glob("*.c")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def _compile(program: Path) -> None:
    cc = compiler()
    if cc is None:
        raise UserError(f"the probe for other kernels needs a C compiler: {_WAY_OUT}")
    with tempfile.TemporaryDirectory(dir=program.parent) as scratch:
        made = Path(scratch) / program.name
        command = [cc, *FLAGS, "-o", str(made), str(MAIN)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S)
        if done.returncode:
            reason = (done.stderr.strip() or "no message").splitlines()[0]
            raise UserError(f"{cc} can't compile the probe ({reason}): {_WAY_OUT}")
        made.rename(program)
        _sum_file(program).write_text(_sum_of(program))
