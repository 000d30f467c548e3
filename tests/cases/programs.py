"""Build and run the programs of the cases."""

from __future__ import annotations

import functools
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

HERE = Path(__file__).parent


class Program:
    """A program that runs: its process id, and what it has said."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.pid = process.pid

    def says(self, line: str) -> None:
        """Wait until it says so."""
        assert self.process.stdout is not None
        for said in self.process.stdout:
            if said.strip() == line:
                return
        pytest.fail(f"the program ended without {line!r}")

    def goes(self) -> None:
        """Let it go on from where it waits for a line."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def seconds(self) -> dict[str, float]:
        """Wait for its end; return what it says of its own operations, in seconds."""
        assert self.process.stdout is not None
        rows = [line.split() for line in self.process.stdout.read().splitlines()]
        return {name: float(took) for name, took in (row for row in rows if len(row) == 2)}


def built(name: str, folder: Path) -> Path:
    """Put tests/cases/NAME.c, compiled, into a folder."""
    program = folder / name
    if not program.exists():
        program.write_bytes(compiled(HERE / f"{name}.c"))
        program.chmod(0o755)
    return program


@functools.cache
def compiled(source: Path) -> bytes:
    """Compile a program once for all tests."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("the cases need a C compiler (apt-get install gcc libc6-dev)")
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / source.stem
        subprocess.run(
            [compiler, "-O2", "-pthread", "-Wl,-z,now", "-o", program, source], check=True
        )
        return program.read_bytes()


@contextmanager
def running(program: Path, *arguments: object) -> Iterator[Program]:
    """Run a program while the block lasts."""
    command = [str(program), *map(str, arguments)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield Program(process)
    finally:
        process.kill()
        process.wait()
